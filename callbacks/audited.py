"""What callbacks read in a data module's audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightning.pytorch import Trainer


class AuditedFile(Protocol):
    """The counts of one file, or of all files."""

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
    """One weighted source. of_examples, of_tokens: its shares of an epoch's examples and trained tokens."""

    path: str
    shown: int
    of_examples: float
    of_tokens: float


class Audit(Protocol):
    """The report on a data set. warnings: sentences for people. mix: the weighted sources, if there are weights.
    first_rows: rows of a stream that were read for the audit; 0 if all rows were. unused: sentences on columns that are
    not used."""

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
    """The audit of the training data; None if the data module has none."""
    audit: Audit | None = getattr(getattr(trainer, "datamodule", None), "audit", None)
    return audit
