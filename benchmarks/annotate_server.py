"""A server of `lit-posttrain annotate` in a process of its own, which tests and benchmarks start, kill and restart."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_posttrain.data.feedback.log import read_decisions
from lit_posttrain.data.feedback.record import Decision


class AnnotateServer:
    """Serves `rows` on a port that stays the same when it is started again, with links that stay the same too."""

    def __init__(self, folder: Path, rows: Sequence[dict[str, Any]], *options: str) -> None:
        self.folder, self.options, self.out = folder, options, folder / "votes.jsonl"
        self.data = folder / "responses.jsonl"
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.links: dict[str, str] = {}
        self.secret = "of this test, which anybody may know"
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
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LIT_POSTTRAIN_ANNOTATE_SECRET": self.secret},
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
