"""What became of the rows of one file, counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_PLACES = 5
_ALTERED = {
    "cut": "cut at the end",
    "split": "split in pieces",
    "empty_pieces": "pieces left out",
    "unanswered": "without an answer to their last turns",
    "rewritten": "trained turn by turn",
}
BY_REASON = ("dropped", "unread", "notes", "lost")
_REMARKABLE = {
    "control": "with special tokens in their text",
    "altered": "altered by the chat template",
    "generated": "trained behind another prompt than the chat template renders there",
}


@dataclass
class Tally:
    """A count with the lines of its first few cases."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        """Count a case at `line`."""
        self.count += 1
        if len(self.lines) < _PLACES:
            self.lines.append(line)


@dataclass
class FileAudit:
    """The counts of one file, or of all files together.

    format: the columns that were recognised. path: the entry of --data.path under which the file was found.
    rows: rows read. examples: what is trained on; more than rows where rows were split or trained turn by turn.
    dropped: by reason; a row trained turn by turn counts once per dropped turn. cut: rows shortened at their end.
    split: rows cut into pieces. empty_pieces: pieces without a trained token, left out. unanswered: rows that end with
    turns without an answer, which are left out. rewritten: rows trained turn by turn. duplicates: rows equal to an
    earlier one, at the places of `repeated`.
    opened: rows to which the chat template adds a system prompt of its own. control: rows whose messages contain
    special tokens. altered: rows with words that the chat template changes or drops. generated: rows with turns for
    which the generation prompt is not what the template renders there. lost: what the template leaves out, by kind.
    unread: unused columns and keys of messages. notes: how rows were read, where it is not self-evident.
    tokens, trained_tokens, mean, p50, p95, max: of the examples' lengths. longest: (line, tokens).
    """

    name: str
    format: str = ""
    rows: int = 0
    examples: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    cut: int = 0
    split: int = 0
    empty_pieces: int = 0
    unanswered: int = 0
    rewritten: int = 0
    duplicates: int = 0
    repeated: Tally = field(default_factory=Tally)
    opened: Tally = field(default_factory=Tally)
    unread: dict[str, Tally] = field(default_factory=dict)
    notes: dict[str, Tally] = field(default_factory=dict)
    control: Tally = field(default_factory=Tally)
    altered: Tally = field(default_factory=Tally)
    generated: Tally = field(default_factory=Tally)
    lost: dict[str, Tally] = field(default_factory=dict)
    tokens: int = 0
    trained_tokens: int = 0
    mean: float = 0.0
    p50: int = 0
    p95: int = 0
    max: int = 0
    longest: list[tuple[int, int]] = field(default_factory=list)
    path: str = ""

    @property
    def dropped_count(self) -> int:
        """Drops of all reasons."""
        return sum(tally.count for tally in self.dropped.values())

    @property
    def trained_share(self) -> float:
        """Trained tokens divided by all tokens; 0 without any."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def drop(self, reason: str, line: int) -> None:
        """Count a drop."""
        self.dropped.setdefault(reason, Tally()).add(line)

    def leave(self, unread: Iterable[str], line: int) -> None:
        """Count the unused columns and keys of a row."""
        for name in unread:
            shown = name.encode(errors="backslashreplace").decode()  # which may hold half of a surrogate pair
            self.unread.setdefault(shown, Tally()).add(line)

    def note(self, notes: Iterable[str], line: int) -> None:
        """Count how a row was read."""
        for name in dict.fromkeys(notes):
            self.notes.setdefault(name, Tally()).add(line)

    def measure(self, lengths: NDArray[np.int64], trained: NDArray[np.int64], lines: NDArray[np.int64]) -> None:
        """Fill in the figures of the examples, (n,) each: tokens, trained tokens, line of the record."""
        self.examples, self.tokens, self.trained_tokens = len(lengths), int(lengths.sum()), int(trained.sum())
        if len(lengths):
            self.mean, self.max = float(lengths.mean()), int(lengths.max())
            self.p50, self.p95 = (int(v) for v in np.percentile(lengths, [50, 95], method="inverted_cdf"))
            order = np.argsort(-lengths, kind="stable")[:_PLACES]
            self.longest = [(int(lines[i]), int(lengths[i])) for i in order]

    def findings(self) -> dict[str, int]:
        """How many rows were not simply taken as they are, by what became of them, in words."""
        found = {reason: tally.count for reason, tally in (self.dropped | self.notes).items()}
        found |= {unused(name): tally.count for name, tally in self.unread.items()}
        found |= {words: getattr(self, name) for name, words in _ALTERED.items()}
        found |= {words: getattr(self, name).count for name, words in _REMARKABLE.items()}
        found |= {f"whose {what} the chat template leaves out": tally.count for what, tally in self.lost.items()}
        return {words: count for words, count in found.items() if count}

    def forget(self) -> None:
        """Reset everything that `findings` counts."""
        for name in BY_REASON:
            setattr(self, name, {})
        for name in _ALTERED:
            setattr(self, name, 0)
        for name in _REMARKABLE:
            setattr(self, name, Tally())

    @classmethod
    def total(cls, audits: Iterable[FileAudit]) -> FileAudit:
        """All files together; places stay with their files."""
        total = cls("total")
        for audit in audits:
            for name in ("rows", *_ALTERED):
                setattr(total, name, getattr(total, name) + getattr(audit, name))
            for name in BY_REASON:
                for reason, tally in getattr(audit, name).items():
                    getattr(total, name).setdefault(reason, Tally()).count += tally.count
            for name in ("opened", *_REMARKABLE):
                getattr(total, name).count += getattr(audit, name).count
        return total

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        made = cls(**values)
        for name in BY_REASON:
            setattr(made, name, {reason: Tally(**tally) for reason, tally in values[name].items()})
        for name in (*_REMARKABLE, "repeated", "opened"):
            setattr(made, name, Tally(**values[name]))
        made.longest = [(int(line), int(length)) for line, length in values["longest"]]
        return made

    def where(self, tally: Tally) -> str:
        """The places of a tally's first cases: `file:3, :8, ...`."""
        places = [f"{self.name}:{tally.lines[0]}", *(f":{line}" for line in tally.lines[1:])]
        return ", ".join([*places, *(["..."] if tally.count > len(tally.lines) else [])])

    def read_as(self) -> list[str]:
        """How the file was read: drops, notes and unused columns, one line each."""
        lines = [f"{self.where(tally)}: dropped, {reason}" for reason, tally in self.dropped.items()]
        lines += [
            f"{self.name}: {rows_of(tally.count)} {words} (such as line {tally.lines[0]})"
            for words, tally in self.notes.items()
        ]
        return [*lines, *([self.not_used] if self.unread else [])]

    @property
    def not_used(self) -> str:
        """The unused columns and keys, in one line."""
        named = ", ".join(f"{name or '(no name)'} ({rows_of(tally.count)})" for name, tally in self.unread.items())
        return f"{self.name}: not used: {named}"


def unused(name: str) -> str:
    """What `findings` call rows with a column or key that is not used."""
    return f"with `{name}` not used"


def rows_of(count: int) -> str:
    """A count of rows in words."""
    return f"{count:,} row{'' if count == 1 else 's'}"
