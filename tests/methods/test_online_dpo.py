"""Online DPO: which responses are compared, that the loss is DPO's and TRL's, and runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.on_policy import fit, letters, prompts
from torch import Tensor
from transformers import AutoModelForCausalLM

from lit_posttrain import (
    DPO,
    LoRASpec,
    ModelSpec,
    OnlineDPO,
    PostTrainError,
    PostTrainingModule,
    Response,
    RolloutConfig,
    Tree,
    TreeBatch,
    loss_of,
)
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.data.store.loader import step_denominators
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.on_policy.ranking import ranked
from lit_posttrain.on_policy.rollouts import Rollout
from lit_posttrain.rewards import FunctionReward

NAN = math.nan
CONSTANT = Optim(lr=1e-3, schedule="constant", warmup_ratio=0.0)


def online(model: Path, reward: Callable[..., Any] = letters, **options: Any) -> OnlineDPO:
    """Of four short responses to each prompt; rollout: further options of it."""
    rollout = {"group_size": 4, "max_new_tokens": 8, **options.pop("rollout", {})}
    spec = ModelSpec(str(model), **options.pop("spec", {}))
    chosen = {"optim": CONSTANT, **options}
    return OnlineDPO(spec, [FunctionReward(reward)], rollout=RolloutConfig(**rollout), **chosen)


def weights(module: OnlineDPO) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Which responses are compared ---------------------------------------------------------------------------------------


def rollout(scores: list[float], masked: tuple[int, ...] = ()) -> Rollout:
    """Responses of 3, 4, 5, ... tokens with these scores; those in `masked` are not trained on."""
    responses = []
    for place, score in enumerate(scores):
        size = place + 3
        mask = np.full(size, place not in masked, np.bool_)
        responses.append(Response(np.arange(size, dtype=np.int32), mask, {} if score != score else {"reward": score}))
    tree = Tree(np.array([7, 8], np.int32), responses)
    counted = sum(int(one.loss_mask.sum()) for one in responses)
    tree.per_target = {"rollout_logprobs": np.arange(counted, dtype=np.float32)}
    return Rollout(tree, [None] * len(scores), {}, {}, np.array(scores))  # type: ignore[list-item]  # not looked at


@pytest.mark.parametrize(
    ("scores", "masked", "best_worst", "every"),
    [
        ([1.0, 3.0, 2.0], (), [1, 0], {1: 0, 2: 1, 0: 2}),
        ([3.0, 1.0, 3.0, 1.0], (), [0, 3], {0: 0, 2: 0, 1: 1, 3: 1}),
        ([NAN, 1.0, NAN, 2.0], (), [3, 1], {3: 0, 1: 1}),
        ([5.0, 1.0, 2.0], (0,), [2, 1], {2: 0, 1: 1}),
        ([-math.inf, 1.0, math.inf], (), [2, 0], {2: 0, 1: 1, 0: 2}),
        ([1.0, 1.0, 1.0], (), None, None),
        ([1.0, NAN, NAN], (), None, None),
        ([NAN, NAN], (), None, None),
        ([1.0, 2.0], (0,), None, None),
    ],
)
def test_ranks(
    scores: list[float], masked: tuple[int, ...], best_worst: list[int] | None, every: dict[int, int] | None
) -> None:
    pair, whole = ranked(rollout(scores, masked), "best_worst"), ranked(rollout(scores, masked), "all")
    if best_worst is None or every is None:
        assert pair is None
        assert whole is None
        return
    assert pair is not None
    assert whole is not None
    assert [len(one.tokens) - 3 for one in pair.tree.responses] == best_worst
    assert [one.labels["rank"] for one in pair.tree.responses] == [0.0, 1.0]
    assert {len(one.tokens) - 3: one.labels["rank"] for one in whole.tree.responses} == every
    logprobs = rollout(scores, masked).tree.per_target["rollout_logprobs"]
    sizes = [0 if place in masked else place + 3 for place in range(len(scores))]
    ends = np.cumsum([0, *sizes])
    expected = [logprobs[ends[place] : ends[place + 1]] for place in every]
    assert np.array_equal(whole.tree.per_target["rollout_logprobs"], np.concatenate(expected))


# The loss is DPO's ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a reference and of a policy that has moved away from it."""
    folder = tmp_path_factory.mktemp("parity")
    return tiny.save_model(folder / "reference", seed=1), tiny.save_model(folder / "policy", seed=2)


def causal(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def sampled(group: int = 4) -> tuple[list[Tree], list[list[float]]]:
    """Responses of unequal lengths to four prompts, and a score of each."""
    random = np.random.default_rng(0)
    trees = []
    for _ in range(4):
        prompt = random.integers(3, 390, random.integers(4, 12)).astype(np.int32)
        said = [random.integers(3, 390, random.integers(2, 14)).astype(np.int32) for _ in range(group)]
        trees.append(Tree(prompt, [Response(one, np.ones(len(one), np.bool_)) for one in said]))
    return trees, [random.permutation(group).astype(float).tolist() for _ in trees]


def given_ranks(trees: list[Tree], scores: list[list[float]], kept: str) -> list[Tree]:
    """The same as rows of preferences, ranked by hand."""
    found = []
    for tree, row in zip(trees, scores, strict=True):
        order = np.argsort([-score for score in row]).tolist()
        chosen = order if kept == "all" else [order[0], order[-1]]
        responses = [
            Response(tree.responses[k].tokens, tree.responses[k].loss_mask, {"rank": float(rank)})
            for rank, k in enumerate(chosen)
        ]
        found.append(Tree(tree.prompt, responses))
    return found


def moved(module: PostTrainingModule, policy: Path) -> PostTrainingModule:
    """The module with a policy that has left its reference."""
    module.configure_model()
    assert module.policy is not None
    module.policy.transformer.load_state_dict(causal(policy).state_dict())
    return module


def batch_of(trees: list[Tree], module: PostTrainingModule) -> TreeBatch:
    return collate(trees, module.layout, step_denominators(MemoryTrees(trees), range(len(trees))))


def step(module: PostTrainingModule, trees: list[Tree]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of a step."""
    batch = batch_of(trees, module)
    loss = loss_of(module.loss_terms(batch), batch.denominators)
    loss.backward()
    assert module.policy is not None
    return float(loss.detach()), {
        n: p.grad for n, p in module.policy.transformer.named_parameters() if p.grad is not None
    }


def compared(module: OnlineDPO, group: int = 4) -> list[Tree]:
    """What `prepare` leaves of the responses."""
    trees, scores = sampled(group)
    rollouts = []
    for tree, row in zip(trees, scores, strict=True):
        for response, score in zip(tree.responses, row, strict=True):
            response.labels["reward"] = score
        rollouts.append(Rollout(tree, [None] * group, {}, {}, np.array(row)))  # type: ignore[list-item]  # not looked at
    module.attach_columns = lambda rollouts: None  # type: ignore[method-assign]  # without a run the loss computes them
    assert module.prepare(rollouts)["compared"] == (4.0, 4.0)
    return [one.tree for one in rollouts]


@pytest.mark.parametrize(
    ("pairs", "options"),
    [
        ("best_worst", {}),
        ("all", {}),
        ("best_worst", {"loss": "ipo"}),
        ("all", {"loss": "robust", "label_smoothing": 0.2}),
        ("all", {"loss": "plackett_luce"}),
    ],
)
def test_loss_and_gradient_are_dpos(pairs: Any, options: Any, models: tuple[Path, Path]) -> None:
    mine = moved(online(models[0], pairs=pairs, beta=0.3, **options), models[1])
    theirs = moved(DPO(ModelSpec(str(models[0])), beta=0.3, **options), models[1])
    assert isinstance(mine, OnlineDPO)
    found, gradient = step(mine, compared(mine))
    expected, wanted = step(theirs, given_ranks(*sampled(), pairs))
    assert found == expected
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-3
    assert same(gradient, wanted)


def padded(parts: list[Any], left: bool) -> tuple[Tensor, Tensor]:
    """The parts as rows, and where they are."""
    width = max(map(len, parts))
    whole, mask = torch.zeros(len(parts), width, dtype=torch.int64), torch.zeros(len(parts), width, dtype=torch.int64)
    for row, part in enumerate(parts):
        here = slice(width - len(part), None) if left else slice(0, len(part))
        whole[row, here], mask[row, here] = torch.as_tensor(part), 1
    return whole, mask


def test_loss_and_gradient_are_trls(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Of two responses to each prompt, which is all that TRL compares."""
    from datasets import Dataset
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    trees, scores = sampled(2)
    order = [(number, k) for k in range(2) for number in range(len(trees))]  # all first responses, then all second ones
    trainer: Any = OnlineDPOTrainer(
        model=causal(models[1]),
        ref_model=causal(models[0]),
        reward_funcs=lambda completions, **_: [scores[number][k] for number, k in order],
        args=OnlineDPOConfig(
            output_dir=str(tmp_path),
            beta=0.3,
            max_new_tokens=16,
            max_length=64,
            use_cpu=True,
            bf16=False,
            report_to=[],
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": "question"}] * 4),
        processing_class=tiny.tokenizer(),
    )
    asked = padded([trees[number].prompt for number, _ in order], left=True)
    said = padded([trees[number].responses[k].tokens for number, k in order], left=False)
    trainer._generate = lambda *_: (*asked, *said, None)
    expected = trainer.training_step(trainer.model, {"prompt": ["question"] * len(trees)})
    mine = moved(online(models[0], beta=0.3), models[1])
    assert isinstance(mine, OnlineDPO)
    found, gradient = step(mine, compared(mine, 2))
    assert found == pytest.approx(float(expected), rel=1e-5)
    for name, parameter in trainer.model.named_parameters():
        distance = float((gradient[name] - parameter.grad).norm() / parameter.grad.norm())
        assert distance < 1e-4, (name, distance)


# Runs ---------------------------------------------------------------------------------------------------------------


class Steps(pl.Callback):
    """Pairs and responses of every step's micro-batches, and their losses."""

    def __init__(self) -> None:
        self.pairs: list[list[int]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.pairs.append([])
        self.pairs[-1].append(len(batch.pairs.chosen))
        self.losses.append(float(outputs["loss"]))


def alike(completions: list[str]) -> list[float]:
    """Nothing is better than anything else."""
    return [1.0] * len(completions)


def test_it_learns_what_is_rewarded(tiny_model: Path, tmp_path: Path) -> None:
    def vowels(completions: list[str]) -> list[float]:
        return [float(sum(said.count(letter) for letter in "aeiou")) for said in completions]

    optim = Optim(lr=3e-3, schedule="constant", warmup_ratio=0.0)
    module = online(tiny_model, vowels, rollout={"group_size": 8}, optim=optim)
    trainer = fit(module, prompts(tmp_path), tmp_path, max_epochs=1)
    first = float(trainer.callback_metrics["train/reward"])
    trainer = fit(module, prompts(tmp_path), tmp_path, max_epochs=20)
    assert trainer.callback_metrics["train/reward"] > first + 2
    assert trainer.callback_metrics["train/rewards/accuracies"] > 0.5
    assert trainer.callback_metrics["train/kl/batch"] > 0


def of_even_prompts(completions: list[str], answer: list[str]) -> list[float]:
    """Half of the prompts have a pair."""
    return [len(said) * (int(which) % 2 == 0) for said, which in zip(completions, answer, strict=True)]


@pytest.mark.parametrize(("pairs", "fewest"), [("best_worst", 1), ("all", 3)])
def test_groups_are_never_split(pairs: Any, fewest: int, tiny_model: Path, tmp_path: Path) -> None:
    """Also where fewer prompts have a pair than a step has micro-batches."""
    seen = Steps()
    data, module = prompts(tmp_path), online(tiny_model, of_even_prompts, pairs=pairs)
    trainer = fit(module, data, tmp_path, seen, accumulate_grad_batches=4, max_epochs=3)
    assert trainer.callback_metrics["train/compared"] < 1
    found = [count for step in seen.pairs for count in step if count]
    assert len(found) >= 3
    assert min(found) >= fewest


def test_more_micro_batches_than_prompts_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match="a step has 4 prompts for 8 micro-batches"):
        fit(online(tiny_model), prompts(tmp_path), tmp_path, accumulate_grad_batches=8)


def test_a_rollout_without_a_pair_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    module, seen = online(tiny_model, alike), Steps()
    module.configure_model()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = fit(module, prompts(tmp_path), tmp_path, seen, accumulate_grad_batches=2, max_epochs=3)
    assert trainer.global_step == 3
    assert set(seen.losses) == {0.0}
    assert trainer.callback_metrics["train/compared"] == 0
    assert trainer.callback_metrics["train/reward"] == 1
    assert same(before, weights(module))


def rarely(completions: list[str]) -> list[float]:
    """Only some rollouts have a pair."""
    return [float("z" in said) for said in completions]


@pytest.mark.parametrize("reward", [letters, alike, rarely])
@pytest.mark.parametrize("lora", [False, True])
def test_it_goes_on_within_a_rollout(lora: bool, reward: Any, tiny_model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"pairs": "all", "rollout": {"inner_epochs": 2, "minibatches": 2}}
    options["spec"] = {"lora": LoRASpec(r=4)} if lora else {}
    first, second = Steps(), Steps()
    whole, begun, resumed = (online(tiny_model, reward, **options) for _ in range(3))
    fit(whole, prompts(tmp_path), tmp_path, first, max_steps=10, max_epochs=-1)
    fit(begun, prompts(tmp_path), tmp_path, LastCheckpoint(1), max_steps=6, max_epochs=-1)
    last = tmp_path / "last.ckpt"
    fit(resumed, prompts(tmp_path), tmp_path, second, max_steps=10, max_epochs=-1, ckpt_path=last)
    assert second.pairs == first.pairs[6:]
    assert second.losses == first.losses[6:]
    assert same(weights(resumed), weights(whole))


def failing(completions: list[str]) -> list[float | None]:
    """Nothing to say on every second one."""
    return [float(len(said)) if place % 2 else None for place, said in enumerate(completions)]


def test_missing_scores_are_in_no_pair(tiny_model: Path, tmp_path: Path) -> None:
    seen = Steps()
    trainer = fit(online(tiny_model, failing, pairs="all"), prompts(tmp_path), tmp_path, seen)
    assert trainer.callback_metrics["train/reward/missing_ratio"] == 0.5
    assert max(count for step in seen.pairs for count in step) <= 4  # of two responses to each prompt
    assert sum(map(sum, seen.pairs)) > 0


def test_cut_off_responses_can_be_left_out(tiny_model: Path, tmp_path: Path) -> None:
    seen = Steps()
    module = online(tiny_model, rollout={"max_new_tokens": 1, "mask_truncated": True})
    trainer = fit(module, prompts(tmp_path), tmp_path, seen)
    assert trainer.callback_metrics["train/completions/clipped_ratio"] == 1
    assert sum(map(sum, seen.pairs)) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beta": 0.0}, "--model.beta is 0.0; it must be above 0"),
        ({"loss": "robust"}, "--model.label_smoothing 0 with --model.loss robust"),
        ({"rollout": {"group_size": 1}}, "--model.rollout.group_size 1"),
        ({"reference": "cached"}, "--model.reference cached"),
        ({"reference": "adapter_off"}, "--model.reference adapter_off: there is no adapter"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], told: str, tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match=told):
        online(tiny_model, **options)


@pytest.mark.parametrize(("name", "changed"), [("pairs", {"pairs": "all"}), ("beta", {"beta": 0.3})])
def test_resuming_with_other_options_is_refused(
    name: str, changed: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    fit(online(tiny_model), prompts(tmp_path), tmp_path, LastCheckpoint(1), max_epochs=1)
    with pytest.raises(PostTrainError, match=f"trained with --model.{name} .* and this run has"):
        fit(online(tiny_model, **changed), prompts(tmp_path), tmp_path, ckpt_path=tmp_path / "last.ckpt")
