"""FSDP2 from the command line: what a run on two processes leaves behind goes on with one, two and four processes,
sharded or not, to the end of the run that was not interrupted; and is exported, and answers.

All in double precision, so that what differs by rounding is told from what differs.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cases import GIVEN_ROWS, METHODS
from command_lines import LORA, SHARDED, STEPS, callback, fit_command
from helpers import tiny
from helpers.processes import environment, run_script
from safetensors.torch import load_file

from lit_posttrain.runs.checkpoint_shards import read_whole

HERE = Path(__file__).parent
ROUNDING, SAMPLED = 1e-12, 1e-6  # of states; what is kept of a phase's responses is in single precision
LOGGED = 1e-6
EXPORTED = 1e-6
# how a run goes on: processes, further options, and where it began: on two processes, or on one and not sharded
GOES_ON: dict[str, tuple[int, list[str], str]] = {
    "on two": (2, [], "two"),
    "on one, sharded": (1, [], "two"),
    "on one, plain": (1, ["--trainer.strategy", "auto"], "two"),
    "on four": (4, [], "two"),
    "plain, then on two": (2, SHARDED, "one"),
}
# where a run is killed within a save: about to do something to a file, on which rank
KILLS = {
    "file": [("open", "/.last.ckpt.", 0), ("os.rename", "/last.ckpt", 0)],
    "shards": [
        ("open", "/.rank-0.pt.", 0),
        ("open", "/.rank-1.pt.", 1),
        ("os.rename", "/last.ckpt", 0),
        ("shutil.rmtree", "/last.ckpt.shards-0", 0),
    ],
}
CLOCK = ("perf/", "seconds", "tokens_per_s")  # parts of the names of what depends on the clock


class Run(NamedTuple):
    """kind: full or lora. saved_as: file or shards."""

    method: str
    kind: str
    saved_as: str

    def __str__(self) -> str:
        return "-".join(self)


# adapters and all weights, a frozen copy, a value head, experience within a phase, and both formats, once
QUICK = [Run("sft", "full", "shards"), Run("dpo", "full", "file"), Run("ppo", "lora", "file")]
ALL = [Run(method, kind, saved) for method in METHODS for kind in ("full", "lora") for saved in ("file", "shards")]


class Lab:
    """Runs, interrupted and not, in folders of their own; commands for one number of processes share their launch."""

    def __init__(self, home: Path, runs: Sequence[Run], killed: Sequence[Run]) -> None:
        """killed: those that SIGKILL ends within a save; the others are taken up from a copy of their folder."""
        self.home, self.runs = home, runs
        self.model = tiny.save_model(home / "model")
        (home / "data").mkdir()
        self.launch("begin on two", 2, [self.begun("two", run) for run in runs])
        for number, run in enumerate(killed):
            self.kill(run, KILLS[run.saved_as][number % len(KILLS[run.saved_as])])
        for run in set(runs) - set(killed):
            shutil.copytree(home / "two" / f"{run}.image", home / "interrupted" / str(run))
        self.launch("one", 1, [self.begun("one", run) for run in runs])
        by_processes: dict[int, list[tuple[str, list[str]]]] = {1: [], 2: [], 4: []}
        for how, (processes, options, began) in GOES_ON.items():
            for run in runs:
                before = home / ("interrupted" if began == "two" else "one") / f"{run}{'.image' * (began == 'one')}"
                shutil.copytree(before, home / how / str(run))
                (home / how / f"{run}.killed").touch()  # once is enough
                words = ["fit", "--resume", str(run), "--runs", str(home / how)]
                words += ["--trainer.devices", str(processes), *options]
                by_processes[processes].append((f"{how} {run}", words))
        uses = [command for run in runs for began in ("one", "two") for command in self.used(began, run)]
        by_processes[1] += uses
        for processes, commands in by_processes.items():
            self.launch(f"on {processes}", processes, commands)

    def begun(self, began: str, run: Run, *options: str) -> tuple[str, list[str]]:
        """The command that begins a run, by name."""
        given = LORA if run.kind == "lora" else []
        if began == "two":
            given = [*given, *SHARDED, "--trainer.devices", "2"]
            given += ["--trainer.strategy.save_distributed_checkpoint", "true"] if run.saved_as == "shards" else []
        words = fit_command(run.method, self.model, self.home / "data", self.home / began, str(run), *given, *options)
        return f"{began} {run}", words

    def used(self, began: str, run: Run) -> Iterator[tuple[str, list[str]]]:
        """The commands by which people use a trained model."""
        last, out = str(self.home / began / str(run) / "last.ckpt"), self.home / "used" / began / str(run)
        yield f"export {began} {run}", ["export", "--ckpt", last, "--out", str(out / "hf")]
        if run.method != "reward":
            asked = ["--prompt", "tell me about fox", "--max_new_tokens", "4", "--temperature", "0"]
            yield f"generate {began} {run}", ["generate", "--model", last, *asked, "--out", str(out / "said.jsonl")]

    def kill(self, run: Run, where: tuple[str, str, int]) -> None:
        """Start a run that is killed; its folder becomes what is gone on from."""
        event, file, rank = where
        name, words = self.begun("two", run, callback("Killed", event=event, file=file, rank=rank))
        place = self.home / "interrupted"
        words[words.index("--runs") + 1] = str(place)
        status, said = self.start(f"kill {name}", 2, [(name, words)])
        assert status == -9, f"{run}: not killed at {where}: {said}"
        assert (place / f"{run}.killed").exists()

    def start(self, name: str, processes: int, commands: Sequence[tuple[str, list[str]]]) -> tuple[int, str]:
        file = self.home / f"{name}.json"
        file.write_text(json.dumps(commands))
        done = run_script(HERE / "run_commands.py", file, limit_s=3600, devices=processes)
        return done.returncode, done.stdout[-3000:] + done.stderr[-3000:]

    def launch(self, name: str, processes: int, commands: Sequence[tuple[str, list[str]]]) -> None:
        status, said = self.start(name, processes, commands)
        assert status == 0, said
        for command, found in json.loads((self.home / f"{name}.json.results").read_text()).items():
            assert found["status"] == 0, f"{command}: {found['said'][-3000:]}"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Lab(tmp_path_factory.mktemp("quick"), QUICK, killed=QUICK[:1]).home


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Lab(tmp_path_factory.mktemp("everything"), ALL, killed=ALL).home


def tensors(content: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in nested containers, by where they are."""
    if isinstance(content, torch.Tensor):
        yield place, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from tensors(value, f"{place}/{name}")
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content):
            yield from tensors(value, f"{place}/{number}")


def apart(found: Any, expected: Any) -> float:
    """The largest difference of two nested containers with the same tensors."""
    ours, theirs = dict(tensors(found)), dict(tensors(expected))
    assert ours.keys() == theirs.keys()
    assert ours
    assert all(ours[name].shape == theirs[name].shape for name in ours)
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def figures(folder: Path) -> list[dict[str, float]]:
    """What was logged, less what depends on the clock."""
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [{k: float(v) for k, v in row.items() if v and not any(part in k for part in CLOCK)} for row in rows]


def check_goes_on(home: Path, run: Run, how: str) -> None:
    """The end of a run that went on is that of the run that was not interrupted: on as many processes bit by bit."""
    whole, place = home / GOES_ON[how][2] / str(run), home / how / str(run)
    tolerance = 0.0 if how == "on two" else ROUNDING if run.method in GIVEN_ROWS else SAMPLED
    begun = read_whole(Path(f"{whole}.image/last.ckpt"))
    for name in ("last.ckpt", "best.ckpt"):
        expected, found = read_whole(whole / name), read_whole(place / name)
        assert apart(expected["state_dict"], begun["state_dict"]) > 1e-4, "it learnt nothing since"
        for part in ("state_dict", "optimizer_states"):
            assert apart(found[part], expected[part]) <= tolerance, (name, part)
        assert found["global_step"] == expected["global_step"]
        for part in ("loader", "num_tokens", "optimizer", "steps_planned", "reference"):
            assert found["lit_posttrain"].get(part) == expected["lit_posttrain"].get(part), (name, part)
    assert read_whole(place / "last.ckpt")["global_step"] == STEPS
    logged, wanted = figures(place), figures(whole)
    assert [row.keys() for row in logged] == [row.keys() for row in wanted]
    for ours, theirs in zip(logged, wanted, strict=True):
        assert ours == pytest.approx(theirs, abs=LOGGED * (tolerance > 0), rel=LOGGED * (tolerance > 0))


def answers(file: Path) -> list[dict[str, Any]]:
    """The answers of a file, without the name of the model that gave them."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in one.items() if name != "model"} for row in rows for one in row["responses"]]


def check_used(home: Path, run: Run) -> None:
    """What was trained on two processes is exported as what was trained on one, and says the same."""
    one, two = (home / "used" / began / str(run) for began in ("one", "two"))
    ours, theirs = (load_file(place / "hf/model.safetensors") for place in (two, one))
    assert apart(ours, theirs) <= EXPORTED
    if run.method != "reward":
        assert answers(two / "said.jsonl") == answers(one / "said.jsonl")


@pytest.mark.parametrize("how", GOES_ON)
@pytest.mark.parametrize("run", QUICK, ids=str)
def test_goes_on(quick: Path, run: Run, how: str) -> None:
    check_goes_on(quick, run, how)


@pytest.mark.parametrize("run", QUICK, ids=str)
def test_used(quick: Path, run: Run) -> None:
    check_used(quick, run)


def test_a_process_that_dies_ends_the_run_in_one_line(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "data").mkdir()
    words = fit_command("sft", tiny_model, tmp_path / "data", tmp_path, "run", *SHARDED, "--trainer.devices", "2")
    command = [sys.executable, "-m", "lit_posttrain", *words, callback("Dies", rank=1)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode not in (0, -9)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-3000:]
    assert "another process of this run has ended" in errors[0]
    assert "Traceback" not in done.stderr
    assert read_whole(tmp_path / "run/last.ckpt")["global_step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("run", ALL, ids=str)
def test_every_method(everything: Path, run: Run) -> None:
    for how in GOES_ON:
        check_goes_on(everything, run, how)
    check_used(everything, run)
