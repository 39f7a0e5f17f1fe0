"""Pairs, ratings, written replies and hostile texts in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from helpers.annotating import chromium, done, opened, serving
from playwright.sync_api import Browser, Request, Route, expect

from lit_posttrain.data.feedback.log import read_decisions
from lit_posttrain.feedback.annotate.answers import Question

PAIRS = [{"prompt": f"What is {n}?", "responses": [f"Good {n}", f"Bad {n}"]} for n in range(4)]
HOSTILE = """<script>window.hacked = 1</script>
<img src="http://evil.example/a.png" onerror="window.hacked = 2">
![a](http://evil.example/b.png) [c](javascript:window.hacked=3)
<svg onload="window.hacked=4"><style>@import url(http://evil.example/d.css);</style>
<link rel=stylesheet href=http://evil.example/e.css> <iframe src=http://evil.example/f></iframe>
\u202egnp.exe\u202c \u200bhidden\x07
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


def test_a_tie_is_made_by_keys_alone_on_the_ranking(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, PAIRS[:1], Question("rank", guidelines="<p>Guide</p>")) as (link, out):
        page = opened(browser, link, viewport={"width": 390, "height": 800})
        page.keyboard.press("a")
        for key in ("2", "1", "g"):
            page.keyboard.press(key)
        expect(page.locator("#guidelines")).to_be_in_viewport()
        sign = page.locator(".strip .sign")
        sign.focus()
        for told in ("=", ">", "="):
            page.keyboard.press("Enter")
            expect(sign).to_have_text(told)
            expect(sign).to_be_focused()
        page.keyboard.press("Control+Enter")
        done(page, 1)
        page.close()
    assert read_decisions(out)[0][0].ranks == [0, 0]


def test_pairs_by_key_and_by_mouse(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, PAIRS, Question("pair")) as (link, out):
        page = opened(browser, link)
        better: list[str] = []
        for n, act in enumerate(("1", "mouse", "=", "b")):
            texts = [text.strip() for text in page.locator(".card .rich").all_inner_texts()]
            better.append(texts[1 if act == "mouse" else 0])
            if act == "mouse":
                page.locator(".card").nth(1).get_by_role("button").click()
            else:
                page.keyboard.press(act)
            done(page, n + 1)
        page.close()
    first, second, tie, bad = read_decisions(out)[0]
    for decision, text in zip((first, second), better, strict=False):
        assert decision.ranks is not None
        assert decision.responses[decision.ranks.index(0)]["text"] == text
    assert (tie.ranks, tie.rejected) == ([0, 0], None)
    assert (bad.ranks, bad.rejected) == ([0, 0], [True, True])


def test_ratings_by_key_and_by_mouse(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, PAIRS[:2], Question("rate", ["helpful", "honest"])) as (link, out):
        page = opened(browser, link)
        for key in ("5", "4", "2", "ArrowUp", "1", "3"):  # the third one is mended
            page.keyboard.press(key)
        done(page, 1)
        for card, criterion, score in ((1, 0, 1), (1, 1, 2), (0, 0, 3), (0, 1, 4)):
            page.locator(".card").nth(card).locator("fieldset").nth(criterion).locator("label").nth(score - 1).click()
        done(page, 2)
        page.close()
    keys, mouse = read_decisions(out)[0]
    assert keys.order is not None
    assert mouse.order is not None
    for decision, first, second in ((keys, (5, 4), (1, 3)), (mouse, (3, 4), (1, 2))):
        assert decision.criteria is not None
        shown = [
            tuple(decision.criteria[name][place] for name in ("helpful", "honest")) for place in decision.order or []
        ]
        assert shown == [first, second]
        assert [(decision.ranks or [])[place] for place in decision.order or []] == [0, 1]


def test_a_reply_is_written_and_a_reload_keeps_it(browser: Browser, tmp_path: Path) -> None:
    rows = [{"prompt": "Write a haiku."}]
    with serving(tmp_path, rows, Question("write")) as (link, out):
        page = opened(browser, link)
        page.keyboard.press("e")
        page.keyboard.type("Still pond, 1 = one frog.\nA splash?")
        page.reload()
        area = page.locator(".editor textarea")
        expect(area).to_have_value("Still pond, 1 = one frog.\nA splash?")
        page.get_by_role("button", name="Add a question and its answer").click()
        page.locator(".editor textarea").nth(1).fill("Shorter?")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#trouble")).to_contain_text("A turn is empty")
        page.locator(".editor textarea").nth(2).fill("Splash.")
        page.keyboard.press("Control+Enter")
        done(page, 1)
        page.get_by_role("button", name="Undo the last decision").click()
        expect(page.locator(".editor textarea")).to_have_count(3)
        page.get_by_role("button", name="Remove the last two turns").click()
        page.keyboard.press("Control+Enter")
        done(page, 1)
        page.close()
    (kept,) = read_decisions(out)[0]
    assert kept.messages == [
        {"role": "user", "content": "Write a haiku."},
        {"role": "assistant", "content": "Still pond, 1 = one frog.\nA splash?"},
    ]


def test_a_response_is_edited(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, PAIRS[:1], Question("write")) as (link, out):
        page = opened(browser, link)
        page.get_by_role("button", name="Begin with this").nth(1).click()
        page.keyboard.press("End")
        page.keyboard.type(", mended")
        shown = page.locator(".card .rich").nth(1).inner_text()
        page.get_by_role("button", name="Submit").click()
        done(page, 1)
        page.close()
    (kept,) = read_decisions(out)[0]
    assert kept.messages is not None
    assert kept.messages[-1]["content"] == f"{shown}, mended"


def test_nothing_in_a_text_runs_or_is_loaded(browser: Browser, tmp_path: Path) -> None:
    rows = [{"prompt": HOSTILE, "responses": [HOSTILE, f"{HOSTILE}\n\n```html\n{HOSTILE}\n```"]}]
    with serving(tmp_path, rows, Question("rank", guidelines="<p>Guide</p>")) as (link, _):
        context = browser.new_context()
        asked: list[Request] = []
        said: list[str] = []
        context.on("request", lambda request: asked.append(request))
        context.on("console", lambda message: said.append(message.text))
        page = context.new_page()
        page.goto(link)
        page.wait_for_selector("#prompt")
        page.keyboard.press("m")
        page.keyboard.press("m")
        page.wait_for_timeout(500)
        assert page.evaluate("window.hacked") is None
        assert page.locator("#item :is(img, svg, script, style, link, iframe)").count() == 0
        text = page.locator(".card").first.inner_text()
        for seen in (
            "<script>",
            "[image: a http://evil.example/b.png]",
            "⟦U+202E⟧gnp.exe⟦U+202C⟧",
            "⟦U+200B⟧",
            "⟦U+0007⟧",
        ):
            assert seen in text
        assert {urlsplit(request.url).netloc for request in asked} == {urlsplit(link).netloc}
        assert not [line for line in said if "Content Security Policy" in line]  # nothing was even tried
        blocked = page.evaluate(
            """() => new Promise(done => {
                document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
                const script = document.createElement("script");
                script.textContent = "window.hacked = 5";
                document.body.append(script);
                setTimeout(() => done("not blocked"), 2000);
            })"""
        )
        assert blocked.startswith("script-src")
        assert page.evaluate("window.hacked") is None
        page.close()


def test_a_decision_is_sent_until_it_is_acknowledged_and_counts_once(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, PAIRS[:1], Question("pair")) as (link, out):
        page = opened(browser, link)
        tries: list[str] = []

        def fail(route: Route) -> None:
            tries.append(str(route.request.post_data))
            if len(tries) == 1:
                route.fulfill(status=507, json={"error": "votes.jsonl: cannot be written (No space left on device)"})
            elif len(tries) == 2:
                route.fulfill(status=500, body="<garbage")
            elif len(tries) == 3:  # it arrives, and the answer is lost
                route.fetch()
                route.abort()
            else:
                route.continue_()

        page.route("**/api/decision", fail)
        page.keyboard.press("1")
        expect(page.locator("#trouble")).to_contain_text("Not saved: votes.jsonl: cannot be written (No space left")
        expect(page.locator("#trouble")).to_contain_text("cannot be reached", timeout=10_000)
        done(page, 1)
        expect(page.locator("#trouble")).to_be_hidden()
        page.close()
    assert len(tries) == 4
    assert len(set(tries)) == 1
    assert len(read_decisions(out)[0]) == 1


def test_a_decision_that_is_refused_stays_to_be_changed(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, PAIRS[:1], Question("rank")) as (link, _):
        page = opened(browser, link)
        page.locator(".automatic input").uncheck()
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.locator("#trouble")).to_contain_text("Rank at least two responses")
        page.route("**/api/decision", lambda route: route.fulfill(status=422, json={"error": "no good"}), times=1)
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        expect(page.locator("#trouble")).to_contain_text("Not saved: no good")
        expect(page.locator(".strip .chip")).to_have_count(2)
        page.keyboard.press("Enter")
        done(page, 1)
        page.close()


def test_without_the_token_nothing_is_served(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, PAIRS, Question("pair")) as (link, _):
        page = browser.new_context().new_page()
        for path in ("/", "/page/app.js", "/page/style.css", "/api/item", "/?token=wrong"):
            answer = page.goto(f"http://{urlsplit(link).netloc}{path}")
            assert answer is not None
            assert answer.status == 401
            assert "What is" not in page.content()
        page.close()


def test_a_link_on_another_site_opens_the_page(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, PAIRS, Question("pair")) as (link, _):
        page = browser.new_context().new_page()
        mail = f'<a href="{link}">Your link</a>'
        page.route("http://mail.example/", lambda route: route.fulfill(body=mail, content_type="text/html"))
        page.goto("http://mail.example/")
        page.get_by_role("link").click()
        expect(page.locator("#prompt")).to_be_visible()
        assert "token" not in page.url
        page.close()


def test_nothing_is_wider_than_the_screen(browser: Browser, tmp_path: Path) -> None:
    wide = f"{'word' * 200}\n\n```\n{'code ' * 100}\n```\n\n|{'column|' * 30}\n|{'-|' * 30}\n|{'x|' * 30}\n"
    rows = [{"prompt": f"{wide}?", "responses": [wide, f"{wide}2", f"{wide}3"]}]
    questions = (Question("rank", guidelines="<p>Guide</p>"), Question("rate", ["clear", "helpful"]), Question("write"))
    for question in questions:
        folder = tmp_path / question.mode
        folder.mkdir()
        with serving(folder, rows, question) as (link, _):
            for width in (320, 390, 768, 1280):
                page = opened(browser, link, viewport={"width": width, "height": 800})
                for _ in range(2):
                    assert page.evaluate("document.documentElement.scrollWidth") <= width, (question.mode, width)
                    page.keyboard.press("m")
                page.context.close()


def test_every_control_has_a_name_and_every_field_a_label(browser: Browser, tmp_path: Path) -> None:
    for question in (Question("rank"), Question("rate", ["clear"]), Question("write")):
        folder = tmp_path / question.mode
        folder.mkdir()
        with serving(folder, PAIRS, question) as (link, _):
            page = opened(browser, link)
            tree = page.locator("body").aria_snapshot()
            lines = [line.strip() for line in tree.splitlines()]
            controls = [line for line in lines if line.startswith(("- button", "- textbox", "- radio", "- checkbox"))]
            assert len(controls) > 5
            assert all('"' in line for line in controls), tree
            assert 'heading "Response 1"' in tree
            page.close()
