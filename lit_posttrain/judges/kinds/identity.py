"""What a judge is called in records, and what its opinions depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Generic, Protocol, TypeVar

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.judges.backend import Backend, Call
from lit_posttrain.judges.constitution import Constitution
from lit_posttrain.judges.spec import JudgeSpec


class Asks(Protocol):
    """A way of asking."""

    kind: str


Way = TypeVar("Way", bound=Asks)
SAMPLE = Item([{"role": "user", "content": "question"}], [{"text": "one"}, {"text": "other"}])
"""An item whose questions stand for all: their hash changes with every word that a judge is asked."""


class OfModel(Generic[Way]):
    """What judges of all kinds share: a model behind a backend, and a way of asking it."""

    def __init__(self, backend: Backend, spec: JudgeSpec, constitution: Constitution, way: Way) -> None:
        self.backend, self.spec, self.constitution, self.way = backend, spec, constitution, way

    @property
    def name(self) -> str:
        """Model and kind, as one annotator among others."""
        return f"{self.backend.identity.get('model', 'judge')} {self.way.kind}"

    async def close(self) -> None:
        """Close the backend."""
        await self.backend.close()


def identity(backend: Backend, spec: JudgeSpec, kind: str, version: int, hashed: str) -> dict[str, Any]:
    """`Judge.identity` of every kind. What changes nothing of a kind is not part of it, such as the length of replies
    where only probabilities are asked for: what was judged is not judged again. The hash is of whole calls."""
    drawn = {"principles_drawn": spec.principles, "seed": spec.seed} if spec.principles else {}
    return {**backend.identity, "kind": kind, "version": version, "prompt_hash": hashed, **drawn}


def prompt_hash(calls: Sequence[Call], *read: Constitution | Mapping[str, Any] | str) -> str:
    """Hash of sample questions, and of the files that the others are made from."""
    files = [one.hash if isinstance(one, Constitution) else one for one in read]
    told = json.dumps([[asdict(call) for call in calls], files], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
