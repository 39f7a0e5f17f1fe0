"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lit_posttrain.runs.atomic import scratch_file, whole_file, whole_folder, write_text


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_file_changes_as_a_whole(tmp_path: Path) -> None:
    place = tmp_path / "new" / "note [1].txt"
    write_text(place, "old")
    with suppress(RuntimeError), whole_file(place, durable=True) as part:
        part.write_text("half of the new one")
        assert place.read_text() == "old"
        raise RuntimeError
    assert (place.read_text(), names(place.parent)) == ("old", {place.name})
    write_text(place, "new")
    assert (place.read_text(), names(place.parent)) == ("new", {place.name})


def test_what_killed_processes_left_is_cleared(tmp_path: Path) -> None:
    place = tmp_path / "note [1].txt"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = scratch_file(place).name
    begin = mine.removesuffix(f"{os.getpid()}.part")
    assert begin == f".{place.name}.{socket.gethostname()}-"
    for name in (f"{begin}{ended.pid}.part", f"{begin}{os.getppid()}.part", f".other.txt.{begin}{ended.pid}.part"):
        (tmp_path / name).touch()
    write_text(place, "whole")
    assert names(tmp_path) == {place.name, f"{begin}{os.getppid()}.part", f".other.txt.{begin}{ended.pid}.part"}


def test_a_folder_appears_as_a_whole(tmp_path: Path) -> None:
    place = tmp_path / "made"
    with suppress(RuntimeError), whole_folder(place) as part:
        (part / "first").touch()
        raise RuntimeError
    assert names(tmp_path) == set()
    place.mkdir()  # an empty one may stand there
    with whole_folder(place) as part:
        (part / "first").touch()
    assert (names(tmp_path), names(place)) == ({"made"}, {"first"})


def test_of_two_folders_the_first_stays(tmp_path: Path) -> None:
    place = tmp_path / "made"
    with whole_folder(place, first_wins=True) as slower:
        (slower / "second").touch()
        with whole_folder(place, first_wins=True) as quicker:
            (quicker / "first").touch()
    assert (names(tmp_path), names(place)) == ({"made"}, {"first"})
    with pytest.raises(OSError, match="not empty"), whole_folder(place) as part:
        (part / "third").touch()
    assert (names(tmp_path), names(place)) == ({"made"}, {"first"})
