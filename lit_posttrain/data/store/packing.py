"""From token trees to packed rows: which responses share a prompt, how long rows are, which tree is in which row.

Attention over a packed row costs what it masks (a dense mask on CPU), so short rows beat long ones; how long is
chosen per micro-batch by `RowLayout.attention_cost`. Packing changes no loss, only the positions of tokens.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from lit_posttrain.data.store.units import UNITS, count, tokens
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import PerResponse, Response, RowLayout, Tree, TreeBatch

# Candidate row lengths are the longest group times these: more than one group a row pays where lengths are ragged.
_ROW_FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


# response or -1, indices of hidden states, token ids, tree, and which of the tree's targets they are
Span = tuple[int, NDArray[np.int64], NDArray[np.int64], Tree, slice]


@dataclass(slots=True)
class Group:
    """Tokens that stand together: a prompt (of tree `tree` of the batch) and some of its responses.

    owns_prompt: the trained tokens of the prompt are targets of this copy; exactly one copy owns them.
    """

    tree: int
    responses: list[int]
    length: int
    owns_prompt: bool


def row_cost(rows: int, length: int, attention_cost: float) -> float:
    """Cost of a (rows, length) batch in units of one token's matmuls: the linear part plus dense attention."""
    return rows * length * (1 + attention_cost * length)


def make_groups(trees: Sequence[Tree], layout: RowLayout) -> list[Group]:
    """Decide per tree whether its responses share one copy of the prompt."""
    groups: list[Group] = []
    for index, tree in enumerate(trees):
        prompt, tails = len(tree.prompt), [len(r.tokens) for r in tree.responses]
        together = Group(index, list(range(len(tails))), prompt + sum(tails), owns_prompt=True)
        apart = [Group(index, [k], prompt + tail, owns_prompt=k == 0) for k, tail in enumerate(tails)]
        if len(tails) < 2:
            groups.append(together)
            continue
        cost_apart = sum(row_cost(1, g.length, layout.attention_cost) for g in apart)
        # flat rows compute each branch against its trunk alone: sharing costs no attention, so it always pays
        pays = layout.flat or row_cost(1, together.length, layout.attention_cost) <= cost_apart
        groups.extend([together] if layout.shared and pays else apart)
    return groups


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing bin packing: indices of `lengths` per bin; every length must be at most `capacity`."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(room, (lengths[item], -1))
        if place == len(room):
            bins.append([item])
            free, home = capacity - lengths[item], len(bins) - 1
        else:
            free, home = room.pop(place)
            bins[home].append(item)
            free -= lengths[item]
        bisect.insort(room, (free, home))
    return bins


def plan_rows(lengths: Sequence[int], layout: RowLayout) -> tuple[int, list[list[int]]]:
    """The cheapest row length found and the groups of each row."""
    if layout.flat:
        return sum(lengths), [list(range(len(lengths)))]
    longest = max(lengths)
    if not layout.packed:
        return _round_up(longest, layout.multiple), [[i] for i in range(len(lengths))]
    plans = []
    for factor in _ROW_FACTORS:
        rows = best_fit(lengths, _round_up(int(longest * factor), layout.multiple))
        # the capacity is a budget; a row is only as long as the fullest one
        used = _round_up(max(sum(lengths[i] for i in row) for row in rows), layout.multiple)
        plans.append((row_cost(len(rows), used, layout.attention_cost), used, rows))
    _, length, rows = min(plans, key=lambda plan: plan[0])
    return length, rows


def split_step(lengths: NDArray[np.int64], parts: int) -> list[list[int]]:
    """Cut the trees of one optimizer step into `parts` micro-batches of about equal tokens and similar lengths.

    Longest first, so that a micro-batch holds trees of like length and wastes little. With fewer trees than parts
    some are empty.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    # a tree belongs to the part in which its middle falls: parts of about equal tokens
    middles = ends - lengths[order] / 2
    owner = np.minimum((middles * parts / max(int(lengths.sum()), 1)).astype(np.int64), parts - 1)
    return [order[owner == part].tolist() for part in range(parts)]


def collate(
    trees: Sequence[Tree], layout: RowLayout, denominators: Mapping[str, float], example_ids: Sequence[int] = ()
) -> TreeBatch:
    """Pack trees into a TreeBatch. No trees give a batch of one padding token and no targets: a rank that has run
    out of data still takes part in every collective.

    Raises:
        PostTrainError: for columns of `per_target` that are not those of all trees, or not one number per target.
    """
    whole = trees
    trees = trees if layout.tails else [_without_tails(tree) for tree in trees]
    groups = make_groups(trees, layout)
    length, rows = plan_rows([g.length for g in groups], layout) if groups else (1, [[]])
    shape = (len(rows), length)
    input_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    tree_ids, branch_ids = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    first_response = np.cumsum([0, *(len(t.responses) for t in trees)])
    spans: list[Span] = []
    attached = common_columns(trees)
    begins = _target_starts(trees) if attached else {}
    last = np.zeros(int(first_response[-1]), np.int64)
    for row, members in enumerate(rows):
        column = 0
        for member in members:
            group = groups[member]
            tree = trees[group.tree]
            start, trunk = row * length + column, len(tree.prompt)
            here = slice(column, column + trunk)
            input_ids[row, here], position_ids[row, here] = tree.prompt, np.arange(trunk)
            tree_ids[row, column : column + group.length] = member
            if group.owns_prompt and tree.prompt_loss_mask is not None:
                counted = np.flatnonzero(tree.prompt_loss_mask[1:])
                ids = tree.prompt[1:][counted].astype(np.int64)
                spans.append((-1, start + counted, ids, tree, slice(0, len(counted))))
            column += trunk
            for branch, k in enumerate(group.responses):
                response = tree.responses[k]
                size, number = len(response.tokens), int(first_response[group.tree]) + k
                if size == 0:
                    raise ValueError(f"{tree.source}: a response without tokens")
                here = slice(column, column + size)
                input_ids[row, here], branch_ids[row, here] = response.tokens, branch + 1
                position_ids[row, here] = np.arange(trunk, trunk + size)
                # the state that predicts a token is the one before it: the trunk's last for a branch's first
                before = row * length + column + np.arange(-1, size - 1)
                before[0] = start + trunk - 1
                chosen = response.loss_mask if trunk else np.concatenate([[False], response.loss_mask[1:]])
                ids, begin = response.tokens[chosen].astype(np.int64), begins.get(number, 0)
                spans.append((number, before[chosen], ids, tree, slice(begin, begin + len(ids))))
                last[number] = row * length + column + size - 1
                column += size
    spans.sort(key=lambda span: span[0])
    responses = [r for t in trees for r in t.responses]
    return TreeBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        tree_ids=torch.from_numpy(tree_ids),
        branch_ids=torch.from_numpy(branch_ids),
        target_index=_concatenate([s[1] for s in spans]),
        target_ids=_concatenate([s[2] for s in spans]),
        target_response=_concatenate([np.full(len(s[1]), s[0], np.int64) for s in spans]),
        response_tree=_concatenate([np.full(len(t.responses), i, np.int64) for i, t in enumerate(trees)]),
        response_last=torch.from_numpy(last),
        per_response=_labels(responses),
        local_counts={name: float(sum(count(name, tree) for tree in whole)) for name in UNITS},
        denominators=dict(denominators),
        example_ids=list(example_ids) if example_ids else list(range(len(trees))),
        per_target={
            name: torch.from_numpy(np.concatenate([tree.per_target[name][own] for *_, tree, own in spans]))
            for name in (attached if spans else ())
        },
    )


def _labels(responses: Sequence[Response]) -> PerResponse:
    names = dict.fromkeys(name for response in responses for name in response.labels)
    columns = {name: torch.tensor([r.label(name) for r in responses], dtype=torch.float32) for name in names}
    return PerResponse(columns, torch.full((len(responses),), math.nan))


def common_columns(trees: Sequence[Tree]) -> list[str]:
    """The names in `per_target` of the trees.

    Raises:
        PostTrainError: if trees have different names, or a column has not one number per target.
    """
    names = list(trees[0].per_target) if trees else []
    for tree in trees:
        if other := tree.per_target.keys() ^ set(names):
            raise PostTrainError(
                f"{tree.source}: `per_target` of some rows has {min(other)}, and of others it has not; write it for all"
            )
        size = tokens(tree) if names else 0
        wrong = next((name for name in names if len(tree.per_target[name]) != size), None)
        if wrong is not None:
            raise PostTrainError(
                f"{tree.source}: per_target[{wrong!r}] has {len(tree.per_target[wrong])} numbers for {size} trained "
                "tokens; write one for each of these"
            )
    return names


def _target_starts(trees: Sequence[Tree]) -> dict[int, int]:
    """Where the targets of each response begin among those of its tree, as `Tree.per_target` has them."""
    starts: dict[int, int] = {}
    for tree in trees:
        begin = 0 if tree.prompt_loss_mask is None else int(np.count_nonzero(tree.prompt_loss_mask[1:]))
        for response in tree.responses:
            starts[len(starts)] = begin
            begin += int(np.count_nonzero(response.loss_mask[0 if len(tree.prompt) else 1 :]))
    return starts


def _without_tails(tree: Tree) -> Tree:
    """The tree with responses that end at their last trained token."""
    ends = [max(np.flatnonzero(r.loss_mask)[-1:].sum() + 1, 1) for r in tree.responses]
    if all(end == len(r.tokens) for end, r in zip(ends, tree.responses, strict=True)):
        return tree
    cut = [
        replace(r, tokens=r.tokens[:n], loss_mask=r.loss_mask[:n]) for n, r in zip(ends, tree.responses, strict=True)
    ]
    return replace(tree, responses=cut)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _concatenate(parts: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]))
