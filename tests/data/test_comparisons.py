"""Columns to comparisons: every usual shape of preference data, and rows that say nothing or cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.audit import show
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparison import Comparison
from lit_posttrain.data.formats.comparisons import PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.conversations import Columns, recognise
from lit_posttrain.data.formats.prompts import prompt_reader
from lit_posttrain.data.modules.preference import PreferenceData, PreferenceOptions
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.turns import JSON_TEXT, MESSAGES_AS_TEXT, TRANSCRIPT
from lit_posttrain.data.store.build import build_store
from lit_posttrain.data.store.loader import StepLoader
from lit_posttrain.errors import PostTrainError

USER = {"role": "user", "content": "Q"}
HUMAN = "\n\nHuman: Q\n\nAssistant:"


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def comparison(row: dict[str, Any], columns: PreferenceColumns | None = None, **options: Any) -> Comparison:
    return recognise_comparison(Record(row, "pairs.jsonl", 1), columns, **options).read(row)


def shown(made: Comparison) -> list[tuple[str, dict[str, float]]]:
    labels = [{name: round(value, 6) for name, value in c.labels.items()} for c in made.candidates]
    return [(c.messages[-1]["content"], known) for c, known in zip(made.candidates, labels, strict=True)]


CHOSEN_A = [("A", {"rank": 0.0}), ("B", {"rank": 1.0})]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": f"{HUMAN} A", "rejected": f"{HUMAN} B"}, CHOSEN_A),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, CHOSEN_A),
        ({"prompt": HUMAN[:-12], "chosen": "A", "rejected": "B"}, CHOSEN_A),
        ({"prompt": "Q", "chosen": [USER, said("A")], "rejected": [USER, said("B")]}, CHOSEN_A),
        ({"prompt": [USER], "chosen": [said("A")], "rejected": [said("B")]}, CHOSEN_A),
        ({"chosen": [USER, said("A")], "rejected": [USER, said("B")]}, CHOSEN_A),
        ({"prompt": HUMAN, "chosen": " A", "rejected": " B"}, [(" A", *CHOSEN_A[0][1:]), (" B", *CHOSEN_A[1][1:])]),
        ({"prompt": "Human: Q\n\nAssistant:", "chosen": "A", "rejected": "B"}, CHOSEN_A),
        ({"prompt": "Q", "chosen": json.dumps([USER, said("A")]), "rejected": json.dumps([USER, said("B")])}, CHOSEN_A),
        ({"prompt": "Q", "chosen": '[{"a": 1}]', "rejected": "B"}, [('[{"a": 1}]', {"rank": 0.0}), CHOSEN_A[1]]),
        ({"prompt": "Q", "output_1": "A", "output_2": "B", "label": "1"}, CHOSEN_A),
        ({"instruction": "Q", "input": "", "response1": "B", "response2": "A", "annotator1": 2}, CHOSEN_A),
        (
            {"instruction": "Q", "response1": "A", "response2": "B", "annotator1": 1, "annotator2": 0, "annotator3": 2},
            [("A", {"rank": 0.0}), ("B", {"rank": 1.0, "flip_prob": 0.5})],
        ),
        (
            {"instruction": "Q", "response1": "A", "response2": "B", "annotator1": 2, "annotator2": 2, "annotator3": 0},
            [("B", {"rank": 0.0}), ("A", {"rank": 1.0, "flip_prob": 0.166667})],
        ),
        ({"input": "Q", "output_1": "A", "output_2": "B", "label": 1}, CHOSEN_A),
        (
            {
                "messages": [{"role": "prompter", "content": "Q"}],
                "responses": [{"rank": 1, "text": "B"}, {"rank": 0, "text": "A"}],
            },
            [("B", {"rank": 1.0}), ("A", {"rank": 0.0})],
        ),
        (
            {"prompt": "Q", "responses": ["A", "B", "C"], "ranks": [1, 1, 3]},
            [("A", {"rank": 0.0}), ("B", {"rank": 0.0}), ("C", {"rank": 1.0})],
        ),
        ({"prompt": "Q", "completion": "A", "label": True}, [("A", {"good": 1.0})]),
        ({"prompt": "Q", "completion": "A", "label": "bad"}, [("A", {"good": 0.0})]),
    ],
)
def test_recognised_by_columns(row: dict[str, Any], expected: list[tuple[str, str, float]]) -> None:
    made = comparison(row)
    assert made.prompt == [USER]
    assert shown(made) == expected


def test_named_columns() -> None:
    row = {"q": "Q", "gut": "A", "schlecht": "B"}
    columns = PreferenceColumns(prompt="q", chosen="gut", rejected="schlecht")
    assert shown(comparison(row, columns)) == CHOSEN_A
    half = {"prompt": "Q", "gut": "A", "rejected": "B"}
    assert comparison(half, PreferenceColumns(chosen="gut", rejected="rejected")).prompt == [USER]
    judged = PreferenceColumns(prompt="q", first="gut", second="schlecht", labels=["wer"])
    assert shown(comparison({**row, "wer": 2}, judged))[0][0] == "B"
    with pytest.raises(PostTrainError, match=r"pairs\.jsonl:1: no column `guut` .* did you mean `gut`"):
        comparison(row, PreferenceColumns(prompt="q", chosen="guut", rejected="schlecht"))
    with pytest.raises(PostTrainError, match="columns not recognised as preferences: q, gut"):
        comparison(row)


@pytest.mark.parametrize(
    ("row", "named", "responses"),
    [
        ({"prompt": "a", "chosen": "b", "rejektd": "c"}, {"rejected": "rejektd"}, ["b", "c"]),
        ({"prompt": "a", "responses": ["b", "c"], "places": [1, 0]}, {"ranks": "places"}, ["b", "c"]),
        ({"prompt": "a", "response1": "b", "response2": "c", "winner": 2}, {"labels": ["winner"]}, ["c", "b"]),
        ({"prompt": "a", "completion": "b", "score": True}, {"good": "score"}, ["b"]),
    ],
)
def test_what_is_named_completes_what_is_recognised(
    row: dict[str, Any], named: dict[str, Any], responses: list[str]
) -> None:
    with pytest.raises((PostTrainError, BadRow), match=f"--data.columns.{next(iter(named))}"):
        comparison(row)
    made = comparison(row, PreferenceColumns(**named))
    assert [candidate.messages[-1]["content"] for candidate in made.candidates] == responses


def test_inputs_and_system_prompts_belong_to_the_prompt() -> None:
    pair = {"instruction": "Q", "input": "more", "system": "S", "chosen": "A", "rejected": "B"}
    ranked = {"prompt": "Q", "context": "more", "system": "S", "responses": ["A", "B"], "ranks": [0, 1]}
    judged = {"instruction": "Q", "input": "more", "system": "S", "response1": "A", "response2": "B", "annotator1": 1}
    expected = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q\n\nmore"}]
    assert [comparison(row).prompt for row in (pair, ranked, judged)] == [expected] * 3
    alone = comparison({"input": "Q", "output_1": "A", "output_2": "B", "label": 1}, PreferenceColumns(prompt="input"))
    assert alone.prompt == [USER]


def test_majority_takes_votes_as_certain() -> None:
    row = {"instruction": "Q", "response1": "A", "response2": "B", "annotator1": 2, "annotator2": 2, "annotator3": 1}
    assert shown(comparison(row, annotators="majority")) == [("B", {"rank": 0.0}), ("A", {"rank": 1.0})]
    with pytest.raises(NothingToLearn, match="no preference"):
        comparison({**row, "annotator1": 0}, annotators="majority")


def calling(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (calling("f"), calling("g")),
        (calling("f", x=1), calling("f", x=2)),
        ({**said("A"), "reasoning_content": "so"}, {**said("A"), "reasoning_content": "no"}),
        ({**said("A"), "thinking": "so"}, said("A")),
        (said("A"), {**said("A"), "tool_calls": calling("f")["tool_calls"]}),
        (said("A"), {**said("A"), "name": "bob"}),
    ],
)
def test_responses_are_equal_only_in_all_they_hold(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert len(comparison({"prompt": "Q", "chosen": [first], "rejected": [second]}).candidates) == 2
    assert len(comparison({"chosen": [USER, first], "rejected": [USER, second]}).candidates) == 2
    ranked = [{"rank": 0, "content": [first]}, {"rank": 1, "content": [second]}]
    assert [c.messages for c in comparison({"prompt": "Q", "responses": ranked}).candidates] == [[first], [second]]
    whole = {"chosen": [USER, first], "rejected": [USER, first]}
    for row in ({"prompt": "Q", "chosen": [first], "rejected": [first]}, whole):
        with pytest.raises(NothingToLearn, match="both responses are the same"):
            comparison(row)


SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": [SYSTEM, USER, said("A")], "rejected": [SYSTEM, USER, said("B")]},
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, said("A")], "rejected": [SYSTEM, USER, said("B")]},
        {"prompt": [SYSTEM, USER], "chosen": [USER, said("A")], "rejected": [said("B")]},
        {"prompt": "Q", "chosen": [SYSTEM, said("A")], "rejected": [SYSTEM, said("B")]},
        {"prompt": "Q", "chosen": [SYSTEM, USER, said("A")], "rejected": [said("B")]},
        {"chosen": [SYSTEM, USER, said("A")], "rejected": [SYSTEM, USER, said("B")]},
        {"prompt": "Q\n", "system": "S", "chosen": [USER, said("A")], "rejected": [USER, said("B")]},
        {"prompt": "Q", "system_prompt": "S", "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "response1": [SYSTEM, USER, said("A")], "response2": [SYSTEM, USER, said("B")], "label": 1.0},
    ],
)
def test_a_system_turn_belongs_to_the_prompt_wherever_it_stands(row: dict[str, Any]) -> None:
    made = comparison(row)
    assert [(m["role"], m["content"].strip()) for m in made.prompt] == [("system", "S"), ("user", "Q")]
    assert shown(made) == CHOSEN_A


def test_a_prompt_may_be_one_turn_of_those_that_the_sides_begin_with() -> None:
    turns = [USER, said("first"), {"role": "user", "content": "Q2"}]
    sides = {"chosen": [*turns, said("A")], "rejected": [*turns, said("B")]}
    for prompt in ("Q", "Q2", " Q2 "):
        made = comparison({"prompt": prompt, **sides})
        assert (made.prompt, shown(made)) == (turns, CHOSEN_A)
    with pytest.raises(BadRow, match=r"`chosen` begins with 'Q' where `prompt` is 'Other'; mend it, or remove one"):
        comparison({"prompt": "Other", **sides})
    other = [{"role": "system", "content": "T"}, USER]
    with pytest.raises(BadRow, match="`prompt` and `chosen` have different system prompts"):
        comparison({"prompt": other, "chosen": [SYSTEM, USER, said("A")], "rejected": [SYSTEM, said("B")]})


@pytest.mark.parametrize(
    ("answer", "messages"),
    [
        ('[{"from": "Ghent", "to": "Bruges"}]', None),
        ('[{"role": "admin", "content": "x"}]', None),
        ('[{"role": "user"}]', None),
        ("[{not json", None),
        ("\n\nHuman: that is how it begins", None),
        ("Assistant: A", None),
        ('[{"role": "assistant", "content": "A"}]', [said("A")]),
        ("\n\nAssistant: A", [said("A")]),
    ],
)
def test_a_response_is_read_as_more_than_text_only_where_it_must_be(
    answer: str, messages: list[dict[str, Any]] | None
) -> None:
    row = Row({"prompt": "Q", "chosen": answer, "rejected": "B"})
    made = recognise_comparison(Record({**row}, "pairs.jsonl", 1)).read(row)
    assert made.candidates[0].messages == (messages or [said(answer)])
    assert bool(row.notes) == (messages is not None)


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("Human: beings are odd", None),
        ("Human: are they?\n\nHuman: yes", None),
        ("Assistant: you are one", None),
        ("Human: Q\n\nAssistant:", [USER]),
        ("\n\nHuman: Q", [USER]),
        ("Human: Q\n\nAssistant: Well,", [USER, said("Well,")]),
    ],
)
def test_a_prompt_is_a_transcript_only_if_both_speak(prompt: str, messages: list[dict[str, Any]] | None) -> None:
    row = Row({"prompt": prompt, "chosen": "A", "rejected": "B"})
    made = recognise_comparison(Record({**row}, "pairs.jsonl", 1)).read(row)
    assert made.prompt == (messages or [{"role": "user", "content": prompt}])
    assert row.notes == ([TRANSCRIPT] if messages else [])


@pytest.mark.parametrize("number", [int, float, str, lambda n: f"{n}.0"])
def test_whole_numbers_of_any_kind(number: Any) -> None:
    ranks = {"prompt": "Q", "responses": ["A", "B"], "ranks": [number(1), number(2)]}
    assert shown(comparison(ranks)) == [("A", {"rank": 0.0}), ("B", {"rank": 1.0})]
    within = [{"text": "A", "rank": number(0)}, {"text": "B", "rank": number(1)}]
    assert shown(comparison({"prompt": "Q", "responses": within})) == [("A", {"rank": 0.0}), ("B", {"rank": 1.0})]
    assert shown(comparison({"prompt": "Q", "output_1": "B", "output_2": "A", "label": number(2)})) == CHOSEN_A
    assert shown(comparison({"prompt": "Q", "completion": "A", "label": number(1)})) == [("A", {"good": 1.0})]
    assert shown(comparison({"prompt": "Q", "completion": "B", "label": number(0)})) == [("B", {"good": 0.0})]
    assert shown(comparison({"prompt": "Q", "completion": "B", "label": number(-1)})) == [("B", {"good": 0.0})]
    cells = {"prompt": "Q", "responses": json.dumps(["A", "B"]), "ranks": json.dumps([number(1), number(2)])}
    assert shown(comparison(cells)) == [("A", {"rank": 0.0}), ("B", {"rank": 1.0})]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": f"{HUMAN} A", "rejected": f"{HUMAN} A"}, "equal responses"),
        (
            {"prompt": "Q", "chosen": [SYSTEM, USER, said("A")], "rejected": [USER, said("B")]},
            "no shared prompt",
        ),
        ({"prompt": "Q", "chosen": "A", "rejected": "A "}, "equal responses"),
        ({"prompt": [USER], "chosen": [said("A")], "rejected": [said(" ")]}, "empty response"),
        ({"chosen": f"{HUMAN} A", "rejected": "\n\nHuman: other\n\nAssistant: B"}, "no shared prompt"),
        ({"chosen": f"{HUMAN} A\n\nAssistant: C", "rejected": f"{HUMAN} B"}, "no shared prompt"),
        ({"chosen": f"{HUMAN} A", "rejected": f"{HUMAN}  "}, "empty response"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [1, 1]}, "all tied"),
    ],
)
def test_rows_that_say_nothing_are_no_errors(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(NothingToLearn) as caught:
        comparison(row)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "responses": ["A"], "ranks": [0]}, "1 responses; a comparison needs two"),
        ({"prompt": "Q", "responses": ["A", "B", "C"], "ranks": [0, 2, 3]}, "have gaps"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [2, 3]}, "have gaps"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [0]}, "1 ranks for 2 responses"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [0, 0.5]}, "not whole numbers"),
        ({"prompt": "Q", "responses": ["A", {"score": 1}], "ranks": [0, 1]}, r"responses\[1\] has none of text"),
        ({"prompt": "Q", "completion": "A", "label": "so-so"}, "neither good nor bad"),
        ({"input": "Q", "output_1": "A", "output_2": "B", "label": 3}, "labels are 1 .* 2 .* or 0"),
        ({"prompt": "Q", "chosen": [USER], "rejected": "B"}, "must begin with the assistant's turn"),
        ({"prompt": None, "chosen": "A", "rejected": "B"}, "`prompt` is null"),
    ],
)
def test_bad_rows_say_what_and_how(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message) as caught:
        comparison(row)
    assert not isinstance(caught.value, NothingToLearn)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_tree_is_a_prompt_with_its_responses(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "what is 3 plus 3", "responses": ["it is 6", "three", "no idea at all"], "ranks": [0, 1, 1]},
        {"prompt": "what is 3 plus 3", "responses": ["same", "same too"], "ranks": [0, 0]},
    ]
    path = write(tmp_path / "ranked.jsonl", rows)
    store, audit = build_store([path], tokenizer, PreferenceOptions(), str(tmp_path / "cache"))
    assert (len(store), audit.files[0].dropped["all tied"].lines) == (1, [2])
    tree = store[0]
    asked = [{"role": "user", "content": rows[0]["prompt"]}]
    template = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    assert tokenizer.decode(tree.prompt) == template
    assert [tokenizer.decode(r.tokens) for r in tree.responses] == [f"{t}<|im_end|>\n" for t in rows[0]["responses"]]
    assert all(r.loss_mask[:-1].all() and not r.loss_mask[-1] for r in tree.responses)  # the template's line end
    assert [r.labels for r in tree.responses] == [{"rank": 0}, {"rank": 1}, {"rank": 1}]
    assert store.units["pairs"].tolist() == [2]
    loader = StepLoader(store, batch_size=1)
    (batch,) = list(loader)
    assert (batch.denominators["pairs"], batch.local_count("pairs"), batch.denominators["responses"]) == (2, 2, 3)
    assert batch.ranks.tolist() == [0, 1, 1]


def test_a_response_is_never_cut(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "a long prompt " * 5, "chosen": "an answer", "rejected": "b " * size} for size in (2, 60)]
    path = write(tmp_path / "long.jsonl", rows)
    whole, _ = build_store([path], tokenizer, PreferenceOptions(), str(tmp_path / "cache"))
    limit = len(whole[0].prompt)
    options = PreferenceOptions(max_length=limit, overlong="cut_prompt")
    cut, audit = build_store([path], tokenizer, options, str(tmp_path / "cache"))
    assert (len(cut), audit.total.cut) == (1, 1)
    assert audit.files[0].dropped["response alone fills max_length"].lines == [2]
    longest = max(len(r.tokens) for r in whole[0].responses)
    assert np.array_equal(cut[0].prompt, whole[0].prompt[-(limit - longest) :])
    for before, after in zip(whole[0].responses, cut[0].responses, strict=True):
        assert np.array_equal(before.tokens, after.tokens)
    dropped, audit = build_store([path], tokenizer, PreferenceOptions(max_length=limit), str(tmp_path / "cache"))
    assert (len(dropped), audit.total.dropped_count) == (0, 2)


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


SPELLED: dict[str, Callable[[Any], str]] = {
    "json": json.dumps,
    "indented": lambda messages: json.dumps(messages, indent=2),
    "spaced": lambda messages: "[ " + json.dumps(messages)[1:],
    "lines": lambda messages: "\n" + json.dumps(messages, separators=(",\n", ":\n")),
}


@pytest.mark.parametrize("name", SPELLED)
def test_messages_in_json_text_however_it_is_written(name: str) -> None:
    spell = SPELLED[name]
    row = {"prompt": spell([USER]), "chosen": spell([said("A")]), "rejected": spell([said("B")])}
    made = comparison(row)
    assert (made.prompt, shown(made)) == ([USER], CHOSEN_A)
    assert prompt_reader(Record(row, "rows.jsonl", 1)).example(Row(row)).messages == [USER]
    pair = Row({"prompt": spell([SYSTEM, USER]), "completion": spell([said("A")])})
    assert recognise(Record({**pair}, "rows.jsonl", 1)).example(pair.aside()).messages == [SYSTEM, USER, said("A")]
    whole = {"messages": spell([USER, said("A")])}
    assert recognise(Record(whole, "rows.jsonl", 1)).example(whole).messages == [USER, said("A")]


@pytest.mark.parametrize(
    "text",
    [
        repr([USER]),
        repr([{"from": "human", "value": "Q"}]),
        "[ " + repr([{"content": "Q", "role": "user"}])[1:],
        json.dumps([USER])[:-1],
        json.dumps([USER, said("A")])[:-5],
        f"{[USER]}\n",
        json.dumps([USER]).replace(", ", ",, "),
        f"[{USER}\n {USER}]",
    ],
)
def test_messages_that_are_no_json_are_not_what_somebody_said(text: str) -> None:
    rows = [{"prompt": text, "chosen": "A", "rejected": "B"}, {"prompt": "Q", "chosen": text, "rejected": "B"}]
    for row in rows:
        with pytest.raises(BadRow, match=r"begins like a list of messages and is not valid JSON .* json\.dumps"):
            comparison(row)
    for row in ({"prompt": text, "completion": "A"}, {"prompt": json.dumps([USER]), "completion": text}):
        with pytest.raises(BadRow, match="begins like a list of messages"):
            recognise(Record(row, "rows.jsonl", 1)).example(row)
    row = {"prompt": text}
    with pytest.raises(BadRow, match="begins like a list of messages"):
        prompt_reader(Record(row, "rows.jsonl", 1)).example(Row(row))


MESSAGES = json.dumps([USER, said("A")])


@pytest.mark.parametrize(
    "text",
    [
        '[{"from": "SFO", "to": "LAX"}]\nCheapest?',
        "[{'from': 'SFO', 'to': 'LAX'}]",
        '[{"from": "SFO", "to": "LAX"',
        '[{"role": …}, …]\nSummarise this chat.',
        '[{"role": ..., "content": ...}]',
        "[{'role': 'user', …}] What is wrong with this?",
        "[{'role': 'admin', 'content': 'x'}]",
        f"{MESSAGES}\nSummarise this chat.",
        f"{MESSAGES} or [1]",
        f"{[USER]}\nWrite this as JSON.",
        "[{'content': 'a', 'size': 3}]",
        "[{'content': '\\d'}] is what?",
    ],
)
def test_what_begins_like_messages_and_goes_on_is_what_somebody_said(text: str) -> None:
    made = comparison({"prompt": text, "chosen": f"{text} A", "rejected": "B"})
    assert made.prompt == [{"role": "user", "content": text}]
    assert shown(made)[0][0] == f"{text} A"
    row = {"prompt": text, "completion": text}
    expected = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    assert recognise(Record(row, "rows.jsonl", 1)).example(row).messages == expected
    assert prompt_reader(Record({"prompt": text}, "rows.jsonl", 1)).example(Row(row)).messages == expected[:1]


@pytest.mark.parametrize("answer", [MESSAGES, str([USER, said("A")]), MESSAGES[:-1], '[{"role": "user", "content": "'])
@pytest.mark.parametrize(("prompt", "completion"), [("prompt", "completion"), ("instruction", "output"), ("q", "a")])
def test_an_answer_to_a_text_may_show_messages(prompt: str, completion: str, answer: str) -> None:
    row = Row({prompt: "Write a dialogue as JSON", completion: answer})
    columns = Columns(prompt=prompt, completion=completion)
    seen = row.aside()
    example = recognise(Record({**row}, "rows.jsonl", 1), columns).example(seen)
    assert example.messages[-1] == {"role": "assistant", "content": answer}
    assert example.text is not None
    assert example.text[1] == answer
    assert seen.notes == [MESSAGES_AS_TEXT]


@pytest.mark.parametrize("asked", ["Q", USER, [USER]])
@pytest.mark.parametrize("answer", [[said("A")], [USER, said("A")], [SYSTEM, USER, said("A")]])
def test_an_answer_in_json_text_is_read_as_in_every_method(answer: list[dict[str, Any]], asked: Any) -> None:
    sft = Row({"prompt": asked, "completion": json.dumps(answer)})
    made = recognise(Record({**sft}, "rows.jsonl", 1)).example(sft)
    worse = [*answer[:-1], said("B")]
    row = Row({"prompt": asked, "chosen": json.dumps(answer), "rejected": json.dumps(worse)})
    pair = recognise_comparison(Record({**row}, "rows.jsonl", 1)).read(row)
    assert made.messages == [*pair.prompt, *pair.candidates[0].messages]
    assert made.messages[-2:] == [USER, said("A")]
    assert made.text is None
    assert set(sft.notes) == set(row.notes) == {JSON_TEXT}
    assert prompt_reader(Record({"prompt": asked}, "f", 1)).example(Row({"prompt": asked})).messages == [USER]


def test_what_belongs_to_a_prompt_does_so_however_the_answer_is_written() -> None:
    row = {"prompt": "Q", "context": "C", "completion": [said("A")]}
    example = recognise(Record(row, "rows.jsonl", 1)).example(row)
    assert example.messages == [{"role": "user", "content": "Q\n\nC"}, said("A")]


def test_a_column_of_conversations_holds_messages_whatever_is_asked() -> None:
    row = {"prompt": "Q", "messages": json.dumps([said("A")])}
    columns = Columns(prompt="prompt", completion="messages")
    assert recognise(Record(row, "rows.jsonl", 1), columns).example(row).messages[-1] == said("A")


def test_transcripts_of_windows_are_transcripts() -> None:
    first, second = (f"{HUMAN} {text}".replace("\n", "\r\n") for text in "AB")
    asked = {"prompt": HUMAN.replace("\n", "\r\n"), "chosen": "A", "rejected": "B"}
    for row in ({"chosen": first, "rejected": second}, asked):
        made = comparison(row)
        assert (made.prompt, shown(made)) == ([USER], CHOSEN_A)
    assert comparison({**asked, "prompt": "a\r\nb"}).prompt[0]["content"] == "a\r\nb"


def test_sides_that_answer_nothing_are_bad_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = {"role": "user", "content": " "}
    rows = [{"chosen": [turn, said("A")], "rejected": [turn, said("B")]} for turn in (USER, asked)]
    path, cache = write(tmp_path / "p.jsonl", rows), str(tmp_path / "cache")
    with pytest.raises(PostTrainError, match=r"p\.jsonl:2: .* nothing is asked"):
        build_store([path], tokenizer, PreferenceOptions(), cache)


def test_pairs_that_are_all_ties_are_refused_and_one_tie_is_shown_as_one(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Q{i}", "response1": "A", "response2": "B", "label": 0} for i in range(4)]
    file = tmp_path / "rows.jsonl"
    options = PreferenceOptions(label_values={"1": "first", "0": "tie"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(PostTrainError, match=r"rows.jsonl \(.*label\): all 4 pairs are ties: .*--data.label_values"):
        build_store([str(file)], tokenizer, options, str(tmp_path / "cache"))
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "prompt": "Q", "label": 1}]))
    store, audit = build_store([str(file)], tokenizer, options, str(tmp_path / "cache"))
    assert audit.compared is not None
    assert (audit.compared.pairs, audit.compared.undecided) == (5, 4)
    assert (audit.compared.good, audit.compared.bad) == (1, 1)
    assert [show.shown(store[i], tokenizer).count("(tie)") for i in range(5)] == [2, 2, 2, 2, 0]
    assert "(chosen)" in show.shown(store[4], tokenizer)


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


def test_pairs_that_contradict_themselves() -> None:
    pair = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    with pytest.raises(BadRow, match=r"`margin` is -1.5: below 0 the rejected side is the better one"):
        comparison({**pair, "margin": -1.5})
    for chosen, rejected in (("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")):
        for scores, notes in (((1, 9), 1), ((9, 1), 0), ((1, 1), 0), ((None, 1), 0)):
            row = Row({**pair, chosen: scores[0], rejected: scores[1]})
            assert shown(recognise_comparison(Record(pair, "f", 1)).read(row)) == CHOSEN_A
            assert len(row.notes) == notes


def test_responses_of_other_names_are_no_prompts_without_answers() -> None:
    row = {"prompt": "Q", "response_a": "A", "response_b": "B", "winner": "a"}
    with pytest.raises(
        PostTrainError, match=r"name which of response_a, response_b, winner are responses with"
    ) as refused:
        comparison(row)
    assert "without answers" not in str(refused.value)
