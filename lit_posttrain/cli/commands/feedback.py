"""`lit-posttrain feedback convert`: decisions from and to the formats of annotation tools."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lit_posttrain.cli.commands import call
from lit_posttrain.cli.commands.rows import prepare, write
from lit_posttrain.cli.parsing.early import check_data
from lit_posttrain.data.feedback.foreign import Judged, by_item
from lit_posttrain.data.feedback.label_studio import from_label_studio, is_label_studio
from lit_posttrain.data.feedback.lines import is_record_file
from lit_posttrain.data.feedback.log import read_decisions
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.feedback.to_argilla import to_argilla
from lit_posttrain.data.feedback.to_label_studio import to_pairwise, to_ranker
from lit_posttrain.data.files.annotations import export_reader
from lit_posttrain.data.files.source import Source
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.atomic import write_text


def convert(
    data: str,
    to: Literal["records", "argilla", "label_studio_ranker", "label_studio_pairwise"],
    out: str,
    buckets: list[str] | None = None,
    overwrite: bool = False,
) -> int:
    """Convert votes between this project's records and the formats of Argilla and Label Studio.

    Args:
        data: Votes: a file that annotate or judge writes, what Argilla 2 exports with to_json (also flattened), a data
            set that Argilla 1 put on the hub, or the JSON export of Label Studio with a Ranker or Pairwise tag. Or
            responses without votes, as generate writes them, for people of the other tool to judge.
        to: `records` are what PreferenceData, agree and annotate read; `argilla` is for from_json of Argilla 2;
            `label_studio_ranker` and `label_studio_pairwise` are tasks to import.
        out: The file to write. What the format has no place for is told.
        buckets: The buckets of a Label Studio Ranker, the best first, where their names do not say it.
        overwrite: Replace an existing file.
    """
    check_data([data])
    prepare(out, overwrite, [data])
    decisions, notes = _read(data, buckets or [])
    if decisions is None and to == "records":
        raise PostTrainError(
            f"{data}: neither votes nor an export of Argilla or Label Studio, from which records are made; "
            "PreferenceData and agree read other preference data as it is"
        )
    items = _unjudged(data) if decisions is None else by_item(decisions)
    if not items:
        raise PostTrainError(f"{data}: no votes{'; ' if notes else ''}{'; '.join(notes)}; name another file")
    interface = ""
    if to == "records":
        write([one.row() for one in decisions or []], out)
    else:
        if to == "argilla":
            made, lost = to_argilla(items)
        else:
            made, lost, interface = (to_ranker if to == "label_studio_ranker" else to_pairwise)(items)
        notes += lost
        write_text(Path(out), json.dumps(made, ensure_ascii=False, indent=1) + "\n")
        with_votes = f" with {len(decisions)} votes" if decisions else ""
        print(f"wrote {len(made)} item{'' if len(made) == 1 else 's'}{with_votes} to {out}")
    for line in notes:
        print(line, file=sys.stderr)
    if interface:
        print(f"labeling interface of the project: {interface}")
    return 0


def _read(data: str, buckets: list[str]) -> tuple[list[Decision] | None, list[str]]:
    """The decisions of a file or a folder, None if it has none; and what was left out, in words."""
    found: list[Decision] = []
    notes: list[str] = []
    others: list[str] = []
    sources = find_sources(data)
    for source in sources:
        is_own = len(source.files) == 1 and is_record_file(source.files[0])
        told = read_decisions(source.files[0]) if is_own else _exported(source, buckets)
        if told is None:
            others.append(source.name)
        else:
            found += told[0]
            notes += told[1]
    if others and len(others) < len(sources):
        raise PostTrainError(f"{others[0]}: has no votes, which other files of {data} have; name one of the files")
    return (None, []) if others else (found, notes)


def _exported(source: Source, buckets: list[str]) -> tuple[list[Decision], list[str]] | None:
    """The decisions of an export, and what was left out, in words; None if it is no export."""
    found: list[Decision] = []
    notes: list[str] = []
    read = None
    for record in source.records():
        where = f"{record.file}:{record.line}"
        read = read or export_reader(record.data)
        if read is None:
            return None
        try:
            ranked = from_label_studio(record.data, buckets) if is_label_studio(record.data) else read(record.data)
        except NothingToLearn as problem:
            notes.append(f"{where}: left out, {problem}")
        except BadRow as problem:
            raise PostTrainError(f"{where}: {problem}") from problem
        else:
            found += [replace(one, source=where) for one in ranked]
    return found, notes


def _unjudged(data: str) -> list[Judged]:
    """Responses that people of another tool are to judge."""
    from lit_posttrain.data.modules.items import read_items  # loads torch

    return [Judged(one.id, one.prompt, one.responses, one.columns) for one in read_items(data)]


def run(args: list[str]) -> int:
    """Entry point."""
    if args[1:2] != ["convert"]:
        if args[1:2] in ([], ["-h"], ["--help"]):
            print("usage: lit-posttrain feedback convert --data FILE --to FORMAT --out FILE")
            return 0
        raise PostTrainError(f"feedback {args[1]}: no such command; there is `lit-posttrain feedback convert`")
    return call(convert, ["feedback convert", *args[2:]])
