"""Online DPO and distillation from the command line: trained, resumed, exported, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import tiny
from helpers.cli import one_line
from helpers.trainer import checkpoint, metrics

from lit_posttrain.cli.main import main

QUIET = ["--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
FEW = ["--trainer.max_steps", "2", "--model.rollout.max_new_tokens", "4", "--data.batch_size", "4"]
FEW += ["--trainer.check_val_every_n_epoch", "1"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("teacher") / "llama", seed=7, hidden_size=32)


def run(config: str, model: Path, *options: str) -> int:
    return main(["fit", "--config", config, "--model.policy.path", str(model), "--name", "r", *QUIET, *FEW, *options])


def distil(model: Path, teacher: Path, *options: str) -> int:
    return run("distillation.yaml", model, "--model.teacher.path", str(teacher), *options)


def test_online_dpo_from_its_config_to_an_exported_folder(chats: Path, tiny_model: Path) -> None:
    rows = [{"question": f"what is {i} plus {i}", "answer": f"#### {2 * i}"} for i in range(24)]
    asked = chats.with_name("asked.jsonl")
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("online_dpo.yaml", tiny_model, "--data.path", str(asked), "--model.pairs", "all") == 0
    assert "train/compared" in metrics()[0]
    assert checkpoint()["global_step"] == 2
    assert main(["fit", "--resume", "r", "--trainer.max_steps", "3"]) == 0
    assert checkpoint()["global_step"] == 3
    assert main(["export", "--ckpt", "runs/r", "--out", "hf"]) == 0
    assert main(["generate", "--model", "hf", "--prompt", "what is 3", "--max_new_tokens", "2"]) == 0


@pytest.mark.parametrize("options", [[], ["--data", "ConversationData"], ["--model.objective", "sampled"]])
@pytest.mark.parametrize("adapters", [[], ["--config", "with/lora.yaml", "--model.policy.lora.r", "2"]])
def test_distillation_from_its_config_to_an_exported_folder(
    adapters: list[str], options: list[str], chats: Path, tiny_model: Path, teacher: Path
) -> None:
    assert distil(tiny_model, teacher, *adapters, *options, "--data.path", str(chats)) == 0
    if "--data" not in options:  # else two steps are less than an epoch
        assert any(float(row["val/loss"] or 0) > 0 for row in metrics())
    assert main(["fit", "--resume", "r", "--trainer.max_steps", "3"]) == 0
    assert checkpoint()["global_step"] == 3
    assert not any("teacher" in name for name in checkpoint()["state_dict"])
    assert main(["export", "--ckpt", "runs/r", "--out", "hf"]) == 0
    assert main(["generate", "--model", "hf", "--prompt", "what is 3", "--max_new_tokens", "2"]) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model.beta", "2"], "--model.beta is 2.0; it must be between 0 (forward KL) and 1 (reverse KL)"),
        (["--model.student_share", "-1"], "--model.student_share is -1.0; it is a share, 0 to 1"),
        (["--model.objective", "sampled", "--data", "ConversationData"], "needs prompts: --data PromptData"),
        (["--model.teacher.lora.r", "4"], "--model.teacher.lora: the teacher is not trained; leave it out"),
        (["--model.teacher.path", "nowhere"], "nowhere"),
        (
            ["--model.rollout.group_size", "2", "--model.rollout.dynamic_sampling_retries", "2"],
            "Distillation learns from every response",
        ),
        (["--model.rollout.dynamic_sampling_retries", "2"], "--model.rollout.group_size 1: a response that is alone"),
    ],
)
def test_mistakes_with_a_teacher_are_one_line(
    options: list[str], told: str, chats: Path, tiny_model: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distil(tiny_model, teacher, "--data.path", str(chats), *options) == 2
    assert told in one_line(capsys)


def test_a_teacher_with_another_tokenizer_is_one_line(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.save_model(Path("other"))
    file = other / "tokenizer.json"
    tokens = json.loads(file.read_text())
    vocabulary = tokens["model"]["vocab"]
    one, two = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(tokens))
    assert distil(tiny_model, other, "--data.path", str(chats)) == 2
    assert "--model.teacher.path other: another vocabulary than the policy's" in one_line(capsys)


def test_another_teacher_on_resume_is_one_line(
    chats: Path, tiny_model: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distil(tiny_model, teacher, "--data.path", str(chats)) == 0
    other = tiny.save_model(Path("other"), seed=9, hidden_size=32)
    more = ["--trainer.max_steps", "3"]
    assert main(["fit", "--resume", "r", *more, "--model.teacher.path", str(other)]) == 2
    assert "--model.teacher: another model than the checkpoint was trained with" in one_line(capsys)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model.pairs", "some"], "best_worst"),
        (["--model.rollout.group_size", "1"], "--model.rollout.group_size 1"),
        (["--model.loss", "robust"], "--model.label_smoothing 0 with --model.loss robust"),
        (["--model.reference", "cached"], "--model.reference cached"),
        (["--trainer.accumulate_grad_batches", "8"], "a step has 4 prompts for 8 micro-batches"),
        (["--model.rewards", "[]"], "--model.rewards is empty"),
    ],
)
def test_mistakes_with_online_dpo_are_one_line(
    options: list[str], told: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data.path", str(chats), "--model.rewards", "[{class_path: Regex, init_args: {pattern: fox}}]"]
    assert run("online_dpo.yaml", tiny_model, *given, *options) == 2
    assert told in one_line(capsys)
