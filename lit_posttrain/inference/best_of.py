"""Best-of-n: sampled answers judged by rewards, kept as data for SFT, for reward models or for preference methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_posttrain.data.modules.prompt_files import SourcedPrompt, with_answer
from lit_posttrain.inference.chat import Answer
from lit_posttrain.rewards.calls import refuse_failing
from lit_posttrain.rewards.total import RewardSum

Keep = Literal["best", "all", "pairs"]
Row = dict[str, Any]
Drawn = Callable[[Sequence[SourcedPrompt], int], Sequence[Sequence[Answer]]]
_TOGETHER = 16  # prompts that are answered, and their answers judged, at once


@dataclass
class Kept:
    """The kept rows, and what was left out: the number of answers that were cut off or have no score, and of prompts
    whose best score was too low or whose answers have equal scores."""

    rows: list[Row]
    cut_off: int = 0
    no_score: int = 0
    too_low: int = 0
    alike: int = 0

    def left_out(self, answers: int, prompts: int, longest: int, least: float | None) -> str:
        """A sentence on what is left out of so many answers and prompts; "" if nothing is."""
        counts = {
            f"of {answers} answers were cut off at {longest} tokens (--max_new_tokens, --cut_off true)": self.cut_off,
            f"of {answers} answers have no score, or no text": self.no_score,
            f"of {prompts} prompts have no answer of at least {least}": self.too_low,
            f"of {prompts} prompts have no two answers of different scores": self.alike,
        }
        return "; ".join(f"{count} {what}" for what, count in counts.items() if count)


def chosen(
    asked: Sequence[SourcedPrompt],
    answer: Drawn,
    rewards: RewardSum,
    keep: Keep,
    cut_off: bool = False,
    least: float | None = None,
) -> Kept:
    """Rows to train on. best: the best answer to each prompt, as a conversation (rejection sampling). all: every answer
    with its rank, for reward_kwise.yaml. pairs: the best and the worst answer, where their scores differ. Answers
    without a score are left out, those that were cut off too unless `cut_off`, and prompts of which nothing is left or
    whose best answer has less than `least`.

    Raises:
        PostTrainError: for a reward that has failed on all it was asked so far.
    """
    try:
        return _chosen(asked, answer, rewards, keep, cut_off, least)
    except BaseException:
        rewards.processes.end()
        raise
    finally:
        rewards.processes.end_stuck()


def _chosen(
    asked: Sequence[SourcedPrompt], answer: Drawn, rewards: RewardSum, keep: Keep, cut_off: bool, least: float | None
) -> Kept:
    found = Kept([])
    rewards.begin()
    # several prompts are judged together: a reward that fails on every answer to one of them has still judged others
    for start in range(0, len(asked), _TOGETHER):
        own = asked[start : start + _TOGETHER]
        answers = answer(own, start)
        scores = iter(_scores(own, answers, rewards))
        refuse_failing([rewards.tallies])
        for one, said in zip(own, answers, strict=True):
            scored = [(next(scores), a) for a in said]
            ended = [(s, a) for s, a in scored if cut_off or a.finish_reason != "length"]
            ranked = [(s, a) for s, a in ended if not math.isnan(s) and a.text.strip()]
            ranked.sort(key=lambda pair: -pair[0])
            found.cut_off += len(scored) - len(ended)
            found.no_score += len(ended) - len(ranked)
            if least is not None and ranked and ranked[0][0] < least:
                found.too_low += 1
                continue
            row = _row(one, ranked, keep)
            found.rows += [row] if row else []
            found.alike += bool(ranked) and row is None
    return found


def _scores(asked: Sequence[SourcedPrompt], answers: Sequence[Sequence[Answer]], rewards: RewardSum) -> list[float]:
    pairs = [(one, answer) for one, said in zip(asked, answers, strict=True) for answer in said]
    records, drawn = [one for one, _ in pairs], [answer for _, answer in pairs]
    batch = rewards.batch(records, [one.source for one in records], [answer.text for answer in drawn], drawn)
    scores: list[float] = rewards(batch).total.tolist()
    return scores


def _row(one: SourcedPrompt, ranked: list[tuple[float, Answer]], keep: Keep) -> Row | None:
    if not ranked:
        return None
    (highest, best), (lowest, worst) = ranked[0], ranked[-1]
    if keep == "best":
        return one.row(messages=with_answer(one.messages, best.message), reward=highest)
    if highest == lowest:
        return None  # nothing to prefer
    if keep == "pairs":
        return one.row(prompt=one.messages, chosen=best.value, rejected=worst.value, reward=[highest, lowest])
    levels = sorted({score for score, _ in ranked}, reverse=True)
    responses = [
        {
            "text": a.text,
            **({"reasoning_content": a.thought} if a.thought else {}),
            "rank": levels.index(score),
            "reward": score,
        }
        for score, a in ranked
    ]
    return one.row(prompt=one.messages, responses=responses)
