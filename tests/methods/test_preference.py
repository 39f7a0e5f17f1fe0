"""Preference methods beyond their losses: references that agree and stay put, rankings, soft labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from cases import comparisons
from helpers.runs import quiet_trainer, write

from lit_posttrain import (
    DPO,
    KTO,
    ORPO,
    LoRASpec,
    ModelSpec,
    PostTrainError,
    PreferenceData,
    Response,
    RewardModel,
    SimPO,
    Tree,
    TreeBatch,
)
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.preference import PreferenceModule
from lit_posttrain.core.terms import loss_of
from lit_posttrain.data.formats.comparisons import PreferenceColumns
from lit_posttrain.data.store.loader import StepLoader
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.types import RowLayout

STEPS = 10


class Pairs(pl.LightningDataModule):
    """Random pairs, ten optimizer steps of them."""

    def train_dataloader(self) -> StepLoader:
        return StepLoader(MemoryTrees(comparisons(4 * STEPS)), batch_size=4)


class Losses(pl.Callback):
    """The logged loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if "train/loss" in trainer.callback_metrics:
            self.values.append(float(trainer.callback_metrics["train/loss"]))


def run(spec: ModelSpec, folder: Path, **options: Any) -> tuple[DPO, list[float]]:
    torch.manual_seed(0)
    losses = Losses()
    module = DPO(spec, Optim(lr=1e-2, weight_decay=0.01, warmup_ratio=0.0), **options)
    trainer = quiet_trainer(
        losses,
        LastCheckpoint(every_n_steps=STEPS),
        max_epochs=1,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=Pairs())
    assert trainer.global_step == STEPS
    return module, losses.values


@pytest.mark.parametrize("lora", [LoRASpec(r=4), LoRASpec(r=4, dora=True), LoRASpec(r=4, dora=True, rslora=True)])
def test_adapter_off_and_a_copy_are_the_same_reference(lora: LoRASpec, tiny_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(str(tiny_model), lora=lora)
    (off, off_losses), (copied, copied_losses) = (
        run(spec, tmp_path / reference, reference=reference) for reference in ("adapter_off", "copy")
    )
    assert off.reference.kind == "adapter_off"
    assert off_losses == pytest.approx(copied_losses, abs=1e-5)
    assert off_losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert max(abs(loss - np.log(2)) for loss in off_losses) > 0.01, "the policy moved away from the reference"
    for (name, one), (_, other) in zip(off.named_parameters(), copied.named_parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5), name


def test_the_copy_stays_as_it_was_and_out_of_checkpoints(tiny_model: Path, tmp_path: Path) -> None:
    module, _ = run(ModelSpec(str(tiny_model)), tmp_path)
    assert module.reference.kind == "copy"
    fresh = DPO(ModelSpec(str(tiny_model)))
    fresh.configure_model()
    assert fresh.policy is not None
    frozen = module.frozen_weights["reference"]
    for one, other in zip(frozen, fresh.policy.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {f"policy.{name}" for name in fresh.policy.state_dict()}


def ranking(ranks: list[float]) -> list[Tree]:
    draw = np.random.default_rng(0)
    responses = [
        Response(draw.integers(3, 400, 2 + k).astype(np.int32), np.ones(2 + k, np.bool_), {"rank": rank})
        for k, rank in enumerate(ranks)
    ]
    return [Tree(draw.integers(3, 400, 5).astype(np.int32), responses)]


def dpo_loss(tiny_model: Path, trees: list[Tree], **options: Any) -> float:
    """The loss of a policy that differs from its reference."""
    module = DPO(ModelSpec(str(tiny_model)), **options)
    module.configure_model()
    assert module.policy is not None
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    count = sum(a.label("rank") < b.label("rank") for t in trees for a in t.responses for b in t.responses)
    batch: TreeBatch = collate(trees, RowLayout(), {"pairs": float(max(count, 1)), "trees": float(len(trees))})
    return float(loss_of(module.loss_terms(batch), batch.denominators))


def test_two_ranked_responses_are_a_pair(tiny_model: Path) -> None:
    ranked = ranking([0, 1])
    kwise = dpo_loss(tiny_model, ranked, loss="plackett_luce")
    assert kwise == pytest.approx(dpo_loss(tiny_model, ranked), abs=1e-6)


def test_rankings_are_all_their_pairs_or_one_order(tiny_model: Path) -> None:
    assert dpo_loss(tiny_model, ranking([1, 0, 2, 0])) != pytest.approx(dpo_loss(tiny_model, ranking([0, 1, 2, 0])))
    kwise = dpo_loss(tiny_model, ranking([1, 0, 2, 0]), loss="plackett_luce")
    assert np.isfinite(kwise)


def test_a_soft_label_is_a_mixture_of_both_orders(tiny_model: Path) -> None:
    def pair(flip_prob: float, swapped: bool = False) -> list[Tree]:
        (tree,) = ranking([0, 1])
        first, second = tree.responses[::-1] if swapped else tree.responses
        first.labels, second.labels = {"rank": 0.0}, {"rank": 1.0, "flip_prob": flip_prob}
        return [tree]

    for loss in ("sigmoid", "hinge", "ipo", "apo_zero", "apo_down"):
        right, wrong = (dpo_loss(tiny_model, pair(0.0, swapped), loss=loss) for swapped in (False, True))
        assert dpo_loss(tiny_model, pair(0.3), loss=loss) == pytest.approx(0.7 * right + 0.3 * wrong, rel=1e-5)
    smooth = dpo_loss(tiny_model, pair(0.0), loss="conservative", label_smoothing=0.3)
    assert dpo_loss(tiny_model, pair(0.3)) == pytest.approx(smooth, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "--model.beta is 0.0"),
        ({"label_smoothing": 0.6, "loss": "robust"}, "label_smoothing is 0.6"),
        ({"loss": "robust"}, "conservative and robust need it"),
        ({"label_smoothing": 0.1}, "no other loss uses it"),
        ({"ld_alpha": 2.0}, "--model.ld_alpha"),
        ({"reference": "adapter_off"}, "there is no adapter"),
    ],
)
def test_options_that_make_no_sense(tiny_model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PostTrainError, match=message):
        DPO(ModelSpec(str(tiny_model)), **options)


def test_random_weights_are_no_reference(tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match="random_init"):
        DPO(ModelSpec(str(tiny_model), random_init=True))


@pytest.mark.parametrize("method", [DPO, SimPO, ORPO, KTO, RewardModel])
def test_margins_that_nothing_learns_from_are_told(
    method: type[PreferenceModule], tiny_model: Path, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [{"prompt": f"what is {i}", "chosen": "a fox", "rejected": "no", "by": i} for i in range(4)]
    columns = PreferenceColumns(margin="by")
    data = PreferenceData(write(tmp_path / "pairs.jsonl", pairs), columns=columns, cache_dir=str(tmp_path / "cache"))
    data.build(tokenizer, 256)
    method(ModelSpec(str(tiny_model))).check_data(data)
    told = f"the data has margins, which {method.__name__} does not use: of the methods here RewardModel alone does"
    assert (told in caplog.text) == (method is not RewardModel)
    zeros = [{**pair, "by": 0} for pair in pairs]
    data = PreferenceData(write(tmp_path / "zeros.jsonl", zeros), columns=columns, cache_dir=str(tmp_path / "cache"))
    data.build(tokenizer, 256)
    caplog.clear()
    method(ModelSpec(str(tiny_model))).check_data(data)
    assert caplog.text == ""
