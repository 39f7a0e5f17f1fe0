"""Preference data as it is published: other names, verdicts on conversations, notes on turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.comparisons import CHOSEN_A, SYSTEM, USER, calling, comparison, said, shown
from helpers.runs import write
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.conversations import recognise
from lit_posttrain.data.formats.prompts import prompt_reader
from lit_posttrain.data.modules.preference import PreferenceData, PreferenceOptions
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.store.build import build_store
from lit_posttrain.data.store.loader import StepLoader
from lit_posttrain.errors import PostTrainError


@pytest.mark.parametrize(
    ("name", "rows", "drops", "pairs"),
    [
        ("hh_harmless", 1341, {"no shared prompt": 2, "empty response": 3}, 1336),
        ("hh_helpful", 1214, {"no shared prompt": 2, "empty response": 3, "empty turn": 1}, 1208),
        ("oasst_rankings", 130, {}, 37 + 75 * 3 + 13 * 6 + 2 * 10 + 3 * 15),
        ("pandalm", 747, {"empty response": 38}, 709),
        ("llmbar", 527, {"equal responses": 1}, 526),
    ],
)
def test_published_preferences_are_read_as_they_are(
    name: str,
    rows: int,
    drops: dict[str, int],
    pairs: int,
    real_data: Path,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    data = PreferenceData(str(real_data / name / "dev.jsonl"), max_length=10**6, cache_dir=str(tmp_path))
    data.build(tokenizer)
    assert data.audit.total.rows == rows
    assert {reason: tally.count for reason, tally in data.audit.total.dropped.items()} == drops
    assert int(data.train_store.units["pairs"].sum()) == pairs
    assert len(data.train_store) == rows - sum(drops.values())
    tree = data.train_store[0]
    assert all(tokenizer.decode(r.tokens).endswith("<|im_end|>\n") for r in tree.responses)
    assert torch.isfinite(next(iter(StepLoader(data.train_store, batch_size=4))).ranks).all()


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_with_a_verdict_are_single_responses(column: str) -> None:
    turns = [SYSTEM, USER, said("first"), {"role": "user", "content": "Q2"}, said("A")]
    for label, good in ((True, 1.0), ("false", 0.0)):
        made = comparison({column: turns, "label": label, "tools": []})
        assert (made.prompt, shown(made)) == (turns[:4], [("A", {"good": good})])
    called = [USER, calling("f"), {"role": "tool", "content": "3"}, said("A")]
    made = comparison({column: called, "label": True})
    assert (made.prompt, made.candidates[0].messages) == (called[:1], called[1:])
    with pytest.raises(BadRow, match=f"`{column}` ends with a question"):
        recognise_comparison(Record({column: turns, "label": True}, "rows.jsonl", 1)).read(
            {column: turns[:4], "label": True}
        )


def test_a_conversation_beside_whole_sides_is_no_prompt() -> None:
    for messages in ([USER, said("A")], [USER, said("other")]):
        row = Row({"messages": messages, "chosen": [USER, said("A")], "rejected": [USER, said("B")]})
        made = recognise_comparison(Record({**row}, "rows.jsonl", 1)).read(row.aside())
        assert (made.prompt, shown(made)) == ([USER], CHOSEN_A)


def noted(turn: dict[str, Any], number: int) -> dict[str, Any]:
    """A turn as an export writes it, with notes that differ from side to side."""
    made = {**turn, "id": f"m{number}", "timestamp": number, "turn_identifier": number, "weight": None}
    if "tool_calls" in turn:
        made["tool_calls"] = [{**call, "id": f"call_{number}", "index": 0} for call in turn["tool_calls"]]
    return made


def test_notes_on_turns_do_not_tell_prompts_apart() -> None:
    turns = [SYSTEM, USER, calling("f", x=1), {"role": "tool", "content": "3", "tool_call_id": "c"}, said("so"), USER]
    sides = [
        [noted(turn, n) for n, turn in enumerate([*turns, said(text)], start)] for text, start in (("A", 1), ("B", 90))
    ]
    for prompt in (None, "Q", turns, [noted(turn, 50) for turn in turns]):
        row = {"chosen": sides[0], "rejected": sides[1], **({"prompt": prompt} if prompt else {})}
        made = comparison(row)
        assert [(m["role"], m["content"]) for m in made.prompt] == [(m["role"], m["content"]) for m in turns]
        assert shown(made) == CHOSEN_A
        assert [len(candidate.messages) for candidate in made.candidates] == [1, 1]
        assert prompt_reader(Record(row, "rows.jsonl", 1)).example(Row(row)).messages[-1]["content"] == "Q"
    other = [*sides[1][:2], noted(calling("f", x=2), 3), *sides[1][3:]]
    assert len(comparison({"chosen": sides[0], "rejected": other}).prompt) == 2


def test_responses_that_differ_in_notes_alone_say_nothing(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"chosen": [USER, said("A")], "rejected": [USER, said("B")]}]
    rows += [{"chosen": [USER, noted(said("A"), 1)], "rejected": [USER, noted(said("A"), 2)]}]
    path, cache = write(tmp_path / "p.jsonl", rows), str(tmp_path / "cache")
    store, audit = build_store([path], tokenizer, PreferenceOptions(), cache)
    assert (len(store), audit.files[0].dropped["equal responses"].lines) == (1, [2])


@pytest.mark.parametrize("column", ["kto_tag", "label", "good", "desirable"])
@pytest.mark.parametrize("name", ["conversations", "messages"])
@pytest.mark.parametrize("bad", [False, "false", 0])
def test_conversations_marked_as_good_or_bad(name: str, column: str, bad: Any) -> None:
    row = {name: [USER, said("A")], column: bad}
    if column == "label" and bad == 0 and bad is not False:
        return  # may be any class
    assert shown(comparison(row)) == [("A", {"good": 0.0})]
    assert shown(comparison(row, PreferenceColumns(good=column))) == [("A", {"good": 0.0})]
    assert shown(comparison(row, PreferenceColumns(good=column, completion=name))) == [("A", {"good": 0.0})]
    with pytest.raises(PostTrainError, match=f"marked as good or bad .*{column}"):
        recognise(Record(row, "rows.jsonl", 1))


def test_a_column_of_any_name_may_say_what_is_good() -> None:
    row = {"conversations": [USER, said("A")], "thumb": 1}
    assert shown(comparison(row, PreferenceColumns(good="thumb"))) == [("A", {"good": 1.0})]
    row = {"talk": [USER, said("A")], "thumb": 1}
    assert shown(comparison(row, PreferenceColumns(good="thumb", completion="talk"))) == [("A", {"good": 1.0})]


def test_responses_of_other_names_are_no_prompts_without_answers() -> None:
    row = {"prompt": "Q", "response_a": "A", "response_b": "B", "winner": "a"}
    with pytest.raises(
        PostTrainError, match=r"name which of response_a, response_b, winner are responses with"
    ) as refused:
        comparison(row)
    assert "without answers" not in str(refused.value)
