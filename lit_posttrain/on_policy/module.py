"""What on-policy methods share: responses sampled from the policy itself, rewarded, and trained on in steps.

A phase: every rank answers its share of the prompts and rewards its own answers; all trees go to all ranks, so that
everything after that (advantages, the cut into steps, denominators) is the same everywhere and needs no reduction. What
the losses need of the policy at the phase's start and of the reference is computed once, ranks sharing the work.
"""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_posttrain.core.measured import Direction
from lit_posttrain.core.reference import Reference, ReferencedModule
from lit_posttrain.core.schedules import Schedule
from lit_posttrain.data.modules.prompts import PromptData
from lit_posttrain.data.store.loader import StepCutter
from lit_posttrain.data.store.mixing import Mix
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.distributed import all_gather_object, together
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.on_policy.columns import attach_columns
from lit_posttrain.on_policy.experience import Experience, ExperienceLoader, PromptStream, num_targets
from lit_posttrain.on_policy.options import Phases
from lit_posttrain.on_policy.rollouts import Rollout, Stats, cut_off, judged, phase_stats, unscored
from lit_posttrain.on_policy.sampler import Sampler
from lit_posttrain.ops.kl import k1, k3
from lit_posttrain.rewards.base import Reward
from lit_posttrain.rewards.total import RewardSum, refuse_failing
from lit_posttrain.rollout.engine import Completion, EngineSpec, Sampling, SamplingProgress
from lit_posttrain.runs.signals import RunStopped
from lit_posttrain.trainer_state import dry_run, seed_of
from lit_posttrain.types import PromptRecord, Tree, TreeBatch

log = logging.getLogger(__name__)

SAMPLING, PHASES, ENGINE = Sampling(), Phases(), EngineSpec()


class OnPolicyModule(ReferencedModule):
    """Base class of the methods that learn from their own responses.

    referenced: whether the loss or the reward holds the policy near its start; without, there is no reference.
    """

    monitored: ClassVar[str] = "val/reward"
    better: ClassVar[Mapping[str, Direction]] = {
        "reward": "max",
        "rewards/*/mean": "max",
        "rewards/*/failed": "min",
        "unscored": "min",
    }
    in_bar: ClassVar[tuple[str, ...]] = ("reward", "kl/response")  # a policy gradient's loss is near 0, and says little

    def __init__(
        self,
        policy: ModelSpec,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        warmup: float,
        reference: Reference,
        rewards: list[Reward],
        reward_timeout: float,
        sampling: Sampling,
        phases: Phases,
        engine: EngineSpec,
        beta: float,
    ) -> None:
        """The arguments are those of `GRPO`."""
        super().__init__(policy, optimizer, schedule, warmup, reference)
        if reference == "cached":
            raise PostTrainError("--model.reference cached: responses are new every time; take copy or adapter_off")
        if sampling.temperature == 0 or sampling.top_p < 1 or sampling.top_k:
            raise PostTrainError(
                "--model.sampling: a policy gradient needs responses drawn from the policy's whole distribution; leave "
                "top_p and top_k out, and take a temperature above 0"
            )
        if not 0 <= beta < math.inf:
            raise PostTrainError(f"--model.beta is {beta}; it must be 0 (no reference) or more")
        self.beta, self.kl_coefficient = beta, beta
        self.referenced = beta > 0
        self.sampling, self.phases = sampling, phases
        self._sampler = Sampler(self, engine)
        self.rewards = RewardSum(rewards, reward_timeout)
        self._judged = False  # whether rewards have worked
        self._told_cut_off = False
        self.sampling_progress: SamplingProgress | None = None
        self._responses = self._scored = 0  # how many this run has sampled, and how many of them had a score
        self.awaits_rewards = False
        self.given_up: int | None = None
        self.rollouts: list[Rollout] = []  # of the phase at hand and all ranks, for callbacks
        self._saved_experience: Experience | None = None
        self._unlogged: Stats = {}
        self._phase_kl: tuple[float, float] | None = None  # sum and count

    @abstractmethod
    def attach_advantages(self, trees: Sequence[Tree]) -> Stats:
        """Put what the loss needs into every tree's `per_target`; by name sums and counts of what is worth logging."""

    @property
    def method_options(self) -> dict[str, Any]:
        """As the base class has them, and what is rewarded, by what."""
        found = super().method_options
        for reward in self.rewards.rewards:
            found |= {f"rewards.{reward.name}.{option}": value for option, value in reward.resume_options().items()}
        return found | {"rewards": ", ".join(f"{r.weight:g} x {r.name}" for r in self.rewards.rewards)}

    @property
    def group_size(self) -> int:
        """Responses to each prompt."""
        return self.phases.group_size

    @property
    def engine_name(self) -> str:
        """What draws the responses."""
        return self._sampler.spec.name

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the policy moves between sampling and the last step on its samples."""
        return self.phases.steps > 1

    @property
    def frozen_weights(self) -> dict[str, list[Tensor]]:
        """As the base class has them, and the models of rewards."""
        held = {reward.name: reward.weights_held for reward in self.rewards.rewards}
        return super().frozen_weights | {name: weights for name, weights in held.items() if weights}

    @property
    def reward_names(self) -> list[str]:
        """Of the rewards that make the sum."""
        return [reward.name for reward in self.rewards.rewards]

    def completions(self) -> list[dict[str, Any]]:
        """What was sampled in the phase at hand, a row a response, as `ShowsCompletions` has it."""
        rows = []
        for one in self.rollouts:
            prompt = self.tokenizer.decode(one.tree.prompt.tolist(), skip_special_tokens=True).strip()
            sizes = [int(np.count_nonzero(response.loss_mask)) for response in one.tree.responses]
            advantages = np.split(one.tree.per_target["advantage"], np.cumsum(sizes)[:-1])
            for place, (said, response) in enumerate(zip(one.responses, one.tree.responses, strict=True)):
                row = {"source": one.tree.source, "prompt": prompt, "response": said, "tokens": len(response.tokens)}
                row |= {"truncated": one.truncated[place], "reward": _or_none(response.label("reward"))}
                row |= {f"rewards/{name}": _or_none(values[place]) for name, values in one.parts.items()}
                row["advantage"] = float(advantages[place].mean()) if sizes[place] else None
                rows.append(row)
        return rows

    def take_phase_kl(self) -> tuple[float, float] | None:
        """Once a phase: the mean KL of its responses (k1, nats a response) and their number, over all ranks."""
        found, self._phase_kl = self._phase_kl, None
        return None if found is None else (found[0] / max(found[1], 1.0), found[1])

    @property
    def wanted_columns(self) -> set[str]:
        """What is computed once of a phase's responses: `old` and `reference`, see `columns`."""
        wanted = {"old"} if self.needs_old_logprobs else set()
        return wanted | ({"reference"} if self.referenced else set())

    # Data ----------------------------------------------------------------------------------------------------------

    def experience_loader(self, prompts: TreeStore, mix: Mix | None, data: PromptData) -> ExperienceLoader:
        """What the data module trains with."""
        given = self.trainer.distributed_sampler_kwargs or {}
        world, rank = int(given.get("num_replicas", 1)), int(given.get("rank", 0))
        accumulate = self.trainer.accumulate_grad_batches
        self.phases.check_cut(data.batch_size, accumulate * world)
        limit = self.trainer.limit_train_batches
        if limit and not (isinstance(limit, float) and limit == 1.0) and not dry_run(self.trainer):
            raise PostTrainError(
                "--trainer.limit_train_batches (or overfit_batches) cuts a rollout phase short; lower "
                "--data.batch_size instead"
            )
        return ExperienceLoader(
            PromptStream(prompts, data.seed, data.shuffle, mix),
            self.collect,
            StepCutter(accumulate, world, rank, self.layout),
            batch_size=data.batch_size,
            inner_epochs=self.phases.inner_epochs,
            minibatches=self.phases.minibatches,
            identity={
                "batch_size": data.batch_size,
                "accumulate": accumulate,
                "seed": data.seed,
                "shuffle": data.shuffle,
                "weights": mix and mix.identity,
            },
            teaches=self.teaches,
        )

    def teaches(self, tree: Tree) -> bool:
        """Whether a tree can have a gradient."""
        return num_targets(tree) > 0

    def check_data(self, data: Any) -> None:
        """Look at what is known before the first step: the columns of rewards, and room for responses.

        Raises:
            PostTrainError: for what would fail later.
        """
        if not isinstance(data, PromptData):
            raise PostTrainError(f"{type(self).__name__} samples responses itself and needs prompts: --data PromptData")
        stores = [data.train_store, *data.val_stores.values()]

        def look() -> None:
            for store in stores if self.global_rank == 0 else ():  # one decodes every row; the others hear of it
                rows = ((store.sources([i])[0], PromptRecord.of(store[i]).columns) for i in range(len(store)))
                self.rewards.check_rows(rows, skip=data.on_bad_row == "skip")

        trainer = self._attached_trainer()
        together(trainer, look) if trainer is not None else look()  # `audit` has none
        self._prepare(stores)

    def _prepare(self, stores: Sequence[TreeStore]) -> None:
        """Check prompts, and load what their answers are made and judged with."""
        for store in stores:
            self._check_prompts(store)
        self._sampler.check()
        self.rewards.prepare(self.device)

    def _check_prompts(self, store: TreeStore) -> None:
        for first in np.unique(store.file_index, return_index=True)[1].tolist():  # of every file
            self.rewards.check(list(PromptRecord.of(store[first]).columns), store.sources([first])[0])
        longest, limit = int(store.prompt_lengths.argmax()), self.max_positions
        needed = int(store.prompt_lengths[longest]) + self.sampling.max_new_tokens
        if limit is not None and needed > limit:
            raise PostTrainError(
                f"{store.sources([longest])[0]}: its prompt and --model.sampling.max_new_tokens make {needed} tokens, "
                f"and the model takes {limit}; pass --data.max_length {max(limit - self.sampling.max_new_tokens, 1)}"
            )

    # Collecting ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, phase: int) -> Experience:
        """The experience of a phase. Called on all ranks, with the policy as it is."""
        begun = time.perf_counter()
        kept, seen = self._sampled(phase)
        sampled = time.perf_counter()
        trees = [one.tree for one in kept]
        stats = phase_stats(seen, self.reward_names)
        stats |= self._attach_logprobs(trees)
        stats |= self.attach_advantages(trees)
        tokens = float(sum(len(r.tokens) for one in seen for r in one.tree.responses))
        stats["rollout/tokens_per_s"] = (tokens, sampled - begun)
        stats["rollout/seconds"] = (sampled - begun, 1.0)
        stats["rollout/scoring_seconds"] = (time.perf_counter() - sampled, 1.0)
        self.rollouts = kept
        self._unlogged = stats
        if stats.get("kl/response", (0.0, 0.0))[1]:
            self._phase_kl = stats["kl/response"]
        return Experience(trees)

    def _sampled(self, phase: int) -> tuple[list[Rollout], list[Rollout]]:
        """The rollouts that a phase trains on, and all that were drawn for it."""
        stream, size = self.loader.prompts, self.loader.batch_size
        kept: list[Rollout] = []
        seen: list[Rollout] = []
        self.rewards.begin()
        for attempt in range(self.phases.top_up + 1):
            drawn = self._rollouts(stream.store, stream.take(size - len(kept)), phase, attempt)
            seen += drawn
            kept += drawn if self.phases.top_up == 0 else [one for one in drawn if one.telling]
            if len(kept) == size:
                break
        self._look_at_rewards(seen)
        scores = [score for one in seen for score in one.scores]
        self._responses += len(scores)
        self._scored += sum(not math.isnan(score) for score in scores)
        # what teaches nothing fills the phase where the attempts ran out: its steps keep their size
        dull = [one for one in seen if not one.telling] if self.phases.top_up else []
        kept += dull[: size - len(kept)]
        together(self.trainer, self._sampler.rest)
        return kept, seen

    def _look_at_rewards(self, seen: Sequence[Rollout]) -> None:
        """Say once that responses have no score.

        Raises:
            PostTrainError: on all ranks, for a reward that fails on everything. Nothing is trained on this rollout: a
                run that goes on from the last step samples it again.
        """
        refuse_failing(all_gather_object(self.rewards.tallies, self.trainer))
        if not self._judged and self.global_rank == 0 and (told := unscored(seen)):
            log.warning(told)
        self._judged = True
        if not self._told_cut_off and (told := cut_off(seen, self.sampling.max_new_tokens)):
            self._told_cut_off = True
            if self.global_rank == 0:
                log.warning(told)

    @property
    def loader(self) -> ExperienceLoader:
        """The loader of the run at hand."""
        loader: Any = self.trainer.train_dataloader
        assert isinstance(loader, ExperienceLoader)
        return loader

    def _rollouts(self, store: TreeStore, rows: Sequence[int], phase: int, attempt: int) -> list[Rollout]:
        """Answers to the prompts of `rows`, rewarded, in their order on all ranks."""
        trainer = self.trainer
        given = trainer.distributed_sampler_kwargs or {}
        world, rank = int(given.get("num_replicas", 1)), int(given.get("rank", 0))
        first, last = (len(rows) * part // world for part in (rank, rank + 1))
        mine = [store[row] for row in rows[first:last]]
        sampling = replace(self.sampling, seed=seed_of(phase, attempt) + self.sampling.seed)

        def answered() -> list[Rollout]:
            with self._awaiting():
                answers = self._answers(mine, self.phases.group_size, sampling, first)
                return judged(mine, answers, self.rewards, self.tokenizer, self.phases.mask_truncated)

        return [one for some in all_gather_object(together(trainer, answered), trainer) for one in some]

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

    def _answers(self, prompts: Sequence[Tree], n: int, sampling: Sampling, first: int = 0) -> list[list[Completion]]:
        return self._sampler.answers(prompts, n, sampling, first)

    def setup(self, stage: str) -> None:
        """End the engine of a run that broke off: its weights may be others by now."""
        super().setup(stage)
        self._sampler.end()

    def teardown(self, stage: str) -> None:
        """End the engine."""
        super().teardown(stage)
        self._sampler.end()
        self.rewards.processes.end_stuck()

    def end_processes(self, stuck_only: bool) -> None:
        """End what rewards have started."""
        self.rewards.processes.end_stuck() if stuck_only else self.rewards.processes.end()

    def _attach_logprobs(self, trees: Sequence[Tree]) -> Stats:
        """Into the trees: log-probs of the policy as it is (`old`), where it will have moved before they are used, and
        of the reference. The metrics of how far the two are apart."""
        wanted = self.wanted_columns
        # as many micro-batches as a step has, so that this takes no more memory than a step does
        attach_columns(trees, wanted, self, self.loader.cutter, self.phases.minibatches)
        if not {"old", "reference"} <= wanted:
            return {}  # a loss at the policy that sampled gives them by the way
        ratio = torch.cat([torch.from_numpy(t.per_target["old"] - t.per_target["reference"]).double() for t in trees])
        counted = [bool(response.loss_mask.any()) for tree in trees for response in tree.responses]
        responses = float(sum(counted))
        return {
            "kl": (float(k3(ratio).sum()), float(len(ratio))),
            "kl/response": (float(k1(ratio).sum()), responses),
        }

    def columns(self, batch: TreeBatch, wanted: set[str]) -> dict[str, Tensor]:
        """Of `wanted` what the models say of a batch's targets (N,), without a graph."""
        found: dict[str, Tensor] = {}
        if "old" in wanted:
            with self.eval_no_grad() as policy:
                found["old"] = policy(batch, temperature=self.sampling.temperature).logprobs
        if "reference" in wanted:
            found["reference"] = self.reference_logprobs(batch, temperature=self.sampling.temperature)
        return found

    # Training ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: TreeBatch, batch_idx: int) -> Tensor:
        """As the base class has it; the first micro-batch of a phase logs what was collected."""
        for name, (total, count) in self._unlogged.items():
            first = self.trainer.global_rank == 0  # the sums are over all ranks already
            self.track(name, torch.tensor(total * first, dtype=torch.float64), count * first)
        self._unlogged = {}
        return super().training_step(batch, batch_idx)

    def on_train_end(self) -> None:
        """
        Raises:
            PostTrainError: if no response had a score.
        """
        if self._responses and not self._scored:
            raise PostTrainError(
                f"none of the {self._responses:,} responses of this run has a score, so nothing was learnt: no reward "
                "has a say on them; look whether the rows have the columns that the rewards read"
            )

    # Validation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer prompts with the most likely tokens, and reward the answers."""
        self._file = f"{dataloader_idx}:"
        store = self._evaluated()[dataloader_idx]
        prompts = [store[row] for row in batch.example_ids]

        def answered() -> list[Rollout]:
            with self._awaiting():
                drawn = self._answers(prompts, 1, replace(self.sampling, temperature=0.0))
                return judged(prompts, drawn, self.rewards, self.tokenizer, mask_truncated=False)

        found = together(self.trainer, answered)
        for name, (total, count) in phase_stats(found, self.reward_names).items():
            if name not in ("reward_std", "frac_reward_zero_std"):  # of groups of one
                self.track(name, torch.tensor(total, dtype=torch.float64), count)

    def _evaluated(self) -> list[TreeStore]:
        """The data sets that are validated or tested on."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning, unseen by type checkers
        stores = data.test_stores if self.trainer.state.fn == TrainerFn.TESTING else data.val_stores
        return list(stores.values())

    def on_validation_start(self) -> None:
        """Load what answers are judged with; training has it already."""
        self._prepare(self._evaluated())
        self.rewards.begin()

    def on_validation_epoch_end(self) -> None:
        """As the base class has it; no metrics of a reward that fails on everything."""
        refuse_failing(all_gather_object(self.rewards.tallies, self.trainer))
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        refuse_failing(all_gather_object(self.rewards.tallies, self.trainer))
        super().on_test_epoch_end()

    def on_validation_end(self) -> None:
        """Training may go on within a phase."""
        together(self.trainer, self._sampler.rest)

    def on_test_start(self) -> None:
        """As `on_validation_start`."""
        self.on_validation_start()

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the experience that is not used up, and the coefficient of the KL."""
        super().on_save_checkpoint(checkpoint)
        done = self.progress_saved
        checkpoint["lit_posttrain"]["kl_coefficient"] = done["kl_coefficient"]
        if done["experience"] is not None:
            checkpoint["experience"] = done["experience"].dump()

    def _progress(self) -> dict[str, Any]:
        """As the base class has it, with those two."""
        own = {"kl_coefficient": self.kl_coefficient, "experience": self.loader.under_way}
        return super()._progress() | own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        self.kl_coefficient = checkpoint["lit_posttrain"]["kl_coefficient"]
        saved = checkpoint.get("experience")
        self._saved_experience = None if saved is None else Experience.restored(saved)

    def _go_on_from_checkpoint(self) -> None:
        super()._go_on_from_checkpoint()
        if self._saved_experience is not None:
            self.loader.experience = self._saved_experience

    def on_train_start(self) -> None:
        """As the base class has it; what was restored is the loader's now."""
        super().on_train_start()
        self._saved_experience = None


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
