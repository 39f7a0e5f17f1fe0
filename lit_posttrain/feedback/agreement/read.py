"""Decisions of any file: the records of people and judges, and preference data, whose label columns are annotators."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.feedback.lines import is_record
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.files.annotations import unfolded
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.formats.comparison import Comparison
from lit_posttrain.data.formats.comparisons import ComparisonFormat, PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.decisions import decision_of
from lit_posttrain.data.formats.neighbours import joined
from lit_posttrain.data.modules.items import read_items
from lit_posttrain.data.rows.bad_rows import BadRow, Misread, NothingToLearn
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.votes import Winner
from lit_posttrain.errors import PostTrainError
from lit_posttrain.feedback.agreement.votes import Votes, pairs_of, votes_of

log = logging.getLogger(__name__)


def read_votes(
    paths: Sequence[str], columns: PreferenceColumns | None = None, values: Mapping[str, Winner] | None = None
) -> Votes:
    """The votes of several files. columns, values: as `decisions_of` has them. An annotator that is named after a label
    column or a file gets the file's path beside its name where several files have one of this name.

    Raises:
        PostTrainError: a file cannot be read, or nobody can be compared with anybody.
    """
    made = {path: decisions_of(path, columns, values) for path in paths}
    named_by = Counter(
        name for decisions in made.values() for name in {one.annotator for one in decisions if _row(one)}
    )
    for path, decisions in made.items():
        made[path] = [
            replace(one, annotator=f"{one.annotator} of {path}") if _row(one) and named_by[one.annotator] > 1 else one
            for one in decisions
        ]
    votes = votes_of(decision for decisions in made.values() for decision in decisions)
    named = ", ".join(paths)
    if not len(votes.pairs):
        outcomes = Counter(decision.outcome for decisions in made.values() for decision in decisions)
        told = ", ".join(f"{count} {name}" for name, count in outcomes.items()) or "nothing"
        raise PostTrainError(f"{named}: no vote on two responses among the decisions ({told}); name other files")
    if len(votes.annotators) == 1 and not votes.annotators[0].judge:
        raise PostTrainError(
            f"{named}: votes of {votes.annotators[0].name} alone, whom nobody is compared with; name a second file"
        )
    if len(paths) > 1:
        pairs = {path: pairs_of(decisions) for path, decisions in made.items()}
        for path, own in pairs.items():
            if not any(own & theirs for other, theirs in pairs.items() if other != path):
                raise PostTrainError(
                    f"{path}: none of its pairs of responses is in another file; name files on the same items, with "
                    "prompts and responses equal to the letter"
                )
    return votes


def _row(one: Decision) -> bool:
    """True for a decision that was made of a row of preference data, see `_decision`."""
    return one.id == f"{one.source} {one.annotator}"


def decisions_of(
    path: str, columns: PreferenceColumns | None = None, values: Mapping[str, Winner] | None = None
) -> list[Decision]:
    """The decisions of a file, a folder or a data set: records, exports of annotation tools, and preference data, which
    becomes decisions of its label columns, or, of pairs and rankings, of an annotator with the file's name. columns,
    values: names of preference data's columns, and what its labels mean; see `recognise_comparison`.

    Raises:
        PostTrainError: a file is neither, or its labels may mean something else.
    """
    made: list[Decision] = []
    items: dict[str, Item] | None = None
    for source in (joined(unfolded(source)) for source in find_sources(path)):
        reader: ComparisonFormat | None = None
        for record in source.records():
            if record.problem is not None:
                log.warning(f"{record.file}:{record.line}: {record.problem}")
                continue
            try:
                if is_record(record.data):
                    made.append(decision_of(Row(record.data), verdict=False))
                    continue
                if items is None:
                    items = {item.source: item for item in read_items(path, columns)}
                reader = reader or recognise_comparison(record, columns, values=values)
                if (item := items.get(f"{record.file}:{record.line}")) is not None:  # or it is left out, and told
                    made += _said(record, item, reader)
            except BadRow as problem:
                raise PostTrainError(f"{record.file}:{record.line}: {problem}") from problem
        if reader is not None and reader.votes is not None and reader.votes.doubt:
            raise PostTrainError(f"{path}: {reader.votes.doubt}")
    return made


def _said(record: Record, item: Item, reader: ComparisonFormat) -> Iterator[Decision]:
    """What a row's annotators say."""
    if reader.votes is None:
        probability, ranks = ranked(record, item, reader)
        if ranks is not None:
            yield _decision(item, Path(record.file).name.split(".")[0], probability, ranks)
        return
    for column in reader.votes.columns:
        try:
            share = reader.votes.alone(column).share_for_first([record.data.get(column)])
        except Misread:
            raise
        except BadRow:  # an empty label: this annotator has not seen the row
            continue
        yield _decision(item, column, share, None)


def ranked(record: Record, item: Item, reader: ComparisonFormat) -> tuple[float | None, list[int | None] | None]:
    """The probability that the first of two responses is better, if it is less than certain, and the ranks of all in
    the order of the item; None without a preference."""
    try:
        found = reader.read(Row(record.data))
    except NothingToLearn as problem:
        return None, [0] * len(item.responses) if problem.reason == "all tied" else None
    ranks = _by_text(found, "rank")
    flip = max(_by_text(found, "flip_prob").values(), default=0.0)
    places = [ranks.get(str(one["text"])) for one in item.responses]
    said = [None if rank is None else int(rank) for rank in places]
    if not flip:
        return None, said
    return (1 - flip if said[0] == 0 else flip), said


def _by_text(found: Comparison, label: str) -> dict[str, float]:
    """Of equal texts that of the first one, which is the one that an item keeps."""
    told = ((str(one.messages[0]["content"]), one.labels) for one in reversed(found.candidates))
    return {text: labels[label] for text, labels in told if label in labels}


def _decision(item: Item, name: str, probability: float | None, ranks: list[int | None] | None) -> Decision:
    return Decision(
        f"{item.source} {name}",
        item.id,
        name,
        item.prompt,
        item.responses,
        ranks=ranks,
        probability=probability,
        source=item.source,
    )
