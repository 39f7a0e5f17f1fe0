"""What a completion says: thoughts that are marked with special tokens are no part of the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.published import published, published_tokenizer

from lit_posttrain.cli.commands.answers import row_of
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import recognise_comparison
from lit_posttrain.data.modules.prompt_files import user_prompt
from lit_posttrain.inference.best_of import _row
from lit_posttrain.inference.chat import Answer
from lit_posttrain.rollout.engine import Completion
from lit_posttrain.rollout.said import Said, SaidBy
from lit_posttrain.rollout.text import prompt_ids

USER = {"role": "user", "content": "what is it"}
THOUGHT = {"role": "assistant", "content": "a brown fox", "reasoning_content": "the quick one"}
AGAIN = "<|start|>assistant"
THINKS, FINAL = "<|channel|>analysis<|message|>the quick one<|end|>", "<|channel|>final<|message|>a brown fox"
HARMONY = THINKS + AGAIN + FINAL
LOOKS = "<|channel|>commentary<|message|>I will look<|end|>"
CALL = '<|channel|>commentary to=functions.f json<|message|>{"a": 1}<|call|>'
CALLED = 'commentary to=functions.f json{"a": 1}'


def read(tokenizer: Any, text: str) -> Said:
    return SaidBy(tokenizer)(Completion(tokenizer(text, add_special_tokens=False)["input_ids"], [], "stop"))


@pytest.mark.parametrize("file", published(), ids=lambda file: file.stem)
def test_what_a_template_writes_of_a_thought_and_an_answer_is_read_back(file: Path) -> None:
    tokenizer = published_tokenizer(file)
    messages = [USER, {k: v for k, v in THOUGHT.items() if k != "reasoning_content"}]
    for thought in ("reasoning_content", "thinking", None):
        given = messages if thought is None else [USER, {**messages[1], thought: "the quick one"}]
        try:
            prompt = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(given, tokenize=False)
        except Exception:  # templates fail in every way
            continue
        if not whole.startswith(prompt) or "a brown fox" not in whole:
            continue
        said = read(tokenizer, whole.removeprefix(prompt))
        assert "assistant" not in said.text
        assert "analysis" not in said.text
        assert said.text.strip().endswith("a brown fox")
        if said.thought:
            assert (said.thought.strip(), said.text.strip()) == ("the quick one", "a brown fox")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HARMONY + "<|return|>", Said("a brown fox", "the quick one")),
        (HARMONY, Said("a brown fox", "the quick one")),
        ("<|channel|>analysis<|message|>the quick one", Said("", "the quick one")),
        ("<|channel|>final<|message|> a brown fox<|return|>", Said(" a brown fox")),
        ("a brown fox<|return|>", Said("a brown fox")),
        (THINKS + AGAIN + CALL, Said(CALLED, "the quick one")),
        (THINKS + "\n" + AGAIN + CALL, Said(CALLED, "the quick one\n")),
        (CALL, Said(CALLED)),
        (THINKS + AGAIN + LOOKS + AGAIN + FINAL + "<|return|>", Said("I will look\n\na brown fox", "the quick one")),
        (LOOKS + AGAIN + FINAL, Said("I will look\n\na brown fox")),
        (THINKS + AGAIN + LOOKS + AGAIN + CALL, Said("I will look\n\n" + CALLED, "the quick one")),
        (THINKS + AGAIN + THINKS + AGAIN + FINAL, Said("a brown fox", "the quick one\n\nthe quick one")),
        (THINKS + AGAIN + FINAL[:16], Said("final", "the quick one")),
    ],
)
def test_the_channels_of_gpt_oss(text: str, said: Said) -> None:
    (file,) = published("gptoss.jinja")
    tokenizer = published_tokenizer(file)
    assert read(tokenizer, text) == said
    if said.text and said.thought:  # the next turn
        prompt_ids(tokenizer, [USER, said.message, USER])
        assert "the quick one" not in tokenizer.decode(prompt_ids(tokenizer, [USER, said.message, USER]))


def test_gemma_marks_thoughts_that_its_template_never_writes() -> None:
    for file in published("gemma4*.jinja"):
        tokenizer = published_tokenizer(file)
        text = "<|channel>thought\nthe quick one\n<channel|>a brown fox<turn|>"
        assert read(tokenizer, text) == Said(
            "a brown fox", "the quick one\n" if "v5" not in file.stem else "the quick one"
        )


def test_a_thought_that_is_not_closed_ends_with_the_next_special_token() -> None:
    (file,) = published("gemma4.jinja")
    tokenizer = published_tokenizer(file)
    opens, call = "<|channel>thought\nthe quick one", "call:f{a:1}"
    assert read(tokenizer, f"{opens}<|tool_call>{call}<tool_call|>") == Said(call, "the quick one")
    assert read(tokenizer, f"{opens}<channel|><|tool_call>{call}<tool_call|>") == Said(call, "the quick one")
    assert read(tokenizer, f"{opens}<|tool_call>{call}<channel|>a fox") == Said("a fox", f"the quick one{call}")
    assert read(tokenizer, opens + "<turn|>") == read(tokenizer, opens) == Said("", "the quick one")


def test_a_message_to_a_function_says_which() -> None:
    (file,) = published("muse_glimmer.jinja")
    tokenizer = published_tokenizer(file)
    thinks, final = " to=self<|message|>the quick one<|eom|>", " to=user<|message|>a brown fox<|eot|>"
    assert read(tokenizer, thinks + AGAIN + final) == Said("a brown fox", "the quick one")
    assert read(tokenizer, final) == Said("a brown fox")
    assert read(tokenizer, thinks + AGAIN + " to=f<|message|>{}<|eom|>") == Said(" to=f{}", "the quick one")


def test_thoughts_in_plain_words_are_what_the_model_says() -> None:
    text = "<think>\nthe quick one\n</think>\n\na brown fox"
    for file in [*published("qwen3.jinja"), *published("qwen2_5.jinja")]:
        tokenizer = published_tokenizer(file)
        assert read(tokenizer, text + "<|im_end|>") == Said(text)
    assert read(tiny.tokenizer(), text + "<|im_end|>") == Said(text)
    assert read(tiny.tokenizer(None), text) == Said(text)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "nemotron_3_nano"])
def test_thoughts_between_special_tokens_do_not_run_into_the_answer(name: str) -> None:
    (file,) = published(f"{name}.jinja")
    tokenizer = published_tokenizer(file)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    prompt = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([USER, THOUGHT], tokenize=False)
    said = read(tokenizer, whole.removeprefix(prompt))
    assert (said.thought.strip(), said.text.strip()) == ("the quick one", "a brown fox")


def test_thoughts_are_kept_beside_their_answers() -> None:
    one = user_prompt("what is it", source="x:1")
    good, bad = Answer("a fox", "stop", 0.0, [], "the quick one"), Answer("a dog", "stop", 0.0, [])
    assert row_of(one, [good, bad], {"model": "m"})["responses"] == [
        {"text": "a fox", "reasoning_content": "the quick one", "finish_reason": "stop", "logprob": 0.0, "model": "m"},
        {"text": "a dog", "finish_reason": "stop", "logprob": 0.0, "model": "m"},
    ]
    ranked = [(1.0, good), (0.0, bad)]
    best, pairs, both = (_row(one, ranked, keep) for keep in ("best", "pairs", "all"))
    turn = {"role": "assistant", "content": "a fox", "reasoning_content": "the quick one"}
    assert best is not None
    assert best["messages"][-1] == turn
    for row in (pairs, both):
        assert row is not None
        read_again = recognise_comparison(Record(row, "x", 1)).read(row)
        assert read_again.candidates[0].messages == [turn]
