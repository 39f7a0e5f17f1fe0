"""`lit-posttrain agree`: files of people, judges and labels; mistakes in one line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from helpers.annotators import Items

from lit_posttrain.cli.commands import agree as command
from lit_posttrain.cli.main import main
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.agreement.read import decisions_of


def written(file: Path, decisions: Iterable[Decision]) -> str:
    file.write_text("".join(json.dumps(one.row()) + "\n" for one in decisions))
    return str(file)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """People's votes, a judge's, and labels of an annotator, on the same forty pairs."""
    folder, items = tmp_path_factory.mktemp("votes"), Items(40)
    people = [one for n, name in enumerate(("Ann", "Ben")) for one in items.people(name, 0.9, n)]
    rows: list[dict[str, object]] = []
    for one in items.consistent():
        first, second = (response["text"] for response in one.responses)
        label = 1 if one.probability else 2
        said = {"prompt": f"question {len(rows)}", "response_1": first, "response_2": second}
        rows.append({**said, "annotator1": label, "annotator2": 3 - label if len(rows) < 4 else label})
    labels = folder / "labels.jsonl"
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "people": written(folder / "votes.jsonl", people),
        "judge": written(folder / "judge.jsonl", items.positional()),
        "labels": str(labels),
        "folder": str(folder),
    }


def test_people_a_judge_and_labels_meet(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(files["folder"]) / "report.json"
    assert main(["agree", files["people"], files["judge"], files["labels"], "--out", str(out)]) == 0
    shown, told = capsys.readouterr().out, json.loads(out.read_text())
    assert "40 pairs of responses to 40 prompts" in shown
    assert "positional: do not train on it" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert [one["name"] for one in told["annotators"]] == ["Ann", "Ben", "positional", "annotator1", "annotator2"]
    two = next(one for one in told["between"] if (one["one"], one["other"]) == ("annotator1", "annotator2"))
    assert two["agreement"]["value"] == pytest.approx(0.9)
    assert told["bias"]["positional"]["first_position"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 80}
    assert {one["name"]: one["advice"] for one in told["verdicts"]} == {"people": "train", "positional": "do not"}


def test_labels_plots_and_debiasing(files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, rng = Items(40), np.random.default_rng(0)
    soft = written(tmp_path / "soft.jsonl", items.judge("soft", lambda i: [float(p) for p in rng.random(2)]))
    out, labels, plots = (str(tmp_path / name) for name in ("report.json", "labels.jsonl", "plots"))
    words = ["agree", files["people"], soft, "--out", out, "--labels", labels, "--plots", plots, "--debias", "true"]
    assert main(words) == 2
    assert "--aggregate dawid_skene joins verdicts, and --debias makes probabilities" in capsys.readouterr().err
    words += ["--aggregate", "mean"]
    assert main(words) == 0
    shown, told = capsys.readouterr().out, json.loads(Path(out).read_text())
    assert "log odds for twice the length" in shown
    assert {*told["debiased"]["soft"]} == {"quality", "position", "length", "longer", "brier"}
    assert told["calibration"]["soft"]["error"] > 0.1
    rows = [json.loads(row) for row in Path(labels).read_text().splitlines()]
    assert len(rows) == 40
    assert all(0.4 < row["judge"]["votes"]["soft"] < 0.6 for row in rows)  # it answers at random
    assert main(["agree", files["people"], soft, "--out", out, "--labels", labels, "--overwrite", "true"]) == 0
    assert "reliability (Dawid-Skene)" in capsys.readouterr().out
    assert {*json.loads(Path(out).read_text())["reliability"]} == {"Ann", "Ben", "soft"}
    drawn = sorted(Path(plots).iterdir())
    assert [file.name for file in drawn] == ["agreement.png", "bias.png", "calibration.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)
    assert main(words) == 2  # nothing is overwritten
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "words", "told"),
    [
        ("sklearn", ["--debias", "true"], "--debias needs scikit-learn"),
        ("matplotlib", ["--plots", "x"], "--plots needs matplotlib"),
    ],
)
def test_what_is_not_installed_is_told_before_anything_is_read(
    module: str,
    words: list[str],
    told: str,
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == module else object())
    assert main(["agree", files["people"], *words]) == 2
    said = capsys.readouterr()
    assert f'error: {told}: pip install "lit-posttrain[feedback]"' in said.err
    assert said.out == ""


def test_files_may_be_named_with_the_option(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agree", "--data", json.dumps([files["people"]])]) == 0
    assert "Ann, Ben" in capsys.readouterr().out


def test_pairs_with_a_better_side_are_an_annotator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = Items(40)
    rows: list[dict[str, object]] = []
    for one in items.consistent():
        texts = [response["text"] for response in one.responses]
        chosen, rejected = texts if one.probability else reversed(texts)
        rows.append({"prompt": f"question {len(rows)}", "chosen": chosen, "rejected": rejected})
    gold = tmp_path / "gold.jsonl"
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["agree", str(gold), written(tmp_path / "judge.jsonl", items.consistent())]) == 0
    shown = capsys.readouterr().out
    assert "gold, consistent" in shown
    assert "1.00 (1.00 to 1.00)" in shown  # kappa, though the first response is always the better one


def test_labels_mean_what_the_file_or_the_user_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, rows = Items(40), list[dict[str, object]]()
    for one in items.consistent():
        first, second = (response["text"] for response in one.responses)
        said = {"prompt": f"question {len(rows)}", "response_1": first, "response_2": second}
        rows.append({**said, "label": int(bool(one.probability))})  # 1: the first one, 0: the second one
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path in paths:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [*map(str, paths), written(tmp_path / "judge.jsonl", items.consistent())]
    assert main(["agree", *files]) == 2
    error = capsys.readouterr().err
    assert "no label is 2, and some are 0" in error
    assert " --label_values '{1: first, 0: tie}'" in error
    out = tmp_path / "report.json"
    assert main(["agree", "--label_values", "{1: first, 0: second}", "--out", str(out), *files]) == 0
    told = json.loads(out.read_text())
    assert [one["name"] for one in told["annotators"]] == [*(f"label of {path}" for path in paths), "consistent"]
    assert [one["agreement"]["value"] for one in told["between"]] == [1, 1, 1]


def test_of_equal_responses_the_first_ones_rank_counts(tmp_path: Path) -> None:
    row = {"prompt": "Q", "responses": ["A", "A", "B"], "ranks": [1, 3, 2]}
    (tmp_path / "ranked.jsonl").write_text(json.dumps(row) + "\n")
    (made,) = decisions_of(str(tmp_path / "ranked.jsonl"))
    assert [one["text"] for one in made.responses] == ["A", "B"]
    assert made.ranks == [0, 1]


def test_neighbouring_rows_of_ratings_are_a_ranking() -> None:
    public = Path(__file__).parents[2] / "data" / "formats_public" / "helpsteer2.jsonl"
    made = decisions_of(str(public))
    assert made
    assert all(one.annotator == "helpsteer2" and len(one.responses) > 1 and one.ranks for one in made)


def test_long_names_of_judges_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, long = Items(40), "hub/A-Model-With-A-Long-Name-1.7B-Instruct.Q4_1.gguf"
    people = written(tmp_path / "votes.jsonl", [one for n in (0, 1) for one in items.people("Ann Bo"[3 * n :], 0.9, n)])
    judges = [
        written(tmp_path / f"{kind}.jsonl", items.judge(f"{long} {kind}", lambda i: [0.9, 0.8], long))
        for kind in ("pairwise", "verdict")
    ]
    assert main(["agree", people, *judges]) == 0
    table, _, verdict = capsys.readouterr().out.partition("verdict\npeople")
    assert max(map(len, table.splitlines())) <= 100
    assert "…struct.Q4_1.gguf pairwise" in table
    assert "A-Model-With-A-Long-Name-1.7B-Instruct.Q4_1.gguf pairwise: do not train on it" in verdict


def test_folders_and_exports_of_other_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, folder = Items(12), tmp_path / "votes"
    folder.mkdir()
    for n, name in enumerate(("Ann", "Ben")):
        written(folder / f"{name}.jsonl", items.people(name, 0.9, n))
    with (folder / "Ben.jsonl").open("a") as file:
        file.write('{"feedback": 1, "id": "torn')
    both = written(tmp_path / "both.jsonl", [one for n in (0, 1) for one in items.people(("Ann", "Ben")[n], 0.9, n)])
    tasks = str(tmp_path / "tasks.json")
    assert main(["agree", str(folder)]) == 0
    there = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Ann, Ben")]
    assert main(["feedback", "convert", "--data", both, "--to", "label_studio_pairwise", "--out", tasks]) == 0
    capsys.readouterr()
    assert main(["agree", tasks]) == 0
    assert there[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no file of votes: name some, as in lit-posttrain agree votes.jsonl judge.jsonl"),
        (["nothing.jsonl"], "nothing.jsonl: no such file"),
        (["{people}", "{other}"], "none of its pairs of responses is in another file; name files on the same items"),
        (["{one}"], "votes of Ann alone, whom nobody is compared with; name a second file"),
        (["{skipped}"], "no vote on two responses among the decisions (1 skipped)"),
        (["{prompts}"], "not preferences but"),
        (["{people}", "--out", "{people}"], "--out {people}: a file of the data; choose another"),
        (["{people}", "--labels", "{people}"], "--labels {people}: a file of the data; choose another"),
        (["{people}", "--out", "same", "--labels", "./same"], "--out same and --labels ./same: the same file"),
        (["{people}", "--plots", "{people}"], "--plots {people}: no folder, and none can be made"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], told: str, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, skipped = Items(3, seed=7), Decision("s", "i", "Ann", outcome="skipped")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    places = {
        **files,
        "other": written(tmp_path / "other.jsonl", other.consistent()),
        "one": written(tmp_path / "one.jsonl", other.people("Ann", 1, 0)),
        "skipped": written(tmp_path / "skipped.jsonl", [skipped]),
        "prompts": str(tmp_path / "prompts.jsonl"),
    }
    assert main(["agree", *(word.format(**places) for word in words)]) == 2
    error = capsys.readouterr().err
    assert told.format(**places) in error
    assert error.splitlines()[-1].startswith("error: ")
