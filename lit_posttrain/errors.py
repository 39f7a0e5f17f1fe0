"""The one exception that people are meant to read: what was found, where, and what to do, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar

Problem = TypeVar("Problem", bound=BaseException)


class PostTrainError(Exception):
    """A mistake in the input or the setup. The command line prints its message without a traceback and exits with 2.

    The message is one line: what was found, where (`file:line` if there is one), and the remedy.
    """


def on_all_ranks(problem: Problem) -> Problem:
    """`problem`, from now on known as one that all ranks raise at the same place, so that they can still save."""
    loosely: Any = problem
    loosely.on_all_ranks = True
    return problem


def is_on_all_ranks(problem: BaseException) -> bool:
    """Whether all ranks raise it at the same place, as far as is known."""
    return getattr(problem, "on_all_ranks", False)


def first_line(problem: BaseException) -> str:
    """What an exception says, in one line: its first, and the next where that one only leads to it."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    text = lines[0] if lines else type(problem).__name__
    for line in lines[1:]:
        if not text.endswith(":"):
            break
        text += f" {line}"
    return f"{text} is not known" if isinstance(problem, KeyError) else text


class InvalidTemplate(PostTrainError):
    """A chat template that is no valid Jinja, whatever it is given."""


class UsageError(PostTrainError):
    """What an argument parser found wrong, in its own words."""


def buried(problem: BaseException) -> PostTrainError | None:
    """The PostTrainError that a library wrapped in `problem`, as jsonargparse does with those of constructors."""
    seen: BaseException | None = problem
    while seen is not None and not isinstance(seen, PostTrainError):
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return seen


def alternatives(name: str, known: Sequence[str], many: str) -> str:
    """What to say of a name that is not known: the close ones, else all of them; `many` is what they are called."""
    close = difflib.get_close_matches(name, known, n=2)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"{many}: {', '.join(sorted(known)[:12]) or 'none'}"


def close_name(name: str, names: Sequence[str]) -> str | None:
    """The one of the names that a mistyped one stands for: what other trainers call it, or a close spelling."""
    known = _ELSEWHERE.get(name, name)
    if known in names:
        return known
    other_case = {one.lower(): one for one in names}.get(name.lower())
    return other_case or next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.75)), None)


def likely(name: str, known: Sequence[str]) -> str | None:
    """The known dotted name that a mistyped or misplaced one stands for: the same last part, else a close spelling."""
    known = [k for k in known if k != name]
    last = _ELSEWHERE.get(name.rpartition(".")[2], name.rpartition(".")[2])
    same = [k for k in known if k.rpartition(".")[2] == last]
    if same and all(k.startswith(name.rpartition(".")[0] + ".") for k in same):
        return same[0]  # levels were left out: the most usual option is known first
    if same:
        return difflib.get_close_matches(name, same, n=1, cutoff=0.0)[0]
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    lasts = {k.rpartition(".")[2]: k for k in known}
    part = difflib.get_close_matches(last, lasts, n=1, cutoff=0.75)
    return whole[0] if whole else lasts[part[0]] if part else None


# what other trainers and libraries call the same thing
_ELSEWHERE = {
    "learning_rate": "lr",
    "epochs": "max_epochs",
    "num_train_epochs": "max_epochs",
    "gradient_accumulation_steps": "accumulate_grad_batches",
    "gradient_checkpointing": "checkpointing",
    "max_seq_length": "max_length",
    "train_batch_size": "batch_size",
    "model_name_or_path": "path",
    "output_dir": "runs",
    # values of --trainer.precision
    "fp16": "16-mixed",
    "half": "16-mixed",
    "float16": "16-mixed",
    "bfloat16": "bf16-mixed",
    "fp32": "32-true",
    "float32": "32-true",
}
