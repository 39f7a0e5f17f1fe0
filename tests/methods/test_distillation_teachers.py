"""Teachers of distillation, and what it refuses before anything is sampled."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.distillation import distillation
from helpers.on_policy import fit, prompts, save_recurrent
from transformers import AutoModelForCausalLM

from lit_posttrain import LoRASpec, PostTrainError
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.on_policy.policy_gradient import Clip


def test_a_teacher_in_four_bits_and_adapters(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    student = {"lora": LoRASpec(r=4)}
    module = distillation(tiny_model, teacher, {"quantization": "nf4"}, student=student, student_share=0.5)
    fit(module, prompts(tmp_path), tmp_path, LastCheckpoint(1), max_epochs=2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["state_dict"]
    assert all("lora" in name for name in saved["state_dict"])
    again = distillation(tiny_model, teacher, {"quantization": "nf4"}, student=student, student_share=0.5)
    trainer = fit(again, prompts(tmp_path), tmp_path, max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 4
    assert math.isfinite(trainer.callback_metrics["train/loss"])


def test_a_teacher_keeps_the_type_that_it_is_asked_for(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    module = distillation(tiny_model, teacher, {"dtype": "bfloat16"})
    fit(module, prompts(tmp_path), tmp_path, max_epochs=1)
    assert {p.dtype for p in module.teacher.model.weights} == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("objective", ["full", "sampled"])
def test_a_teacher_that_reads_one_sequence_a_row(objective: Any, tiny_model: Path, tmp_path: Path) -> None:
    other = save_recurrent(tmp_path / "mamba")
    module = distillation(tiny_model, other, objective=objective, rollout={"group_size": 3})
    trainer = fit(module, prompts(tmp_path), tmp_path)
    assert math.isfinite(trainer.callback_metrics["train/loss"])


def test_a_teacher_with_more_tokens_says_none_that_the_student_lacks(tiny_model: Path, tmp_path: Path) -> None:
    wide = tiny.save_model(tmp_path / "wide", seed=7, hidden_size=32, vocab_size=1024)
    module = distillation(tiny_model, wide, student_share=0.0)
    trainer = fit(module, prompts(tmp_path), tmp_path)
    drawn = [response.tokens.max() for one in module.collector.rollouts for response in one.tree.responses]
    assert max(drawn) < 512
    assert math.isfinite(trainer.callback_metrics["train/loss"])


def _with_more_tokens(folder: Path) -> Path:
    """A teacher that knows two tokens more than the student's tokenizer, and is fond of them."""
    model = AutoModelForCausalLM.from_config(tiny.llama_config(hidden_size=32, tie_word_embeddings=False))
    tokenizer = tiny.tokenizer()
    first = len(tokenizer)
    tokenizer.add_tokens(["<|tool|>", "<|think|>"])
    with torch.no_grad():
        model.lm_head.weight[first : first + 2] = 0.0
        model.lm_head.weight[:first] = -10.0 * model.lm_head.weight[:first].abs()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_that_only_the_teacher_has_are_told_of_and_left_out(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = len(tiny.tokenizer())
    module = distillation(tiny_model, _with_more_tokens(tmp_path / "more"), student_share=0.0)
    fit(module, prompts(tmp_path), tmp_path, max_epochs=1)
    assert "has 2 tokens that the policy's has not (<|tool|>, <|think|>): they are left out" in caplog.text
    drawn = [response.tokens.max() for one in module.collector.rollouts for response in one.tree.responses]
    assert max(drawn) < own, "it draws none of them"
    tree = module.collector.rollouts[0].tree
    loss = module.metrics_of(module.batch_of([tree]))["loss"]
    ids = torch.tensor([[*tree.prompt.tolist(), *tree.responses[0].tokens.tolist()]])
    here = slice(len(tree.prompt) - 1, -1)
    models = module.language_model, module.teacher.model.model
    with torch.no_grad():
        logits = [model.transformer(ids).logits[0, here, :own] for model in models]
    ours, theirs = (torch.log_softmax(one.double() / module.rollout.temperature, -1) for one in logits)
    assert loss == pytest.approx(float((ours.exp() * (ours - theirs)).sum(-1).mean()), rel=1e-4)


def test_another_teacher_is_refused_on_resume(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    fit(distillation(tiny_model, teacher), prompts(tmp_path), tmp_path, LastCheckpoint(1), max_epochs=1)
    other = tiny.save_model(tmp_path / "other", seed=8, hidden_size=32)
    with pytest.raises(PostTrainError, match=r"--model\.teacher: another model than the checkpoint"):
        fit(distillation(tiny_model, other), prompts(tmp_path), tmp_path, ckpt_path=tmp_path / "last.ckpt")


def test_a_teacher_of_another_vocabulary_is_refused(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(teacher).save_pretrained(other)
    tokenizer = tiny.tokenizer()
    tokens = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokens["model"]["vocab"]
    first, second = [token for token, number in vocabulary.items() if number in (300, 301)]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    tokenizer.save_pretrained(other)
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(PostTrainError, match=f"--model.teacher.path {other}: another vocabulary than the policy's"):
        fit(distillation(tiny_model, other), prompts(tmp_path), tmp_path)


def test_a_teacher_of_fewer_positions_limits_the_data(tiny_model: Path, tmp_path: Path) -> None:
    short = tiny.save_model(tmp_path / "short", max_position_embeddings=64)
    module = distillation(tiny_model, short)
    assert module.max_positions == 64
    for new, told in ((50, r"pass --data\.max_length 14"), (64, r"lower --model\.rollout\.max_new_tokens")):
        with pytest.raises(PostTrainError, match=f"tokens, and the teacher takes 64; {told}"):
            fit(distillation(tiny_model, short, rollout={"max_new_tokens": new}), prompts(tmp_path), tmp_path)
    with pytest.raises(PostTrainError, match="max_length is 65 and the teacher takes 64 positions; pass at most 64"):
        fit(distillation(tiny_model, short), prompts(tmp_path, max_length=65), tmp_path)
    tight = tiny.save_model(tmp_path / "tight", max_position_embeddings=4)
    with pytest.raises(
        PostTrainError, match=r"longer than max_length .*; the teacher takes 4 tokens: take shorter rows"
    ):
        fit(distillation(tiny_model, tight), prompts(tmp_path), tmp_path)
    with pytest.raises(PostTrainError, match=r"longer than max_length .*; raise --data\.max_length$"):
        fit(distillation(tiny_model, short), prompts(tmp_path, max_length=4), tmp_path)
    trainer = fit(module, prompts(tmp_path), tmp_path, max_epochs=1)
    assert trainer.global_step == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beta": -0.1}, "--model.beta is -0.1; it must be between 0"),
        ({"beta": 1.5}, "--model.beta is 1.5; it must be between 0"),
        ({"beta": math.nan}, "--model.beta is nan; it must be between 0"),
        ({"student_share": 1.5}, "--model.student_share is 1.5; it is a share"),
        ({"student_share": math.nan}, "--model.student_share is nan; it is a share"),
        ({"student_share": 0.5, "objective": "sampled"}, "it is a share, 0 to 1, for sampled 1"),
        ({"spec": {"lora": LoRASpec(r=4)}}, "--model.teacher.lora: the teacher is not trained"),
        ({"spec": {"random_init": True}}, "--model.teacher.random_init: the teacher is not trained"),
        ({"spec": {"dropout": True}}, "--model.teacher.dropout: the teacher is not trained; leave it out$"),
        ({"spec": {"checkpointing": True}}, "--model.teacher.checkpointing: the teacher is not trained"),
        ({"spec": {"router_aux_loss": 0.1}}, "--model.teacher.router_aux_loss: the teacher is not trained"),
        ({"spec": {"chat_template": "chatml"}}, "--model.teacher.chat_template: it reads the tokens of the policy"),
        ({"spec": {"eos": "x"}}, "--model.teacher.eos: .* leave it out, or set --model.policy.eos"),
        ({"spec": {"template_variables": {"a": 1}}}, "--model.teacher.template_variables: it reads the tokens"),
        ({"rollout": {"dynamic_sampling_retries": 2, "group_size": 2}}, "retries 2: Distillation learns from every"),
        ({"rollout": {"dynamic_sampling_retries": 2}}, "retries 2 with --model.rollout.group_size 1: a response that"),
        ({"rollout": {"seed": -1}}, "--model.rollout.seed is -1; it must be at least 0"),
        ({"clip": Clip(high=0.3)}, "--model.clip is for --model.objective sampled, and full clips nothing"),
        ({"clip": Clip(high=0.3), "objective": "sampled", "beta": 2}, "--model.beta is 2; it must be between 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, Any], told: str, tiny_model: Path, teacher: Path
) -> None:
    with pytest.raises(PostTrainError, match=told):
        distillation(tiny_model, teacher, **options)


def test_the_model_itself_is_no_teacher(tiny_model: Path, teacher: Path) -> None:
    with pytest.raises(PostTrainError, match="this is the student itself; name another model"):
        distillation(tiny_model, tiny_model)
    with pytest.raises(PostTrainError, match="this is the student itself"):
        distillation(tiny_model, tiny_model, student={"lora": LoRASpec(r=4)})
    distillation(tiny_model, tiny_model, student={"lora": LoRASpec(r=4), "quantization": "nf4"})  # learns what it lost
    distillation(tiny_model, tiny_model, student={"random_init": True})


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("beta", {"beta": 0.3}),
        ("student_share", {"student_share": 0.5}),
        ("objective", {"objective": "sampled"}),
        ("rollout.temperature", {"rollout": {"temperature": 1.0}}),
    ],
)
def test_resuming_with_other_options_is_refused(
    name: str, changed: dict[str, Any], tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    fit(distillation(tiny_model, teacher), prompts(tmp_path), tmp_path, LastCheckpoint(1), max_epochs=1)
    with pytest.raises(PostTrainError, match=f"trained with --model.{name} .* and this run has"):
        fit(distillation(tiny_model, teacher, **changed), prompts(tmp_path), tmp_path, ckpt_path=tmp_path / "last.ckpt")
