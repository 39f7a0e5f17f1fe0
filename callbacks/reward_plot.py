"""rewards.png: histograms of rewards and margins, and a reliability diagram of predicted preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_posttrain.callbacks.reward_summary import Distribution, Reliability, RewardSummary
from lit_posttrain.runs.atomic import whole_file

_COLOURS = {"chosen": "#1b7f5c", "rejected": "#c1442e", "margin": "#33415c"}


def draw(summaries: Sequence[RewardSummary], title: str, file: Path) -> None:
    """Draw histograms per data set (left: rewards above margins) and the reliability (right); the file is replaced in
    one step.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure  # not pyplot: it would set up a backend for the whole process

    figure = Figure(figsize=(10, 4.5 * len(summaries)), layout="constrained", dpi=120)
    grid = figure.add_gridspec(2 * len(summaries), 2)
    for number, summary in enumerate(summaries):
        above, below = (figure.add_subplot(grid[2 * number + line, 0]) for line in (0, 1))
        _histograms(above, {"rejected": summary.rejected, "chosen": summary.chosen}, "reward")
        _histograms(below, {"margin": summary.margins}, "margin: chosen - rejected")
        # a file's name is no formula
        above.set_title(f"{summary.name}: {summary.responses:,} responses", parse_math=False)
        _reliability(figure.add_subplot(grid[2 * number : 2 * number + 2, 1]), summary.reliability)
    figure.suptitle(title)
    with whole_file(file) as part:
        figure.savefig(part, format="png")


def _histograms(axis: Any, found: Mapping[str, Distribution], label: str) -> None:
    for name, part in found.items():
        if len(part.values):
            mean = f"{name}, mean {part.values.mean():.3g}"
            axis.stairs(part.counts, part.edges, fill=True, color=_COLOURS[name], alpha=0.5, label=mean)
    axis.set(xlabel=label, ylabel="count")
    axis.yaxis.get_major_locator().set_params(integer=True)
    if label.startswith("margin"):
        axis.axvline(0, color="0.4", linewidth=0.8)
    if axis.get_legend_handles_labels()[0]:
        axis.set_ylim(top=1.4 * axis.get_ylim()[1])  # room for the legend
        axis.legend(frameon=False)


def _reliability(axis: Any, found: Reliability | None) -> None:
    axis.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=0.8, linestyle="--", label="as many agree as predicted")
    axis.set(xlim=(0.48, 1.02), ylim=(-0.04, 1.04), xlabel="predicted: s(|margin|)", ylabel="share of people who agree")
    axis.set_title("no pairs, so no reliability")
    if found is None:
        return
    most = max(found.pairs)
    sizes = [20 + 180 * count / most for count in found.pairs]
    axis.plot(found.confidence, found.agreement, color=_COLOURS["margin"], linewidth=1)
    axis.scatter(found.confidence, found.agreement, sizes, color=_COLOURS["margin"], label="bins; area: their pairs")
    axis.set_title(f"reliability: ece {found.ece:.3f} over {sum(found.pairs):,} pairs")
    axis.legend(frameon=False)
