"""`lit-posttrain agree`: how far annotators agree, what biases them, and labels made of several people's votes."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path

from lit_posttrain.cli.commands import call
from lit_posttrain.cli.commands.rows import prepare
from lit_posttrain.cli.parsing.early import check_data
from lit_posttrain.errors import PostTrainError


def agree(data: list[str], out: str | None = None, seed: int = 0, overwrite: bool = False) -> int:
    """Measure how far people and judges agree, and what biases them.

    Args:
        data: Files of decisions that annotate and judge write, or preference data, whose labels are votes too: `agree
            votes.jsonl judge.jsonl` names them without --data.
        out: File for the whole report, as JSON.
        seed: The same seed gives the same intervals.
        overwrite: Replace existing files.
    """
    check_data(data)
    prepare(out, overwrite, data)
    # after what is refused without them: they take seconds
    from lit_posttrain.feedback.agreement.read import read_votes
    from lit_posttrain.feedback.agreement.report import as_json, report_of
    from lit_posttrain.feedback.agreement.table import table_of
    from lit_posttrain.feedback.agreement.verdict import verdicts_of
    from lit_posttrain.runs.atomic import write_text

    report = report_of(read_votes(data), seed=seed)
    verdicts = verdicts_of(report)
    print(table_of(report, verdicts))
    if out is not None:
        write_text(Path(out), as_json(report.told() | {"verdicts": [one.told() for one in verdicts]}))
        print(f"\nwrote {out}")
    return 0


def run(args: list[str]) -> int:
    """Entry point. Words before the first option are files."""
    files = list(takewhile(lambda word: not word.startswith("-"), args[1:]))
    if not files and not any(word.startswith(("--data", "--help", "-h")) for word in args):
        raise PostTrainError("no file of votes: name some, as in lit-posttrain agree votes.jsonl judge.jsonl")
    named = ["--data", json.dumps(files)] if files else []
    return call(agree, [args[0], *named, *args[1 + len(files) :]])
