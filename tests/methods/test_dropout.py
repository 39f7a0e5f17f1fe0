"""A model's own dropout while it trains: on in SFT, off where log-probabilities or scores are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import METHODS, build, vowels
from helpers import tiny
from helpers.runs import quiet_trainer
from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, AutoModelForCausalLM

from lit_posttrain import GRPO, LoRASpec, ModelSpec, RolloutConfig
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.methods.ppo import PPO
from lit_posttrain.models.architectures import PROVEN
from lit_posttrain.models.loading import build_policy, build_scorer
from lit_posttrain.models.restore import restore
from lit_posttrain.on_policy.critics import Critic
from lit_posttrain.rewards import FunctionReward, Repetition

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}
SPECIFIC: dict[str, dict[str, Any]] = {"gptj": {"rotary_dim": 8}, "gpt_neo": NEO}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with its own dropout: 0.1 on embeddings, attention and residuals."""
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def varies(model: Any) -> bool:
    """Whether two forward passes in training differ."""
    tokens = torch.arange(3, 43)[None]
    torch.manual_seed(0)
    first, second = (model.train().base_model(input_ids=tokens).last_hidden_state for _ in range(2))
    return not torch.equal(first, second)


@pytest.mark.parametrize("method", METHODS)
def test_the_default_of_every_method(method: str, gpt2: Path) -> None:
    module = build(method, gpt2)
    module.configure_model()
    assert module.policy is not None
    assert varies(module.policy.transformer) is (method == "sft")


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("dropout", [True, False])
def test_the_option(method: str, dropout: bool, gpt2: Path) -> None:
    module = build(method, gpt2, dropout=dropout)
    module.configure_model()
    assert module.policy is not None
    assert varies(module.policy.transformer) is dropout


def test_a_critic_has_the_default_too(gpt2: Path) -> None:
    module = PPO(ModelSpec(str(gpt2)), [Repetition()], critic=Critic(model=ModelSpec(str(gpt2))))
    module.configure_model()
    assert module.critics.models
    assert not varies(module.critics.models["reward"].transformer)


# what their files read a rate from: dropout layers, numbers in modules, the config at every forward; a router's noise
KINDS = sorted({*PROVEN, "falcon", "gptj", "gpt_neo", "persimmon", "opt", "bloom", "phi", "stablelm", "olmoe"})


@pytest.mark.parametrize("kind", KINDS)
def test_no_rate_of_an_architecture_is_left(kind: str, tmp_path: Path) -> None:
    values = {**SMALL, **SPECIFIC.get(kind, {})}
    if kind in ("falcon", "gpt_neo"):
        values = {name: value for name, value in values.items() if name not in ("head_dim", "num_hidden_layers")}
    config = CONFIG_MAPPING[kind](**values)
    rates = [n for n, v in vars(config).items() if isinstance(v, float) and ("drop" in n or "jitter" in n)]
    for name in rates:
        setattr(config, name, 0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    scored = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    for each in [build_policy, build_scorer] if scored else [build_policy]:
        spec = ModelSpec(str(tmp_path), attention="eager")
        assert varies(each(replace(spec, dropout=True), 400).transformer) is bool(rates)
        assert not varies(each(replace(spec, dropout=False), 400).transformer)


def test_a_router_that_samples_in_training_routes_as_in_evaluation(tmp_path: Path) -> None:
    """PhiMoE's reads its jitter in evaluation too: experts that are nearly as good share a token."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING["phimoe"](**SMALL, router_jitter_noise=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokens = torch.arange(3, 43)[None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    expected = plain(input_ids=tokens).logits
    model = build_policy(ModelSpec(str(tmp_path), dropout=False), 400).transformer
    assert model.training
    torch.testing.assert_close(model(input_ids=tokens).logits, expected)
    assert varies(build_policy(ModelSpec(str(tmp_path), dropout=True), 400).transformer)


@pytest.mark.parametrize("lora", [None, LoRASpec(r=4, dropout=0.3)])
@pytest.mark.parametrize("method", ["dpo", "grpo", "ppo"])
def test_a_policy_that_equals_its_reference_is_at_no_distance(
    method: str, lora: LoRASpec | None, gpt2: Path, tmp_path: Path
) -> None:
    """Exactly: the same weights, the same arithmetic. Fresh adapters change nothing whatever is dropped before them."""
    trainer = quiet_trainer(max_steps=1, log_every_n_steps=1, default_root_dir=tmp_path)
    module = build(method, gpt2, lora=lora)
    if method == "grpo":  # responses that are cut off count, here they all are
        rollout = RolloutConfig(group_size=3, max_new_tokens=8)
        module = GRPO(module.model_spec, [FunctionReward(vowels)], rollout=rollout, beta=0.1)
    trainer.fit(module, datamodule=METHODS[method].data(tmp_path))
    told = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if method == "dpo":
        assert told["train/rewards/margins"] == told["train/rewards/chosen"] == told["train/kl/batch"] == 0
    else:
        assert told["train/kl" if method == "ppo" else "train/loss/kl"] == told["train/approx_kl"] == 0
        assert told["train/clip_ratio/low"] == told["train/clip_ratio/high"] == 0


def test_what_is_exported_has_its_dropout_back(gpt2: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(LastCheckpoint(every_n_steps=1), max_steps=1, default_root_dir=tmp_path)
    trainer.fit(build("dpo", gpt2, dropout=False), datamodule=METHODS["dpo"].data(tmp_path))
    assert restore(str(tmp_path)).model.config.resid_pdrop == 0.1
