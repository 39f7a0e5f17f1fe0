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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.data.audit.compared import compared
from lit_posttrain.data.audit.file_audit import FileAudit
from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.files.own_format import in_format
from lit_posttrain.data.files.source import Record, Source
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.formats.conversations import Columns, Format, recognise
from lit_posttrain.data.formats.example import Labelled
from lit_posttrain.data.render.masks import plain_backend
from lit_posttrain.data.render.options import Options, Reader
from lit_posttrain.data.render.overlong import Fitted, fit
from lit_posttrain.data.render.rendered import TrainOn
from lit_posttrain.data.render.trees import Item, TreeMaker, row_hash
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.data.store.writer import TreeStoreWriter
from lit_posttrain.errors import PostTrainError
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import Tree

if TYPE_CHECKING:
    from tokenizers import Encoding

# raised with every change that gives other trees, units, or another audit, for the same input
_VERSION = 31
# chunks of 2,000 rows took 15 % longer: their memory falls out of the processor's cache
_CHUNK_ROWS = 500
_CHUNK_CHARACTERS = 1_000_000
_CHUNKS_AHEAD = 2


@dataclass(frozen=True)
class TokenizeOptions:
    """The options of `ConversationData` that decide which trees are made. max_length: tokens of prompt and response."""

    columns: Columns | None = None
    train_on: TrainOn = "assistant"
    system_prompt: str | None = None
    max_length: int = 2048
    overlong: Literal["drop", "cut", "split"] = "drop"
    on_bad_row: Literal["error", "skip"] = "error"
    whole_text: bool = False
    scored: bool = False

    def prepared(self, source: Source) -> Source:
        """As it is."""
        return source

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
    doubt: str = ""

    @property
    def name(self) -> str:
        return self.shape.name

    def read(self, data: Mapping[str, Any]) -> Labelled:
        row = Row(data)
        example = self.shape.example(row, self.system_prompt)
        return Labelled([example], [{}], unread=row.unread, notes=row.notes)


def build_store(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    options: Options,
    cache_dir: str | None = None,
    format: str | None = None,
) -> tuple[TreeStore, AuditReport]:
    """The trees of all rows of `paths` in order, and the audit; from the cache where it holds them.

    cache_dir: default $LIT_POSTTRAIN_CACHE, or ~/.cache/lit_posttrain/data. format: as in `TreeData`.

    Raises:
        PostTrainError: a source cannot be read, a row cannot be used (unless `on_bad_row` is "skip"), or the chat
            template cannot be trained on.
    """
    found = [(path, options.prepared(source)) for path in paths for source in in_format(find_sources(path), format)]
    sources = [source for _, source in found]
    names = [source.name for source in sources]
    folder = cache_home(cache_dir) / _key(sources, tokenizer, options)
    if not (folder / "audit.json").is_file():
        _Build(sources, tokenizer, options).run(folder)
    audit = AuditReport.from_json((folder / "audit.json").read_text())
    audit.renamed(names, [path for path, _ in found])
    audit.left_out = [source.beside for source in sources if source.beside]
    audit.read_by = format or ""
    return TreeStore(folder, names), audit


def cache_home(cache_dir: str | None) -> Path:
    """The folder of tokenised data."""
    named = cache_dir or os.environ.get("LIT_POSTTRAIN_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "lit_posttrain" / "data"


def _key(sources: Sequence[Source], tokenizer: Tokenizer, options: Options) -> str:
    parts = {
        "version": _VERSION,
        "sources": [source.digest() for source in sources],
        "tokenizer": hashlib.blake2b(plain_backend(tokenizer).to_str().encode()).hexdigest(),
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "options": {"kind": type(options).__name__, **asdict(options)},
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def held_out(store: TreeStore, share: float) -> NDArray[np.bool_]:
    """(n,) True for trees set aside for validation: decided by the hash of the record's content alone, so that a record
    and its duplicates are always on the same side, whatever the files, their order and their number."""
    return store.row_hash < np.uint64(min(int(share * 2.0**64), 2**64 - 1))


class _Build:
    """One pass over the sources into a store."""

    def __init__(self, sources: Sequence[Source], tokenizer: Tokenizer, options: Options) -> None:
        self.sources = sources
        self.maker = TreeMaker([source.name for source in sources], tokenizer, options)
        self.hashes = [array("Q") for _ in sources]
        self.lines = [array("Q") for _ in sources]

    def run(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TreeStoreWriter(folder, [source.name for source in self.sources]) as writer:
            with ThreadPoolExecutor(max_workers=1) as rust:
                under_way: deque[tuple[list[Item], Future[list[Encoding]]]] = deque()
                for chunk in self._chunks():
                    under_way.append((chunk, rust.submit(self.maker.encode, chunk)))
                    if len(under_way) > _CHUNKS_AHEAD:
                        self._write(writer, *under_way.popleft())
                while under_way:
                    self._write(writer, *under_way.popleft())
            found = compared(writer.responses())
            if found is not None and found.all_tied:
                raise PostTrainError(
                    f"{', '.join(f'{audit.name} ({audit.format})' for audit in self.maker.audits)}: {found.one_sided}; "
                    "add pairs of which one side is preferred, or say with --data.label_values what the labels mean"
                )
            report = self.maker.report(writer.columns(), found)
            self._count_duplicates(report.total)
            writer.finish({"audit.json": report.to_json()})

    def _chunks(self) -> Iterator[list[Item]]:
        chunk: list[Item] = []
        characters = 0
        for item in self._items():
            full = len(chunk) >= _CHUNK_ROWS or characters >= _CHUNK_CHARACTERS
            if chunk and (full or item.plain != chunk[0].plain):
                yield chunk
                chunk, characters = [], 0
            chunk.append(item)
            characters += sum(len(rendered.text) for rendered in item.rendered)
        if chunk:
            yield chunk

    def _items(self) -> Iterator[Item]:
        for index, source in enumerate(self.sources):
            for record in source.records(bad=self.maker.skips):
                digest = row_hash(record.data)
                if record.problem is None:
                    self.hashes[index].append(digest)
                    self.lines[index].append(record.line)
                yield from self.maker.items(index, record, digest)

    def _write(self, writer: TreeStoreWriter, chunk: list[Item], encodings: Future[list[Encoding]]) -> None:
        for tree, digest in self.maker.trees(chunk, encodings.result()):
            writer.append(tree, digest)

    def _count_duplicates(self, total: FileAudit) -> None:
        every = np.concatenate([np.array(hashes, dtype=np.uint64) for hashes in self.hashes])
        first = np.zeros(len(every), np.bool_)
        first[np.unique(every, return_index=True)[1]] = True
        ends = np.cumsum([len(hashes) for hashes in self.hashes])[:-1]
        for audit, seen, lines in zip(self.maker.audits, np.split(first, ends), self.lines, strict=True):
            for place in np.flatnonzero(~seen).tolist():
                audit.repeated.add(lines[place])
            audit.duplicates = audit.repeated.count
        total.duplicates = int(np.count_nonzero(~first))
