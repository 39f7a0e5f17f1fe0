"""What callbacks ask of a method, its components, a batch and a data module. They know these protocols, never the
classes behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_posttrain.data.modules.prompt_files import SourcedPrompt
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import PromptRecord, RewardedResponses, TreeBatch


@runtime_checkable
class GeneratesText(Protocol):
    """A method whose policy can answer."""

    def generate_text(
        self,
        conversations: Sequence[PromptRecord | Sequence[Mapping[str, Any]]],
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[str]:
        """One answer to each conversation. With several processes it is called on all."""
        ...

    def check_prompts(self, prompts: Sequence[SourcedPrompt]) -> None:
        """Refuse prompts that it could not answer.

        Raises:
            PostTrainError: naming the first one.
        """
        ...


@runtime_checkable
class NamesRows(Protocol):
    """A data module that knows where a row of the training data came from."""

    def row_sources(self, rows: list[int]) -> list[str]:
        """`file:line` of each row; `rows` are `TreeBatch.example_ids`."""
        ...


@runtime_checkable
class NamesPredictedRows(Protocol):
    """The same for the data sets that are predicted on."""

    def predicted_row_sources(self, rows: list[int], dataloader_idx: int) -> list[str]:
        """`file:line` of each row; dataloader_idx: which data set they are of."""
        ...


@runtime_checkable
class CountsEvaluatedRows(Protocol):
    """A data module that says what a stage works on."""

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
    """A data module that knows what its validation sets are called, and what stands in them."""

    @property
    def val_names(self) -> list[str]: ...

    def evaluated_texts(self, row: int, dataloader_idx: int) -> tuple[str, str, list[str]]:
        """`file:line`, prompt and responses of a row of a validation set."""
        ...


@runtime_checkable
class MeasuresGradient(Protocol):
    """A method that knows the norm of the gradient which the next optimizer step will take."""

    def gradient_norm(self) -> Tensor:
        """Scalar, on the device, over all shards; before clipping. Computed once a step, however often it is asked."""
        ...


@runtime_checkable
class HasTokenizer(Protocol):
    """A method that knows its tokenizer, and the longest sequence that its model takes."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def max_positions(self) -> int | None: ...


@runtime_checkable
class MeasuresKL(Protocol):
    """A reference that knows how far the policy is from it. scores_fresh_text: True if it can score what is not in the
    data."""

    @property
    def scores_fresh_text(self) -> bool: ...

    def sampled_log_ratios(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int) -> list[Tensor]:
        """(tokens,) log pi - log pi_ref (nats) of one fresh response of the policy to each prompt (token ids)."""
        ...


@runtime_checkable
class WeighsKL(Protocol):
    """The weight of the KL from the reference in a method's loss or reward. used: True if the method has a KL.
    coefficient: the weight, to be changed as training goes on; the method saves it."""

    coefficient: float
    used: bool

    def take(self) -> tuple[float, float] | None:
        """Once a rollout, as soon as it is known: the mean KL of its responses (k1, nats a response) and their number,
        over all ranks; else None."""
        ...


@runtime_checkable
class KeepsFrozenModels(Protocol):
    """A method with models beside the one that is trained. frozen_weights: by what they are, the parameters that are
    held in memory."""

    @property
    def frozen_weights(self) -> Mapping[str, Sequence[Tensor]]: ...


@runtime_checkable
class TrainsInPhases(Protocol):
    """A method that samples what it trains on: an epoch of the Trainer is a rollout phase. group_size: responses to
    each prompt. engine_name: what draws them, hf where it is the method's own model."""

    @property
    def group_size(self) -> int: ...
    @property
    def engine_name(self) -> str: ...


@runtime_checkable
class TellsOfSampling(Protocol):
    """A method that says how far it is while it samples. sampling_progress: what it calls then, see
    `rollout.engine.SamplingProgress`."""

    sampling_progress: Callable[[int, int, int, int], None] | None


@runtime_checkable
class GoesOn(Protocol):
    """A logger that a resumed run continues."""

    def goes_on_from(self, step: int) -> None:
        """The run is resumed after so many optimizer steps."""
        ...


@runtime_checkable
class FinishesSteps(Protocol):
    """A method that logs an optimizer step before it is saved, and remembers what a checkpoint says of it."""

    def finish_step(self) -> None:
        """Called when an optimizer step has ended, as often as one likes."""
        ...


@runtime_checkable
class AwaitsRewards(Protocol):
    """A method that samples responses and has them rewarded. awaits_rewards: True if it does so now. given_up: the
    signal that ended that, to be raised as `RunStopped` again where a reward has caught it."""

    awaits_rewards: bool
    given_up: int | None


@runtime_checkable
class StartsProcesses(Protocol):
    """A method whose rewards may start processes."""

    def end_processes(self, stuck_only: bool) -> None:
        """End those that still run; stuck_only: what a call has used that was cut short."""
        ...


@runtime_checkable
class ShowsCompletions(TrainsInPhases, Protocol):
    """Such a method, with what it has sampled in the phase at hand. reward_names: of what is rewarded."""

    @property
    def reward_names(self) -> list[str]: ...

    def completions(self) -> list[dict[str, Any]]:
        """A row a response: source, prompt, response, tokens, truncated, reward and rewards/NAME (None for no score),
        and the mean advantage of its tokens."""
        ...


@runtime_checkable
class OffersPrompts(Protocol):
    """A data module with prompts to ask."""

    def example_prompts(self, count: int) -> list[list[int]]:
        """At most `count` prompts (token ids), the same every time."""
        ...


@runtime_checkable
class SyncsReference(Protocol):
    """A reference that may follow the policy."""

    def check_sync(self, mix: float) -> None:
        """Raise PostTrainError where it may not."""
        ...

    def sync(self, mix: float) -> None:
        """reference <- mix * policy + (1 - mix) * reference."""
        ...


@runtime_checkable
class HasComponents(Protocol):
    """A method with parts of its own, such as a reference, by name."""

    components: dict[str, Any]


Part = TypeVar("Part")


def part_of(pl_module: LightningModule, protocol: type[Part]) -> Part | None:
    """The method, or the first of its components, that a protocol describes; None if there is none."""
    parts = pl_module.components.values() if isinstance(pl_module, HasComponents) else ()
    return next((part for part in (pl_module, *parts) if isinstance(part, protocol)), None)


class AuditedFile(Protocol):
    """What became of one file, or of all of them together."""

    name: str
    rows: int
    examples: int
    tokens: int
    trained_tokens: int

    @property
    def dropped_count(self) -> int: ...
    @property
    def trained_share(self) -> float: ...


class MixedSource(Protocol):
    """One source in an epoch. of_examples, of_tokens: its shares of the epoch's examples and trained tokens."""

    path: str
    shown: int
    of_examples: float
    of_tokens: float


class Audit(Protocol):
    """The report on a data set. warnings: what a person should look at. mix: where sources are weighted, what each
    gives to an epoch. first_rows: of a stream, how many rows were looked at; 0 where all were. unused: columns that are
    not used, in words."""

    @property
    def files(self) -> Sequence[AuditedFile]: ...
    @property
    def total(self) -> AuditedFile: ...
    @property
    def held_out(self) -> int: ...
    @property
    def first_rows(self) -> int: ...
    @property
    def mix(self) -> Sequence[MixedSource]: ...
    @property
    def warnings(self) -> Sequence[str]: ...
    @property
    def unused(self) -> Sequence[str]: ...


def audit_of(trainer: Trainer) -> Audit | None:
    """The audit of the training data, where the data module has one."""
    audit: Audit | None = getattr(getattr(trainer, "datamodule", None), "audit", None)
    return audit
