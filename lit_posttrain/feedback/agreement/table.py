"""The report as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from textwrap import wrap
from unicodedata import category

import numpy as np

from lit_posttrain.feedback.agreement.bias import Bias
from lit_posttrain.feedback.agreement.debias import Correction
from lit_posttrain.feedback.agreement.intervals import FEW, Estimate
from lit_posttrain.feedback.agreement.report import Group, Report
from lit_posttrain.feedback.agreement.verdict import Verdict

_WIDTH, _LABEL = 100, 26
_MOST_PAIRS = 15  # of annotators that are shown; the JSON has all
_VIEWS = ("when it is shown first", "when it is shown second", "both orders averaged")
_BIAS: list[tuple[str, Callable[[Bias], Estimate | None]]] = [
    ("same verdict in both orders", lambda one: one.swap_consistency),
    ("what is shown first wins", lambda one: one.first_position),
    ("the longer response wins", lambda one: one.longer),
    ("  with people", lambda one: one.longer_people),
    ("  difference", lambda one: one.longer_excess),
    ("its own model's response wins", lambda one: one.own),
    ("  with people", lambda one: one.own_people),
    ("  difference", lambda one: one.own_excess),
    ("the record's first response wins", lambda _: None),
    *((f"  {view}", lambda one, of=place: one.wins[of]) for place, view in enumerate(_VIEWS)),
    ("  with people", lambda one: one.wins_people),
    ("agrees with people", lambda _: None),
    *((f"  {view}", lambda one, of=place: one.agreement[of]) for place, view in enumerate(_VIEWS)),
]


def table_of(report: Report, verdicts: Sequence[Verdict]) -> str:
    """The report as plain text, with 95 % intervals, at most 100 columns wide unless names are longer."""
    sections = [_annotators(report), _between(report), _together(report), _biases(report), _calibrations(report)]
    told = [line for one in verdicts for line in _wrapped(str(one))]
    sections.append("\n".join(["verdict", *told]) if told else "")
    return "\n\n".join(section for section in sections if section)


def corrections_table(found: Mapping[str, Correction]) -> str:
    """What debiasing changed, as plain text."""
    if not found:
        return f"debiasing: nothing is corrected, as no judge has pairs of {FEW} prompts in common with people"
    rows = [["debiasing", *_labels(found).values()]]
    terms = (("what people prefer", "quality"), ("what is shown first", "position"), ("twice the length", "length"))
    for label, name in terms:
        rows.append([f"log odds for {label}", *(_number(getattr(one, name)) for one in found.values())])
    for place, when in enumerate(("before", "after")):
        rows.append([f"longer wins beyond people, {when}", *(_percent(one.longer[place]) for one in found.values())])
    for place, when in enumerate(("before", "after")):
        rows.append([f"Brier score, {when}", *(_number(one.brier[place]) for one in found.values())])
    return _lined(rows)


def reliability_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """How reliable annotators seem, as plain text."""
    rows = [["reliability (Dawid-Skene)", "right", "sees a tie", "wrong", "right on ties"]]
    labels = _labels(found)
    rows += [[labels[name], *(f"{100 * share:.1f} %" for share in one.values())] for name, one in found.items()]
    return _lined(rows)


def _annotators(report: Report) -> str:
    votes, said, labels = report.votes, report.votes.verdicts, _labels(report.bias)
    prompts = len(np.unique(votes.prompt))
    rows = [["annotator", "", "votes", "first", "tie", "second", "skipped", "unparsable", "failed"]]
    for row, one in enumerate(votes.annotators):
        total = int((~np.isnan(said[row])).sum())
        shares = [f"{100 * (said[row] == code).sum() / total:.1f} %" if total else "-" for code in (1, 0, -1)]
        lost = [str(one.outcomes[name]) for name in ("skipped", "unparsable", "failed")]
        rows.append([labels[one.name], "judge" if one.judge else "person", str(total), *shares, *lost])
    pairs = len(votes.pairs)
    head = f"{pairs:,} pair{'s' * (pairs != 1)} of responses to {prompts:,} prompt{'s' * (prompts != 1)}"
    again = [f"{one.name} {one.replaced:,}" for one in votes.annotators if one.replaced]
    told = _wrapped(f"earlier votes of the same annotator on the same pair, replaced: {', '.join(again)}")
    return "\n".join([head, _lined(rows, left=2), *(told if again else [])])


def _between(report: Report) -> str:
    labels = _labels(report.bias)
    rows = [["two annotators", "pairs", "with ties", "without ties", "Cohen's kappa"]]
    most = sorted(report.between, key=lambda one: -one.agreement.n)
    for one in islice(most, _MOST_PAIRS):
        names = f"{labels[one.one]}, {labels[one.other]}"
        rows.append([names, f"{one.agreement.n:,}", *map(_percent, (one.agreement, one.decided)), _number(one.kappa)])
    rest = len(most) - _MOST_PAIRS
    return _lined(rows) + (f"\n({rest} more with --out)" if rest > 0 else "") if most else ""


def _together(report: Report) -> str:
    rows = [["agreement of groups", "pairs", "with ties", "without ties"]]
    more, labels = list[str](), _labels(report.bias)
    groups: list[tuple[str, Group | None]] = [("people", report.people), ("judges", report.judges)]
    for name, group in groups:
        if group is not None:
            rows.append([name, f"{group.agreement.n:,}", _percent(group.agreement), _percent(group.decided)])
            fleiss = f"Fleiss' kappa {_number(group.fleiss)} (the {group.fleiss.n:,} pairs with {group.raters} votes)"
            more += _wrapped(f"{name}: Krippendorff's alpha {_number(group.alpha)}, {fleiss}")
    for name, (agreement, decided) in report.with_people.items():
        rows.append([f"{labels[name]} with people", f"{agreement.n:,}", _percent(agreement), _percent(decided)])
    for name, one in report.criteria.items():
        more += _wrapped(f"people on {name}: Krippendorff's alpha {_number(one)}, of {one.n:,} responses rated twice")
    return "\n".join([_lined(rows), *more]) if len(rows) > 1 else ""


def _biases(report: Report) -> str:
    rows, heads = [["bias", *_labels(report.bias).values()]], []
    for label, of in _BIAS:
        found = [of(one) for one in report.bias.values()]
        if all(one is None for one in found):
            heads = [[label, *[""] * len(found)]]
        elif any(one is not None and one.n for one in found):
            rows += [*heads, [label, *(_percent(one) if one is not None else "" for one in found)]]
            heads = []
    return _lined(rows) if len(rows) > 1 else ""


def _calibrations(report: Report) -> str:
    labels = _labels(report.bias)
    rows = [["calibration against people", "pairs", "expected error", "Brier score"]]
    for name, one in report.calibration.items():
        rows.append([labels[name], f"{one.brier.n:,}", f"{one.error:.3f}", _number(one.brier)])
    return _lined(rows) if len(rows) > 1 else ""


def _labels(names: Iterable[str]) -> dict[str, str]:
    """Names by themselves, of long ones the end, unless two have the same."""
    ends = {name: name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}" for name in names}
    many = Counter(ends.values())
    return {name: end if many[end] == 1 else name for name, end in ends.items()}


def _lined(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells in columns; what does not fit the width goes below, beside the first columns again."""
    rows = [[_shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines, begin = list[str](), left
    while begin < len(widths):
        end, total = begin, sum(widths[:left]) + 2 * (left - 1)
        while end < len(widths) and (end == begin or total + widths[end] + 2 <= _WIDTH):
            total += widths[end] + 2
            end += 1
        lines += [""] if lines else []
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row[:left], widths[:left], strict=True)]
            cells += [cell.rjust(width) for cell, width in zip(row[begin:end], widths[begin:end], strict=True)]
            lines.append("  ".join(cells).rstrip())
        begin = end
    return "\n".join(lines)


def _shown(text: str) -> str:
    """Text of a file without characters that would control the terminal."""
    return "".join("\N{REPLACEMENT CHARACTER}" if category(one) in ("Cc", "Cf") else one for one in text)


def _wrapped(text: str) -> list[str]:
    return wrap(_shown(text), _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _percent(one: Estimate) -> str:
    return f"{100 * one.value:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})" if one else "-"


def _number(one: Estimate) -> str:
    return f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})" if one else "-"
