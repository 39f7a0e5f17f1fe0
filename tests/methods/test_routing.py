"""The load-balancing loss of mixtures of experts: equal to transformers', and the same however a step is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import METHODS, build, conversations
from helpers import tiny
from helpers.processes import run_script
from helpers.runs import quiet_trainer
from routed_steps import SGD, two_steps
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from lit_posttrain import SFT, LoRASpec, ModelSpec, PostTrainError, PostTrainingModule
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.data.store.packing import collate
from lit_posttrain.methods.ppo import PPO
from lit_posttrain.models.architectures import layout_of
from lit_posttrain.models.loading import build_policy
from lit_posttrain.on_policy.critics import Critic
from lit_posttrain.ops.routing import load_balancing, routed
from lit_posttrain.rewards import Repetition
from lit_posttrain.rollout.engine import Sampling
from lit_posttrain.rollout.hf import HFEngine

EXPERTS, TOP_K = 4, 2
SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
}


def saved(folder: Path, kind: str = "mixtral", **changes: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SMALL, **changes))
    for name, parameter in model.named_parameters():
        if "gate.weight" in name:  # routers that are far from even
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("experts") / "mixtral")


def test_the_loss_and_its_gradient_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    gates = tuple(torch.randn(40, EXPERTS, requires_grad=True) for _ in range(3))
    mask = torch.rand(4, 10) < 0.6
    expected = load_balancing_loss_func(gates, EXPERTS, TOP_K, mask.long())
    assert isinstance(expected, Tensor)
    index = mask.flatten().nonzero()[:, 0]
    taken, probability = routed(gates, index, TOP_K)
    actual = load_balancing(TOP_K * taken / taken.sum(), probability / len(index))
    torch.testing.assert_close(actual, expected)
    for found, wanted in zip(torch.autograd.grad(actual, gates), torch.autograd.grad(expected, gates), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe"])
def test_what_a_policy_notes_is_the_routing_of_separate_sequences(
    kind: str, checkpointing: bool, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", kind)
    policy = build_policy(ModelSpec(str(folder), checkpointing=checkpointing), 512)
    policy.balanced = True
    trees = conversations(6)
    layout = layout_of(policy.config, "cpu", policy.config._attn_implementation)
    batch = collate(trees, layout, {})
    policy(batch)
    assert policy.routing is not None
    taken, probability = policy.routing
    plain = AutoModelForCausalLM.from_pretrained(folder)
    gates: list[list[Tensor]] = [[] for _ in range(SMALL["num_hidden_layers"])]
    for tree in trees:
        ids = torch.tensor([*tree.prompt, *tree.responses[0].tokens])[None]
        out = plain.base_model(ids, output_router_logits=True)
        predicts = len(tree.prompt) - 1 + torch.from_numpy(tree.responses[0].loss_mask).nonzero()[:, 0]
        for layer, logits in zip(gates, out.router_logits, strict=True):
            layer.append(logits.reshape(-1, EXPERTS)[predicts])
    expected = load_balancing_loss_func(tuple(torch.cat(layer) for layer in gates), EXPERTS, TOP_K)
    actual = load_balancing(TOP_K * taken / taken.sum(), probability / len(batch.target_ids))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        policy.routing = None
        policy(batch)
    assert policy.routing is None, "what is only measured is not balanced"


ROUTED = ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "phimoe", "granitemoe", "ernie4_5_moe", "gpt_oss"]


@pytest.mark.parametrize("kind", ROUTED)
def test_answers_are_sampled_in_batches_though_the_config_asks_for_router_logits(kind: str, tmp_path: Path) -> None:
    prompts, found = [[5, 6, 7, 8, 9], [11, 12]], []
    for asked in (False, True):
        folder = saved(tmp_path / str(asked), kind, output_router_logits=asked)
        policy = build_policy(ModelSpec(str(folder)), 512).eval()
        drawn = HFEngine(policy, [2]).generate(prompts, 1, Sampling(max_new_tokens=6, temperature=0))
        found.append([answers[0].tokens for answers in drawn])
    assert len(found[0][0]) > 1
    assert found[0] == found[1]


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_the_term_beside_adapters_on_the_head(kind: str, asked: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", kind, output_router_logits=asked)
    lora = LoRASpec(r=4, target_modules=["lm_head", "q_proj"])
    policy = build_policy(ModelSpec(str(folder), lora=lora, router_aux_loss=0.1), 512)
    policy.balanced = True
    batch = collate(conversations(6), layout_of(policy.config, "cpu", policy.config._attn_implementation), {})
    found = policy(batch).logprobs
    assert policy.routing is not None
    plain = build_policy(ModelSpec(str(folder)), 512)  # fresh adapters change nothing
    torch.testing.assert_close(found, plain(batch).logprobs)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one if name != "load")


def test_the_cut_of_a_step_changes_nothing(experts: Path) -> None:
    whole = two_steps(str(experts), 0.1)
    parts = two_steps(str(experts), 0.1, accumulate_grad_batches=4)
    assert float(whole["load"].sum()) == pytest.approx(TOP_K)
    assert torch.equal(whole["load"], parts["load"])
    assert apart(whole, parts) < 2e-6
    gate, without = "policy.model.model.layers.0.mlp.gate.weight", two_steps(str(experts), 0.0)
    assert float((whole[gate] - without[gate]).abs().max()) > 1e-4, "the second step has the term's gradient"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_number_of_processes_changes_nothing(strategy: str, experts: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "spine/routed_steps.py"
    done = run_script(script, experts, strategy, 2, tmp_path / "out", devices=2)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = two_steps(str(experts), 0.1)
    parts = torch.load(tmp_path / "out.0", weights_only=True)
    assert torch.equal(whole["load"], parts["load"])
    assert apart(whole, parts) < 2e-6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_term(method: str, experts: Path, tmp_path: Path) -> None:
    module = build(method, experts, router_aux_loss=0.01)
    trainer = quiet_trainer(max_steps=1, log_every_n_steps=1, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=METHODS[method].data(tmp_path))
    assert module.balance.load is not None or method in ("grpo", "ppo"), "responses that were all cut off"
    shares = module.balance.load
    if shares is not None and float(shares.sum()):
        assert float(shares.sum()) == pytest.approx(TOP_K)
        assert float(trainer.callback_metrics["train/loss/router"]) == pytest.approx(0.01 * TOP_K), "even at first"


def sft(folder: Path, weight: float) -> SFT:
    return SFT(ModelSpec(str(folder), router_aux_loss=weight), SGD)


def run(folder: Path, experts: Path, steps: int) -> PostTrainingModule:
    last = folder / "last.ckpt"
    trainer = quiet_trainer(LastCheckpoint(every_n_steps=1), max_steps=steps, default_root_dir=folder)
    module = sft(experts, 0.1)
    trainer.fit(module, datamodule=METHODS["sft"].data(folder), ckpt_path=str(last) if last.exists() else None)
    return module


def test_resuming_goes_on_with_the_shares(experts: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "a", experts, 3)
    saved_ = torch.load(tmp_path / "a/last.ckpt", weights_only=True)["lit_posttrain"]["router_load"]
    assert whole.balance.load is not None
    assert torch.equal(saved_, whole.balance.load)
    run(tmp_path / "b", experts, 2)
    parts = run(tmp_path / "b", experts, 3)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), parts.parameters(), strict=True))
    assert parts.balance.load is not None
    assert torch.equal(whole.balance.load, parts.balance.load)


@pytest.mark.parametrize(
    ("config", "option", "weight", "told"),
    [
        ({}, None, 0.0, True),
        ({}, 0.0, 0.0, False),
        ({}, 0.02, 0.02, False),
        ({"output_router_logits": True, "router_aux_loss_coef": 0.03}, None, 0.03, False),
        ({"output_router_logits": True, "router_aux_loss_coef": 0.03}, 0.0, 0.0, False),
    ],
)
def test_when_it_is_on(
    config: dict[str, Any],
    option: float | None,
    weight: float,
    told: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = saved(tmp_path / "model", **config)
    module = build("sft", folder, router_aux_loss=option)
    quiet_trainer(max_steps=1, default_root_dir=tmp_path).fit(module, datamodule=METHODS["sft"].data(tmp_path))
    assert module.balance.weight == weight
    assert any("balances its experts is off" in record.getMessage() for record in caplog.records) is told


def test_a_model_without_experts(tiny_model: Path) -> None:
    assert build("sft", tiny_model).balance.weight == 0
    with pytest.raises(PostTrainError, match=r"router_aux_loss 0.01: a llama model has no routers"):
        build("sft", tiny_model, router_aux_loss=0.01).configure_model()
    with pytest.raises(PostTrainError, match="router_aux_loss is -1"):
        ModelSpec("x", router_aux_loss=-1.0)


def test_adapters_and_perplexity(experts: Path, tmp_path: Path) -> None:
    module = build("sft", experts, router_aux_loss=5.0, lora=LoRASpec(r=4))
    trainer = quiet_trainer(max_steps=1, log_every_n_steps=1, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=METHODS["sft"].data(tmp_path))
    told = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert told["train/loss"] == pytest.approx(told["train/loss/nll"] + told["train/loss/router"])
    assert told["train/perplexity"] == pytest.approx(float(torch.tensor(told["train/loss/nll"]).exp()), rel=1e-5)
    assert AutoConfig.from_pretrained(experts).output_router_logits is False


def test_another_weight_of_the_term_is_another_objective(experts: Path, tmp_path: Path) -> None:
    data = METHODS["sft"].data(tmp_path)
    quiet_trainer(LastCheckpoint(every_n_steps=1), max_steps=1, default_root_dir=tmp_path).fit(
        sft(experts, 0.1), datamodule=data
    )
    with pytest.raises(PostTrainError, match=r"--model.policy.router_aux_loss 0.1 and this run has 0.2"):
        quiet_trainer(max_steps=2, default_root_dir=tmp_path).fit(
            sft(experts, 0.2), datamodule=data, ckpt_path=tmp_path / "last.ckpt"
        )


def test_what_a_critic_does_not_get_is_said(experts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = saved(tmp_path / "asked", output_router_logits=True)
    PPO(ModelSpec(str(experts)), [Repetition()], critic=Critic(model=ModelSpec(str(asked)))).configure_model()
    assert "PPO adds it to the policy's alone" in caplog.text
    critic = Critic(model=ModelSpec(str(experts), router_aux_loss=0.1))
    with pytest.raises(PostTrainError, match=r"--model.critic.model.router_aux_loss 0.1"):
        PPO(ModelSpec(str(experts)), [Repetition()], critic=critic).configure_model()


@pytest.mark.parametrize("lora", [{"alpha": 64}, {"rslora": True}, {"dora": True}])
def test_adapters_of_a_critic_are_options_of_its_method(lora: dict[str, Any], experts: Path) -> None:
    def options(**changes: Any) -> dict[str, Any]:
        critic = Critic(model=ModelSpec(str(experts), lora=LoRASpec(r=4, **changes)))
        return PPO(ModelSpec(str(experts)), [Repetition()], critic=critic).method_options

    changed = {name for name, value in options().items() if options(**lora)[name] != value}
    assert {f"critic.model.lora.{name}" for name in lora} <= changed
