"""Items with responses of known quality and length, and annotators with planted habits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lit_posttrain.data.feedback.record import Decision, item_id


class Items:
    """Pairs of responses, each with its quality and its length in characters, which are independent unless `tied` says
    how much longer the better response is."""

    def __init__(self, count: int, seed: int = 0, tied: float = 0.0, models: tuple[str, str] | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.quality = rng.normal(size=(count, 2))
        self.length = np.exp(4 + 0.5 * (rng.normal(size=(count, 2)) + tied * self.quality)).astype(int) + 1
        self.models, self._seed = models, seed

    def _responses(self, index: int) -> list[dict[str, Any]]:
        texts = [chr(97 + side) * self.length[index, side] for side in (0, 1)]
        models = [{"model": name} for name in self.models or ()] or [{}, {}]
        return [{"text": text, **model} for text, model in zip(texts, models, strict=True)]

    def people(self, name: str, right: float, seed: int, ties: float = 0.0) -> list[Decision]:
        """A person who sees the better response so often, and shows that the order was random."""
        rng, made = np.random.default_rng([self._seed, seed + 1]), []
        for index, (one, other) in enumerate(self.quality):
            better = int(other > one) if rng.random() < right else int(other <= one)
            ranks: list[int | None] = [0, 0] if rng.random() < ties else [better, 1 - better]
            made.append(self._decision(index, name, ranks=ranks, order=rng.permutation(2).tolist()))
        return made

    def judge(self, name: str, seen: Callable[[int], list[float]], model: str = "scripted") -> list[Decision]:
        """A judge that sees both orders. seen: from the number of an item to the probability of the record's first
        response, where it was shown first and where it was shown second."""
        made = []
        for index in range(len(self.quality)):
            orders = seen(index)
            judge = {"model": model, "kind": "pairwise", "version": "1", "prompt_hash": "0", "orders": orders}
            made.append(self._decision(index, name, probability=sum(orders) / 2, judge=judge))
        return made

    def consistent(self) -> list[Decision]:
        """Always right, whatever the order."""
        return self.judge("consistent", lambda i: [float(self.quality[i, 0] > self.quality[i, 1])] * 2)

    def positional(self) -> list[Decision]:
        """Always what it sees first."""
        return self.judge("positional", lambda i: [1.0, 0.0])

    def length_driven(self) -> list[Decision]:
        """Always the longer one; a tie for equal lengths."""
        return self.judge("longer", lambda i: [0.5 + 0.5 * float(np.sign(self.length[i, 0] - self.length[i, 1]))] * 2)

    def flipping(self, rate: float) -> list[Decision]:
        """Right, apart from so many items on which it says what it sees first."""
        flips = np.random.default_rng([self._seed, 99]).random(len(self.quality)) < rate
        right = [float(one > other) for one, other in self.quality]
        return self.judge("flipping", lambda i: [1.0, 0.0] if flips[i] else [right[i]] * 2)

    def _decision(self, index: int, name: str, **said: Any) -> Decision:
        prompt, responses = [{"role": "user", "content": f"question {index}"}], self._responses(index)
        item = item_id(prompt, responses)
        return Decision(f"{name}-{index}", item, name, prompt, responses, **said)
