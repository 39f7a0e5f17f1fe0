"""What weights are in memory: float32 where they are trained, a frozen base in what the run computes in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import METHODS, build
from helpers.runs import quiet_trainer
from transformers import AutoModelForCausalLM

from lit_posttrain import LoRASpec, ModelSpec, PostTrainError, PostTrainingModule
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.inference.export import export_checkpoint
from lit_posttrain.models.loading import build_policy, build_scorer
from lit_posttrain.models.pretrained import _with_new_head
from lit_posttrain.models.restore import restore

LORA = LoRASpec(r=4)


def fitted(method: str, model: Path, folder: Path, precision: str, steps: int = 1, **spec: Any) -> PostTrainingModule:
    last = folder / "last.ckpt"
    module = build(method, model, **spec)
    trainer = quiet_trainer(
        LastCheckpoint(every_n_steps=1),
        max_steps=steps,
        precision=precision,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=METHODS[method].data(folder), ckpt_path=str(last) if last.exists() else None)
    return module


def types(module: PostTrainingModule) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Of frozen and of trained weights."""
    # peft keeps the score head from before beside the one that it trains
    parameters = [p for name, p in module.named_parameters() if "original_module" not in name]
    return tuple({p.dtype for p in parameters if p.requires_grad is trained} for trained in (False, True))  # type: ignore[return-value]  # two


@pytest.mark.parametrize(
    ("precision", "spec", "frozen"),
    [
        ("bf16-mixed", {"lora": LORA}, {torch.bfloat16}),
        ("32-true", {"lora": LORA}, {torch.float32}),
        ("bf16-mixed", {"lora": LORA, "dtype": "float32"}, {torch.float32}),
        ("bf16-mixed", {}, set()),
    ],
    ids=["mixed", "true", "said", "all weights"],
)
@pytest.mark.parametrize("method", ["sft", "dpo", "reward", "ppo"])
def test_what_auto_means(
    method: str, precision: str, spec: dict[str, Any], frozen: set[torch.dtype], tiny_model: Path, tmp_path: Path
) -> None:
    """What is trained is float32 always, score and value heads too."""
    found = types(fitted(method, tiny_model, tmp_path, precision, **spec))
    assert found == (frozen, {torch.float32})


def test_four_bits_are_unpacked_to_what_is_computed_in(tiny_model: Path, tmp_path: Path) -> None:
    module = fitted("sft", tiny_model, tmp_path, "bf16-mixed", lora=LORA, quantization="nf4")
    assert module.policy is not None
    (kind,) = {
        m.compute_dtype for m in module.policy.modules() if hasattr(m, "quant_state") and hasattr(m, "compute_dtype")
    }
    assert kind == torch.bfloat16
    assert module.policy.transformer.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_the_reference_is_the_policy_without_its_adapters(
    quantization: str | None, tiny_model: Path, tmp_path: Path
) -> None:
    module = fitted("dpo", tiny_model, tmp_path, "bf16-mixed", lora=LORA, quantization=quantization)
    told = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    assert told["train/rewards/chosen"] == told["train/rewards/rejected"] == told["train/kl/batch"] == 0


def test_what_is_restored_and_exported_is_what_was_trained(tiny_model: Path, tmp_path: Path) -> None:
    """The base is rounded to bfloat16 as it was in training, and the merged weights are not rounded again."""
    fitted("sft", tiny_model, tmp_path, "bf16-mixed", steps=3, lora=LORA)
    restored = restore(str(tmp_path))
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    weight = plain.model.layers[0].mlp.up_proj.weight
    held = restored.policy.transformer.model.layers[0].mlp.up_proj.base_layer.weight
    assert torch.equal(held, weight.bfloat16().float())
    assert not torch.equal(held, weight)
    export_checkpoint(str(tmp_path), str(tmp_path / "out"))
    tokens = torch.arange(3, 43)[None]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.dtype == torch.float32
    torch.testing.assert_close(
        exported(tokens).logits, restored.policy.transformer(tokens).logits, atol=1e-5, rtol=1e-5
    )


def test_adapters_go_on_over_the_base_that_they_were_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    fitted("sft", tiny_model, tmp_path, "bf16-mixed", lora=LORA)
    with pytest.raises(
        PostTrainError, match=r"base in bfloat16 and this run has it in float32: pass --model.policy.dtype"
    ):
        fitted("sft", tiny_model, tmp_path, "32-true", steps=2, lora=LORA)
    fitted("sft", tiny_model, tmp_path, "32-true", steps=2, lora=LORA, dtype="bfloat16")


def test_a_new_score_head_is_the_same_on_every_device(tiny_model: Path) -> None:
    """Lightning opens the device's context around the building of a model; it must not reach the draw."""
    expected = build_scorer(ModelSpec(str(tiny_model)), 400).transformer.score.weight
    model = SimpleNamespace(score=torch.nn.Linear(64, 1, bias=False))
    with torch.device("meta"):
        _with_new_head(model)
    assert torch.equal(model.score.weight, expected)


def test_directly_built_models_are_float32(tiny_model: Path) -> None:
    assert build_policy(ModelSpec(str(tiny_model), lora=LORA), 400).transformer.dtype == torch.float32
