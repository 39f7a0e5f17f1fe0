"""The report as pictures: who agrees with whom, what moves verdicts, and how far probabilities hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_posttrain.feedback.agreement.bias import Bias
from lit_posttrain.feedback.agreement.intervals import Estimate
from lit_posttrain.feedback.agreement.report import Report
from lit_posttrain.runs.atomic import whole_file

if TYPE_CHECKING:
    from lit_posttrain.feedback.agreement.calibration import Calibration

_PERSON, _JUDGE, _PEOPLE = "#1b7f5c", "#33415c", "#c1442e"
_PANELS: tuple[tuple[str, float | None, Callable[[Bias], Estimate], Callable[[Bias], Estimate] | None], ...] = (
    ("same verdict in both orders", 1.0, lambda one: one.swap_consistency, None),
    ("what is shown first wins", 0.5, lambda one: one.first_position, None),
    ("the longer response wins", None, lambda one: one.longer, lambda one: one.longer_people),
    ("its own model's response wins", None, lambda one: one.own, lambda one: one.own_people),
)


def draw(report: Report, folder: Path) -> list[Path]:
    """Write agreement.png, bias.png and, for judges that give probabilities, calibration.png. Returns the files.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure  # not pyplot: it would set up a backend for the whole process

    count, files = len(report.votes.annotators), []
    shown = [panel for panel in _PANELS if any(panel[2](one).n for one in report.bias.values())]
    made: list[tuple[str, Any]] = []
    if report.between:
        figure = Figure(figsize=(4 + 0.9 * count, 1.2 + 0.8 * count), layout="constrained", dpi=120)
        _matrix(figure.add_subplot(), report)
        made.append(("agreement.png", figure))
    if shown:
        figure = Figure(figsize=(2.5 + 3.2 * len(shown), 1.4 + 0.4 * count), layout="constrained", dpi=120)
        for axis, panel in zip(np.atleast_1d(figure.subplots(1, len(shown), sharey=True)), shown, strict=True):
            _biases(axis, report, *panel)
        made.append(("bias.png", figure))
    if report.calibration:
        width = 4.2 * len(report.calibration)
        figure = Figure(figsize=(width, 4.2), layout="constrained", dpi=120)
        axes = np.atleast_1d(figure.subplots(1, len(report.calibration), sharey=True))
        for axis, (name, one) in zip(axes, report.calibration.items(), strict=True):
            _calibration(axis, name, one)
        made.append(("calibration.png", figure))
    for name, figure in made:
        files.append(folder / name)
        with whole_file(files[-1]) as part:
            figure.savefig(part, format="png")
    return files


def _matrix(axis: Any, report: Report) -> None:
    names = [one.name for one in report.votes.annotators]
    place = {name: number for number, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    for one in report.between:
        if one.decided:
            a, b = place[one.one], place[one.other]
            values[a, b] = values[b, a] = one.decided.value
    axis.imshow(values, vmin=0, vmax=1, cmap="BrBG")
    for (row, column), value in np.ndenumerate(values):
        dark = abs(value - 0.5) > 0.3
        text = "" if row == column else "-" if np.isnan(value) else f"{100 * value:.0f} %"
        axis.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    numbers = [str(number) for number in range(1, len(names) + 1)]
    axis.set_xticks(range(len(names)), numbers)
    rows = [f"{_wrapped(name)}  {number}" for name, number in zip(names, numbers, strict=True)]
    axis.set_yticks(range(len(names)), rows, parse_math=False)
    axis.set_title("equal verdicts, ties left out (50 % is chance)", fontsize=10)
    axis.spines[:].set_visible(False)


def _biases(
    axis: Any,
    report: Report,
    title: str,
    fair: float | None,
    of: Callable[[Bias], Estimate],
    people: Callable[[Bias], Estimate] | None,
) -> None:
    """One bias of all annotators. fair: its value without bias, where that is known; people: the one beside it."""
    if fair is not None:
        axis.axvline(fair, color="0.6", linewidth=0.8, linestyle="--")
    for row, annotator in enumerate(report.votes.annotators):
        one = report.bias[annotator.name]
        _bar(axis, of(one), row, _JUDGE if annotator.judge else _PERSON, "o")
        if people is not None:
            _bar(axis, people(one), row + 0.25, _PEOPLE, "D")
    names = [_wrapped(one.name) for one in report.votes.annotators]
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.4, -0.6))
    axis.set_title(title + (" (red: people)" if people is not None else ""), fontsize=10)
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _bar(axis: Any, one: Estimate, row: float, colour: str, marker: str) -> None:
    if one:
        width = [[max(one.value - one.low, 0)], [max(one.high - one.value, 0)]]
        axis.errorbar([one.value], [row], xerr=width, fmt=marker, color=colour, capsize=3, markersize=5)


def _wrapped(name: str, width: int = 24) -> str:
    return fill(name, width)


def _calibration(axis: Any, name: str, one: Calibration) -> None:
    pairs, confidence, agreement = zip(*one.bins, strict=True)
    axis.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=0.8, linestyle="--", label="as many agree as predicted")
    axis.plot(confidence, agreement, color=_JUDGE, linewidth=1)
    sizes = [20 + 180 * count / max(pairs) for count in pairs]
    axis.scatter(confidence, agreement, sizes, color=_JUDGE, label="bins; area: their pairs")
    axis.set(
        xlim=(0.48, 1.02), ylim=(-0.04, 1.04), xlabel="the judge's probability", ylabel="share of people who agree"
    )
    axis.set_title(f"{_wrapped(name, 44)}\nexpected calibration error {one.error:.3f}", fontsize=10, parse_math=False)
    axis.legend(frameon=False)
