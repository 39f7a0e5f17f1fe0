"""The options that decide how records become trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

from lit_posttrain.data.files.source import Record, Source
from lit_posttrain.data.formats.example import Labelled
from lit_posttrain.data.render.overlong import Fitted
from lit_posttrain.data.render.rendered import TrainOn
from lit_posttrain.types import Tree


class Reader(Protocol):
    """Turns the records of one file into examples; `name` is what the audit calls its columns."""

    @property
    def name(self) -> str: ...
    @property
    def doubt(self) -> str:
        """Evidence in the records read so far against how they were read; empty for none."""
        ...

    def read(self, data: Mapping[str, Any]) -> Labelled:
        """The examples of one record, all with the same prompt, and the labels of their responses."""
        ...


class Options(Protocol):
    """A dataclass of everything that decides which trees are made of files; hashed into the cache's key."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def train_on(self) -> TrainOn: ...
    @property
    def max_length(self) -> int: ...
    @property
    def overlong(self) -> str: ...
    @property
    def on_bad_row(self) -> Literal["error", "skip"]: ...
    @property
    def whole_text(self) -> bool:
        """True if responses keep what the template writes after their last trained token."""
        ...

    @property
    def scored(self) -> bool:
        """True if a reward model reads the conversations, as the chat template renders them."""
        ...

    def prepared(self, source: Source) -> Source:
        """A source whose rows are ready for a reader: several may be joined to one."""
        ...

    def reader(self, record: Record) -> Reader:
        """Choose the reader of a file by its first record."""
        ...

    def fit(self, tree: Tree) -> Fitted:
        """Drop, cut or split a tree that is longer than `max_length`."""
        ...
