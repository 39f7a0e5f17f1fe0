"""Every benchmark runs from its command line to its last line, on a tiny model and few rows."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trl
from helpers import tiny
from helpers.processes import ended_within, forked

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUICK = ["--model", "{model}", "--precision", "32-true", "--cpu-seconds", "--runs", "1", "--steps", "2"]
LEARNING = ["--model", "{model}", "--precision", "32-true", "--out", "{out}"]
# the options of a short run, and what its output has to say
RUNS: dict[str, tuple[list[str], str]] = {
    "sft.py": ([*QUICK, "--data", "{questions}", "--batch", "2"], "TRL packed"),
    "dpo.py": ([*QUICK, "--data", "{transcripts}", "--batch", "2", "--at-least", "20"], "TRL, precomputed"),
    "generation.py": (
        [*(o for o in QUICK if o not in ("--steps", "2")), "--data", "{questions}", "--tokens", "4", "--lora", "4"],
        "| transformers |",
    ),
    "grpo.py": ([*QUICK, "--data", "{questions}", "--group", "2", "--tokens", "4", "--busy", "1"], "TRL's time over"),
    "reward.py": ([*LEARNING, "--data", "{transcripts}", "--folds", "2", "--only", "0", "--peer"], "beside TRL"),
    "divergence.py": (["--tokens", "64", "--vocabulary", "512", "--rounds", "1"], "| reverse KL | TRL |"),
    "dpo_learning.py": ([*LEARNING, "--data", "{transcripts}", "--steps", "2"], "lit_posttrain is ahead by"),
    "grpo_learning.py": ([*LEARNING, "--seeds", "1", "--steps", "1"], "seeds reach"),
    "online_dpo_learning.py": ([*LEARNING, "--seeds", "1", "--steps", "1"], "seeds reach"),
    "distillation_learning.py": ([*LEARNING, "--seeds", "1", "--steps", "1"], "share of the teacher's reward"),
    "judge_learning.py": (
        [*LEARNING, "--seeds", "1", "--steps", "1", "--only", "GRPO with a right judge"],
        "not flagged",
    ),
    "kl_control.py": (
        [*LEARNING, "--task", "letters", "--steps", "20", "--batch", "2", "--tokens", "2", "--runs", "adaptive"],
        "KL (means of 10 phases)",
    ),
    "annotate_votes.py": (["--votes", "200"], "p95"),
    "scale.py": (["--rows", "200"], "200 rows: first step after"),
    "vllm_home.py": (["--model", "{model}"], "its own"),
    "vocabulary.py": ([], "transformers"),
}
SLOW = {
    "distillation_learning.py",
    "dpo_learning.py",
    "grpo_learning.py",
    "online_dpo_learning.py",
    "judge_learning.py",
    "kl_control.py",
    "reward.py",
    "scale.py",
    "vllm_home.py",
    "vocabulary.py",
}
# their processes are forked from that of the tests, which has imported all that they need; others start as they do for
# people, which takes longer than what they do here
FORKED = {"sft.py", "dpo.py", "grpo.py", "divergence.py"}
# demo_words.py writes the package's built-in data; the others are one side of a comparison, or imported by it
PARTS = {
    "annotate_server.py",
    "demo_words.py",
    "experiment.py",
    "learning.py",
    "generation_transformers.py",
    "learning_clock.py",
    "live_bytes.py",
    "scripted_judge.py",
    "sides.py",
    *(file.name for file in BENCHMARKS.glob("*_ours.py")),
    *(file.name for file in BENCHMARKS.glob("*_trl.py")),
}


def forked_run(command: list[str], env: Mapping[str, str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
    """As subprocess.run runs a Python script and captures what it prints."""
    with TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        status = ended_within(forked(script, command, env, cwd, output=output, errors=errors), 900)
        return subprocess.CompletedProcess(command, status, output.read_text(), errors.read_text())


def script(command: list[str], env: Mapping[str, str], cwd: Path) -> None:
    """A Python script as __main__; those that it runs are forked too."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    pytest.MonkeyPatch().setattr(subprocess, "run", forked_run)
    sys.argv = command[1:]
    runpy.run_path(command[1], run_name="__main__")


def test_every_benchmark_is_listed() -> None:
    assert {file.name for file in BENCHMARKS.glob("*.py")} == set(RUNS) | PARTS


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("benchmarks")
    model = tiny.save_model(home / "model", max_position_embeddings=1024)
    questions, transcripts = home / "questions.jsonl", home / "transcripts.jsonl"
    asked = [{"question": f"How many are {i} and {i + 1}?", "answer": f"They are {2 * i + 1}."} for i in range(24)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in asked))
    rows = []
    for i in range(24):
        said = f"\n\nHuman: How many are {i} and {i + 1}?\n\nAssistant:"
        rows.append({"chosen": f"{said} They are {2 * i + 1}.", "rejected": f"{said} I will not say {i}."})
    transcripts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"model": model, "questions": questions, "transcripts": transcripts}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in RUNS])
def test_a_benchmark_runs(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    if name == "vllm_home.py" and find_spec("vllm") is None:
        pytest.skip("vllm is not installed (make vllm)")
    options, told = RUNS[name]
    filled = [option.format(**places, out=tmp_path / "out") for option in options]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    environment["LIT_POSTTRAIN_CACHE"] = str(tmp_path / "cache")
    command = [sys.executable, str(BENCHMARKS / name), *filled]
    if name in FORKED:
        for trainer in ("DPOTrainer", "GRPOTrainer", "SFTTrainer"):  # imported when asked for: before the forks
            getattr(trl, trainer)
        done = forked_run(command, environment, tmp_path)
    else:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert told in done.stdout
