"""Answers to fixed prompts: when, what, and once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_posttrain import RewardModel
from lit_posttrain.callbacks import LastCheckpoint, SampleLogger
from lit_posttrain.errors import PostTrainError

PROMPTS = ["What is the name of a colour?", "one plus two"]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_writes_prints_and_leaves_training_alone(
    fit_in: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = SampleLogger(PROMPTS, max_new_tokens=5, show=1, temperature=1.0)
    run = fit_in(tmp_path, [samples], max_epochs=2, validate=True, num_sanity_val_steps=1)
    rows = rows_of(tmp_path)
    assert [(r["step"], r["prompt"]) for r in rows] == [(s, p) for s in (5, 10) for p in PROMPTS]
    asked = [[{"role": "user", "content": p}] for p in PROMPTS]
    assert [r["response"] for r in rows[2:]] == run.module.generate_text(asked, 5, 1.0, 0)
    printed = capsys.readouterr().out
    assert "answers at step 5 (1 of 2):\n  > What is the name of a colour?\n    " in printed
    assert PROMPTS[1] not in printed
    assert run.same_weights(fit_in(tmp_path, max_epochs=2, validate=True))


def test_a_dry_run_shows_answers_and_writes_nothing(
    fit_in: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_in(tmp_path, [SampleLogger(PROMPTS, max_new_tokens=2)], validate=True, fast_dev_run=True)
    assert "answers at step" in capsys.readouterr().out
    assert not (tmp_path / "samples.jsonl").exists()


def test_every_second_validation_over_a_resume(fit_in: Any, tmp_path: Path) -> None:
    def callbacks() -> list[pl.Callback]:
        return [SampleLogger(PROMPTS[:1], max_new_tokens=2, every_n_validations=2), LastCheckpoint(100)]

    fit_in(tmp_path, callbacks(), max_epochs=3, validate=True, schedule="constant")
    assert [r["step"] for r in rows_of(tmp_path)] == [10]
    fit_in(tmp_path, callbacks(), max_epochs=4, validate=True, schedule="constant", resume=tmp_path / "last.ckpt")
    assert [r["step"] for r in rows_of(tmp_path)] == [10, 20]


def test_repeated_steps_replace_their_rows(fit_in: Any, tmp_path: Path) -> None:
    """A crash after step 10's validation, resumed from step 7."""
    options = {"validate": True, "schedule": "constant"}
    fit_in(tmp_path / "a", [LastCheckpoint(7)], max_steps=7, max_epochs=-1, **options)
    samples = SampleLogger(PROMPTS[:1], max_new_tokens=4)
    fit_in(tmp_path, [samples], max_epochs=3, **options)
    whole = rows_of(tmp_path)
    with (tmp_path / "samples.jsonl").open("a") as stream:
        stream.write('{"step": 20, "pro')
    resumed = SampleLogger(PROMPTS[:1], max_new_tokens=4)
    fit_in(tmp_path, [resumed], max_epochs=2, resume=tmp_path / "a/last.ckpt", **options)
    assert rows_of(tmp_path) == whole[:2]


def test_prompts_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    system = {"role": "system", "content": "Be brief."}
    user, assistant = {"role": "user", "content": "Hi\u2028"}, {"role": "assistant", "content": "Hello"}
    rows = [{"prompt": "Hi"}, {"messages": [system, user, assistant]}, {"prompt": [user]}]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    read = [one.messages for one in SampleLogger(str(file)).prompts]
    assert read == [[{"role": "user", "content": "Hi"}], [system, user], [user]]


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"text": "x"}', '{"messages": []}', '{"prompt": [{"x": 1}]}'])
def test_bad_rows_are_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line)
    with pytest.raises(PostTrainError, match=r"prompts\.jsonl:2: "):
        SampleLogger(str(file))


def test_no_prompts_no_file_no_method(fit_in: Any, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match="got no prompts"):
        SampleLogger([])
    with pytest.raises(PostTrainError, match=r"none\.jsonl: no such file"):
        SampleLogger(str(tmp_path / "none.jsonl"))
    with pytest.raises(PostTrainError, match="BoringModel does not"):
        pl.Trainer(logger=False, enable_checkpointing=False, callbacks=[SampleLogger(["x"])], accelerator="cpu").fit(
            BoringModel()
        )


def test_a_reward_model_answers_nothing(fit_in: Any, tmp_path: Path) -> None:
    said = "RewardModel trains no language model that could answer; leave SampleLogger out"
    with pytest.raises(PostTrainError, match=said):
        fit_in(tmp_path, [SampleLogger(["x"])], module=RewardModel, max_epochs=1)


def test_prompts_that_cannot_be_answered_are_said_before_training(fit_in: Any, tmp_path: Path) -> None:
    file, steps = tmp_path / "asked.jsonl", []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            steps.append(batch_idx)

    file.write_text(json.dumps({"prompt": "what is it"}) + "\n" + json.dumps({"prompt": "what " * 600}) + "\n")
    told = r"asked\.jsonl:2: a prompt of \d+ tokens, and the model takes 512: shorten it"
    with pytest.raises(PostTrainError, match=told):
        fit_in(tmp_path, [SampleLogger(str(file)), Watch()], max_epochs=1, validate=True)
    assert steps == []
