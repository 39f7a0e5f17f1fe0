"""Files and folders that appear whole or not at all: written beside their place, then moved there in one step."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from lit_posttrain.runs.signals import alive

_ABANDONED_S = 3600.0


@contextmanager
def whole_file(place: Path, durable: bool = False) -> Iterator[Path]:
    """A path beside `place` to write a file at. At the end of the block the file replaces the one at `place`; if the
    block raises it is removed. Missing folders are made, and scratch files of killed processes are removed.

    durable: wait until the file is on the disk, so that it survives a power cut.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(place)
    part = scratch_file(place)
    try:
        yield part
        if durable:
            _flush_to_disk(part)
        os.replace(part, place)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    if durable:
        with suppress(OSError):  # some file systems do not flush folders
            _flush_to_disk(place.parent)


def write_text(place: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    with whole_file(place) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(place: Path, first_wins: bool = False) -> Iterator[Path]:
    """A new folder beside `place` to fill. At the end of the block it is moved to `place`; if the block raises it is
    removed. first_wins: as in `move_folder`."""
    part = new_folder(place)
    try:
        yield part
        move_folder(part, place, first_wins)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def new_folder(place: Path) -> Path:
    """A new folder beside `place`, for callers that cannot fill it in one block."""
    part = place.with_name(f".{place.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    part.mkdir(parents=True)
    return part


def move_folder(part: Path, place: Path, first_wins: bool) -> None:
    """Move a folder to `place`, where there may be nothing or an empty folder. first_wins: if another process has put
    its folder there first, keep that one; its content is the same."""
    try:
        os.replace(part, place)
    except OSError as error:
        if not first_wins or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def scratch_file(place: Path) -> Path:
    """Where `whole_file` writes before it replaces the file at `place`."""
    return place.with_name(f".{place.name}.{socket.gethostname()}-{os.getpid()}.part")


def _clear_abandoned(place: Path) -> None:
    """Remove scratch files of dead processes for `place`: of this machine by process id, of others by age."""
    host, prefix = socket.gethostname(), f".{place.name}."
    for part in place.parent.glob(f"{escape(prefix)}*.part"):
        owner, _, number = part.name.removeprefix(prefix).removesuffix(".part").rpartition("-")
        with suppress(OSError):  # another process may clear it at the same time
            if owner == host and number.isdigit():
                abandoned = int(number) == os.getpid() or not alive(int(number))
            else:
                abandoned = time.time() - part.stat().st_mtime > _ABANDONED_S
            if abandoned and part.is_file():
                part.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
