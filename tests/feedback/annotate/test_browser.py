"""The page in a real browser: what is done by keys and by mouse is what is in the file, whatever happens meanwhile."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator

import pytest
from annotate_server import AnnotateServer, annotating
from helpers.annotating import chromium, done, opened
from playwright.sync_api import Browser, Page, expect

from lit_posttrain.data.feedback.record import Decision

ROWS = [{"prompt": f"What is {n}?", "responses": [f"Answer {k} to {n}" for k in "abc"]} for n in range(10)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnnotateServer]:
    """One for all tests, as starting takes seconds; each test has annotators of its own, who see every item."""
    folder = tmp_path_factory.mktemp("served")
    with annotating(
        folder, ROWS, "--annotators", "[keys, mouse, ann, ben, eve, late, one, two, draft]", "--overlap", "8"
    ) as made:
        yield made


def number_of(page: Page, response: str) -> int:
    """The number under which a response is shown."""
    return 1 + [text.strip() for text in page.locator(".card .rich").all_inner_texts()].index(response)


def question(page: Page) -> str:
    return page.locator(".prompt .rich").last.inner_text()


def said(decision: Decision) -> dict[str, int | None]:
    """Ranks by text."""
    assert decision.ranks is not None
    return {one["text"]: rank for one, rank in zip(decision.responses, decision.ranks, strict=True)}


def by_keys(page: Page, groups: list[list[str]]) -> None:
    for group in groups:
        for place, response in enumerate(group):
            if place:
                page.keyboard.press("=")
            page.keyboard.press(str(number_of(page, response)))


def by_mouse(page: Page, groups: list[list[str]]) -> None:
    """Place them one after another, then make ties of neighbours."""
    page.locator(".automatic input").uncheck()
    flat = [response for group in groups for response in group]
    for response in flat:
        page.locator(".card").nth(number_of(page, response) - 1).locator(".place").click()
    firsts = [group[0] for group in groups]
    for n, response in enumerate(flat[1:]):
        if response not in firsts:
            page.locator(".strip .sign").nth(n).click()
    page.get_by_role("button", name="Submit", exact=True).click()


def test_ten_items_by_two_with_a_reload_and_a_kill(server: AnnotateServer, browser: Browser) -> None:
    acts = {"keys": by_keys, "mouse": by_mouse}
    pages = {name: opened(browser, server.links[name]) for name in acts}
    drawn = random.Random(0)
    expected: dict[tuple[str, str], dict[str, int | None]] = {}
    for n in range(10):
        if n == 6:  # a kill, and decisions while nobody listens
            server.stop(signal.SIGKILL)
        for name, page in pages.items():
            answers = [f"Answer {k} to {question(page)[8:-1]}" for k in "abc"]
            drawn.shuffle(answers)
            groups = drawn.choice([[[one] for one in answers], [answers[:2], answers[2:]], [answers[:1], answers[1:]]])
            if n == 3:  # a reload in the middle of a ranking
                page.keyboard.press(str(number_of(page, groups[0][0])))
                page.reload()
                expect(page.locator(".strip .chip")).to_have_count(1)
                page.keyboard.press("Backspace")
            expected[name, question(page)] = {one: rank for rank, group in enumerate(groups) for one in group}
            acts[name](page, groups)
            if n == 6:
                expect(page.locator("#trouble")).to_contain_text("cannot be reached")
        if n == 6:
            server.start()
        for page in pages.values():
            done(page, n + 1)
    kept = [one for one in server.decisions() if one.annotator in acts]
    made = {(one.annotator, one.prompt[-1]["content"]): said(one) for one in kept if isinstance(one.prompt, list)}
    assert made == expected
    assert len(kept) == len({one.id for one in kept}) == 20
    assert all(one.outcome == "verdict" and one.seconds is not None for one in kept)
    assert all(sorted(one.order or []) == [0, 1, 2] for one in kept)
    for page in pages.values():
        expect(page.locator("#item")).to_contain_text("All done")
        page.close()


def test_statistics_follow(server: AnnotateServer, browser: Browser) -> None:
    pages = {name: opened(browser, server.links[name]) for name in ("ann", "ben")}
    stats = opened_stats(browser, server)
    for n in range(2):
        for page in pages.values():
            by_keys(page, [[f"Answer {k} to {question(page)[8:-1]}"] for k in "cba"])
            done(page, n + 1)
    row = stats.locator("tr", has=stats.get_by_role("rowheader", name="ann and ben"))
    expect(row).to_contain_text("100 %", timeout=15_000)
    for page in pages.values():
        page.close()


def opened_stats(browser: Browser, server: AnnotateServer) -> Page:
    page = browser.new_context().new_page()
    page.goto(server.links["statistics"])
    page.wait_for_selector(".tile")
    return page


def test_every_key(server: AnnotateServer, browser: Browser) -> None:
    page = opened(browser, server.links["eve"])
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_be_hidden()
    page.keyboard.press("b")  # all bad
    done(page, 1)
    page.keyboard.press("s")  # skip
    done(page, 2)
    page.keyboard.press("u")  # undo the skip
    done(page, 1)
    page.keyboard.press("a")  # by Enter alone from now on
    for key in ("r", "d", "1", "Escape", "w", "w", "x", "3", "1", "=", "2", "Backspace", "2", "m", "m", "Enter"):
        page.keyboard.press(key)
    done(page, 2)
    page.keyboard.press("u")  # and what was decided is there again, to be changed
    expect(page.locator(".strip .chip")).to_have_count(2)
    expect(page.locator(".reason textarea")).to_have_value("d1")
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    done(page, 2)
    first, second = (one for one in server.decisions() if one.annotator == "eve")
    assert (first.rejected, first.ranks) == ([True] * 3, [0] * 3)
    assert second.order is not None
    assert [(second.ranks or [])[place] for place in second.order] == [0, 1, 2]
    assert (second.rejected or [])[second.order[2]] is True
    assert (second.strength, second.reason) == (2, "d1")
    page.close()


def test_a_new_secret_asks_for_the_new_link_and_keeps_the_decision(server: AnnotateServer, browser: Browser) -> None:
    page = opened(browser, server.links["late"])
    server.stop(signal.SIGKILL)
    asked = question(page)
    for key in "123":
        page.keyboard.press(key)
    expect(page.locator("#trouble")).to_contain_text("cannot be reached")
    server.secret = "another one, which anybody may know"
    server.start()
    expect(page.locator("#trouble")).to_contain_text("new link")
    page.goto(server.links["late"])
    page.wait_for_selector("#prompt")
    done(page, 1)
    (kept,) = (one for one in server.decisions() if one.annotator == "late")
    assert isinstance(kept.prompt, list)
    assert kept.prompt[-1]["content"] == asked
    page.close()


def test_two_links_in_one_browser_do_not_vote_for_one_another(server: AnnotateServer, browser: Browser) -> None:
    context = browser.new_context()
    first, second = context.new_page(), context.new_page()
    for page, name in ((first, "one"), (second, "two")):
        page.goto(server.links[name])
        page.wait_for_selector("#prompt")
    asked = question(first)
    for key in "123":
        first.keyboard.press(key)
    expect(first.locator("#trouble")).to_contain_text("The link of two was opened")
    assert not [one for one in server.decisions() if one.annotator in ("one", "two")]
    second.goto(server.links["one"])  # and the decision is sent
    done(second, 1)
    (kept,) = (one for one in server.decisions() if one.annotator in ("one", "two"))
    assert isinstance(kept.prompt, list)
    assert (kept.annotator, kept.prompt[-1]["content"]) == ("one", asked)
    context.close()


def test_an_undo_leaves_what_was_begun_elsewhere(server: AnnotateServer, browser: Browser) -> None:
    page = opened(browser, server.links["draft"])
    page.keyboard.press("s")
    done(page, 1)
    begun = question(page)
    page.keyboard.press("1")
    expect(page.locator(".strip .chip")).to_have_count(1)
    page.keyboard.press("u")
    done(page, 0)
    page.keyboard.press("s")
    done(page, 1)
    assert question(page) == begun
    expect(page.locator(".strip .chip")).to_have_count(1)
    page.close()
