"""Distillation as a run: who samples, and what it learns from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import tiny
from helpers.distillation import CONSTANT, TEMPERATURE, distillation, same, weights
from helpers.on_policy import fit, letters, prompts
from helpers.runs import quiet_trainer
from torch import Tensor
from transformers import AutoModelForCausalLM

from lit_posttrain import Distillation, LoRASpec
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.rewards import FunctionReward


class Samplers(pl.Callback):
    """Of every rollout who has drawn it, and the validation's too."""

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        sampler = pl_module.collector.sampler
        answers = sampler.answers

        def watched(*given: Any) -> Any:
            who = "student" if sampler._other is None else "teacher"
            self.drawn.append(who if trainer.training else f"validation: {who}")
            return answers(*given)

        sampler.answers = watched


# Who samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "drawn"), [(0.0, {"teacher"}), (0.5, {"teacher", "student"}), (1.0, {"student"})])
def test_a_share_of_the_rollouts_is_the_students(
    share: float, drawn: set[str], tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    seen = Samplers()
    fit(distillation(tiny_model, teacher, student_share=share), prompts(tmp_path), tmp_path, seen, max_epochs=8)
    assert len(seen.drawn) == 8
    assert set(seen.drawn) == drawn


def test_validation_is_the_students_after_a_rollout_of_the_teacher(
    tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    seen = Samplers()
    data = prompts(tmp_path, val_fraction=0.3)
    trainer = fit(distillation(tiny_model, teacher, student_share=0.0), data, tmp_path, seen, num_sanity_val_steps=0)
    assert seen.drawn == ["teacher", "validation: student"] * 2
    assert trainer.callback_metrics["val/loss"] > 0.01
    assert trainer.callback_metrics["val/entropy"] > 1


def test_a_teachers_rollout_is_what_the_teacher_says(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    """Far more likely under a teacher that is sure of itself than under the student."""
    sure = tmp_path / "sure"
    model = AutoModelForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        model.model.norm.weight.mul_(20)
    model.save_pretrained(sure)
    tiny.tokenizer().save_pretrained(sure)
    said: dict[float, float] = {}
    for share in (0.0, 1.0):
        module = distillation(tiny_model, sure, student_share=share)
        fit(module, prompts(tmp_path), tmp_path, max_epochs=1)
        engine = [one.tree.per_target["rollout_logprobs"].mean() for one in module.collector.rollouts]
        said[share] = float(sum(engine)) / len(engine)
    assert said[0.0] > said[1.0] + 1


def test_a_resumed_run_goes_on_with_the_same_samplers(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"student_share": 0.5, "rollout": {"inner_epochs": 2, "seed": 3}, "optim": CONSTANT}
    whole, before, after = Samplers(), Samplers(), Samplers()
    module = distillation(tiny_model, teacher, **options)
    fit(module, prompts(tmp_path), tmp_path, whole, max_steps=12, max_epochs=-1)
    begun, last = distillation(tiny_model, teacher, **options), tmp_path / "last.ckpt"
    fit(begun, prompts(tmp_path), tmp_path, before, LastCheckpoint(1), max_steps=5, max_epochs=-1)
    resumed = distillation(tiny_model, teacher, **options)
    fit(resumed, prompts(tmp_path), tmp_path, after, max_steps=12, max_epochs=-1, ckpt_path=last)
    assert before.drawn + after.drawn == whole.drawn
    assert len(set(whole.drawn)) == 2
    assert same(weights(resumed), weights(module))


@pytest.mark.parametrize("student", [{}, {"lora": LoRASpec(r=4)}])
def test_the_sampled_objective_goes_on_within_a_rollout(
    student: dict[str, Any], tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    rollout = {"inner_epochs": 2, "minibatches": 2}
    options: dict[str, Any] = {"objective": "sampled", "optim": CONSTANT, "rollout": rollout, "student": student}
    whole, begun, resumed = (distillation(tiny_model, teacher, **options) for _ in range(3))
    fit(whole, prompts(tmp_path), tmp_path, max_steps=8, max_epochs=-1)
    fit(begun, prompts(tmp_path), tmp_path, LastCheckpoint(1), max_steps=5, max_epochs=-1)
    fit(resumed, prompts(tmp_path), tmp_path, max_steps=8, max_epochs=-1, ckpt_path=tmp_path / "last.ckpt")
    assert same(weights(resumed), weights(whole))


# What it learns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_student_becomes_the_teacher(beta: float, tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    module = distillation(tiny_model, teacher, beta=beta, optim=CONSTANT)
    data = prompts(tmp_path, val_fraction=0.3)
    first = quiet_trainer(default_root_dir=tmp_path).validate(module, datamodule=data, verbose=False)[0]["val/loss"]
    trainer = fit(module, prompts(tmp_path, val_fraction=0.3), tmp_path, max_epochs=30, num_sanity_val_steps=0)
    assert trainer.callback_metrics["val/loss"] < 0.7 * first


class Gradient(pl.Callback):
    """The gradient of the first step, and the trees that it is of."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradient = {name: p.grad.clone() for name, p in pl_module.policy.transformer.named_parameters()}
        self.trees = trainer.train_dataloader.experience.trees
        self.loss = float(trainer.callback_metrics.get("train/loss", math.nan))


def test_the_sampled_objective_is_a_loop_over_tokens(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    """-sum of (log q - log p) times the gradient of log p over the sampled tokens, divided by their number."""
    seen, double = Gradient(), {"dtype": "float64"}
    module = distillation(tiny_model, teacher, double, student=double, objective="sampled", rollout={"group_size": 3})
    fit(module, prompts(tmp_path), tmp_path, seen, max_epochs=1)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for folder in (tiny_model, teacher)]
    losses = []
    for tree in seen.trees:
        for response in tree.responses:
            ids = torch.tensor([[*tree.prompt.tolist(), *response.tokens.tolist()]])
            here = slice(len(tree.prompt) - 1, -1)
            chosen = torch.from_numpy(response.tokens).long()[:, None]
            logits = [model(ids).logits[0, here] / TEMPERATURE for model in models]
            ours, theirs = (torch.log_softmax(one, -1).gather(1, chosen)[:, 0] for one in logits)
            losses += [-(q - p).detach() * p for p, q in zip(ours, theirs, strict=True)]
    torch.stack(losses).mean().backward()
    largest = max(float(p.grad.abs().max()) for p in models[0].parameters())
    assert largest > 1e-3
    for name, parameter in models[0].named_parameters():
        assert torch.allclose(seen.gradient[name], parameter.grad, rtol=1e-5, atol=1e-6 * largest), name


def test_rewards_measure_and_do_not_teach(
    tiny_model: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends = []
    for rewards in ([], [FunctionReward(letters)]):
        module = distillation(tiny_model, teacher, rewards=rewards)
        trainer = fit(module, prompts(tmp_path), tmp_path)
        ends.append(weights(module))
        assert ("train/reward" in trainer.callback_metrics) == bool(rewards)
        told = [line for line in caplog.messages if "were cut off at 8 tokens: " in line]
        assert len(told) == 1
        assert ("rewards judge text without its end, and the model" in told[0]) == bool(rewards)
        caplog.clear()
    assert same(*ends)


def test_cut_off_responses_can_be_left_out(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    module = distillation(tiny_model, teacher, rollout={"max_new_tokens": 1, "mask_truncated": True})
    before = {name: p.clone() for name, p in distillation_weights(module)}
    trainer = fit(module, prompts(tmp_path), tmp_path)
    assert trainer.callback_metrics["train/completions/clipped_ratio"] == 1
    assert trainer.global_step == 2
    assert all(torch.equal(p, before[name]) for name, p in distillation_weights(module))


class Measured(pl.Callback):
    """Names of what every micro-batch has measured."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.metrics.steps.reset()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.names.append(set(pl_module.metrics.steps.names))
        self.last = batch.num_trees


def test_a_micro_batch_without_rows_measures_what_the_others_do(
    tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    """Or the sums of the ranks would not stand in the same order, and sharded ones would wait for each other."""
    seen, empty = Measured(), Measured()
    options: dict[str, Any] = {"log_every_n_steps": 1000, "max_epochs": 1, "accumulate_grad_batches": 2}
    fit(distillation(tiny_model, teacher, objective="sampled"), prompts(tmp_path), tmp_path, seen, **options)
    rollout = {"max_new_tokens": 1, "mask_truncated": True}
    module = distillation(tiny_model, teacher, objective="sampled", rollout=rollout)
    fit(module, prompts(tmp_path), tmp_path, empty, **options)
    assert (seen.last > 0, empty.last) == (True, 0)
    assert seen.names[1] == empty.names[1]
    assert "loss/policy" in seen.names[1]


def distillation_weights(module: Distillation) -> Sequence[tuple[str, Tensor]]:
    module.configure_model()
    return list(module.language_model.named_parameters())
