"""Sampled responses with their rewards, and the figures of a phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lit_posttrain.errors import PostTrainError
from lit_posttrain.rewards.total import RewardSum
from lit_posttrain.rollout.engine import Completion
from lit_posttrain.rollout.said import SaidBy
from lit_posttrain.types import PromptRecord, Response, Tree

Stats = dict[str, tuple[float, float]]


@dataclass
class Rollout:
    """A prompt and its sampled responses.

    tree: with a response's score as its label `reward`, which it lacks without one, and the engine's log-probs of the
    trained tokens as `per_target["engine"]`. responses: their texts. truncated: which were cut off. unshaped: their
    scores without rewards that only shape. parts: by reward what it gave to each, NaN for nothing. failed: by reward on
    how many it failed.
    """

    tree: Tree
    responses: list[str]
    truncated: list[bool]
    unshaped: list[float]
    parts: dict[str, list[float]]
    failed: dict[str, int]

    @property
    def scores(self) -> list[float]:
        """The score of each response; NaN for none."""
        return [response.label("reward") for response in self.tree.responses]

    @property
    def varied(self) -> bool:
        """Whether two of the responses have different scores."""
        return _differ(self.scores)

    @property
    def telling(self) -> bool:
        """Whether they differ in what is asked of them: not in their length alone, say."""
        return _differ(self.unshaped)


def judged(
    prompts: Sequence[Tree],
    drawn: Sequence[Sequence[Completion]],
    rewards: RewardSum,
    tokenizer: Any,
    mask_truncated: bool,
) -> list[Rollout]:
    """Completions of prompts with their rewards.

    Raises:
        PostTrainError: for an engine that gives fewer answers than it was asked for, or an empty one.
    """
    if len(drawn) != len(prompts) or len({len(answers) for answers in drawn}) > 1:
        raise PostTrainError("the rollout engine gave fewer responses than it was asked for; see its messages above")
    if not prompts:
        return []
    flat = [(tree, answer) for tree, answers in zip(prompts, drawn, strict=True) for answer in answers]
    if any(not answer.tokens for _, answer in flat):
        raise PostTrainError("the rollout engine gave a response without tokens; see its messages above")
    completions, said_by = [answer for _, answer in flat], SaidBy(tokenizer)
    batch = rewards.batch(
        [PromptRecord.of(tree) for tree, _ in flat],
        [tree.source for tree, _ in flat],
        [said_by(answer).text for answer in completions],
        completions,
    )
    found = rewards(batch)
    totals, unshaped = found.total.tolist(), found.unshaped.tolist()
    parts = {name: values.tolist() for name, values in found.parts.items()}
    rollouts, begin = [], 0
    for tree, answers in zip(prompts, drawn, strict=True):
        own = slice(begin, begin + len(answers))
        first = begin == 0  # failures are counted once for the whole batch
        rollouts.append(
            Rollout(
                _sampled(tree, answers, totals[own], mask_truncated),
                list(batch.responses[own]),
                list(batch.truncated[own]),
                unshaped[own],
                {name: values[own] for name, values in parts.items()},
                found.failed if first else dict.fromkeys(found.failed, 0),
            )
        )
        begin += len(answers)
    return rollouts


def _differ(scores: Sequence[float]) -> bool:
    known = [score for score in scores if score == score]
    return bool(known) and min(known) < max(known)


def _sampled(prompt: Tree, answers: Sequence[Completion], scores: Sequence[float], mask_truncated: bool) -> Tree:
    responses, logprobs = [], []
    for answer, score in zip(answers, scores, strict=True):
        # what has no score, and by choice what was cut off, trains nothing
        counts = score == score and not (mask_truncated and answer.finish_reason == "length")
        counted = np.full(len(answer.tokens), counts, np.bool_)
        labels = {"reward": score} if score == score else {}
        responses.append(Response(np.array(answer.tokens, np.int32), counted, labels))
        logprobs.append(np.array(answer.logprobs, np.float32)[counted])
    columns = {"engine": np.concatenate(logprobs)}
    return Tree(prompt.prompt, responses, None, prompt.file, prompt.line, "", columns)


def unscored(rollouts: Sequence[Rollout]) -> str:
    """What there is to say of responses on which no reward has a say, and none has failed."""
    if any(number for one in rollouts for number in one.failed.values()):
        return ""  # that has been told
    scores = [(score, one.tree.source) for one in rollouts for score in one.scores]
    none = [source for score, source in scores if score != score]
    if not none:
        return ""
    return (
        f"{len(none)} of {len(scores)} responses have no score and train nothing, first those to {none[0]}: no reward "
        "has a say on them; look whether the row has the columns that rewards read"
    )


def cut_off(rollouts: Sequence[Rollout], longest: int) -> str:
    """What there is to say where most responses are cut off before their end."""
    ends = [cut for one in rollouts for cut in one.truncated]
    if sum(ends) * 2 <= len(ends):
        return ""
    return (
        f"{sum(ends)} of {len(ends)} responses were cut off at {longest} tokens: rewards judge text without its end, "
        "and the model does not learn to stop; raise --model.sampling.max_new_tokens"
    )


def phase_stats(rollouts: Sequence[Rollout], rewards: Sequence[str]) -> Stats:
    """By name the sum and the count of what is logged of sampled responses: reward, reward_std (of groups, ddof 1),
    frac_reward_zero_std, rewards/NAME/mean and rewards/NAME/failed, unscored (share), completions/mean_length (tokens),
    completions/clipped_ratio."""
    scores = [torch.tensor(one.scores, dtype=torch.float64) for one in rollouts]
    known = [score[~score.isnan()] for score in scores]
    spreads = [float(score.std()) for score in known if len(score) > 1]
    sizes = [len(response.tokens) for one in rollouts for response in one.tree.responses]
    count, total = float(len(sizes)), torch.cat(known) if known else torch.zeros(0)
    stats: Stats = {
        "reward": (float(total.sum()), float(len(total))),
        "reward_std": (sum(spreads), float(len(spreads))),
        "frac_reward_zero_std": (float(sum(not one.varied for one in rollouts)), float(len(rollouts))),
        "unscored": (count - len(total), count),
        "completions/mean_length": (float(sum(sizes)), count),
        "completions/clipped_ratio": (float(sum(sum(one.truncated) for one in rollouts)), count),
    }
    for name in rewards:
        values = [value for one in rollouts for value in one.parts[name] if value == value]
        stats[f"rewards/{name}/mean"] = (sum(values), float(len(values)))
        # always there: in validation every rank must have the same names
        stats[f"rewards/{name}/failed"] = (float(sum(one.failed[name] for one in rollouts)), count)
    return stats
