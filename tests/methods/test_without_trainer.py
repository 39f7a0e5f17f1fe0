"""Methods outside of a Trainer, as in a notebook: loaded from a checkpoint alone, and the metrics of a batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cases import GIVEN_ROWS, METHODS, build, comparisons, conversations, vowels
from helpers import tiny
from helpers.on_policy import fit, grpo, prompts
from helpers.runs import quiet_trainer

from lit_posttrain import (
    DPO,
    GRPO,
    PPO,
    SFT,
    Distillation,
    LoRASpec,
    ModelSpec,
    PostTrainError,
    PostTrainingModule,
    Term,
    TreeBatch,
    loss_of,
    require_sums,
)
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.data.store.loader import step_denominators
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.models.restore import restore
from lit_posttrain.on_policy.critics import Critic
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.on_policy.policy_gradient import Clip
from lit_posttrain.rewards import FunctionReward, Reward

FAST = Optim(lr=1e-2, schedule="constant", warmup_ratio=0.0)


def trained(module: PostTrainingModule, method: str, folder: Path) -> Path:
    """Two steps of a method; its checkpoint."""
    trainer = quiet_trainer(LastCheckpoint(every_n_steps=1), max_steps=2, default_root_dir=folder)
    trainer.fit(module, datamodule=METHODS[method].data(folder))
    return folder / "last.ckpt"


def logprobs(module: PostTrainingModule) -> torch.Tensor:
    batch = collate(conversations(5), module.layout, {})
    with module.eval_no_grad() as policy:
        found: torch.Tensor = policy(batch).logprobs
    return found


@pytest.mark.parametrize("lora", [None, LoRASpec(r=4)])
def test_a_checkpoint_is_enough(lora: LoRASpec | None, tiny_model: Path, tmp_path: Path) -> None:
    module = SFT(ModelSpec(str(tiny_model), lora=lora), FAST)
    path = trained(module, "sft", tmp_path)
    loaded = SFT.load_from_checkpoint(path)
    assert loaded.model_spec.lora == lora
    assert torch.equal(logprobs(loaded), logprobs(module))
    fresh = SFT(ModelSpec(str(tiny_model), lora=lora))
    fresh.configure_model()
    assert not torch.allclose(logprobs(loaded), logprobs(fresh), atol=1e-3), "what was trained is the point"
    assert SFT.load_from_checkpoint(str(path), map_location="meta").device.type == "meta"


def test_adapters_on_a_rounded_base_come_back_on_one(tiny_model: Path, tmp_path: Path) -> None:
    """With bf16-mixed the base of adapters is kept in bfloat16, which nobody asked for by name."""
    module = SFT(ModelSpec(str(tiny_model), lora=LoRASpec(r=4)), FAST)
    trainer = quiet_trainer(
        LastCheckpoint(every_n_steps=1), max_steps=2, default_root_dir=tmp_path, precision="bf16-mixed"
    )
    trainer.fit(module, datamodule=METHODS["sft"].data(tmp_path))
    loaded = SFT.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.frozen == module.frozen
    expected = logprobs(module)
    torch.testing.assert_close(logprobs(loaded), expected, atol=0.05, rtol=0.05)
    restored = restore(str(tmp_path / "last.ckpt")).policy
    batch = collate(conversations(5), loaded.layout, {})
    with torch.no_grad():
        assert torch.equal(logprobs(loaded), restored(batch).logprobs), "as every other command reads it"


def test_options_come_from_the_checkpoint_and_from_arguments(tiny_model: Path, tmp_path: Path) -> None:
    module = DPO(ModelSpec(str(tiny_model)), FAST, beta=0.3, loss="robust", label_smoothing=0.2, ld_alpha=0.5)
    path = trained(module, "dpo", tmp_path)
    loaded = DPO.load_from_checkpoint(path)
    assert (loaded.beta, loaded.loss, loaded.label_smoothing, loaded.ld_alpha) == (0.3, "robust", 0.2, 0.5)
    batch = collate(comparisons(6), loaded.layout, {})
    assert loaded.metrics_of(batch) == pytest.approx(module.metrics_of(batch), rel=1e-5)
    assert DPO.load_from_checkpoint(path, beta=0.7).beta == 0.7


def test_rewards_have_to_be_passed_and_nested_options_come_back(tiny_model: Path, tmp_path: Path) -> None:
    module = PPO(
        ModelSpec(str(tiny_model)),
        [FunctionReward(vowels)],
        optim=FAST,
        rollout=RolloutConfig(group_size=2, max_new_tokens=6, minibatches=2),
        critic=Critic(lr=1e-2, clip=None),
        clip=Clip(0.1, 0.3),
        entropy=0.01,
    )
    path = trained(module, "ppo", tmp_path)
    with pytest.raises(PostTrainError, match=r"last\.ckpt: a checkpoint does not hold rewards: pass them to PPO"):
        PPO.load_from_checkpoint(path)
    loaded = PPO.load_from_checkpoint(path, rewards=[FunctionReward(vowels)])
    assert loaded.critic == module.critic
    assert loaded.surrogate == module.surrogate
    assert (loaded.rollout.group_size, loaded.rollout.max_new_tokens, loaded.rollout.minibatches) == (2, 6, 2)
    head = loaded.language_model.value_heads["reward"].weight
    assert isinstance(head, torch.Tensor)
    assert head.any()
    assert torch.equal(head, module.language_model.value_heads["reward"].weight)  # type: ignore[arg-type]  # a Linear's
    assert torch.equal(logprobs(loaded), logprobs(module))


def test_a_critic_of_its_own_comes_back(tiny_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(str(tiny_model))
    module = PPO(
        spec, [FunctionReward(vowels)], optim=FAST, rollout=RolloutConfig(max_new_tokens=6), critic=Critic(model=spec)
    )
    loaded = PPO.load_from_checkpoint(trained(module, "ppo", tmp_path), rewards=[FunctionReward(vowels)])
    mine, theirs = (one.critics.models["reward"].state_dict() for one in (loaded, module))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_another_methods_checkpoint_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = trained(SFT(ModelSpec(str(tiny_model))), "sft", tmp_path)
    for kind in (DPO, GRPO):
        with pytest.raises(PostTrainError, match=rf"last\.ckpt: a checkpoint of SFT, not of {kind.__name__}; load it"):
            kind.load_from_checkpoint(path)


@pytest.mark.parametrize("method", GIVEN_ROWS)
def test_metrics_of_a_batch(method: str, tiny_model: Path) -> None:
    module = build(method, tiny_model, dropout=False)
    module.configure_model()
    trees = METHODS[method].trees()[:12]
    batch = module.batch_of(trees)
    assert batch.denominators == step_denominators(MemoryTrees(trees), range(len(trees)))
    assert (batch.num_trees, batch.num_responses) == (12, sum(len(tree.responses) for tree in trees))
    found = module.metrics_of(batch)
    assert found == module.metrics_of(batch), "nothing is left of the call before"
    assert all(math.isfinite(value) for name, value in found.items())
    with torch.no_grad():
        expected = float(loss_of(module.loss_terms(batch), batch.denominators))
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_does_not_switch_on_code(tiny_model: Path, tmp_path: Path) -> None:
    """Only the caller does, by a policy of its own."""
    spec = ModelSpec(str(tiny_model), trust_remote_code=True)
    path = trained(SFT(spec), "sft", tmp_path)
    assert not SFT.load_from_checkpoint(path).model_spec.trust_remote_code
    assert SFT.load_from_checkpoint(path, policy=spec).model_spec.trust_remote_code
    rewards: list[Reward] = [FunctionReward(vowels)]
    critic = Critic(model=spec)
    short = RolloutConfig(max_new_tokens=6)
    path = trained(PPO(spec, rewards, optim=FAST, rollout=short, critic=critic), "ppo", tmp_path)
    loaded = PPO.load_from_checkpoint(path, rewards=rewards)
    assert loaded.critic.model is not None
    assert not loaded.critic.model.trust_remote_code


def test_a_student_comes_back_beside_its_teacher(tiny_model: Path, tmp_path: Path) -> None:
    teacher = ModelSpec(str(tiny.save_model(tmp_path / "teacher", seed=7)))
    module = Distillation(
        ModelSpec(str(tiny_model)),
        teacher,
        optim=FAST,
        rollout=RolloutConfig(group_size=1, max_new_tokens=6),
        beta=0.5,
        student_share=0.25,
    )
    path = trained(module, "distillation", tmp_path)
    with pytest.raises(PostTrainError, match="a checkpoint does not hold teacher: pass them to Distillation"):
        Distillation.load_from_checkpoint(path)
    loaded = Distillation.load_from_checkpoint(path, teacher=teacher)
    assert (loaded.beta, loaded.student_share) == (0.5, 0.25)
    assert torch.equal(logprobs(loaded), logprobs(module))
    with pytest.raises(PostTrainError, match=r"--model\.teacher: another model than the checkpoint was trained with"):
        Distillation.load_from_checkpoint(path, teacher=ModelSpec(str(tiny.save_model(tmp_path / "other", seed=8))))


class Mean(SFT):
    """A mean where a sum belongs."""

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        return {"nll": Term(-self.token_logprobs(batch).logprobs.mean(), "tokens")}


class Nothing(SFT):
    """A loss of 0."""

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        return {"nll": Term(0 * self.token_logprobs(batch).logprobs.sum(), "tokens")}


@pytest.mark.parametrize("method", [name for name in GIVEN_ROWS if name != "kto"])
def test_the_loss_of_every_method_is_a_sum(method: str, tiny_model: Path) -> None:
    module = build(method, tiny_model)
    module.configure_model()
    module.track("kept", torch.ones(()), 1.0)
    require_sums(module, METHODS[method].trees()[:9])
    assert module.metrics.take_steps() == {"kept": 1.0}


def test_the_loss_of_sampled_responses_is_a_sum(tiny_model: Path, tmp_path: Path) -> None:
    module = grpo(tiny_model, aggregation="token", entropy=0.1)
    fit(module, prompts(tmp_path), tmp_path, max_epochs=1)
    experience = module.loader.experience
    assert experience is not None
    require_sums(module, experience.trees)


def test_a_mean_is_told_from_a_sum(tiny_model: Path) -> None:
    module = Mean(ModelSpec(str(tiny_model)))
    module.configure_model()
    with pytest.raises(PostTrainError, match=r"^Mean.loss_terms: the term `nll` is .* of 8 rows, .*; take no mean$"):
        require_sums(module, conversations(8))
    with pytest.raises(PostTrainError, match="got 1 trees; pass at least two"):
        require_sums(module, conversations(1))
    nothing = Nothing(ModelSpec(str(tiny_model)))
    nothing.configure_model()
    with pytest.raises(PostTrainError, match="every term is 0 on these 8 rows, which tells nothing"):
        require_sums(nothing, conversations(8))
