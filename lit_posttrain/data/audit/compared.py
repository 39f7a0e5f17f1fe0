"""Figures of preference data: how many responses, pairs and ties, how certain, and how much length explains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class ResponseColumns:
    """Every response of a data set, those of a prompt one after another, (M,) each.

    tree: the prompt that it answers, counted from 0. size: its tokens. labels: `Response.labels` by name, NaN where a
    response has no such number.
    """

    tree: NDArray[np.int64]
    size: NDArray[np.int64]
    labels: dict[str, NDArray[np.float32]]

    def label(self, name: str) -> NDArray[np.float32]:
        """The numbers called `name`; NaN throughout where no response has one."""
        return self.labels.get(name, np.full(len(self.tree), np.nan, np.float32))


@dataclass
class Compared:
    """Figures of a data set.

    responses: of all prompts. fewest, most: responses per prompt. pairs: of unequal rank. tied: pairs of equal rank.
    unsure: pairs whose annotators disagree; undecided: pairs with as many votes for either, ties among them; both count
    as pairs. good, bad: responses that methods on single responses (KTO) take as good and as bad: of a ranking the best
    and the worst, of a tie none. unequal: pairs whose responses differ in their number of tokens. longer: in how many
    of these the longer response is preferred, by share of votes.
    """

    responses: int
    fewest: int
    most: int
    pairs: int
    tied: int
    unsure: int
    undecided: int
    good: int
    bad: int
    unequal: int
    longer: float

    @property
    def one_sided(self) -> str:
        """A warning if all single responses are good or all are bad, or if all pairs are ties; otherwise empty."""
        if self.all_tied:
            return f"all {self.pairs:,} pairs are ties: no response is preferred, and nothing can be learned from them"
        if self.pairs or (self.good and self.bad):
            return ""
        kind, other = ("good", "bad") if self.good else ("bad", "good")
        return f"all {self.responses:,} responses are {kind}: nothing tells them from {other} ones; add some"

    @property
    def all_tied(self) -> bool:
        """True if there are pairs and all of them are ties."""
        return self.pairs > 0 and self.undecided == self.pairs

    def lines(self) -> list[str]:
        """The counts in words."""
        each = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
        if self.most == 1:
            return [f"single responses: {self.good:,} good, {self.bad:,} bad"]
        aside = [(self.tied, "tied"), (self.unsure, "with annotators who disagree")]
        aside.append((self.undecided, "with as many votes for either"))
        noted = "".join(f", {count:,} {what}" for count, what in aside if count)
        found = [f"responses per prompt: {each}; pairs: {self.pairs:,}{noted}; {self.good:,} good, {self.bad:,} bad"]
        if self.unequal:
            share = self.longer / self.unequal
            found.append(f"the longer response is preferred in {share:.1%} of {self.unequal:,} pairs of unequal length")
        return found


def compared(columns: ResponseColumns) -> Compared | None:
    """Compute the figures; None for data without comparisons."""
    rank, good = columns.label("rank"), columns.label("good")
    if np.isnan(rank).all() and np.isnan(good).all():
        return None
    each = np.bincount(columns.tree)
    first = np.cumsum(each) - each
    flip_prob = np.nan_to_num(columns.label("flip_prob"))
    pairs = tied = unequal = bad = 0
    longer = 0.0
    for count in np.unique(each).tolist():  # prompts with equally many responses are counted together
        places = first[each == count][:, None] + np.arange(count)
        ranks, sizes = rank[places], columns.size[places]
        better = ranks[:, :, None] < ranks[:, None, :]
        pairs += int(better.sum())
        tied += int(np.triu(ranks[:, :, None] == ranks[:, None, :], 1).sum())
        more = sizes[:, :, None] > sizes[:, None, :]
        less = more.transpose(0, 2, 1)
        other = np.broadcast_to(flip_prob[places][:, None, :], better.shape)  # the share of votes for the worse one
        longer += float((1 - other)[better & more].sum() + other[better & less].sum())
        unequal += int((better & (more | less)).sum())
        worst = np.nan_to_num(ranks).max(1, initial=0.0)
        bad += int(((ranks == worst[:, None]) & (worst[:, None] > 0) & np.isnan(good[places])).sum())
    undecided = int((flip_prob == 0.5).sum())
    neither = int(((flip_prob == 0.5) & np.isnan(good)).sum())
    return Compared(
        responses=len(rank),
        fewest=int(each.min()),
        most=int(each.max()),
        pairs=pairs,
        tied=tied,
        unsure=int(((flip_prob > 0) & (flip_prob < 0.5)).sum()),
        undecided=undecided,
        good=int(((rank == 0) & np.isnan(good)).sum() + (good > 0.5).sum()) - neither,
        bad=bad + int((good < 0.5).sum()) - neither,
        unequal=unequal,
        longer=longer,
    )
