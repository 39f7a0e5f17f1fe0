"""Results that are kept on disk while a command runs: on every file system, by one command at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import locked_elsewhere

from lit_posttrain.cli.commands.part import Part
from lit_posttrain.errors import PostTrainError


def part(out: Path) -> Part:
    return Part(str(out), 3, "prompt", "answered", {"model": "m"}, overwrite=False)


def failing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def lockf(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_keeps_results_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing(monkeypatch, number)
    part(tmp_path / "out").keep([1, 2])
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path}/out.part cannot be locked on this file system: ")
    again = part(tmp_path / "out")
    assert again.known == [1, 2]
    with again.until_written():
        again.keep([3])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_other_errors_of_a_file_system_are_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, number)
    with pytest.raises(PostTrainError, match=rf"out\.part: .* \({os.strerror(number)}\); choose another --out$"):
        part(tmp_path / "out")


def test_a_folder_where_results_are_kept_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out.part").mkdir()
    with pytest.raises(PostTrainError, match=r"out\.part: .* \(Is a directory\); choose another --out$"):
        part(tmp_path / "out")


def test_two_commands_do_not_write_the_same_results(tmp_path: Path) -> None:
    with (
        locked_elsewhere(tmp_path / "out.part"),
        pytest.raises(PostTrainError, match="another command is writing it"),
    ):
        part(tmp_path / "out")
    part(tmp_path / "out").keep([1])
