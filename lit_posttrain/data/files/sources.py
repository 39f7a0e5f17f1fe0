"""Where records come from: files, folders, the data sets shipped with the package, and data sets on the hub.

Everything is read as a stream; only a `.json` document has its whole text in memory.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import Path

from lit_posttrain.data.files.folders import SUFFIXES, file_source, folder_sources
from lit_posttrain.data.files.hf_datasets import WHAT_TO_GIVE, hub_source
from lit_posttrain.data.files.own_format import in_format
from lit_posttrain.data.files.readers import jsonl_rows
from lit_posttrain.data.files.source import Record, Source
from lit_posttrain.errors import PostTrainError

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.%\[\]:+-]+))?")


def read_records(path: str, format: str | None = None) -> Iterator[Record]:
    """Stream the records of a file, a folder, `builtin:NAME` or a hub data set `owner/name[/config][:split]`. format: a
    function as in `in_format`; rows that it leaves out are not among them."""
    sources = in_format(find_sources(path), format)
    return (record for source in sources for record in source.records() if record.problem is None)


def find_sources(path: str, streaming: bool = False) -> list[Source]:
    """The sources at `path`: one, or one per file of a folder. streaming: read a hub data set over the network instead
    of storing it first; files are always read as streams.

    Raises:
        PostTrainError: nothing there, or nothing readable; the message names files with a similar name.
    """
    found = local_sources(path)
    if found is not None:
        return found
    hub = _HUB_NAME.fullmatch(path)
    assert hub is not None  # or `local_sources` had refused it
    return [hub_source(path, hub["name"], hub["config"], hub["split"] or "train", streaming)]


def local_sources(path: str) -> list[Source] | None:
    """As `find_sources`, without asking the hub: None if the name may be a data set there."""
    if path.startswith("builtin:"):
        return [_builtin(path)]
    place = Path(path).expanduser()
    if place.is_dir():
        return folder_sources(path, place)
    if place.is_file():
        return [file_source(path, place)]
    hub = _HUB_NAME.fullmatch(path)
    similar = _similar(place)
    # a slip in a local path is no reason to ask the hub, which takes half a minute to fail without a network
    if hub and not similar and not path.startswith(".") and not path.endswith(SUFFIXES):
        return None
    where = "" if Path(path).is_absolute() else f" (looked in {Path.cwd()})"
    raise PostTrainError(f"{path}: no such file, folder or hub data set{where}{similar or WHAT_TO_GIVE}")


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
