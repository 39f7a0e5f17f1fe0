"""What a judge's options refuse."""

from __future__ import annotations

from typing import Any

import pytest

from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.spec import JudgeBudget, JudgeLimits, JudgeSpec

SECRET = "sk-abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": " "}, "model is empty"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0"),
        ({"endpoint": "localhost:8000"}, "is no URL"),
        ({"endpoint": "http://localhost:port/v1"}, "is no URL"),
        ({"endpoint": f"https://me:{SECRET}@host/v1"}, "a key belongs into the environment"),
        ({"endpoint": f"https://host/v1?key={SECRET}"}, "a key belongs into the environment"),
        ({"api_key_env": SECRET}, "not the key itself"),
    ],
)
def test_a_mistake_in_the_options_is_told_in_a_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(PostTrainError, match=told) as problem:
        JudgeSpec(**{"model": "judge", **options})
    assert SECRET not in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_budget_of_money_needs_prices() -> None:
    JudgeBudget(max_cost=2.0, price_in=0.1, price_out=0.4)
    with pytest.raises(PostTrainError, match=r"budget\.price_in"):
        JudgeBudget(max_cost=2.0, price_out=0.4)
    with pytest.raises(PostTrainError, match=r"limits\.concurrency is 0"):
        JudgeLimits(concurrency=0)


@pytest.mark.parametrize("key", ["hf_" + "aB3" * 11, "gsk_" + "aB3" * 17])
def test_a_key_with_the_form_of_a_name_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(PostTrainError, match="not the key itself") as problem:
        JudgeSpec("judge", endpoint="http://127.0.0.1:9/v1", api_key_env=key)
    assert key not in str(problem.value)
