"""The audit: what was read, what became of it, and what a person should look at before training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.data.audit.compared import Compared
from lit_posttrain.data.audit.table import rows_of, table_of, unused_of
from lit_posttrain.data.rows.beside import HISTORY, SYSTEM_COLUMNS, THOUGHT_COLUMNS, TOOL_COLUMNS, VARIABLES
from lit_posttrain.data.rows.kinds import INPUT
from lit_posttrain.data.rows.messages import REASONING

_EXAMPLES = 5
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


def unused(name: str) -> str:
    """What `findings` call rows with a column or key that is not used."""
    return f"with `{name}` not used"


@dataclass
class Tally:
    """A count with the lines of its first few cases."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        """Count a case at `line`."""
        self.count += 1
        if len(self.lines) < _EXAMPLES:
            self.lines.append(line)


@dataclass
class FileAudit:
    """One file, or all of them together.

    rows: rows read. trees: conversations to train on; more than rows where rows were split or trained turn by turn.
    dropped: by reason; a row trained turn by turn counts once per dropped turn. cut: rows shortened at their end.
    split: rows cut into pieces. empty_pieces: pieces without a trained token, left out. unanswered: rows whose last
    turns nobody answered, left out. rewritten: rows trained turn by turn. duplicates: rows equal to an earlier one,
    which are at the places of `repeated`. opened: rows that the chat template gives a system prompt of its own.
    unread: rows by what is in them and is not used: columns, and keys of messages. notes: rows by how they were read,
    where that is no matter of course.
    control: rows whose messages contain special tokens. altered: rows with words that the chat template did not write
    as they are. generated: rows with turns behind whose generation prompt the template renders something else.
    lost: what the template leaves out, by what it is. tokens, trained_tokens, mean, p50, p95, max: of the trees'
    lengths. longest: (line, tokens).
    path: the entry of --data.path that the file was found under.
    """

    name: str
    format: str = ""
    rows: int = 0
    trees: int = 0
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
        """Trained tokens by tokens; 0 without any."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def drop(self, reason: str, line: int) -> None:
        """Count a drop."""
        self.dropped.setdefault(reason, Tally()).add(line)

    def leave(self, unread: Iterable[str], line: int) -> None:
        """Count what of a row is not used."""
        for name in unread:
            shown = name.encode(errors="backslashreplace").decode()  # which may hold half of a surrogate pair
            self.unread.setdefault(shown, Tally()).add(line)

    def note(self, notes: Iterable[str], line: int) -> None:
        """Count how a row was read."""
        for name in dict.fromkeys(notes):
            self.notes.setdefault(name, Tally()).add(line)

    @property
    def ignored(self) -> list[str]:
        """What a row says to the model and the chat template has no place for."""
        begins = ("chat_template_kwargs.", *(f"message.{key}" for key in REASONING))
        whole = ("tools", "message.tool_calls")
        return [name for name in self.unread if name in whole or name.startswith(begins)]

    @property
    def unseen(self) -> list[str]:
        """Columns that say something to the model in other rows, and are not used in some."""
        beside = (*SYSTEM_COLUMNS, *TOOL_COLUMNS, HISTORY, VARIABLES, *THOUGHT_COLUMNS)
        names = (*beside, *INPUT) if "/" in self.format else beside  # a conversation has no input
        return [name for name in names if name in self.unread and name not in self.ignored]

    @property
    def newly_lost(self) -> list[str]:
        """What the chat template leaves out of some rows, beside what it has no place for at all."""
        told = {"tools": "tools" in self.ignored, "thoughts": any("message." + k in self.ignored for k in REASONING)}
        return [what for what in self.lost if not told.get(what)]

    def changed_by_template(self) -> list[str]:
        """What the tokenizer and the chat template make of the rows that nobody wrote, a line each."""
        found = []
        if self.control.count:
            where = self.where(self.control)
            found.append(
                f"{rows_of(self.control.count)} with special tokens in the text ({where}); the tokenizer reads them as "
                "such"
            )
        if self.ignored:
            told = ", ".join(f"{name} ({rows_of(self.unread[name].count)})" for name in self.ignored)
            found.append(f"{self.name}: the chat template has no place for {told}: the model never sees it")
        if self.altered.count:
            found.append(
                f"the chat template changes or leaves out words of {rows_of(self.altered.count)} "
                f"({self.where(self.altered)})"
            )
        for what in self.newly_lost:
            tally = self.lost[what]
            named = what if what.startswith("turn ") else f"the {what}"
            found.append(f"the chat template leaves out {named} of {rows_of(tally.count)} ({self.where(tally)})")
        return found

    def where(self, tally: Tally) -> str:
        """The places of a tally's first cases: `file:3, :8, ...`."""
        places = [f"{self.name}:{tally.lines[0]}", *(f":{line}" for line in tally.lines[1:])]
        return ", ".join([*places, *(["..."] if tally.count > len(tally.lines) else [])])

    def findings(self) -> dict[str, int]:
        """What became of rows other than to be taken as they are, in words; reasons without a case are left out."""
        found = {reason: tally.count for reason, tally in (self.dropped | self.notes).items()}
        found |= {unused(name): tally.count for name, tally in self.unread.items()}
        found |= {words: getattr(self, name) for name, words in _ALTERED.items()}
        found |= {words: getattr(self, name).count for name, words in _REMARKABLE.items()}
        found |= {f"whose {what} the chat template leaves out": tally.count for what, tally in self.lost.items()}
        return {words: count for words, count in found.items() if count}

    def forget(self) -> None:
        """Begin to count anew what `findings` tells of."""
        for name in BY_REASON:
            setattr(self, name, {})
        for name in _ALTERED:
            setattr(self, name, 0)
        for name in _REMARKABLE:
            setattr(self, name, Tally())

    def measure(self, lengths: NDArray[np.int64], counted: NDArray[np.int64], lines: NDArray[np.int64]) -> None:
        """Fill in what is known of the trees, (n,) each: tokens, trained tokens, line of the record."""
        self.trees, self.tokens, self.trained_tokens = len(lengths), int(lengths.sum()), int(counted.sum())
        if len(lengths):
            self.mean, self.max = float(lengths.mean()), int(lengths.max())
            self.p50, self.p95 = (int(v) for v in np.percentile(lengths, [50, 95], method="inverted_cdf"))
            order = np.argsort(-lengths, kind="stable")[:_EXAMPLES]
            self.longest = [(int(lines[i]), int(lengths[i])) for i in order]

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


@dataclass
class Share:
    """What an epoch shows of one entry of --data.path. trees: its training conversations. shown: how many conversations
    of it an epoch shows. of_trees, of_tokens: its shares of an epoch's conversations and trained tokens."""

    path: str
    weight: float
    trees: int
    shown: int
    of_trees: float
    of_tokens: float


@dataclass
class AuditReport:
    """All files of one data set.

    total: the sums, and lengths over everything. dated_template: the day that the template writes, where it writes
    the day. remedy: how to make the template render what generation is given, where it does not. own_prompt: the
    beginning of the system prompt that the template adds to conversations without one, and its length. ends: trained
    turns by the end token they close with ("" is none). eos: the tokenizer's end-of-sequence token. held_out: trees set
    aside by --data.val_fraction. in_training: trees of a
    validation set whose record is in the training data too. first_rows: of a stream, how many of its rows were looked
    at; 0 where all were. mix: shares of an epoch, where --data.weights sets them. compared: what preferences say.
    left_out: what lies beside the files that were read and was not. read_by: import path of the function that returned
    the rows, see `own_format`; empty without one. validation: reports of the validation sets by name.
    """

    files: list[FileAudit]
    total: FileAudit
    train_on: str = "assistant"
    max_length: int = 0
    overlong: str = "drop"
    chat_template: bool = True
    dated_template: str = ""
    remedy: str = ""
    own_prompt: str = ""
    own_prompt_tokens: int = 0
    pad_is_eos: bool = False
    eos: str = ""
    ends: dict[str, int] = field(default_factory=dict)
    val_fraction: float = 0.0
    held_out: int = 0
    first_rows: int = 0
    in_training: int = 0
    mix: list[Share] = field(default_factory=list)
    compared: Compared | None = None
    left_out: list[str] = field(default_factory=list)
    read_by: str = ""
    validation: dict[str, AuditReport] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether its rows are trained on; prompts are not, their answers are still to come."""
        return self.train_on != "nothing"

    @property
    def warnings(self) -> list[str]:
        """What a person should look at, a line each."""
        found = [*self.left_out, *self._about_ends(), *self._about_rows()]
        if self.dated_template:
            found.append(
                f"the chat template writes the day of tokenisation ({self.dated_template}) into prompts, and in use "
                "that of the answer; a fixed date is safer"
            )
        for name, report in self.validation.items():
            found += [f"{name}: {line}" for line in report.warnings]
            if report.in_training:
                found.append(
                    f"{name}: {report.in_training:,} of {rows_of(report.total.trees)} also in the training data; "
                    "remove them from one side"
                )
        if self.val_fraction and not self.held_out:
            found.append(
                f"val_fraction {self.val_fraction:g} holds out no row of {self.total.trees}; raise it, or give val_path"
            )
        found += self._about_mix()
        if self.compared and (line := self.compared.one_sided):
            found.append(f"of the first {self.first_rows:,} rows {line}" if self.first_rows else line)
        return found

    @property
    def unused(self) -> list[str]:
        """The columns and keys that are not used, a line for each file that has some."""
        return [unused_of(file) for file in self.files if file.unread]

    def _about_mix(self) -> list[str]:
        """Weights that look like the probabilities of other tools, which ours are not."""
        meant = [share.weight for share in self.mix]
        alike = all(abs(share.weight - share.of_trees) < 0.02 for share in self.mix)
        if len(meant) < 2 or abs(sum(meant) - 1) > 1e-6 or alike or not all(share.trees for share in self.mix):
            return []
        most = min(share.trees / share.weight for share in self.mix if share.weight)
        right = ", ".join(f"{share.weight * most / share.trees:.3g}" for share in self.mix)
        shares = ", ".join(f"{share.of_trees:.1%}" for share in self.mix)
        return [
            f"weights multiply each source's rows: these, which add up to 1, make shares of {shares}; for what they "
            f"say as shares pass --data.weights '[{right}]'"
        ]

    @property
    def why_empty(self) -> str:
        """What became of the rows where none can be used, and what to do."""
        reasons = [
            f"{tally.count} {reason} ({file.where(tally)})"
            for file in self.files
            for reason, tally in file.dropped.items()
        ]
        advice = ["raise --data.max_length"] if any("max_length" in reason for reason in reasons) else []
        if self.held_out:
            reasons.append(f"{self.held_out} held out by val_fraction {self.val_fraction:g}")
            advice.append("pass --data.val_fraction 0, or --data.val_path")
        return "; ".join([f"of {self.total.rows} rows: " + (", ".join(reasons) or "none kept"), *advice])

    @property
    def closing_tokens(self) -> list[str]:
        """End tokens that close trained turns, without those of fewer than one in a hundred: words of a row may end
        with a special token too."""
        least = sum(self.ends.values()) / 100
        return [token for token, turns in self.ends.items() if token and turns >= least]

    def _about_ends(self) -> list[str]:
        turns, open_ended = sum(self.ends.values()), self.ends.get("", 0)
        if not self.chat_template or not turns:
            return []
        if open_ended == turns:
            return [
                "no trained turn ends with an end-of-sequence token: the model would never learn to stop; have the "
                f"chat template end answers with {self.eos!r}, or name what ends them with --model.policy.eos (and, "
                "where it is no token yet, with --model.policy.special_tokens)"
            ]
        found = [f"{open_ended} of {turns} trained turns end without an end token"] if open_ended else []
        if self.eos not in self.ends:
            closing = ", ".join(repr(token) for token in self.ends if token)
            found.append(
                f"turns end with {closing}, not with the tokenizer's eos {self.eos!r}: generation ends at both, unless "
                "--model.policy.eos says where"
            )
        return found

    def _about_rows(self) -> list[str]:
        found, total = [], self.total
        for file in self.files:
            found += file.changed_by_template()
            found += [
                f"`{name}` is not used in {rows_of(tally.count)} ({file.where(tally)}): the model never sees it"
                for name in file.unseen
                for tally in [file.unread[name]]
            ]
            if count := file.generated.count:
                found.append(
                    "the prompt that generation is given is not the beginning of the rendered conversation in "
                    f"{rows_of(count)} ({file.where(file.generated)}); they are trained as generated: that prompt, the "
                    "answer, its end" + (f"; {self.remedy}" if self.remedy else "")
                )
        if total.duplicates:
            places = "; ".join(file.where(file.repeated) for file in self.files if file.repeated.count)
            found.append(f"{total.duplicates:,} of {rows_of(total.rows)} repeat an earlier row ({places})")
        if total.opened.count:
            found.append(
                f"the chat template adds a system prompt of its own to {rows_of(total.opened.count)}, "
                f"{self.own_prompt_tokens} tokens each ({self.own_prompt!r}); --data.system_prompt sets another"
            )
        if total.unanswered:
            rows = rows_of(total.unanswered)
            found.append(f"{rows} with turns at the end that nobody answered; those turns are left out")
        if total.rewritten:
            found.append(f"the template rewrites earlier turns: {rows_of(total.rewritten)} trained turn by turn")
        overlong = sum(t.count for reason, t in total.dropped.items() if "max_length" in reason)
        if total.rows and overlong > 0.05 * total.rows:
            found.append(
                f"{overlong:,} of {rows_of(total.rows)} longer than max_length {self.max_length}; "
                f"raise --data.max_length, or pass --data.overlong {'cut_prompt' if self.compared else 'cut or split'}"
            )
        if self.trains and total.tokens and total.trained_share < 0.02:
            found.append(f"only {total.trained_share:.1%} of the tokens are trained on")
        return found

    def renamed(self, names: Sequence[str], paths: Sequence[str]) -> Self:
        """The report with its files called `names`, found under `paths`: a cache may have been filled under others."""
        for file, name, path in zip(self.files, names, paths, strict=True):
            file.name, file.path = name, path
        return self

    def to_json(self) -> str:
        """JSON that `from_json` reads; warnings are in it for people and other programs."""
        return json.dumps(self._to_dict(), indent=1)

    def _to_dict(self) -> dict[str, Any]:
        validation = {name: report._to_dict() for name, report in self.validation.items()}
        return {**asdict(self), "validation": validation, "warnings": self.warnings}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        return cls._from_dict(json.loads(text))

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> Self:
        values.pop("warnings")
        made = cls(**values)
        made.files = [FileAudit.from_dict(file) for file in values["files"]]
        made.total = FileAudit.from_dict(values["total"])
        made.mix = [Share(**share) for share in values.get("mix", [])]  # a cache of earlier versions has none
        made.compared = Compared(**values["compared"]) if values.get("compared") else None
        made.validation = {name: cls._from_dict(report) for name, report in values["validation"].items()}
        return made

    def table(self) -> str:
        """The audit as plain text, at most 100 columns wide unless names are longer."""
        return table_of(self)
