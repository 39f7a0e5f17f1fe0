"""KTO beyond its loss: a baseline over the whole step, a pairing fixed in the data, labels of every kind of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from cases import comparisons
from helpers.runs import quiet_trainer, write

from lit_posttrain import KTO, ModelSpec, PostTrainError, PreferenceData, Response, Tree
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.data.store.kl_pairs import KLPairs, prompts_differ
from lit_posttrain.data.store.loader import EvalLoader, StepLoader
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.types import RowLayout


def good(rows: int) -> list[Tree]:
    """Good responses alone, so that the policy moves towards responses in general and z_0 above 0."""
    return [Tree(t.prompt, t.responses[:1]) for t in comparisons(rows)]


class Steps(pl.LightningDataModule):
    """Four optimizer steps."""

    def __init__(self, accumulate: int) -> None:
        super().__init__()
        self.accumulate, self.store = accumulate, MemoryTrees(good(32))

    def train_dataloader(self) -> StepLoader:
        pairs = {"kl_pairs": KLPairs(self.store, 512)}
        return StepLoader(self.store, batch_size=8, accumulate=self.accumulate, auxiliary=pairs)

    def val_dataloader(self) -> list[EvalLoader]:
        other = MemoryTrees(good(9)[1:])
        return [EvalLoader(other, batch_size=8, auxiliary={"kl_pairs": KLPairs(other, 512)})]


class Logged(pl.Callback):
    """What a step logged."""

    def __init__(self) -> None:
        self.kl: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.kl):
            self.kl.append(float(trainer.callback_metrics["train/kl"]))


def weights_after(model: Path, accumulate: int, **options: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    module = KTO(
        ModelSpec(str(model), dtype="float64"),
        Optim(lr=0.3, optimizer="SGD", schedule="constant", warmup_ratio=0.0),
        beta=0.5,
    )
    logged = Logged()
    trainer = quiet_trainer(
        logged,
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module, datamodule=Steps(accumulate))
    assert trainer.global_step == 4
    return module.state_dict(), logged.kl


def test_micro_batches_do_not_change_where_training_ends(tiny_model: Path) -> None:
    """At the first step the policy is the reference and z_0 is 0: only later ones show it."""
    whole, kl = weights_after(tiny_model, 1)
    # a validation in the middle of a step measures a baseline of its own
    parts, again = weights_after(tiny_model, 4, val_check_interval=6, num_sanity_val_steps=0)
    assert min(kl[1:]) > 0.1, kl
    assert again == pytest.approx(kl, rel=1e-6)  # logged in float32
    assert max(float((whole[name] - parts[name]).abs().max()) for name in whole) < 1e-9


def test_every_prompt_has_a_response_to_another_one() -> None:
    tokens = [[1, 2], [1, 2], [3, 4], [5]]
    trees = [
        Tree(np.array(t, np.int32), [Response(np.full(n, 7 + n, np.int32), np.ones(n, np.bool_), {"good": 1.0})])
        for n, t in enumerate(tokens, 3)
    ]
    pairing = KLPairs(MemoryTrees(trees), max_length=6)
    assert [int(pairing[i].responses[0].tokens[0]) for i in range(4)] == [12, 12, 10, 10]
    assert all(pairing[i].responses[0].labels == {} for i in range(4))
    assert [len(pairing[i].prompt) for i in range(4)] == [1, 1, 2, 1]  # the first are cut: no response near is short
    alike = KLPairs(MemoryTrees(trees[:2]), max_length=7)
    assert not prompts_differ(alike.store)
    assert not alike[0].responses[0].loss_mask.any(), "which adds nothing to z_0"


def test_rows_that_all_ask_the_same_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "why", "completion": f"so {i}", "label": i % 2 > 0} for i in range(4)]
    data = PreferenceData(write(tmp_path / "same.jsonl", rows), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(PostTrainError, match=r"same\.jsonl: all rows have the same prompt, and KTO compares"):
        quiet_trainer(max_steps=1).fit(KTO(ModelSpec(str(tiny_model))), datamodule=data)


def test_who_is_good_by_pairs_rankings_and_soft_labels() -> None:
    def tree(*labels: dict[str, float]) -> Tree:
        said = [Response(np.array([7, 8], np.int32), np.ones(2, np.bool_), known) for known in labels]
        return Tree(np.array([1], np.int32), said)

    trees = [
        tree({"rank": 0, "margin": 2.0}, {"rank": 1, "flip_prob": 0.25}),
        tree({"good": 0.0}),
        tree({"rank": 1}, {"rank": 0}, {"rank": 2}),
        tree({}),
    ]
    batch = collate(trees, RowLayout(), {})
    expected = torch.tensor([0.75, 0.25, 0.0, torch.nan, 1.0, 0.0, torch.nan])
    torch.testing.assert_close(batch.desirable, expected, equal_nan=True)
    assert batch.local_count("labelled") == 5 == MemoryTrees(trees).units["labelled"].sum()


def test_mistakes_are_said_before_training(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "what", "completion": "a fox", "label": "perhaps"}) + "\n")
    with pytest.raises(PostTrainError, match=r"rows.jsonl:1: `label` is 'perhaps', neither good nor bad"):
        PreferenceData(str(file), cache_dir=str(tmp_path / "cache")).build(tokenizer)
    with pytest.raises(PostTrainError, match=r"--model\.beta is 0"):
        KTO(ModelSpec(str(tiny_model)), beta=0)
