"""Records to token trees: read by their columns, rendered by the template, masked, fitted; counted in an audit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.data.audit.compared import Compared
from lit_posttrain.data.audit.file_audit import FileAudit
from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.example import Example, Labelled
from lit_posttrain.data.render.counted import CountedTemplate
from lit_posttrain.data.render.joining import by_tree, joined
from lit_posttrain.data.render.masks import TokenMask
from lit_posttrain.data.render.options import Options, Reader
from lit_posttrain.data.render.rendered import Rendered
from lit_posttrain.data.render.templates import ConversationTemplate
from lit_posttrain.data.render.used_keys import UsedKeys
from lit_posttrain.data.rows.bad_rows import BadRow, Misread, NothingToLearn
from lit_posttrain.errors import InvalidTemplate, PostTrainError
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import Tree

if TYPE_CHECKING:
    from tokenizers import Encoding

MARKED = "with turns of the assistant that are marked not to be trained on"
CONTINUED = "with a prompt that ends with the assistant's words, which the response continues"


def row_hash(data: dict[str, Any]) -> int:
    """A 64-bit hash of a record's content, independent of the order of its columns and of its place."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@dataclass(slots=True)
class Item:
    """The texts of one tree, and the place of its record. file: the source's index. record: `Tree.record`. marked: some
    of its turns are marked as not to be trained on."""

    file: int
    line: int
    hash: int
    rendered: list[Rendered]
    labels: list[dict[str, float]]
    record: str = ""
    marked: bool = False

    @property
    def plain(self) -> bool:
        """True if the tokenizer adds its special tokens, which a chat template writes itself."""
        return self.rendered[0].plain


class TreeMaker:
    """Makes trees of records and keeps an audit per source.

    The first record of a source decides how all of it is read: call `look` with it before records are shuffled.
    """

    def __init__(self, names: Sequence[str], tokenizer: Tokenizer, options: Options) -> None:
        """names: of the sources, for messages."""
        self.options, self.tokenizer = options, tokenizer
        self.audits = [FileAudit(name) for name in names]
        self.template = ConversationTemplate(tokenizer, options.train_on, scored=options.scored)
        self.mask = TokenMask(tokenizer)
        self.keys = UsedKeys(tokenizer, options.train_on, options.scored)
        self._counted = CountedTemplate(self.template)
        self._readers: list[Reader | None] = [None] * len(names)

    @property
    def skips(self) -> bool:
        """True if bad rows are counted instead of ending the run."""
        return self.options.on_bad_row == "skip"

    def look(self, file: int, record: Record) -> Reader:
        """The reader of a source's records."""
        reader = self._readers[file]
        if reader is None:
            reader = self._readers[file] = self.options.reader(record)
            self.audits[file].format = reader.name
        return reader

    def items(self, file: int, record: Record, digest: int = 0) -> Iterator[Item]:
        """The texts of a record's trees; none for a row that is dropped. digest: hash of the record's content.

        Raises:
            PostTrainError: for a bad row, unless such rows are skipped.
        """
        audit = self.audits[file]
        audit.rows += 1
        self._counted.next_row()
        try:
            if record.problem is not None:
                raise record.problem
            labelled = self.look(file, record).read(record.data)
            texts = [self._render(example, record, audit) for example in labelled.examples]
            self._note(labelled, record.line, audit)
            for rendered in by_tree(texts):
                marked = any(example.untrained for example in labelled.examples)
                yield Item(file, record.line, digest, rendered, labelled.labels, labelled.record, marked)
        except BadRow as error:
            self._bad(file, record.line, error)

    def _note(self, labelled: Labelled, line: int, audit: FileAudit) -> None:
        """Count unused columns of a record, and how it was read."""
        notes = list(labelled.notes)
        for example in labelled.examples:
            marked = any(example.messages[turn]["role"] == "assistant" for turn in example.untrained)
            notes += [MARKED] * marked + [CONTINUED] * bool(example.continued)
        audit.leave(labelled.unread, line)
        audit.note(notes, line)
        self.keys.look(labelled.examples, line, audit)

    def encode(self, chunk: Sequence[Item]) -> list[Encoding]:
        """The encodings of all texts of the items, in order. The items must be all plain or all not."""
        return self.mask.encode([rendered.text for item in chunk for rendered in item.rendered], chunk[0].plain)

    def trees(self, chunk: Sequence[Item], encodings: Sequence[Encoding]) -> Iterator[tuple[Tree, int]]:
        """Trees with their records' digests.

        Raises:
            PostTrainError: as `items`.
        """
        encoded = iter(encodings)
        for item in chunk:
            audit = self.audits[item.file]
            own = [(rendered, next(encoded)) for rendered in item.rendered]
            try:
                made = self._made(item, own)
            except BadRow as error:
                self._bad(item.file, item.line, error)
                continue
            audit.rewritten += len(made) > 1
            for tree in made:
                tree.file, tree.line, tree.record = audit.name, item.line, item.record
                fitted = self.options.fit(tree)
                if fitted.dropped:
                    audit.drop(fitted.dropped, item.line)
                audit.cut += fitted.cut
                audit.split += fitted.split
                audit.empty_pieces += fitted.empty_pieces
                for piece in fitted.trees:
                    yield piece, item.hash

    def _made(self, item: Item, own: Sequence[tuple[Rendered, Encoding]]) -> list[Tree]:
        """The trees of an item's texts: one of all of them, or several of a single text."""
        made = [self.mask.trees(rendered, encoding, self.options.whole_text) for rendered, encoding in own]
        marked = item.marked or self.options.scored
        if len(made) == 1:
            return [joined([tree], item.labels, marked) for tree in made[0]]
        if any(len(trees) != 1 for trees in made):
            raise BadRow(
                "token boundary",
                "a response of several turns whose prompts and answers share tokens; cut the response to one turn",
            )
        return [joined([trees[0] for trees in made], item.labels, marked)]

    def _render(self, example: Example, record: Record, audit: FileAudit) -> list[Rendered]:
        try:
            texts = self._counted.render(example, record.line, audit)
        except InvalidTemplate:
            raise
        except PostTrainError as error:
            raise PostTrainError(f"{record.file}:{record.line}: {error}") from error
        for rendered in texts:
            try:
                rendered.text.encode()
            except UnicodeEncodeError as error:
                raise BadRow("not Unicode", "the text holds half of a surrogate pair; mend it") from error
        return texts

    def _bad(self, file: int, line: int, error: BadRow) -> None:
        audit = self.audits[file]
        if isinstance(error, Misread):
            raise PostTrainError(f"{audit.name}:{line}: {error}") from error
        if not self.skips and not isinstance(error, NothingToLearn):
            raise PostTrainError(
                f"{audit.name}:{line}: {error} (or drop such rows with --data.on_bad_row skip)"
            ) from error
        audit.drop(error.reason, line)

    def report(self, columns: Mapping[str, NDArray[Any]], comparisons: Compared | None) -> AuditReport:
        """The audit of the trees. columns: (n,) each: file_index, input_tokens, tokens, lines.

        Raises:
            PostTrainError: the records of a file show that it was read the wrong way.
        """
        for audit, reader in zip(self.audits, self._readers, strict=True):
            if reader is not None and reader.doubt:
                raise PostTrainError(f"{audit.name}: {reader.doubt}")
        total = FileAudit.total(self.audits)
        for index, audit in [*enumerate(self.audits), (-1, total)]:
            mine = columns["file_index"] == index if index >= 0 else np.ones(len(columns["lines"]), np.bool_)
            audit.measure(*(columns[name][mine] for name in ("input_tokens", "tokens", "lines")))
        total.longest = []
        return AuditReport(
            files=self.audits,
            total=total,
            train_on=self.options.train_on,
            max_length=self.options.max_length,
            overlong=self.options.overlong,
            chat_template=self.template.has_template,
            dated_template=self.template.dated,
            remedy=self.template.remedy,
            own_prompt=shorten(self.template.own_prompt, 60),
            own_prompt_tokens=len(self.mask.backend.encode(self.template.own_prompt, add_special_tokens=False).ids),
            pad_is_eos=self.tokenizer.pad_token_id is not None
            and self.tokenizer.pad_token_id == self.tokenizer.eos_token_id,
            eos=self.tokenizer.eos_token or "",
            ends=dict(self.mask.ends),
            compared=comparisons,
        )
