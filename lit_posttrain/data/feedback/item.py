"""A prompt with responses that a person or a judge is to decide on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lit_posttrain.data.feedback.record import item_id


@dataclass(frozen=True)
class Item:
    """K responses to one prompt.

    prompt: messages, with the system prompt. responses: K objects with `text`, and as far as it is known
    `reasoning_content`, `model` and `sampling`; a judge is shown the text alone. columns: the other columns of the row,
    with its tools; they may hold criteria. source: `file:line`.
    """

    prompt: list[dict[str, Any]]
    responses: list[dict[str, Any]]
    columns: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @cached_property
    def id(self) -> str:
        """Hash of the prompt and the responses' texts: the same in every file."""
        return item_id(self.prompt, self.responses)

    @property
    def texts(self) -> list[str]:
        """(K,) the responses."""
        return [str(one.get("text", "")) for one in self.responses]
