"""Rewards that use processes, threads and alarms, each in its own way, under a GRPO run that handles signals
(`python process_rewards.py MODEL FOLDER NAME...`). Prints the mean of each reward; the process group is the caller's to
look at afterwards."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

TIMEOUT_S = 1.5


def size(said: str) -> float:
    return float(len(said))


def burn(*_: Any) -> NoReturn:
    while True:
        pass


def stuck(*_: Any) -> None:
    """Holds the interpreter's lock: a handler written in Python never gets to run."""
    re.match(r"(a|a)*$", "a" * 60 + "b")


def pool(how: str) -> Callable[..., list[float]]:
    def reward(completions: list[str], **_: Any) -> list[float]:
        with multiprocessing.get_context(how).Pool(2) as workers:  # leaving it terminates them
            return workers.map(size, completions)

    return reward


def sandbox(target: Callable[..., None], end: str) -> Callable[..., list[float]]:
    """Code that never ends is given a moment, and is ended."""

    def reward(completions: list[str], **_: Any) -> list[float]:
        child = multiprocessing.get_context("fork").Process(target=target)
        child.start()
        child.join(0.1)
        assert child.pid is not None
        child.terminate() if end == "terminate" else os.kill(child.pid, getattr(signal, end))
        child.join()
        return [1.0] * len(completions)

    return reward


def executor(completions: list[str], **_: Any) -> list[float]:
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as workers:
        return list(workers.map(size, completions))


def stuck_executor(completions: list[str], **_: Any) -> list[float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as workers:
        return [workers.submit(burn).result() for _ in completions]


KEPT = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))


def stuck_kept_executor(completions: list[str], **_: Any) -> list[float]:
    return [KEPT.submit(burn).result() for _ in completions]


def shell(completions: list[str], **_: Any) -> list[float]:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.1)
    child.terminate()
    return [float(child.wait() == -signal.SIGTERM)] * len(completions)


def orphans(completions: list[str], **_: Any) -> list[float]:
    """Processes whose parent ends before them: of a shell that a timeout kills, and in the background of one."""
    sleep = f"{sys.executable} -c 'import time; time.sleep(600)'"
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(f"cd / && {sleep}; true", shell=True, timeout=0.3)
    subprocess.run(f"{sleep} &", shell=True, check=True)
    return [1.0] * len(completions)


def threads(completions: list[str], **_: Any) -> list[float]:
    with ThreadPoolExecutor(4) as workers:
        return list(workers.map(size, completions))


def forks_from_a_thread(completions: list[str], **_: Any) -> list[float]:
    with ThreadPoolExecutor(2) as workers:
        list(workers.map(lambda _: sandbox(burn, "terminate")(["one"]), range(2)))
    return [1.0] * len(completions)


async def subprocesses(completions: list[str], **_: Any) -> list[float]:
    async def one(said: str) -> float:
        child = await asyncio.create_subprocess_exec("sleep", "60")
        try:
            await asyncio.wait_for(child.wait(), 0.1)
        except TimeoutError:
            child.terminate()
        return float(await child.wait() == -signal.SIGTERM)

    return list(await asyncio.gather(*map(one, completions)))


def alarm(completions: list[str], **_: Any) -> list[float]:
    """An alarm of its own, which is cancelled; then it hangs on one response."""

    def ring(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        time.sleep(30)
    except TimeoutError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if len(completions) > 1:
        time.sleep(600)
    return [1.0] * len(completions)


def alarm_that_is_left(completions: list[str], **_: Any) -> list[float]:
    """Set, and never cancelled: it would ring in the middle of the training."""

    def ring(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    return [1.0] * len(completions)


def fork_that_returns(completions: list[str], **_: Any) -> list[float]:
    """A copy of the whole run, which would train on."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return [1.0] * len(completions)


def fork_that_exits(completions: list[str], **_: Any) -> list[float]:
    """As many sandboxes do it: the copy says by its status whether the response is right."""
    found = []
    for said in completions:
        child = os.fork()
        if child == 0:
            sys.exit(len(said) % 2)
        found.append(1.0 + os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - len(said) % 2)
    return found


def fork_that_raises(completions: list[str], **_: Any) -> list[float]:
    child = os.fork()
    if child == 0:
        raise ValueError("in the copy")
    os.waitpid(child, 0)
    return [1.0] * len(completions)


def regular_expression(completions: list[str], **_: Any) -> list[float]:
    stuck()
    return [1.0] * len(completions)


def exits(completions: list[str], **_: Any) -> list[float]:
    if len(completions) > 1:
        sys.exit(3)
    return [1.0]


REWARDS: dict[str, Callable[..., Any]] = {
    "pool of forks": pool("fork"),
    "pool of spawned processes": pool("spawn"),
    "pool of a fork server": pool("forkserver"),
    "terminated": sandbox(burn, "terminate"),
    "terminated in C": sandbox(stuck, "terminate"),
    "interrupted": sandbox(burn, "SIGINT"),
    "hung up": sandbox(burn, "SIGHUP"),
    "alarmed": sandbox(burn, "SIGALRM"),
    "executor": executor,
    "stuck executor": stuck_executor,
    "stuck executor of the module": stuck_kept_executor,
    "shell": shell,
    "orphans": orphans,
    "threads": threads,
    "forks from a thread": forks_from_a_thread,
    "async": subprocesses,
    "alarm of its own": alarm,
    "alarm that is left": alarm_that_is_left,
    "fork that returns": fork_that_returns,
    "fork that exits": fork_that_exits,
    "fork that raises": fork_that_raises,
    "regular expression": regular_expression,
    "exit": exits,
}


def main(model: str, folder: Path, names: list[str]) -> int:
    from helpers.runs import quiet_trainer

    from lit_posttrain import GRPO, ModelSpec, PromptData, RolloutConfig
    from lit_posttrain.callbacks import GracefulInterrupt
    from lit_posttrain.errors import PostTrainError
    from lit_posttrain.rewards import FunctionReward, Reward

    file = folder / "prompts.jsonl"
    file.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    rewards: list[Reward] = [FunctionReward(REWARDS[name], name=name) for name in names]
    timeout = TIMEOUT_S if len(names) == 1 else 20.0  # spawned processes import torch, on busy cores
    rollout = RolloutConfig(group_size=2, max_new_tokens=3, reward_timeout=timeout)
    module = GRPO(ModelSpec(model), rewards, rollout=rollout)
    data = PromptData(str(file), batch_size=2, cache_dir=str(folder / "cache"), val_fraction=0.0)
    trainer = quiet_trainer(GracefulInterrupt(), max_steps=1, max_epochs=-1, default_root_dir=folder)
    try:
        trainer.fit(module, datamodule=data)
    except PostTrainError as problem:
        print("error:", problem)
        return 2
    module.collector.end_processes(stuck_only=False)
    for row in module.collector.completions():
        print({name.removeprefix("rewards/"): value for name, value in row.items() if name.startswith("rewards/")})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
