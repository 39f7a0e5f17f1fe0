"""What is collected in a rollout: kept by a checkpoint, split into micro-batches, and of which prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers.on_policy import prompts
from transformers import PreTrainedTokenizerFast

from lit_posttrain import Response, Tree
from lit_posttrain.on_policy.experience import Experience, PromptStream, num_targets, split_trees


def sampled_trees() -> list[Tree]:
    random = np.random.default_rng(0)
    trees = []
    for row in range(3):
        responses = []
        for k in range(row + 1):
            counted = np.full(4 + k, k != 1, np.bool_)
            labels = {"reward": 0.1 + k} | ({"rank": float(k), "cost": 1 / 3} if row else {})
            responses.append(Response(random.integers(3, 90, 4 + k).astype(np.int32), counted, labels))
        tree = Tree(random.integers(3, 90, 5).astype(np.int32), responses, file="a.jsonl", line=row)
        tree.per_target = {
            "old_logprobs": random.random(num_targets(tree)),
            "advantage": random.random(num_targets(tree)),
        }
        trees.append(tree)
    return trees


def same(one: Tree, other: Tree) -> None:
    assert one.source == other.source
    assert np.array_equal(one.prompt, other.prompt)
    for a, b in zip(one.responses, other.responses, strict=True):
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.loss_mask, b.loss_mask)
        assert a.labels == b.labels
    assert one.per_target.keys() == other.per_target.keys()
    assert all(np.array_equal(values, other.per_target[name]) for name, values in one.per_target.items())


def test_experience_survives_a_checkpoint(tmp_path: Path) -> None:
    trees = sampled_trees()
    del trees[1].responses[1].labels["reward"]  # of a response that no reward could judge
    torch.save(Experience(trees).dump(), tmp_path / "x.pt")
    found = Experience.restored(torch.load(tmp_path / "x.pt", weights_only=True)).trees
    for one, other in zip(trees, found, strict=True):
        same(one, other)


def test_trees_are_split_with_their_columns() -> None:
    trees = sampled_trees()
    pieces = split_trees(trees, 5)
    assert [len(piece.responses) for piece in pieces] == [1, 1, 1, 1, 2]
    whole = np.concatenate([tree.per_target["old_logprobs"] for tree in trees])
    assert np.array_equal(np.concatenate([piece.per_target["old_logprobs"] for piece in pieces]), whole)
    assert all(num_targets(piece) == len(piece.per_target["old_logprobs"]) for piece in pieces)
    assert len(split_trees(trees, 99)) == 6
    assert split_trees([], 3) == []


def test_prompts_come_in_passes(tmp_path: Path, tiny_model: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = prompts(tmp_path, 5)
    data.build(tokenizer)
    stream = PromptStream(data.train_store, seed=1, shuffle=True)
    taken = [stream.take(3) for _ in range(5)]
    flat = [row for rows in taken for row in rows]
    assert all(sorted(flat[i : i + 5]) == list(range(5)) for i in (0, 5, 10))
    again = PromptStream(data.train_store, seed=1, shuffle=True)
    again.position = 6
    assert again.take(3) == taken[2]
