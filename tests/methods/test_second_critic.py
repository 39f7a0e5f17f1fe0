"""A second critic is a line: constrained PPO with a critic of a cost, against its formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_posttrain import PPO, ModelSpec, Response, RolloutConfig, Tree
from lit_posttrain.core.terms import loss_of
from lit_posttrain.data.store.loader import step_denominators
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.methods.ppo import at_last_token
from lit_posttrain.on_policy.critics import Critic
from lit_posttrain.on_policy.policy_gradient import Clip
from lit_posttrain.on_policy.rollouts import Rollout
from lit_posttrain.rewards import FunctionReward
from lit_posttrain.types import RowLayout

SIZES, SCORES, COSTS = [4, 7, 1, 3], [1.0, -0.5, 0.25, 2.0], [0.0, 1.5, -1.0, 0.5]
MULTIPLIER, CLIP = 0.7, 0.1
REWARD = Critic(weight=0.3, clip=0.15, gamma=0.97, lam=0.9)
COST = Critic(weight=0.2, clip=None, gamma=1.0, lam=0.8)


class SafePPO(PPO):
    """PPO whose policy follows (A_reward - m A_cost) / (1 + m), m a multiplier (Dai et al. 2024)."""

    def __init__(self, *args: Any, multiplier: float = 1.0, cost: Critic = COST, **options: Any) -> None:
        super().__init__(*args, **options)
        self.critics.add("cost", cost)
        self.collector.rewards.needed = frozenset({"cost"})
        self.register_buffer("multiplier", torch.tensor(multiplier, dtype=torch.float64))

    def token_rewards(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        costs = np.concatenate([one.scores["cost"] for one in rollouts])
        return super().token_rewards(rollouts) | {"cost": at_last_token([one.tree for one in rollouts], costs)}

    def combined(self, advantages: Mapping[str, Tensor]) -> Tensor:
        multiplier = torch.as_tensor(self.multiplier)
        return (advantages["reward"] - multiplier * advantages["cost"]) / (1 + multiplier)


def zero(completions: list[str]) -> list[float]:
    return [0.0 for _ in completions]


def responses() -> list[tuple[list[int], list[int]]]:
    random = np.random.default_rng(1)
    prompts = [random.integers(3, 400, size).tolist() for size in (5, 8)]
    return [(prompts[i // 2], random.integers(3, 400, size).tolist()) for i, size in enumerate(SIZES)]


def scattered(scale: float, seed: int) -> list[list[float]]:
    noise = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(size, generator=noise, dtype=torch.float64)).tolist() for size in SIZES]


def estimated(scores: list[float], values: list[list[float]], critic: Critic) -> tuple[list[Any], list[Any]]:
    """Advantages and returns, token by token from the last one."""
    advantages, returns = [], []
    for score, value in zip(scores, values, strict=True):
        ahead, row = 0.0, [0.0] * len(value)
        for t in reversed(range(len(value))):
            reward = score if t + 1 == len(value) else 0.0
            following = value[t + 1] if t + 1 < len(value) else 0.0
            ahead = reward + critic.gamma * following - value[t] + critic.gamma * critic.lam * ahead
            row[t] = ahead
        advantages.append(row)
        returns.append([a + v for a, v in zip(row, value, strict=True)])
    return advantages, returns


def written_out(model: Any, heads: Any, old: list[list[float]], v_old: dict[str, list[list[float]]]) -> Tensor:
    of_reward, back_reward = estimated(SCORES, v_old["reward"], REWARD)
    of_cost, back_cost = estimated(COSTS, v_old["cost"], COST)
    mixed = [
        [(a - MULTIPLIER * c) / (1 + MULTIPLIER) for a, c in zip(*rows, strict=True)]
        for rows in zip(of_reward, of_cost, strict=True)
    ]
    every = [a for row in mixed for a in row]
    mean = sum(every) / len(every)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in every) / (len(every) - 1) + 1e-8)
    loss = torch.zeros((), dtype=torch.float64)
    for i, (prompt, said) in enumerate(responses()):
        out = model(torch.tensor([prompt + said]), output_hidden_states=True)
        states = out.hidden_states[-1][0, len(prompt) - 1 : -1]
        logps = out.logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        for t, token in enumerate(said):
            a = (mixed[i][t] - mean) / deviation
            r = (logps[t, token] - old[i][t]).exp()
            loss = loss + torch.maximum(-a * r, -a * r.clamp(1 - CLIP, 1 + CLIP))
            value = heads["reward"](states)[t, 0]
            near = v_old["reward"][i][t] + (value - v_old["reward"][i][t]).clamp(-0.15, 0.15)
            back = back_reward[i][t]
            loss = loss + 0.3 * 0.5 * torch.maximum((value - back) ** 2, (near - back) ** 2)
            loss = loss + 0.2 * 0.5 * (heads["cost"](states)[t, 0] - back_cost[i][t]) ** 2
    return loss / len(every)


def test_the_gradient_of_two_critics_is_what_the_formulas_say(tiny_model: Path) -> None:
    module = SafePPO(
        ModelSpec(str(tiny_model), dtype="float64"),
        [FunctionReward(zero), FunctionReward(zero, name="cost", weight=0.0)],
        rollout=RolloutConfig(group_size=2, inner_epochs=2, max_new_tokens=8),
        critic=REWARD,
        clip=Clip(CLIP, CLIP),
        beta=0.0,
        multiplier=MULTIPLIER,
    )
    module.configure_model()
    heads = module.language_model.value_heads
    for seed, head in enumerate(heads.children()):
        with torch.no_grad():
            head.weight.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.3)  # type: ignore[operator]  # a Linear's
    model = module.language_model.transformer
    old = []
    for (prompt, said), moved in zip(responses(), scattered(0.2, 3), strict=True):
        with torch.no_grad():
            logps = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        chosen = logps.gather(1, torch.tensor(said)[:, None])[:, 0].tolist()
        old.append([a + b for a, b in zip(chosen, moved, strict=True)])
    v_old = {"reward": scattered(0.3, 5), "cost": scattered(0.4, 6)}
    expected = written_out(model, heads, old, v_old)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in module.language_model.named_parameters() if p.grad is not None}
    module.zero_grad()

    rollouts = []
    for number in range(2):
        own = slice(2 * number, 2 * number + 2)
        drawn = [
            Response(np.array(tokens, np.int32), np.ones(len(tokens), np.bool_), {"reward": score})
            for (_, tokens), score in zip(responses()[own], SCORES[own], strict=True)
        ]
        tree = Tree(np.array(responses()[2 * number][0], np.int32), drawn)
        columns = {"old_logprobs": old, "rollout_logprobs": old}
        columns |= {f"value/{name}": values for name, values in v_old.items()}
        tree.per_target = {name: np.concatenate(rows[own]) for name, rows in columns.items()}
        costs = np.array(COSTS[own])
        rollouts.append(Rollout(tree, [], {"cost": costs}, {}, np.array(SCORES[own])))
    module.attach_columns = lambda rollouts: None  # type: ignore[method-assign]  # they have them already
    stats = module.prepare(rollouts)
    assert {"critic/value", "critic/cost/value"} <= set(stats)
    trees = [one.tree for one in rollouts]
    batch = collate(trees, RowLayout(), step_denominators(MemoryTrees(trees), range(len(trees))))
    terms = module.loss_terms(batch)
    assert set(terms) == {"policy", "value", "value/cost"}
    loss = loss_of(terms, batch.denominators)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)  # advantages travel as float32
    assert {"value_heads.reward.weight", "value_heads.cost.weight"} <= set(gradients)
    found = dict(module.language_model.named_parameters())
    for name, gradient in gradients.items():
        grad = found[name].grad
        assert grad is not None
        assert torch.allclose(grad, gradient, rtol=1e-5, atol=1e-7), name


def test_both_critics_are_trained_at_their_own_rate(tiny_model: Path) -> None:
    module = SafePPO(ModelSpec(str(tiny_model)), [FunctionReward(zero)], critic=Critic(lr=1e-3), cost=Critic(lr=1e-4))
    module.configure_model()
    policy, reward, cost = module.trained_parts()
    assert (reward["lr"], cost["lr"]) == (1e-3, 1e-4)
    heads = {id(p) for p in module.language_model.value_heads.parameters()}
    assert {id(p) for p in [*reward["params"], *cost["params"]]} == heads
    assert not heads & {id(p) for p in policy["params"]}
