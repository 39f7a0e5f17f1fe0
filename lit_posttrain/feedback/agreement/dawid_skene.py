"""Dawid and Skene (1979): the verdict of each pair, and how often each annotator mistakes which for which, by
expectation maximisation. Annotators who often contradict the others count less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lit_posttrain.feedback.agreement.votes import FIRST, SECOND, TIE, Floats, Votes

CATEGORIES = {"second": SECOND, "tie": TIE, "first": FIRST}
_LEAST = 1e-10  # probability, so that its logarithm exists


@dataclass(frozen=True)
class DawidSkene:
    """probabilities: (P, 3) of second, tie and first; NaN for pairs without a vote. confusion: (A, 3, 3) of each
    annotator: the probability to say the column's verdict where the row's is right. prior: (3,) of the verdicts.
    rounds: of the EM."""

    probabilities: Floats
    confusion: Floats
    prior: Floats
    rounds: int

    @property
    def share(self) -> Floats:
        """(P,) probability that the first response is better; a tie is half of it."""
        return np.asarray(self.probabilities @ np.array([0.0, 0.5, 1.0]))


def dawid_skene(verdicts: Floats, most_rounds: int = 1000, tolerance: float = 1e-10) -> DawidSkene:
    """Fit to verdicts (A, P), which are 1, 0, -1, or NaN without a vote. It begins with the shares of votes, and ends
    when no probability changes by more than `tolerance`.

    Each pair is also counted the other way round, so that labels do not depend on which response is called the first.
    """
    pairs = verdicts.shape[1]
    verdicts = np.concatenate([verdicts, -verdicts], axis=1)
    said = (verdicts[..., None] == np.array(list(CATEGORIES.values()))).astype(float)  # (A, P, 3)
    voted = said.sum((0, 2)) > 0
    said = said[:, voted]
    right = said.sum(0) / said.sum((0, 2))[:, None]
    rounds = 0
    while True:
        prior = right.mean(0)
        confusion = np.maximum(np.einsum("pt,aps->ats", right, said), _LEAST)
        confusion /= confusion.sum(2, keepdims=True)
        log = np.log(np.maximum(prior, _LEAST)) + np.einsum("aps,ats->pt", said, np.log(confusion))
        before, right = right, np.exp(log - log.max(1, keepdims=True))
        right /= right.sum(1, keepdims=True)
        rounds += 1
        if rounds == most_rounds or np.abs(right - before).max(initial=0) < tolerance:
            break
    probabilities = np.full((len(voted), 3), np.nan)
    probabilities[voted] = right
    return DawidSkene(probabilities[:pairs], confusion, prior, rounds)


def reliability(votes: Votes, fitted: DawidSkene) -> dict[str, dict[str, float]]:
    """By annotator, in shares of pairs: of those where one response is better, how often it is named (right), a tie is
    (tie) or the other one is (wrong); and how often a tie is named where it is one (tie_seen). Which response is called
    the first makes no difference."""
    found = {}
    for one, matrix in zip(votes.annotators, fitted.confusion, strict=True):
        better = fitted.prior[::2] / fitted.prior[::2].sum()
        shares = {
            "right": float(better @ [matrix[0, 0], matrix[2, 2]]),
            "tie": float(better @ [matrix[0, 1], matrix[2, 1]]),
            "wrong": float(better @ [matrix[0, 2], matrix[2, 0]]),
            "tie_seen": float(matrix[1, 1]),
        }
        found[one.name] = {name: round(value, 6) for name, value in shares.items()}
    return found
