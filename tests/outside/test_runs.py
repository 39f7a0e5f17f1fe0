"""Methods, a reward, an environment, a callback and data formats that are modules in the current folder, as anyone may
write them: trained, killed and resumed bitwise, exported, asked."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import run_script
from outside_runs import AUDITED, EXPORTED, PARTS

MINE = Path(__file__).with_name("mine")
CLOCKED = ("perf/", "seconds", "tokens_per_s")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    done = run_script(Path(__file__).with_name("outside_runs.py"), tiny_model, folder, limit_s=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def results(home: Path, part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "results.json").read_text())[part]
    return found


def metrics(run: Path) -> list[dict[str, str]]:
    """What was logged, less what depends on the clock."""
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if v and not any(part in k for part in CLOCKED)} for row in rows]


def same(found: Any, expected: Any) -> bool:
    """Bitwise, all the way down."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else bool(found == expected)


@pytest.mark.parametrize("part", PARTS)
def test_a_run_that_is_killed_and_resumed_ends_as_the_one_that_was_not(part: str, home: Path) -> None:
    done = results(home, part)
    assert [done[name]["status"] for name in ("fit", "killed", "resumed")] == [0, -9, 0], done
    runs = [home / "runs" / name for name in (part, f"{part}-killed")]
    whole, resumed = (torch.load(run / "last.ckpt", weights_only=True) for run in runs)
    assert whole["global_step"] == resumed["global_step"] == 8
    assert same(resumed["state_dict"], whole["state_dict"])
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (resumed, whole)]
    assert same(*moments)
    assert resumed["callbacks"]["TokenCount"] == whole["callbacks"]["TokenCount"]
    assert whole["callbacks"]["TokenCount"]["seen"] > 0
    assert metrics(runs[1]) == metrics(runs[0])


@pytest.mark.parametrize("part", EXPORTED)
def test_its_checkpoint_is_exported_and_answers(part: str, home: Path) -> None:
    done = results(home, part)
    assert done["export"]["status"] == done["generate"]["status"] == 0, done
    assert "loaded again it gives what the trained model gives" in done["export"]["said"]
    assert len(json.loads(done["generate"]["said"].splitlines()[-1])["responses"]) == 1


def test_the_audit_names_the_function_that_reads_the_rows(home: Path) -> None:
    told = {part: results(home, part)["audit"]["said"] for part in AUDITED}
    assert "columns: chosen/rejected/prompt, of what my_format.as_pair returns" in told["loss"]
    assert re.search(r"left out by my_format.as_pair +12\n", told["loss"])
    assert "columns: prompt/completion, of what my_format.as_conversation returns" in told["callback"]
    assert re.search(r"left out by my_format.as_conversation +6\n", told["callback"])
    assert "columns: prompt, of what my_format.as_prompt returns" in told["reward"]


def test_they_are_as_short_as_they_may_be() -> None:
    """What a new method costs; docstrings and imports count."""
    most = {"loss": 20, "method": 40, "reward": 26, "callback": 28, "format": 30, "environment": 30, "critic": 40}
    for part, lines in (most | {"teacher": 20, "unit": 20}).items():
        assert len((MINE / f"my_{part}.py").read_text().splitlines()) <= lines, part
