"""One step of GRPO and its family beside TRL's, on the same completions, log-probs and rewards, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.rollouts import scored
from methods.test_trl_parity import causal
from torch import Tensor

from lit_posttrain import GRPO, ModelSpec, Response, RolloutConfig, Tree
from lit_posttrain.core.terms import loss_of
from lit_posttrain.data.store.loader import step_denominators
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.on_policy.policy_gradient import Clip
from lit_posttrain.rewards import Regex
from lit_posttrain.types import RowLayout

RELATIVE = 1e-4
GROUP, LONGEST, TEMPERATURE = 3, 12, 0.7
SIZES = [5, 12, 1, 7, 3, 9]
SCORES = [1.0, 0.0, 0.5, 0.25, 0.75, 0.75]


@dataclass
class Kind:
    """The options of both sides."""

    trl: dict[str, Any]
    ours: dict[str, Any]


KINDS = {
    "grpo": Kind({"loss_type": "grpo", "beta": 0.04}, {"beta": 0.04}),
    "dr_grpo": Kind(
        {"loss_type": "dr_grpo", "scale_rewards": "none"}, {"scale_rewards": "none", "aggregation": "constant"}
    ),
    "dapo": Kind(
        {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.1},
        {"aggregation": "token", "clip": Clip(high=0.28), "beta": 0.1},
    ),
    "cispo": Kind(
        {"loss_type": "cispo", "epsilon_high": 1.3},
        {"aggregation": "token", "objective": "cispo", "clip": Clip(high=1.3)},
    ),
    "gspo": Kind(
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
        },
        {"ratio": "sequence", "clip": Clip(3e-4, 4e-4)},
    ),
}
RLOO = {"baseline": "leave_one_out", "scale_rewards": "none", "aggregation": "constant"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a reference and of a policy that has moved away from it."""
    folder = tmp_path_factory.mktemp("parity")
    return tiny.save_model(folder / "reference", seed=1), tiny.save_model(folder / "policy", seed=2)


def sampled() -> list[tuple[list[int], list[int]]]:
    """(prompt, completion) token ids of two groups, of unequal lengths."""
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 400, size).tolist() for size in (6, 11)]
    return [(prompts[i // GROUP], random.integers(3, 400, size).tolist()) for i, size in enumerate(SIZES)]


def logprobs(folder: Path) -> list[Tensor]:
    """Of every completion, one sequence at a time."""
    model = causal(folder)
    found = []
    for prompt, said in sampled():
        with torch.no_grad():
            logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])[:, 0])
    return found


def moved(logps: list[Tensor]) -> list[Tensor]:
    """The policy that sampled: some way off, so that some tokens are clipped."""
    noise = torch.Generator().manual_seed(3)
    return [one + 0.3 * torch.randn(one.shape, generator=noise) for one in logps]


def padded(parts: list[Any], left: bool) -> tuple[Tensor, Tensor]:
    """The parts as rows, and where they are."""
    width = max(len(part) for part in parts)
    whole = torch.zeros(len(parts), width, dtype=torch.as_tensor(parts[0]).dtype)
    mask = torch.zeros(len(parts), width, dtype=torch.int64)
    for row, part in enumerate(parts):
        here = slice(width - len(part), None) if left else slice(0, len(part))
        whole[row, here], mask[row, here] = torch.as_tensor(part), 1
    return whole, mask


def trl_trainer(name: str, folder: Path, out: Path, **options: Any) -> Any:
    """TRL's trainer of this name, and its arguments."""
    import trl
    from datasets import Dataset

    arguments = getattr(trl, f"{name}Config")(
        output_dir=str(out),
        per_device_train_batch_size=len(SIZES),
        num_generations=GROUP,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        num_iterations=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        disable_tqdm=True,
        **options,
    )
    trainer: Any = getattr(trl, f"{name}Trainer")(
        model=causal(folder),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "question"}] * 4),
        processing_class=tiny.tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def trl_side(trainer: Any, advantage: Tensor, columns: dict[str, Tensor]) -> tuple[float, Any]:
    """Its loss, and its model with the gradient."""
    prompt_ids, prompt_mask = padded([p for p, _ in sampled()], left=True)
    completion_ids, completion_mask = padded([c for _, c in sampled()], left=False)
    loss = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            "advantages": advantage.flatten(),
            "num_items_in_batch": completion_mask.sum(),
            **columns,
        },
    )
    loss.backward()
    return float(loss.detach()), trainer.model


def our_side(options: dict[str, Any], models: tuple[Path, Path], old: list[Tensor]) -> tuple[float, Any]:
    """Our loss, and our model with the gradient."""
    module = GRPO(
        ModelSpec(str(models[1])),
        rewards=[Regex("x")],
        rollout=RolloutConfig(group_size=GROUP, inner_epochs=2, max_new_tokens=LONGEST, temperature=TEMPERATURE),
        **options,
    )
    module.configure_model()
    trees: list[Tree] = []
    for place, (prompt, said) in enumerate(sampled()):
        if place % GROUP == 0:
            trees.append(Tree(np.array(prompt, np.int32), []))
        marks = np.ones(len(said), np.bool_)
        trees[-1].responses.append(Response(np.array(said, np.int32), marks, {"reward": SCORES[place]}))
    columns = {"old_logprobs": old, "ref_logprobs": logprobs(models[0])}
    columns["rollout_logprobs"] = columns["old_logprobs"]
    for number, tree in enumerate(trees):
        own = slice(number * GROUP, (number + 1) * GROUP)
        tree.per_target = {name: torch.cat(values[own]).numpy() for name, values in columns.items()}
    module.attach_columns = lambda rollouts: None  # type: ignore[method-assign]  # they have them already
    module.prepare([scored(tree) for tree in trees])
    batch = collate(trees, RowLayout(), step_denominators(MemoryTrees(trees), range(len(trees))))
    loss = loss_of(module.loss_terms(batch), batch.denominators)
    loss.backward()
    assert module.policy is not None
    return float(loss.detach()), module.policy.transformer


def same_gradient(mine: Any, theirs: Any, factor: float = 1.0) -> None:
    gradients = {name: p.grad for name, p in mine.named_parameters()}
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters())
    assert largest > 1e-4
    for name, parameter in theirs.named_parameters():
        own = factor * gradients[name]
        assert torch.allclose(own, parameter.grad, rtol=RELATIVE, atol=RELATIVE * largest), name


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_trls(kind: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    options = KINDS[kind].trl
    scores = torch.tensor(SCORES).view(-1, GROUP)
    advantage = scores - scores.mean(1, keepdim=True)
    if options.get("scale_rewards") != "none":
        advantage = advantage / (scores.std(1, keepdim=True) + 1e-4)
    old = moved(logprobs(models[1]))
    columns = {"old_per_token_logps": padded(old, left=False)[0]}
    columns["ref_per_token_logps"] = padded(logprobs(models[0]), left=False)[0]
    expected, theirs = trl_side(trl_trainer("GRPO", models[1], tmp_path, **options), advantage, columns)
    found, mine = our_side(KINDS[kind].ours, models, old)
    assert found == pytest.approx(expected, rel=RELATIVE, abs=1e-6)
    same_gradient(mine, theirs)


def test_the_gradient_of_rloos_first_step_is_trls(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Of the policy that sampled, where TRL's ratio of sequences and ours of tokens are 1; ours is over the longest
    length. TRL's KL stands in the reward, so there is none here."""
    scores = torch.tensor(SCORES).view(-1, GROUP)
    advantage = scores - (scores.sum(1, keepdim=True) - scores) / (GROUP - 1)
    old = logprobs(models[1])
    trainer = trl_trainer("RLOO", models[1], tmp_path, beta=0.0)
    _, theirs = trl_side(trainer, advantage, {"old_logps": torch.stack([one.sum() for one in old])})
    _, mine = our_side(RLOO, models, old)
    same_gradient(mine, theirs, factor=LONGEST)
