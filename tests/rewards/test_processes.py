"""Rewards that start processes and threads, or set alarms: they work in a run as they do outside of one, nothing hangs,
and nothing is left running."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.processes import environment
from rewards.process_rewards import REWARDS

from lit_posttrain.rewards.processes import RewardProcesses
from lit_posttrain.rewards.time_limit import time_limit

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
    assert status == 0, said[-6:]
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


@pytest.fixture
def processes() -> Iterator[RewardProcesses]:
    """With alarms as Python begins with them, put back behind the test."""
    before, found = signal.signal(signal.SIGALRM, signal.SIG_DFL), RewardProcesses()
    yield found
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    found.end()


def test_what_nobody_can_wait_for_goes_soon(processes: RewardProcesses) -> None:
    """What a shell has left behind; not what a reward has started itself and may still ask."""
    before = _ended_children()
    with processes.watched():
        shell = subprocess.Popen(["sh", "-c", "sleep 0.6 & sleep 0.3; exit 3"])
        _soon(lambda: len(_children(shell.pid)) == 2)
    _soon(lambda: len(_ended_children() - before) == 2)
    with processes.watched():
        pass
    assert _ended_children() - before == {shell.pid}
    assert shell.wait() == 3


def test_ended_processes_do_not_pile_up(processes: RewardProcesses) -> None:
    """Also those of which is not known who has started them: the newest are left to be asked."""
    before = _ended_children()
    with processes.watched():
        subprocess.run("for i in $(seq 300); do (sleep 0.1 &); done", shell=True, check=True)
        kept = subprocess.Popen(["sh", "-c", "exit 3"])
    time.sleep(0.5)
    with processes.watched():
        pass
    assert 1 <= len(_ended_children() - before) <= 100
    assert kept.wait() == 3


def test_what_a_process_of_a_reward_starts_later_ends_with_the_run(processes: RewardProcesses) -> None:
    with processes.watched():
        shell = subprocess.Popen("sleep 0.3; sleep 600 & sleep 0.5; true", shell=True)
    _soon(lambda: len(_children(shell.pid)) == 2)
    late, _ = _children(shell.pid)
    with processes.watched():
        shell.wait()
    processes.end()
    _soon(lambda: _state(late) in ("Z", ""))


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (sys.exit, 0),
        (lambda: sys.exit(0), 0),
        (lambda: sys.exit(3), 3),
        (lambda: sys.exit(-1), 255),
        (lambda: sys.exit("it failed"), 1),
        (lambda: print(1 / 0), 1),
        (lambda: None, 1),
    ],
    ids=["exit", "0", "3", "-1", "text", "error", "returns"],
)
def test_a_copy_ends_as_it_says(
    end: Callable[[], object], status: int, processes: RewardProcesses, tmp_path: Path
) -> None:
    """And what it has written is there."""

    def in_the_copy() -> None:
        stream = (tmp_path / "said").open("w")
        stream.write("written")
        end()
        stream.close()

    with processes.watched(), time_limit(60):
        if (copy := os.fork()) == 0:
            in_the_copy()
        else:
            _, found = os.waitpid(copy, 0)
    assert os.waitstatus_to_exitcode(found) == status
    if status != 1:
        assert (tmp_path / "said").read_text() == "written"


def test_a_handler_of_alarms_is_set_once(processes: RewardProcesses) -> None:
    """At the first call, say; every call then sets an alarm."""
    rung: list[int] = []

    def ring(*_: object) -> None:
        rung.append(len(rung))

    for call in range(3):
        with processes.watched():
            if call == 0:
                signal.signal(signal.SIGALRM, ring)
            signal.setitimer(signal.ITIMER_REAL, 0.01 if call else 600)
            time.sleep(0.05)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0, "none is left behind the call"
    assert rung == [0, 1]


@pytest.mark.parametrize("outer", [False, True], ids=["no other alarm", "an alarm around it"])
def test_an_alarm_without_a_handler_ends_the_call_alone(outer: bool, processes: RewardProcesses) -> None:
    if outer:
        signal.setitimer(signal.ITIMER_REAL, 600)
    for _ in range(2):
        with pytest.raises(TimeoutError, match="no handler"), processes.watched():
            _alarmed()
        assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert (590 < signal.getitimer(signal.ITIMER_REAL)[0] <= 600) == outer


def _alarmed() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(10)


@pytest.mark.parametrize("own", [False, True], ids=["no handler", "a handler of its own"])
def test_a_child_of_a_reward_has_the_alarms_of_the_reward(own: bool, processes: RewardProcesses) -> None:
    def ring(*_: object) -> None:
        """Of the reward."""

    with processes.watched(), time_limit(60):
        if own:
            signal.signal(signal.SIGALRM, ring)
        if (child := os.fork()) == 0:
            os._exit(0 if signal.getsignal(signal.SIGALRM) == (ring if own else signal.SIG_DFL) else 1)
        assert os.waitpid(child, 0)[1] == 0


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


def _soon(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def _state(process: int) -> str:
    """Z of one that has ended and that nobody has waited for; empty where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _ended_children() -> set[int]:
    """Children of this process that have ended and that nobody has waited for."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.add(int(file.parent.name))
    return found
