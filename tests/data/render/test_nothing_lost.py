"""Whatever a row says reaches the tokens, or stands in the audit: every reader, with every column, key and mark that
any of them knows, from the tables that they read by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from helpers import tiny

from lit_posttrain.data.audit.file_audit import FileAudit
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.modules.preference import PreferenceOptions
from lit_posttrain.data.modules.prompts import PromptOptions
from lit_posttrain.data.render.trees import TreeMaker
from lit_posttrain.data.rows import beside
from lit_posttrain.data.rows.bad_rows import Misread
from lit_posttrain.data.rows.kinds import ANSWERS, COMPARED, CONVERSATION, INPUT, PROMPT
from lit_posttrain.data.rows.marks import MESSAGE_MARKS, ROW_MARKS
from lit_posttrain.data.rows.message_keys import REASONING
from lit_posttrain.data.rows.messages import JOINED
from lit_posttrain.data.store.build import TokenizeOptions
from lit_posttrain.errors import PostTrainError
from lit_posttrain.template_variables import SWITCHES
from lit_posttrain.types import PromptRecord, Tree

# writes all that a message may hold
FULL = (
    "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% for k in ['reasoning_content', 'thinking', 'reasoning'] %}{% if m[k] %}{{ '(' + m[k] + ')' }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION = "what is the question"


@cache
def tokenizer() -> Any:
    return tiny.tokenizer(FULL)


def talk(answer: str = "first answer") -> list[dict[str, Any]]:
    return [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]


def _conversations() -> Iterator[tuple[str, dict[str, Any]]]:
    for column in CONVERSATION:
        yield column, {column: talk()}
    for prompt, answers in ANSWERS.items():
        for answer in answers:
            yield f"{prompt}/{answer}", {prompt: QUESTION, answer: "first answer"}


def _preferences() -> Iterator[tuple[str, dict[str, Any]]]:
    sides: dict[str, tuple[dict[str, Any], ...]] = {
        "pair": ({COMPARED["chosen"][0]: "first answer", COMPARED["rejected"][0]: "second answer"},),
        "whole sides": ({"chosen": talk(), "rejected": talk("second answer")},),
        "ranking": tuple(
            {name: [{"text": "first answer", "rank": 0}, {"text": "second answer", "rank": 1}]}
            for name in COMPARED["responses"]
        ),
        "judged": tuple(
            {first: "first answer", second: "second answer", "label": 1}
            for first, second in zip(COMPARED["first"], COMPARED["second"], strict=True)
        ),
        "unpaired": tuple({name: "first answer", "label": True} for name in COMPARED["completion"]),
    }
    yield "whole sides without a prompt", {"chosen": talk(), "rejected": talk("second answer")}
    for kind, rows in sides.items():
        for number, row in enumerate(rows):
            for prompt in PROMPT if number == 0 else PROMPT[:1]:
                yield f"{kind} {number} of {prompt}", {prompt: QUESTION, **row}
            if number == 0:
                for column in CONVERSATION:
                    yield f"{kind} of {column}", {column: talk()[:1], **row}


def _prompts() -> Iterator[tuple[str, dict[str, Any]]]:
    for prompt in PROMPT:
        yield prompt, {prompt: QUESTION}
    for column in CONVERSATION:
        yield column, {column: talk()}


ROADS: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
    "conversations": (TokenizeOptions(max_length=10_000), dict(_conversations())),
    "preferences": (PreferenceOptions(max_length=10_000), dict(_preferences())),
    "prompts": (PromptOptions(max_length=10_000), dict(_prompts())),
}
SHAPES = [(road, name) for road, (_, shapes) in ROADS.items() for name in shapes]
SCHEMA = {"type": "function", "function": {"name": "zulu", "parameters": {"x": {"default": None}}}}
# a column that any row may have -> its value, and the words of it that must not be lost
COLUMNS: dict[str, tuple[Any, tuple[str, ...]]] = {
    **dict.fromkeys((*beside.SYSTEM_COLUMNS, *beside.THOUGHT_COLUMNS, *INPUT), ("zulu", ("zulu",))),
    **{name: ([SCHEMA], ("zulu", "default")) for name in beside.TOOL_COLUMNS},
    beside.HISTORY: ([["zulu", "yankee"]], ("zulu", "yankee")),
    beside.VARIABLES: ({"xray": "zulu"}, ("zulu",)),
    **dict.fromkeys(SWITCHES, (True, ("zulu",))),
    "anything": ("zulu", ("zulu",)),
    "some_object": ({"zulu": 1}, ("zulu",)),
}


def build(road: str, *rows: dict[str, Any]) -> tuple[list[Tree], FileAudit]:
    maker = TreeMaker(["rows.jsonl"], tokenizer(), ROADS[road][0])
    records = [Record(json.loads(json.dumps(row)), "rows.jsonl", line) for line, row in enumerate(rows, 1)]
    items = [item for record in records for item in maker.items(0, record)]
    return [tree for tree, _ in maker.trees(items, maker.encode(items))], maker.audits[0]


def text_of(tree: Tree) -> str:
    sides = [tree.prompt, *(response.tokens for response in tree.responses)]
    return "\n".join(tokenizer().decode(side) for side in sides)


def trained(tree: Tree) -> str:
    said = [response.tokens[response.loss_mask] for response in tree.responses]
    return "\n".join(tokenizer().decode(tokens) for tokens in said)


@pytest.mark.parametrize(("road", "name"), SHAPES)
def test_every_column_reaches_the_tokens_or_the_audit(road: str, name: str) -> None:
    row = ROADS[road][1][name]
    (bare,), audit = build(road, row)
    assert QUESTION in text_of(bare)
    assert all(answer in text_of(bare) for answer in ("first answer", "second answer") if _says(row, answer))
    assert road == "prompts" or not set(row) & set(audit.unread)
    for column, (value, words) in COLUMNS.items():
        if column in row:
            continue
        (tree,), audit = build(road, {**row, column: value})
        unread = [key for key in audit.unread if key == column or key.startswith((f"{column}.", "message."))]
        unread += ["chat_template_kwargs.enable_thinking"] * ("enable_thinking" in str(audit.unread))
        unread += ["tools"] * (column in beside.TOOL_COLUMNS and "tools" in audit.unread)
        reward = PromptRecord.of(tree).columns if road == "prompts" else {}
        assert all(word in text_of(tree) for word in words) or unread or column in reward, column
        known = column in (*beside.SYSTEM_COLUMNS, *beside.TOOL_COLUMNS)
        assert not known or all(word in text_of(tree) for word in words), column
        assert QUESTION in text_of(tree)


def _says(row: dict[str, Any], answer: str) -> bool:
    if any(name in row for name in CONVERSATION) and not any(name in row for name in ("chosen", "responses")):
        return False
    return answer in json.dumps(row)


@pytest.mark.parametrize(("road", "name"), [pair for pair in SHAPES if pair[0] != "prompts"])
def test_every_mark_of_a_row_leaves_it_out(road: str, name: str) -> None:
    row = ROADS[road][1][name]
    for mark in ROW_MARKS:
        for no, yes in ((0, 1), (False, True), (0.0, 1.0), ("0", "1")):
            trees, audit = build(road, {**row, mark: yes}, {**row, mark: no}, {**row, mark: None})
            assert len(trees) == 2
            assert audit.dropped["marked not to be trained on"].count == 1
            assert not audit.unread


@pytest.mark.parametrize("mark", MESSAGE_MARKS)
@pytest.mark.parametrize("road", ["conversations", "preferences"])
def test_every_mark_of_a_turn_leaves_it_out(road: str, mark: str) -> None:
    no, yes = (0, 1) if MESSAGE_MARKS[mark] else (1, 0)
    for convert in (int, float, bool, str):
        marked = [{**talk()[0]}, {**talk()[1], mark: convert(no)}, {"role": "user", "content": "more"}]
        last = {"role": "assistant", "content": "last answer", mark: convert(yes)}
        row = {"messages": [*marked, last]}
        if road == "preferences":
            row = {"prompt": talk()[:1], "chosen": [*marked[1:], last], "rejected": [*talk("second answer")[1:]]}
        (tree,), audit = build(road, row)
        assert "last answer" in trained(tree)
        assert "first answer" not in trained(tree)
        assert "first answer" in text_of(tree)
        assert sum(tally.count for tally in audit.notes.values()) == 1
        assert not audit.unread


@pytest.mark.parametrize("key", [*REASONING, "name", "anything", "content[].cache_control", "tool_calls[].id"])
@pytest.mark.parametrize(("road", "column"), [("conversations", "messages"), ("preferences", "chosen")])
def test_every_key_of_a_message_reaches_the_tokens_or_the_audit(road: str, column: str, key: str) -> None:
    answer: dict[str, Any] = {"role": "assistant", "content": "first answer", key: "zulu"}
    if key.startswith("content"):
        answer = {"role": "assistant", "content": [{"type": "text", "text": "first answer", "cache_control": "zulu"}]}
    if key.startswith("tool_calls"):
        call = {"id": "zulu", "type": "function", "function": {"name": "f", "arguments": {}}}
        answer = {"role": "assistant", "content": "first answer", "tool_calls": [call]}
    other = {"rejected": talk("second answer")} if column == "chosen" else {}
    (tree,), audit = build(road, {column: [talk()[0], answer], **other})
    said = "zulu" in text_of(tree)
    assert said != (f"message.{key}" in audit.unread)
    assert said or key not in (*REASONING, "tool_calls[].id")
    assert all(tally.count == 1 for tally in audit.unread.values())


@pytest.mark.parametrize(("parts", "joined"), [(["one", "two"], 1), (["one"], 0), (["one", ""], 0), ([" ", "one"], 1)])
@pytest.mark.parametrize("spell", [str, lambda text: {"type": "text", "text": text}])
@pytest.mark.parametrize("road", ROADS)
def test_text_parts_that_are_joined_are_counted(road: str, spell: Any, parts: list[str], joined: int) -> None:
    asked = {"role": "user", "content": [spell(part) for part in parts]}
    sides = {"chosen": talk()[1:], "rejected": talk("second answer")[1:]} if road == "preferences" else {}
    row = {"prompt": [asked], **sides} if road != "conversations" else {"messages": [asked, talk()[1]]}
    (tree,), audit = build(road, row)
    assert "".join(parts).strip() in text_of(tree)
    assert [tally.count for words, tally in audit.notes.items() if words == JOINED] == [1] * joined
    assert sum(tally.count for tally in audit.notes.values()) == joined


USER, ANSWER = talk()
CALLS: list[Any] = [[], [{}], "x", [3], [{"function": {}}], [{"function": {"name": 1}}], {"name": "zulu"}]
PARTS: list[Any] = [[None], [{}], [{"type": "image"}], None, 3]
WEIGHTS: list[Any] = [0.5, "x", []]
BAD: list[Any] = [
    *(None, "", [], {}, 0, 1.5, True, "x", "[", "[{", "[1]", "{}", [1], [None], ["a"], [["a", None]], [{}], 10**400),
    *([{"role": "user"}], [USER], [ANSWER], [ANSWER, ANSWER], [{"role": "narrator", "content": "a"}], {"role": "user"}),
    *([{"role": "system", "content": "s"}], [{"role": "tool", "content": "t"}], "\n\nHuman: \n\nAssistant: x"),
    *([{"role": "assistant", "content": parts}] for parts in PARTS),
    *([USER, {"role": "assistant", "content": "", "tool_calls": calls}] for calls in CALLS),
    *([USER, {**ANSWER, "weight": weight}] for weight in WEIGHTS),
    *([USER, {"from": "function_call", "value": value}] for value in ("no JSON", "[1]", 3)),
    *([{"text": None, "rank": 0}, {"text": "b", "rank": 1}], [{"text": "a", "rank": "x"}, {"text": "b"}]),
]


@pytest.mark.parametrize(("road", "name"), SHAPES)
def test_every_row_is_a_tree_or_counted_as_dropped(road: str, name: str) -> None:
    """Whatever stands in whichever column: never another error, and with on_bad_row skip nothing gets lost. Labels that
    say something else than they are read as end the run even so."""
    row, options = ROADS[road][1][name], replace(ROADS[road][0], on_bad_row="skip")
    maker = TreeMaker(["rows.jsonl"], tokenizer(), options)
    maker.look(0, Record(row, "rows.jsonl", 1))
    beside_it = [*beside.SYSTEM_COLUMNS, *beside.TOOL_COLUMNS, beside.HISTORY, beside.VARIABLES, *ROW_MARKS, *INPUT]
    rows = [(column, {**row, column: value}) for column in dict.fromkeys([*row, *beside_it]) for value in BAD]
    rows += [(column, {key: value for key, value in row.items() if key != column}) for column in row]
    items, ended = [], []
    for line, (column, made) in enumerate(rows):
        try:
            items += list(maker.items(0, Record(made, "rows.jsonl", line)))
        except PostTrainError as problem:
            ended.append((column, type(problem.__cause__)))
    trees = list(maker.trees(items, maker.encode(items)))
    audit = maker.audits[0]
    assert audit.rows == len(rows)
    assert len(trees) + audit.dropped_count + len(ended) == len(rows)
    assert set(ended) == ({("label", Misread)} if "label" in row else set())
    assert 0 < len(trees) < len(rows)
