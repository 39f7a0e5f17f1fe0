"""A server of `lit-posttrain annotate` in a process of its own, and a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from helpers.processes import environment
from lit_posttrain.data.feedback.log import FeedbackLog, read_decisions
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.annotate.answers import Question
from lit_posttrain.feedback.annotate.board import Board
from lit_posttrain.feedback.annotate.guard import Tokens
from lit_posttrain.feedback.annotate.routes import application
from lit_posttrain.feedback.annotate.serve import listening
from lit_posttrain.feedback.annotate.tasks import read_tasks


class AnnotateServer:
    """Serves `rows` on a port that stays the same when it is started again, with links that stay the same too."""

    def __init__(self, folder: Path, rows: Sequence[dict[str, Any]], *options: str) -> None:
        self.folder, self.options, self.out = folder, options, folder / "votes.jsonl"
        self.data = folder / "responses.jsonl"
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.links: dict[str, str] = {}
        self.secret = "of this test"
        self.process: subprocess.Popen[str] | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait for the links."""
        words = ["annotate", "--data", self.data, "--out", self.out, "--port", self.port, *self.options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lit_posttrain", *map(str, words)],
            cwd=self.folder,
            env={**environment(), "LIT_POSTTRAIN_ANNOTATE_SECRET": self.secret},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if link := re.match(r"  (.+?) +(http://\S+)$", line):
                self.links[link[1]] = link[2]
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError(f"the server did not start: {said}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """End it. Its status, and what it has said since it started."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(how)
        said = self.process.stdout.read()
        self.process.stdout.close()
        return self.process.wait(20), said

    def decisions(self) -> list[Decision]:
        return read_decisions(self.out)[0]


@contextmanager
def annotating(folder: Path, rows: Sequence[dict[str, Any]], *options: str) -> Iterator[AnnotateServer]:
    """A server that runs, and is ended however the test ends."""
    server = AnnotateServer(folder, rows, *options)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop(signal.SIGKILL)


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
