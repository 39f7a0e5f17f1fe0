"""`lit-posttrain score --benchmark`: figures as the authors of RewardBench and RewardBench 2 compute them, worked out
here by hand, and for other preference data the share of pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.cli import one_line
from helpers.runs import write

from lit_posttrain.cli.main import main
from lit_posttrain.data.files.sources import read_records
from lit_posttrain.inference.benchmark import Benchmark, Report
from lit_posttrain.inference.benchmark_figures import SECTIONS, Figure

PUBLIC = Path(__file__).parents[1] / "data" / "formats_public"


def report(tmp_path: Path, rows: list[tuple[dict[str, Any], list[float] | None]]) -> Report:
    benchmark = Benchmark()
    for record in read_records(write(tmp_path / "rows.jsonl", [row for row, _ in rows])):
        benchmark.expect(record)
    benchmark.check()
    return benchmark.report([scores for _, scores in rows])


def found(made: Report) -> dict[str, tuple[int, float]]:
    return {one.name: (one.rows, round(one.accuracy, 6)) for one in made.figures}


def pair(subset: str) -> dict[str, str]:
    return {"prompt": "Q", "chosen": "A", "rejected": "B", "subset": subset}


def test_reward_bench_by_subset_and_section(tmp_path: Path) -> None:
    scored: list[tuple[dict[str, Any], list[float] | None]] = [
        (pair("alpacaeval-easy"), [2.0, 1.0]),
        (pair("alpacaeval-easy"), [1.0, 2.0]),
        (pair("mt-bench-med"), [0.5, -0.5]),
        (pair("mt-bench-med"), [0.5, 0.5]),  # not strictly higher
        (pair("mt-bench-med"), [3.0, 0.5]),
        (pair("math-prm"), [2.0, 1.0]),
        (pair("math-prm"), [1.0, 2.0]),
        *[(pair("hep-rust"), [1.0, 0.0])] * 4,
        (pair("hep-go"), None),
    ]
    made = report(tmp_path, scored)
    assert found(made) == {
        "alpacaeval-easy": (2, 0.5),
        "mt-bench-med": (3, round(2 / 3, 6)),
        "math-prm": (2, 0.5),
        "hep-rust": (4, 1.0),
        "Chat": (5, 0.6),
        "Reasoning": (6, 0.75),  # mathematics counts as much as code
        "overall, mean of the sections": (11, 0.675),
    }
    assert (made.equal, made.left_out) == (1, {"without a score": 1})
    assert len(SECTIONS) == 4
    assert sum(map(len, SECTIONS.values())) == 23


def best_of(subset: str, name: str, right: int, wrong: int) -> dict[str, Any]:
    return {
        "prompt": "Q",
        "chosen": [f"right {i}" for i in range(right)],
        "rejected": [f"wrong {i}" for i in range(wrong)],
        "subset": subset,
        "id": name,
    }


def test_reward_bench_2_takes_the_best_of_each_row_and_ties_apart(tmp_path: Path) -> None:
    made = report(
        tmp_path,
        [
            (best_of("Math", "1", 1, 3), [4.0, 3.0, 2.0, 1.0]),
            (best_of("Math", "2", 1, 3), [3.0, 4.0, 2.0, 1.0]),
            (best_of("Math", "3", 1, 3), [4.0, 4.0, 2.0, 1.0]),  # shares the first place with one other
            (best_of("Ties", "tied:0", 2, 1), [3.0, 2.0, 1.0]),  # spread 1, gap 1
            (best_of("Ties", "ref:0", 1, 1), [5.0, 2.0]),  # gap 3
            (best_of("Ties", "tied:1", 2, 2), [4.0, 4.0, 1.0, 0.0]),  # spread 0, gap 3
            (best_of("Ties", "ref:1", 1, 1), [1.0, 2.0]),  # gap -1
        ],
    )
    # tied: both right; ref: one of two; the gap of `tied` is wider than the spread once; with that of `ref` never;
    # tanh(1 / 1 - 1) = 0 and tanh(-1 / 0 - 1) = -1
    ties = 0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * (0 - 1) / 2
    assert found(made) == {
        "Math": (3, 0.5),
        "Ties": (4, round(ties, 6)),
        "overall, mean of the subsets": (7, round((0.5 + ties) / 2, 6)),
    }
    perfect = report(tmp_path, [(best_of("Ties", f"{kind}:7", 2, 1), [9.0, 9.0, 1.0]) for kind in ("tied", "ref")])
    assert found(perfect)["Ties"] == (2, 1.01)  # a hundredth above 1, as in the original
    assert 0 < perfect.figures[0].low < perfect.figures[0].high <= 1.0
    alone = report(
        tmp_path, [(best_of("Math", "1", 1, 1), [1.0, 0.0]), (best_of("Ties", "tied:0", 2, 1), [3.0, 2.0, 1.0])]
    )
    assert "Ties" not in found(alone)
    assert alone.left_out == {"of Ties without the other row of a pair": 1}


def test_other_preference_data_by_its_pairs(tmp_path: Path) -> None:
    made = report(
        tmp_path,
        [
            ({"prompt": "Q", "responses": ["A", "B", "C"], "ranks": [1, 0, 0]}, [1.0, 2.0, 0.5]),  # B above A, C not
            ({"prompt": "Q", "responses": ["A", "B", "C"], "ranks": [2, 1, 0]}, [1.0, 2.0, 3.0]),
            ({"prompt": "Q", "responses": ["A", "B", "C"], "ranks": [0, 0, 0]}, [1.0, 2.0, 3.0]),
        ],
    )
    assert found(made) == {"overall": (2, 0.75)}
    assert made.left_out == {"all tied": 1}


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("helpsteer3", [[2.0, 1.0], [1.0, 2.0], [1.0, 1.0], [2.0, 1.0]]),
        ("shp", [[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]]),
        ("pku_safe_rlhf", [[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]]),
        ("nectar", [[2.0, 4.0, 1.0, 3.0], [1.0, 2.0, 1.0], [1.0, 1.0]]),
        ("ultrafeedback", [[1.0, 3.0, 2.0, 2.0], [3.0, 9.0, 2.0], [1.0, 1.0], [1.0, 1.0], None]),
    ],
)
def test_scores_stand_in_the_order_of_the_record(name: str, scores: list[list[float] | None]) -> None:
    """Scores that are right, in the order in which `score` gives them."""
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0)):
        benchmark = Benchmark()
        for record in read_records(str(PUBLIC / f"{name}.jsonl")):
            benchmark.expect(record)
        made = benchmark.report([given and [sign * score for score in given] for given in scores])
        assert made.figures[-1].accuracy == expected


def test_intervals_are_wilsons() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for right, rows in ((0, 4), (1, 7), (45, 100), (985, 985)):
        figure = Figure("x", rows, right / rows, rows)
        assert (figure.low, figure.high) == pytest.approx(
            proportion.proportion_confint(right, rows, method="wilson"), abs=1e-6
        )


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    tiny.save_scorer(tiny.save_model(tmp_path / "base"), tmp_path / "scores")
    return "scores"


def test_the_command_shows_a_table_and_keeps_the_rows(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", "--model", model, "--data", str(PUBLIC / "reward_bench.jsonl"), "--benchmark", "true"]
    assert main(command) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["subset", "rows", "accuracy", "95", "%", "interval"]
    assert not any("{" in line for line in table), "the rows are not printed"
    assert main([*command, "--out", "scored.jsonl"]) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[1:] == table
    rows = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    right = {row["subset"]: float(row["scores"][0] > row["scores"][1]) for row in rows}
    shown = {line.split("  ")[0]: float(line.split()[-4]) for line in table[1:]}
    assert {name: shown[name] for name in right} == right
    assert shown["overall, mean of the sections"] == pytest.approx(sum(right.values()) / 3, abs=1e-3)


def test_a_column_scores_is_lost_only_where_rows_are_written(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "scores": [1, 0]}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    command = ["score", "--model", model, "--data", "rows.jsonl", "--benchmark", "true"]
    assert main(command) == 0
    assert main([*command, "--out", "scored.jsonl"]) == 2
    assert "has a column `scores` already" in capsys.readouterr().err


def test_reward_bench_2_on_the_command_line(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(PUBLIC / "reward_bench_2.jsonl")
    assert main(["score", "--model", model, "--data", path, "--benchmark", "true", "--out", "scored.jsonl"]) == 0
    table = capsys.readouterr().out
    assert "Ties" in table
    assert "overall, mean of the subsets" in table
    assert "left out: 1 fewer than two rated responses" in table
    rows = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert [len(row["scores"]) for row in rows] == [4, 5, 2, 1]
    assert all(math.isfinite(score) for row in rows for score in row["scores"])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"prompt": "Q", "completion": "A"}], "conversations (prompt/completion): configs/sft.yaml"),
        ([{"prompt": "Q", "completion": "A", "label": True}], "rows.jsonl:1: single responses marked as good or bad"),
        ([{"prompt": "Q", "response1": "A", "response2": "B", "label": 0}], "no label is 2"),
        ([{"prompt": "Q", "responses": ["A", "B"], "ranks": [1, 1]}], "no row prefers a response (1 all tied)"),
        ([best_of("Ties", "4", 2, 1)], "rows.jsonl:1: `id` is 4; of the subset Ties it is ref:N or tied:N"),
    ],
)
def test_a_file_without_preferences_is_told_before_anything_is_scored(
    rows: list[dict[str, Any]], told: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("rows.jsonl"), rows)
    assert main(["score", "--model", model, "--data", "rows.jsonl", "--benchmark", "true"]) == 2
    said = one_line(capsys)
    assert told in said
    assert "--data." not in said


def test_labels_of_another_kind(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "Q", "response1": "A", "response2": "B", "label": label} for label in ("left", "right")]
    command = ["score", "--model", model, "--data", write(Path("rows.jsonl"), rows)]
    values = ["--label_values", "{left: first, right: second}"]
    assert main([*command, "--benchmark", "true", *values]) == 0
    assert float(capsys.readouterr().out.splitlines()[-1].split()[-4]) == 0.5
    assert main([*command, *values]) == 2
    assert "--benchmark true" in one_line(capsys)
