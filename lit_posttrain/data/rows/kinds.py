"""What kind of data set a file's columns suggest, and which configs take it: for files that were given to the wrong
config, and for columns that are ambiguous."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lit_posttrain.data.rows.message_keys import is_message
from lit_posttrain.data.rows.votes import Winner, whole_number

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
# columns of what is right: a row of these, a `prompt` and an `input` is a program's task for a reward
RIGHT = (
    *("answer", "answers", "solution", "output", "outputs", "expected_output", "expected_answer", "expected"),
    *("ground_truth", "gold", "target", "label", "reference", "reference_answer", "reward_model", "verification_info"),
    *("test", "tests", "test_list", "test_cases", "unit_tests"),
)
# names in public preference data of what `PreferenceColumns` has a field for
COMPARED = {
    "chosen": ("chosen", "chosen_response"),
    "rejected": ("rejected", "rejected_response"),
    "margin": ("margin",),
    "responses": ("responses", "completions", "outputs", "answers", "generations"),
    "ranks": ("ranks", "rank"),
    "scores": ("ratings", "scores"),
    "first": ("response1", "response_1", "output_1", "output1"),
    "second": ("response2", "response_2", "output_2", "output2"),
    "completion": ("completion", "response", "output", "answer"),
    "good": ("label", "good", "kto_tag", "desirable"),
}
# below 0 the first response is better, above it the second
_SIGNED: dict[str, Winner] = {
    **dict.fromkeys(("-3", "-2", "-1"), "first"),
    "0": "tie",
    **dict.fromkeys(("1", "2", "3"), "second"),
}
_ARENA: dict[str, Winner] = {
    "model_a": "first",
    "model_b": "second",
    "tie": "tie",
    **dict.fromkeys(("tie (bothbad)", "both_bad"), "neither"),
}
# published sets of judged pairs that are read as they are: columns of the prompt, of both responses and of the label,
# and what the label says
JUDGED: tuple[tuple[str | None, str, str, str, dict[str, Winner]], ...] = (
    ("prompt", "response_0", "response_1", "better_response_id", {"0": "first", "1": "second"}),  # PKU-SafeRLHF
    ("history", "human_ref_A", "human_ref_B", "labels", {"1": "first", "0": "second"}),  # Stanford Human Preferences
    ("prompt", "response_1", "response_2", "preference_strength", _SIGNED),  # HelpSteer2
    ("context", "response1", "response2", "overall_preference", _SIGNED),  # HelpSteer3
    (None, "conversation_a", "conversation_b", "winner", _ARENA),  # LMArena; the prompt is what both begin with
)
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


def guessed(data: Mapping[str, Any], good: str | None = None) -> dict[str, Any]:
    """The columns of a record by the field of `PreferenceColumns` that they match by name. extra: columns that belong
    to the prompt. judges: candidates for `labels`, each a list of columns. good: the column that the user named so."""

    def first_of(names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in data), None)

    whole = is_whole(data.get("chosen"))
    asked = first_of(PROMPT) or (None if whole and answers_itself(data) else first_of(CONVERSATION))
    alone = first_of(("input",)) if not whole else None
    if _are_messages(data.get("context")):
        alone = alone or "context"
    guesses: dict[str, Any] = {name: first_of(names) for name, names in COMPARED.items()}
    guesses["prompt"] = asked or alone
    guesses["labels"] = [name for name in data if _ANNOTATOR.match(name)] or [n for n in ("label",) if n in data]
    guesses["extra"] = list(INPUT) if asked else []  # later rows may have what the first one lacks
    given = data.get(guesses["responses"] or "")
    ranked = isinstance(given, list) and any(isinstance(part, Mapping) and "rank" in part for part in given)
    if guesses["ranks"] or ranked:
        guesses["scores"] = None
    if "response_0" in data:  # which is not named like this where responses count from 1
        guesses["first"], guesses["second"] = "response_0", first_of(("response_1",))
    verdicts = [name for name in COMPARED["good"] if _is_verdict(data, name)]
    guesses["good"] = next(iter(verdicts), guesses["good"])
    if answers_itself(data) and (good or verdicts):  # as TRL and LLaMA-Factory have them
        guesses["conversation"] = first_of(CONVERSATION)
    judges = [guesses["labels"]] * bool(guesses["labels"])
    for prompt, first, second, label, _ in JUDGED:
        if all(name in data for name in (prompt, first, second, label) if name):
            judges.append([label])
            guesses |= {"prompt": prompt, "first": first, "second": second, "labels": [label]}
    guesses["judges"] = judges
    return {name: value for name, value in guesses.items() if value}


def is_label(name: str) -> bool:
    """True if columns of judged pairs have this name."""
    return _ANNOTATOR.match(name) is not None or any(name in columns for *columns, _ in JUDGED)


def label_values(found: Mapping[str, Any]) -> dict[str, Winner] | None:
    """What the labels of a published data set mean, recognised by its columns; None for an unknown one."""
    read = (found["first"], found["second"], found["labels"])
    return next((values for _, *columns, label, values in JUDGED if read == (*columns, [label])), None)


def compared(data: Mapping[str, Any]) -> tuple[str, str] | None:
    """The kind of preference data a record is: its shape, and a description that names the configs for it."""
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
    single = "completion" if {"prompt", "completion"} <= set(found) else "conversation"
    if {single, "good"} <= set(found) and _is_verdict(data, found["good"]):
        columns = shown(single, "good")
        return "unpaired", f"single responses marked as good or bad ({columns}); configs/kto.yaml learns from those"
    return None


def asks(data: Mapping[str, Any]) -> str:
    """As `compared`, for prompts without answers."""
    prompt = next((name for name in PROMPT if name in data), None)
    if prompt is None or any(name in data for name in ANSWERS[prompt]):
        return ""
    return (
        f"prompts without answers ({prompt}); configs/grpo_gsm8k.yaml and configs/ppo.yaml learn from those with a "
        "reward, and `lit-posttrain generate --prompts` answers them"
    )


def tokens(data: Mapping[str, Any]) -> str:
    """As `compared`, for data that is tokenised already, which no config takes."""
    found = [name for name in _TOKENS if isinstance(data.get(name), list)]
    return f"rows that are tokens already ({', '.join(found)}); give the texts that they were made of" if found else ""


def answers_itself(data: Mapping[str, Any]) -> bool:
    """True if a record has a conversation that ends with an assistant turn: one to train on as it is."""
    for column in CONVERSATION:
        turns = data.get(column)
        if isinstance(turns, str):
            return True
        if isinstance(turns, list) and turns and isinstance(turns[-1], Mapping):
            last = str(turns[-1].get("role") or turns[-1].get("from")).strip().lower()
            return last not in (*_ASKING, "tool", "observation")
    return False


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def is_whole(side: object) -> bool:
    """True if a side of a pair begins with its own prompt."""
    if isinstance(side, list) and side and isinstance(side[0], Mapping):
        return str(side[0].get("role") or side[0].get("from")).strip().lower() in _ASKING
    return isinstance(side, str) and side.startswith("\n\nHuman:")


def _is_verdict(data: Mapping[str, Any], name: str) -> bool:
    """True if a column says good or bad; a number in `label` may be any class."""
    value = data.get(name)
    if name != "label" and whole_number(value) in (0, 1):
        return True
    return isinstance(value, bool) or str(value).strip().lower() in GOOD_WORDS
