"""The shapes every method shares: a prompt with its K responses (`Tree`), and a packed batch of them (`TreeBatch`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]

Message = Mapping[str, Any]
Conversation = Sequence[Message]


class Role(IntEnum):
    """What a response is to its prompt. A ranked response has role RANKED and its rank as label."""

    SAMPLE = 0
    CHOSEN = 1
    REJECTED = 2
    RANKED = 3
    MISMATCHED = 4


@dataclass(slots=True)
class Response:
    """One response to a prompt, as token ids.

    tokens: (n,) int32, everything after the prompt, later user turns and tool results included.
    loss_mask: (n,) bool, the tokens that the policy is trained on (or sampled itself).
    label: by `role` the rank of a RANKED response (0 is the best), the margin of a CHOSEN one over the other (0 where
        nobody gave one), the probability that a REJECTED one is the better one after all (soft labels), or a reward.
    """

    tokens: IntArray
    loss_mask: BoolArray
    role: Role = Role.SAMPLE
    label: float = 0.0


def rank_of(role: int, label: float) -> float:
    """0 for the best response of a prompt, higher for worse ones; NaN for a response that was compared with none."""
    return {Role.CHOSEN: 0.0, Role.REJECTED: 1.0, Role.RANKED: label}.get(Role(role), math.nan)


@dataclass(slots=True)
class PromptRecord:
    """What rewards know of a prompt: its messages (a plain text is one user message; words of the assistant at the end
    are continued by the response), and all columns of its row. tools, variables: what its chat template got besides."""

    messages: list[dict[str, Any]]
    columns: dict[str, Any]
    tools: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As `Tree.record` has it."""
        parts = [self.messages, self.columns, self.tools, self.variables]
        return json.dumps(parts, default=str)  # as ASCII: a column may hold half of a surrogate pair

    @classmethod
    def of(cls, tree: Tree) -> PromptRecord:
        """The record of a prompt that `PromptData` read."""
        return cls(*json.loads(tree.record)) if tree.record else cls([], {})


@dataclass(slots=True)
class Tree:
    """A prompt (the trunk) and its K responses (the branches).

    prompt: (n,) int32. prompt_loss_mask: (n,) bool or None; None means that no prompt token is trained on.
    file, line: where the record came from, for messages to people.
    record: what a reward looks at besides, as JSON: see `PromptRecord`.
    per_target: by name one number for every target, those of the prompt first, such as log-probs of a reference.
    """

    prompt: IntArray
    responses: list[Response]
    prompt_loss_mask: BoolArray | None = None
    file: str = ""
    line: int = 0
    record: str = ""
    per_target: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """`file:line` of the record."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class RowLayout:
    """How trees become rows, as the model's architecture and device allow (models/architectures.py decides).

    shared: the responses of a prompt share one copy of it; otherwise each carries its own.
    packed: several attention groups may stand in one row; otherwise each has a row to itself, which every causal
        model understands, recurrent ones included.
    attention_cost: cost of attending to one more column relative to one token's matmuls (measured; see
        docs/decisions.md). It decides how long rows are and whether sharing a prompt pays.
    multiple: rows are padded to a multiple of this many tokens.
    flat: all groups stand in a single row without padding; the model's attention works a group at a time, so a long
        row costs nothing.
    tails: keep what stands behind a response's last trained token, where a score is read; likelihoods need it not.
    """

    shared: bool = True
    packed: bool = True
    attention_cost: float = 6e-4
    multiple: int = 1
    flat: bool = False
    tails: bool = False


@dataclass
class TreeBatch:
    """Packed rows of trees. R rows of T tokens, N targets, M responses. All indices are int64.

    input_ids, position_ids (R, T): tokens and their positions; every branch continues from the end of its trunk.
    tree_ids (R, T): which attention group a token belongs to, unique in the batch; -1 is padding. In the unshared
        layout every response is a group of its own with a copy of the trunk; `response_tree` still names the prompt.
    branch_ids (R, T): 0 for the trunk, k >= 1 for the k-th branch of the group.
    target_index (N,): flat index into R*T of the hidden state that predicts target n.
    target_ids (N,): the token to predict. Only trained tokens are targets; those of one response are contiguous and
        in order.
    target_response (N,): response (0..M-1) of the target; -1 for a trained token of a prompt.
    response_tree (M,): which prompt of this batch (0..trees-1) a response answers.
    response_last (M,): flat index of the response's last token.
    response_role (M,), response_label (M,) float32: see `Role` and `Response.label`.
    denominators: the denominators of the whole optimizer step, over all its micro-batches and ranks, by unit
        (tokens, responses, trees, ...).
    example_ids: for every prompt of this batch its index in the data set, for messages to people; stays on the CPU.
    per_target: by name (N,), what the trees brought along for each target.
    mismatched: prompts of the whole step (of this rank) with responses to other prompts, where the method asks for
        them; on the first micro-batch of a step.
    """

    input_ids: Tensor
    position_ids: Tensor
    tree_ids: Tensor
    branch_ids: Tensor
    target_index: Tensor
    target_ids: Tensor
    target_response: Tensor
    response_tree: Tensor
    response_last: Tensor
    response_role: Tensor
    response_label: Tensor
    denominators: dict[str, float]
    example_ids: list[int] = field(default_factory=list)
    per_target: dict[str, Tensor] = field(default_factory=dict)
    mismatched: list[TreeBatch] = field(default_factory=list)

    @property
    def num_trees(self) -> int:
        """How many prompts the batch holds: the batch size that `LightningModule.log` wants."""
        return len(self.example_ids)

    @property
    def num_responses(self) -> int:
        """How many responses the batch holds (M)."""
        return self.response_tree.numel()

    @property
    def ranks(self) -> Tensor:
        """(M,) float32, as `rank_of` has it."""
        role = self.response_role
        paired = torch.where(role == Role.CHOSEN, 0.0, torch.where(role == Role.REJECTED, 1.0, math.nan))
        return torch.where(role == Role.RANKED, self.response_label, paired)

    @property
    def desirable(self) -> Tensor:
        """(M,) float32 in [0, 1]: the probability that a response is a good one; NaN where nobody said. Of a ranking
        the best is good and the worst is bad."""
        role, label, tree = self.response_role, self.response_label, self.response_tree
        flipped = label.new_zeros(self.num_trees).index_add(0, tree, torch.where(role == Role.REJECTED, label, 0.0))
        paired = torch.where(
            role == Role.CHOSEN, 1 - flipped[tree], torch.where(role == Role.REJECTED, label, math.nan)
        )
        ranked = torch.where(role == Role.RANKED, label, 0.0)
        worst = label.new_zeros(self.num_trees).scatter_reduce(0, tree, ranked, "amax")
        ends = torch.where(label == 0, 1.0, torch.where(label == worst[tree], 0.0, math.nan))
        return torch.where(role == Role.RANKED, ends, paired)

    def local_count(self, unit: str) -> float:
        """How many tokens, responses, pairs or trees this micro-batch itself holds: its share of
        `denominators[unit]`. A pair is two responses to one prompt of unequal rank; chosen_tokens are the trained
        ones of prompts and of responses of rank 0; labelled are the responses of which somebody said whether they
        are good."""
        if unit == "labelled":
            return float((~self.desirable.isnan()).sum())
        if unit == "tokens":
            return float(self.target_ids.numel())
        if unit == "chosen_tokens":
            owner = self.target_response
            return float(((owner < 0) | (self.ranks[owner] == 0)).sum())
        if unit == "pairs":
            same, rank = self.response_tree[:, None] == self.response_tree[None, :], self.ranks
            return float((same & (rank[:, None] < rank[None, :])).sum())
        return float({"responses": self.num_responses, "trees": self.num_trees}[unit])

    def _map(self, change: Any) -> Self:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: change(v) if isinstance(v, Tensor) else v for k, v in moved.items()}
        moved["per_target"] = {name: change(values) for name, values in self.per_target.items()}
        moved["mismatched"] = [other._map(change) for other in self.mismatched]
        return type(self)(**moved)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy of the batch on `device`."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy of the batch in pinned memory."""
        return self._map(lambda t: t.pin_memory())


@dataclass(frozen=True)
class RewardedResponses:
    """Rewards of evaluated responses: M responses, P pairs of them.

    rewards (M,) float32: what the metrics rewards/... are made of, a score or an implicit reward.
    rows (M,) int64: index of the response's prompt in the evaluated data set. places (M,) int64: which of the prompt's
        responses it is.
    desirable (M,) float32: as `TreeBatch.desirable` has it.
    first, second (P,) int64: indices (0..M-1) of a pair's preferred response and of the other one.
    flipped (P,) float32: the probability that the other one is the better one after all.
    """

    rewards: Tensor
    rows: Tensor
    places: Tensor
    desirable: Tensor
    first: Tensor
    second: Tensor
    flipped: Tensor

    def cpu(self) -> Self:
        """A copy in main memory."""
        return type(self)(**{f.name: getattr(self, f.name).cpu() for f in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Several of them as one, in the order given; at least one."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        begin = 0
        for number, part in enumerate(parts):
            columns["first"][number] = part.first + begin
            columns["second"][number] = part.second + begin
            begin += len(part.rewards)
        return cls(**{name: torch.cat(column) for name, column in columns.items()})
