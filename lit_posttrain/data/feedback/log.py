"""The append-only file of decisions: written by several people, servers and judges at once, and read as data.

A decision that is acknowledged is on the disk. A process that is killed leaves at most one torn line, its last, which
was never acknowledged: the next writer ends it, and readers skip it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lit_posttrain.data.feedback.lines import is_record, is_record_file, kept, parse_line
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.json_lines import json_line

_SUFFIXES = (".jsonl", ".ndjson", ".json")  # by which the file is read again


class FeedbackLog:
    """Appends decisions to a JSONL file, which several threads, processes and logs may do at once. A forked process
    opens a log of its own."""

    def __init__(self, path: str | Path) -> None:
        """Open a file, or make it with its folder.

        Raises:
            PostTrainError: the file holds something else than decisions, or cannot be written.
        """
        self.path = Path(path)
        if self.path.suffix.lower() not in _SUFFIXES:
            raise PostTrainError(f"{path}: decisions are JSON lines; name a file that ends with .jsonl")
        self._mutex = threading.Lock()
        self._ids: set[str] = set()
        self._seen, self._lines = 0, 0  # bytes and lines of the file of which the ids are known
        with self._named():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self.path.exists()
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if fresh:
                _flush_folder(self.path.parent)
        try:
            with self._locked():
                self._catch_up()
        except BaseException:
            self.close()
            raise

    def append(self, decision: Decision) -> bool:
        """Write a decision and wait until it is on the disk. False if one with its id is there already, by whomever:
        it is not written again.

        Raises:
            PostTrainError: it cannot be written, because the disk is full or the file was removed; nothing of it is
                in the file.
        """
        return self.append_all([decision])[0]

    def append_all(self, decisions: Sequence[Decision]) -> list[bool]:
        """As `append`, of several decisions that wait for the disk once, which takes most of the time. True for each
        that was written: all of them are, or none.

        Raises:
            PostTrainError: as `append`.
        """
        lines = [json_line(one.row()).encode() for one in decisions]
        with self._mutex, self._locked():
            self._catch_up()
            first = {one.id: number for number, one in reversed(list(enumerate(decisions))) if one.id not in self._ids}
            fresh = [first.get(one.id) == number for number, one in enumerate(decisions)]
            if any(fresh):
                raw = b"".join(line for line, is_new in zip(lines, fresh, strict=True) if is_new)
                self._write(raw)
                self._ids.update(first)
                self._seen += len(raw)
                self._lines += sum(fresh)
        return fresh

    def __contains__(self, decision_id: object) -> bool:
        """True if a decision with this id was there at the last append, or when the file was opened."""
        return decision_id in self._ids

    def close(self) -> None:
        """Close the file. Nothing is lost without it."""
        with self._mutex:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> FeedbackLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            reason = problem.strerror or type(problem).__name__
            raise PostTrainError(f"{self.path}: cannot be written ({reason}); make room, or name another file") from (
                problem
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all writers. `flock` belongs to this opened file: unlike a lock of the process it survives that
        others open and close the same file."""
        if self._file < 0:
            raise PostTrainError(f"{self.path}: the log is closed")
        with self._named():
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Learn the ids that others have written, and end a line that a killed one has left."""
        with self._named():
            there = os.fstat(self._file)
            if there.st_nlink == 0 or not os.path.samestat(there, os.stat(self.path)):
                raise PostTrainError(f"{self.path}: was replaced or removed while it was in use; start again")
            if there.st_size < self._seen:
                raise PostTrainError(f"{self.path}: was cut while it was in use; start again")
            new = os.pread(self._file, there.st_size - self._seen, self._seen)
        if new and not new.endswith(b"\n"):
            self._write(b"\n")
            new += b"\n"
        for number, raw in enumerate(new.splitlines(keepends=True), self._lines + 1):
            self._learn(raw, number)
        self._seen += len(new)
        self._lines += new.count(b"\n")

    def _learn(self, raw: bytes, number: int) -> None:
        value = None if raw.isspace() else parse_line(raw)
        if is_record(value):
            self._ids.add(str(value["id"]))
        elif not raw.isspace() and not isinstance(value, NothingToLearn):
            raise PostTrainError(
                f"{self.path}:{number}: not a file of decisions, which alone are appended to; name another file"
            )

    def _write(self, raw: bytes) -> None:
        """Write whole and wait for the disk, or leave the file as it was."""
        with self._named():
            end = os.fstat(self._file).st_size
            try:
                left = memoryview(raw)
                while left:  # a disk that fills up takes a part of it
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, end)
                raise


def read_decisions(path: str | Path) -> tuple[list[Decision], list[str]]:
    """The decisions of a file in their order, without undone ones and repetitions, and what was skipped, in words.

    Raises:
        PostTrainError: the file cannot be read, or a line is no decision.
    """
    file, made, notes = Path(path), list[Decision](), list[str]()
    try:
        known = file.stat().st_size == 0 or is_record_file(file)
    except OSError as problem:
        raise PostTrainError(f"{path}: cannot be read ({problem.strerror}); name another file") from problem
    if not known:
        raise PostTrainError(
            f"{path}: not a file of decisions, such as `annotate` and `judge` write; `lit-posttrain feedback convert` "
            "makes one of exports of Argilla and Label Studio"
        )
    for number, row in kept(file):
        if isinstance(row, NothingToLearn):
            notes.append(f"{path}:{number}: {row}")
        elif isinstance(row, BadRow):
            raise PostTrainError(f"{path}:{number}: {row}")
        else:
            made.append(row)
    return made, notes


def _flush_folder(folder: Path) -> None:
    """Make a new file's name survive a power cut."""
    with suppress(OSError):  # some file systems do not flush folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
