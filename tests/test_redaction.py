"""What is hidden of a config, and what of it can still be compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lit_posttrain.runs.redaction import comparable, redacted

KEY = "0123456789abcdef0123456789abcdef01234567"
SECRETS = ("api_key", "apiKey", "openai_api_keys", "hf_token", "AWS_SECRET_ACCESS_KEY", "clientSecret", "db.password")
EITHER = ("key", "token", "judge_key", "rewards.own.key", "openrouterToken")
OTHERS = ("keys", "tokens", "key_columns", "stop_tokens", "label_keys", "eos_token", "sort_key", "tokenizer", "keyword")


def test_redacted_keeps_what_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    monkeypatch.setenv("SHORT_TOKEN", "a")
    config: dict[str, Any] = {
        "max_new_tokens": 64,
        "num_tokens": 3,
        "key_value_heads": 4,
        "path": Path("data/a.jsonl"),
        "nested": [{"apiKey": "abc", "hf_token": "abc", "password": 1234}, {"clientSecret": "abc", "token": None}],
        "api_keys": {"one": "abc"},
        "url": "https://bob:abc@host/x?y=1",
        "command": f"run --key={KEY} now",
    }
    assert redacted(config) == {
        "max_new_tokens": 64,
        "num_tokens": 3,
        "key_value_heads": 4,
        "path": "data/a.jsonl",
        "nested": [{"apiKey": "***", "hf_token": "***", "password": "***"}, {"clientSecret": "***", "token": None}],
        "api_keys": "***",
        "url": "https://***@host/x?y=1",
        "command": "run --key=*** now",
    }
    assert config["api_keys"] == {"one": "abc"}


@pytest.mark.parametrize("name", [*SECRETS, *EITHER, *OTHERS])
@pytest.mark.parametrize("values", [("abc", "xyz"), (["a", "b"], ["a"])], ids=["text", "list"])
def test_options_are_compared_unless_they_are_secrets(name: str, values: tuple[Any, Any]) -> None:
    one, other = ({name: value} for value in values)
    assert redacted(one) == (one if name in OTHERS else {name: "***"})
    assert comparable(one) == comparable({name: values[0]})
    assert (comparable(one) == comparable(other)) == (name in SECRETS), "a key may be another tomorrow"
    if name in EITHER:
        assert re.fullmatch(r"\*\*\* \([0-9a-f]{4}\)", comparable(one)[name])


def test_of_several_keys_those_that_look_like_secrets_are_hidden() -> None:
    config = {"judge_keys": ["sk-0123456789abcdefghij", "answer"]}
    assert redacted(config) == {"judge_keys": ["***", "answer"]}
    assert comparable(config) != comparable({"judge_keys": ["sk-9876543210abcdefghij", "answer"]})


def test_texts_with_something_hidden_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern may look like the credentials of a URL."""
    monkeypatch.setenv("SOME_API_KEY", KEY)
    monkeypatch.setenv("OTHER_API_KEY", KEY[::-1])
    for one, other in ((r"https://[a-z]+@", r"https://[0-9]+@"), (f"run {KEY}", f"run {KEY[::-1]}")):
        assert redacted(one) == redacted(other)
        assert comparable(one) == comparable(one) != comparable(other)
        assert KEY not in comparable(one)
