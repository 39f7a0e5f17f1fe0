"""Shared by on-policy methods: responses sampled from the policy itself, rewarded, and trained on in steps.

A rollout: every rank answers its share of the prompts and rewards its own answers; all rollouts go to all ranks, so
that everything after that (advantages, the cut into steps, denominators) is the same everywhere and needs no
reduction. What the losses need of the policy as it sampled and of the reference is computed once, ranks sharing the
work.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, SupportsFloat

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_posttrain.core.directions import Direction
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.preference import refuse_comparisons
from lit_posttrain.data.modules.prompts import PromptData
from lit_posttrain.data.store.loader import StepCutter
from lit_posttrain.data.store.mixing import Mix
from lit_posttrain.data.store.packing import collate
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.distributed import all_gather_object, together
from lit_posttrain.errors import PostTrainError, alike_on_all_ranks, on_all_ranks
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.on_policy.collector import Collector
from lit_posttrain.on_policy.columns import attach_columns
from lit_posttrain.on_policy.experience import Experience, ExperienceLoader, PromptStream, num_targets
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.on_policy.rollouts import Rollout, Stats, rollout_stats
from lit_posttrain.rewards.base import Reward
from lit_posttrain.rewards.calls import refuse_failing
from lit_posttrain.trainer_state import attached_trainer, dry_run, num_replicas
from lit_posttrain.types import Tree, TreeBatch

log = logging.getLogger(__name__)


class OnPolicyModule(PostTrainingModule):
    """Base class of the methods that learn from their own responses. Subclasses implement `prepare` and `loss_terms`.

    splits_groups: True if the responses to a prompt may be trained on in different micro-batches; False for a method
    that compares them in its loss. compares_scores: True if the method learns from differences between the scores of
    the responses to a prompt, so that equal ones teach nothing. trains_unscored: True if responses without a score are
    trained on too.
    """

    splits_groups: ClassVar[bool] = True
    compares_scores: ClassVar[bool] = False
    trains_unscored: ClassVar[bool] = False
    monitored: ClassVar[str] = "val/reward"
    better: ClassVar[Mapping[str, Direction]] = {
        "reward": "max",
        "rewards/*/mean": "max",
        "rewards/*/failed": "min",
        "reward/missing_ratio": "min",
    }
    in_bar: ClassVar[tuple[str, ...]] = ("reward", "kl/response")  # a policy gradient's loss is near 0, and says little

    def __init__(
        self,
        policy: ModelSpec,
        optim: Optim,
        rewards: Sequence[Reward],
        rollout: RolloutConfig,
    ) -> None:
        """
        Args:
            policy: The model to train.
            optim: The optimizer and the schedule of its learning rate.
            rewards: What responses are judged by: a weighted sum.
            rollout: How responses are sampled, and how a rollout becomes optimizer steps.

        Raises:
            PostTrainError: without rewards, for a method that needs a score; for retries, of one that needs none; for
                a single response to a prompt, of a method that compares their scores.
        """
        super().__init__(policy, optim)
        needs_score = not self.trains_unscored and rollout.environment is None
        if needs_score and not rewards:
            raise PostTrainError(
                f"--model.rewards is empty: {type(self).__name__} learns from scores; name a reward, such as ExactMatch"
            )
        if rollout.dynamic_sampling_retries and self.trains_unscored:
            raise PostTrainError(
                f"--model.rollout.dynamic_sampling_retries {rollout.dynamic_sampling_retries}: {type(self).__name__} "
                "learns from every response, whatever its score; leave it at 0"
            )
        if self.compares_scores:
            rollout.require_groups()
        self.rollout = rollout
        self.collector = Collector(self, rewards, rollout, self.trains_unscored, self.compares_scores)
        if needs_score and not self.collector.rewards.weighted:
            names = ", ".join(reward.name for reward in rewards)
            raise PostTrainError(
                f"--model.rewards: all have the weight 0 ({names}), which measures and teaches nothing, and "
                f"{type(self).__name__} learns from scores; give one another weight, such as 1"
            )
        self.add("collector", self.collector)
        self._unlogged: Stats = {}
        self._told_nothing_left = False

    # What a method defines -------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self, rollouts: list[Rollout]) -> Stats:
        """Write what the loss needs into the rollouts' trees: `labels` of responses, and `per_target` columns, one
        number for every trained token, such as those that `attach_columns` computes; a checkpoint keeps all of it.
        Rollouts that are not to be trained on may be taken out of the list. Called with the rollouts of all ranks,
        alike on all. Returns by metric its sum and its count, of all ranks together: sum / count is logged, with the
        rollout's first step. Collective."""

    @property
    def must_sample(self) -> str:
        """The method, or the option of it, that needs sampled responses; empty if it learns from given ones too."""
        return type(self).__name__

    @property
    def wanted_columns(self) -> set[str]:
        """Per-token outputs that are computed once per rollout, see `columns`. Default: `old_logprobs`, if the policy
        moves between sampling and the last step on its samples."""
        return {"old_logprobs"} if self.rollout.steps > 1 else set()

    def attach_columns(self, rollouts: Sequence[Rollout]) -> None:
        """Compute `wanted_columns` for the rollouts' trees, ranks sharing the work. Collective."""
        trees = [one.tree for one in rollouts]
        # as many micro-batches as a step has, so that this takes no more memory than a step does
        attach_columns(trees, self.wanted_columns, self, self.loader.cutter, self.rollout.minibatches)

    def columns(self, batch: TreeBatch, wanted: set[str]) -> dict[str, Tensor]:
        """The requested per-token outputs, each (N,), under no_grad. `old_logprobs`: those of the policy as it is; the
        components have others, such as `ref_logprobs` and, of a `FrozenPart`, `NAME_logprobs`."""
        found: dict[str, Tensor] = {}
        for component in self.components.values():
            found |= component.columns(batch, wanted, self.rollout.temperature)
        if "old_logprobs" in wanted:
            with self.eval_no_grad() as policy:
                found["old_logprobs"] = policy(batch, temperature=self.rollout.temperature).logprobs
        return found

    def has_gradient(self, tree: Tree) -> bool:
        """True if a tree can have a gradient; what has none counts in the denominators and is not computed."""
        return num_targets(tree) > 0

    @property
    def method_options(self) -> dict[str, Any]:
        """Those of the base class, what is rewarded by what, and the environment."""
        found, environment = super().method_options, self.rollout.environment
        found["rollout.environment"] = None if environment is None else type(environment).__name__
        if environment is not None:
            own = environment.resume_options().items()
            found |= {f"rollout.environment.{option}": value for option, value in own}
        rewards = self.collector.rewards.rewards
        for reward in rewards:
            found |= {f"rewards.{reward.name}.{option}": value for option, value in reward.resume_options().items()}
        return found | {"rewards": ", ".join(f"{r.weight:g} x {r.name}" for r in rewards)}

    # Data ------------------------------------------------------------------------------------------------------

    def experience_loader(self, prompts: TreeStore, mix: Mix | None, data: PromptData) -> ExperienceLoader:
        """The loader that the data module trains with."""
        world, rank = num_replicas(self.trainer)
        accumulate = self.trainer.accumulate_grad_batches
        with alike_on_all_ranks():
            self.rollout.check_cut(data.batch_size, accumulate * world, self.splits_groups)
        limit = self.trainer.limit_train_batches
        if limit and not (isinstance(limit, float) and limit == 1.0) and not dry_run(self.trainer):
            raise PostTrainError(
                "--trainer.limit_train_batches (or overfit_batches) cuts a rollout short; lower --data.batch_size "
                "instead"
            )
        loader = ExperienceLoader(
            PromptStream(prompts, data.seed, data.shuffle, mix),
            self.collect,
            StepCutter(accumulate, world, rank, self.layout),
            batch_size=data.batch_size,
            inner_epochs=self.rollout.inner_epochs,
            minibatches=self.rollout.minibatches,
            identity={
                "batch_size": data.batch_size,
                "accumulate": accumulate,
                "seed": data.seed,
                "shuffle": data.shuffle,
                "weights": mix and mix.identity,
            },
            has_gradient=self.has_gradient,
            splits_groups=self.splits_groups,
        )
        self.collector.under_way = lambda: loader.under_way
        return loader

    @property
    def loader(self) -> ExperienceLoader:
        """The loader of the run at hand."""
        loader: Any = self.trainer.train_dataloader
        assert isinstance(loader, ExperienceLoader)
        return loader

    def check_data(self, data: LightningDataModule | None) -> None:
        """Look at what is known before the first step: the columns of rewards, and room for responses.

        Raises:
            PostTrainError: for what would fail later; for given answers of which some are rejected, with rewards
                or with options of sampled ones.
        """
        if not isinstance(data, PromptData):
            if self.must_sample:
                raise PostTrainError(f"{self.must_sample} samples responses and needs prompts: --data PromptData")
            refuse_comparisons(self, data)
            self.rollout.refuse_given()
            self.collector.refuse_rewards()
            return
        if data.val_stores:
            self.collector.refuse_comparing()
        stores, skip = [data.train_store, *data.val_stores.values()], data.on_bad_row == "skip"

        def look() -> None:
            if self.global_rank == 0:  # one decodes every row; the others hear of it
                self.collector.check_rows(stores, skip)

        trainer = attached_trainer(self)
        together(trainer, look) if trainer is not None else look()  # `audit` has none
        self.collector.prepare(stores)

    # Collecting ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, number: int) -> Experience:
        """The experience of rollout `number`, with the policy as it is. Collective."""
        if (restored := self.collector.restored) is not None:
            self.collector.restored = None
            return restored
        begun = time.perf_counter()
        found = self.collector.collect(self.loader.prompts, self.loader.batch_size, number)
        sampled = time.perf_counter()
        stats, rollouts = rollout_stats(found.seen, self.collector.reward_names), list(found.kept)
        stats |= self._prepared(rollouts)
        tokens = float(sum(len(one.tokens) for rollout in found.seen for one in rollout.trajectories))
        stats["rollout/tokens_per_s"] = (tokens, sampled - begun)
        stats["rollout/seconds"] = (sampled - begun, 1.0)
        stats["rollout/scoring_seconds"] = (time.perf_counter() - sampled, 1.0)
        self._unlogged = stats
        return Experience([one.tree for one in rollouts])

    def _prepared(self, rollouts: list[Rollout]) -> Stats:
        prompts, trained = len(rollouts), any(num_targets(one.tree) for one in rollouts)
        found: Any = self.prepare(rollouts)
        if not isinstance(found, dict):
            raise on_all_ranks(
                PostTrainError(
                    f"{type(self).__name__}.prepare returned {type(found).__name__}; let it return a dict with the sum "
                    "and the count of each metric, {} for none"
                )
            )
        wrong = next((name for name, stat in found.items() if not _is_sum_and_count(stat)), None)
        if wrong is not None:
            raise on_all_ranks(
                PostTrainError(
                    f"{type(self).__name__}.prepare returned {found[wrong]!r:.40} for `{wrong}`; let it return the sum "
                    "and the count of each metric, two numbers"
                )
            )
        if trained and not any(num_targets(one.tree) for one in rollouts) and not self._told_nothing_left:
            self._told_nothing_left = True
            if self.global_rank == 0:
                log.warning(
                    "no response is left to train on: %s.prepare left out those to all %d prompts of a rollout, whose "
                    "steps change nothing; look at their scores, and at what prepare keeps",
                    type(self).__name__,
                    prompts,
                )
        return found

    # Lightning's hooks -----------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: TreeBatch, batch_idx: int) -> int | None:
        """Log what was collected with the rollout's first step."""
        first = self.trainer.global_rank == 0  # the sums are over all ranks already
        for name, (total, count) in self._unlogged.items():
            self.track(name, torch.tensor(total * first, dtype=torch.float64), count * first)
        self._unlogged = {}
        return super().on_train_batch_start(batch, batch_idx)

    def on_train_end(self) -> None:
        """Warn if nothing was learnt.

        Raises:
            PostTrainError: if scores are needed, and no response of the run had one.
        """
        self.collector.look_at_signal()

    def on_fit_end(self) -> None:
        """
        Raises:
            PostTrainError: as `on_train_end`, which Lightning leaves out where a resumed run has no step left.
        """
        self.collector.require_scores()

    def setup(self, stage: str) -> None:
        """End the engine of a run that broke off: its weights may be others by now."""
        super().setup(stage)
        self.collector.sampler.end()

    def teardown(self, stage: str) -> None:
        """End the engine."""
        super().teardown(stage)
        self.collector.end()

    # Validation ------------------------------------------------------------------------------------------------

    def validation_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Answer prompts with the most likely tokens, and track what `evaluate` measures; of given responses the
        loss."""
        if not self.collector.samples:
            return super().validation_step(batch, batch_idx, dataloader_idx)
        self.metrics.file = dataloader_idx
        store = self._evaluated()[dataloader_idx]
        prompts = [store[row] for row in batch.example_ids]
        found = self.collector.answer(prompts, 1, self.rollout.sampling(greedy=True))
        for name, (total, count) in self.evaluate(found).items():
            self.track(name, torch.tensor(total, dtype=torch.float64), count)
        return None

    def evaluate(self, rollouts: list[Rollout]) -> Stats:
        """Sums and counts of a validation's metrics, of one greedy response to each of this rank's prompts. The names
        must be the same on all ranks. Default: rewards and lengths; for a method that needs no scores the loss of
        the answers too."""
        if self.trains_unscored:
            self.tracked_terms(collate([one.tree for one in rollouts], self.layout, {}).to(self.device))
        return rollout_stats(rollouts, self.collector.reward_names, grouped=False)

    def _evaluated(self) -> list[TreeStore]:
        """The data sets that are validated or tested on."""
        trainer: Any = self.trainer  # its data module is set by Lightning, unseen by type checkers
        data: PromptData = trainer.datamodule
        stores = data.test_stores if self.trainer.testing else data.val_stores
        return list(stores.values())

    def on_validation_start(self) -> None:
        """Load what answers are judged with; training has it already."""
        if self.collector.samples:
            self.collector.prepare(self._evaluated())
            self.collector.rewards.begin()

    def on_validation_epoch_end(self) -> None:
        """Log; no metrics of a reward that fails on everything."""
        refuse_failing(all_gather_object(self.collector.rewards.tallies, self.trainer))
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        refuse_failing(all_gather_object(self.collector.rewards.tallies, self.trainer))
        super().on_test_epoch_end()

    def on_validation_end(self) -> None:
        """Training may go on within a rollout."""
        if self.collector.samples:
            self.collector.rest()

    def on_test_start(self) -> None:
        """As `on_validation_start`."""
        self.on_validation_start()


def _is_sum_and_count(stat: Any) -> bool:
    return isinstance(stat, (tuple, list)) and len(stat) == 2 and all(isinstance(one, SupportsFloat) for one in stat)
