"""Sampled responses as rows of a table, for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_posttrain.on_policy.rollouts import Rollout
from lit_posttrain.tokenizer import Tokenizer


def completion_rows(rollouts: Sequence[Rollout], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """A row a response: source, prompt, response, tokens, truncated, reward and rewards/NAME (None for no score), and
    where the method has one the mean advantage of its trained tokens."""
    rows = []
    for one in rollouts:
        prompt = tokenizer.decode(one.tree.prompt.tolist(), skip_special_tokens=True).strip()
        sizes = [response.num_trained for response in one.tree.responses]
        found = one.tree.per_target.get("advantage")
        advantages = None if found is None else np.split(found, np.cumsum(sizes)[:-1])
        for place, trajectory in enumerate(one.trajectories):
            row: dict[str, Any] = {"source": one.tree.source, "prompt": prompt, "response": trajectory.text}
            row |= {"tokens": len(trajectory.tokens), "truncated": trajectory.truncated}
            row["reward"] = _or_none(float(one.total[place]))
            row |= {f"rewards/{name}": _or_none(float(values[place])) for name, values in one.scores.items()}
            if advantages is not None:
                row["advantage"] = float(advantages[place].mean()) if sizes[place] else None
            rows.append(row)
    return rows


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
