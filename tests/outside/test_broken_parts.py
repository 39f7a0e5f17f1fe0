"""Methods and data of one's own that lack something: one line before training, or at the first batch, never hours
later."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import torch
from cases import comparison_files, conversation_files
from helpers.on_policy import fit, prompts
from helpers.runs import trainer

from lit_posttrain import GRPO, SFT, ModelSpec, PostTrainError, RolloutConfig, Term, TreeBatch
from lit_posttrain.callbacks import FiniteLossGuard, RewardLogger
from lit_posttrain.core.preference import PreferenceModule
from lit_posttrain.on_policy.rollouts import Rollout, Stats
from lit_posttrain.rewards import FunctionReward, Reward

if TYPE_CHECKING:
    from fractions import Fraction


class Margin(PreferenceModule):
    """Tracks no rewards."""

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        sums = batch.sum(self.language_model(batch).logprobs)
        return {"margin": Term((sums[batch.pairs.rejected] - sums[batch.pairs.chosen]).sum(), "pairs")}


class Forward(SFT):
    """Has an option whose type is there for type checkers alone."""

    def __init__(self, policy: ModelSpec, share: Fraction | None = None) -> None:
        super().__init__(policy)
        self.share = share


class Returns(SFT):
    """Has a loss of the wrong kind."""

    def __init__(self, policy: ModelSpec, made: Callable[[TreeBatch], Any]) -> None:
        super().__init__(policy)
        self.made = made

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        found: dict[str, Term] = self.made(batch)
        return found


class Unprepared(GRPO):
    """Forgets to return the figures of a rollout."""

    def prepare(self, rollouts: Any) -> Any:
        super().prepare(rollouts)


class Leaves(GRPO):
    """Leaves out rollouts, or all their responses, after what GRPO prepares; in each of its rollouts the same."""

    left = "all"

    def prepare(self, rollouts: list[Rollout]) -> Stats:
        found = super().prepare(rollouts)
        if self.left != "all":
            rollouts[:] = [] if self.left == "no rollout" else [one.only([]) for one in rollouts]
        return found


class Steps(SFT):
    """Replaces the step that divides and logs the loss."""

    def training_step(self, batch: TreeBatch, batch_idx: int) -> torch.Tensor:
        return self.token_logprobs(batch).logprobs.sum()


class Timed(SFT):
    """Adds to the step."""

    steps = 0

    def training_step(self, batch: TreeBatch, batch_idx: int) -> torch.Tensor:
        self.steps += 1
        return super().training_step(batch, batch_idx)


class Ended(pl.Callback):
    """Has a misspelt hook."""

    def on_fit_ended(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise AssertionError


class Listed(pl.Callback):
    """Has a state that is no dict."""

    def state_dict(self) -> Any:
        return [1]


class Says(GRPO):
    """Returns what it is told to, and writes a label."""

    stat: Any = (1.0, 2.0)
    label: Any = 1.0

    def prepare(self, rollouts: list[Rollout]) -> Stats:
        super().prepare(rollouts)
        rollouts[0].tree.responses[0].labels["right"] = self.label
        return {"right": self.stat}


class Tensors(pl.LightningDataModule):
    """Batches of plain tensors."""

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.zeros(8, 3))  # type: ignore[arg-type]  # a tensor has what it takes


def test_a_preference_method_need_not_keep_rewards(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, module = comparison_files(tmp_path), Margin(ModelSpec(str(tiny_model)))
    data.val_fraction = 0.4
    options = {"max_epochs": 2, "limit_val_batches": 2, "limit_train_batches": 2}
    with caplog.at_level(logging.WARNING, "lit_posttrain"):
        run = trainer(tmp_path, RewardLogger(), **options)
        run.fit(module, datamodule=data)
    assert run.callback_metrics["val/loss"].isfinite()
    told = [record.getMessage() for record in caplog.records if "RewardLogger" in record.getMessage()]
    assert told == [
        "RewardLogger has nothing to log: Margin.loss_terms calls neither track_rewards nor keep_rewards"
    ], "once, not at every validation"
    assert not (tmp_path / "rewards.jsonl").exists()


def test_a_type_that_a_checkpoint_could_not_compare(tiny_model: Path, tmp_path: Path) -> None:
    said = r"Forward \(.*test_broken_parts.py:\d+\): a type of its __init__ is not known \(name 'Fraction' is not def"
    with pytest.raises(PostTrainError, match=said):
        trainer(tmp_path).fit(Forward(ModelSpec(str(tiny_model))), datamodule=conversation_files(tmp_path))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda batch: None,
            r"Returns\.loss_terms \(.*test_broken_parts.py:\d+\) returned None; let it return the terms of its loss by",
        ),
        (lambda batch: {"nll": Term(3.0, "tokens")}, "total of type float, and a tensor is wanted"),  # type: ignore[arg-type]  # tested
        (
            lambda batch: {"nll": Term(torch.zeros(()), "tokens")},
            r"test_broken_parts.py:\d+\) returned terms without a",
        ),
        (lambda batch: {}, "returned dict of nothing"),
        (lambda batch: torch.zeros(()), "returned Tensor"),
        (lambda batch: {"nll": torch.zeros(())}, "returned dict of Tensor"),
        (
            lambda batch: {"nll": Term(torch.zeros(3), "tokens")},
            r"has the shape \(3,\): its total is the sum over the micro-batch, a scalar; pass total.sum\(\)",
        ),
    ],
)
def test_a_loss_that_is_no_terms(made: Callable[[TreeBatch], Any], said: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=said):
        trainer(tmp_path).fit(Returns(ModelSpec(str(tiny_model)), made), datamodule=conversation_files(tmp_path))


def test_a_rollout_without_figures(tiny_model: Path, tmp_path: Path) -> None:
    rewards: list[Reward] = [FunctionReward(lambda completions: [float(len(said)) for said in completions])]
    module = Unprepared(ModelSpec(str(tiny_model)), rewards, rollout=RolloutConfig(group_size=2, max_new_tokens=4))
    with pytest.raises(PostTrainError, match=r"Unprepared\.prepare returned NoneType; let it return a dict"):
        fit(module, prompts(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("stat", "label", "said"),
    [
        (0.5, 1.0, "Says.prepare returned 0.5 for `right`; let it return the sum and the count"),
        (("many", 2.0), 1.0, r"Says.prepare returned \('many', 2.0\) for `right`"),
        ((1.0, 2.0), "good", r"prompts.jsonl:\d+: the label `right` of a response is 'good'; labels are numbers"),
    ],
)
def test_figures_and_labels_that_are_no_numbers(
    stat: Any, label: Any, said: str, tiny_model: Path, tmp_path: Path
) -> None:
    rewards: list[Reward] = [FunctionReward(lambda completions: [float(len(said)) for said in completions])]
    module = Says(ModelSpec(str(tiny_model)), rewards, rollout=RolloutConfig(group_size=2, max_new_tokens=4))
    module.stat, module.label = stat, label
    with pytest.raises(PostTrainError, match=said):
        fit(module, prompts(tmp_path), tmp_path)


@pytest.mark.parametrize("left", ["no rollout", "no response", "all"])
def test_rollouts_of_which_nothing_is_left(
    left: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewards: list[Reward] = [FunctionReward(lambda completions: [float(len(said)) for said in completions])]
    module = Leaves(ModelSpec(str(tiny_model)), rewards, rollout=RolloutConfig(group_size=2, max_new_tokens=4))
    module.left = left
    assert fit(module, prompts(tmp_path), tmp_path).global_step == 2
    told = [record.getMessage() for record in caplog.records if "is left to train on" in record.getMessage()]
    said = "no response is left to train on: Leaves.prepare left out those to all 4 prompts of a rollout, whose steps"
    assert [line.partition(" change")[0] for line in told] == ([] if left == "all" else [said]), "once"


@pytest.mark.parametrize("known", [True, False])
def test_batches_of_another_kind(known: bool, tiny_model: Path, tmp_path: Path) -> None:
    module, data = SFT(ModelSpec(str(tiny_model))), Tensors()
    options = {"datamodule": data} if known else {"train_dataloaders": data.train_dataloader()}
    told = "Tensors" if known else "the data loader"
    with pytest.raises(PostTrainError, match=f"{told} makes batches of type Tensor, and SFT takes TreeBatch: inherit"):
        trainer(tmp_path, FiniteLossGuard()).fit(module, **options)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("mood", "good", 1), "the total of mood has the type str; pass the sum of its values as a scalar tensor"),
        (("mood", torch.zeros(3), 3), r"the total of mood has the shape \(3,\)"),
        (("mood", 1.0, 1), "the total of mood has the type float"),
        (("mood", torch.zeros(()), None), "the count of mood has the type NoneType"),
        ((3, torch.zeros(()), 1), "the name of a metric is 3"),
    ],
)
def test_a_metric_that_is_no_sum(values: Any, said: str, tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match=said):
        SFT(ModelSpec(str(tiny_model))).track(*values)


def test_a_step_of_ones_own(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"Steps\.training_step \(.*:\d+\) replaces the one that divides"):
        trainer(tmp_path).fit(Steps(ModelSpec(str(tiny_model))), datamodule=conversation_files(tmp_path))
    module = Timed(ModelSpec(str(tiny_model)))
    trainer(tmp_path, max_steps=1).fit(module, datamodule=conversation_files(tmp_path))
    assert module.steps


def test_a_state_that_is_no_dict(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"Listed\.state_dict \(.*:\d+\) returned list; let it return a dict"):
        trainer(tmp_path, Listed()).fit(SFT(ModelSpec(str(tiny_model))), datamodule=conversation_files(tmp_path))


def test_a_misspelt_hook(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match="nothing calls it; did you mean on_fit_end"):
        trainer(tmp_path, Ended()).fit(SFT(ModelSpec(str(tiny_model))), datamodule=conversation_files(tmp_path))
