"""Accuracy of a reward model on preference data: how often the better response has the higher score.

RewardBench and RewardBench 2 are scored as their authors do, so that figures can be compared with published ones
(Lambert et al. 2024, Malik et al. 2025); any other preference data by its pairs of unequal rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparison import Comparison
from lit_posttrain.data.formats.comparisons import ComparisonFormat, PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.published import REWARD_BENCH_2, published
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.message_checks import same
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.votes import Winner
from lit_posttrain.errors import PostTrainError
from lit_posttrain.inference.benchmark_figures import TIES, Figure, Judged, figures

SUBSET = "subset"


@dataclass(frozen=True)
class Report:
    """Figures by subset, by section and overall, and how many rows are in none of them, by reason. equal: rows in which
    a better and a worse response have the same score, which is not right, see `Judged.right`."""

    figures: list[Figure]
    left_out: dict[str, int]
    equal: int

    def lines(self) -> list[str]:
        """A table, and what it does not count."""
        width = max(len(name) for name in ("subset", *(figure.name for figure in self.figures)))
        table = [f"{'subset':<{width}}  {'rows':>7}  accuracy  95 % interval"]
        table += [
            f"{one.name:<{width}}  {one.rows:>7,}  {one.accuracy:>8.3f}  {one.low:.3f} to {one.high:.3f}"
            for one in self.figures
        ]
        if self.equal:
            table.append(f"equal scores of a better and a worse response, which are not right: {self.equal:,} rows")
        if self.left_out:
            told = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
            table.append(f"left out: {told}")
        return table


@dataclass(frozen=True)
class _Expected:
    """What a row says of its responses. ranks: (K,) in the order of the scores, the lowest is the best, None for one
    that is not compared. reason: why there are none."""

    subset: str
    id: str
    ranks: list[float | None]
    best_of: bool = False
    reason: str = ""


@dataclass(frozen=True)
class _Shape:
    """How a file is read: with its labels, and in the order in which its responses are scored."""

    labelled: ComparisonFormat
    plain: ComparisonFormat
    best_of: bool


class Benchmark:
    """What the rows of preference data expect of the scores of their responses."""

    def __init__(
        self, columns: PreferenceColumns | None = None, label_values: Mapping[str, Winner] | None = None
    ) -> None:
        """columns, label_values: as in `PreferenceData`."""
        self.columns, self.label_values = columns, label_values
        self._shapes: dict[str, _Shape] = {}
        self._rows: list[_Expected] = []

    def expect(self, record: Record) -> None:
        """Read what the next row prefers.

        Raises:
            PostTrainError: the file holds no comparisons, or a row of RewardBench 2's ties has no id of a pair.
        """
        shape = self._shapes.get(record.file) or self._shape(record)
        subset, name = str(record.data.get(SUBSET) or ""), str(record.data.get("id"))
        if shape.best_of and subset == TIES and not _of_a_pair(name):
            told = f"`id` is {name}; of the subset Ties it is ref:N or tied:N, N a number, which belong together"
            raise PostTrainError(f"{record.file}:{record.line}: {told}")
        try:
            found = shape.labelled.read(record.data)
            ranks = _in_order(found, shape.plain.read(Row(record.data)))
        except BadRow as problem:
            self._rows.append(_Expected(subset, name, [], reason=problem.reason))
            return
        if any(candidate.labels.get("flip_prob") == 0.5 for candidate in found.candidates):
            self._rows.append(_Expected(subset, name, [], reason="with a tie"))
        elif all(rank is None for rank in ranks):
            self._rows.append(_Expected(subset, name, [], reason="with a single response"))
        else:
            self._rows.append(_Expected(subset, name, ranks, shape.best_of))

    def _shape(self, record: Record) -> _Shape:
        labelled = recognise_comparison(record, self.columns, values=self.label_values)
        try:
            plain = recognise_comparison(record, self.columns, labelled=False)
        except PostTrainError as problem:
            told = "single responses marked as good or bad, where a benchmark compares two; name another file"
            raise PostTrainError(f"{record.file}:{record.line}: {told}") from problem
        best_of = published(record.data) is REWARD_BENCH_2
        self._shapes[record.file] = shape = _Shape(labelled, plain, best_of)
        return shape

    def check(self) -> None:
        """Check, before anything is scored, that there is something to compare.

        Raises:
            PostTrainError: no row prefers a response, or the labels may mean something else.
        """
        for file, shape in self._shapes.items():
            if shape.labelled.votes and (doubt := shape.labelled.votes.doubt):
                raise PostTrainError(f"{file}: {doubt}")
        if all(row.reason for row in self._rows):
            told = ", ".join(f"{count:,} {reason}" for reason, count in Counter(r.reason for r in self._rows).items())
            raise PostTrainError(f"{', '.join(self._shapes)}: no row prefers a response ({told}); name another file")

    def report(self, scores: Sequence[list[float] | None]) -> Report:
        """The figures. scores: of all rows in their order, each (K,); None for a row that could not be scored."""
        left_out: Counter[str] = Counter()
        judged = []
        for row, found in zip(self._rows, scores, strict=True):
            if row.reason or found is None:
                left_out[row.reason or "without a score"] += 1
                continue
            kept = [(score, rank) for score, rank in zip(found, row.ranks, strict=True) if rank is not None]
            judged.append(Judged(row.subset, row.id, [s for s, _ in kept], [r for _, r in kept], row.best_of))
        made = figures(judged)
        if ties := sum(one.best_of and one.subset == TIES for one in judged):
            left_out["of Ties without the other row of a pair"] += 0 if any(f.name == TIES for f in made) else ties
        return Report(made, dict(+left_out), sum(one.has_equal for one in judged))


def _of_a_pair(name: str) -> bool:
    kind, _, number = name.partition(":")
    return kind in ("ref", "tied") and number.isdecimal()


def _in_order(found: Comparison, plain: Comparison) -> list[float | None]:
    """The ranks of a comparison for its responses in the order of the record."""
    ranks: list[float | None] = [None] * len(plain.candidates)
    for candidate in found.candidates:
        places = (i for i, other in enumerate(plain.candidates) if ranks[i] is None)
        place = next(i for i in places if same(plain.candidates[i].messages, candidate.messages))
        ranks[place] = candidate.labels.get("rank")
    return ranks
