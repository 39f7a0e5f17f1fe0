"""Files to a `TreeStore` and its audit, cached by content.

The main thread reads and renders (Jinja); a second one tokenises whole chunks in Rust, which lets go of the
interpreter's lock. The cache key is the content of the files, the tokenizer, its template and all options: touching
or moving a file changes nothing, editing it does.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.data.audit import AuditReport, FileAudit
from lit_posttrain.data.formats import Columns, Example, Format, Labelled, recognise
from lit_posttrain.data.masks import TokenMask, plain_backend
from lit_posttrain.data.messages import BadRow, NoPreference
from lit_posttrain.data.overlong import Fitted, fit
from lit_posttrain.data.sources import Record, Source, find_sources
from lit_posttrain.data.store import TreeStore, TreeStoreWriter
from lit_posttrain.data.templates import ConversationTemplate, Rendered, TrainOn
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Response, Role, Tree

# raised with every change that gives other trees for the same input
_VERSION = 3
# chunks of 2,000 rows took 15 % longer: their memory falls out of the processor's cache
_CHUNK_ROWS = 500
_CHUNK_CHARACTERS = 1_000_000
_CHUNKS_AHEAD = 2


class Reader(Protocol):
    """How the records of one file become examples; `name` is what the audit calls its columns."""

    @property
    def name(self) -> str: ...

    def read(self, data: Mapping[str, Any]) -> Labelled:
        """The examples of one record, all with the same prompt, and what their responses are."""
        ...


class Options(Protocol):
    """What decides which trees come out of files; hashed into the cache's key."""

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
        """Whether responses keep what the template writes behind their last trained token."""
        ...

    def reader(self, record: Record) -> Reader:
        """Decide by a file's first record how it is read."""
        ...

    def fit(self, tree: Tree) -> Fitted:
        """What to do with a tree that may be longer than `max_length`."""
        ...


@dataclass(frozen=True)
class TokenizeOptions:
    """What decides which trees come out, see `ConversationData`. max_length: tokens of prompt and response."""

    columns: Columns | None = None
    train_on: TrainOn = "assistant"
    system_prompt: str | None = None
    max_length: int = 2048
    overlong: Literal["drop", "cut", "split"] = "drop"
    on_bad_row: Literal["error", "skip"] = "error"
    whole_text: bool = False

    def reader(self, record: Record) -> Reader:
        """By the columns of conversations."""
        return _Conversations(recognise(record, self.columns), self.system_prompt)

    def fit(self, tree: Tree) -> Fitted:
        """Drop, cut or split."""
        return fit(tree, self.max_length, self.overlong)


@dataclass(frozen=True)
class _Conversations:
    shape: Format
    system_prompt: str | None

    @property
    def name(self) -> str:
        return self.shape.name

    def read(self, data: Mapping[str, Any]) -> Labelled:
        return Labelled([self.shape.example(data, self.system_prompt)], [(Role.SAMPLE, 0.0)])


def build_store(
    paths: Sequence[str], tokenizer: Any, options: Options, cache_dir: str | None = None
) -> tuple[TreeStore, AuditReport]:
    """The trees of all rows of `paths` in order, and the audit; from the cache where it holds them.

    cache_dir: default $LIT_POSTTRAIN_CACHE, or ~/.cache/lit_posttrain/data.

    Raises:
        PostTrainError: a source cannot be read, a row cannot be used (unless `on_bad_row` is "skip"), or the chat
            template cannot be trained on.
    """
    found = [(path, source) for path in paths for source in find_sources(path)]
    sources = [source for _, source in found]
    names = [source.name for source in sources]
    folder = cache_home(cache_dir) / _key(sources, tokenizer, options)
    if not (folder / "audit.json").is_file():
        _Build(sources, tokenizer, options).run(folder)
    audit = AuditReport.from_json((folder / "audit.json").read_text())
    audit.renamed(names, [path for path, _ in found])
    return TreeStore(folder, names), audit


def cache_home(cache_dir: str | None) -> Path:
    """Where tokenised data is kept."""
    named = cache_dir or os.environ.get("LIT_POSTTRAIN_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "lit_posttrain" / "data"


def _key(sources: Sequence[Source], tokenizer: Any, options: Any) -> str:
    parts = {
        "version": _VERSION,
        "sources": [source.digest() for source in sources],
        "tokenizer": hashlib.blake2b(plain_backend(tokenizer).to_str().encode()).hexdigest(),
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "options": {"kind": type(options).__name__, **asdict(options)},
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def row_hash(data: dict[str, Any]) -> int:
    """A 64-bit hash of a record's content, whatever the order of its columns and wherever it stands."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def held_out(store: TreeStore, share: float) -> NDArray[np.bool_]:
    """(n,) which trees are set aside for validation: decided by the record's content alone, so that a record and its
    duplicates are always on the same side, whatever the files, their order and their number."""
    return store.row_hash < np.uint64(min(int(share * 2.0**64), 2**64 - 1))


@dataclass(slots=True)
class _Item:
    file: int
    line: int
    hash: int
    rendered: list[Rendered]
    labels: list[tuple[Role, float]]


@dataclass
class _Build:
    """One pass over the sources into a store."""

    sources: Sequence[Source]
    tokenizer: Any
    options: Options
    audits: list[FileAudit] = field(default_factory=list)

    def run(self, folder: Path) -> None:
        self.audits = [FileAudit(source.name) for source in self.sources]
        self.template = ConversationTemplate(self.tokenizer, self.options.train_on)
        self.mask = TokenMask(self.tokenizer)
        self.hashes = [array("Q") for _ in self.sources]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TreeStoreWriter(folder, [source.name for source in self.sources]) as writer:
            with ThreadPoolExecutor(max_workers=1) as rust:
                under_way: deque[tuple[list[_Item], Future[list[Any]]]] = deque()
                for chunk in self._chunks():
                    texts = [rendered.text for item in chunk for rendered in item.rendered]
                    under_way.append((chunk, rust.submit(self.mask.encode, texts, chunk[0].rendered[0].plain)))
                    if len(under_way) > _CHUNKS_AHEAD:
                        self._write(writer, *under_way.popleft())
                while under_way:
                    self._write(writer, *under_way.popleft())
            report = self._report(writer)
            writer.finish({"audit.json": report.to_json()})

    def _chunks(self) -> Iterator[list[_Item]]:
        chunk: list[_Item] = []
        characters = 0
        for item in self._items():
            full = len(chunk) >= _CHUNK_ROWS or characters >= _CHUNK_CHARACTERS
            if chunk and (full or item.rendered[0].plain != chunk[0].rendered[0].plain):
                yield chunk
                chunk, characters = [], 0
            chunk.append(item)
            characters += sum(len(rendered.text) for rendered in item.rendered)
        if chunk:
            yield chunk

    def _items(self) -> Iterator[_Item]:
        for index, source in enumerate(self.sources):
            reader: Reader | None = None
            audit = self.audits[index]
            for record in source.records():
                if reader is None:
                    reader = self.options.reader(record)
                    audit.format = reader.name
                audit.rows += 1
                digest = row_hash(record.data)
                self.hashes[index].append(digest)
                try:
                    labelled = reader.read(record.data)
                    texts = [self._render(example, record, audit) for example in labelled.examples]
                    for rendered in _by_tree(texts):
                        yield _Item(index, record.line, digest, rendered, labelled.labels)
                except BadRow as error:
                    self._bad(index, record.line, error)

    def _render(self, example: Example, record: Record, audit: FileAudit) -> list[Rendered]:
        template = self.template
        before = template.rewritten, template.unanswered, template.altered
        try:
            texts = template.render(example)
        except PostTrainError as error:
            raise PostTrainError(f"{record.file}:{record.line}: {error}") from error
        audit.rewritten += template.rewritten - before[0]
        audit.unanswered += template.unanswered - before[1]
        if template.altered > before[2]:
            audit.altered.add(record.line)
        if template.holds_control_tokens(example):
            audit.control.add(record.line)
        for rendered in texts:
            try:
                rendered.text.encode()
            except UnicodeEncodeError as error:
                raise BadRow("not Unicode", "the text holds half of a surrogate pair; mend it") from error
        return texts

    def _bad(self, file: int, line: int, error: BadRow) -> None:
        if self.options.on_bad_row == "error" and not isinstance(error, NoPreference):
            raise PostTrainError(
                f"{self.sources[file].name}:{line}: {error} (or drop such rows with --data.on_bad_row skip)"
            ) from error
        self.audits[file].drop(error.reason, line)

    def _write(self, writer: TreeStoreWriter, chunk: list[_Item], encodings: Future[list[Any]]) -> None:
        encoded = iter(encodings.result())
        for item in chunk:
            audit = self.audits[item.file]
            own = [(rendered, next(encoded)) for rendered in item.rendered]
            try:
                whole = self.options.whole_text
                tree = _joined([self.mask.tree(rendered, encoding, whole) for rendered, encoding in own], item.labels)
            except BadRow as error:
                self._bad(item.file, item.line, error)
                continue
            tree.file, tree.line = self.sources[item.file].name, item.line
            fitted = self.options.fit(tree)
            if fitted.dropped:
                audit.drop(fitted.dropped, item.line)
            audit.cut += fitted.cut
            audit.split += fitted.split
            audit.empty_pieces += fitted.empty_pieces
            for piece in fitted.trees:
                writer.append(piece, item.hash)

    def _report(self, writer: TreeStoreWriter) -> AuditReport:
        columns = writer.columns()
        total = _sum(self.audits)
        self._count_duplicates(total)
        for index, audit in [*enumerate(self.audits), (-1, total)]:
            mine = columns["file_index"] == index if index >= 0 else np.ones(len(writer), np.bool_)
            audit.measure(*(columns[name][mine] for name in ("lengths", "counted_tokens", "lines")))
        total.longest = []
        return AuditReport(
            files=self.audits,
            total=total,
            train_on=self.options.train_on,
            max_length=self.options.max_length,
            overlong=self.options.overlong,
            chat_template=self.template.has_template,
            dated_template=self.template.dated,
            pad_is_eos=self.tokenizer.pad_token_id is not None
            and self.tokenizer.pad_token_id == self.tokenizer.eos_token_id,
            eos=self.tokenizer.eos_token or "",
            ends=dict(self.mask.ends),
        )

    def _count_duplicates(self, total: FileAudit) -> None:
        every = np.concatenate([np.array(hashes, dtype=np.uint64) for hashes in self.hashes])
        first = np.zeros(len(every), np.bool_)
        first[np.unique(every, return_index=True)[1]] = True
        for audit, seen in zip(
            self.audits, np.split(first, np.cumsum([len(h) for h in self.hashes])[:-1]), strict=True
        ):
            audit.duplicates = int(np.count_nonzero(~seen))
        total.duplicates = int(np.count_nonzero(~first))


def _by_tree(texts: list[list[Rendered]]) -> list[list[Rendered]]:
    """The texts of each tree: one tree of all examples, or, of a single example that is trained turn by turn, one a
    turn."""
    if len(texts) == 1:
        return [[rendered] for rendered in texts[0]]
    if any(len(rendered) != 1 for rendered in texts):
        raise BadRow(
            "rewritten turns",
            "the chat template rewrites earlier turns, so that a response of several turns is no single text; cut the "
            "response to one turn",
        )
    return [[rendered[0] for rendered in texts]]


def _joined(trees: list[Tree], labels: list[tuple[Role, float]]) -> Tree:
    """Trees of one response each as one tree.

    Raises:
        BadRow: the tokens of their prompts differ.
    """
    first = trees[0]
    if any(not np.array_equal(tree.prompt, first.prompt) for tree in trees[1:]):
        raise BadRow("token boundary", "the prompt has other tokens before one response than before another; mend it")
    said = [tree.responses[0] for tree in trees]
    if len(said) > 1 and all(np.array_equal(r.tokens, said[0].tokens) for r in said):
        raise NoPreference("equal sides", "all responses have the same tokens: no preference; remove the row")
    responses = [Response(r.tokens, r.counted, *label) for r, label in zip(said, labels, strict=True)]
    return Tree(first.prompt, responses, first.prompt_counted)


def _sum(audits: Sequence[FileAudit]) -> FileAudit:
    """All files together; places stay with their files."""
    total = FileAudit("total")
    for audit in audits:
        for name in ("rows", "cut", "split", "empty_pieces", "unanswered", "rewritten"):
            setattr(total, name, getattr(total, name) + getattr(audit, name))
        for reason, tally in audit.dropped.items():
            total.dropped.setdefault(reason, type(tally)()).count += tally.count
        total.control.count += audit.control.count
        total.altered.count += audit.altered.count
    return total
