"""Losses and gradients of the preference methods beside TRL's own, on one batch of unequal lengths in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny

from lit_posttrain import (
    DPO,
    KTO,
    ORPO,
    ModelSpec,
    PostTrainingModule,
    Response,
    RewardModel,
    SimPO,
    Tree,
    TreeBatch,
)
from lit_posttrain.core.terms import loss_of
from lit_posttrain.data.store.loader import step_denominators
from lit_posttrain.data.store.packing import collate
from lit_posttrain.data.store.writer import TreeStoreWriter
from lit_posttrain.types import RowLayout

RELATIVE = 1e-4
GOOD = [True, False, False, True]
MARGINS = [0.5, 0.0, 2.0, 1.0]
PAIRS = [
    ("what is 3 plus 3", " it is 6", " seven"),
    ("the quick brown fox", " jumps over the lazy dog", " is one of seven wizards that brew strong potions at night"),
    ("question", " answer", " no"),
    ("how many are there in it", " 1 2 3 4 5 6 7 8 9", " nine ten and eleven"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a reference and of a policy that has moved away from it."""
    folder = tmp_path_factory.mktemp("parity")
    return tiny.save_model(folder / "reference", seed=1), tiny.save_model(folder / "policy", seed=2)


def causal(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def scorer(folder: Path) -> Any:
    """A sequence classifier with a head drawn by a fixed seed."""
    from transformers import AutoModelForSequenceClassification

    made = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        drawn = torch.randn(made.score.weight.shape, generator=torch.Generator().manual_seed(5))
        made.score.weight.copy_(drawn * 0.1)  # small scores: the centring must not drown the rest
    return made


def trl_side(kind: str, models: tuple[Path, Path], out: Path, options: dict[str, Any]) -> tuple[float, Any, Any]:
    """TRL's loss, its model with gradients, and its batch."""
    from datasets import Dataset

    rows: list[dict[str, Any]] = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    if kind == "reward":  # whole texts, and how much better the chosen one is
        rows = [{"chosen": p + c, "rejected": p + r, "margin": m} for (p, c, r), m in zip(PAIRS, MARGINS, strict=True)]
    if kind == "kto":
        rows = [
            {"prompt": p, "completion": c if good else r, "label": good}
            for (p, c, r), good in zip(PAIRS, GOOD, strict=True)
        ]
    data = Dataset.from_list(rows)
    common = {
        "output_dir": str(out),
        "per_device_train_batch_size": len(PAIRS),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        **options,
    }
    arguments: dict[str, Any] = {
        "model": scorer(models[1]) if kind == "reward" else causal(models[1]),
        "train_dataset": data,
        "processing_class": tiny.tokenizer(),
    }
    if kind == "dpo":
        from trl import DPOConfig, DPOTrainer

        trainer: Any = DPOTrainer(ref_model=causal(models[0]), args=DPOConfig(**common), **arguments)
    elif kind == "kto":
        from trl import KTOConfig, KTOTrainer

        trainer = KTOTrainer(ref_model=causal(models[0]), args=KTOConfig(**common), **arguments)
    elif kind == "reward":
        from trl import RewardConfig, RewardTrainer

        trainer = RewardTrainer(args=RewardConfig(**common), **arguments)
    elif kind == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        trainer = ORPOTrainer(args=ORPOConfig(**common), **arguments)
    else:
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        trainer = CPOTrainer(args=CPOConfig(**common), **arguments)
    trainer.model.eval()  # no dropout anywhere; the tiny model has none
    inputs = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return float(loss), trainer.model, inputs


def sequences(kind: str, inputs: Any) -> list[tuple[list[int], int]]:
    """(tokens, prompt tokens) of the chosen and then the rejected sides, as TRL laid them out."""
    if kind == "dpo":
        ids, mask, completion = (inputs[k] for k in ("input_ids", "attention_mask", "completion_mask"))
        marked = [(i[m.bool()].tolist(), c[m.bool()].tolist()) for i, m, c in zip(ids, mask, completion, strict=True)]
        return [(tokens, marks.index(1)) for tokens, marks in marked]
    if kind == "reward":
        rows = [
            ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        both = zip(rows[: len(PAIRS)], rows[len(PAIRS) :], strict=True)
        same = [[a == b for a, b in zip(w, r, strict=False)] for w, r in both]
        return list(zip(rows, [marks.index(False) for marks in same] * 2, strict=True))
    found = []
    for side in ("chosen", "rejected"):
        for ids, mask, labels in zip(
            *(inputs[f"{side}_{k}"] for k in ("input_ids", "attention_mask", "labels")), strict=True
        ):
            keep = mask.bool()
            found.append((ids[keep].tolist(), (labels[keep] != -100).tolist().index(True)))
    return found


def batch_of(kind: str, inputs: Any, folder: Path, whole: bool = False) -> TreeBatch:
    """The same tokens as trees. whole: the chosen response's prompt is trained on, too (TRL's ORPO)."""
    rows = sequences(kind, inputs)
    trees = []
    margins = inputs["margin"].tolist() if kind == "reward" else [0.0] * len(PAIRS)
    for (chosen, cut), (rejected, other), margin in zip(rows[: len(PAIRS)], rows[len(PAIRS) :], margins, strict=True):
        assert chosen[:cut] == rejected[:other]
        sides = [
            Response(np.array(ids[cut:], np.int32), np.ones(len(ids) - cut, np.bool_), labels)
            for ids, labels in ((chosen, {"rank": 0.0, "margin": margin}), (rejected, {"rank": 1.0}))
        ]
        trees.append(Tree(np.array(chosen[:cut], np.int32), sides, np.ones(cut, np.bool_) if whole else None))
    with TreeStoreWriter(folder / "store") as writer:
        for tree in trees:
            writer.append(tree)
        store = writer.finish()
    return collate(trees, RowLayout(), step_denominators(store, range(len(trees))))


def our_side(make: Callable[[ModelSpec], PostTrainingModule], models: tuple[Path, Path], batch: TreeBatch) -> Any:
    """Our loss, and the module with gradients. The policy is built on the reference and then moved."""
    module = make(ModelSpec(str(models[0])))
    module.configure_model()
    assert module.policy is not None
    moved = scorer(models[1]) if module.head == "score" else causal(models[1])
    module.policy.transformer.load_state_dict(moved.state_dict())
    loss = loss_of(module.loss_terms(batch), batch.denominators)
    loss.backward()
    return float(loss), module.policy.transformer


def assert_same(ours: tuple[float, Any], theirs: tuple[float, Any]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=RELATIVE)
    pairs = zip(ours[1].named_parameters(), theirs[1].named_parameters(), strict=True)
    for (name, mine), (_, other) in pairs:
        distance = float((mine.grad - other.grad).norm() / other.grad.norm())
        assert distance <= RELATIVE, (name, distance)


DPO_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({"loss_type": ["sigmoid"]}, {}),
    "hinge": ({"loss_type": ["hinge"]}, {"loss": "hinge"}),
    "ipo": ({"loss_type": ["ipo"]}, {"loss": "ipo"}),
    "robust": ({"loss_type": ["robust"], "label_smoothing": 0.2}, {"loss": "robust", "label_smoothing": 0.2}),
    "apo_zero": ({"loss_type": ["apo_zero"]}, {"loss": "apo_zero"}),
    "apo_down": ({"loss_type": ["apo_down"]}, {"loss": "apo_down"}),
    "sigmoid + sft": (
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
        {"sft_weight": 0.7},
    ),
    "length-desensitised": ({"loss_type": ["sigmoid"], "ld_alpha": 0.3}, {"ld_alpha": 0.3}),
}


@pytest.mark.parametrize("case", DPO_CASES)
def test_dpo_equals_trl(case: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    theirs, ours = DPO_CASES[case]
    loss, model, inputs = trl_side("dpo", models, tmp_path, {"beta": 0.3, **theirs})
    batch = batch_of("dpo", inputs, tmp_path)
    assert_same(our_side(lambda spec: DPO(spec, beta=0.3, **ours), models, batch), (loss, model))


def test_orpo_equals_trl_when_the_prompt_counts(models: tuple[Path, Path], tmp_path: Path) -> None:
    """TRL's likelihood covers prompt and response, token by token."""
    loss, model, inputs = trl_side("orpo", models, tmp_path, {"beta": 0.4})
    batch = batch_of("orpo", inputs, tmp_path, whole=True)
    assert_same(our_side(lambda spec: ORPO(spec, beta=0.4, nll_per="token"), models, batch), (loss, model))


def test_simpo_equals_trl(models: tuple[Path, Path], tmp_path: Path) -> None:
    options = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 1.7, "simpo_gamma": 0.4}
    loss, model, inputs = trl_side("cpo", models, tmp_path, options)
    batch = batch_of("cpo", inputs, tmp_path)
    assert_same(our_side(lambda spec: SimPO(spec, beta=1.7, gamma=0.4), models, batch), (loss, model))


@pytest.mark.parametrize("loss", ["bradley_terry", "all_pairs"])
def test_reward_model_with_margins_and_centring_equals_trl(
    loss: Any, models: tuple[Path, Path], tmp_path: Path
) -> None:
    found, model, inputs = trl_side("reward", models, tmp_path, {"center_rewards_coefficient": 0.2})
    batch = batch_of("reward", inputs, tmp_path)
    make = lambda spec: RewardModel(spec, loss=loss, center_rewards_coefficient=0.2)  # noqa: E731  # read in one line with the above
    assert_same(our_side(make, models, batch), (found, model))


@pytest.mark.parametrize("nearer", [False, True])
def test_kto_equals_trl_at_one_micro_batch(nearer: bool, models: tuple[Path, Path], tmp_path: Path) -> None:
    """With the prompts and the responses to other prompts that TRL paired: it measures z_0 on its micro-batch."""
    models = models[::-1] if nearer else models  # z_0 is positive one way and cut off at 0 the other way
    beta, desirable, undesirable = 0.3, 1.5, 0.8
    options = {"beta": beta, "desirable_weight": desirable, "undesirable_weight": undesirable}
    loss, model, inputs = trl_side("kto", models, tmp_path, options)

    def rows(prefix: str) -> list[tuple[list[int], int]]:
        ids, mask, completion = (inputs[prefix + k] for k in ("input_ids", "attention_mask", "completion_mask"))
        found = [(i[m.bool()].tolist(), c[m.bool()].tolist()) for i, m, c in zip(ids, mask, completion, strict=True)]
        return [(tokens, marks.index(1)) for tokens, marks in found]

    def trees(prefix: str, labels: list[dict[str, float]]) -> list[Tree]:
        found = []
        for (tokens, cut), known in zip(rows(prefix), labels, strict=True):
            said = Response(np.array(tokens[cut:], np.int32), np.ones(len(tokens) - cut, np.bool_), known)
            found.append(Tree(np.array(tokens[:cut], np.int32), [said]))
        return found

    labels = [{"good": float(good)} for good in inputs["label"]]
    assert {known["good"] for known in labels} == {0.0, 1.0}
    batch = collate(trees("", labels), RowLayout(), {"labelled": float(len(labels))})
    batch.extras = {"kl_pairs": [collate(trees("KL_", [{}] * len(labels)), RowLayout(), {})]}
    made: list[KTO] = []

    def make(spec: ModelSpec) -> KTO:
        made.append(KTO(spec, beta=beta, desirable_weight=desirable, undesirable_weight=undesirable))
        return made[0]

    assert_same(our_side(make, models, batch), (loss, model))
    assert (float(made[0]._moved) > 0.1) is nearer
