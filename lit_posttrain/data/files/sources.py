"""Where records come from: files, folders, the data sets shipped with the package, and hub data sets.

Everything is read as a stream; only a `.json` document has its text in memory as a whole.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from lit_posttrain.data.files.arrow import arrow_row, arrow_rows, parquet_rows
from lit_posttrain.data.files.readers import csv_rows, json_rows, jsonl_rows
from lit_posttrain.data.files.splits import split_files
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.values import kind
from lit_posttrain.errors import PostTrainError
from lit_posttrain.hub import missing_reason

_READERS = {
    ".jsonl": jsonl_rows,
    ".jsonl.gz": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
}
SUFFIXES = tuple(_READERS)
_ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # what `datasets` notes
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.%\[\]:+-]+))?")
# what lies beside data without being some
_NO_DATA = re.compile(
    r"[._]|(readme|licen[cs]e|notice|citation|changelog)\b|.*\.(md|py|lock)$|" + "|".join(map(re.escape, _ABOUT_DATA)),
    re.IGNORECASE,
)
_BATCH_ROWS = 1024
_WHAT_TO_GIVE = "; give a path to a file or folder, builtin:NAME, or owner/name of a hub data set"


@dataclass(slots=True)
class Record:
    """One row. file: the source as the user named it. line: 1-based; the physical line a row starts on in JSONL and
    CSV, the row's number elsewhere. problem: why nothing could be read here; `data` is empty then."""

    data: dict[str, Any]
    file: str
    line: int
    problem: BadRow | None = None


@dataclass(frozen=True)
class Source:
    """One readable thing: `name` as shown to people, the local files that hold its content, and how to read it.
    beside: what lies in the same folder and is not read, in words. part: which rows of the files are read, where they
    hold more. by: the function that every row comes from, by its import path, see `own_format`."""

    name: str
    files: tuple[Path, ...]
    rows: Callable[[], Iterator[tuple[int, Any]]]
    beside: str = ""
    part: str = ""
    by: str = ""

    def records(self, bad: bool = False) -> Iterator[Record]:
        """Stream the rows. bad: give those that cannot be read too, as records with a `problem`.

        Raises:
            PostTrainError: a row that cannot be read, unless `bad`, a file that cannot be, or no row at all.
        """
        line = 0
        for line, row in self.rows():
            if isinstance(row, dict):
                yield Record(row, self.name, line)
                continue
            problem = row if isinstance(row, BadRow) else _no_object(row)
            if not bad and not isinstance(problem, NothingToLearn):
                raise PostTrainError(f"{self.name}:{line}: {problem}")
            yield Record({}, self.name, line, problem)
        if line == 0:
            raise PostTrainError(f"{self.name}: the file holds no rows; name another file or fill this one")

    def digest(self) -> str:
        """Hash of the content and of the way it is read, independent of names and times."""
        total = hashlib.blake2b(self.part.encode(), digest_size=16)
        for file in self.files:
            total.update("".join(file.suffixes[-2:]).lower().encode())
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "blake2b").digest())
        if not self.files:
            for _, row in self.rows():
                total.update(json.dumps(row, sort_keys=True, default=str).encode())
        return total.hexdigest()


def _no_object(row: Any) -> BadRow:
    what = f"the row is {kind(row)}, not an object with named columns; write one JSON object per row"
    return BadRow("not an object", what)


def read_records(path: str) -> Iterator[Record]:
    """Stream the records of a file, a folder, `builtin:NAME` or a hub data set `owner/name[/config][:split]`."""
    return chain.from_iterable(source.records() for source in find_sources(path))


def find_sources(path: str, streaming: bool = False) -> list[Source]:
    """What `path` stands for: one source, or one per file of a folder. streaming: read a hub data set over the network
    instead of storing it first; files are read as streams in any case.

    Raises:
        PostTrainError: nothing there, or nothing readable; the message names files with a similar name.
    """
    found = local_sources(path)
    if found is not None:
        return found
    hub = _HUB_NAME.fullmatch(path)
    assert hub is not None  # or `local_sources` had refused it
    return [_hub(path, hub["name"], hub["config"], hub["split"] or "train", streaming)]


def local_sources(path: str) -> list[Source] | None:
    """As `find_sources`, without asking the hub: None for what may be the name of a data set there."""
    if path.startswith("builtin:"):
        return [_builtin(path)]
    place = Path(path).expanduser()
    if place.is_dir():
        return _folder(path, place)
    if place.is_file():
        return [_file(path, place)]
    hub = _HUB_NAME.fullmatch(path)
    similar = _similar(place)
    # a slip in a local path is no reason to ask the hub, which takes half a minute to fail without a network
    if hub and not similar and not path.startswith(".") and not path.endswith(SUFFIXES):
        return None
    where = "" if Path(path).is_absolute() else f" (looked in {Path.cwd()})"
    raise PostTrainError(f"{path}: no such file, folder or hub data set{where}{similar or _WHAT_TO_GIVE}")


def _similar(place: Path) -> str:
    siblings = list(place.parent.iterdir()) if place.parent.is_dir() else []
    stems = difflib.get_close_matches(place.stem, [p.stem for p in siblings], n=3)
    close = [p for stem in dict.fromkeys(stems) for p in siblings if p.stem == stem][:3]
    return "; did you mean " + " or ".join(map(str, close)) + "?" if close else ""


def _builtin(path: str) -> Source:
    name = path.removeprefix("builtin:")
    folder = Path(str(resources.files("lit_posttrain.builtin")))
    file = folder / f"{name}.jsonl"
    if not file.is_file():
        known = ", ".join(f"builtin:{p.stem}" for p in sorted(folder.glob("*.jsonl"))) or "none"
        raise PostTrainError(f"{path}: no such built-in data set; there are: {known}")
    return Source(path, (file,), partial(jsonl_rows, path, file))


def _file(name: str, file: Path) -> Source:
    for suffix, reader in _READERS.items():
        if file.name.lower().endswith(suffix):
            return Source(name, (file,), partial(reader, name, file))
    raise PostTrainError(f"{name}: not a known kind of file; rename or convert it to one of {', '.join(SUFFIXES)}")


def _folder(path: str, place: Path) -> list[Source]:
    if (place / "dataset_dict.json").is_file():
        splits = sorted(p.parent.name for p in place.glob("*/state.json"))
        if len(splits) != 1 and "train" not in splits:
            raise PostTrainError(f"{path}: holds the splits {', '.join(splits)}; name one, such as {path}/{splits[0]}")
        chosen = "train" if "train" in splits else splits[0]
        others = ", ".join(split for split in splits if split != chosen)
        beside = f"{path}: the split {chosen} is read" + (f", and {others} not" if others else "")
        return [replace(_saved(path, place / chosen), beside="" if splits == ["train"] else beside)]
    if (place / "state.json").is_file():
        return [_saved(path, place)]
    files = sorted(p for p in place.iterdir() if _readable(p))
    if not files:
        inside = ", ".join(sorted(p.name for p in place.iterdir())[:8]) or "nothing"
        deeper = [p for p in sorted(place.iterdir()) if p.is_dir() and any(map(_readable, p.iterdir()))]
        hint = f"; did you mean {Path(path) / deeper[0].name}?" if deeper else ""
        raise PostTrainError(f"{path}: no {', '.join(SUFFIXES)} file directly in this folder (it holds {inside}){hint}")
    kept, measured = split_files(path, files)
    beside = "; ".join(line for line in (measured, _others(path, place, files)) if line)
    sources = [_file(str(Path(path) / p.name), p) for p in kept]
    return [replace(sources[0], beside=beside), *sources[1:]]


def _others(path: str, place: Path, files: list[Path]) -> str:
    """What else in a folder may be data, in words; empty for nothing."""
    rest = (p for p in sorted(place.iterdir()) if p not in files and not _NO_DATA.match(p.name))
    others = [f"{p.name}/" if p.is_dir() else p.name for p in rest if not p.is_dir() or _holds_files(p)]
    if not others:
        return ""
    listed = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
    return f"{path}: not read: {listed} (folders are not searched; files that can be read are {', '.join(SUFFIXES)})"


def _holds_files(place: Path) -> bool:
    return any(p.is_file() and not _NO_DATA.match(p.name) for p in place.rglob("*"))


def _readable(file: Path) -> bool:
    return file.is_file() and file.name.lower().endswith(SUFFIXES) and file.name not in _ABOUT_DATA


def _saved(path: str, place: Path) -> Source:
    return Source(path, tuple(sorted(place.glob("*.arrow"))), lambda: _saved_rows(path, place))


def _hub(path: str, name: str, config: str | None, split: str, streaming: bool) -> Source:
    import datasets

    if reason := missing_reason(name, "dataset"):
        raise PostTrainError(f"{path}: no such file, folder or hub data set{_WHAT_TO_GIVE} ({reason})")
    try:
        loaded = datasets.load_dataset(name, config, split=split, **({"streaming": True} if streaming else {}))
    except Exception as error:  # the hub's client raises a dozen kinds: offline, missing, gated, wrong split
        reason = " ".join(str(error).split())[:200]
        raise PostTrainError(
            f"{path}: no such file, folder or hub data set{_WHAT_TO_GIVE} ({type(error).__name__}: {reason})"
        ) from error
    if streaming:
        return Source(path, (), lambda: _streamed_rows(path, loaded))
    files = tuple(Path(f["filename"]) for f in loaded.cache_files)
    # train[:90%] and train[90%:] are cut from the same files
    return Source(path, files, lambda: _dataset_rows(loaded), part=f"{split} {len(loaded)}")


def _streamed_rows(path: str, loaded: Any) -> Iterator[tuple[int, Any]]:
    rows = enumerate(loaded, 1)
    number = 0
    while True:
        try:
            number, row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the hub's client raises a dozen kinds
            reason = " ".join(str(error).split())[:200]
            raise PostTrainError(
                f"{path}: not readable after row {number} ({type(error).__name__}: {reason}); resume once it is again"
            ) from error
        yield number, arrow_row(row)


def _saved_rows(path: str, place: Path) -> Iterator[tuple[int, Any]]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(place))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PostTrainError(f"{path}: not readable as a saved data set ({reason}); save it again") from error
    return _dataset_rows(loaded)


def _dataset_rows(loaded: Any) -> Iterator[tuple[int, Any]]:
    number = 0
    loaded = loaded.with_format(None)  # a set may be saved as one that shows tensors, or some of its columns
    for batch in loaded.iter(batch_size=_BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, arrow_row(dict(zip(batch, values, strict=True)))
