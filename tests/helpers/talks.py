"""Conversations of every usual kind, for trying chat templates. Their words occur nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Talk:
    """A conversation as a row of a data set holds it. shows: the column of the table that it counts for."""

    name: str
    shows: str
    messages: list[Message]
    tools: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _says(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _call(name: str, **arguments: Any) -> Message:
    return {"type": "function", "id": "call00001", "function": {"name": name, "arguments": arguments}}


def _result(text: str, name: str = "river_level", call: str = "call00001") -> Message:
    return {"role": "tool", "name": name, "tool_call_id": call, "content": text}


def _tool(name: str, argument: str) -> Message:
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string", "description": f"Which {argument}."}},
        "required": [argument],
    }
    return {"type": "function", "function": {"name": name, "description": f"Look up {name}.", "parameters": parameters}}


_RIVER, _FERRY = _tool("river_level", "river"), _tool("ferry_times", "harbour")
_ASKS = _user("How high is the Meuse?")
_CALLS = _says("", tool_calls=[_call("river_level", river="Meuse")])
_THOUGHT = "Herons need shallow water."

TALKS = [
    Talk("one turn", "one turn", [_user("Name a heron."), _says("The purple heron.")]),
    Talk("long answer", "one turn", [_user("Tell me of tides."), _says("Tides rise. " * 30 + "Then they fall.")]),
    Talk("system", "system", [_system("Answer as a skipper."), _user("Where to?"), _says("To Vlieland.")]),
    Talk("empty system", "empty system", [_system(""), _user("Where from?"), _says("From Harlingen.")]),
    Talk(
        "two turns",
        "several turns",
        [_user("Any eels?"), _says("Two so far."), _user("And pike?"), _says("None at all.")],
    ),
    Talk(
        "three turns with a system prompt",
        "several turns",
        [
            _system("Be brief."),
            _user("Wind?"),
            _says("Force four."),
            _user("From where?"),
            _says("The west."),
            _user("Rain?"),
            _says("Not before dusk."),
        ],
    ),
    Talk("same words twice", "several turns", [_user("Ahoy."), _says("Ahoy."), _user("Ahoy."), _says("Ahoy.")]),
    Talk("unanswered end", "trailing user", [_user("Mast?"), _says("Oak."), _user("Sails?")]),
    Talk("two users in a row", "two users", [_user("I sail."), _user("Do you?"), _says("Only in books.")]),
    Talk(
        "two assistants in a row",
        "two assistants",
        [_user("Count."), _says("First the locks."), _says("Then the weirs.")],
    ),
    Talk("other scripts", "Unicode", [_user("Übersetze: 鹭 🪿"), _says("Reiher und Gans: 鹭, 🪿, é.")]),
    Talk("white space", "white space", [_user("  A poem  \n"), _says("\n  Reeds bend,\n\n  water waits.\n ")]),
    Talk("code", "white space", [_user("Code?"), _says("```python\nif tide > 3:\n    print('ebb')\n```")]),
    Talk("markup in the answer", "markup", [_user("Markup?"), _says("Use <b>bold</b>, {{ braces }} and [INST].")]),
    Talk("JSON as the answer", "markup", [_user("As JSON."), _says('[{"role": "mate", "content": "Joost"}]')]),
    Talk(
        "a thought",
        "thoughts",
        [_user("Do herons swim?"), _says("Hardly ever.", reasoning_content=_THOUGHT)],
    ),
    Talk(
        "thoughts in two turns",
        "thoughts",
        [
            _user("Do herons swim?"),
            _says("Hardly ever.", reasoning_content=_THOUGHT),
            _user("Do coots?"),
            _says("All day long.", reasoning_content="Coots have lobed toes."),
        ],
    ),
    Talk(
        "a thought within the content",
        "thoughts in content",
        [_user("Do grebes dive?"), _says("<think>\nThey chase fish.\n</think>\n\nDeep and often.")],
    ),
    Talk("tools, none called", "tools", [_ASKS, _says("I would guess a metre.")], [_RIVER, _FERRY]),
    Talk("a tool call", "tool calls", [_ASKS, _CALLS], [_RIVER]),
    Talk(
        "a call without arguments",
        "tool calls",
        [_ASKS, _says("", tool_calls=[_call("river_level")]), _result("3 m"), _says("Three metres in all.")],
        [_RIVER],
    ),
    Talk(
        "a tool call, its result, an answer",
        "tool calls",
        [_ASKS, _CALLS, _result('{"metres": 3}'), _says("Three metres at Maastricht.")],
        [_RIVER],
    ),
    Talk(
        "words before a tool call",
        "tool calls",
        [_ASKS, _says("I will look.", tool_calls=_CALLS["tool_calls"]), _result("3 m"), _says("It is three metres.")],
        [_RIVER],
    ),
    Talk(
        "two calls at once",
        "parallel calls",
        [
            _user("Meuse and Rhine?"),
            _says(
                "",
                tool_calls=[
                    _call("river_level", river="Meuse"),
                    {**_call("river_level", river="Rhine"), "id": "call00002"},
                ],
            ),
            _result("3 m"),
            _result("5 m", call="call00002"),
            _says("Three and five metres."),
        ],
        [_RIVER],
    ),
    Talk(
        "a thought before a tool call",
        "thoughts and calls",
        [
            _ASKS,
            {**_CALLS, "reasoning_content": "Better look it up."},
            _result('{"metres": 3}'),
            _says("Three metres now.", reasoning_content="That is quite high."),
        ],
        [_RIVER],
    ),
    Talk(
        "a system prompt and tools over several turns",
        "tool calls",
        [
            _system("You watch the rivers."),
            _user("Hello."),
            _says("Good day."),
            _ASKS,
            _CALLS,
            _result("2 m"),
            _says("Two metres, and falling."),
            _user("Thanks."),
            _says("At your service."),
        ],
        [_RIVER],
    ),
]
