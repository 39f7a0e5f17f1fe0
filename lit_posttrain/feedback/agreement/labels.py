"""Several annotators' votes on a pair as one soft label, in records that `PreferenceData` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from typing import Literal

import numpy as np

from lit_posttrain.data.feedback.record import Decision, item_id, now
from lit_posttrain.feedback.agreement.dawid_skene import dawid_skene
from lit_posttrain.feedback.agreement.statistics import counts
from lit_posttrain.feedback.agreement.votes import Floats, Votes

Aggregate = Literal["dawid_skene", "majority", "mean"]


def joined(votes: Votes, aggregate: Aggregate) -> Floats:
    """(P,) probability that the first response is better. dawid_skene: by verdicts, each annotator weighted by how
    reliable it seems. majority: 1, 0, or one half without a majority, ties being a third opinion. mean: of the votes,
    a judge's as its probability."""
    if aggregate == "dawid_skene":
        return dawid_skene(votes.verdicts).share
    if aggregate == "mean":
        return votes.consensus(np.arange(len(votes.annotators)))
    count = counts(votes.verdicts)  # second, tie, first
    most = count == count.max(1, keepdims=True)
    share = np.where(most[:, 2] & ~most[:, :2].any(1), 1.0, np.where(most[:, 0] & ~most[:, 1:].any(1), 0.0, 0.5))
    return np.where(count.sum(1) > 0, share, np.nan)


def labels_of(votes: Votes, share: Floats, made_by: str) -> Iterator[Decision]:
    """A record for every pair with a label. made_by: how the share (P,) was made; the annotator of the records."""
    time = now()
    for column, pair in enumerate(votes.pairs):
        if np.isnan(share[column]):
            continue
        there = np.flatnonzero(~np.isnan(votes.share[:, column]))
        responses = [dict(pair.first), dict(pair.second)]
        item = item_id(pair.prompt, responses)
        given = {votes.annotators[row].name: round(float(votes.share[row, column]), 6) for row in there}
        told = json.dumps([item, made_by, given], sort_keys=True)
        yield Decision(
            blake2b(told.encode(), digest_size=16).hexdigest(),
            item,
            made_by,
            pair.prompt,
            responses,
            probability=round(float(share[column]), 6),
            judge={"kind": made_by, "votes": given},
            time=time,
            columns=dict(pair.columns),
        )
