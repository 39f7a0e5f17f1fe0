"""What a data module needs of the method and the trainer that it feeds."""

from __future__ import annotations

from typing import Protocol, TypedDict, runtime_checkable

from lit_posttrain.data.store.loader import AuxiliaryRows, Trees
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import RowLayout


@runtime_checkable
class TokenizerOwner(Protocol):
    """What a data module needs of its LightningModule.

    tokenizer: a fast Hugging Face tokenizer, with or without a chat template. max_positions: the longest sequence that
    the model accepts, None for no limit. layout: how trees become rows.
    """

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def max_positions(self) -> int | None: ...
    @property
    def layout(self) -> RowLayout: ...


@runtime_checkable
class NamesLimit(Protocol):
    """A method that knows which of its models `max_positions` is of."""

    @property
    def limited_by(self) -> str:
        """Such as "the model" or "the teacher"."""
        ...


@runtime_checkable
class AsksForRows(TokenizerOwner, Protocol):
    """A method that looks at rows beside those that it trains on."""

    def auxiliary_rows(self, store: Trees, max_length: int) -> dict[str, AuxiliaryRows]:
        """By name one auxiliary row of at most `max_length` tokens for each row of `store`: `TreeBatch.extras`."""
        ...


@runtime_checkable
class LearnsFromSingles(Protocol):
    """A method that learns from single responses that are good or bad, also where none is better than another."""

    @property
    def learns_from_singles(self) -> bool:
        """True."""
        ...


@runtime_checkable
class ChecksRows(Protocol):
    """A method that cannot learn from every row."""

    def check_store(self, store: Trees) -> None:
        """Raise PostTrainError naming a row that the method cannot learn from."""
        ...


class Rank(TypedDict):
    """The number of processes (world), and the index of this one (rank)."""

    world: int
    rank: int


class StepOptions(Rank):
    """What the loaders of training steps take from the trainer and the method."""

    batch_size: int
    accumulate: int
    layout: RowLayout
    limit: int | float
