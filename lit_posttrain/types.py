"""Types that all methods share: a prompt with its K responses (`Tree`), and a packed batch of them (`TreeBatch`)."""

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
    labels: numbers by name; unknown ones are absent. The package reads `rank` (0 is the best; equal ranks are ties),
        `margin` (of the preferred response of a pair: by how much it is better), `flip_prob` (of the other one, with
        soft labels: the probability that it is the better one),
        `good` (0 to 1, of a single response) and `reward`; a method adds its own, such as `cost`.
    """

    tokens: IntArray
    loss_mask: BoolArray
    labels: dict[str, float] = field(default_factory=dict)

    @property
    def num_trained(self) -> int:
        """How many of its tokens are trained on."""
        return int(np.count_nonzero(self.loss_mask))

    def label(self, name: str) -> float:
        """The label `name`; NaN if there is none."""
        return self.labels.get(name, math.nan)


@dataclass(slots=True)
class PromptRecord:
    """A prompt as rewards see it: its messages (a plain text is one user message; an assistant's message at the end is
    continued by the response), and all columns of its row. tools, variables: further arguments of its chat template."""

    messages: list[dict[str, Any]]
    columns: dict[str, Any]
    tools: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """For `Tree.record`."""
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
    record: the prompt and columns for rewards, as JSON: see `PromptRecord`.
    per_target: by name one number per target, such as the reference's log-probs; targets of the prompt come first.
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
    tails: keep tokens after the last trained one (a reward head reads the final token). Likelihoods do not need them.
    """

    shared: bool = True
    packed: bool = True
    attention_cost: float = 6e-4
    multiple: int = 1
    flat: bool = False
    tails: bool = False

    def takes(self, other: RowLayout) -> bool:
        """True if a model with this layout can compute rows of the other one; it may take longer."""
        return self.shared >= other.shared and self.packed >= other.packed and self.flat >= other.flat


@dataclass(frozen=True)
class Pairs:
    """P pairs of responses to the same prompt.

    chosen, rejected (P,) int64: which responses of the batch (0..M-1), the preferred one and the other.
    flip_prob (P,) float32: the probability that the other one is the better one; 0 if the data does not say.
    margin (P,) float32: by how much the preferred one is better; 0 if the data does not say.
    """

    chosen: Tensor
    rejected: Tensor
    flip_prob: Tensor
    margin: Tensor

    def expected_loss(self, loss: Callable[[Tensor, Tensor], Tensor], values_M: Tensor) -> Tensor:
        """(P,) the expected loss under the soft labels: (1 - flip_prob) * loss(preferred, other) + flip_prob *
        loss(other, preferred). values_M: one number per response, the arguments of `loss`."""
        first, second = values_M[self.chosen], values_M[self.rejected]
        return (1 - self.flip_prob) * loss(first, second) + self.flip_prob * loss(second, first)


@dataclass
class PerResponse:
    """(M,) float32 by name. Any name can be read from any batch, also from one without responses: names that no
    response has are NaN. columns: the names that some have. absent: (M,) NaN. read: the names that `[]` was asked for:
    where a loss is NaN, the message names those of them that are.

    It is a dataclass because Lightning converts the tensors of those in place, for models that are not float32; a dict
    it would copy.
    """

    columns: dict[str, Tensor]
    absent: Tensor
    read: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.optional(name)

    def optional(self, name: str) -> Tensor:
        """As `[name]`, for a reader that replaces NaN."""
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
    per_response: by name (M,) float32, `Response.labels`, NaN if a response has no such label.
    denominators: the denominators of the whole optimizer step, over all its micro-batches and ranks, by unit
        (tokens, responses, trees, ...; data/store/units.py has the table). local_counts: those of this micro-batch.
    example_ids: for every prompt of this batch its index in the data set, for messages to people; stays on the CPU.
    per_target: by name (N,), the columns of `Tree.per_target`.
    extras: by name the packed auxiliary rows that a method asks for, of the whole step on this rank; in the first
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
        """The number of prompts: `batch_size` for `LightningModule.log`."""
        return len(self.example_ids)

    @property
    def num_responses(self) -> int:
        """The number of responses, M."""
        return self.response_tree.numel()

    def sum(self, values_N: Tensor) -> Tensor:
        """(M,) the sum over the targets of each response, without those of prompts."""
        return response_sums(values_N, self.target_response, self.num_responses)

    def mean(self, values_N: Tensor) -> Tensor:
        """(M,) the mean over the targets of each response; 0 without targets."""
        return self.sum(values_N) / self.lengths.clamp(min=1)

    @property
    def lengths(self) -> Tensor:
        """(M,) float32: trained tokens of each response."""
        return self.sum(torch.ones_like(self.target_response, dtype=torch.float32))

    @property
    def ranks(self) -> Tensor:
        """(M,) float32: 0 for the best response of a prompt; NaN for unranked ones."""
        return self.per_response.optional("rank")

    @property
    def pairs(self) -> Pairs:
        """All pairs of responses to the same prompt that have unequal ranks."""
        chosen, rejected = preferred_pairs(self.ranks, self.response_tree)
        labels = self.per_response
        flip_prob, margin = labels.optional("flip_prob")[rejected], labels.optional("margin")[chosen]
        return Pairs(chosen, rejected, flip_prob.nan_to_num(0.0), margin.nan_to_num(0.0))

    @property
    def desirable(self) -> Tensor:
        """(M,) float32 in [0, 1]: the probability that a response is good, NaN if unknown: the label `good`; without
        it, 1 - flip_prob for the best response of a prompt and flip_prob for the worst."""
        rank, tree, good = self.ranks, self.response_tree, self.per_response.optional("good")
        flip_prob = self.per_response.optional("flip_prob").nan_to_num(0.0)
        zeros = rank.new_zeros(self.num_trees)
        worst = zeros.scatter_reduce(0, tree, rank.nan_to_num(0.0), "amax")
        best = 1 - zeros.index_add(0, tree, flip_prob)
        ranked = torch.where(rank == 0, best[tree], torch.where(rank == worst[tree], flip_prob, math.nan))
        return torch.where(good.isnan(), ranked, good)

    def local_count(self, unit: str) -> float:
        """The count of a unit in this micro-batch: its part of `denominators[unit]`."""
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

    rewards (M,) float32: scores, or the implicit rewards of the metrics rewards/...
    rows (M,) int64: index of the response's prompt in the evaluated data set. places (M,) int64: which of the prompt's
        responses it is.
    desirable (M,) float32: `TreeBatch.desirable`.
    first, second (P,) int64: indices (0..M-1) of a pair's preferred response and of the other one.
    flip_prob (P,) float32: `Pairs.flip_prob`.
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
        """Concatenates one or more of them."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        begin = 0
        for number, part in enumerate(parts):
            columns["first"][number] = part.first + begin
            columns["second"][number] = part.second + begin
            begin += len(part.rewards)
        return cls(**{name: torch.cat(column) for name, column in columns.items()})
