"""What the system refuses is one line: files that cannot be read or written, names that cannot be, a full disk."""

from __future__ import annotations

import errno
import shlex
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cli import one_line
from helpers.processes import environment

from lit_posttrain.cli.failures import of_system
from lit_posttrain.cli.main import main

LONG = "long" * 100
SFT = ["--config", "sft.yaml", "--data.path", "chats.jsonl", "--model.policy.path", "TINY"]
REFUSED = {
    "a folder for a config": (["fit", "--config", "folder"], "folder: cannot be read (Is a directory)"),
    "a config with a long name": (["fit", "--config", LONG], "no such file"),
    "data with a long name": (["fit", *SFT, "--data.path", LONG], "File name too long"),
    "a model with a long name": (["fit", *SFT, "--model.policy.path", LONG], "File name too long"),
    "a template in the place of its file": (
        ["audit", *SFT, "--model.policy.chat_template", "{{ bos_token }}" * 100],
        "the text of a template goes into a file",
    ),
    "prompts with a long name": (["generate", "--model", "TINY", "--prompts", LONG], "File name too long"),
    "a report below a file": (["audit", *SFT, "--out", "chats.jsonl/report.json"], "chats.jsonl"),
    "a report in the place of a file": (
        ["audit", *SFT, "--out", "folder/full.json"],
        "folder/full.json exists already",
    ),
    "a copy into no folder": (["configs", "--copy", "sft.yaml", "--to", "nothere/x.yaml"], "nothere/x.yaml: No such"),
    "no name": (["fit", *SFT, "--name", ""], "--name is empty"),
    "no name but a folder": (["fit", *SFT, "--name", "x/.."], "--name x/..: not the name of a folder"),
    "a name outside": (["fit", *SFT, "--name", "../x"], "--name ../x: not the name of a folder"),
    "a name elsewhere": (["fit", *SFT, "--name", "/x"], "pass --runs / --name x"),
    "the data in the place of a report": (
        ["audit", *SFT, "--out", "./chats.jsonl", "--overwrite", "true"],
        "--out ./chats.jsonl: a file of the data",
    ),
    "no runs": (["fit", *SFT, "--runs", ""], "--runs is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_one_line(case: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = REFUSED[case]
    Path("folder").mkdir()
    Path("folder/full.json").write_text("{}")
    before = chats.read_bytes()
    assert main([str(tiny_model) if word == "TINY" else word for word in arguments]) == 2
    assert said in one_line(capsys)
    assert chats.read_bytes() == before
    assert {file.name for file in Path().iterdir()} <= {"chats.jsonl", "folder", "cache"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_the_output() -> None:
    command = f"{shlex.quote(sys.executable)} -m lit_posttrain configs > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment(), check=False)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: No space left on device; free some, or write to another disk (")
    assert done.returncode == 2


class OfALibrary(OSError):
    """As aiohttp's, which have the numbers of connections and are no ConnectionError."""


REFUSALS = "ENOSPC EDQUOT EMFILE ENFILE ENOMEM EAGAIN EIO ESTALE EFBIG EROFS EACCES EPERM EBUSY EXDEV ENODEV"
FILE = FileNotFoundError(errno.ENOENT, "No such file", "x.json")
SLOW_FILE = TimeoutError(errno.ETIMEDOUT, "Connection timed out", "share/x.json")  # of a network's file system
CONNECTIONS = "ECONNREFUSED ECONNRESET ECONNABORTED EPIPE ETIMEDOUT EADDRINUSE EADDRNOTAVAIL ENETUNREACH EHOSTUNREACH"


@pytest.mark.parametrize(
    "failure", [FILE, SLOW_FILE, *(OSError(getattr(errno, name), name) for name in REFUSALS.split())], ids=repr
)
def test_what_the_system_refuses_is_one_line(failure: OSError) -> None:
    told = of_system(failure)
    assert told is not None
    assert str(failure.strerror) in str(told)
    if failure.errno in (errno.EMFILE, errno.EAGAIN):
        assert "(ulimit -" in str(told)


@pytest.mark.parametrize(
    "failure",
    [
        *(kind(getattr(errno, name), name) for name in CONNECTIONS.split() for kind in (OSError, OfALibrary)),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        ssl.SSLError(1, "certificate verify failed"),
        ChildProcessError(errno.ECHILD, "No child processes"),
        OSError(errno.EBADF, "Bad file descriptor"),
        TimeoutError("of a queue"),
    ],
    ids=repr,
)
def test_an_error_of_code_of_ones_own_keeps_its_traceback(failure: OSError) -> None:
    assert of_system(failure) is None
