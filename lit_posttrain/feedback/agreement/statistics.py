"""Agreement of annotators on verdicts first, tie and second (1, 0, -1; NaN without a verdict).

Each statistic is split in two: parts per pair, which add up over pairs, and the statistic of their sums. The sums of
resampled prompts have the same shape, with a leading axis. Equal to scikit-learn's, statsmodels' and krippendorff's, in
tests.

Which response is called the first is arbitrary, and in files of chosen and rejected ones it is always the better one;
so every pair is counted both ways round (`both_ways`). Otherwise agreement by chance would be 1 for such a file, and
kappa 0 whatever a judge says.
"""

from __future__ import annotations

import numpy as np

from lit_posttrain.feedback.agreement.votes import Floats

_CODES = np.array([-1.0, 0.0, 1.0])


def counts(verdicts: Floats) -> Floats:
    """(P, 3) the number of votes for second, tie and first, of verdicts (A, P)."""
    return np.asarray((verdicts[..., None] == _CODES).sum(0), float)


def both_ways(parts: Floats) -> Floats:
    """Parts (P, 3, 3) by two verdicts, with those of the same pairs with their responses exchanged."""
    return parts + parts[:, ::-1, ::-1]


def confusion(one: Floats, other: Floats) -> Floats:
    """(P, 3, 3) 1 at the verdicts of two annotators (P,), 0 elsewhere."""
    return np.asarray((one[:, None] == _CODES)[:, :, None] & (other[:, None] == _CODES)[:, None, :], float)


def agreement(matrix: Floats) -> Floats:
    """The share of equal verdicts, ties among them, of confusion counts (..., 3, 3)."""
    same: Floats = np.trace(matrix, axis1=-2, axis2=-1) / matrix.sum((-1, -2))
    return same


def decided_agreement(matrix: Floats) -> Floats:
    """The share of equal verdicts where neither annotator sees a tie, of confusion counts (..., 3, 3)."""
    return agreement(matrix[..., ::2, ::2])


def cohen(matrix: Floats) -> Floats:
    """Cohen's kappa (p_o - p_e) / (1 - p_e) of confusion counts (..., 3, 3) (Cohen 1960)."""
    total = matrix.sum((-1, -2))
    by_chance: Floats = (matrix.sum(-1) * matrix.sum(-2)).sum(-1) / total**2
    return (agreement(matrix) - by_chance) / (1 - by_chance)


def fleiss_parts(count: Floats) -> Floats:
    """(P, 5) of counts (P, 3) with the same number of votes n for every pair: the agreement within the pair (sum_c
    n_c^2 - n) / (n (n - 1)), 1 for the pair, and the shares of the categories, counted both ways round."""
    n = count.sum(1, keepdims=True)
    within = ((count**2).sum(1, keepdims=True) - n) / (n * (n - 1))
    return np.concatenate([within, np.ones_like(n), (count + count[:, ::-1]) / (2 * n)], axis=1)


def fleiss(sums: Floats) -> Floats:
    """Fleiss' kappa (P - P_e) / (1 - P_e) of summed `fleiss_parts` (..., 5) (Fleiss 1971)."""
    pairs = sums[..., 1]
    within: Floats = sums[..., 0] / pairs
    by_chance: Floats = ((sums[..., 2:] / pairs[..., None]) ** 2).sum(-1)
    return (within - by_chance) / (1 - by_chance)


def coincidences(count: Floats) -> Floats:
    """(P, 3, 3) coincidences n_c (n_k - [c = k]) / (m - 1) of counts (P, 3), m votes each; 0 where m is below 2."""
    votes = count.sum(1)[:, None, None]
    both = count[:, :, None] * (count[:, None, :] - np.eye(3))
    return np.where(votes > 1, both / np.maximum(votes - 1, 1), 0.0)


def alpha(matrix: Floats) -> Floats:
    """Krippendorff's alpha 1 - D_o / D_e of summed coincidences (..., 3, 3); annotators may have skipped pairs. The
    categories are ordered: a tie lies between the two responses (Krippendorff 2011, ordinal)."""
    n = matrix.sum(-1)
    near, far = n[..., :2] / 2 + n[..., 1:] / 2, n[..., 0] / 2 + n[..., 1] + n[..., 2] / 2
    distance = np.zeros_like(matrix)
    distance[..., 0, 1] = distance[..., 1, 0] = near[..., 0] ** 2
    distance[..., 1, 2] = distance[..., 2, 1] = near[..., 1] ** 2
    distance[..., 0, 2] = distance[..., 2, 0] = far**2
    observed: Floats = (matrix * distance).sum((-1, -2))
    expected: Floats = (n[..., :, None] * n[..., None, :] * distance).sum((-1, -2)) / (n.sum(-1) - 1)
    return 1 - observed / expected


def interval_parts(scores: Floats) -> Floats:
    """(R, 4) of scores (A, R), NaN for none, of responses with m scores: m, their sum, the sum of their squares, and
    the squared distances within the response over m - 1; 0 where m is below 2."""
    there = ~np.isnan(scores)
    m, total, squares = there.sum(0), np.nansum(scores, 0), np.nansum(scores**2, 0)
    within = 2 * (m * squares - total**2) / np.maximum(m - 1, 1)
    return np.where(m > 1, [m, total, squares, within], 0.0).T


def interval_alpha(sums: Floats) -> Floats:
    """Krippendorff's alpha of scores, with squared distances, of summed `interval_parts` (..., 4)."""
    n, total, squares, within = (sums[..., part] for part in range(4))
    observed: Floats = within / n
    return 1 - observed / (2 * (n * squares - total**2) / (n * (n - 1)))


def ratio(sums: Floats) -> Floats:
    """sums[..., 0] / sums[..., 1]"""
    share: Floats = sums[..., 0] / sums[..., 1]
    return share
