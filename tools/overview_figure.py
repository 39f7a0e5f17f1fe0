"""Draw docs/overview.png, the figure of README.md: python tools/overview_figure.py

Its numbers are those of the tables in docs/benchmarks.md and of benchmarks/results/grpo_learning, and are kept in the
file itself, where a test compares them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
FIGURE = ROOT / "docs" / "overview.png"
CURVES = ROOT / "benchmarks" / "results" / "grpo_learning"
OURS, TRL, SECOND = "#1f6f8b", "#e08e45", "#7bb274"
# method: its section of the page, the column and unit of its speed, the row of the fastest and of the leanest TRL run
COMPARED = {
    "SFT": ("## SFT beside TRL", "tokens/s", "tokens/s", "TRL padded", "TRL packed"),
    "DPO": ("### DPO beside TRL", "pairs/s", "pairs/s", "TRL", "TRL"),
    "GRPO": ("## GRPO beside TRL", "step, s", "s a step", "TRL", "TRL"),
}
LEARNERS = {"GRPO": ("demo_grpo", OURS), "PPO": ("demo_ppo", SECOND), "TRL's GRPO": ("TRL_GRPO", TRL)}


def table(section: str) -> dict[str, dict[str, str]]:
    """The first table below a heading of docs/benchmarks.md: row -> column -> text."""
    text = PAGE.read_text(encoding="utf-8")
    below = text[text.index(f"\n{section}") :]
    found = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert found is not None
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.group().splitlines()]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def figures() -> dict[str, dict[str, Any]]:
    """By method: speed (ours, TRL's), how many times as fast, its unit, and peak memory in GB (ours, TRL's)."""
    found: dict[str, dict[str, Any]] = {}
    for method, (section, column, unit, fastest, leanest) in COMPARED.items():
        rows = table(section)
        speed = [float(rows[side][column].split()[0]) for side in ("lit_posttrain", fastest)]
        memory = [float(rows[side]["peak memory, GB"].split()[0]) for side in ("lit_posttrain", leanest)]
        times = speed[1] / speed[0] if column.endswith(", s") else speed[0] / speed[1]
        found[method] = {"speed": speed, "times": round(times, 1), "unit": unit, "memory": memory}
    return found


def curves() -> dict[str, list[list[tuple[float, float]]]]:
    """By learner, for every seed: minutes from the first held-out score on, and the score."""
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for name, (stem, _) in LEARNERS.items():
        found[name] = []
        for file in sorted(CURVES.glob(f"{stem}-*.json")):
            rows = [row for row in json.loads(file.read_text())["rows"] if "held_out" in row]
            found[name].append([(round(row["seconds"] / 60, 2), round(row["held_out"], 3)) for row in rows])
    return found


def content() -> str:
    """Everything that the figure shows, as text."""
    return json.dumps({"figures": figures(), "curves": curves()})


def draw() -> None:
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (speed, memory, learning) = pyplot.subplots(1, 3, figsize=(10, 3), layout="constrained")
    found = figures()
    places = range(len(found))
    speed.bar(places, [value["times"] for value in found.values()], 0.6, color=OURS)
    speed.axhline(1, color=TRL, linewidth=1.5, label="TRL")
    speed.legend(frameon=False, loc="upper left", fontsize=8)
    for place, value in zip(places, found.values(), strict=True):
        label = f"{value['times']:.1f}×\n{value['speed'][0]:g} against\n{value['speed'][1]:g} {value['unit']}"
        speed.annotate(label, (place, value["times"] + 0.05), ha="center", va="bottom", fontsize=8)
    speed.set(title="Speed, as a multiple of TRL's", ylim=(0, 3.6), xticks=places, xticklabels=found)
    for side, (name, colour) in enumerate((("lit_posttrain", OURS), ("TRL", TRL))):
        heights = [value["memory"][side] for value in found.values()]
        bars = memory.bar([place + 0.38 * side - 0.19 for place in places], heights, 0.36, color=colour, label=name)
        memory.bar_label(bars, fmt="%.1f", fontsize=8)
    memory.set(title="Peak memory, GB", ylim=(0, 12.5), xticks=places, xticklabels=found)
    memory.legend(frameon=False, loc="upper left", fontsize=8)
    for name, runs in curves().items():
        for number, points in enumerate(runs):
            once = name if number == 0 else None
            learning.plot(*zip(*points, strict=True), color=LEARNERS[name][1], marker="o", markersize=3, label=once)
    learning.set(title="Learning: held-out reward", ylim=(0, 1.02), xlabel="minutes on two CPU cores, three seeds")
    learning.legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(FIGURE, dpi=110, metadata={"Description": content()})


if __name__ == "__main__":
    draw()
