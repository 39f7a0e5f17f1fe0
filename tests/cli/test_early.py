"""What needs no torch is said before torch is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import ended_within, environment, forked

from lit_posttrain.cli.main import main
from lit_posttrain.cli.options import option_tree

SCRIPT = """
import sys
from lit_posttrain.cli.main import main
status = main(sys.argv[1:])
print(status, *(name for name in ("torch", "transformers", "lightning") if name in sys.modules), file=sys.stderr)
"""
SFT = ["fit", "--config", "sft.yaml"]
EARLY: dict[str, tuple[list[str], str]] = {
    "numbers for names": ([*SFT, "--config", "years.yaml"], "2023: no such file"),
    "a number for a name": ([*SFT, "--config", "year.yaml"], "2024: no such file"),
    "version": (["--version"], "0"),
    "help": (["--help"], "0"),
    "configs": (["configs"], "0"),
    "help of generate": (["generate", "--help"], ""),
    "help of chat": (["chat", "--help"], ""),
    "help of score": (["score", "--help"], ""),
    "help of export": (["export", "--help"], ""),
    "unknown command": (["fitt"], "did you mean fit?"),
    "unknown config": (["fit", "--config", "sftt.yaml"], "did you mean sft.yaml"),
    "no config": (["fit"], "fit needs a config"),
    "unknown option": ([*SFT, "--model.warm_up", "1"], "did you mean --model.optim.warmup_ratio?"),
    "another method's option": ([*SFT, "--model.beta", "1"], "SFT has no such option"),
    "wrong type": ([*SFT, "--trainer.max_steps", "three"], "expected a whole number, got three"),
    "no epochs": ([*SFT, "--trainer.max_epochs", "0"], "--trainer.max_epochs is 0: nothing would be trained"),
    "no steps, in a file": ([*SFT, "--config", "none.yaml"], "--trainer.max_steps is 0: nothing would be trained"),
    "more at least than at most": (
        [*SFT, "--trainer.min_steps", "5", "--trainer.max_steps", "3"],
        "--trainer.min_steps is 5 and --trainer.max_steps 3: lower the one or raise the other",
    ),
    "a rate of clipping": ([*SFT, "--trainer.gradient_clip_val", "-0.5"], "clip_val is -0.5; it must be at least 0"),
    "YAML": (["fit", "--config", "bad.yaml"], "bad.yaml:2: a tab in the indentation"),
    "option in a file": (["fit", "--config", "sft.yaml", "--config", "odd.yaml"], "odd.yaml:3: warmp: no such option"),
    "data": ([*SFT, "--data.path", "nothere.jsonl"], "nothere.jsonl: no such file"),
    "one of several data": ([*SFT, "--data.path", "[builtin:demo_sft, nothere.jsonl]"], "nothere.jsonl: no such file"),
    "model": ([*SFT, "--model.policy.path", "./nothere"], "./nothere: no such folder"),
    "run": (["fit", "--resume", "nothere"], "no such run"),
    "checkpoint": (["validate", "--config", "sft.yaml", "--ckpt_path", "x.ckpt"], "x.ckpt: no such file"),
    "audit": (["audit", "--config", "sft.yaml", "--data.pth", "x"], "did you mean --data.path?"),
    "export of nothing": (["export", "--ckpt", "nothere.ckpt", "--out", "x"], "nothere.ckpt: no such checkpoint"),
    "export to something": (["export", "--ckpt", "there.ckpt", "--out", "full"], "full exists already"),
    "generate, model": (["generate", "--model", "./x", "--prompt", "hi"], "./x: no such folder"),
    "generate, nothing": (["generate", "--model", "./x"], "nothing to answer"),
    "generate, out": (["generate", "--model", "x", "--prompt", "a", "--out", "bad.yaml"], "bad.yaml exists already"),
    "generate, option": (["generate", "--modle", "./x"], "did you mean --model?"),
    "score, model": (["score", "--model", "./x", "--data", "builtin:demo_preferences"], "./x: no such folder"),
    "chat, type": (["chat", "--model", "./x", "--temperature", "hot"], "--temperature: expected a number, got hot"),
}


@pytest.mark.parametrize("case", EARLY)
def test_it_is_said_without_torch(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    option_tree()  # as any command before would leave it
    arguments, expected = EARLY[case]
    (tmp_path / "bad.yaml").write_text("model:\n\tclass_path: SFT\n")
    (tmp_path / "odd.yaml").write_text("model:\n  init_args:\n    warmp: 1\n")
    (tmp_path / "year.yaml").write_text("data: {init_args: {path: 2024}}\n")
    (tmp_path / "none.yaml").write_text("trainer: {max_steps: 0}\n")
    (tmp_path / "years.yaml").write_text("data: {init_args: {path: [2023, 2024]}}\n")
    (tmp_path / "there.ckpt").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert expected in done.stderr
    if "--help" in arguments and arguments[0] != "--help":  # the parser of a command ends the process
        assert done.stdout.startswith("usage")
        return
    assert done.stderr.splitlines()[-1] in ("0", "2"), done.stderr


def test_a_mistake_of_all_processes_is_told_by_the_first_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    option_tree()
    command = [sys.executable, "-c", SCRIPT, *SFT, "--trainer.max_epochs", "0"]
    for rank in ("0", "1"):
        variables = {**environment(), "RANK": rank, "LOCAL_RANK": rank}
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
        assert ("error: --trainer.max_epochs is 0" in done.stderr) == (rank == "0")
        assert done.stderr.splitlines()[-1] == "2"


def test_a_page_of_help_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    option_tree()
    words, first = ["fit", "--config", "dpo.yaml", "--help"], tmp_path / "first"
    assert ended_within(forked(main, words, output=first), 300) == 0
    command = [sys.executable, "-c", SCRIPT, *words]
    second = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert "--model.label_smoothing" in first.read_text()
    assert first.read_text() == second.stdout
    assert second.stderr.splitlines()[-1] == "0"
