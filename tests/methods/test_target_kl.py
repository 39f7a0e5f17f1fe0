"""A phase that is left because the policy has gone too far: its further steps change nothing, and all else goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cases import prompt_files, vowels
from helpers.runs import quiet_trainer

from lit_posttrain import PPO, ModelSpec, RolloutConfig
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.on_policy.critics import Critic
from lit_posttrain.rewards import FunctionReward

PHASES, STEPS, ACCUMULATE, LR = 3, 4, 2, 2e-3


class Steps(pl.Callback):
    """After every step: the weights, the learning rate it took and whether it was left out; how often was validated."""

    def __init__(self, die_at: int | None = None) -> None:
        self.die_at = die_at
        self.weights: list[torch.Tensor] = []
        self.rates: list[float] = []
        self.idle: list[bool] = []
        self.validated: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % ACCUMULATE:
            return
        self.weights.append(torch.cat([p.detach().flatten() for p in pl_module.parameters()]))
        self.rates.append(pl_module._learning_rate)
        self.idle.append(pl_module.loader.idle)
        assert torch.isfinite(outputs["loss"])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.die_at:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(trainer.global_step)


def fit(model: Path, folder: Path, data: Path, steps: Steps, target_kl: float | None) -> PPO:
    pl.seed_everything(0, verbose=False)
    module = PPO(
        ModelSpec(str(model)),
        [FunctionReward(vowels)],
        optim=Optim(lr=LR, weight_decay=0.1, warmup_ratio=0.0),
        rollout=RolloutConfig(group_size=2, inner_epochs=STEPS, max_new_tokens=12),
        critic=Critic(lr=1e-2),
        target_kl=target_kl,
    )
    prompts, last = prompt_files(data), folder / "last.ckpt"
    prompts.val_fraction = 0.1
    trainer = quiet_trainer(
        steps,
        LastCheckpoint(every_n_steps=1),
        max_epochs=PHASES,
        accumulate_grad_batches=ACCUMULATE,
        check_val_every_n_epoch=1,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    try:
        trainer.fit(module, datamodule=prompts, ckpt_path=str(last) if last.exists() else None)
    except (KeyboardInterrupt, SystemExit):
        assert steps.die_at is not None
    return module


def test_steps_that_are_left_out_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    whole = Steps()
    module = fit(tiny_model, tmp_path / "whole", tmp_path, whole, target_kl=1e-4)
    assert len(whole.idle) == PHASES * STEPS
    assert not whole.idle[0]
    assert any(whole.idle[:STEPS]), "a phase that is left is the point"
    assert not whole.idle[STEPS], "the next phase begins anew"
    for place, idle in enumerate(whole.idle[1:], 1):
        assert torch.equal(whole.weights[place], whole.weights[place - 1]) == idle
    # the plan stands: learning rates fall step by step, and every phase ends in a validation
    plain = Steps()
    fit(tiny_model, tmp_path / "plain", tmp_path, plain, target_kl=None)
    assert not any(plain.idle)
    assert whole.rates == plain.rates
    assert whole.validated == plain.validated == [STEPS, 2 * STEPS, 3 * STEPS]
    assert module.trainer.callback_metrics["train/skipped_steps"] == float(whole.idle[-1])


@pytest.mark.parametrize("within", [1, 3])
def test_a_left_phase_is_resumed(within: int, tiny_model: Path, tmp_path: Path) -> None:
    """Bitwise, from the step after which it is left and from one that is left out."""
    whole = Steps()
    fit(tiny_model, tmp_path / "whole", tmp_path, whole, target_kl=1e-4)
    first = whole.idle.index(True)
    killed, resumed = Steps(die_at=first - 1 + within), Steps()
    fit(tiny_model, tmp_path / "killed", tmp_path, killed, target_kl=1e-4)
    fit(tiny_model, tmp_path / "killed", tmp_path, resumed, target_kl=1e-4)
    assert [*killed.idle, *resumed.idle] == whole.idle
    assert torch.equal(resumed.weights[-1], whole.weights[-1])
