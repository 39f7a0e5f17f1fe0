"""One step of PPO against its formulas written out in float64, one response and one token at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.on_policy import fit, prompts
from helpers.rollouts import scored
from torch import Tensor
from transformers import AutoModelForSequenceClassification, GPTNeoConfig

from lit_posttrain import PPO, LoRASpec, ModelSpec, PostTrainError, Response, RolloutConfig, Tree
from lit_posttrain.core.terms import loss_of
from lit_posttrain.data.store.loader import step_denominators
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.models.loading import build_scorer
from lit_posttrain.on_policy.critics import Critic
from lit_posttrain.on_policy.policy_gradient import Clip
from lit_posttrain.rewards import Regex
from lit_posttrain.types import RowLayout

SIZES, SCORES = [4, 7, 1, 3], [1.0, -0.5, 0.25, 2.0]
NAN = math.nan
GAMMA, LAM, BETA, VALUE_WEIGHT, VALUE_CLIP, CLIP, TEMPERATURE = 0.97, 0.9, 0.2, 0.3, 0.15, 0.1, 0.8


def responses() -> list[tuple[list[int], list[int]]]:
    random = np.random.default_rng(1)
    prompts = [random.integers(3, 400, size).tolist() for size in (5, 8)]
    return [(prompts[i // 2], random.integers(3, 400, size).tolist()) for i, size in enumerate(SIZES)]


def scattered(scale: float, seed: int) -> list[list[float]]:
    """A number for every token of every response."""
    noise = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(size, generator=noise, dtype=torch.float64)).tolist() for size in SIZES]


def ppo(model: Path, **changes: Any) -> PPO:
    options: dict[str, Any] = {
        "rollout": RolloutConfig(group_size=2, inner_epochs=2, max_new_tokens=8, temperature=TEMPERATURE),
        "critic": Critic(weight=VALUE_WEIGHT, clip=VALUE_CLIP, gamma=GAMMA, lam=LAM),
        "clip": Clip(CLIP, CLIP),
        "beta": BETA,
        **changes,
    }
    policy = options.pop("policy", ModelSpec(str(model), dtype="float64"))
    module = PPO(policy, [Regex("x")], **options)
    module.configure_model()
    return module


def written_out(model: Any, head: Any, old: list[list[float]], reference: list[list[float]], v_old: Any) -> Any:
    """The loss: advantages by a backward loop, whitened over all tokens; then clipped terms, token by token."""
    advantages, returns = [], []
    for i, size in enumerate(SIZES):
        reward = [-BETA * (old[i][t] - reference[i][t]) for t in range(size)]
        reward[-1] += SCORES[i]
        ahead, row = 0.0, [0.0] * size
        for t in reversed(range(size)):
            following = v_old[i][t + 1] if t + 1 < size else 0.0
            ahead = reward[t] + GAMMA * following - v_old[i][t] + GAMMA * LAM * ahead
            row[t] = ahead
        advantages.append(row)
        returns.append([a + v for a, v in zip(row, v_old[i], strict=True)])
    every = [a for row in advantages for a in row]
    mean = sum(every) / len(every)
    variance = sum((a - mean) ** 2 for a in every) / (len(every) - 1)
    loss = torch.zeros((), dtype=torch.float64)
    for i, (prompt, said) in enumerate(responses()):
        out = model(torch.tensor([prompt + said]), output_hidden_states=True)
        begin = len(prompt) - 1
        logps = (out.logits[0, begin:-1] / TEMPERATURE).log_softmax(-1)
        values = head(out.hidden_states[-1][0, begin:-1])[:, 0]
        for t, token in enumerate(said):
            a = (advantages[i][t] - mean) / math.sqrt(variance + 1e-8)
            r = (logps[t, token] - old[i][t]).exp()
            loss = loss + torch.maximum(-a * r, -a * r.clamp(1 - CLIP, 1 + CLIP))
            near = v_old[i][t] + (values[t] - v_old[i][t]).clamp(-VALUE_CLIP, VALUE_CLIP)
            back = returns[i][t]
            loss = loss + VALUE_WEIGHT * 0.5 * torch.maximum((values[t] - back) ** 2, (near - back) ** 2)
    return loss / len(every)


def test_a_step_is_what_the_formulas_say(tiny_model: Path) -> None:
    module = ppo(tiny_model)
    assert module.policy is not None
    head = module.language_model.value_heads["reward"]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.3)
    model = module.policy.transformer
    logps = []
    for prompt, said in responses():
        with torch.no_grad():
            logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        logps.append(logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])[:, 0].tolist())
    old = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(logps, scattered(0.2, 3), strict=True)]
    reference = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(logps, scattered(0.5, 4), strict=True)]
    v_old = scattered(0.3, 5)
    expected = written_out(model, head, old, reference, v_old)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in module.policy.named_parameters() if p.grad is not None}
    module.zero_grad()

    trees: list[Tree] = []
    for i, (prompt, said) in enumerate(responses()):
        if i % 2 == 0:
            trees.append(Tree(np.array(prompt, np.int32), []))
        marks = np.ones(len(said), np.bool_)
        trees[-1].responses.append(Response(np.array(said, np.int32), marks, {"reward": SCORES[i]}))
    for number, tree in enumerate(trees):
        columns = {"old_logprobs": old, "rollout_logprobs": old, "ref_logprobs": reference, "value/reward": v_old}
        own = slice(number * 2, number * 2 + 2)
        tree.per_target = {name: np.concatenate(rows[own]) for name, rows in columns.items()}
    module.attach_columns = lambda rollouts: None  # type: ignore[method-assign]  # they have them already
    module.prepare([scored(tree) for tree in trees])
    batch = collate(trees, RowLayout(), step_denominators(MemoryTrees(trees), range(len(trees))))
    terms = module.loss_terms(batch)
    loss = loss_of(terms, batch.denominators)
    loss.backward()
    assert set(terms) == {"policy", "value"}
    # advantages and returns travel as float32
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    found = {name: p.grad for name, p in module.policy.named_parameters()}
    assert "value_heads.reward.weight" in gradients
    for name, gradient in gradients.items():
        grad = found[name]
        assert grad is not None, name
        assert torch.allclose(grad, gradient, rtol=1e-5, atol=1e-7), name


def test_the_kl_may_stand_in_the_loss(tiny_model: Path) -> None:
    assert ppo(tiny_model, kl_in="loss").gradient_terms.kl_in_loss
    assert not ppo(tiny_model).gradient_terms.kl_in_loss
    assert "ref_logprobs" not in ppo(tiny_model, beta=0.0).wanted_columns


def test_a_critic_of_its_own_needs_the_policys_vocabulary(tiny_model: Path, tmp_path: Path) -> None:
    own = ppo(tiny_model, critic=Critic(model=ModelSpec(str(tiny_model), dtype="float64")))
    assert not own.language_model.value_heads
    parts = own.trained_parts()
    assert {id(p) for p in parts[1]["params"]} == {id(p) for p in own.critics.models["reward"].parameters()}
    ppo(tiny_model, critic=Critic(model=ModelSpec(str(tiny_model), special_tokens=["<|more|>"])))
    fewer = tiny.save_model(tmp_path / "fewer")
    text = (fewer / "tokenizer.json").read_text()
    (fewer / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|end|>"))
    with pytest.raises(PostTrainError, match="another vocabulary than the policy's"):
        ppo(tiny_model, critic=Critic(model=ModelSpec(str(fewer))))


def test_a_value_head_needs_the_models_own_output_head(tiny_model: Path) -> None:
    adapted = ModelSpec(str(tiny_model), lora=LoRASpec(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(PostTrainError, match=r"take a critic of its own: --model\.critic\.model\.path"):
        ppo(tiny_model, policy=adapted)


def reward_head(module: PPO) -> Tensor:
    weight = module.language_model.value_heads["reward"].weight
    assert isinstance(weight, Tensor)
    return weight


def test_the_head_may_begin_as_a_reward_models(tiny_model: Path, tmp_path: Path) -> None:
    scorer = build_scorer(ModelSpec(str(tiny_model)), 512)
    scorer.transformer.config.pad_token_id = 0
    scorer.transformer.save_pretrained(tmp_path / "scores")
    tiny.tokenizer().save_pretrained(tmp_path / "scores")
    begun = reward_head(ppo(tiny_model, critic=Critic(start=str(tmp_path / "scores"))))
    zero = reward_head(ppo(tiny_model))
    head = scorer.transformer.score.weight.to(begun.dtype)
    assert head.abs().max() > 0
    assert torch.equal(begun, head)
    assert not zero.any()
    with pytest.raises(PostTrainError, match=r"--model\.critic\.start: "):
        ppo(tiny_model, critic=Critic(start=str(tiny_model)))


def values_of(folder: Path, trees: list[Tree]) -> torch.Tensor:
    """What a reward model's head says before every trained token, one sequence at a time."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    found = []
    for tree in trees:
        for response in tree.responses:
            ids = torch.from_numpy(np.concatenate([tree.prompt, response.tokens])).long()[None]
            with torch.no_grad():
                states = model.base_model(ids).last_hidden_state[0, len(tree.prompt) - 1 : -1]
                found.append(model.score(states)[:, 0])
    return torch.cat(found)


def test_a_critic_that_reads_one_sequence_a_row(tiny_model: Path, tmp_path: Path) -> None:
    """Beside a policy whose rows hold several."""
    torch.manual_seed(3)
    config = GPTNeoConfig(
        vocab_size=512,
        max_position_embeddings=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global"], 2]],
        pad_token_id=0,
        num_labels=1,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    module = ppo(tiny_model, critic=Critic(model=ModelSpec(str(tmp_path), dtype="float64")))
    trees: list[Tree] = []
    for i, (prompt, said) in enumerate(responses()):
        if i % 2 == 0:
            trees.append(Tree(np.array(prompt, np.int32), []))
        trees[-1].responses.append(Response(np.array(said, np.int32), np.ones(len(said), np.bool_)))
    batch = module.batch_of(trees)
    expected = values_of(tmp_path, trees)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(module.critics.predicted(batch, {})["value/reward"], expected)
    found = module.critics.values(batch, None)["reward"]
    torch.testing.assert_close(found.detach(), expected)
    found.sum().backward()
    assert all(p.grad is not None for p in module.critics.models["reward"].transformer.score.parameters())
    assert module.max_positions == 64, "its positions are fewer than the policy's"
    assert module.limited_by == "the critic"


class Costly(PPO):
    """Forgets what its critic of a cost is paid."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.critics.add("cost", Critic())

    def combined(self, advantages: Any) -> torch.Tensor:
        found: torch.Tensor = advantages["reward"] - advantages["cost"]
        return found


class Unheard(Costly):
    """Pays it, and does not say what its advantages are for."""

    combined = PPO.combined

    def token_rewards(self, rollouts: Any) -> dict[str, torch.Tensor]:
        rewards = super().token_rewards(rollouts)
        return rewards | {"cost": rewards["reward"]}


class Misnamed(Costly):
    """Pays it under another name."""

    def token_rewards(self, rollouts: Any) -> dict[str, torch.Tensor]:
        rewards = super().token_rewards(rollouts)
        return rewards | {"costs": rewards["reward"]}


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Costly, "Costly has the critics reward, cost, and `token_rewards` is that of PPO, which knows one: define it"),
        (Unheard, "Unheard has the critics reward, cost, and `combined` is that of PPO"),
        (Misnamed, "token_rewards of Misnamed has nothing for the critic cost: let it return a reward of every"),
    ],
)
def test_a_further_critic_must_be_paid_and_heard(kind: type[PPO], told: str, tiny_model: Path, tmp_path: Path) -> None:
    module = kind(ModelSpec(str(tiny_model)), [Regex("x")], rollout=RolloutConfig(group_size=2, max_new_tokens=4))
    with pytest.raises(PostTrainError, match=told):
        fit(module, prompts(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"weight": NAN}, {"clip": 0.0}, {"clip": NAN}, {"lr": NAN}, {"gamma": NAN}, {"lam": 1.1}],
)
def test_options_of_a_critic_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(PostTrainError, match=r"--model\.critic"):
        Critic(**options)  # type: ignore[arg-type]  # all of them numbers


def test_options_of_text_are_no_options_of_a_critic(tiny_model: Path) -> None:
    critic = Critic(ModelSpec(str(tiny_model), chat_template="chatml"))
    with pytest.raises(
        PostTrainError, match=r"--model\.critic\.model\.chat_template: it reads the tokens of the policy"
    ):
        PPO(ModelSpec(str(tiny_model)), [Regex("x")], critic=critic)
