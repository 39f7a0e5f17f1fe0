"""Data sets of the `datasets` library: on the Hugging Face hub, or saved in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_posttrain.data.files.arrow import arrow_row
from lit_posttrain.data.files.source import Source
from lit_posttrain.errors import PostTrainError
from lit_posttrain.hub import missing_reason

_BATCH_ROWS = 1024
WHAT_TO_GIVE = "; give a path to a file or folder, builtin:NAME, or owner/name of a hub data set"


def hub_source(path: str, name: str, config: str | None, split: str, streaming: bool) -> Source:
    import datasets

    if reason := missing_reason(name, "dataset"):
        raise PostTrainError(f"{path}: no such file, folder or hub data set{WHAT_TO_GIVE} ({reason})")
    try:
        loaded = datasets.load_dataset(name, config, split=split, **({"streaming": True} if streaming else {}))
    except Exception as error:  # the hub's client raises a dozen kinds: offline, missing, gated, wrong split
        reason = " ".join(str(error).split())[:200]
        raise PostTrainError(
            f"{path}: no such file, folder or hub data set{WHAT_TO_GIVE} ({type(error).__name__}: {reason})"
        ) from error
    if streaming:
        return Source(path, (), lambda: _streamed_rows(path, loaded))
    files = tuple(Path(f["filename"]) for f in loaded.cache_files)
    # train[:90%] and train[90%:] are cut from the same files
    return Source(path, files, lambda: _dataset_rows(loaded), part=f"{split} {len(loaded)}")


def _streamed_rows(path: str, loaded: Any) -> Iterator[tuple[int, object]]:
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


def saved_rows(path: str, place: Path) -> Iterator[tuple[int, object]]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(place))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PostTrainError(f"{path}: not readable as a saved data set ({reason}); save it again") from error
    return _dataset_rows(loaded)


def _dataset_rows(loaded: Any) -> Iterator[tuple[int, object]]:
    number = 0
    loaded = loaded.with_format(None)  # a set may be saved as one that shows tensors, or some of its columns
    for batch in loaded.iter(batch_size=_BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, arrow_row(dict(zip(batch, values, strict=True)))
