"""Which files of a folder are read if their names tell training data from evaluation data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lit_posttrain.errors import PostTrainError

# the words by which the hub tells splits apart, between other parts of a name
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "heldout", "held_out"),
}
_SPLITS = {
    split: re.compile(rf"(?:^|[^a-z])(?:{'|'.join(words)})(?:[^a-z]|$)", re.IGNORECASE)
    for split, words in _WORDS.items()
}


def split_of(file: Path) -> str:
    """The split that a file's name indicates; empty for none."""
    return next((split for split, words in _SPLITS.items() if words.search(file.name)), "")


def split_files(folder: str, files: Sequence[Path]) -> tuple[list[Path], str]:
    """The files of a folder to read, and a description of the others: evaluation data is never mixed into training
    data.

    Raises:
        PostTrainError: the names do not tell which files are training data.
    """
    splits = {file: split_of(file) for file in files}
    there = dict.fromkeys(splits.values())
    measured = [file for file, split in splits.items() if split in ("validation", "test")]
    if not measured or len(there) == 1:
        return list(files), ""
    listed = ", ".join(file.name for file in measured[:6]) + (", ..." if len(measured) > 6 else "")
    if "train" not in there:
        raise PostTrainError(
            f"{folder}: holds evaluation files ({listed}), and none whose name has `train` in it; name the files "
            f"to read, such as {Path(folder) / files[0].name}"
        )
    kept = [file for file in files if file not in measured]
    return kept, f"{folder}: not read, evaluation files by their names: {listed}"
