"""The weighted sum of rewards, and the scores of each."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.overrides import check_overrides
from lit_posttrain.rewards.base import Reward, RewardBatch, Sampled
from lit_posttrain.rewards.calls import RewardCalls, Tally, named
from lit_posttrain.rewards.processes import RewardProcesses
from lit_posttrain.types import PromptRecord

log = logging.getLogger(__name__)

_PATIENCE_S = 10.0  # until a message says what takes so long


@dataclass
class Rewarded:
    """total: (M,) float64, the weighted sum; NaN if no reward has a score, or one failed. unshaped: (M,) the same
    without shaping rewards. broken: (M,) bool, True if a reward failed that the total needs. scores: by name (M,)
    float64, before weighting; NaN for none. failed: by name (M,) bool, True if the reward raised or took too long."""

    total: Tensor
    unshaped: Tensor
    broken: Tensor
    scores: dict[str, Tensor]
    failed: dict[str, Tensor]


class RewardSum:
    """Calls rewards, and adds up their scores.

    A response on which a reward fails, or for which it returns a number that is not finite, has no score at all: it is
    in no group's mean and trains nothing (see `RewardCalls`). A reward that fails on every response is an error; over
    how many batches is the caller's to say: `begin` resets the counts, `refuse_failing` checks them.

    needed: names of rewards without whose score a response has no total, whatever their weight: a method sets it to
    those that it uses by themselves, such as a cost.
    """

    def __init__(self, rewards: Sequence[Reward], timeout: float = 60.0) -> None:
        """
        Args:
            rewards: An empty list gives no response a score.
            timeout: Seconds that a reward may take for a batch, and for a single response.

        Raises:
            PostTrainError: for two of the same name, and for a reward that is not made as `Reward` says.
        """
        for reward in rewards:
            _check_made(reward)
        names = [reward.name for reward in rewards]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise PostTrainError(f"rewards: two are called {twice}; give one another `name`")
        if timeout <= 0:
            raise PostTrainError(f"reward_timeout is {timeout:g}; it must be above 0, in seconds")
        self.rewards, self.needed = list(rewards), frozenset[str]()
        self._calls = RewardCalls(timeout)
        self.begin()

    @property
    def weighted(self) -> list[str]:
        """Names of the rewards that have a say in the total; those of weight 0 only measure."""
        return [reward.name for reward in self.rewards if reward.weight]

    @property
    def processes(self) -> RewardProcesses:
        """The processes that rewards have started."""
        return self._calls.processes

    @property
    def tallies(self) -> dict[str, Tally]:
        """By reward, its calls and failures since `begin`."""
        return self._calls.tallies

    def begin(self) -> None:
        """Reset the counts of calls and failures."""
        self._calls.tallies = {reward.name: Tally() for reward in self.rewards}

    # Before the first call -------------------------------------------------------------------------------------------

    def prepare(self, device: Any) -> None:
        """Load what rewards need.

        Raises:
            PostTrainError: if a reward that is `needed` is not there, or one cannot be prepared.
        """
        names = [reward.name for reward in self.rewards]
        if lacking := sorted(self.needed - set(names)):
            raise PostTrainError(
                f"--model.rewards has none called {lacking[0]}, whose scores the method uses (there are "
                f"{', '.join(names) or 'none'}); add it, with `name: {lacking[0]}` among its init_args"
            )
        with self.processes.watched():
            for reward in self.rewards:
                with named(reward):
                    reward.prepare(device)

    def check(self, columns: Sequence[str], source: str) -> None:
        """Refuse data without a column that a reward needs; source: `file:line` of a row."""
        for reward in self.rewards:
            with named(reward):
                reward.check(columns, source)

    def check_rows(self, rows: Iterable[tuple[str, Mapping[str, Any]]], skip: bool = False) -> None:
        """Refuse rows that a reward cannot judge responses by. rows: `file:line` and the columns of each. skip: warn
        instead: responses to these have no score.

        Raises:
            PostTrainError: naming the first one, and how many there are.
        """
        look = [reward for reward in self.rewards if type(reward).unusable is not Reward.unusable]
        if not look:  # then no row need be read
            return
        found, count, told_at = [], 0, time.monotonic() + _PATIENCE_S
        for source, columns in rows:
            count += 1
            problem = _unusable(look, columns)
            found += [f"{source}: {problem}"] if problem else []
            if time.monotonic() > told_at:
                told_at = math.inf
                names = ", ".join(type(reward).__name__ for reward in look)
                log.warning("%s: checking every row takes a while (%d rows so far)", names, count)
        if not found:
            return
        told = f"{found[0]} ({len(found):,} of {count:,} rows)"
        if len(found) == count:
            raise PostTrainError(f"{told}; mend them, or name another column in the reward's init_args")
        if not skip:
            raise PostTrainError(
                f"{told}; mend or remove them, or leave their responses without a score: --data.on_bad_row skip"
            )
        log.warning("%s: their responses have no score", told)

    # Calling ---------------------------------------------------------------------------------------------------------

    def batch(
        self,
        records: Sequence[PromptRecord],
        sources: Sequence[str],
        texts: Sequence[str],
        drawn: Sequence[Sampled],
        messages: Sequence[Sequence[Mapping[str, Any]]] = (),
    ) -> RewardBatch:
        """M responses as rewards see them. records, sources: of the prompt of each. texts, drawn, messages: the
        policy's last words in each, how it was sampled, and all of its messages."""
        needed = [name for reward in self.rewards for name in reward.needs]
        names = dict.fromkeys([*needed, *(name for record in records for name in record.columns)])
        return RewardBatch(
            prompts=[record.messages for record in records],
            responses=list(texts),
            columns={name: [record.columns.get(name) for record in records] for name in names},
            tokens=[[int(token) for token in one.tokens] for one in drawn],
            truncated=[one.finish_reason == "length" for one in drawn],
            sources=list(sources),
            records=list(records),
            messages=list(messages) or [[{"role": "assistant", "content": text}] for text in texts],
        )

    def __call__(self, batch: RewardBatch, alone: bool = True) -> Rewarded:
        """The rewards of a batch. alone: False if an environment rewards the responses too. If all rewards are shaping
        ones and `alone`, nothing is left of the total without them, and `unshaped` is the total.

        Raises:
            PostTrainError: as `RewardCalls.score`.
        """
        total, unshaped = torch.zeros(2, len(batch), dtype=torch.float64)
        scored, broken = torch.zeros(2, len(batch), dtype=torch.bool)
        scores, failures = dict[str, Tensor](), dict[str, Tensor]()
        for reward in self.rewards:
            values, failed = scores[reward.name], failures[reward.name] = self._calls.score(reward, batch)
            if reward.name in self.needed:
                broken = broken | values.isnan()
            if reward.weight:  # one of weight 0 is measured only
                scored, broken = scored | ~values.isnan(), broken | failed
                total += reward.weight * values.nan_to_num(0.0)
                unshaped += 0.0 if reward.shaping else reward.weight * values.nan_to_num(0.0)
        total[~scored | broken] = unshaped[~scored | broken] = math.nan
        if alone and all(reward.shaping for reward in self.rewards if reward.weight):
            unshaped = total
        return Rewarded(total, unshaped, broken, scores, failures)


def _check_made(reward: Reward) -> None:
    check_overrides(type(reward))
    name = type(reward).__name__
    if not hasattr(reward, "name"):
        raise PostTrainError(f"rewards: the constructor of {name} must call super().__init__(weight, name)")
    if isinstance(reward.needs, str):
        raise PostTrainError(f"rewards: `needs` of {name} is a text; write a list of columns: [{reward.needs!r}]")
    if not math.isfinite(reward.weight):
        raise PostTrainError(f"rewards: the weight of {reward.name} is {reward.weight}; it must be a finite number")


def _unusable(rewards: Sequence[Reward], columns: Mapping[str, Any]) -> str:
    """What is wrong with a row, by the first reward that cannot use it; empty for nothing."""
    for reward in rewards:
        with named(reward):
            problem = reward.unusable(columns)
        if problem:
            return f"{type(reward).__name__}: {problem}"
    return ""
