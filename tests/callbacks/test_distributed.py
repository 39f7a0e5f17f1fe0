"""The callbacks in two processes: they agree on when to save, stop and fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import run_script
from helpers.rewards import look_at_rewards

HERE = Path(__file__).parent


def launch(model: Path, folder: Path, *what: str) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """What both processes found, and what they printed, by part."""
    done = run_script(HERE / "two_processes.py", model, folder, *what, devices=2)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)] for name in what}
    pieces = done.stdout.replace("== ", "\0== ").split("\0")
    printed = {name: "".join(p for p in pieces if p.startswith(f"== {name}\n")) for name in what}
    return found, printed


def test_two_processes(tiny_model: Path, tmp_path: Path) -> None:
    """One launch for all, since starting takes the longest."""
    found, printed = launch(tiny_model, tmp_path, "fit", "interrupt", "resume", "bad_loss", "rewards")

    fit = found["fit"]
    assert [r["step"] for r in fit] == [6, 6]
    assert printed["fit"].count("rows a step, in 2 micro-batches x 2 processes") == 1
    assert printed["fit"].count("answers at step 6 (1 of 1):") == 1
    assert fit[0]["metrics"]["perf/padding_share"] == fit[1]["metrics"]["perf/padding_share"]
    assert fit[0]["saved_step"] == 6
    assert all(torch.equal(a, b) for a, b in zip(fit[0]["weights"], fit[1]["weights"], strict=True))

    # Ctrl-C reached the second process alone; both stopped after the step, and went on from there
    assert [r["step"] for r in found["interrupt"]] == [3, 3]
    assert printed["interrupt"].count("stopped at step 3; go on with: ") == 1
    assert [r["step"] for r in found["resume"]] == [9, 9]
    assert found["resume"][0]["batches"][0][:3] == (3, 1, 0)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert rows == []  # bad_loss began anew in the folder, and failed before its first validation

    bad = found["bad_loss"]
    named = ", ".join(f"row {row}" for row in bad[1]["batches"][-2][3])
    assert bad[0]["error"] == "stopped at optimizer step 3: the loss of another process is not finite"
    assert bad[1]["error"].startswith(f"the loss of optimizer step 3 is not finite, from {named}: ")
    assert all(w.isfinite().all() for r in bad for w in r["weights"])
    assert bad[0]["saved_step"] == 2, "the last step that ended, which no interval had saved"

    # the rewards that are gathered are those of one process, in the same order
    one = tmp_path / "one"
    one.mkdir()
    look_at_rewards(str(tiny_model), one)
    alone, together = (json.loads((f / "run/validate_rewards.jsonl").read_text()) for f in (one, tmp_path))
    assert alone["pairs"] == together["pairs"] > 20
    assert together["margins"]["quantiles"] == pytest.approx(alone["margins"]["quantiles"], abs=1e-5)
    assert together["ece"] == pytest.approx(alone["ece"], abs=1e-5)
    assert together["ece"] == pytest.approx(found["rewards"][1]["val/ece"], abs=1e-5)
    alone, together = (
        [json.loads(line) for line in (f / "run/validate_reward_examples.jsonl").read_text().splitlines()]
        for f in (one, tmp_path)
    )
    for name in ("kind", "prompt", "chosen", "rejected"):
        assert [row[name] for row in together] == [row[name] for row in alone]
    assert printed["rewards"].count("rewards:\n") == 1
