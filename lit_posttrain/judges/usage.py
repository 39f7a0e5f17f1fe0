"""What a judge has cost so far."""

from __future__ import annotations

from dataclasses import dataclass

from lit_posttrain.judges.backend import Call, Reply, most_tokens
from lit_posttrain.judges.spec import JudgeBudget


@dataclass
class Usage:
    """Counted while a judge works.

    calls: requests that were sent, failed ones included. repeated: those among them that repeat a failed one. failed:
    calls that were given up. cached: replies from the cache. tokens_in, tokens_out: of the calls, and of those whose
    server does not tell them the most that they may have been. cost: in the unit of the prices; 0 without.
    """

    calls: int = 0
    repeated: int = 0
    failed: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        """Of questions and replies."""
        return self.tokens_in + self.tokens_out

    def told(self) -> str:
        """In a line."""
        parts = [f"{self.calls} calls", f"{self.repeated} of them repeated", f"{self.failed} given up"]
        parts += [f"{self.cached} replies from the cache", f"{self.tokens} tokens"]
        parts += [f"cost {self.cost:.6g}"] if self.cost else []
        return ", ".join(parts)

    def add(self, tokens_in: int, tokens_out: int, prices: JudgeBudget) -> None:
        """Count what a call cost."""
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.cost += cost_of(tokens_in, tokens_out, prices)


def cost_of(tokens_in: int, tokens_out: int, prices: JudgeBudget) -> float:
    """The money that tokens cost; 0 without prices."""
    return (tokens_in * (prices.price_in or 0.0) + tokens_out * (prices.price_out or 0.0)) / 1e6


def most_of(call: Call) -> tuple[int, int]:
    """The most tokens, of question and reply, that a call may cost."""
    longest = 1 if call.choices else call.max_tokens
    return most_tokens(call) - longest, longest


def spent_on(call: Call, reply: Reply) -> tuple[int, int]:
    """The tokens, of question and reply, that a call cost: as the server tells, else the most that it may be."""
    told = (reply.tokens_in, reply.tokens_out)
    return told if any(told) else most_of(call)
