"""A server that is killed while eight people decide loses nothing that it has acknowledged."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from annotate_server import annotating
from annotate_votes import Client, check, rows, run

NAMES = [f"client{n}" for n in range(8)]
VOTES = 400


def test_a_kill_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    with annotating(tmp_path, rows(VOTES), "--annotators", f"[{', '.join(NAMES)}]") as server:
        before = [Client(name, server.links[name]) for name in NAMES]
        threads = run(before, VOTES)
        while sum(len(client.acknowledged) for client in before) < VOTES // 4:
            assert any(thread.is_alive() for thread in threads)
            time.sleep(0.005)
        server.stop(signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert sum(len(client.acknowledged) for client in before) < VOTES  # it was in the middle
        check(before, server.decisions())
        server.start()
        after = [Client(name, server.links[name], first=10_000) for name in NAMES]
        for thread in run(after, VOTES):
            thread.join()
        kept = server.decisions()
        assert len(kept) == len({one.item for one in kept}) == VOTES
        for mine, more in zip(before, after, strict=True):
            own = [one.id for one in kept if one.annotator == mine.name]
            assert own[: len(mine.acknowledged)] == mine.acknowledged
            assert own[-len(more.acknowledged) :] == more.acknowledged
            assert len(own) - len(mine.acknowledged) - len(more.acknowledged) <= 1
