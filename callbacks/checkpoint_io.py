"""How checkpoint files are written and read: whole or not at all, never unpickling code."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from lit_posttrain.errors import PostTrainError

_SPARE = 1.05  # pickled names and zip headers come on top of the tensors
_GB = 1e9
_ABANDONED_S = 3600.0


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a file beside the checkpoint and then puts it in its place, so that a crash leaves the old one.

    Checks for disk space first; files that killed runs left behind are cleared. Paths with a scheme (s3://...) are
    left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            PostTrainError: when the disk is too full, or refuses the file; what was at `path` before is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(target)
        require_space(target.parent, tensor_bytes(checkpoint), f"a checkpoint ({target.name})")
        part = target.with_name(f".{target.name}.{_own_mark()}.part")
        try:
            torch.save(checkpoint, part)
            _flush_to_disk(part)
            os.replace(part, target)
        except (OSError, RuntimeError) as problem:
            raise PostTrainError(
                f"{target}: could not be written ({_first_line(problem)}); the previous file, if any, is untouched. "
                "Check the disk, then go on from it"
            ) from problem
        finally:
            part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # some file systems do not flush folders
            _flush_to_disk(target.parent)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read tensors and plain values from `path`; `weights_only` is on, whatever is asked.

        Raises:
            PostTrainError: if there is no such file, or it is damaged, or holds anything else.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)
        except FileNotFoundError as problem:
            raise PostTrainError(f"{path}: no such checkpoint; check the path or the run's name") from problem
        except pickle.UnpicklingError as problem:
            raise PostTrainError(
                f"{path}: holds something other than tensors and plain values, or is no checkpoint, and is not "
                f"unpickled ({_first_line(problem)}); use a checkpoint that lit-posttrain wrote"
            ) from problem
        except (OSError, RuntimeError, EOFError, ValueError, LookupError) as problem:
            raise PostTrainError(
                f"{path}: damaged or cut short ({_first_line(problem)}); go on from another checkpoint of the run"
            ) from problem


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
            abandoned = int(number) == os.getpid() or not _alive(int(number))
        else:
            abandoned = time.time() - part.stat().st_mtime > _ABANDONED_S
        if abandoned:
            part.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and belongs to someone else
        return True
    return True


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__
