"""From items to decisions in a file: each once, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.feedback.log import FeedbackLog, read_decisions
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.budget import BudgetSpent
from lit_posttrain.judges.judge import Opinion
from lit_posttrain.judges.runner import Judged, judge_all

ITEMS = [
    Item([{"role": "user", "content": f"Q{n}"}], [{"text": "a"}, {"text": "b"}], source=f"in.jsonl:{n + 1}")
    for n in range(12)
]
FIRST = Opinion("verdict", [0.9, 0.1], [0, 1], 0.9)
FAILED = Opinion("failed", [None, None], error="HTTP 500")


@dataclass
class ScriptedJudge:
    """said: of an item's number the opinion, or what is raised."""

    said: Callable[[int], Opinion | Exception] = lambda number: FIRST
    version: int = 1
    asked: list[int] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    name: str = "scripted"

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": "scripted", "version": self.version}

    async def opinion(self, item: Item) -> Opinion:
        number = int(item.prompt[0]["content"][1:])
        self.asked.append(number)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.002 * (number % 3))
        self.at_once -= 1
        said = self.said(number)
        if isinstance(said, Exception):
            raise said
        return said

    async def close(self) -> None:
        pass


def run(file: Path, judge: ScriptedJudge, **options: Any) -> Judged:
    judged = Judged()
    with FeedbackLog(file) as log:
        asyncio.run(judge_all(ITEMS, judge, log, 4, judged, **options))
    return judged


def test_every_item_has_one_decision_and_a_rerun_asks_nothing(tmp_path: Path) -> None:
    judge, steps = ScriptedJudge(), list[int]()
    judged = run(tmp_path / "out.jsonl", judge, progress=steps.append)
    assert [judged.outcomes["verdict"], judged.known, judged.ended, sum(steps)] == [12, 0, 12, 12]
    assert judge.most_at_once == 4
    again = run(tmp_path / "out.jsonl", judge)
    assert [again.outcomes.total(), again.known] == [0, 12]
    assert len(judge.asked) == 12
    decisions, _ = read_decisions(tmp_path / "out.jsonl")
    assert {one.source for one in decisions} == {item.source for item in ITEMS}
    assert all(one.probability == 0.9 and one.annotator == "scripted" for one in decisions)


def test_another_judge_judges_again_in_the_same_file(tmp_path: Path) -> None:
    run(tmp_path / "out.jsonl", ScriptedJudge())
    assert run(tmp_path / "out.jsonl", ScriptedJudge(version=2)).outcomes["verdict"] == 12
    assert len(read_decisions(tmp_path / "out.jsonl")[0]) == 24


def test_failed_items_are_kept_as_such_and_judged_again_only_on_request(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    assert run(file, ScriptedJudge(lambda number: FAILED if number < 3 else FIRST)).outcomes["failed"] == 3
    judge = ScriptedJudge(lambda number: FAILED if number == 0 else FIRST)
    assert run(file, judge).known == 12
    judged = run(file, judge, retry_failed=True)
    assert [judged.outcomes["verdict"], judged.outcomes["failed"], judged.known] == [2, 1, 9]
    assert sorted(judge.asked) == [0, 1, 2]
    decisions, _ = read_decisions(file)
    assert sorted(one.outcome for one in decisions) == ["failed", *["verdict"] * 11]
    assert run(file, ScriptedJudge(), retry_failed=True).outcomes["verdict"] == 1
    assert [one.outcome for one in read_decisions(file)[0]] == ["verdict"] * 12


def test_what_another_process_has_judged_meanwhile_is_not_counted_as_new(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"

    class Slower(ScriptedJudge):
        async def opinion(self, item: Item) -> Opinion:
            async with alone:
                if not self.asked:
                    self.asked.append(0)
                    await asyncio.to_thread(run, file, ScriptedJudge())
            return FIRST

    alone = asyncio.Lock()
    judged = run(file, Slower())
    assert [judged.outcomes.total(), judged.known, judged.ended] == [0, 12, 12]
    assert len(read_decisions(file)[0]) == 12


def test_what_cannot_be_judged_is_left_out_by_reason(tmp_path: Path) -> None:
    judge = ScriptedJudge(lambda number: BadRow("responses", "30 responses") if number in (2, 5) else FIRST)
    judged = run(tmp_path / "out.jsonl", judge)
    assert judged.left_out == {"30 responses": ["in.jsonl:3", "in.jsonl:6"]}
    assert [judged.outcomes["verdict"], judged.ended] == [10, 12]


def test_a_spent_budget_lets_those_end_that_are_under_way(tmp_path: Path) -> None:
    judge = ScriptedJudge(lambda number: BudgetSpent("spent") if number == 3 else FIRST)
    judged = run(tmp_path / "out.jsonl", judge)
    assert isinstance(judged.stopped, BudgetSpent)
    assert 3 in judge.asked
    assert judged.outcomes["verdict"] == len(judge.asked) - 1 < 11
    assert len(read_decisions(tmp_path / "out.jsonl")[0]) == judged.outcomes["verdict"]


def test_a_wrong_key_ends_the_run_and_keeps_what_is_judged(tmp_path: Path) -> None:
    judge = ScriptedJudge(lambda number: PostTrainError("refuses the key") if number == 7 else FIRST)
    judged = run(tmp_path / "out.jsonl", judge)
    assert str(judged.stopped) == "refuses the key"
    assert len(read_decisions(tmp_path / "out.jsonl")[0]) >= judged.outcomes["verdict"] > 3
    assert run(tmp_path / "out.jsonl", ScriptedJudge()).ended == 12


def test_an_error_in_the_code_of_a_judge_is_no_outcome(tmp_path: Path) -> None:
    judge = ScriptedJudge(lambda number: ZeroDivisionError() if number == 7 else FIRST)
    with pytest.raises(ExceptionGroup):
        run(tmp_path / "out.jsonl", judge)


def test_a_cancelled_run_goes_on_where_it_was(tmp_path: Path) -> None:
    async def stopped_early() -> Judged:
        judged = Judged()
        with FeedbackLog(tmp_path / "out.jsonl") as log:
            work = asyncio.create_task(judge_all(ITEMS, ScriptedJudge(), log, 2, judged))
            while judged.outcomes.total() < 5:
                await asyncio.sleep(0)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
        return judged

    first = asyncio.run(stopped_early())
    second = run(tmp_path / "out.jsonl", ScriptedJudge())
    assert 5 <= first.outcomes.total() <= second.known <= first.outcomes.total() + 2
    assert second.ended == 12
    assert len(read_decisions(tmp_path / "out.jsonl")[0]) == 12
