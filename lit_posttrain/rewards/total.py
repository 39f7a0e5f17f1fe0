"""The weighted sum of rewards, each on its own in the metrics, and what happens where one fails."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.rewards.base import Reward, RewardBatch, Scores
from lit_posttrain.rewards.time_limit import TooLong, time_limit

log = logging.getLogger(__name__)

_SHOWN = 80  # characters of an error
_MOST_TIMEOUTS = 3  # of single responses in a batch
_GRACE_S = 1.0  # for an async reward to be cancelled


@dataclass
class Rewarded:
    """total: (M,) float64, the weighted sum; NaN where no reward had a say, or one failed. parts: by name (M,) float64,
    before weighting; NaN where it had none. failed: by name on how many responses it raised or took too long."""

    total: Tensor
    parts: dict[str, Tensor]
    failed: dict[str, int]


class RewardSum:
    """Calls rewards, and adds up what they say.

    A reward that fails on a batch is asked again about every response alone, so that the others keep theirs. Those that
    it fails on are counted, named in the log and have no score at all: they are in no group's mean and train nothing. A
    reward that fails on all is an error.
    """

    def __init__(self, rewards: Sequence[Reward], timeout: float = 60.0) -> None:
        """
        Args:
            rewards: At least one.
            timeout: Seconds that a reward may take for a batch; for a single response too.

        Raises:
            PostTrainError: for none, or two of the same name.
        """
        if not rewards:
            raise PostTrainError("--model.rewards is empty: there is nothing to learn; name one, such as ExactMatch")
        names = [reward.name for reward in rewards]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise PostTrainError(f"--model.rewards: two are called {twice}; give one another `name`")
        if timeout <= 0:
            raise PostTrainError(f"--model.reward_timeout is {timeout:g}; it must be above 0, in seconds")
        self.rewards, self.timeout = list(rewards), timeout
        self._slow: set[str] = set()  # of which it was told

    def prepare(self, device: Any) -> None:
        """Load what rewards need."""
        for reward in self.rewards:
            reward.prepare(device)

    def check(self, columns: Sequence[str], source: str) -> None:
        """Refuse data without a column that a reward needs; source: where they stand, `file:line`."""
        for reward in self.rewards:
            reward.check(columns, source)

    def __call__(self, batch: RewardBatch) -> Rewarded:
        """The rewards of a batch.

        Raises:
            PostTrainError: from a reward itself, and for one that fails on every response or says the wrong number of
                things.
        """
        total = torch.zeros(len(batch), dtype=torch.float64)
        said, broken = torch.zeros(len(batch), dtype=torch.bool), torch.zeros(len(batch), dtype=torch.bool)
        found = Rewarded(total, {}, {})
        for reward in self.rewards:
            values, failed = self._asked(reward, batch)
            found.parts[reward.name], found.failed[reward.name] = values, int(failed.sum())
            if reward.weight:  # else it is measured, and has no say
                said, broken = said | ~values.isnan(), broken | failed
                total += reward.weight * values.nan_to_num(0.0)
        total[~said | broken] = math.nan
        return found

    def _asked(self, reward: Reward, batch: RewardBatch) -> tuple[Tensor, Tensor]:
        """(M,) values with NaN for none, and (M,) whether it failed."""
        failed = torch.zeros(len(batch), dtype=torch.bool)
        try:
            return self._values(reward, batch), failed
        except PostTrainError:
            raise
        except (Exception, TooLong) as whole:
            if isinstance(whole, TooLong) and reward.name not in self._slow:
                self._slow.add(reward.name)
                told = "reward %s: a batch of %d took longer than %g s, so its responses are judged one by one; raise "
                log.warning(told + "--model.reward_timeout if it is only slow", reward.name, len(batch), self.timeout)
            log.debug("reward %s: a batch failed (%s); its responses are judged one by one", reward.name, whole)
        values = torch.full((len(batch),), math.nan, dtype=torch.float64)
        problems: list[tuple[int, BaseException]] = []
        for place in range(len(batch)):
            try:
                values[place] = self._values(reward, batch.only(place))[0]
            except PostTrainError:
                raise
            except (Exception, TooLong) as single:
                failed[place] = True
                problems.append((place, single))
                if sum(isinstance(p, TooLong) for _, p in problems) >= _MOST_TIMEOUTS:
                    raise self._failure(reward, batch, problems, "again and again") from single
        if not problems:
            return values, failed
        if failed.all():
            raise self._failure(reward, batch, problems, "on every response") from problems[0][1]
        place, problem = problems[0]
        told = "reward %s failed on %d of %d responses, which have no score: %s: %s"
        log.warning(told, reward.name, len(problems), len(batch), batch.sources[place], _short(problem))
        return values, failed

    def _failure(
        self, reward: Reward, batch: RewardBatch, problems: Sequence[tuple[int, BaseException]], how: str
    ) -> PostTrainError:
        place, problem = problems[0]
        remedy = "raise --model.reward_timeout, or mend it" if isinstance(problem, TooLong) else "mend it"
        return PostTrainError(
            f"reward {reward.name} fails {how}, first on the prompt {batch.sources[place]}: {_short(problem)}; {remedy}"
        )

    def _values(self, reward: Reward, batch: RewardBatch) -> Tensor:
        with time_limit(self.timeout):
            said = reward.score(batch)
            if inspect.isawaitable(said):
                said = _awaited(said, self.timeout)
        found = _as_tensor(said)
        if tuple(found.shape) != (len(batch),):
            shape = "x".join(map(str, found.shape)) or "one number"
            raise PostTrainError(f"reward {reward.name} gave {shape} scores for {len(batch)} responses; mend it")
        return found


def _as_tensor(said: Scores) -> Tensor:
    if not isinstance(said, Tensor):
        said = torch.tensor([math.nan if value is None else _number(value) for value in said], dtype=torch.float64)
    elif not said.isfinite().all():
        raise ValueError("it gave a number that is not finite; None means no score")
    return said.detach().double().cpu()


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"it gave {number}, which is not finite; None means no score")
    return number


def _awaited(said: Awaitable[Scores], timeout: float) -> Scores:
    async def limited() -> Scores:
        try:
            return await asyncio.wait_for(said, timeout)
        except TimeoutError as problem:
            raise TooLong(f"it took longer than {timeout:g} s") from problem

    # in a thread of its own: a notebook's has a loop already. Nobody waits for one that blocks
    found: Future[Scores] = Future()

    def run() -> None:
        try:
            found.set_result(asyncio.run(limited()))
        except BaseException as problem:
            found.set_exception(problem)

    threading.Thread(target=run, daemon=True).start()
    try:
        return found.result(timeout + _GRACE_S)
    except FutureTimeout as problem:
        raise TooLong(f"it took longer than {timeout:g} s, and blocks") from problem


def _short(problem: BaseException) -> str:
    text = " ".join(f"{type(problem).__name__}: {problem}".split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 4] + " ..."
