"""An environment of one's own: it asks for a shorter answer, and rewards what was saved."""

from typing import Any

from lit_posttrain.on_policy.environment import Environment, Step


class Shorten(Environment):
    """Asks for a shorter answer so many times. The reward is the share of the first answer's letters that was saved, 0
    where the policy does not get that far."""

    def __init__(self, rounds: int = 1) -> None:
        """
        Args:
            rounds: How often it asks.
        """
        self.rounds = rounds
        self.lengths: list[int] = []

    def step(self, message: dict[str, Any]) -> Step:
        self.lengths.append(len(message["content"]))
        if len(self.lengths) <= self.rounds:
            return Step([{"role": "user", "content": "Shorter!"}], reward=0.0, done=False)
        return Step(reward=1 - self.lengths[-1] / max(self.lengths[0], 1))

    def resume_options(self) -> dict[str, Any]:
        return {"rounds": self.rounds}
