"""The methods that every spine test runs through. A new method joins by a line in METHODS."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from helpers import tiny

from lit_posttrain import (
    DPO,
    GRPO,
    KTO,
    ORPO,
    PPO,
    SFT,
    Completion,
    ConversationData,
    Distillation,
    ModelSpec,
    OnlineDPO,
    PostTrainingModule,
    PreferenceData,
    PromptData,
    Response,
    RewardModel,
    RolloutConfig,
    SimPO,
    Tree,
)
from lit_posttrain.callbacks import KLControl
from lit_posttrain.core.component import KLWeight
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.on_policy.critics import Critic
from lit_posttrain.rewards import FunctionReward, Repetition


@dataclass
class Case:
    """How to build a method on a model folder, the rows that it trains on (none where it samples them itself), and a
    data module on files in a folder."""

    build: Callable[[ModelSpec], PostTrainingModule]
    trees: Callable[[], list[Tree]]
    data: Callable[[Path], pl.LightningDataModule]


def conversations(rows: int = 64, seed: int = 0) -> list[Tree]:
    """Random single-response trees of very unequal lengths."""
    random = np.random.default_rng(seed)
    trees = []
    for _ in range(rows):
        prompt = random.integers(3, 500, random.integers(2, 30)).astype(np.int32)
        tokens = random.integers(3, 500, random.integers(1, 40)).astype(np.int32)
        counted = random.random(len(tokens)) < 0.8
        counted[-1] = True
        trees.append(Tree(prompt, [Response(tokens, counted)]))
    return trees


WORDS = ["fox", "dog", "wizard", "potion", "question", "answer", "seven", "night"]


def _files(folder: Path, name: str, row: Callable[[int, int], dict[str, object]]) -> list[str]:
    """Three files of 17 rows, `row(number of the file, number of the row)` beside a prompt; made once."""
    files = []
    for number in range(3):
        file = folder / f"{name}-{number}.jsonl"
        if not file.exists():
            rows = [{"prompt": f"tell me about {WORDS[i % 8]} {i}", **row(number, i)} for i in range(17)]
            file.write_text("".join(json.dumps(one) + "\n" for one in rows))
        files.append(str(file))
    return files


def _preferences(folder: Path, name: str, row: Callable[[int, int], dict[str, object]]) -> PreferenceData:
    return PreferenceData(_files(folder, name, row), batch_size=7, seed=3, cache_dir=str(folder / "cache"))


def _said(number: int, i: int) -> str:
    return " ".join(WORDS[: 1 + (i * 5 + number) % 8])


def conversation_files(folder: Path) -> ConversationData:
    """Several files of chats of unequal lengths, shuffled and packed."""
    files = _files(folder, "chats", lambda number, i: {"completion": _said(number, i)})
    return ConversationData(files, batch_size=7, seed=3, cache_dir=str(folder / "cache"))


def comparisons(rows: int = 64, seed: int = 0) -> list[Tree]:
    """Random pairs of very unequal lengths; every fourth has a soft label, and every third no margin."""
    random = np.random.default_rng(seed)
    trees = []
    for row in range(rows):
        prompt = random.integers(3, 500, random.integers(2, 30)).astype(np.int32)
        sides = []
        for rank in (0.0, 1.0):
            tokens = random.integers(3, 500, random.integers(1, 40)).astype(np.int32)
            labels = {"rank": rank} | ({"flip_prob": 0.3} if rank and row % 4 == 0 else {})
            labels |= {"margin": 0.5 * (row % 3)} if not rank and row % 3 else {}
            sides.append(Response(tokens, np.ones(len(tokens), np.bool_), labels))
        trees.append(Tree(prompt, sides))
    return trees


def comparison_files(folder: Path) -> PreferenceData:
    """Several files of pairs of unequal lengths, shuffled and packed."""

    def row(number: int, i: int) -> dict[str, object]:
        return {"chosen": _said(number, i), "rejected": " ".join(WORDS[7 - (i * 3) % 7 :]) + " no"}

    return _preferences(folder, "pairs", row)


def ranked_files(folder: Path) -> PreferenceData:
    """Files of rankings with ties, two to four responses each."""

    def row(number: int, i: int) -> dict[str, object]:
        said = [" ".join(WORDS[(i + j) % 8 :]) + f" {j}" for j in range(2 + (i + number) % 3)]
        return {"responses": [{"text": text, "rank": min(j, 2)} for j, text in enumerate(said)]}

    return _preferences(folder, "rankings", row)


def rankings(rows: int = 64, seed: int = 0) -> list[Tree]:
    """Random rankings of two to four responses of very unequal lengths."""
    random = np.random.default_rng(seed)
    trees = []
    for row in range(rows):
        prompt = random.integers(3, 500, random.integers(2, 30)).astype(np.int32)
        said = [random.integers(3, 500, random.integers(1, 40)).astype(np.int32) for _ in range(2 + row % 3)]
        responses = [Response(t, np.ones(len(t), np.bool_), {"rank": min(rank, 2)}) for rank, t in enumerate(said)]
        trees.append(Tree(prompt, responses))
    return trees


def feedback(rows: int = 64, seed: int = 0) -> list[Tree]:
    """Random good and bad responses, some beside each other, some rankings."""
    pairs = comparisons(rows // 2, seed)
    lone = [Tree(t.prompt, [t.responses[i % 2]]) for i, t in enumerate(comparisons(rows // 4, seed + 1))]
    for i, tree in enumerate(lone):
        tree.responses[0].labels = {"good": 1.0 - i % 2}
    return [*pairs, *lone, *rankings(rows // 4, seed + 2)]


def feedback_files(folder: Path) -> PreferenceData:
    """Files of single responses, good or bad."""

    def row(number: int, i: int) -> dict[str, object]:
        return {"completion": _said(number, i), "label": (i + number) % 3 > 0}

    return _preferences(folder, "feedback", row)


def prompt_files(folder: Path) -> PromptData:
    """Files of prompts, answered three times over."""
    files = _files(folder, "prompts", lambda number, i: {"answer": _said(number, i)})
    return PromptData(files, batch_size=6, seed=3, cache_dir=str(folder / "cache"))


def vowels(completions: list[str]) -> list[float]:
    """A reward that differs between responses."""
    return [sum(said.count(letter) for letter in "aeiou") - 0.1 * len(said) for said in completions]


def recorded(prompts: Sequence[Sequence[int]], group: int) -> list[list[Completion]]:
    """Responses of very unequal lengths that depend on the prompt's tokens alone."""
    answers = []
    for prompt in prompts:
        random = np.random.default_rng(np.array(prompt, np.int64))
        said = [random.integers(3, 400, random.integers(1, 40)) for _ in range(group)]
        ends = ["stop" if random.random() < 0.7 else "length" for _ in said]
        answers.append(
            [
                Completion(one.tolist(), (-3 * random.random(len(one))).tolist(), end)  # type: ignore[arg-type]  # of two
                for one, end in zip(said, ends, strict=True)
            ]
        )
    return answers


def _on_policy(kind: type[GRPO], spec: ModelSpec) -> GRPO:
    return kind(
        spec,
        [FunctionReward(vowels), Repetition(weight=0.5)],
        rollout=RolloutConfig(group_size=3, max_new_tokens=24, inner_epochs=2, minibatches=2, mask_truncated=True),
        beta=0.1,
        entropy=0.01,
        importance_sampling="tis",
    )


def _ppo(spec: ModelSpec) -> PPO:
    return PPO(
        spec,
        [FunctionReward(vowels)],
        rollout=RolloutConfig(group_size=3, max_new_tokens=24, inner_epochs=2, minibatches=2),
        critic=Critic(lr=1e-2, weight=0.5),
        beta=0.1,
        target_kl=0.1,
    )


def _online_dpo(spec: ModelSpec) -> OnlineDPO:
    return OnlineDPO(
        spec,
        [FunctionReward(vowels), Repetition(weight=0.5)],
        rollout=RolloutConfig(group_size=3, max_new_tokens=24, inner_epochs=2, minibatches=2),
        pairs="all",
    )


def teacher_of(model: Path) -> Path:
    """A smaller model beside the tiny one of a run, made once: before a run begins that has several processes."""
    folder = model.with_name(f"{model.name}-teacher")
    if not folder.exists():
        with torch.random.fork_rng():
            tiny.save_model(folder, seed=7, hidden_size=32, initializer_range=0.3)  # sure of itself
    return folder


def _distillation(spec: ModelSpec) -> Distillation:
    return Distillation(
        spec,
        ModelSpec(str(teacher_of(Path(spec.path))), dtype=spec.dtype),
        [FunctionReward(vowels)],
        rollout=RolloutConfig(group_size=3, max_new_tokens=24, inner_epochs=2, minibatches=2, seed=2),
        beta=0.5,
        student_share=0.5,  # with this seed the student, the teacher, the teacher, the student
    )


METHODS: dict[str, Case] = {
    "sft": Case(lambda spec: SFT(spec, Optim(lr=2e-5, schedule="cosine")), conversations, conversation_files),
    "dpo": Case(lambda spec: DPO(spec, sft_weight=0.3), comparisons, comparison_files),
    "simpo": Case(SimPO, comparisons, comparison_files),
    "orpo": Case(ORPO, comparisons, comparison_files),
    "kto": Case(KTO, feedback, feedback_files),
    "grpo": Case(lambda spec: _on_policy(GRPO, spec), list, prompt_files),
    "ppo": Case(lambda spec: _ppo(spec), list, prompt_files),
    "online_dpo": Case(_online_dpo, list, prompt_files),
    "distillation": Case(_distillation, list, prompt_files),
    "reward": Case(
        lambda spec: RewardModel(spec, loss="all_pairs", center_rewards_coefficient=0.1), rankings, ranked_files
    ),
}

GIVEN_ROWS = [method for method, case in METHODS.items() if case.trees is not list]
SAMPLING = [method for method in METHODS if method not in GIVEN_ROWS]


def build(method: str, folder: Path, **changes: object) -> PostTrainingModule:
    """A method on a model folder."""
    return METHODS[method].build(replace(ModelSpec(str(folder)), **changes))  # type: ignore[arg-type]  # test options


def kl_coefficient(module: PostTrainingModule) -> float | None:
    """The weight of its KL from the reference; None for a method without one."""
    part = module.components.get("kl")
    return part.coefficient if isinstance(part, KLWeight) else None


def kl_control(module: PostTrainingModule) -> list[pl.Callback]:
    """What moves it, where there is something to move."""
    return [] if kl_coefficient(module) is None else [KLControl(coefficient="adaptive", target=0.05, horizon=20.0)]
