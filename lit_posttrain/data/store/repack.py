"""A batch back to its trees, and into other rows: for a second model whose architecture packs differently."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lit_posttrain.data.store.packing import collate
from lit_posttrain.types import Response, RowLayout, Tree, TreeBatch


def unpacked(batch: TreeBatch) -> list[Tree]:
    """The trees of a batch, without labels. `per_target["place"]` of each says which of the batch's targets its own
    are."""
    ids, group = batch.input_ids.flatten().cpu().numpy(), batch.tree_ids.flatten().cpu().numpy()
    branch, last = batch.branch_ids.flatten().cpu().numpy(), batch.response_last.cpu().numpy()
    place_of = np.full(len(ids), -1, np.int64)  # of a token, which target it is; it stands behind its index
    index, owner = batch.target_index.cpu().numpy(), batch.target_response.cpu().numpy()
    trees = [Tree(np.zeros(0, np.int32), []) for _ in range(batch.num_trees)]
    places: list[list[np.ndarray[tuple[int], np.dtype[np.int64]]]] = [[] for _ in trees]
    prompts: list[np.ndarray[tuple[int], np.dtype[np.int64]] | None] = [None] * len(trees)
    for number in np.flatnonzero(owner < 0).tolist():  # a trained token of a prompt follows its index
        place_of[index[number] + 1] = number
    for response, tree in enumerate(batch.response_tree.tolist()):
        mine = group == group[last[response]]
        trunk, own = np.flatnonzero(mine & (branch == 0)), np.flatnonzero(mine & (branch == branch[last[response]]))
        before = np.concatenate([trunk[-1:], own[:-1]]) if len(trunk) else own[:-1]
        targets = np.flatnonzero(owner == response)
        trained = np.isin(before, index[targets])
        mask = trained if len(trunk) else np.concatenate([[False], trained])
        trees[tree].responses.append(Response(ids[own].astype(np.int32), mask))
        places[tree].append(targets)
        found = prompts[tree]
        if found is None or (place_of[trunk] >= 0).any():  # one copy of the prompt has its targets
            prompts[tree] = trunk
    for number, tree_ in enumerate(trees):
        trunk_ = prompts[number]
        assert trunk_ is not None
        tree_.prompt = ids[trunk_].astype(np.int32)
        asked = place_of[trunk_]
        tree_.prompt_loss_mask = asked >= 0 if (asked >= 0).any() else None
        tree_.per_target = {"place": np.concatenate([asked[asked >= 0], *places[number]])}
    return trees


def repacked(batch: TreeBatch, layout: RowLayout) -> tuple[TreeBatch, Tensor]:
    """The same trees in rows of another layout, and (N,) where each of the batch's targets is among the new ones."""
    made = collate(unpacked(batch), layout, {}).to(batch.input_ids.device)
    places = made.per_target.get("place", torch.zeros(0, dtype=torch.int64, device=batch.input_ids.device))
    order = torch.empty_like(places)
    order[places] = torch.arange(len(places), device=places.device)
    return made, order
