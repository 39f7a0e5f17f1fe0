"""Answers that are drawn a few prompts at a time: shown as they come, kept on disk, and gone on with after a stop."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lit_posttrain.chat import Answer
from lit_posttrain.data.asked import Asked
from lit_posttrain.errors import PostTrainError

Draw = Callable[[Sequence[Asked], int], Sequence[Sequence[Answer]]]
_LOOKED_AT = 16  # prompts after which answers that are all cut off are told of


class Answers:
    """The answers to numbered prompts; with a file, those that an earlier run left there are not drawn again.

    `OUT.part` holds a line about how the answers are drawn, then one line per prompt. A prompt whose line was cut short
    is answered again.
    """

    def __init__(self, draw: Draw, prompts: int, out: str | None, made_by: Mapping[str, Any], overwrite: bool) -> None:
        """
        Args:
            draw: Answers some prompts; the second argument is the number of the first one.
            prompts: Number of all prompts.
            out: The file that the command will write; None for the console, which keeps nothing.
            made_by: What the answers depend on: model, prompts, sampling.
            overwrite: Begin anew.

        Raises:
            PostTrainError: if other options left answers in `OUT.part`.
        """
        self.draw, self.prompts = draw, prompts
        self.part = Path(f"{out}.part") if out is not None else None
        self.known: list[list[Answer]] = []
        self._cut_off = self._all = 0
        self._told = False
        head = json.dumps({"drawn_by": hashlib.blake2b(json.dumps(made_by, default=str).encode()).hexdigest()[:32]})
        if self.part is not None and self.part.exists() and not overwrite:
            self._read(self.part, head, str(out))
        elif self.part is not None:
            self.part.write_text(f"{head}\n", encoding="utf-8")
        self._bar = tqdm(total=prompts, initial=len(self.known), unit="prompt", disable=None)  # on a terminal alone

    def _read(self, part: Path, head: str, out: str) -> None:
        whole = part.read_bytes().rpartition(b"\n")[0] + b"\n"
        first, *lines = whole.decode("utf-8").splitlines() or [""]
        if first != head:
            raise PostTrainError(
                f"{part} holds answers that another model, other prompts or other options gave; pass --overwrite true "
                "to begin anew, or choose another --out"
            )
        self.known = [[Answer(**one) for one in json.loads(line)] for line in lines]
        part.write_bytes(whole)
        print(f"going on with {out}: {len(self.known)} of {self.prompts} prompts are answered", file=sys.stderr)

    def __call__(self, asked: Sequence[Asked], first: int) -> list[list[Answer]]:
        """The answers to some prompts; first: the number of the first one. Prompts are asked in their order.

        Raises:
            KeyboardInterrupt: after saying what is kept.
        """
        have = self.known[first : first + len(asked)]
        if len(have) < len(asked):
            try:
                fresh = [list(said) for said in self.draw(asked[len(have) :], first + len(have))]
            except KeyboardInterrupt:
                self._tell_of_stop()
                raise
            self._keep(fresh)
            have += fresh
        self._look(have)
        return have

    def _keep(self, fresh: list[list[Answer]]) -> None:
        self.known += fresh
        self._bar.update(len(fresh))
        if self.part is None:
            return
        with self.part.open("a", encoding="utf-8") as stream:
            for said in fresh:
                stream.write(json.dumps([asdict(one) for one in said]) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _look(self, answers: Sequence[Sequence[Answer]]) -> None:
        """Say early what would make the whole of no use."""
        self._all += sum(len(said) for said in answers)
        self._cut_off += sum(one.finish_reason == "length" for said in answers for one in said)
        if not self._told and len(self.known) >= min(_LOOKED_AT, self.prompts) and self._cut_off == self._all:
            longest = max(len(one.tokens) for said in answers for one in said)
            self._told = True
            self.say(f"all {self._all} answers so far were cut off at {longest} tokens; raise --max_new_tokens?")

    def say(self, text: str) -> None:
        """A line on the console, above the bar."""
        self._bar.write(text, file=sys.stderr)

    def _tell_of_stop(self) -> None:
        self._bar.close()
        done = f"stopped with {len(self.known)} of {self.prompts} prompts answered"
        kept = f"; they are kept in {self.part}, and the same command goes on" if self.part is not None else ""
        print(f"{done}{kept}", file=sys.stderr)

    def close(self) -> None:
        """All is answered, and written where it belongs."""
        self._bar.close()
        if self.part is not None:
            self.part.unlink(missing_ok=True)


def answered(conversations: Sequence[Asked], answers: Answers, together: int) -> Iterator[tuple[Asked, list[Answer]]]:
    """Every conversation with its answers, as they come."""
    for first in range(0, len(conversations), together):
        some = conversations[first : first + together]
        yield from zip(some, answers(some, first), strict=True)


def row_of(one: Asked, answers: Sequence[Answer]) -> dict[str, Any]:
    """The line of a conversation in the output."""
    return one.row(
        prompt=one.messages[0]["content"] if len(one.messages) == 1 else one.messages,
        responses=[{"text": a.text, "finish_reason": a.finish_reason, "logprob": a.logprob} for a in answers],
    )
