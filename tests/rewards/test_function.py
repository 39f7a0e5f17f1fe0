"""Functions as rewards."""

from __future__ import annotations

from typing import Any

import pytest

from lit_posttrain import PostTrainError
from lit_posttrain.rewards import FunctionReward, RewardBatch


def test_what_trl_passes_to_a_reward_function_is_passed_or_refused() -> None:
    def counted(prompts: Any, completions: Any, completion_ids: Any, **more: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    def logs(prompts: Any, completions: Any, log_metric: Any, **more: Any) -> list[float]:
        return [0.0 for _ in completions]

    reward = FunctionReward(counted)
    reward.check(["answer"], "a.jsonl:1")
    batch = RewardBatch([[], []], ["a", "b"], {}, [[1, 2], [3]], [False, False], ["a.jsonl:1"] * 2)
    assert reward.score(batch) == [2.0, 1.0]
    with pytest.raises(PostTrainError, match="logs takes `log_metric`, which TRL passes and lit-posttrain does not"):
        FunctionReward(logs).check(["answer"], "a.jsonl:1")
