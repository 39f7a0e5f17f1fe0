"""Finds the known name that a mistyped one was meant for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def a(noun: str) -> str:
    """The noun with its article."""
    return f"a{'n' if noun[0].lower() in 'aeiou' else ''} {noun}"


def in_words(names: Sequence[str]) -> str:
    """Names as a sentence lists them: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def close_name(name: str, names: Sequence[str]) -> str | None:
    """The name that was meant: by what other trainers call it, or by a close spelling."""
    known = _ELSEWHERE.get(name, name)
    if known in names:
        return known
    other_case = {one.lower(): one for one in names}.get(name.lower())
    return other_case or next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.75)), None)


def likely(name: str, known: Sequence[str]) -> str | None:
    """The dotted name that was meant: by the same last part, else by a close spelling."""
    known = [k for k in known if k != name]
    way, dot, last = name.rpartition(".")
    last = _ELSEWHERE.get(last, last)
    same = [k for k in known if k.rpartition(".")[2] == last]
    if same and all(k.startswith(f"{way}.") for k in same):
        return same[0]  # levels were left out: the most usual option is known first
    if same:
        return difflib.get_close_matches(f"{way}{dot}{last}", same, n=1, cutoff=0.0)[0]
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    lasts = {k.rpartition(".")[2]: k for k in known}
    part = difflib.get_close_matches(last, lasts, n=1, cutoff=0.75)
    return whole[0] if whole else lasts[part[0]] if part else None


# what other trainers and libraries call the same thing
_ELSEWHERE = {
    "learning_rate": "lr",
    "warmup": "warmup_ratio",
    "warm_up": "warmup_ratio",
    "warmup_steps": "warmup_ratio",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    **dict.fromkeys(("betas", "momentum", "nesterov", "amsgrad", "fused"), "options"),
    "num_generations": "group_size",
    "max_completion_length": "max_new_tokens",
    "kl_coef": "beta",
    "kl_coefficient": "beta",
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
