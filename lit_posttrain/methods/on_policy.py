"""What on-policy methods share: responses sampled from the policy itself, rewarded, and trained on in steps.

A phase: every rank answers its share of the prompts and rewards its own answers; all trees go to all ranks, so that
everything after that (advantages, the cut into steps, denominators) is the same everywhere and needs no reduction. What
the losses need of the policy at the phase's start and of the reference is computed once, ranks sharing the work.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_posttrain.data.loader import StepCutter
from lit_posttrain.data.memory import MemoryTrees
from lit_posttrain.data.mixing import Mix
from lit_posttrain.data.packing import collate, split_step
from lit_posttrain.data.prompts import PromptData
from lit_posttrain.data.store import TreeStore
from lit_posttrain.errors import PostTrainError
from lit_posttrain.methods.experience import Experience, ExperienceLoader, PromptStream, num_targets
from lit_posttrain.methods.reference import Reference, ReferencedModule
from lit_posttrain.methods.rollouts import Rollout, Stats, judged, phase_stats
from lit_posttrain.methods.schedules import Schedule
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.ops.kl import k1, k3
from lit_posttrain.rewards.base import Reward
from lit_posttrain.rewards.total import RewardSum
from lit_posttrain.rollout.engine import Sampling
from lit_posttrain.trainer_state import from_all_ranks, seed_of
from lit_posttrain.types import PromptRecord, Tree, TreeBatch


@dataclass
class Phases:
    """How a rollout phase is cut into optimizer steps, and how often it is gone through.

    Args:
        group_size: Responses to each prompt.
        inner_epochs: How often the phase's responses are trained on.
        minibatches: Optimizer steps that each of these times is cut into; --data.batch_size prompts are shared by them.
        top_up: How often at most further prompts are answered in place of those whose responses all got the same score
            and so teach nothing (DAPO's dynamic sampling); 0 keeps them.
        rollout_batch: Responses that are decoded together: more are faster, and take more memory.
        mask_truncated: Leave responses that were cut off at their longest length out of the loss; they stay in the mean
            of their group.
    """

    group_size: int = 8
    inner_epochs: int = 1
    minibatches: int = 1
    top_up: int = 0
    rollout_batch: int = 64
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        for name in ("group_size", "inner_epochs", "minibatches", "rollout_batch"):
            if getattr(self, name) < 1:
                raise PostTrainError(f"--model.phases.{name} is {getattr(self, name)}; it must be at least 1")
        if self.top_up < 0:
            raise PostTrainError(f"--model.phases.top_up is {self.top_up}; it must be 0 (off) or more")

    @property
    def steps(self) -> int:
        """Optimizer steps a phase."""
        return self.inner_epochs * self.minibatches


SAMPLING, PHASES = Sampling(), Phases()


class OnPolicyModule(ReferencedModule):
    """Base class of the methods that learn from their own responses.

    referenced: whether the loss or the reward holds the policy near its start; without, there is no reference.
    """

    monitored: ClassVar[tuple[str, Literal["min", "max"]]] = ("val/reward", "max")

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
        if beta < 0:
            raise PostTrainError(f"--model.beta is {beta}; it must be 0 (no reference) or more")
        self.beta, self.kl_coefficient = beta, beta
        self.referenced = beta > 0
        self.sampling, self.phases = sampling, phases
        self.rewards = RewardSum(rewards, reward_timeout)
        self.rollouts: list[Rollout] = []  # of this rank and the phase at hand, for callbacks
        self._saved_experience: Experience | None = None
        self._unlogged: Stats = {}
        self._phase_kl: tuple[float, float] | None = None  # sum and count

    @abstractmethod
    def attach_advantages(self, trees: Sequence[Tree]) -> Stats:
        """Put what the loss needs into every tree's `per_target`; by name sums and counts of what is worth logging."""

    @property
    def method_options(self) -> dict[str, Any]:
        """As the base class has them, and what is rewarded."""
        return super().method_options | {"rewards": ", ".join(f"{r.weight:g} x {r.name}" for r in self.rewards.rewards)}

    @property
    def group_size(self) -> int:
        """Responses to each prompt."""
        return self.phases.group_size

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the policy moves between sampling and the last step on its samples."""
        return self.phases.steps > 1

    def completions(self) -> list[dict[str, Any]]:
        """What was sampled in the phase at hand, a row a response, as `ShowsCompletions` has it."""
        rows = []
        for one in self.rollouts:
            prompt = self.tokenizer.decode(one.tree.prompt.tolist(), skip_special_tokens=True).strip()
            for place, (said, response) in enumerate(zip(one.responses, one.tree.responses, strict=True)):
                row = {"source": one.tree.source, "prompt": prompt, "response": said, "tokens": len(response.tokens)}
                row |= {"truncated": one.truncated[place], "reward": _or_none(response.label)}
                row |= {f"rewards/{name}": _or_none(values[place]) for name, values in one.parts.items()}
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
        self._check_cut(data.batch_size, accumulate * world)
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

    def _check_cut(self, prompts: int, parts: int) -> None:
        minibatches, group = self.phases.minibatches, self.phases.group_size
        if prompts % minibatches:
            raise PostTrainError(
                f"--data.batch_size {prompts} is no multiple of --model.phases.minibatches {minibatches}: the steps of "
                "a phase would have unequal numbers of prompts"
            )
        if prompts // minibatches * group < parts:
            raise PostTrainError(
                f"a step has {prompts // minibatches} prompts x {group} responses for {parts} micro-batches "
                "(--trainer.accumulate_grad_batches x processes): lower those, or raise --data.batch_size"
            )
        if self.trainer.limit_train_batches != 1.0 and self.trainer.limit_train_batches:
            raise PostTrainError(
                "--trainer.limit_train_batches cuts a rollout phase short; lower --data.batch_size instead"
            )

    def check_data(self, data: Any) -> None:
        """Look at what is known before the first step: the columns of rewards, and room for responses.

        Raises:
            PostTrainError: for what would fail later.
        """
        if not isinstance(data, PromptData):
            raise PostTrainError(f"{type(self).__name__} samples responses itself and needs prompts: --data PromptData")
        for store in [data.train_store, *data.val_stores.values()]:
            self._check_prompts(store)
        self.rewards.prepare(self.device)

    def _check_prompts(self, store: TreeStore) -> None:
        self.rewards.check(list(PromptRecord.of(store[0]).columns))
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
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning, unseen by type checkers
        stream = self.loader.prompts
        kept: list[Rollout] = []
        seen: list[Rollout] = []
        for attempt in range(self.phases.top_up + 1):
            rows = stream.take(data.batch_size - len(kept))
            drawn = self._rollouts(stream.store, rows, phase, attempt)
            seen += drawn
            kept += drawn if self.phases.top_up == 0 else [one for one in drawn if one.varied]
            if len(kept) == data.batch_size:
                break
        # what teaches nothing fills the phase where the attempts ran out: its steps keep their size
        dull = [one for one in seen if not one.varied] if self.phases.top_up else []
        kept += dull[: data.batch_size - len(kept)]
        sampled = time.perf_counter()
        trees = [one.tree for one in kept]
        stats = phase_stats(seen, [reward.name for reward in self.rewards.rewards])
        stats |= self._attach_logprobs(trees)
        stats |= self.attach_advantages(trees)
        tokens = float(sum(len(r.tokens) for one in seen for r in one.tree.responses))
        stats["rollout/tokens_per_s"] = (tokens, sampled - begun)
        stats["rollout/seconds"] = (sampled - begun, 1.0)
        stats["rollout/scoring_seconds"] = (time.perf_counter() - sampled, 1.0)
        self.rollouts = kept
        self._unlogged = stats
        if "kl/response" in stats:
            self._phase_kl = stats["kl/response"]
        return Experience(trees, stats)

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
        mine = [store[row] for row in rows[rank::world]]
        sampling = replace(self.sampling, seed=seed_of(phase, attempt, rank))
        answers, own, problem = self._answers(mine, sampling), list[Rollout](), ""
        try:
            own = judged(mine, answers, self.rewards, self.tokenizer, self.phases.mask_truncated)
        except PostTrainError as error:
            problem = str(error)
        found = from_all_ranks((own, problem), trainer)[:world]
        if problems := [
            said for _, said in found if said
        ]:  # everywhere, or the others would wait for the one that failed
            raise PostTrainError(problems[0])
        everyone = [rollouts for rollouts, _ in found]
        return [everyone[place % world][place // world] for place in range(len(rows))]

    def _answers(self, prompts: Sequence[Tree], sampling: Sampling) -> list[Any]:
        engine = self.engine(self.phases.rollout_batch)
        return engine.generate([tree.prompt.tolist() for tree in prompts], self.phases.group_size, sampling)

    def _attach_logprobs(self, trees: Sequence[Tree]) -> Stats:
        """Into the trees: log-probs of the policy as it is (`old`), where it will have moved before they are used, and
        of the reference. The metrics of how far the two are apart."""
        wanted = self.wanted_columns
        for name, values in self.computed(trees, wanted).items():
            begin = 0
            for tree in trees:
                end = begin + num_targets(tree)
                tree.per_target[name] = values[begin:end]
                begin = end
        if not {"old", "reference"} <= wanted:
            return {}  # a loss at the policy that sampled gives them by the way
        ratio = torch.cat([torch.from_numpy(t.per_target["old"] - t.per_target["reference"]).double() for t in trees])
        responses = float(sum(len(tree.responses) for tree in trees))
        return {
            "kl": (float(k3(ratio).sum()), float(len(ratio))),
            "kl/response": (float(k1(ratio).sum()), responses),
        }

    def computed(self, trees: Sequence[Tree], wanted: set[str]) -> dict[str, Any]:
        """By name one number for every target of the trees, in their order, on all ranks: `old` and `reference`."""
        if not wanted:
            return {}
        total = sum(num_targets(tree) for tree in trees)
        precise = np.float64 if self._policy_dtype() == torch.float64 else np.float32
        found = {name: np.zeros(total, precise) for name in wanted}
        cutter, begin = self.loader.cutter, 0
        marked = []
        for tree in trees:
            end = begin + num_targets(tree)
            marked.append(replace(tree, per_target={"place": np.arange(begin, end)}))
            begin = end
        # as many micro-batches as a step has, so that this takes no more memory than a step does
        count = self.phases.minibatches * cutter.accumulate
        parts = split_step(MemoryTrees(trees).lengths, count * cutter.world)
        for number in range(count):
            chosen = parts[number * cutter.world + cutter.rank]
            batch = collate([marked[i] for i in chosen], cutter.layout, {}, chosen).to(self.device)
            with self.trainer.precision_plugin.forward_context():
                values = {name: column.cpu().numpy() for name, column in self.columns(batch, wanted).items()}
            places = batch.per_target["place"].cpu().numpy() if batch.per_target else np.zeros(0, np.int64)
            for where, what in from_all_ranks((places, values), self.trainer):
                for name, numbers in what.items():
                    found[name][where] = numbers
        return found

    def _policy_dtype(self) -> torch.dtype:
        assert self.policy is not None
        return next(self.policy.parameters()).dtype

    def columns(self, batch: TreeBatch, wanted: set[str]) -> dict[str, Tensor]:
        """Of `wanted` what the models say of a batch's targets (N,), without a graph."""
        found: dict[str, Tensor] = {}
        if "old" in wanted:
            with self.still_policy() as policy:
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

    # Validation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer prompts with the most likely tokens, and reward the answers."""
        self._file = f"{dataloader_idx}:"
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # as above
        testing = self.trainer.state.fn == TrainerFn.TESTING
        store = list((data.test_stores if testing else data.val_stores).values())[dataloader_idx]
        prompts = [store[row] for row in batch.tree_rows]
        engine = self.engine(self.phases.rollout_batch)
        greedy = replace(self.sampling, temperature=0.0)
        drawn = engine.generate([tree.prompt.tolist() for tree in prompts], 1, greedy)
        found = judged(prompts, drawn, self.rewards, self.tokenizer, mask_truncated=False)
        for name, (total, count) in phase_stats(found, [reward.name for reward in self.rewards.rewards]).items():
            if name not in ("reward_std", "frac_reward_zero_std"):  # of groups of one
                self.track(name, torch.tensor(total, dtype=torch.float64), count)

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the experience that is not used up, and the coefficient of the KL."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_posttrain"]["kl_coefficient"] = self.kl_coefficient
        under_way = self.loader.under_way
        if under_way is not None:
            checkpoint["experience"] = under_way.dump()

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


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
