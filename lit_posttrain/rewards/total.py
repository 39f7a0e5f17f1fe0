"""The weighted sum of rewards, each on its own in the metrics, and what happens where one fails."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError, on_all_ranks
from lit_posttrain.rewards.base import Reward, RewardBatch, Sampled, Scores
from lit_posttrain.rewards.processes import RewardProcesses
from lit_posttrain.rewards.time_limit import TooLong, time_limit
from lit_posttrain.runs.signals import Terminated
from lit_posttrain.types import PromptRecord

log = logging.getLogger(__name__)

Problems = dict[int, BaseException]  # by the place of the response

_SHOWN = 80  # characters of an error
_MOST_TIMEOUTS = 3  # of single responses in a batch
_PATIENCE_S = 10.0  # before it is told what takes so long
_GRACE_S = 1.0  # for an async reward to be cancelled
_FAILURES = (Exception, SystemExit, TooLong)  # a sys.exit of generated code that a reward runs is an error like others


@dataclass
class Rewarded:
    """total: (M,) float64, the weighted sum; NaN where no reward has a score, or one failed. unshaped: (M,) the same
    without shaping rewards, where there are others. broken: (M,) bool, True where a reward failed that the total needs.
    scores: by name (M,) float64, before weighting; NaN for none. failed: by name (M,) bool, True where it raised or
    took too long."""

    total: Tensor
    unshaped: Tensor
    broken: Tensor
    scores: dict[str, Tensor]
    failed: dict[str, Tensor]


@dataclass
class Tally:
    """How many responses a reward was asked about, on how many it failed, and what it failed on first."""

    asked: int = 0
    failed: int = 0
    first: str = ""


class RewardSum:
    """Calls rewards, and adds up what they say.

    A reward that raises or takes too long is asked again about every response alone, so that the others keep theirs,
    and this is told once. Responses that it fails on, or gives a number to that is not finite, are counted, named in
    the log and have no score at all: they are in no group's mean and train nothing. A reward that fails on everything
    is an error, and what everything is the caller knows: `begin` starts to count, `refuse_failing` looks.

    needed: names of rewards without whose score a response has no total, whatever their weight: a method sets it to
    those that it uses by themselves, such as a cost.
    """

    def __init__(self, rewards: Sequence[Reward], timeout: float = 60.0) -> None:
        """
        Args:
            rewards: None of them give no response a score.
            timeout: Seconds that a reward may take for a batch; for a single response too.

        Raises:
            PostTrainError: for two of the same name.
        """
        unmade = next((type(reward).__name__ for reward in rewards if not hasattr(reward, "name")), None)
        if unmade is not None:
            raise PostTrainError(f"rewards: the constructor of {unmade} must call super().__init__(weight, name)")
        names = [reward.name for reward in rewards]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise PostTrainError(f"rewards: two are called {twice}; give one another `name`")
        if timeout <= 0:
            raise PostTrainError(f"reward_timeout is {timeout:g}; it must be above 0, in seconds")
        self.rewards, self.timeout = list(rewards), timeout
        self.needed: frozenset[str] = frozenset()
        self._told: set[str] = set()  # names of those that were reported
        self.processes = RewardProcesses()
        self.begin()

    def begin(self) -> None:
        """Count anew."""
        self.tallies = {reward.name: Tally() for reward in self.rewards}

    def prepare(self, device: Any) -> None:
        """Load what rewards need."""
        with self.processes.watched():
            for reward in self.rewards:
                reward.prepare(device)

    def check(self, columns: Sequence[str], source: str) -> None:
        """Refuse data without a column that a reward needs; source: where they stand, `file:line`."""
        for reward in self.rewards:
            reward.check(columns, source)

    def check_rows(self, rows: Iterable[tuple[str, Mapping[str, Any]]], skip: bool = False) -> None:
        """Refuse rows that rewards cannot judge responses by. rows: `file:line` and the columns of each. skip: warn of
        them instead: their responses have no score.

        Raises:
            PostTrainError: naming the first one, and how many there are.
        """
        look = [reward for reward in self.rewards if type(reward).unusable is not Reward.unusable]
        if not look:  # then no row need be read
            return
        found, count, told_at = [], 0, time.monotonic() + _PATIENCE_S
        for source, columns in rows:
            count += 1
            problems = [f"{type(r).__name__}: {problem}" for r in look if (problem := r.unusable(columns))]
            found += [f"{source}: {problem}" for problem in problems[:1]]
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

    def batch(
        self,
        records: Sequence[PromptRecord],
        sources: Sequence[str],
        texts: Sequence[str],
        drawn: Sequence[Sampled],
        messages: Sequence[Sequence[Mapping[str, Any]]] = (),
    ) -> RewardBatch:
        """M responses as rewards see them. records, sources: of each one's prompt. texts, drawn, messages: of each its
        last words, how it was sampled, and all its messages."""
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

    def __call__(self, batch: RewardBatch) -> Rewarded:
        """The rewards of a batch.

        Raises:
            PostTrainError: from a reward itself, and for one that takes too long again and again or says the wrong
                number of things.
        """
        total, unshaped = torch.zeros(2, len(batch), dtype=torch.float64)
        said, broken = torch.zeros(2, len(batch), dtype=torch.bool)
        found = Rewarded(total, total, broken, {}, {})
        for reward in self.rewards:
            values, failed = self._asked(reward, batch)
            found.scores[reward.name], found.failed[reward.name] = values, failed
            if reward.name in self.needed:
                broken = broken | values.isnan()
            if reward.weight:  # else it is measured, and has no say
                said, broken = said | ~values.isnan(), broken | failed
                total += reward.weight * values.nan_to_num(0.0)
                unshaped += 0.0 if reward.shaping else reward.weight * values.nan_to_num(0.0)
        total[~said | broken] = unshaped[~said | broken] = math.nan
        found.broken = broken
        if not all(reward.shaping for reward in self.rewards if reward.weight):
            found.unshaped = unshaped
        return found

    def _asked(self, reward: Reward, batch: RewardBatch) -> tuple[Tensor, Tensor]:
        """(M,) values with NaN for none, and (M,) whether it failed."""
        try:
            values, problems = self._values(reward, batch)
        except (PostTrainError, Terminated):
            raise
        except _FAILURES as whole:
            self._tell_once(reward, batch, whole)
            values, problems = self._one_by_one(reward, batch)
        failed = torch.zeros(len(batch), dtype=torch.bool)
        failed[list(problems)] = True
        tally = self.tallies[reward.name]
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

    def _tell_once(self, reward: Reward, batch: RewardBatch, problem: BaseException) -> None:
        if reward.name in self._told:
            return
        self._told.add(reward.name)
        remedy = "; raise reward_timeout if it is only slow" if isinstance(problem, TooLong) else ""
        told = "reward %s: a batch of %d failed (%s), so its responses are judged one by one%s"
        log.warning(told, reward.name, len(batch), _short(problem), remedy)

    def _values(self, reward: Reward, batch: RewardBatch) -> tuple[Tensor, Problems]:
        with self.processes.watched(), time_limit(self.timeout):
            said = reward.score(deepcopy(batch))  # what one changes is not what others, or the log, see
            if inspect.isawaitable(said):
                said = _awaited(said, self.timeout)
            if not isinstance(said, Tensor):
                said = list(said)  # a generator can be gone through once
        if isinstance(said, Tensor):
            found, none = said.detach().double().cpu(), torch.zeros(said.shape, dtype=torch.bool)
        else:
            none = torch.tensor([value is None or isinstance(value, Exception) for value in said], dtype=torch.bool)
            numbers = [math.nan if value is None or isinstance(value, Exception) else float(value) for value in said]
            found = torch.tensor(numbers, dtype=torch.float64)
        if tuple(found.shape) != (len(batch),):
            shape = "x".join(map(str, found.shape)) or "one number"
            raise PostTrainError(f"reward {reward.name} gave {shape} scores for {len(batch)} responses; mend it")
        problems: Problems = {place: value for place, value in enumerate(said) if isinstance(value, Exception)}
        problems |= {
            place: ValueError(f"it gave {float(found[place])}, which is not finite; None means no score")
            for place in (~found.isfinite() & ~none).nonzero()[:, 0].tolist()
        }
        found[list(problems)] = math.nan
        return found, problems


def refuse_failing(tallies: Sequence[Mapping[str, Tally]]) -> None:
    """Look at what was counted, on all ranks, since `RewardSum.begin`.

    Raises:
        PostTrainError: naming a reward that has failed on every response.
    """
    for name in tallies[0]:
        own = [counted[name] for counted in tallies]
        failed = sum(tally.failed for tally in own)
        if failed and failed == sum(tally.asked for tally in own):
            first = next(tally.first for tally in own if tally.first)
            told = f"reward {name} fails on every response, first on the prompt {first}; mend it"
            raise on_all_ranks(PostTrainError(told))


def _first(batch: RewardBatch, problems: Problems) -> str:
    place, problem = next(iter(problems.items()))
    return f"{batch.sources[place]}: {_short(problem)}"


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
