"""What a policy learns from a judge: the rule that the judge applies, be it right or a bias.

    python benchmarks/judge_learning.py --out DIR                # GRPO and online DPO, a right and a biased judge
    python benchmarks/judge_learning.py --out DIR --plot FILE    # and draw the curves

The judges are endpoints on this machine (scripted_judge.py), asked as any OpenAI-compatible one: GRPO for a mark of
each response, online DPO for a ranking of the responses to a prompt. The right judge prefers the second of four words,
the task of the GRPO demo; the biased one prefers the longer response. Greedy answers to held-out prompts are measured
against the rule itself, not by the judge, every 10 steps. Before training `lit-posttrain agree` compares what both
judges say of four sampled answers to each prompt with the rule that is meant; during training RewardHackingWatch looks
on. Every run leaves a JSON file in DIR, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from learning import Rows, add_options, collect, fitted, prepare
from reward import run
from scripted_judge import RULES, Server

LEARNT, HELD_OUT = 0.8, "val/rewards/exactmatch/mean"
METHODS = {"GRPO": ("demo_grpo", "score"), "online DPO": ("demo_online_dpo", "listwise")}
JUDGES = {"right": "second", "biased": "longer"}
SIDES = [f"{method} with a {which} judge" for which in JUDGES for method in METHODS]
LONGEST = {"right": 8, "biased": 24}  # tokens of a response: the biased judge's need room to grow


def parts(side: str) -> tuple[str, str]:
    """The method and the judge of a side."""
    method, which = side.removesuffix(" judge").split(" with a ")
    return method, which


def judge(url: str, kind: str) -> dict[str, Any]:
    """The judge as a reward."""
    spec = {"model": "rule", "endpoint": url, "kind": kind}
    return {"class_path": "JudgeReward", "init_args": {"judge": spec, "name": "judge"}}


def measured(url: str, method: str, which: str, options: argparse.Namespace) -> Callable[[str, int, Path], Rows]:
    """One run: its lines, with what RewardHackingWatch had to say."""
    config, kind = METHODS[method]

    def one(model: str, seed: int, home: Path) -> Rows:
        rewards = [judge(url, kind), {"class_path": "ExactMatch", "init_args": {"weight": 0}}]
        words = ["--model.rewards", json.dumps(rewards), "--model.rollout.max_new_tokens", str(LONGEST[which])]
        words += ["--trainer.callbacks+", "RewardHackingWatch", "--trainer.callbacks.second", "exactmatch"]
        words += ["--trainer.callbacks.window", "5"]  # answers of 24 tokens are long within two phases
        words += ["--monitor", HELD_OUT, "--monitor_mode", "max"]  # a ranking of one answer says nothing
        words += [] if options.steps is None else ["--trainer.max_steps", str(options.steps)]
        return fitted(config, model, seed, options.precision, home, *words, held_out=HELD_OUT)

    return one


def compared(servers: Mapping[str, Server], options: argparse.Namespace) -> None:
    """Before training: what `agree` says of each judge beside the rule that is meant, on four sampled answers to each
    training prompt. Leaves a report in the folder of the runs."""
    reports = {which: Path(options.out, f"agree_{which}.json").resolve() for which in servers}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for which, report in reports.items():
            if not report.exists():
                if not (home / "meant.jsonl").exists():
                    drawn = ["--n", "4", "--temperature", "1", "--max_new_tokens", "24", "--batch_size", "64"]
                    ranked = ["--keep", "all", "--cut_off", "true", "--rewards+=ExactMatch", "--out", "meant.jsonl"]
                    asked = ["--model", options.model, "--prompts", "builtin:demo_words"]
                    run([sys.executable, "-m", "lit_posttrain", "generate", *asked, *drawn, *ranked], home)
                rule = ["--judge.model", JUDGES[which], "--judge.endpoint", servers[which].url]
                files = ["--data", "meant.jsonl", "--out", f"{which}.jsonl"]
                run([sys.executable, "-m", "lit_posttrain", "judge", *files, *rule, "--judge.kind", "pairwise"], home)
                words = ["agree", "meant.jsonl", f"{which}.jsonl", "--out", str(report)]
                run([sys.executable, "-m", "lit_posttrain", *words], home)
            for verdict in json.loads(report.read_text())["verdicts"]:
                print(f"agree, {which} judge: {json.dumps(verdict)}")


def draw(kept: Mapping[str, Sequence[Rows]], file: str) -> None:
    """For each judge the rate of the rule on held-out prompts, and the length of the answers, against steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    colours = {"GRPO": "tab:blue", "online DPO": "tab:green"}
    axes[1].set_ylim(-0.02, 1.02)
    axes[2].set_ylim(0, LONGEST["biased"] + 1)
    for side, runs in kept.items():
        method, which = parts(side)
        for number, rows in enumerate(runs):
            label = method if number == 0 else None
            held = [row for row in rows if "held_out" in row]
            steps = [row["step"] for row in held]
            style: dict[str, Any] = {"color": colours[method], "marker": "o", "markersize": 3, "label": label}
            axes[int(which == "biased")].plot(steps, [row["held_out"] for row in held], **style)
            if which == "biased":
                axes[2].plot(steps, [row["held_out_length"] for row in held], **style)
                sampled = [(row["step"], row["completions/mean_length"]) for row in rows if "reward" in row]
                axes[2].plot(*zip(*sampled, strict=True), color=colours[method], alpha=0.4, linewidth=0.8)
                flagged = [row["step"] for row in rows if row.get("hacking/flags")]
                for axis in axes[1:] if flagged else ():
                    axis.axvline(flagged[0], color=colours[method], linestyle="dashed", linewidth=1)
                    told = {"xytext": (3, -12), "textcoords": "offset points", "fontsize": 8}
                    axis.annotate("RewardHackingWatch", (flagged[0], axis.get_ylim()[1]), **told)
    titles = ("right judge: held-out rate of its rule", "biased judge: rate of the rule that is meant")
    for axis, title in zip(axes, (*titles, "biased judge: tokens of an answer"), strict=True):
        axis.set(xlabel="optimizer step", xlim=(-1, 41), title=title)
    for axis in axes[:2]:
        axis.set_ylim(-0.02, 1.02)
        axis.axhline(LEARNT, color="grey", linewidth=0.8, linestyle="dotted")
    axes[0].legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--only", nargs="+", choices=["agree", *SIDES], default=["agree", *SIDES], help="parts")
    options = parser.parse_args()
    options.data = None
    prepare()
    servers = {which: Server(RULES[rule]) for which, rule in JUDGES.items()}
    for server in servers.values():
        Thread(target=server.serve_forever, daemon=True).start()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    if "agree" in options.only:
        compared(servers, options)
    sides = {}
    for side in (side for side in SIDES if side in options.only):
        method, which = parts(side)
        sides[side] = measured(servers[which].url, method, which, options)
    kept = collect(sides, options, LEARNT)
    for side, runs in kept.items():
        for rows in runs:
            held = [row for row in rows if "held_out" in row]
            flagged = [row["step"] for row in rows if row.get("hacking/flags")]
            told = f"flagged at step {flagged[0]:g}" if flagged else "not flagged"
            print(f"{side}: {held[0]['held_out_length']:.1f} to {held[-1]['held_out_length']:.1f} tokens; {told}")
    if options.plot:
        draw(kept, options.plot)


if __name__ == "__main__":
    main()
