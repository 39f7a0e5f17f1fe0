"""What is wrong with a judge is told before its model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.cli import one_line

from lit_posttrain.cli.main import main
from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.building import check_judge
from lit_posttrain.judges.spec import JudgeSpec
from lit_posttrain.rewards import JudgeReward


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (JudgeSpec("m", kind="score", criteria="c.yaml"), "criteria are for the kind rubric, and the kind is score"),
        (JudgeSpec("m", kind="rubric", criteria="c", principles=1), "leave out either criteria or constitution"),
        (JudgeSpec("m", kind="rubric", criteria="c.yaml"), "c.yaml: the file of criteria cannot be read"),
        (JudgeSpec("m", constitution="c.yaml"), "c.yaml: the constitution cannot be read"),
    ],
)
def test_bad_specs(spec: JudgeSpec, said: str) -> None:
    with pytest.raises(PostTrainError, match=said):
        check_judge(spec)
    with pytest.raises(PostTrainError, match=said):
        JudgeReward(spec)


def test_a_bad_file_is_told_before_the_model_is_loaded(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("lit_posttrain.judges.in_process.restore", load)
    file, constitution = tmp_path / "items.jsonl", tmp_path / "c.yaml"
    file.write_text(json.dumps({"prompt": "Why?", "responses": ["So.", "Thus."]}) + "\n")
    constitution.write_text("principles: []\n")
    words = ["--data", str(file), "--out", str(tmp_path / "out.jsonl"), "--judge.model", str(tiny_model)]
    assert main(["judge", *words, "--judge.constitution", str(constitution)]) == 2
    assert "c.yaml: a constitution has a list `principles`" in one_line(capsys)
