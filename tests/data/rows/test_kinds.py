"""Files given to the wrong config: the error says what they are, and which config takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.files.sources import read_records
from lit_posttrain.data.formats.comparisons import recognise_comparison
from lit_posttrain.data.formats.conversations import recognise
from lit_posttrain.data.formats.prompts import prompt_reader
from lit_posttrain.errors import PostTrainError

ASKED = [{"role": "user", "content": "Q"}]
TALK = [*ASKED, {"role": "assistant", "content": "A"}]
PAIRS = r"configs/dpo\.yaml .* and configs/reward\.yaml"
RANKED = r"configs/reward_kwise\.yaml"
PROMPTS = r"configs/grpo_gsm8k\.yaml and configs/ppo\.yaml .*generate --prompts"
SFT = r"configs/sft\.yaml"
ROWS: dict[str, dict[str, Any]] = {
    "pair": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "transcripts": {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    "pair of a conversation": {"conversations": ASKED, "chosen": TALK[1], "rejected": TALK[1]},
    "judged": {"instruction": "Q", "input": "", "response1": "A", "response2": "B", "annotator1": 1},
    "ranking": {"messages": ASKED, "responses": [{"text": "A", "rank": 0}, {"text": "B", "rank": 1}]},
    "unpaired": {"prompt": "Q", "completion": "A", "label": True},
    "unpaired conversation": {"messages": TALK, "label": False},
    "prompts": {"prompt": "Q", "type": "x"},
    "questions": {"question": "Q", "answerable": True},
    "conversations": {"messages": TALK},
    "answers": {"question": "Q", "answer": "A"},
    "text": {"text": "words"},
    "tokens": {"input_ids": [1, 2], "labels": [1, 2]},
}
READERS: dict[str, Callable[[Record], Any]] = {
    "sft": recognise,
    "preferences": recognise_comparison,
    "prompts": prompt_reader,
}


@pytest.mark.parametrize(
    ("reader", "name", "said"),
    [
        ("sft", "pair", f"pairs of a chosen and a rejected response .* {PAIRS}"),
        ("sft", "pair", "to imitate the better side, pass --data.columns.completion chosen"),
        ("sft", "transcripts", f"pairs of .* {PAIRS}"),
        ("sft", "pair of a conversation", f"pairs of .* {PAIRS}"),
        (
            "sft",
            "judged",
            rf"two responses to a prompt and which is better \(response1, response2, annotator1\); {PAIRS}",
        ),
        ("sft", "ranking", rf"several responses to a prompt \(responses\); {RANKED}"),
        ("sft", "unpaired", r"single responses marked as good or bad \(completion, label\); configs/kto\.yaml"),
        (
            "sft",
            "unpaired conversation",
            r"responses marked as good or bad \(messages, label\); configs/kto\.yaml .* --data\.columns\.messages",
        ),
        ("sft", "prompts", rf"prompts without answers \(prompt\); {PROMPTS}"),
        ("sft", "questions", rf"prompts without answers \(question\); {PROMPTS}"),
        ("sft", "tokens", r"rows that are tokens already \(input_ids, labels\); give the texts"),
        ("preferences", "conversations", rf"conversations \(messages\): {SFT}"),
        ("preferences", "answers", rf"conversations \(question/answer\): {SFT}"),
        ("preferences", "text", rf"conversations \(text\): {SFT}"),
        ("preferences", "prompts", rf"prompts without answers \(prompt\); {PROMPTS}"),
        ("preferences", "prompts", "if one of prompt, type is a response, name it with --data"),
        ("preferences", "tokens", "rows that are tokens already"),
        ("prompts", "text", "no prompt among the columns text; name it with --data.columns.prompt"),
    ],
)
def test_the_wrong_config_is_told(reader: str, name: str, said: str) -> None:
    with pytest.raises(PostTrainError, match=rf"^rows\.jsonl:1: .*{said}"):
        READERS[reader](Record(ROWS[name], "rows.jsonl", 1))


@pytest.mark.parametrize("reader", READERS)
def test_every_kind_is_taken_or_told(reader: str) -> None:
    """No kind of file is "not recognised" by a reader that does not take it."""
    told = [_told(READERS[reader], row) for row in ROWS.values()]
    assert not [line for line in told if "not recognised" in line]


def _told(reader: Callable[[Record], Any], row: dict[str, Any]) -> str:
    try:
        reader(Record(row, "rows.jsonl", 1))
    except PostTrainError as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "Q", "messages": TALK, "chosen": TALK, "rejected": TALK, "score_chosen": 1}, "messages"),
        ({"prompt": "Q", "completion": "A", "label": 3}, "prompt/completion"),
        ({"question": "Q", "answer": "A", "responses": ["A", "B"]}, "question/answer"),
    ],
)
def test_conversations_with_more_columns_stay_conversations(row: dict[str, Any], name: str) -> None:
    assert recognise(Record(row, "rows.jsonl", 1)).name == name


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("pandalm", PAIRS),
        ("llmbar", PAIRS),
        ("hh_harmless", PAIRS),
        ("oasst_rankings", RANKED),
        ("xstest", PROMPTS),
        ("ifeval", PROMPTS),
    ],
)
def test_published_sets_in_the_config_for_sft(path: str, said: str, real_data: Path) -> None:
    with pytest.raises(PostTrainError, match=rf"dev\.jsonl:1: not conversations but .*{said}"):
        recognise(next(read_records(str(real_data / path / "dev.jsonl"))))
