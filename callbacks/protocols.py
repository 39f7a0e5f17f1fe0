"""What callbacks ask of a method, a batch and a data module. They know these protocols, never the classes behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer


@runtime_checkable
class GeneratesText(Protocol):
    """A method whose policy can answer."""

    def generate_text(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]], max_new_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """One answer to each conversation. With several processes it is called on all."""
        ...


@runtime_checkable
class NamesRows(Protocol):
    """A data module that knows where a row of the training data came from."""

    def row_sources(self, rows: list[int]) -> list[str]:
        """`file:line` of each row; `rows` are `TreeBatch.tree_rows`."""
        ...


class AuditedFile(Protocol):
    """What became of one file, or of all of them together."""

    name: str
    rows: int
    trees: int
    tokens: int
    trained_tokens: int

    @property
    def dropped_count(self) -> int: ...
    @property
    def trained_share(self) -> float: ...


class Audit(Protocol):
    """The report on a data set."""

    @property
    def files(self) -> Sequence[AuditedFile]: ...
    @property
    def total(self) -> AuditedFile: ...


def audit_of(trainer: Trainer) -> Audit | None:
    """The audit of the training data, where the data module has one."""
    audit: Audit | None = getattr(getattr(trainer, "datamodule", None), "audit", None)
    return audit


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer has stepped on this micro-batch. Lightning steps on an epoch's last one in any case."""
    done = batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches


def logs_step(trainer: Trainer) -> bool:
    """Whether Lightning logs the optimizer step that just ended."""
    loosely: Any = trainer  # the attribute is set by Lightning's logger connector, unseen by type checkers
    return bool(trainer.global_step % loosely.log_every_n_steps == 0)


def dry_run(trainer: Trainer) -> bool:
    """Whether this is Lightning's fast_dev_run, which leaves nothing on disk."""
    loosely: Any = trainer
    return bool(loosely.fast_dev_run)
