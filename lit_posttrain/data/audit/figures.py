"""What the audit of a data set knows: files, their total, the template's behaviour, held-out rows, mix, preferences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from lit_posttrain.data.audit.compared import Compared
from lit_posttrain.data.audit.file_audit import FileAudit


@dataclass
class Share:
    """One entry of --data.path in an epoch.

    examples: its training examples. shown: how many examples of it an epoch shows. of_examples, of_tokens: its shares
    of an epoch's examples and trained tokens.
    """

    path: str
    weight: float
    examples: int
    shown: int
    of_examples: float
    of_tokens: float


@dataclass
class AuditFigures:
    """All files of one data set.

    total: the sums, and lengths over everything. dated_template: today's date, if the template writes it. remedy: how
    to make the template render the generation prompt, where it does not. own_prompt: the beginning of the system prompt
    that the template adds to conversations without one, and its length. ends: trained turns by the end token they close
    with ("" is none). eos: the tokenizer's end-of-sequence token. held_out: examples set aside by --data.val_fraction.
    in_training: examples of a validation set whose record is in the training data too. first_rows: of a stream, how
    many of its rows were looked at; 0 where all were. mix: shares of an epoch, where --data.weights sets them.
    compared: figures of preferences. left_out: what lies beside the files that were read and was not. read_by: import
    path of the function that returned the rows, see `own_format`; empty without one. limited_by: the model that takes
    no more than `max_length` tokens, such as "the teacher"; empty if `max_length` may be raised. validation: reports of
    the validation and test sets, by name.
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
    limited_by: str = ""
    validation: dict[str, Self] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """True if its rows are trained on; prompts are not, their answers are still to come."""
        return self.train_on != "nothing"

    @property
    def kind(self) -> str:
        """What its examples are called, in the plural."""
        return "prompts" if self.compared or not self.trains else "examples"

    @property
    def closing_tokens(self) -> list[str]:
        """End tokens that close trained turns, without those of fewer than one in a hundred: the text of a row may end
        with a special token too."""
        least = sum(self.ends.values()) / 100
        return [token for token, turns in self.ends.items() if token and turns >= least]

    @property
    def unused(self) -> list[str]:
        """The columns and keys that are not used, one line per file."""
        return [file.not_used for file in self.files if file.unread]

    @property
    def for_longer_rows(self) -> str:
        """What to do about rows that are longer than `max_length`."""
        if self.limited_by:
            return f"{self.limited_by} takes {self.max_length} tokens: take shorter rows, or another model"
        return "raise --data.max_length"

    @property
    def why_empty(self) -> str:
        """What became of the rows where none can be used, and what to do."""
        reasons = [
            f"{tally.count} {reason} ({file.where(tally)})"
            for file in self.files
            for reason, tally in file.dropped.items()
        ]
        advice = [self.for_longer_rows] if any("max_length" in reason for reason in reasons) else []
        if self.held_out:
            reasons.append(f"{self.held_out} held out by val_fraction {self.val_fraction:g}")
            advice.append("pass --data.val_fraction 0, or --data.val_path")
        return "; ".join([f"of {self.total.rows} rows: " + (", ".join(reasons) or "none kept"), *advice])
