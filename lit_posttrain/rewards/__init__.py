"""Rewards: rules, functions, reward models, and their weighted sum."""

from __future__ import annotations

from lit_posttrain.rewards.base import Reward, RewardBatch
from lit_posttrain.rewards.calls import refuse_failing
from lit_posttrain.rewards.function import FunctionReward
from lit_posttrain.rewards.judge import JudgeReward
from lit_posttrain.rewards.model import RewardModelScore
from lit_posttrain.rewards.rules import ExactMatch, JsonValid, LengthPenalty, MathAnswer, Regex, Repetition
from lit_posttrain.rewards.total import Rewarded, RewardSum

__all__ = [
    "ExactMatch",
    "FunctionReward",
    "JsonValid",
    "JudgeReward",
    "LengthPenalty",
    "MathAnswer",
    "Regex",
    "Repetition",
    "Reward",
    "RewardBatch",
    "RewardModelScore",
    "RewardSum",
    "Rewarded",
    "refuse_failing",
]
