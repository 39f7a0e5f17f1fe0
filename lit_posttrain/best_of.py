"""Best-of-n: sampled answers judged by rewards, kept as data for SFT, for reward models or for preference methods."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_posttrain.chat import Answer
from lit_posttrain.data.messages import BadRow
from lit_posttrain.data.prompts import PromptOptions
from lit_posttrain.data.sources import find_sources
from lit_posttrain.errors import PostTrainError
from lit_posttrain.rewards.base import RewardBatch
from lit_posttrain.rewards.total import RewardSum

Keep = Literal["best", "all", "pairs"]
Row = dict[str, Any]
_TOGETHER = 16  # prompts whose answers a reward judges at once


@dataclass
class Asked:
    """A prompt: its messages, the columns of its row, and `file:line`."""

    messages: Sequence[Mapping[str, Any]]
    columns: Mapping[str, Any]
    source: str


def read_asked(path: str) -> list[Asked]:
    """The prompts of a file, with their columns, as `PromptData` reads them.

    Raises:
        PostTrainError: for a file that cannot be read, a row without a prompt, and no row at all.
    """
    found = []
    for source in find_sources(path):
        reader = None
        for record in source.records():
            reader = reader or PromptOptions().reader(record)
            try:
                known = reader.read(record.data)
            except BadRow as problem:
                raise PostTrainError(f"{record.file}:{record.line}: {problem}") from problem
            found.append(Asked(known.examples[0].messages, record.data, f"{record.file}:{record.line}"))
    if not found:
        raise PostTrainError(f"{path}: no prompts; name another file")
    return found


def kept(asked: Sequence[Asked], answers: Sequence[Sequence[Answer]], rewards: RewardSum, keep: Keep) -> list[Row]:
    """Rows to train on. best: the best answer to each prompt, as a conversation (rejection sampling). all: every answer
    with its rank, for reward_kwise.yaml. pairs: the best and the worst answer, where their scores differ. Answers
    without a score are left out, and prompts of which nothing is left."""
    rows: list[Row] = []
    for one, said, own in zip(asked, answers, _scores(asked, answers, rewards), strict=True):
        ranked = [(s, a) for s, a in zip(own, said, strict=True) if not math.isnan(s) and a.text]
        ranked.sort(key=lambda pair: -pair[0])
        row = _row(list(one.messages), ranked, keep)
        rows += [row] if row else []
    return rows


def _scores(asked: Sequence[Asked], answers: Sequence[Sequence[Answer]], rewards: RewardSum) -> Iterator[list[float]]:
    """Of the answers to each prompt. Several prompts are judged together, in equal parts: a reward that fails on every
    answer to one of them has still judged the others, and its time limit is for a part."""
    names = dict.fromkeys(name for one in asked for name in one.columns)
    parts = math.ceil(len(asked) / _TOGETHER)
    for part in range(parts):
        places = range(part * len(asked) // parts, (part + 1) * len(asked) // parts)
        pairs = [(asked[place], answer) for place in places for answer in answers[place]]
        scores = rewards(
            RewardBatch(
                prompts=[one.messages for one, _ in pairs],
                responses=[answer.text for _, answer in pairs],
                columns={name: [one.columns.get(name) for one, _ in pairs] for name in names},
                tokens=[answer.tokens for _, answer in pairs],
                truncated=[answer.finish_reason == "length" for _, answer in pairs],
                sources=[one.source for one, _ in pairs],
            )
        ).total.tolist()
        for place in places:
            own, scores = scores[: len(answers[place])], scores[len(answers[place]) :]
            yield own


def _row(prompt: list[Any], ranked: list[tuple[float, Answer]], keep: Keep) -> Row | None:
    if not ranked:
        return None
    (highest, best), (lowest, worst) = ranked[0], ranked[-1]
    if keep == "best":
        return {"messages": [*prompt, {"role": "assistant", "content": best.text}], "reward": highest}
    if highest == lowest:
        return None  # nothing to prefer
    if keep == "pairs":
        return {"prompt": prompt, "chosen": best.text, "rejected": worst.text, "reward": [highest, lowest]}
    levels = sorted({score for score, _ in ranked}, reverse=True)
    responses = [{"text": a.text, "rank": levels.index(score), "reward": score} for score, a in ranked]
    return {"prompt": prompt, "responses": responses}
