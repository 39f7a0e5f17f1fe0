"""`lit-posttrain agree`: how far annotators agree, what biases them, and labels made of several people's votes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lit_posttrain.cli.commands import LateType, call
from lit_posttrain.cli.commands.rows import prepare, write
from lit_posttrain.cli.parsing.early import check_data
from lit_posttrain.data.rows.votes import Winner
from lit_posttrain.errors import PostTrainError


def agree(
    data: list[str],
    out: str | None = None,
    plots: str | None = None,
    labels: str | None = None,
    aggregate: Literal["dawid_skene", "majority", "mean"] = "dawid_skene",
    debias: bool = False,
    columns: Any = None,
    label_values: dict[str, Winner] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Measure how far people and judges agree, and what biases them.

    Args:
        data: Files of decisions that annotate and judge write, or preference data, whose labels are votes too: `agree
            votes.jsonl judge.jsonl` names them without --data.
        out: File for the whole report, as JSON.
        plots: Folder for plots (PNG) of agreement, biases and calibration; files of their names there are replaced.
        labels: File for one soft label per pair of responses, joined from all votes, which PreferenceData reads.
        aggregate: How votes are joined. dawid_skene weighs each annotator by how reliable it seems, majority takes the
            most frequent verdict, mean the mean of all votes, a judge's as its probability.
        debias: Take out of the probabilities of judges what position and, where people voted too, length add to them,
            by a regression; --labels is made of what is left, with --aggregate mean, and the report says by how much it
            changes them.
        columns: Names of the columns of preference data, where they are not recognised; as in --data.columns of fit.
        label_values: What the labels of judged pairs mean; as in --data.label_values of fit.
        seed: The same seed gives the same intervals.
        overwrite: Replace existing files.
    """
    check_data(data)
    prepare(out, overwrite, data)
    if out is not None and labels is not None and Path(out).resolve() == Path(labels).resolve():
        raise PostTrainError(f"--out {out} and --labels {labels}: the same file; choose another for one of them")
    prepare(labels, overwrite, data, "--labels")
    if debias:
        if labels is not None and aggregate != "mean":
            raise PostTrainError(
                f"--aggregate {aggregate} joins verdicts, and --debias makes probabilities near one half, which as "
                "verdicts would count in full; add --aggregate mean"
            )
        _require("sklearn", "scikit-learn", "--debias")
    if plots is not None:
        _require("matplotlib", "matplotlib", "--plots")
        _make_folder(plots)
    # after what is refused without them: they take seconds
    from lit_posttrain.feedback.agreement import table
    from lit_posttrain.feedback.agreement.dawid_skene import dawid_skene, reliability
    from lit_posttrain.feedback.agreement.debias import corrections, debiased
    from lit_posttrain.feedback.agreement.labels import joined, labels_of
    from lit_posttrain.feedback.agreement.read import read_votes
    from lit_posttrain.feedback.agreement.report import as_json, report_of
    from lit_posttrain.feedback.agreement.verdict import verdicts_of
    from lit_posttrain.runs.atomic import write_text

    votes = read_votes(data, columns, label_values)
    report = report_of(votes, seed=seed)
    verdicts = verdicts_of(report)
    told = report.told() | {"verdicts": [one.told() for one in verdicts]}
    print(table.table_of(report, verdicts))
    if debias:
        votes, fitted = debiased(votes, seed)
        found = corrections(report.votes, fitted, seed)
        print(f"\n{table.corrections_table(found)}")
        told["debiased"] = {name: one.told() for name, one in found.items()}
    if labels is not None:
        write((one.row() for one in labels_of(votes, joined(votes, aggregate), aggregate)), labels)
        if aggregate == "dawid_skene":
            people = reliability(votes, dawid_skene(votes.verdicts))
            print(f"\n{table.reliability_table(people)}")
            told["reliability"] = people
    if plots is not None:
        from lit_posttrain.feedback.agreement.plots import draw

        print(f"\nwrote {', '.join(map(str, draw(report, Path(plots))))}")
    if out is not None:
        write_text(Path(out), as_json(told))
        print(f"\nwrote {out}")
    return 0


def _require(module: str, package: str, option: str) -> None:
    if find_spec(module) is None:
        raise PostTrainError(f'{option} needs {package}: pip install "lit-posttrain[feedback]"')


def _make_folder(plots: str) -> None:
    try:
        Path(plots).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise PostTrainError(
            f"--plots {plots}: no folder, and none can be made ({problem.strerror}); name another"
        ) from problem


def run(args: list[str]) -> int:
    """Entry point. Words that are neither options nor their values are files."""
    files, rest = _apart(args[1:])
    if not files and not any(word.startswith(("--data", "--help", "-h")) for word in args):
        raise PostTrainError("no file of votes: name some, as in lit-posttrain agree votes.jsonl judge.jsonl")
    named = ["--data", json.dumps(files)] if files else []
    return call(agree, [args[0], *named, *rest], {"columns": _columns})


def _apart(words: list[str]) -> tuple[list[str], list[str]]:
    """The files among words, and the options with their values."""
    files, rest = list[str](), list[str]()
    given = iter(words)
    for word in given:
        if not word.startswith("-"):
            files.append(word)
            continue
        rest.append(word)
        if "=" not in word and word not in ("--help", "-h"):
            rest += islice(given, 1)
    return files, rest


def _columns() -> LateType:
    from lit_posttrain.data.formats.comparisons import PreferenceColumns

    return LateType(PreferenceColumns | None)
