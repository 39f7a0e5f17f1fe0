"""The loops of `make rlaif` and `make constitution`, on the real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_posttrain.cli.rlaif import main


@pytest.mark.slow
@pytest.mark.parametrize(("name", "made"), [("rlaif", "judged.jsonl"), ("constitution", "pairs.jsonl")])
def test_a_loop(
    name: str, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main([name]) == 0
    out = capsys.readouterr().out
    assert "All files are in runs" in out
    assert (tmp_path / "runs" / name / made).stat().st_size > 0
    assert (tmp_path / "runs" / name / "run" / "last.ckpt").exists()
