"""Runs with parts of one's own, each to its end, and another one killed and resumed; then what people do with them
(`python outside_runs.py MODEL FOLDER`). The folder becomes the current one, with the modules of mine/ in it.

Every command has a process of its own, forked from this one, which has imported all. Writes FOLDER/results.json: by
name, the status of each command and what it printed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from command_lines import SAVED_EVERY, fit_command
from helpers import tiny
from helpers.processes import forked

from lit_posttrain.cli import training  # noqa: F401  # before the forks
from lit_posttrain.cli.main import main

THREADS = "threads.jsonl"
_PROMPT, _PAIR = ["--data.format", "my_format.as_prompt"], ["--data.format", "my_format.as_pair"]
_CONVERSATION = ["--data.format", "my_format.as_conversation"]
_REWARD = ["--model.rewards", "my_reward.Words", *_PROMPT]
_COST = "{class_path: Repetition, init_args: {name: cost, weight: 0}}"
# the tiny model says its own end token too seldom for a second turn; these are bytes that texts seldom have
_ENDS = json.dumps([chr(letter) for letter in range(0x122, 0x142)])
_TURNS = ["--model.policy.eos", _ENDS, "--model.rollout.max_new_tokens", "48"]
PARTS = {
    "loss": ["simpo", "--model", "my_loss.SLiC", "--model.gap", "2.5", *_PAIR],
    "unit": ["simpo", "--model", "my_unit.BestOnly", *_PAIR],
    "teacher": ["sft", "--model", "my_teacher.Selective", "--model.teacher.path", "teacher", *_CONVERSATION],
    "callback": ["sft", *_CONVERSATION],
    "method": ["grpo", "--model", "my_method.RAFT", *_REWARD],
    "reward": ["grpo", *_REWARD],
    "environment": ["grpo", "--model.rollout.environment", "my_environment.Shorten", *_TURNS, *_REWARD],
    "critic": ["ppo", "--model", "my_critic.SafePPO", *_PROMPT, "--model.rewards", f"[my_reward.Words, {_COST}]"],
}
# the end tokens of the environment's run are ordinary ones, and such a tokenizer is refused by export
EXPORTED = [part for part in PARTS if part != "environment"]
AUDITED = ["loss", "callback", "reward"]  # one for each function of my_format
CALLBACK = ["--trainer.callbacks+=my_callback.TokenCount", "--trainer.callbacks.unit", "10"]


def write_threads() -> None:
    """One in eight has no answer, and one in eight a single one."""
    words = ("red", "green", "blue", "black")
    rows = []
    for n in range(48):
        said = [f"{words[(n + k) % 4]} and {words[n % 4]} {n}" for k in range(min(n % 8, 3))]
        replies = [{"body": text, "votes": (5 * n + 3 * k) % 7} for k, text in enumerate(said)]
        rows.append({"title": f"which colours has number {n}", "replies": replies})
    Path(THREADS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(name: str, arguments: list[str]) -> dict[str, object]:
    """The exit status of a command (-9 for SIGKILL), and what it printed."""
    output = Path(f"{name}.txt")
    status = os.waitstatus_to_exitcode(os.waitpid(forked(main, arguments, output=output), 0)[1])
    return {"status": status, "said": output.read_text()}


if __name__ == "__main__":
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for module in Path(__file__).with_name("mine").glob("*.py"):
        shutil.copy(module, folder)
    os.chdir(folder)
    write_threads()
    tiny.save_model(Path("teacher"), seed=1)
    (folder / "data").mkdir()
    results = {}
    for part, (method, *options) in PARTS.items():
        options += ["--data.path", THREADS, *CALLBACK]
        stop = ["--trainer.callbacks+=my_stop.Stop", "--trainer.callbacks.step", str(SAVED_EVERY + 1)]
        whole = fit_command(method, model, folder / "data", Path("runs"), part, *options)
        killed = fit_command(method, model, folder / "data", Path("runs"), f"{part}-killed", *options, *stop)
        commands = {
            **({"audit": ["audit", *whole[1:], "--show", "1"]} if part in AUDITED else {}),
            "fit": whole,
            "killed": killed,
            "resumed": ["fit", "--resume", f"{part}-killed"],
            "export": ["export", "--ckpt", f"runs/{part}-killed", "--out", f"{part}-hf"],
            "generate": ["generate", "--model", f"runs/{part}", "--prompt", "which", "--max_new_tokens", "4"],
        }
        if part not in EXPORTED:
            del commands["export"], commands["generate"]
        results[part] = {name: run(f"{part} {name}", words) for name, words in commands.items()}
    Path("results.json").write_text(json.dumps(results))
