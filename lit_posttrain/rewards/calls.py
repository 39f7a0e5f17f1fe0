"""Calls of rewards: the time limit, and the handling of rewards that raise, hang or return no valid score."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError, on_all_ranks
from lit_posttrain.imports import own_place, raised_at, said_by
from lit_posttrain.rewards.awaited import EventLoop
from lit_posttrain.rewards.base import Reward, RewardBatch
from lit_posttrain.rewards.processes import RewardProcesses
from lit_posttrain.rewards.scores import Problems, listed, read_scores
from lit_posttrain.rewards.time_limit import TooLong, time_limit
from lit_posttrain.runs.signals import Terminated

log = logging.getLogger(__name__)

_SHOWN = 80  # characters of an error
_MOST_TIMEOUTS = 3  # of single responses in a batch
_FAILURES = (Exception, SystemExit, TooLong)  # a sys.exit of generated code that a reward runs is an error like others


@dataclass
class Tally:
    """How many responses a reward was called for, on how many it failed, and its first failure."""

    asked: int = 0
    failed: int = 0
    first: str = ""


class RewardCalls:
    """Calls rewards. One that raises or takes too long on a batch is called for every response alone, so that the
    others keep their scores; a warning says so once. Failures are counted and logged.

    timeout: seconds that a call may take, for a batch and for a single response, of rewards that are `timed`. tallies:
    of `score`, by reward.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout, self.processes = timeout, RewardProcesses()
        self.tallies: dict[str, Tally] = {}
        self._loop = EventLoop()
        self._warned: set[str] = set()  # names of rewards

    def score(self, reward: Reward, batch: RewardBatch) -> tuple[Tensor, Tensor]:
        """(M,) float64 scores, NaN for none, and (M,) bool, True where the reward failed.

        Raises:
            PostTrainError: raised by the reward; if it takes too long repeatedly, or returns the wrong number of
                scores.
        """
        try:
            values, problems = self._values(reward, batch)
        except (PostTrainError, Terminated):
            raise
        except _FAILURES as whole:
            self._warn_once(reward, batch, whole)
            values, problems = self._one_by_one(reward, batch)
        failed = torch.zeros(len(batch), dtype=torch.bool)
        failed[list(problems)] = True
        tally = self.tallies.setdefault(reward.name, Tally())
        tally.asked, tally.failed = tally.asked + len(batch), tally.failed + len(problems)
        if problems:
            tally.first = tally.first or _first(batch, problems)
            told = "reward %s failed on %d of %d responses, which have no score: %s"
            log.warning(told, reward.name, len(problems), len(batch), _first(batch, problems))
        return values, failed

    def _one_by_one(self, reward: Reward, batch: RewardBatch) -> tuple[Tensor, Problems]:
        values = torch.full((len(batch),), math.nan, dtype=torch.float64)
        problems: Problems = {}
        for place in range(len(batch)):
            try:
                own, found = self._values(reward, batch.only(place))
                values[place] = own[0]
                if found:
                    problems[place] = found[0]
            except (PostTrainError, Terminated):
                raise
            except _FAILURES as single:
                problems[place] = single
                if sum(isinstance(problem, TooLong) for problem in problems.values()) >= _MOST_TIMEOUTS:
                    raise PostTrainError(
                        f"reward {reward.name} takes too long again and again, first on {_first(batch, problems)}; "
                        "raise reward_timeout, or mend it"
                    ) from single
        return values, problems

    def _warn_once(self, reward: Reward, batch: RewardBatch, problem: BaseException) -> None:
        if reward.name in self._warned:
            return
        self._warned.add(reward.name)
        remedy = "; raise reward_timeout if it is only slow" if isinstance(problem, TooLong) else ""
        told = "reward %s: a batch of %d failed (%s), so its responses are judged one by one%s"
        log.warning(told, reward.name, len(batch), _short(problem), remedy)

    def _values(self, reward: Reward, batch: RewardBatch) -> tuple[Tensor, Problems]:
        timeout = self.timeout if reward.timed else None
        with self.processes.watched(), time_limit(timeout) if timeout else nullcontext():
            said = reward.score(deepcopy(batch))  # rewards may change it
            if inspect.isawaitable(said):
                said = self._loop.result(said, timeout)
            values = listed(said, reward.name)
        return read_scores(values, len(batch), reward.name)


@contextmanager
def named(reward: Reward) -> Iterator[None]:
    """Turn an exception of a reward's code into one line with the reward's name, file and line.

    Raises:
        PostTrainError: instead of other exceptions.
    """
    try:
        yield
    except (PostTrainError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as problem:
        raise PostTrainError(f"reward {reward.name} fails at {raised_at(problem)}: {said_by(problem)}") from problem


def refuse_failing(tallies: Sequence[Mapping[str, Tally]]) -> None:
    """Refuse rewards that have failed on all responses. tallies: of all ranks, since `RewardSum.begin`.

    Raises:
        PostTrainError: naming the reward and its first failure.
    """
    for name in dict.fromkeys(name for counted in tallies for name in counted):
        own = [counted[name] for counted in tallies if name in counted]
        failed = sum(tally.failed for tally in own)
        if failed and failed == sum(tally.asked for tally in own):
            first = next(tally.first for tally in own if tally.first)
            told = f"reward {name} fails on every response, first on the prompt {first}; mend it"
            raise on_all_ranks(PostTrainError(told))


def _first(batch: RewardBatch, problems: Problems) -> str:
    place, problem = next(iter(problems.items()))
    return f"{batch.sources[place]}: {_short(problem)}"


def _short(problem: BaseException) -> str:
    text = said_by(problem)
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 4] + " ..."
    place = "" if isinstance(problem, TooLong) else own_place(problem)  # its traceback says only where the time was up
    return f"{text} ({place})" if place else text
