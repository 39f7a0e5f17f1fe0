"""Rewards that start processes and threads, or set alarms: they work in a run as they do outside of one, nothing hangs,
and nothing is left running."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.processes import environment
from rewards.process_rewards import REWARDS

from lit_posttrain.rewards.processes import RewardProcesses

SCRIPT = Path(__file__).with_name("process_rewards.py")
ENDLESS = {
    "stuck executor": "takes too long again and again",
    "regular expression": "takes too long again and again",
    # its process is ended with the call that it was stuck in, and there is no other
    "stuck executor of the module": "fails on every response",
}


def run(model: Path, folder: Path, *names: str) -> tuple[int, list[str], list[str]]:
    """Status, what was printed, and what is left of the process group."""
    outcome = folder / "outcome"
    with outcome.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(model), str(folder), *names],
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        status = process.wait(150)
        ends = time.monotonic() + 5  # the standard library's helpers end when they notice
        while (left := _members(process.pid)) and time.monotonic() < ends:
            time.sleep(0.1)
    finally:
        if _members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    return status, outcome.read_text().splitlines(), left


def test_rewards_may_use_processes(tiny_model: Path, tmp_path: Path) -> None:
    names = [name for name in REWARDS if name not in ENDLESS]
    status, said, left = run(tiny_model, tmp_path, *names)
    assert status == 0, said
    assert any("forked a copy of the run" in line for line in said), "it is told why the copy ends"
    rows = [ast.literal_eval(line) for line in said if line.startswith("{")]
    assert len(rows) == 4
    for row in rows:
        assert row.keys() == set(names)
        assert None not in row.values(), "every reward worked on every response"
        assert row["pool of forks"] == row["executor"] == row["threads"]
    assert not left, "processes that outlive the run"


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_reward_ends_the_run_and_leaves_nothing(name: str, tiny_model: Path, tmp_path: Path) -> None:
    status, said, left = run(tiny_model, tmp_path, name)
    assert status == 2, said
    assert any(f"error: reward {name} {ENDLESS[name]}" in line for line in said), said
    assert not left, "processes that outlive the run"


def test_exit_statuses_are_left_to_whoever_started_a_process() -> None:
    """What nobody waits for goes at the end of the run."""
    processes, before = RewardProcesses(), _ended_children()
    others = subprocess.Popen(["false"])  # not started by a reward
    with processes.watched():
        waited = subprocess.Popen(["sh", "-c", "exit 3"])
        subprocess.run("true &", shell=True, check=True)
        time.sleep(0.1)
    for _ in range(3):
        with processes.watched():
            pass
    assert waited.poll() == 3
    processes.end()
    assert _ended_children() - before == {others.pid}
    assert others.wait() == 1


def test_alarms_are_as_they_were_behind_a_call() -> None:
    def ours(*_: object) -> None:
        """Rings long after."""

    before = signal.signal(signal.SIGALRM, ours)
    signal.setitimer(signal.ITIMER_REAL, 600)
    processes = RewardProcesses()
    try:
        with processes.watched():
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.alarm(0)
        assert signal.getsignal(signal.SIGALRM) is ours
        assert 590 < signal.getitimer(signal.ITIMER_REAL)[0] <= 600
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        processes.end()


def _members(group: int) -> list[str]:
    """What still runs in a process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            _, _, rest = (folder / "stat").read_text().rpartition(")")
            state, _, own = rest.split()[:3]
            if int(own) == group and state != "Z":
                found.append((folder / "cmdline").read_text())
        except (OSError, ValueError):  # it ended meanwhile
            continue
    return found


def _ended_children() -> set[int]:
    """Children of this process that have ended and that nobody has waited for."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.add(int(file.parent.name))
    return found
