"""Collecting: prompts, answered by an engine in an environment and judged by rewards, become rollouts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lit_posttrain.core.component import Component
from lit_posttrain.core.model_module import ModelModule
from lit_posttrain.data.modules.prompts import PromptData
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.distributed import all_gather_object, together
from lit_posttrain.errors import PostTrainError
from lit_posttrain.on_policy.completions import completion_rows
from lit_posttrain.on_policy.experience import Experience, PromptStream
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.on_policy.rollouts import Rollout, cut_off, missing_scores
from lit_posttrain.on_policy.sampler import Sampler
from lit_posttrain.on_policy.scoring import ENVIRONMENT, Scoring
from lit_posttrain.on_policy.signal import FIRST_ROLLOUTS, Signal
from lit_posttrain.on_policy.turns import Episodes, Opened
from lit_posttrain.rewards.base import Reward
from lit_posttrain.rewards.calls import refuse_failing
from lit_posttrain.rewards.total import RewardSum
from lit_posttrain.rollout.engine import Completion, Sampling, SamplingProgress
from lit_posttrain.runs.signals import RunStopped
from lit_posttrain.trainer_state import attached_trainer, num_replicas, seed_of
from lit_posttrain.types import PromptRecord, Tree

log = logging.getLogger(__name__)


@dataclass
class Collected:
    """kept: the rollouts that are trained on. seen: all that were drawn for them."""

    kept: list[Rollout]
    seen: list[Rollout]


class Collector(Component):
    """Samples the responses of an on-policy method: engine, environment, rewards, retries and failures.

    rollouts: of the last collection, over all ranks. sampling_progress: called as tokens are drawn. awaits_rewards:
    True while responses are sampled and rewarded. given_up: the signal that ended that.
    """

    def __init__(
        self,
        module: ModelModule,
        rewards: Sequence[Reward],
        config: RolloutConfig,
        trains_unscored: bool = False,
        compares: bool = False,
    ) -> None:
        """trains_unscored: train on responses without a score too, as a method does that needs none. compares: the
        method learns from differences between the scores to a prompt."""
        self.trains_unscored, self.compares = trains_unscored, compares
        self.module, self.config, self.environment = module, config, config.environment
        self.rewards = RewardSum(rewards, config.reward_timeout)
        if self.environment is not None and ENVIRONMENT in (reward.name for reward in rewards):
            raise PostTrainError(
                f"rewards: one is called {ENVIRONMENT}, as the scores of --model.rollout.environment are; give it "
                "another `name`"
            )
        self.sampler = Sampler(module, config.engine, self._show)
        self.rollouts: list[Rollout] = []
        self.sampling_progress: SamplingProgress | None = None
        self.awaits_rewards = False
        self.given_up: int | None = None
        self.under_way: Callable[[], Experience | None] = lambda: None  # what the loader trains on
        self.restored: Experience | None = None  # of the run that is resumed, until the loader takes it
        self.signal = Signal()
        self._told_missing = self._told_cut_off = False

    # Before training -----------------------------------------------------------------------------------------------

    def prepare(self, stores: Sequence[TreeStore]) -> None:
        """Check prompts, and load what they are answered and judged with.

        Raises:
            PostTrainError: for columns that a reward lacks, a prompt without room for a response, or an engine that is
                not there.
        """
        for store in stores:
            self._check_prompts(store)
        self.sampler.check()
        self.rewards.prepare(self.module.device)

    def _check_prompts(self, store: TreeStore) -> None:
        for first in np.unique(store.file_index, return_index=True)[1].tolist():  # of every file
            self.rewards.check(list(PromptRecord.of(store[first]).columns), store.sources([first])[0])
        longest = int(store.prompt_lengths.argmax())
        size, new, limit = int(store.prompt_lengths[longest]), self.config.max_new_tokens, self.module.max_positions
        if limit is not None and size + new > limit:
            room = limit - new
            remedy = f"pass --data.max_length {room}" if room > 1 else "lower --model.rollout.max_new_tokens"
            raise PostTrainError(
                f"{store.sources([longest])[0]}: its prompt and --model.rollout.max_new_tokens make {size + new} "
                f"tokens, and {self.module.limited_by} takes {limit}; {remedy}"
            )

    def check_rows(self, stores: Sequence[TreeStore], skip: bool) -> None:
        """Refuse rows that rewards cannot judge responses by; see `RewardSum.check_rows`."""
        for store in stores:
            rows = ((store.sources([i])[0], PromptRecord.of(store[i]).columns) for i in range(len(store)))
            self.rewards.check_rows(rows, skip=skip)

    def refuse_rewards(self) -> None:
        """For a run on given answers.

        Raises:
            PostTrainError: if there are rewards.
        """
        if names := ", ".join(self.reward_names):
            raise PostTrainError(
                f"--model.rewards ({names}) look at sampled answers, and those of this data are given: leave them out, "
                "or answer its prompts with --data PromptData"
            )

    def refuse_comparing(self) -> None:
        """For a run that validates, with one answer to each prompt.

        Raises:
            PostTrainError: if all rewards compare answers with others.
        """
        rewards = self.rewards.rewards
        if rewards and self.environment is None and all(reward.compares for reward in rewards):
            raise PostTrainError(
                f"a validation has one answer to each prompt, and --model.rewards ({', '.join(self.reward_names)}) "
                "compares several: validate nothing (--data.val_fraction 0 --data.val_path null), add a reward that "
                "scores answers alone, or take a judge that does (--model.rewards.judge.kind score)"
            )

    # Collecting ----------------------------------------------------------------------------------------------------

    def collect(self, stream: PromptStream, size: int, number: int) -> Collected:
        """Rollouts of the next `size` prompts of a stream, alike on all ranks. number: of the rollout in the run, which
        decides the seeds. Collective.

        Raises:
            PostTrainError: on all ranks, for a reward that fails on everything. Nothing is trained on this rollout: a
                run that goes on from the last step samples it again.
        """
        kept: list[Rollout] = []
        seen: list[Rollout] = []
        retries = self.config.dynamic_sampling_retries
        self.rewards.begin()
        for attempt in range(retries + 1):
            sampling = self.config.sampling(seed_of(number, attempt))
            drawn = self._over_ranks(stream.store, stream.take(size - len(kept)), sampling)
            seen += drawn
            kept += drawn if retries == 0 else [one for one in drawn if one.has_signal]
            if len(kept) == size:
                break
        refuse_failing(all_gather_object(self.rewards.tallies, self.module.trainer))
        self.signal.add(seen)
        self._tell(seen)
        # where the retries ran out, groups without a signal fill the rollout: its steps keep their size
        flat = [one for one in seen if not one.has_signal] if retries else []
        kept += flat[: size - len(kept)]
        self.rest()
        self.rollouts = kept
        return Collected(kept, seen)

    def _tell(self, seen: Sequence[Rollout]) -> None:
        """Say once that responses have no score, or are cut off, and that the first rollouts taught nothing.

        Raises:
            PostTrainError: as `look_at_signal`.
        """
        first = self.module.global_rank == 0
        told = "" if self.trains_unscored or self._told_missing else missing_scores(seen, self._scoring)
        self._told_missing = True
        if told and first:
            log.warning(told)
        if not self._told_cut_off and (told := cut_off(seen, self.config.max_new_tokens)):
            self._told_cut_off = True
            if first:
                log.warning(told)
        if self.signal.rollouts == FIRST_ROLLOUTS:
            self.look_at_signal()

    def _over_ranks(self, store: TreeStore, rows: Sequence[int], sampling: Sampling) -> list[Rollout]:
        """Rollouts of the prompts of `rows`, in their order on all ranks, which share the work."""
        world, rank = num_replicas(self.module.trainer)
        first, last = (len(rows) * part // world for part in (rank, rank + 1))
        mine = [store[row] for row in rows[first:last]]
        found = self.answer(mine, self.config.group_size, sampling, first)
        return [one for some in all_gather_object(found, self.module.trainer) for one in some]

    def answer(self, prompts: Sequence[Tree], n: int, sampling: Sampling, first: int = 0) -> list[Rollout]:
        """n responses to each of this rank's prompts, rewarded. first: number of the first prompt among those of all
        ranks. Collective."""

        def answered() -> list[Rollout]:
            with self._awaiting():
                episodes = Episodes(self.module.tokenizer, self.environment, self._any_rank)
                opened = together(self.module.trainer, lambda: episodes.opened(prompts))
                if self.environment is not None:
                    self._make_room(opened)
                drawn = episodes.played(opened, n, sampling, self._draw, first)
                masks = self.config.mask_truncated and sampling.temperature > 0  # not in a validation
                scoring = Scoring(self.rewards, self.environment is not None, self.trains_unscored, masks)
                return scoring.rollouts([one.tree for one in opened], drawn)

        return together(self.module.trainer, answered)

    def _make_room(self, opened: Sequence[Opened]) -> None:
        """Prompts that an environment has begun may be longer than any of the data. Collective."""
        mine = ((len(one.tree.prompt), one.tree.source) for one in opened)
        longest, source = max(all_gather_object(max(mine, default=(0, "")), self.module.trainer))
        needed, limit = longest + self.config.max_new_tokens, self.module.max_positions
        if limit is not None and needed > limit:
            raise PostTrainError(
                f"{source}: its prompt, what {type(self.environment).__name__} adds to it and "
                f"--model.rollout.max_new_tokens make {needed} tokens, and {self.module.limited_by} takes {limit}; "
                "lower --model.rollout.max_new_tokens, or let it add less"
            )
        self.sampler.make_room(needed)

    def _draw(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int]
    ) -> list[list[Completion]]:
        """Raises on every rank if it raises on one: in an environment the others would wait for its next turn."""
        trainer = self.module.trainer
        return together(trainer, lambda: self._checked_draw(prompts, n, sampling, numbers))

    def _checked_draw(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int]
    ) -> list[list[Completion]]:
        drawn = self.sampler.answers(prompts, n, sampling, numbers)
        if len(drawn) != len(prompts) or any(len(answers) != n for answers in drawn):
            raise PostTrainError(
                "the rollout engine gave fewer responses than it was asked for; see its messages above"
            )
        if any(not answer.tokens for answers in drawn for answer in answers):
            raise PostTrainError("the rollout engine gave a response without tokens; see its messages above")
        return drawn

    def _any_rank(self, work: Callable[[], bool]) -> bool:
        trainer = self.module.trainer
        return bool(trainer.strategy.reduce_boolean_decision(together(trainer, work), all=False))

    @contextmanager
    def _awaiting(self) -> Iterator[None]:
        """While responses are sampled and rewarded a signal that stops the run ends it at once."""
        self.awaits_rewards, self.given_up = True, None
        try:
            yield
        finally:
            self.awaits_rewards = False
        if self.given_up is not None:
            raise RunStopped(self.given_up)

    # The run -------------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """The engine is not needed for a while. Collective."""
        together(self.module.trainer, self.sampler.rest)

    def end(self) -> None:
        """End the engine, and what rewards have left running."""
        self.sampler.end()
        self.rewards.processes.end_stuck()

    def end_processes(self, stuck_only: bool) -> None:
        """End what rewards have started."""
        self.rewards.processes.end_stuck() if stuck_only else self.rewards.processes.end()

    def require_scores(self) -> None:
        """
        Raises:
            PostTrainError: on all ranks, if scores are needed, and no response of the run had one.
        """
        if not self.trains_unscored:
            self.signal.require_scores(self._scoring)

    def look_at_signal(self) -> None:
        """Warn if the run has learnt nothing so far.

        Raises:
            PostTrainError: as `require_scores`.
        """
        self.require_scores()
        if (told := self.signal.nothing_learnt(self.compares)) and self.module.global_rank == 0:
            log.warning(told)

    @property
    def _scoring(self) -> list[str]:
        """What can give a response a score."""
        weighted = self.rewards.weighted
        return weighted if self.environment is None else [*weighted, ENVIRONMENT]

    @property
    def frozen_weights(self) -> dict[str, list[Any]]:
        """The parameters of rewards' models."""
        held = {reward.name: reward.weights_held for reward in self.rewards.rewards}
        return {name: weights for name, weights in held.items() if weights}

    def snapshot(self) -> tuple[Experience | None, Signal]:
        """The experience that is not used up, and the counts."""
        return self.under_way(), replace(self.signal)

    def state(self, snapshot: Any) -> dict[str, Any]:
        """It as tensors and numbers."""
        experience, signal = snapshot
        return {"experience": None if experience is None else experience.dump(), "signal": asdict(signal)}

    def load_state(self, state: Mapping[str, Any], fitting: bool) -> None:
        """Go on with the experience of the run that is resumed."""
        if not fitting:
            return
        self.signal = Signal(**state["signal"])
        if state["experience"] is not None:
            self.restored = Experience.restored(state["experience"])

    # What callbacks ask for ------------------------------------------------------------------------------------------

    @property
    def samples(self) -> bool:
        """True if the data of this run are prompts to answer, False for given responses."""
        return isinstance(getattr(attached_trainer(self.module), "datamodule", None), PromptData)

    @property
    def group_size(self) -> int:
        """Responses to each prompt."""
        return self.config.group_size

    @property
    def engine_name(self) -> str:
        """Name of the engine that draws the responses."""
        return self.config.engine.name

    @property
    def reward_names(self) -> list[str]:
        """Names of the rewards, and of the environment if there is one."""
        own = [reward.name for reward in self.rewards.rewards]
        return own if self.environment is None else [*own, ENVIRONMENT]

    def completions(self) -> list[dict[str, Any]]:
        """The responses of the last rollout, one row each, see `ShowsCompletions`."""
        return completion_rows(self.rollouts, self.module.tokenizer)

    def _show(self, *place: int) -> None:
        if self.sampling_progress is not None:
            self.sampling_progress(*place)
