"""Distillation as a run: who samples, what it learns from, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cases import comparison_files
from helpers import tiny
from helpers.on_policy import fit, letters, prompts, save_recurrent
from helpers.runs import quiet_trainer
from torch import Tensor
from transformers import AutoModelForCausalLM

from lit_posttrain import SFT, ConversationData, Distillation, LoRASpec, ModelSpec, PostTrainError, RolloutConfig
from lit_posttrain.callbacks import LastCheckpoint, RewardHackingWatch, RewardLogger
from lit_posttrain.callbacks.plan_lines import plan
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.on_policy.policy_gradient import Clip
from lit_posttrain.rewards import FunctionReward

TEMPERATURE = 0.7
CONSTANT = Optim(lr=3e-3, schedule="constant", warmup_ratio=0.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("teacher") / "llama", seed=7, hidden_size=32)


def distillation(model: Path, teacher: Path, spec: dict[str, Any] | None = None, **options: Any) -> Distillation:
    """Of one short response to each prompt; rollout: further options of it. spec: of the teacher."""
    rollout = {"group_size": 1, "max_new_tokens": 8, "temperature": TEMPERATURE, **options.pop("rollout", {})}
    student = ModelSpec(str(model), **options.pop("student", {}))
    return Distillation(student, ModelSpec(str(teacher), **(spec or {})), rollout=RolloutConfig(**rollout), **options)


def chats(folder: Path, **options: Any) -> ConversationData:
    file = folder / "chats.jsonl"
    rows = [{"prompt": f"tell me about {i}", "completion": "seven wizards " * (1 + i % 3)} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ConversationData(str(file), **{"batch_size": 4, "cache_dir": str(folder / "cache"), **options})


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


def weights(module: Distillation) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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


def test_rewards_measure_and_do_not_teach(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    ends = []
    for rewards in ([], [FunctionReward(letters)]):
        module = distillation(tiny_model, teacher, rewards=rewards)
        trainer = fit(module, prompts(tmp_path), tmp_path)
        ends.append(weights(module))
        assert ("train/reward" in trainer.callback_metrics) == bool(rewards)
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


# Given responses -----------------------------------------------------------------------------------------------------


def test_given_responses_are_learnt_from(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    module = distillation(tiny_model, teacher, beta=0.0, optim=CONSTANT)
    trainer = fit(module, chats(tmp_path, val_fraction=0.3), tmp_path, max_epochs=1, num_sanity_val_steps=0)
    first = float(trainer.callback_metrics["val/loss"])
    trainer = fit(module, chats(tmp_path, val_fraction=0.3), tmp_path, max_epochs=20, num_sanity_val_steps=0)
    assert trainer.callback_metrics["val/loss"] < 0.7 * first
    assert not any("completions" in name or "rollout" in name for name in trainer.callback_metrics)


def test_given_responses_go_on_after_a_resume(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    whole, begun, resumed = (distillation(tiny_model, teacher, optim=CONSTANT) for _ in range(3))
    fit(whole, chats(tmp_path), tmp_path, max_steps=5, max_epochs=-1)
    fit(begun, chats(tmp_path), tmp_path, LastCheckpoint(1), max_steps=2, max_epochs=-1)
    fit(resumed, chats(tmp_path), tmp_path, max_steps=5, max_epochs=-1, ckpt_path=tmp_path / "last.ckpt")
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("options", [{"objective": "sampled"}, {"student_share": 0.5}])
def test_options_of_sampling_refuse_given_responses(
    options: dict[str, Any], tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(PostTrainError, match="needs prompts: --data PromptData"):
        fit(distillation(tiny_model, teacher, **options), chats(tmp_path), tmp_path)


def test_rejected_answers_are_refused(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    told = "--data PreferenceData: Distillation learns from every answer, and this data has rejected ones; learn from"
    with pytest.raises(PostTrainError, match=told):
        fit(distillation(tiny_model, teacher), comparison_files(tmp_path), tmp_path)
    with pytest.raises(PostTrainError, match="--data PreferenceData: SFT learns from every answer"):
        fit(SFT(ModelSpec(str(tiny_model))), comparison_files(tmp_path), tmp_path)


def test_rewards_of_given_responses_are_refused(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"--model.rewards \(letters\) look at sampled answers, and those of this"):
        fit(distillation(tiny_model, teacher, rewards=[FunctionReward(letters)]), chats(tmp_path), tmp_path)


class Saved(pl.Callback):
    """At the beginning of every epoch the step of the checkpoint; and what the plan says of a batch."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.batch = ""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        file = Path(trainer.default_root_dir, "last.ckpt")
        self.steps.append(torch.load(file, weights_only=True)["global_step"] if file.exists() else 0)
        self.batch = dict(plan(trainer, pl_module))["batch"]


def test_epochs_over_given_responses_are_no_phases(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    seen = Saved()
    data = chats(tmp_path)
    fit(distillation(tiny_model, teacher), data, tmp_path, seen, LastCheckpoint(1000), max_epochs=3)
    assert seen.steps == [0, 3, 6]
    assert seen.batch.startswith("4 rows a step")
    sampled = Saved()
    fit(distillation(tiny_model, teacher), prompts(tmp_path), tmp_path / "sampled", sampled, LastCheckpoint(1000))
    assert sampled.steps == [0, 0]
    assert sampled.batch.startswith("4 prompts x 1 responses a phase")
    for callback, told in ((RewardHackingWatch(), "samples none here"), (RewardLogger(), "does not here")):
        with pytest.raises(PostTrainError, match=f"Distillation {told}: drop it"):
            fit(distillation(tiny_model, teacher), data, tmp_path, callback)


# Teachers ------------------------------------------------------------------------------------------------------------


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
    with pytest.raises(PostTrainError, match=r"the model takes 64; pass --data\.max_length 14"):
        fit(distillation(tiny_model, short, rollout={"max_new_tokens": 50}), prompts(tmp_path), tmp_path)
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
        ({"student_share": 0.5, "objective": "sampled"}, "and 1 with --model.objective sampled"),
        ({"spec": {"lora": LoRASpec(r=4)}}, "--model.teacher.lora: the teacher is not trained"),
        ({"spec": {"random_init": True}}, "--model.teacher.random_init: the teacher is not trained"),
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
    with pytest.raises(PostTrainError, match="the teacher is the model that is trained, which can learn nothing from"):
        distillation(tiny_model, tiny_model)
    with pytest.raises(PostTrainError, match="the teacher is the model that is trained"):
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
