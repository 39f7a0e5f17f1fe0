"""The shapes every method shares: a prompt with its K responses (`Tree`), and a packed batch of them (`TreeBatch`)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_posttrain.ops.preferences import preferred_pairs, response_sums

IntArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]

Message = Mapping[str, Any]
Conversation = Sequence[Message]


@dataclass(slots=True)
class Response:
    """One response to a prompt, as token ids.

    tokens: (n,) int32, everything after the prompt, later user turns and tool results included.
    loss_mask: (n,) bool, the tokens that the policy is trained on (or sampled itself).
    labels: what is known of the response, by name; a number that nobody gave is absent. The package reads `rank` (0 is
        the best; equal ranks are ties), `margin` (by how much a preferred response is better than the other one),
        `flip_prob` (of the other one: the probability that it is the better one after all, where labels are soft),
        `good` (0 to 1, of a single response) and `reward`; a method adds its own, such as `cost`.
    """

    tokens: IntArray
    loss_mask: BoolArray
    labels: dict[str, float] = field(default_factory=dict)

    def label(self, name: str) -> float:
        """The number called `name`; NaN if nobody gave one."""
        return self.labels.get(name, math.nan)


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

    def takes(self, other: RowLayout) -> bool:
        """True if a model that wants this layout understands rows of the other one; they may cost it more."""
        return self.shared >= other.shared and self.packed >= other.packed and self.flat >= other.flat


@dataclass(frozen=True)
class Pairs:
    """P pairs of responses to the same prompt.

    chosen, rejected (P,) int64: which responses of the batch (0..M-1), the preferred one and the other.
    flip_prob (P,) float32: the probability that the other one is the better one after all, 0 where nobody said.
    margin (P,) float32: by how much the preferred one is better, 0 where nobody said.
    """

    chosen: Tensor
    rejected: Tensor
    flip_prob: Tensor
    margin: Tensor

    def expected_loss(self, loss: Callable[[Tensor, Tensor], Tensor], values_M: Tensor) -> Tensor:
        """(P,) the expectation of loss(preferred, other) under the soft labels, on one value a response: both orders,
        weighted by their probabilities. With certain labels the second one weighs nothing."""
        first, second = values_M[self.chosen], values_M[self.rejected]
        return (1 - self.flip_prob) * loss(first, second) + self.flip_prob * loss(second, first)


@dataclass
class PerResponse:
    """(M,) float32 by name. A name that no response of the batch has reads as NaN throughout, so that every name can be
    asked for in every batch, also in one without responses. columns: the names that some have. absent: (M,) NaN.

    A dataclass, whose tensors Lightning converts where the model is not float32; of a dict it would make a new one.
    """

    columns: dict[str, Tensor]
    absent: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.columns.get(name, self.absent)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> PerResponse:
        """A copy with `change` applied to every tensor."""
        return PerResponse({name: change(values) for name, values in self.columns.items()}, change(self.absent))


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
    per_response: by name (M,) float32, `Response.labels`, NaN where a response has no such number.
    denominators: the denominators of the whole optimizer step, over all its micro-batches and ranks, by unit
        (tokens, responses, trees, ...; data/store/units.py has the table). local_counts: those of this micro-batch.
    example_ids: for every prompt of this batch its index in the data set, for messages to people; stays on the CPU.
    per_target: by name (N,), what the trees brought along for each target.
    extras: by name the auxiliary rows of the whole step (of this rank) that a method asks for, packed; on the first
        micro-batch of a step.
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
    per_response: PerResponse
    denominators: dict[str, float]
    local_counts: dict[str, float]
    example_ids: list[int] = field(default_factory=list)
    per_target: dict[str, Tensor] = field(default_factory=dict)
    extras: dict[str, list[TreeBatch]] = field(default_factory=dict)

    @property
    def num_trees(self) -> int:
        """How many prompts the batch holds: the batch size that `LightningModule.log` wants."""
        return len(self.example_ids)

    @property
    def num_responses(self) -> int:
        """How many responses the batch holds (M)."""
        return self.response_tree.numel()

    def sum(self, values_N: Tensor) -> Tensor:
        """(M,) the sum of a response's targets; those of prompts are left out."""
        return response_sums(values_N, self.target_response, self.num_responses)

    def mean(self, values_N: Tensor) -> Tensor:
        """(M,) the mean of a response's targets; 0 without any."""
        return self.sum(values_N) / self.lengths.clamp(min=1)

    @property
    def lengths(self) -> Tensor:
        """(M,) float32: trained tokens of each response."""
        return self.sum(torch.ones_like(self.target_response, dtype=torch.float32))

    @property
    def ranks(self) -> Tensor:
        """(M,) float32: 0 for the best response of a prompt; NaN where nobody ranked them."""
        return self.per_response["rank"]

    @property
    def pairs(self) -> Pairs:
        """All pairs of responses to the same prompt that have unequal ranks."""
        chosen, rejected = preferred_pairs(self.ranks, self.response_tree)
        flip_prob, margin = self.per_response["flip_prob"][rejected], self.per_response["margin"][chosen]
        return Pairs(chosen, rejected, flip_prob.nan_to_num(0.0), margin.nan_to_num(0.0))

    @property
    def desirable(self) -> Tensor:
        """(M,) float32 in [0, 1]: the probability that a response is a good one, NaN where nobody said. Where no `good`
        says it, the best response of a prompt is good and the worst is bad, as far as the pair is certain."""
        rank, tree, good = self.ranks, self.response_tree, self.per_response["good"]
        flip_prob = self.per_response["flip_prob"].nan_to_num(0.0)
        zeros = rank.new_zeros(self.num_trees)
        worst = zeros.scatter_reduce(0, tree, rank.nan_to_num(0.0), "amax")
        best = 1 - zeros.index_add(0, tree, flip_prob)
        ranked = torch.where(rank == 0, best[tree], torch.where(rank == worst[tree], flip_prob, math.nan))
        return torch.where(good.isnan(), ranked, good)

    def local_count(self, unit: str) -> float:
        """How many of a unit this micro-batch itself holds: its share of `denominators[unit]`."""
        return self.local_counts[unit]

    def _map(self, change: Any) -> Self:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: change(v) if isinstance(v, Tensor) else v for k, v in moved.items()}
        moved["per_response"] = self.per_response.mapped(change)
        moved["per_target"] = {name: change(values) for name, values in self.per_target.items()}
        moved["extras"] = {name: [other._map(change) for other in others] for name, others in self.extras.items()}
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
    flip_prob (P,) float32: the probability that the other one is the better one after all.
    """

    rewards: Tensor
    rows: Tensor
    places: Tensor
    desirable: Tensor
    first: Tensor
    second: Tensor
    flip_prob: Tensor

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
