"""What a file's columns say that it is, and which configs take such files: for files that were given to the wrong one,
and for those that could be taken for something else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CONVERSATION = ("messages", "conversations", "conversation")
PROMPT = ("prompt", "instruction", "question", "query", "problem")
INPUT = ("input", "context")
# column of a prompt -> columns of its answer; the first of either that a file has
ANSWERS = {
    "prompt": ("completion", "response"),
    "instruction": ("output", "response", "completion"),
    "question": ("answer", "response"),
    "query": ("response", "answer"),
    "problem": ("solution", "answer"),
}
# names in public preference data of what `PreferenceColumns` has a field for
COMPARED = {
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "margin": ("margin",),
    "responses": ("responses", "completions", "outputs", "answers"),
    "ranks": ("ranks", "rank"),
    "first": ("response1", "response_1", "output_1", "output1"),
    "second": ("response2", "response_2", "output_2", "output2"),
    "completion": ("completion", "response", "output", "answer"),
    "good": ("label", "good"),
}
GOOD_WORDS = {"good": True, "true": True, "desirable": True, "bad": False, "false": False, "undesirable": False}
_ANNOTATOR = re.compile(r"annotator_?\d+$")
_ASKING = ("system", "user", "human", "prompter")
_TOKENS = ("input_ids", "labels", "attention_mask")
KNOWN = frozenset(
    [*CONVERSATION, *PROMPT, *INPUT, "text"]
    + [name for names in ANSWERS.values() for name in names]
    + [name for names in COMPARED.values() for name in names]
)

_PAIRS = "configs/dpo.yaml (also simpo, orpo, kto) and configs/reward.yaml learn from those"


def guessed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `PreferenceColumns`, and `extra` for columns that belong to the prompt, by the names that public data
    sets give them."""

    def first_of(names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in data), None)

    asked = first_of((*PROMPT, *CONVERSATION))
    alone = first_of(("input",)) if not _is_whole(data.get("chosen")) else None
    guesses: dict[str, Any] = {name: first_of(names) for name, names in COMPARED.items()}
    guesses["prompt"] = asked or alone
    guesses["labels"] = [name for name in data if _ANNOTATOR.match(name)] or [n for n in ("label",) if n in data]
    guesses["extra"] = list(INPUT) if asked else []  # later rows may have what the first one lacks
    return {name: value for name, value in guesses.items() if value}


def compared(data: Mapping[str, Any]) -> tuple[str, str] | None:
    """What kind of preference data a record is: its shape, and in words, with the configs that take it."""
    found = guessed(data)

    def shown(*names: str) -> str:
        columns = (found[name] for name in names if name in found)
        return ", ".join(c for column in columns for c in ([column] if isinstance(column, str) else column))

    if {"chosen", "rejected"} <= set(found):
        return "pair", f"pairs of a chosen and a rejected response ({shown('chosen', 'rejected')}); {_PAIRS}"
    if "responses" in found and isinstance(data[found["responses"]], (list, str)):
        return "ranking", (
            f"several responses to a prompt ({shown('responses')}); configs/reward_kwise.yaml, configs/dpo.yaml and "
            "configs/kto.yaml learn from those if they are ranked"
        )
    if {"first", "second"} <= set(found):
        return (
            "judged",
            f"two responses to a prompt and which is better ({shown('first', 'second', 'labels')}); {_PAIRS}",
        )
    if {"prompt", "completion", "good"} <= set(found) and _is_verdict(data[found["good"]]):
        columns = shown("completion", "good")
        return "unpaired", f"single responses marked as good or bad ({columns}); configs/kto.yaml learns from those"
    return None


def asks(data: Mapping[str, Any]) -> str:
    """Likewise for prompts without answers."""
    prompt = next((name for name in PROMPT if name in data), None)
    if prompt is None or any(name in data for name in ANSWERS[prompt]):
        return ""
    return (
        f"prompts without answers ({prompt}); configs/grpo_gsm8k.yaml and configs/ppo.yaml learn from those with a "
        "reward, and `lit-posttrain generate --prompts` answers them"
    )


def tokens(data: Mapping[str, Any]) -> str:
    """Likewise for what was tokenised elsewhere, which nothing takes."""
    found = [name for name in _TOKENS if isinstance(data.get(name), list)]
    return f"rows that are tokens already ({', '.join(found)}); give the texts that they were made of" if found else ""


def answers_itself(data: Mapping[str, Any]) -> bool:
    """Whether a record has a conversation that ends with the assistant's turn: one to learn from as it stands."""
    for column in CONVERSATION:
        turns = data.get(column)
        if isinstance(turns, str):
            return True
        if isinstance(turns, list) and turns and isinstance(turns[-1], Mapping):
            last = str(turns[-1].get("role") or turns[-1].get("from")).strip().lower()
            return last not in (*_ASKING, "tool", "observation")
    return False


def _is_whole(side: Any) -> bool:
    """Whether a side of a pair begins with a prompt of its own."""
    if isinstance(side, list) and side and isinstance(side[0], Mapping):
        return str(side[0].get("role") or side[0].get("from")).strip().lower() in _ASKING
    return isinstance(side, str) and side.startswith("\n\nHuman:")


def _is_verdict(value: Any) -> bool:
    """Whether a label says good or bad; numbers may be any class."""
    return isinstance(value, bool) or str(value).strip().lower() in GOOD_WORDS
