"""Files of tensors and plain values: written whole or not at all, read without unpickling code."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.runs.signals import alive

_ABANDONED_S = 3600.0
_SPARE = 1.05  # pickled names and zip headers come on top of the tensors
_GB = 1e9


def load_file(path: Path, mmap: bool) -> Any:
    """What a file holds. mmap: leave its tensors on disk until they are used.

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
    """Make one-line errors of what may be wrong with a checkpoint at `path`."""
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
    """Put a file in the place of the one at `path`, in one step. What killed processes left of it is cleared.

    Raises:
        PostTrainError: when the disk refuses the file; what was at `path` before is still there.
    """
    part = path.with_name(f".{path.name}.{_own_mark()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path)
        torch.save(content, part)
        _flush_to_disk(part)
        os.replace(part, path)
    except (OSError, RuntimeError) as problem:
        raise PostTrainError(
            f"{path}: could not be written ({first_line(problem)}); the previous file, if any, is untouched. "
            "Check the disk, then go on from it"
        ) from problem
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems do not flush folders
        _flush_to_disk(path.parent)


def require_space(folder: Path, tensors: float, what: str) -> None:
    """Check that `folder` has room for so many bytes of tensors.

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


def _own_mark() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _clear_abandoned(target: Path) -> None:
    """Remove what dead processes left of `target`: on this machine by process id, elsewhere by age."""
    host = socket.gethostname()
    prefix = f".{target.name}."
    for part in target.parent.glob(f"{prefix}*.part"):
        owner, _, number = part.name.removeprefix(prefix).removesuffix(".part").rpartition("-")
        if owner == host and number.isdigit():
            abandoned = int(number) == os.getpid() or not alive(int(number))
        else:
            abandoned = time.time() - part.stat().st_mtime > _ABANDONED_S
        if abandoned:
            part.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
