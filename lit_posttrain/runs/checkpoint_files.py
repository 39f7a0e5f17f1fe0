"""Files of tensors and plain values: written whole or not at all, read without unpickling code."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.runs.atomic import whole_file

_SPARE = 1.05  # pickled names and zip headers come on top of the tensors
_GB = 1e9


def load_file(path: Path, mmap: bool) -> Any:
    """The content of a file. mmap: leave its tensors on disk until they are used.

    Raises:
        PostTrainError: if there is no such file, or it is damaged, or holds anything but tensors and plain values.
    """
    if path.is_dir():
        raise PostTrainError(f"{path}: a folder; a checkpoint of lit-posttrain is a file, such as runs/NAME/last.ckpt")
    with explained_reading(path):
        # what is no archive cannot be mapped, and torch would not say what it is
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))


@contextlib.contextmanager
def explained_reading(path: Path | str) -> Iterator[None]:
    """Turn the exceptions of reading a checkpoint at `path` into one-line errors."""
    try:
        yield
    except FileNotFoundError as problem:
        raise PostTrainError(f"{path}: no such checkpoint; check the path or the run's name") from problem
    except pickle.UnpicklingError as problem:
        raise PostTrainError(
            f"{path}: holds something other than tensors and plain values, or is no checkpoint, and is not "
            f"unpickled ({first_line(problem)}); use a checkpoint that lit-posttrain wrote"
        ) from problem
    except (OSError, RuntimeError, EOFError, ValueError, LookupError) as problem:
        raise PostTrainError(
            f"{path}: damaged or cut short ({first_line(problem)}); go on from another checkpoint of the run"
        ) from problem


def write_file(content: Any, path: Path) -> None:
    """Replace the file at `path` in one step.

    Raises:
        PostTrainError: if the disk refuses the file; the file that was at `path` is untouched.
    """
    try:
        with whole_file(path, durable=True) as part:
            torch.save(content, part)
    except (OSError, RuntimeError) as problem:
        raise PostTrainError(
            f"{path}: could not be written ({first_line(problem)}); the previous file, if any, is untouched. "
            "Check the disk, then go on from it"
        ) from problem


def require_space(folder: Path, tensors: float, what: str) -> None:
    """Check that `folder` has room for `tensors` bytes.

    Raises:
        PostTrainError: if it has not.
    """
    needed, free = tensors * _SPARE, shutil.disk_usage(folder).free
    if needed > free:
        raise PostTrainError(
            f"too little disk for {what}: {needed / _GB:.2f} GB needed, {free / _GB:.2f} GB free in {folder}; "
            "free some, or choose another folder with --runs"
        )


def tensor_bytes(content: Any) -> int:
    """Bytes of all tensors in nested containers; tensors that share memory are saved, and counted, once."""
    sizes = {}
    for tensor in _tensors(content):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr() or id(tensor)] = storage.nbytes()
    return sum(sizes.values())


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _tensors(value)
