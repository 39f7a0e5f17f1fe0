"""The command line as tests use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_posttrain.cli.main import main


def fit(chats: Path, model: Path, *extra: str) -> int:
    common = ["--data.path", str(chats), "--model.policy.path", str(model), "--wandb.mode", "disabled"]
    common += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--data.val_fraction", "0.3"]
    return main(["fit", "--config", "configs/sft.yaml", *common, *extra])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert "Traceback" not in "\n".join(lines)
    return errors[0]
