"""Checkpoints, in one file or in shards.

Where the processes of a sharded run keep their own shards (`--trainer.strategy.save_distributed_checkpoint true`) a
checkpoint is a small file that names a folder beside it, with a file of shards for each process:

    last.ckpt                       everything but the shards, and the name of their folder
    last.ckpt.shards-0/rank-0.pt    the shards of the first process

The next save writes another folder (`...-1`) and then replaces last.ckpt, so last.ckpt is a complete checkpoint at any
moment. Shards are slices along a tensor's first dimension, which any number of processes can read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.checkpoint_files import load_file, write_file

_FOLDER = "lit_posttrain_shards"  # key in a checkpoint: folder, number of ranks, and the save they belong to
_NUMBER = "lit_posttrain_shard"  # only key of a placeholder for a tensor: its index among the shards


class Shards:
    """A tensor that was saved in slices along its first dimension."""

    def __init__(self, slices: Sequence[Tensor]) -> None:
        self.slices = slices
        self.shape = torch.Size([sum(len(part) for part in slices), *slices[0].shape[1:]])

    def rows(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last` (exclusive) of the whole tensor; the others are not read."""
        found, start = [self.slices[0][:0]], 0
        for part in self.slices:
            found.append(part[max(first - start, 0) : max(last - start, 0)])
            start += len(part)
        return torch.cat(found)

    @cached_property
    def whole(self) -> Tensor:
        """The tensor."""
        return torch.cat(list(self.slices))


def mapped(content: Any, change: Callable[[Any], Any]) -> Any:
    """Nested dicts, lists and tuples with `change` applied to every leaf, once per object: a tensor that occurs several
    times stays one."""
    changed: dict[int, Any] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping) and set(value) != {_NUMBER}:
            return {key: walk(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)([walk(inner) for inner in value])
        if id(value) not in changed:
            changed[id(value)] = change(value)
        return changed[id(value)]

    return walk(content)


# Reading -----------------------------------------------------------------------------------------------------------


def read(path: Path, mmap: bool = True) -> dict[str, Any]:
    """A checkpoint, with `Shards` for the tensors that were saved in shards. mmap: leave tensors on disk until they are
    used; those in shards are left there in any case.

    Raises:
        PostTrainError: if there is no such file, or it is damaged, or holds anything but tensors and plain values.
    """
    content = load_file(path, mmap)
    if not isinstance(content, dict):
        raise PostTrainError(f"{path}: not a checkpoint; use one that lit-posttrain wrote")
    about = content.pop(_FOLDER, None)
    if about is None:
        return content
    files = [path.with_name(about["folder"]) / _file_name(rank) for rank in range(about["ranks"])]
    if lacking := [file for file in files if not file.exists()]:
        raise PostTrainError(
            f"{path}: {lacking[0]} does not exist and holds some of its weights; a sharded checkpoint is a file and "
            f"the folder {about['folder']} beside it, copy or move both"
        )
    found = [load_file(file, mmap=True) for file in files]
    if any(shards["save"] != about["save"] for shards in found):
        raise PostTrainError(f"{path}: {about['folder']} belongs to another save; if the run is going on, try again")
    tensors = [Shards(slices) for slices in zip(*(shards["shards"] for shards in found), strict=True)]
    opened: dict[str, Any] = mapped(content, lambda v: tensors[v[_NUMBER]] if isinstance(v, dict) else v)
    return opened


def read_whole(path: Path, mmap: bool = True) -> dict[str, Any]:
    """As `read`, with shards put together."""
    whole: dict[str, Any] = mapped(read(path, mmap), lambda v: v.whole if isinstance(v, Shards) else v)
    return whole


# Writing -----------------------------------------------------------------------------------------------------------


def write_whole(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint as one file.

    Raises:
        PostTrainError: as `write_file`.
    """
    write_file(content, path)
    _remove_folders(path)


def new_folder(path: Path) -> str:
    """The name of an empty folder for the next shards of the checkpoint at `path`, not the folder that it uses now.

    Raises:
        PostTrainError: if the disk refuses it.
    """
    try:
        used = load_file(path, mmap=True)[_FOLDER]["folder"]
    except (PostTrainError, LookupError, TypeError):  # there is none, or none with shards
        used = None
    name = next(name for name in _folder_names(path) if name != used)
    shutil.rmtree(path.with_name(name), ignore_errors=True)
    return name


def write_shards(shards: Sequence[Tensor], path: Path, folder: str, rank: int, save: str) -> None:
    """Write the shards of one process into a `new_folder`. save: a unique word for this save, the same on all ranks.

    Raises:
        PostTrainError: as `write_file`.
    """
    write_file({"save": save, "shards": list(shards)}, path.with_name(folder) / _file_name(rank))


def write_index(content: Mapping[str, Any], path: Path, folder: str, ranks: int, save: str) -> None:
    """Replace the checkpoint at `path` by one whose shards all ranks have written.

    Raises:
        PostTrainError: as `write_file`.
    """
    write_file({**content, _FOLDER: {"folder": folder, "ranks": ranks, "save": save}}, path)
    _remove_folders(path, keep=folder)


def place_of(number: int) -> dict[str, int]:
    """The placeholder for the tensor with this index among the shards."""
    return {_NUMBER: number}


def remove(path: Path) -> None:
    """Remove a checkpoint and its shards."""
    path.unlink(missing_ok=True)
    _remove_folders(path)


def bytes_on_disk(path: Path) -> int:
    """Bytes of the checkpoint at `path` with its shards; 0 if there is none."""
    files = [path, *(file for name in _folder_names(path) for file in path.with_name(name).glob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def _folder_names(path: Path) -> list[str]:
    return [f"{path.name}.shards-{number}" for number in (0, 1)]


def _file_name(rank: int) -> str:
    return f"rank-{rank}.pt"


def _remove_folders(path: Path, keep: str | None = None) -> None:
    for name in _folder_names(path):
        if name != keep:
            shutil.rmtree(path.with_name(name), ignore_errors=True)
