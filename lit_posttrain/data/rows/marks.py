"""Marks that say if a turn or a whole row is trained on: every spelling that other tools use, in one table.

A mark is true or false. A weight in between would need a weighted loss, and is refused instead of rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow

# key of a message -> True if a true value means "train on this turn"
MESSAGE_MARKS = {
    "weight": True,  # OpenAI, Together AI, mistral-finetune, ShareGPT sets such as SlimOrca: 0 or 1
    "train": True,  # axolotl, tinker
    "training": True,  # axolotl
    "trainable": True,  # tinker
    "loss": True,  # ms-swift
    "loss_scale": True,  # ms-swift
    "loss_weight": True,  # LLaMA-Factory
    "loss_mask": True,  # verl and others: 1 for what is trained on
    "masked": False,  # torchtune: true for what is left out of the loss
}
# axolotl: a list of {begin_offset, end_offset, train} over the characters of a turn
DETAILS = ("train_detail", "training_detail")
# columns of a row that say so of all its assistant turns. The other names say something else of a row: `loss` is what
# somebody measured, `masked` that names were removed, `training` which split it is of
_OF_ROWS = ("weight", "sample_weight", "loss_weight", "loss_scale", "loss_mask", "train", "trainable")
ROW_MARKS = dict.fromkeys(_OF_ROWS, True)
_WORDS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def is_mark(value: object) -> bool:
    """True if a value is a mark: true, false or a number. Any other text is content."""
    return isinstance(value, (bool, int, float)) or str(value).strip().lower() in _WORDS


def mark_of(values: Mapping[str, Any], marks: Mapping[str, bool], where: str) -> bool | None:
    """True if the owner of `values` is to be trained on, False if not, None without a mark.

    Raises:
        BadRow: a mark is neither true nor false, or two marks differ.
    """
    said = {key: _answer(values[key], f"{where}`{key}`") == marks[key] for key in marks if values.get(key) is not None}
    if len(set(said.values())) > 1:
        raise BadRow("mark", f"{where}{' and '.join(f'`{key}`' for key in said)} contradict each other; keep one")
    return next(iter(said.values()), None)


def detail_of(values: Mapping[str, Any], size: int, where: str, idle: bool = False) -> bool | None:
    """False if marks on parts of a turn exclude all of it; None without such marks. size: characters of the turn. idle:
    the turn is not trained on anyway.

    Raises:
        BadRow: they exclude only a part of it.
    """
    for key in DETAILS:
        parts = values.get(key)
        if parts is None or parts == [] or idle:
            continue
        if _leave_out_all(parts, size):
            return False
        raise BadRow(
            "mark",
            f"{where}`{key}` marks parts of a turn, and turns are trained on as a whole or not at all; mark the turn "
            "with `train`, true or false, or remove the mark",
        )
    return None


def _leave_out_all(parts: object, size: int) -> bool:
    """True if the excluded parts cover a whole turn; their end offsets are inclusive."""
    if not isinstance(parts, Iterable) or isinstance(parts, (str, Mapping)):
        return False
    covered = 0
    try:
        for begin, end, train in sorted((p["begin_offset"], p["end_offset"], p["train"]) for p in parts):
            if train is not False or begin > covered:
                return False
            covered = max(covered, end + 1)
    except (TypeError, KeyError):
        return False
    return bool(covered >= size)


def _answer(value: object, what: str) -> bool:
    answer = _WORDS.get(str(value).strip().lower())
    if answer is None:
        raise BadRow(
            "mark",
            f"{what} is {value!r}; it must be 1 (train on it) or 0 (do not): there is no weight between for a turn or "
            "a row. Change or rename it; --data.weights weighs whole files",
        )
    return answer
