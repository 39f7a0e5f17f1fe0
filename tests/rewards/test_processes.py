"""Rewards that start processes and threads, or set alarms: they work in a run as they do outside of one, nothing hangs,
and nothing is left running."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.processes import environment
from rewards.process_rewards import REWARDS

from lit_posttrain.rewards.processes import RewardProcesses, _ended_children

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


def test_what_nobody_waits_for_does_not_pile_up() -> None:
    """Nor is taken from who waits for it."""
    processes, waited = RewardProcesses(), []
    try:
        for _ in range(5):
            with processes.watched():
                subprocess.run("true &", shell=True, check=True)
                waited.append(subprocess.Popen(["false"]))
                time.sleep(0.1)
                assert [child.wait() for child in waited] == [1] * len(waited)
        assert len(_ended_children()) < 3
    finally:
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
