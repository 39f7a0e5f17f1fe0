"""LoRA, DoRA and rsLoRA: what they compute, written out, and what a checkpoint of them may be read as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, conversation_files
from helpers.runs import quiet_trainer
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lit_posttrain import LoRASpec, ModelSpec, PostTrainError
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.models.loading import build_policy
from lit_posttrain.models.restore import restore

VOCABULARY = 400


@pytest.mark.parametrize(
    ("spec", "scale"),
    [
        (LoRASpec(r=4), 2.0),
        (LoRASpec(r=64), 2.0),
        (LoRASpec(r=4, rslora=True), 4.0),
        (LoRASpec(r=16, rslora=True), 2.0),
        (LoRASpec(r=64, rslora=True), 1.0),
        (LoRASpec(r=4, alpha=6, rslora=True), 3.0),
        (LoRASpec(r=4, alpha=6), 1.5),
    ],
)
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapted_layer_written_out(spec: LoRASpec, scale: float, dora: bool, tiny_model: Path) -> None:
    """LoRA: (W + scale BA) x. DoRA: the rows of that matrix made as long as the magnitudes say (its equation 5)."""
    spec.dora = dora
    policy = build_policy(ModelSpec(str(tiny_model), lora=spec), VOCABULARY).eval()
    layer: Any = policy.transformer.model.layers[0].mlp.up_proj
    torch.manual_seed(0)
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(5, 64)
    with torch.no_grad():
        actual: Tensor = layer(x)
        whole = layer.base_layer.weight + scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        if dora:
            whole *= (layer.lora_magnitude_vector["default"].weight / whole.norm(dim=1))[:, None]
    torch.testing.assert_close(actual, x @ whole.T, atol=1e-4, rtol=1e-5)


def trained(lora: LoRASpec, model: Path, folder: Path, steps: int) -> None:
    last = folder / "last.ckpt"
    trainer = quiet_trainer(
        LastCheckpoint(every_n_steps=1),
        max_steps=steps,
        default_root_dir=folder,
    )
    module = build("sft", model, lora=lora)
    trainer.fit(module, datamodule=conversation_files(folder), ckpt_path=str(last) if last.exists() else None)


def test_a_checkpoint_of_before_these_fields(tiny_model: Path, tmp_path: Path) -> None:
    trained(LoRASpec(r=4), tiny_model, tmp_path, 1)
    before = restore(str(tmp_path)).model.state_dict()
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name in ("dora", "rslora"):
        del checkpoint["lit_posttrain"]["policy"]["lora"][name]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    again = restore(str(tmp_path))
    assert again.spec.lora == LoRASpec(r=4)
    assert all(torch.equal(weight, before[name]) for name, weight in again.model.state_dict().items())
    trained(LoRASpec(r=4), tiny_model, tmp_path, 2)


@pytest.mark.parametrize(
    ("saved", "now", "advice"),
    [
        (LoRASpec(r=4, dora=True), LoRASpec(r=4), "pass --model.policy.lora.dora true"),
        (LoRASpec(r=4), LoRASpec(r=4, alpha=8, rslora=True), "pass --model.policy.lora.rslora false"),
        (LoRASpec(r=4), LoRASpec(r=4, alpha=16), "with alpha 8 and this run has alpha 16"),
    ],
)
def test_adapters_resume_as_they_were_trained(
    saved: LoRASpec, now: LoRASpec, advice: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The same weights would be read as another model."""
    trained(saved, tiny_model, tmp_path, 1)
    with pytest.raises(PostTrainError, match=advice):
        trained(now, tiny_model, tmp_path, 2)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_without_adapters_are_named(
    kind: str, targets: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"hidden_size": 32, "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2}
    config = CONFIG_MAPPING[kind](vocab_size=512, intermediate_size=32, num_experts_per_tok=2, **small, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    policy = build_policy(ModelSpec(str(tmp_path), lora=LoRASpec(r=4, target_modules=targets)), VOCABULARY)
    adapted = any("experts" in name and parameter.requires_grad for name, parameter in policy.named_parameters())
    assert ("leave the experts as they are" in caplog.text) is not adapted
