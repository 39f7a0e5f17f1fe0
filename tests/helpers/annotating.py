"""A server of the annotators' page in a thread, and a browser."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lit_posttrain.data.feedback.log import FeedbackLog
from lit_posttrain.feedback.annotate.answers import Question
from lit_posttrain.feedback.annotate.board import Board
from lit_posttrain.feedback.annotate.guard import Tokens
from lit_posttrain.feedback.annotate.routes import application
from lit_posttrain.feedback.annotate.serve import listening
from lit_posttrain.feedback.annotate.tasks import read_tasks

expect.set_options(timeout=20_000)  # beside other jobs on the same cores


@contextmanager
def serving(folder: Path, rows: Sequence[dict[str, Any]], question: Question) -> Iterator[tuple[str, Path]]:
    """The link of one annotator, `ann`, and the file of decisions, of a server in a thread of this process."""
    data, out = folder / "rows.jsonl", folder / "votes.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens = Tokens(["ann"])
    with FeedbackLog(out) as log, listening("127.0.0.1", 0) as listener:
        app = application(Board(read_tasks(str(data), question.mode)), log, question, tokens)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield tokens.link(f"http://127.0.0.1:{listener.getsockname()[1]}", "ann"), out
        finally:
            server.should_exit = True
            thread.join(20)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. Without one the test is skipped, in CI it fails."""
    path = shutil.which("chromium")
    if path is None:
        told = "no chromium: apt-get install chromium, or `make browser` as root"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(told)
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Browser, link: str, **options: Any) -> Page:
    """The page at a link, in a browser profile of its own."""
    page = browser.new_context(**options).new_page()
    page.goto(link)
    page.wait_for_selector("#prompt")
    return page


def done(page: Page, count: int) -> None:
    """Wait until so many items are decided, and the next one is shown."""
    expect(page.locator("#progress")).to_contain_text(f"{count} done")
    expect(page.locator("body")).not_to_have_class("busy")
