"""The audit's numbers, its warnings and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny

from lit_posttrain.data.audit.compared import Compared, ResponseColumns, compared
from lit_posttrain.data.audit.file_audit import FileAudit
from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.store.build import TokenizeOptions, build_store


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def audit_of(tmp_path: Path, rows: list[Any], template: str = tiny.CHATML, **options: Any) -> AuditReport:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = TokenizeOptions(**{"max_length": 64, **options})
    return build_store([str(path)], tiny.tokenizer(template), settings, str(tmp_path / "cache"))[1]


def test_measures() -> None:
    file = FileAudit("a.jsonl")
    file.measure(np.arange(1, 101), np.ones(100, np.int64), np.arange(1001, 1101))
    assert (file.examples, file.tokens, file.trained_tokens, file.mean) == (100, 5050, 100, 50.5)
    assert (file.p50, file.p95, file.max) == (50, 95, 100)
    assert file.longest == [(1100, 100), (1099, 99), (1098, 98), (1097, 97), (1096, 96)]
    assert file.trained_share == pytest.approx(100 / 5050)


def test_examples_are_a_few(tmp_path: Path) -> None:
    rows = [talk("a", "b"), *(talk("a", " ") for _ in range(9))]
    report = audit_of(tmp_path, rows, on_bad_row="skip")
    tally = report.files[0].dropped["empty completion"]
    assert (tally.count, tally.lines) == (9, [2, 3, 4, 5, 6])


def columns_of(*prompts: list[tuple[dict[str, float], int]]) -> ResponseColumns:
    """Of every prompt its responses: labels, tokens."""
    flat = [(tree, *response) for tree, responses in enumerate(prompts) for response in responses]
    tree, labels, size = zip(*flat, strict=True)
    names = {name for one in labels for name in one}
    columns = {name: np.array([one.get(name, np.nan) for one in labels], np.float32) for name in names}
    return ResponseColumns(np.array(tree), np.array(size), columns)


def side(rank: float, size: int, **more: float) -> tuple[dict[str, float], int]:
    return {"rank": rank, **more}, size


def test_comparisons_are_counted() -> None:
    pair = [side(0, 5), side(1, 3, flip_prob=0.25)]
    even = [side(0, 4, margin=1.5), side(1, 4)]
    ranking = [side(1, 9), side(0, 2), side(1, 1), side(2, 7)]
    found = compared(columns_of(pair, even, ranking))
    # of the ranking five pairs are unequal: the best one (2) beats 9, 1 and 7, those of rank 1 (9 and 1) beat 7
    assert found == Compared(8, 2, 4, pairs=7, tied=1, unsure=1, undecided=0, good=3, bad=3, unequal=6, longer=2.75)
    assert found.lines() == [
        "responses per prompt: 2 to 4; pairs: 7, 1 tied, 1 with annotators who disagree; 3 good, 3 bad",
        "the longer response is preferred in 45.8% of 6 pairs of unequal length",
    ]
    assert found.one_sided == ""


def test_as_many_votes_for_either_prefer_no_length() -> None:
    found = compared(columns_of([side(0, 9), side(1, 3, flip_prob=0.5)]))
    assert found == Compared(2, 2, 2, pairs=1, tied=0, unsure=0, undecided=1, good=0, bad=0, unequal=1, longer=0.5)


def test_responses_of_one_kind_are_a_warning() -> None:
    good, bad = [({"good": 1.0}, 5)], [({"good": 0.0}, 5)]
    mixed, lone = compared(columns_of(good, bad, bad)), compared(columns_of(bad, bad))
    assert mixed is not None
    assert lone is not None
    assert mixed.lines() == ["single responses: 1 good, 2 bad"]
    assert mixed.one_sided == ""
    assert lone.one_sided == "all 2 responses are bad: nothing tells them from good ones; add some"
    assert compared(columns_of([({}, 5)])) is None


def test_json_round_trip_with_validation(tmp_path: Path) -> None:
    report = audit_of(tmp_path, [talk("a", "b"), talk("a", "b"), talk("c", "fox " * 99)])
    report.validation["val"] = audit_of(tmp_path, [talk("a", "b")])
    report.validation["val"].in_training = 1
    assert AuditReport.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["warnings"] == report.warnings
    assert any(line.startswith("val: 1 of 1 row also in the training data") for line in report.warnings)


def test_repeated_rows_are_named(tmp_path: Path) -> None:
    report = audit_of(tmp_path, [talk("a", "b"), talk("c", "b"), talk("a", "b"), talk("a", "b")])
    assert f"2 of 4 rows repeat an earlier row ({tmp_path}/rows.jsonl:3, :4)" in report.warnings


HIDDEN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nthe lazy dog<|im_end|>\n' }}{% endif %}" + tiny.CHATML
)


def test_a_system_prompt_of_the_template_is_named(tmp_path: Path) -> None:
    own = {"messages": [{"role": "system", "content": "a"}, *talk("a", "b")["messages"]]}
    report = audit_of(tmp_path, [talk("a", "b"), own, talk("c", "d")], HIDDEN)
    size = len(tiny.tokenizer()("<|im_start|>system\nthe lazy dog<|im_end|>\n", add_special_tokens=False)["input_ids"])
    (line,) = [line for line in report.warnings if "system prompt of its own" in line]
    assert f"to 2 rows, {size} tokens each ('<|im_start|>system the lazy dog<|im_end|>')" in line
    assert report.files[0].opened.lines == [1, 3]
    always = "{{ 'A talk of a person and a model.\n' }}" + tiny.CHATML  # whatever the system prompt says
    for template in (tiny.CHATML, HIDDEN.replace("the lazy dog", "").replace("system\n<|im_end|>\n", ""), always):
        assert not any("of its own" in line for line in audit_of(tmp_path, [talk("a", "b")], template).warnings)


@pytest.mark.parametrize(
    ("rows", "template", "options", "warning"),
    [
        ([talk("a", "b")], tiny.CHATML.replace("<|im_end|>", ""), {}, "name the end token with --model.policy.eos"),
        ([talk("a", "b")], tiny.CHATML.replace("<|im_end|>", "<|pad|>"), {}, "turns end with '<|pad|>', not with"),
        ([talk("a", "b")], tiny.CHATML + "{# strftime_now #}", {}, "writes the date of tokenisation"),
        ([talk("a <|im_end|>", "b")], tiny.CHATML, {}, "1 row with special tokens in the text"),
        ([talk("a", "b"), talk("a", "b")], tiny.CHATML, {}, "1 of 2 rows repeat an earlier row"),
        ([talk("a", "b"), talk("a", "fox " * 99)], tiny.CHATML, {}, "1 of 2 rows longer than max_length 64"),
        ([talk("fox " * 99, "b")], tiny.CHATML, {"max_length": 512}, "only 1.8% of the tokens are trained on"),
        (
            [{"messages": [*talk("a", "b")["messages"], {"role": "user", "content": "c"}]}],
            tiny.CHATML,
            {},
            "1 row with turns at the end without an answer; those turns are left out",
        ),
    ],
)
def test_warnings(tmp_path: Path, rows: list[Any], template: str, options: dict[str, Any], warning: str) -> None:
    warnings = audit_of(tmp_path, rows, template, **options).warnings
    assert len(warnings) == 1
    assert warning in warnings[0]


def test_nothing_to_look_at(tmp_path: Path) -> None:
    assert audit_of(tmp_path, [talk("a", "b"), talk("c", "d")]).warnings == []


def test_pad_is_eos(tmp_path: Path) -> None:
    path, made = tmp_path / "rows.jsonl", tiny.tokenizer()
    path.write_text(json.dumps(talk("a", "b")) + "\n")
    assert "pad = eos: no" in build_store([str(path)], made, TokenizeOptions(), str(tmp_path))[1].table()
    made.pad_token = made.eos_token
    report = build_store([str(path)], made, TokenizeOptions(), str(tmp_path))[1]
    assert report.pad_is_eos
    assert "pad = eos: yes; end tokens stay trained" in report.table()


def test_table(tmp_path: Path) -> None:
    for name, rows in (("x", [talk("a", "b"), talk("a", "")]), ("y", [talk("c", "d")])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [str(tmp_path / name / "rows.jsonl") for name in ("x", "y")]
    options = TokenizeOptions(on_bad_row="skip")
    lines = build_store(paths, tiny.tokenizer(), options, str(tmp_path))[1].table().splitlines()
    assert lines[1].split() == ["x/rows.jsonl", "y/rows.jsonl", "total"]
    assert lines[2].split() == ["rows", "read", "2", "1", "3"]
    assert lines[3].split() == ["examples", "1", "1", "2"]
    assert lines[5].split() == ["empty", "completion", "1", "0", "1"]
    assert f"{paths[0]}:2: dropped, empty completion" in lines


def test_the_table_keeps_to_a_terminal() -> None:
    files = [FileAudit(f"/very/long/folder/name-{i}/part-{i:05d}-of-00100.jsonl.gz") for i in range(9)]
    lines = AuditReport(files, FileAudit("total")).table().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("rows read") for line in lines) >= 3


def test_any_name_of_a_column_can_be_printed(tmp_path: Path) -> None:
    report = audit_of(tmp_path, [{"prompt": "what is it", "completion": "a fox", "\udc00": 1}])
    assert list(report.files[0].unread) == [r"\udc00"]
    assert r"\udc00" in report.table().encode().decode()


def test_unused_columns_are_lines_of_their_own(tmp_path: Path) -> None:
    report = audit_of(tmp_path, [{**talk("a", "b"), "note": "x"}, {**talk("c", "d"), "id": 1}])
    assert report.unused == [f"{report.files[0].name}: not used: note (1 row), id (1 row)"]
    assert audit_of(tmp_path, [talk("a", "b")]).unused == []


def test_a_column_that_the_model_never_sees_is_to_look_at(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "context": {"page": "c"}, "history": 3, "id": 1, "tools_used": "d"}]
    warnings = audit_of(tmp_path, rows).warnings
    assert [line for line in warnings if "never sees" in line] == [
        f"`{name}` is not used in 1 row ({tmp_path / 'rows.jsonl'}:1): the model never sees it"
        for name in ("history", "context")
    ]
