"""Checkpoints in shards: read by any number of processes, complete at any moment, never mixed up."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.checkpoint_files import write_file
from lit_posttrain.runs.checkpoint_shards import (
    Shards,
    bytes_on_disk,
    new_folder,
    place_of,
    read,
    read_whole,
    remove,
    write_index,
    write_shards,
    write_whole,
)


def content(step: int) -> dict[str, Any]:
    return {"state_dict": {"a": torch.arange(14.0).reshape(7, 2) + step, "b": torch.ones(2) * step}, "step": step}


def save_shards(path: Path, step: int, ranks: int = 3) -> None:
    """As so many processes would, one after the other."""
    whole, folder = content(step), new_folder(path)
    for rank in range(ranks):
        pieces = [list(value.chunk(ranks)) for value in whole["state_dict"].values()]
        own = [parts[rank] if rank < len(parts) else parts[0][:0] for parts in pieces]
        write_shards(own, path, folder, rank, f"save {step}")
    # b under two names, as tied weights are
    index = {"state_dict": {"a": place_of(0), "b": place_of(1), "tied": place_of(1)}, "step": step}
    write_index(index, path, folder, ranks, f"save {step}")


def save_whole(path: Path, step: int) -> None:
    write_whole(content(step), path)


def check(path: Path, step: int) -> None:
    found = read_whole(path)
    assert found["step"] == step
    for name, value in content(step)["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value)


def test_whole_again_and_in_any_other_cut(tmp_path: Path) -> None:
    save_shards(tmp_path / "last.ckpt", 3)
    check(tmp_path / "last.ckpt", 3)
    found = read(tmp_path / "last.ckpt")["state_dict"]
    assert found["b"] is found["tied"]
    assert isinstance(found["a"], Shards)
    assert found["a"].shape == (7, 2)
    whole = content(3)["state_dict"]["a"]
    for size in range(1, 9):
        cut = [found["a"].rows(first, min(first + size, 7)) for first in range(0, 7, size)]
        assert torch.equal(torch.cat(cut), whole)
    assert found["a"].rows(7, 7).shape == (0, 2)


@pytest.mark.parametrize("after", [save_whole, save_shards])
@pytest.mark.parametrize("before", [save_whole, save_shards])
def test_complete_at_every_moment(
    before: Callable[[Path, int], None], after: Callable[[Path, int], None], tmp_path: Path
) -> None:
    """The folder as it is before every change to a file in it, which is what SIGKILL would leave, holds the old or the
    new checkpoint; and the next save goes on from there."""
    home, images = tmp_path / "run", tmp_path / "images"
    path = home / "last.ckpt"
    save_whole(path, 0)
    before(path, 1)
    looking = True

    def look(event: str, arguments: Any) -> None:
        nonlocal looking
        if looking and event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            if str(home) not in str(arguments[0]):
                return
            looking = False
            shutil.copytree(home, images / str(len(list(images.glob("*")))))
            looking = True

    images.mkdir()
    sys.addaudithook(look)
    after(path, 2)
    looking = False
    check(path, 2)
    seen = []
    for image in sorted(images.iterdir(), key=lambda folder: int(folder.name)):
        seen.append(read_whole(image / "last.ckpt")["step"])
        check(image / "last.ckpt", seen[-1])
        for step, save in ((3, save_shards), (4, save_shards), (5, save_whole)):
            save(image / "last.ckpt", step)
            check(image / "last.ckpt", step)
        assert [file.name for file in image.iterdir()] == ["last.ckpt"], "nothing stays of what was cut short"
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


def test_what_is_not_there_or_of_another_save_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_shards(path, 1)
    (folder,) = tmp_path.glob("last.ckpt.shards-*")
    assert bytes_on_disk(path) == path.stat().st_size + sum(file.stat().st_size for file in folder.iterdir())
    write_file({"save": "another", "shards": []}, folder / "rank-1.pt")
    with pytest.raises(PostTrainError, match=f"{folder.name} belongs to another save"):
        read(path)
    (folder / "rank-1.pt").write_bytes(b"")
    with pytest.raises(PostTrainError, match=r"rank-1\.pt: damaged or cut short"):
        read(path)
    (folder / "rank-1.pt").unlink()
    with pytest.raises(PostTrainError, match=r"rank-1\.pt does not exist .* copy or move both"):
        read(path)
    remove(path)
    assert list(tmp_path.iterdir()) == []
    assert bytes_on_disk(path) == 0
    with pytest.raises(PostTrainError, match="no such checkpoint"):
        read(path)


def test_a_folder_of_lightnings_own_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").mkdir()
    (tmp_path / "last.ckpt/meta.pt").write_bytes(b"")
    with pytest.raises(PostTrainError, match="a folder; a checkpoint of lit-posttrain is a file"):
        read(tmp_path / "last.ckpt")
