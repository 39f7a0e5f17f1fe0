"""Prompts as token ids, and completions as text: on every road the same, and nothing lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from helpers.published import published, published_tokenizer

from lit_posttrain.data.modules.prompt_files import SourcedPrompt
from lit_posttrain.errors import PostTrainError
from lit_posttrain.inference.best_of import _row
from lit_posttrain.inference.chat import Answer
from lit_posttrain.on_policy.turns import Episodes
from lit_posttrain.rewards import FunctionReward
from lit_posttrain.rewards.total import RewardSum
from lit_posttrain.rollout.engine import Completion, Sampling
from lit_posttrain.rollout.text import PromptEncoder, prompt_ids
from lit_posttrain.types import PromptRecord, Tree

USER = {"role": "user", "content": "what is it"}
BEGUN = {"role": "assistant", "content": "It is"}
CALL = {"type": "function", "function": {"name": "zulu", "arguments": {"colour": "brown"}}}
CALLED = {"role": "assistant", "content": "It is", "tool_calls": [CALL]}
TOOL = {"type": "function", "function": {"name": "zulu", "parameters": {}}}


def text_call(call: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {**call["function"], "arguments": json.dumps({"colour": "brown"})}}


SPELLINGS: dict[str, tuple[list[Any], list[Any]]] = {
    "arguments as JSON text": ([USER, {**CALLED, "tool_calls": [text_call(CALL)]}], [USER, CALLED]),
    "content null": (
        [USER, {**CALLED, "content": None}, {"role": "tool", "content": "a fox"}],
        [USER, {**CALLED, "content": ""}, {"role": "tool", "content": "a fox"}],
    ),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "what is it"}]}], [USER]),
    "names of ShareGPT": ([{"from": "human", "value": "what is it"}], [USER]),
    "a function's result": (
        [USER, CALLED, {"role": "function", "content": "1"}],
        [USER, CALLED, {"role": "tool", "content": "1"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_messages_as_people_write_them_are_read_as_those_of_a_file(spelling: str) -> None:
    (file,) = published("qwen2_5.jinja")
    tokenizer = published_tokenizer(file)
    given, meant = SPELLINGS[spelling]
    ids = prompt_ids(tokenizer, given)
    assert ids == prompt_ids(tokenizer, PromptRecord(meant, {}))
    text = tokenizer.apply_chat_template(meant, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "`messages` is an empty list"),
        ([{"role": "wizard", "content": "a"}], r"messages\[0\]: role 'wizard'"),
        ([{"role": "system", "content": "be brief"}], "a system prompt without a user turn"),
        ([USER, {"role": "system", "content": "be brief"}], "a system turn after the first turn"),
        ([{"role": "user", "content": 7}], r"messages\[0\]: content is 7"),
        (["what is it"], "not a list of messages"),
        ("what is it", "`messages` is a string, not a list of messages"),
    ],
)
def test_what_is_no_conversation_is_one_line(messages: Any, told: str) -> None:
    for template in (tiny.CHATML, None):
        with pytest.raises(PostTrainError, match=told) as raised:
            prompt_ids(tiny.tokenizer(template), messages)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "prompt",
    [
        PromptRecord([USER], {}, tools=[TOOL]),
        PromptRecord([{"role": "system", "content": "be brief"}, USER], {}),
        PromptRecord([USER, BEGUN], {}),
        [USER, BEGUN, USER],
    ],
)
def test_without_a_template_nothing_but_a_users_text_is_asked(prompt: Any) -> None:
    base = tiny.tokenizer(None)
    with pytest.raises(PostTrainError, match="no chat template, which messages and system prompts need"):
        prompt_ids(base, prompt)
    assert base.decode(prompt_ids(base, [USER])) == "what is it"


@pytest.mark.parametrize("source", ["", "typed", "rows.jsonl:7"])
def test_what_a_template_leaves_out_is_told_of_prompts_of_no_file(source: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    prompts = [SourcedPrompt([{"role": "system", "content": "zulu"}, USER], {}, source=source)] * 2
    told, named = PromptEncoder(tokenizer).changed(prompts)
    assert f"of 2 rows ({source.removesuffix(':7') or 'prompts'}:" in told
    assert "leaves out turn 1 (system) of 2 rows" in named


def test_a_call_behind_the_assistants_words_is_part_of_the_prompt() -> None:
    (file,) = published("qwen2_5.jinja")
    tokenizer = published_tokenizer(file)
    text = tokenizer.decode(prompt_ids(tokenizer, PromptRecord([USER, CALLED], {})))
    assert '"name": "zulu", "arguments": {"colour": "brown"}' in text


def test_rewards_of_training_and_of_best_of_n_see_the_same_text() -> None:
    tokenizer = tiny.tokenizer()
    said: list[str] = []

    def seen(completions: list[str]) -> list[float]:
        said.extend(completions)
        return [float(len(said)) for _ in completions]

    drawn = [Completion(tokenizer(text)["input_ids"], [], "stop") for text in (" a fox<|im_end|>", "\n\na dog \n")]
    for one in drawn:
        one.logprobs = [0.0] * len(one.tokens)
    ids = np.array(prompt_ids(tokenizer, [USER, BEGUN]), np.int32)
    prompt = Tree(ids, [], record=PromptRecord([USER, BEGUN], {}).to_json())
    episodes = Episodes(tokenizer)
    (played,) = episodes.played(episodes.opened([prompt]), 2, Sampling(), lambda *_: [drawn])
    texts, rewards = [one.text for one in played], RewardSum([FunctionReward(seen)])
    rewards(rewards.batch([PromptRecord.of(prompt)] * 2, [prompt.source] * 2, texts, played))
    assert said == [" a fox", "\n\na dog \n"]


@pytest.mark.parametrize("keep", ["best", "all", "pairs"])
def test_what_goes_on_with_the_assistants_words_stays_apart_from_them(keep: Any) -> None:
    one = SourcedPrompt([USER, BEGUN], {"prompt": [USER, BEGUN]})
    ranked = [(1.0, Answer(" a fox", "stop", 0.0, [])), (0.0, Answer(" a dog", "stop", 0.0, []))]
    row = _row(one, ranked, keep)
    assert row is not None
    kept: dict[str, Callable[[], bool]] = {
        "best": lambda: row["messages"] == [USER, {"role": "assistant", "content": "It is a fox"}],
        "all": lambda: [r["text"] for r in row["responses"]] == [" a fox", " a dog"],
        "pairs": lambda: (row["chosen"], row["rejected"]) == (" a fox", " a dog"),
    }
    assert kept[keep]()
