"""Judges' models that follow a script."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.judges.backend import Call, Reply
from lit_posttrain.judges.building import judge_of
from lit_posttrain.judges.judge import Opinion
from lit_posttrain.judges.spec import JudgeSpec

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


class ScriptedBackend:
    """Replies by a function; keeps the calls."""

    def __init__(self, script: Callable[[Call], Reply]) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.closed = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": "scripted"}

    async def ask(self, call: Call) -> Reply:
        self.calls.append(call)
        await asyncio.sleep(0)
        return self.script(call)

    async def close(self) -> None:
        self.closed = True


def item(*responses: str, prompt: list[dict[str, Any]] = QUESTION, **columns: Any) -> Item:
    return Item(prompt, [{"text": text} for text in responses], columns)


def question(call: Call) -> str:
    """The text of a call."""
    (message,) = call.messages
    return str(message["content"])


def parts(call: Call) -> dict[str, str]:
    """What a call shows, by the names of its parts: user, response A, ..."""
    text = question(call)
    found = re.search(r'"(=== [0-9a-f]{6})"', text)
    assert found is not None
    pieces = re.split(rf"^{found[1]} (.+)\n?", text, flags=re.MULTILINE)[1:]
    return {name: said.removesuffix("\n") for name, said in zip(pieces[::2], pieces[1::2], strict=True)}


def opinion(script: Callable[[Call], Reply], judged: Item, **spec: Any) -> tuple[Opinion, ScriptedBackend]:
    """The opinion of a judge whose model follows a script."""
    backend = ScriptedBackend(script)
    return asyncio.run(judge_of(JudgeSpec("scripted", **spec), backend).opinion(judged)), backend


def choice(mass: float = 0.9, **probabilities: float) -> Reply:
    """A reply with the probabilities of answers."""
    return Reply(max(probabilities, key=lambda one: probabilities[one]), "stop", probabilities, mass)
