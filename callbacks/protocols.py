"""The protocols by which callbacks use methods, their components and data modules: never by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from lightning.pytorch import LightningModule
from torch import Tensor

from lit_posttrain.data.modules.prompt_files import SourcedPrompt
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import PromptRecord, RewardedResponses, TreeBatch


@runtime_checkable
class GeneratesText(Protocol):
    """A method whose policy generates text."""

    def generate_text(
        self,
        conversations: Sequence[PromptRecord | Sequence[Mapping[str, Any]]],
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[str]:
        """One answer per conversation. Collective."""
        ...

    def check_prompts(self, prompts: Sequence[SourcedPrompt]) -> None:
        """Refuse prompts that it could not answer.

        Raises:
            PostTrainError: naming the first one.
        """
        ...


@runtime_checkable
class NamesRows(Protocol):
    """A data module that knows the source of its training rows."""

    def row_sources(self, rows: list[int]) -> list[str]:
        """`file:line` of each row; `rows` are `TreeBatch.example_ids`."""
        ...


@runtime_checkable
class NamesPredictedRows(Protocol):
    """A data module that knows the source of the rows of `predict`."""

    def predicted_row_sources(self, rows: list[int], dataloader_idx: int) -> list[str]:
        """`file:line` of each row; dataloader_idx: index of their data set."""
        ...


@runtime_checkable
class CountsEvaluatedRows(Protocol):
    """A data module that counts the rows of a stage."""

    def evaluated_rows(self, stage: str) -> dict[str, int]:
        """Rows of each data set, by its name; stage: validate, test or predict."""
        ...


@runtime_checkable
class RewardsResponses(Protocol):
    """A method whose `validation_step` returns the rewards of responses."""

    def rewarded(self, batch: TreeBatch) -> RewardedResponses:
        """What `validation_step` returns."""
        ...


@runtime_checkable
class ShowsEvaluatedRows(Protocol):
    """A data module with named validation sets and the texts of their rows."""

    @property
    def val_names(self) -> list[str]: ...

    def evaluated_texts(self, row: int, dataloader_idx: int) -> tuple[str, str, list[str]]:
        """`file:line`, prompt and responses of a row of a validation set."""
        ...


@runtime_checkable
class MeasuresGradient(Protocol):
    """A method that computes the gradient's norm."""

    def gradient_norm(self) -> Tensor:
        """Scalar on the device: the norm over all shards before clipping, for the next optimizer step. Computed once
        per step, however often it is called."""
        ...


@runtime_checkable
class HasTokenizer(Protocol):
    """A method with a tokenizer. max_positions: the longest sequence that its model takes; None for any."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def max_positions(self) -> int | None: ...


@runtime_checkable
class MeasuresKL(Protocol):
    """A reference that measures the KL of the policy from it. scores_fresh_text: True if it can score text that is not
    in the data."""

    @property
    def scores_fresh_text(self) -> bool: ...

    def sampled_log_ratios(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int) -> list[Tensor]:
        """Per prompt (token ids): (tokens,) log pi - log pi_ref (nats) of one fresh response of the policy."""
        ...


@runtime_checkable
class WeighsKL(Protocol):
    """The weight of the KL from the reference in a method's loss or reward. used: True if the method has a KL.
    coefficient: the weight, to be changed as training goes on; the method saves it."""

    coefficient: float
    used: bool

    def take(self) -> tuple[float, float] | None:
        """The mean KL of a rollout's responses (k1, nats per response) and their number, over all ranks: once per
        rollout, as soon as it is measured; else None."""
        ...


@runtime_checkable
class KeepsFrozenModels(Protocol):
    """A method with frozen models. frozen_weights: their parameters in memory, by the model's part (`reference`)."""

    @property
    def frozen_weights(self) -> Mapping[str, Sequence[Tensor]]: ...


@runtime_checkable
class TrainsInPhases(Protocol):
    """A method that can sample its own responses. samples: True if it does so in this run: an epoch of the Trainer is
    then a rollout phase. group_size: responses per prompt. engine_name: what draws them, `hf` for the method's own
    model."""

    @property
    def samples(self) -> bool: ...
    @property
    def group_size(self) -> int: ...
    @property
    def engine_name(self) -> str: ...


@runtime_checkable
class TellsOfSampling(Protocol):
    """A method that reports its progress while it samples. sampling_progress: what it calls, see
    `rollout.engine.SamplingProgress`."""

    sampling_progress: Callable[[int, int, int, int], None] | None


@runtime_checkable
class GoesOn(Protocol):
    """A logger that a resumed run continues."""

    def goes_on_from(self, step: int) -> None:
        """Called when the run is resumed after `step` optimizer steps."""
        ...


@runtime_checkable
class FinishesSteps(Protocol):
    """A method that logs an optimizer step before it is saved, and remembers its state for checkpoints."""

    def finish_step(self) -> None:
        """Called when an optimizer step has ended, once or more."""
        ...


@runtime_checkable
class AwaitsRewards(Protocol):
    """A method that samples responses and has them rewarded. awaits_rewards: True while it does. given_up: the signal
    that ended it; it is raised as `RunStopped` again if a reward has caught that."""

    awaits_rewards: bool
    given_up: int | None


@runtime_checkable
class StartsProcesses(Protocol):
    """A method whose rewards may start processes."""

    def end_processes(self, stuck_only: bool) -> None:
        """End those that still run. stuck_only: only those of a call that was cut short."""
        ...


@runtime_checkable
class ShowsCompletions(TrainsInPhases, Protocol):
    """Such a method, with the responses of the current phase. reward_names: names of its rewards."""

    @property
    def reward_names(self) -> list[str]: ...

    def completions(self) -> list[dict[str, Any]]:
        """One row per response: source, prompt, response, tokens, truncated, reward and rewards/NAME (None for no
        score), and the mean advantage of its tokens."""
        ...


@runtime_checkable
class OffersPrompts(Protocol):
    """A data module with prompts."""

    def example_prompts(self, count: int) -> list[list[int]]:
        """At most `count` prompts (token ids), the same every time."""
        ...


@runtime_checkable
class SyncsReference(Protocol):
    """A reference that can be moved towards the policy."""

    def check_sync(self, mix: float) -> None:
        """Raise PostTrainError if it cannot."""
        ...

    def sync(self, mix: float) -> None:
        """reference <- mix * policy + (1 - mix) * reference."""
        ...


@runtime_checkable
class HasComponents(Protocol):
    """A method with components, such as a reference, by name."""

    components: dict[str, Any]


Part = TypeVar("Part")


def part_of(pl_module: LightningModule, protocol: type[Part]) -> Part | None:
    """The method itself or its first component that implements a protocol; None if there is none."""
    parts = pl_module.components.values() if isinstance(pl_module, HasComponents) else ()
    return next((part for part in (pl_module, *parts) if isinstance(part, protocol)), None)


Sampling = TypeVar("Sampling", bound=TrainsInPhases)


def sampling_part(pl_module: LightningModule, protocol: type[Sampling]) -> Sampling | None:
    """As `part_of`; None also where the method trains on given responses in this run."""
    found = part_of(pl_module, protocol)
    return found if found is not None and found.samples else None


def sampler_of(pl_module: LightningModule) -> TrainsInPhases | None:
    """The part of a method that samples its responses; None if the method trains on given ones."""
    return sampling_part(pl_module, TrainsInPhases)
