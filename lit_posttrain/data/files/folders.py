"""The files of a folder that are read, and what else is in it."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from lit_posttrain.data.files.arrow import arrow_rows, parquet_rows
from lit_posttrain.data.files.hf_datasets import saved_rows
from lit_posttrain.data.files.readers import csv_rows, json_rows, jsonl_rows
from lit_posttrain.data.files.source import Source
from lit_posttrain.data.files.splits import split_files
from lit_posttrain.errors import PostTrainError

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
# what lies beside data without being some
_NO_DATA = re.compile(
    r"[._]|(readme|licen[cs]e|notice|citation|changelog)\b|.*\.(md|py|lock)$|" + "|".join(map(re.escape, _ABOUT_DATA)),
    re.IGNORECASE,
)


def file_source(name: str, file: Path) -> Source:
    for suffix, reader in _READERS.items():
        if file.name.lower().endswith(suffix):
            return Source(name, (file,), partial(reader, name, file))
    raise PostTrainError(f"{name}: not a known kind of file; rename or convert it to one of {', '.join(SUFFIXES)}")


def folder_sources(path: str, place: Path) -> list[Source]:
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
    sources = [file_source(str(Path(path) / p.name), p) for p in kept]
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
    return Source(path, tuple(sorted(place.glob("*.arrow"))), lambda: saved_rows(path, place))
