"""Who is given which item, and what stands, on a board without a server."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.annotate.board import Board, Conflict
from lit_posttrain.feedback.annotate.tasks import Task


def tasks(count: int, gold: int = 0) -> list[Task]:
    known: list[int | None] = [0, 1]
    return [
        Task([{"role": "user", "content": f"{n}?"}], [{"text": "a"}, {"text": "b"}], gold=known if n < gold else None)
        for n in range(count)
    ]


def item(n: int) -> str:
    """The id of one of the tasks."""
    return tasks(n + 1)[n].id


def decision(item: str, who: str, number: int = 0, **said: object) -> Decision:
    made = Decision(f"{who}-{item}-{number}", item, who, "?", [{"text": "a"}, {"text": "b"}], ranks=[0, 1])
    return replace(made, **said)  # type: ignore[arg-type]  # names of fields with their values


def work(board: Board, *people: str) -> dict[str, list[str]]:
    """Everybody decides in turn until nobody is given anything."""
    done: dict[str, list[str]] = {who: [] for who in people}
    while True:
        given = {who: board.next(who) for who in people}
        if not any(given.values()):
            return done
        for who, task in given.items():
            if task is not None:
                board.add(decision(task.id, who))
                done[who].append(task.id)


def test_every_item_is_decided_once_by_somebody() -> None:
    board = Board(tasks(40))
    done = work(board, "ann", "ben")
    assert Counter(done["ann"] + done["ben"]) == {item(n): 1 for n in range(40)}
    assert abs(len(done["ann"]) - len(done["ben"])) <= 1
    assert board.missing() == 0


@pytest.mark.parametrize(("overlap", "twice", "thrice"), [(0.2, 8, 0), (1.0, 40, 0), (0.01, 1, 0), (1.5, 20, 20)])
def test_overlap_is_the_share_of_items_that_more_people_see(overlap: float, twice: int, thrice: int) -> None:
    done = work(Board(tasks(40), overlap=overlap), "ann", "ben", "eve")
    times = Counter(Counter(one for mine in done.values() for one in mine).values())
    assert (times[2], times[3]) == (twice, thrice)
    assert all(len(set(mine)) == len(mine) for mine in done.values())


def test_shared_items_come_early_enough_to_be_compared() -> None:
    board = Board(tasks(100), overlap=0.2)
    mine = {who: [board.next(who)] for who in ("ann", "ben")}
    for _ in range(30):
        for who, seen in mine.items():
            assert seen[-1] is not None
            board.add(decision(seen[-1].id, who))
            seen.append(board.next(who))
    both = {t.id for t in mine["ann"] if t} & {t.id for t in mine["ben"] if t}
    assert len(both) >= 4  # of 20 in all, after 30 of 100


def test_what_is_left_is_what_one_can_still_be_given() -> None:
    board = Board(tasks(30, gold=2), overlap=0.3)
    people = ("ann", "ben", "eve")
    while any(given := [board.next(who) for who in people]):
        for who, task in zip(people, given, strict=True):
            left = board.progress(who).left
            others = Board(tasks(30, gold=2), board.decisions(), overlap=0.3)
            others._held = {name: held for name, held in board._held.items() if name != who}
            reachable = 0
            while (one := others.next(who)) is not None:
                others.add(decision(one.id, who))
                reachable += 1
            assert left == reachable
            if task is not None:
                board.add(decision(task.id, who, outcome="skipped" if task.id == item(7) else "verdict"))
    assert board.missing() == board._wanted[item(7)]  # which everybody has skipped


def test_everybody_is_given_the_items_with_known_answers() -> None:
    done = work(Board(tasks(20, gold=3)), "ann", "ben")
    assert all({item(0), item(1), item(2)} <= set(mine) for mine in done.values())


def test_the_same_item_until_it_is_decided_and_nobody_else_gets_it() -> None:
    now = [0.0]
    board = Board(tasks(2), clock=lambda: now[0])
    first = board.next("ann")
    assert first is not None
    assert board.next("ann") == first
    other = board.next("ben")
    assert other not in (None, first)
    assert board.next("eve") is None
    now[0] += 3600  # ann has left
    assert board.next("eve") in (first, other)


def test_what_is_skipped_goes_to_somebody_else() -> None:
    board = Board(tasks(1))
    task = board.next("ann")
    assert task is not None
    board.add(decision(task.id, "ann", outcome="skipped", ranks=None))
    assert board.next("ann") is None
    assert board.next("ben") == task
    assert board.missing() == 1


def test_what_is_undone_is_looked_at_again() -> None:
    board = Board(tasks(3))
    task = board.next("ann")
    assert task is not None
    made = decision(task.id, "ann")
    board.add(made)
    assert board.last("ann") == made
    taken_back = Decision("undo-1", task.id, "ann", outcome="undone", undoes=made.id)
    board.check(taken_back)
    board.add(taken_back)
    assert board.next("ann") == task
    assert (board.progress("ann").done, board.last("ann")) == (0, None)
    with pytest.raises(Conflict, match="taken back already"):
        board.check(taken_back)


def test_one_person_decides_on_an_item_once() -> None:
    board = Board(tasks(1), [decision(item(0), "ann")])
    with pytest.raises(Conflict, match="another window"):
        board.check(decision(item(0), "ann", 1))
    board.check(decision(item(0), "ben"))


def test_a_board_of_earlier_decisions_goes_on_from_them() -> None:
    before = Board(tasks(10), overlap=0.5, seed=3)
    seen = []
    for _ in range(4):
        task = before.next("ann")
        assert task is not None
        before.add(decision(task.id, "ann", seconds=7.0))
        seen.append(task.id)
    after = Board(tasks(10), [*before.decisions(), decision("of other data", "ann")], overlap=0.5, seed=3)
    assert after.next("ann") == before.next("ann")
    assert after.progress("ann") == before.progress("ann")
    assert (after.progress("ann").done, after.progress("ann").pace_s) == (4, 7.0)


def test_a_judges_decisions_are_nobodys() -> None:
    board = Board(tasks(1), [decision(item(0), "a judge", judge={"model": "m"})])
    assert board.next("ann") is not None


def test_responses_are_shuffled_for_each_person_and_item_and_stay_so() -> None:
    board = Board(tasks(200))
    first = [board.order("ann", task)[0] for task in board.tasks.values()]
    assert 60 < sum(first) < 140
    assert first == [Board(tasks(200)).order("ann", task)[0] for task in board.tasks.values()]
    assert first != [board.order("ben", task)[0] for task in board.tasks.values()]
