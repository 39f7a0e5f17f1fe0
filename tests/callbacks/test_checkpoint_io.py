"""Checkpoint files: whole or not at all, room first, no code in them."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_posttrain.callbacks import AtomicCheckpointIO
from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.checkpoint_files import tensor_bytes

Usage = namedtuple("Usage", "total used free")


class Interrupts:
    """Ctrl-C while the file is being written: pickling it raises."""

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


class Runs:
    """Code in a checkpoint."""

    def __reduce__(self) -> Any:
        return os.getcwd, ()


@pytest.fixture
def small_files() -> Iterator[None]:
    """The operating system refuses files over 100 kB, as a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def saved(folder: Path) -> Path:
    path = folder / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.arange(5.0)}, path)
    return path


def test_round_trip_in_a_new_folder(tmp_path: Path) -> None:
    path = saved(tmp_path / "new")
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["w"], torch.arange(5.0))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("spoiler", [Interrupts(), lambda: None])
def test_failure_leaves_the_old_file(tmp_path: Path, spoiler: Any) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises((KeyboardInterrupt, Exception)):
        AtomicCheckpointIO().save_checkpoint({"w": torch.ones(1000), "x": spoiler}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.usefixtures("small_files")
def test_disk_that_refuses(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(
        PostTrainError, match=r"last\.ckpt: could not be written .* previous file, if any, is untouched"
    ):
        AtomicCheckpointIO().save_checkpoint({"w": torch.ones(1_000_000)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_room_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 4_100_000))
    AtomicCheckpointIO().save_checkpoint({"w": torch.ones(950_000)}, tmp_path / "last.ckpt")
    with pytest.raises(
        PostTrainError, match=r"too little disk for a checkpoint .*0\.00 GB needed, 0\.00 GB free in"
    ) as e:
        AtomicCheckpointIO().save_checkpoint({"w": torch.ones(1_000_000)}, tmp_path / "last.ckpt")
    assert "\n" not in str(e.value)


def test_tensor_bytes_is_what_a_file_takes(tmp_path: Path) -> None:
    """Tied weights once, views with the whole memory behind them, as torch.save does it."""
    table = torch.ones(1000, 10)
    content = {
        "a": table,
        "tied": table,
        "view": [torch.ones(50_000)[:3]],
        "state": {0: (torch.ones(7, dtype=torch.int8),)},
    }
    torch.save(content, tmp_path / "x")
    assert tensor_bytes(content) == 40_000 + 200_000 + 7
    assert tensor_bytes(content) == pytest.approx((tmp_path / "x").stat().st_size, rel=0.02)


def test_abandoned_files_are_cleared(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    dead = tmp_path / f".last.ckpt.{host}-{ended.pid}.part"
    alive = tmp_path / f".last.ckpt.{host}-{os.getppid()}.part"
    elsewhere = tmp_path / ".last.ckpt.other-node-7.part"
    long_ago = tmp_path / ".last.ckpt.other-node-8.part"
    best = tmp_path / f".best.ckpt.{host}-{ended.pid}.part"
    for file in (dead, alive, elsewhere, long_ago, best):
        file.write_bytes(b"x")
    os.utime(long_ago, (0, 0))
    saved(tmp_path)
    assert {p for p in tmp_path.iterdir() if p.suffix == ".part"} == {alive, elsewhere, best}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "no such checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "damaged or cut short"),
        (lambda path: path.write_bytes(b""), "damaged or cut short"),
        (lambda path: path.write_bytes(b"hello there"), "damaged or cut short"),
        (lambda path: path.write_text("<html>not found</html>"), "is no checkpoint"),
        (lambda path: torch.save({"x": Runs()}, path), "something other than tensors"),
    ],
)
def test_unreadable_files_are_one_line(tmp_path: Path, spoil: Any, words: str) -> None:
    path = saved(tmp_path)
    spoil(path)
    with pytest.raises(PostTrainError, match=words) as e:
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert str(e.value).startswith(str(path))
    assert "\n" not in str(e.value)
