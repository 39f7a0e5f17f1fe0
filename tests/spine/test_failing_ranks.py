"""What fails on one of two processes ends the run on both, with the last optimizer step saved, from which it goes on
bit by bit as if nothing had happened; and what cannot be gone on from is refused by both."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from command_lines import LORA, SHARDED, STEPS, callback, fit_command
from helpers import tiny
from helpers.processes import run_script

CLOCK = ("perf/", "seconds", "tokens_per_s")  # parts of the names of what depends on the clock
FAILS_BEHIND = 4  # steps; step 3 is saved anyway
STREAM = ["--data.streaming", "true", "--data.val_fraction", "0"]
# what fails on the second process, of which method, with which options
FAILURES = {
    "reward": ("grpo", []),
    "rows": ("sft", STREAM),
    "rows, sharded": ("sft", [*STREAM, *SHARDED]),
}
# how a run with adapters of rank 4, sharded, cannot go on
MISFITS = {
    "other adapters": ["--model.policy.lora.r", "8"],
    "other model": ["--model.policy.path", "MODEL"],
}


class Done(NamedTuple):
    """home: folder of the runs. said: what every command ended with and said on the first process, by name."""

    home: Path
    said: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All runs, in one launch: starting takes the longest."""
    home = tmp_path_factory.mktemp("failing")
    model, other = tiny.save_model(home / "model"), home / "other"
    tiny.save_model(other, hidden_size=32)
    (home / "data").mkdir()
    commands: list[tuple[str, list[str]]] = []

    def fit(name: str, method: str, *options: str) -> None:
        words = fit_command(method, model, home / "data", home, name, "--trainer.devices", "2", *options)
        commands.append((name, words))

    for what, (method, options) in FAILURES.items():
        fit(f"{what} whole", method, *options)
        spoilt = callback("FailsOnce", what=what.split(",")[0], step=FAILS_BEHIND, rank=1)
        fit(what, method, *options, spoilt)
        commands.append((f"{what} goes on", ["fit", "--resume", what, "--runs", str(home)]))
    fit("adapters", "sft", *LORA, *SHARDED)
    for name, options in MISFITS.items():
        words = [str(other) if word == "MODEL" else word for word in options]
        commands.append((name, ["fit", "--resume", "adapters", "--runs", str(home), *words]))
    file = home / "commands.json"
    file.write_text(json.dumps(commands))
    ended = run_script(Path(__file__).with_name("run_commands.py"), file, limit_s=600, devices=2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return Done(home, json.loads(Path(f"{file}.results").read_text()))


def state(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True)
    return saved


def figures(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if v and not any(part in k for part in CLOCK)} for row in rows]


@pytest.mark.parametrize("what", FAILURES)
def test_what_fails_on_one_is_gone_on_from(done: Done, what: str) -> None:
    assert done.said[what]["status"] == 2, done.said[what]
    assert f"step {FAILS_BEHIND} is saved in " in done.said[what]["said"]
    assert done.said[f"{what} goes on"]["status"] == 0, done.said[f"{what} goes on"]
    found, expected = state(done.home / what), state(done.home / f"{what} whole")
    assert found["global_step"] == expected["global_step"] == STEPS
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    assert figures(done.home / what) == figures(done.home / f"{what} whole")


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit_are_refused(done: Done, name: str) -> None:
    assert done.said[name]["status"] == 2, done.said[name]
    errors = [line for line in done.said[name]["said"].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.said[name]["said"]
