"""The results of a command so far: kept on disk, shown as progress, and resumed after a stop."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.paths import find_checkpoint
from lit_posttrain.runs.folder import lock

_OF_A_MODEL = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


class Part:
    """A JSON value for each of some numbered items, such as prompts. With a file, it begins with the values that an
    earlier command has kept there.

    `OUT.part` has a line on how the values are made, then a line per value; a line that was cut short is ignored.
    known: the values so far.
    """

    def __init__(
        self, out: str | None, total: int, unit: str, done: str, made_by: Mapping[str, Any], overwrite: bool
    ) -> None:
        """
        Args:
            out: The file that the command will write; None for the console, which keeps nothing.
            total: Number of all values.
            unit: Name of an item, "prompt".
            done: Participle for an item with a value, "answered".
            made_by: What the values depend on: model, data, options.
            overwrite: Begin anew if the values there were made with other options.

        Raises:
            PostTrainError: if `OUT.part` has values made with other options, or another command is writing it.
        """
        self.file = Path(f"{out}.part") if out is not None else None
        self.total, self._unit, self._done = total, unit, done
        self.known: list[Any] = []
        head = json.dumps({"made_by": hashlib.blake2b(json.dumps(made_by, default=str).encode()).hexdigest()[:32]})
        if self.file is not None:
            try:
                self._stream = self.file.open("a+b")
                lock(self._stream)
            except BlockingIOError:
                raise PostTrainError(f"{out}: another command is writing it; wait, or choose another --out") from None
            except OSError as error:
                raise PostTrainError(
                    f"{self.file}: results so far cannot be kept there ({error.strerror}); choose another --out"
                ) from error
            self._go_on(head, str(out), overwrite)
        self._bar = tqdm(total=total, initial=len(self.known), unit=unit, disable=None)  # on a terminal alone

    def _go_on(self, head: str, out: str, overwrite: bool) -> None:
        self._stream.seek(0)
        whole = self._stream.read().rpartition(b"\n")[0]
        first, *lines = whole.decode("utf-8").split("\n")
        if first == head:
            self.known = [json.loads(line) for line in lines]
            self._stream.truncate(len(whole))  # opened to append, it writes at its end, whatever was read
            self._write("\n")
        elif first and not overwrite:
            raise PostTrainError(
                f"{self.file} holds what another model, other data or other options gave; pass --overwrite true to "
                "begin anew, or choose another --out"
            )
        else:
            self._stream.truncate(0)
            self._write(f"{head}\n")
        if self.known:
            print(f"going on with {out}: {self._so_far('are ')}", file=sys.stderr)

    def _write(self, text: str) -> None:
        self._stream.write(text.encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _so_far(self, verb: str = "") -> str:
        return f"{len(self.known)} of {self.total} {self._unit}s {verb}{self._done}"

    def keep(self, fresh: Sequence[Any]) -> None:
        """Keep the values of the next items."""
        self.known += fresh
        self._bar.update(len(fresh))
        if self.file is not None:
            self._write("".join(json.dumps(value) + "\n" for value in fresh))

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._bar.write(text, file=sys.stderr)

    @contextmanager
    def until_written(self) -> Iterator[None]:
        """Print what is kept if the block is interrupted; at its end, when everything is in OUT, remove the part."""
        try:
            yield
        except BaseException as stop:
            self._bar.close()
            if self.known:
                refused = len(self.known) == self.total and isinstance(stop, PostTrainError)
                goes_on = "" if refused else ", and the same command goes on"
                kept = f"; they are kept in {self.file}{goes_on}" if self.file is not None else ""
                print(f"stopped with {self._so_far()}{kept}", file=sys.stderr)
            raise
        finally:
            self._bar.close()
            if self.file is not None:
                self._stream.close()
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def model_state(path: str, trust_remote_code: bool) -> list[Any]:
    """Files, sizes and times of a model, a run or a checkpoint, by which a later change is noticed."""
    from lit_posttrain.models.adapter_folders import resolve  # loads torch

    place = find_checkpoint(path)
    if place is None:
        model = resolve(path, trust_remote_code)
        place = Path(model.where) / (model.gguf or "")
        if not place.exists():
            place = _from_hub(model.where) or place
        files = [place] if place.is_file() else [f for f in place.glob("*") if f.suffix in _OF_A_MODEL]
    else:
        files = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file()]
    stats = [(file.resolve(), file.stat()) for file in sorted(files)]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats] or [path]


def _from_hub(name: str) -> Path | None:
    """The folder in which a hub model lies once it was loaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None
