"""What a conversation is: messages with known roles and string content, in an order that can be.

Everything that data sets write differently is made alike here, or refused with `BadRow`. Keys beyond those that are
read here stay in a message, for the chat template.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.marks import DETAILS, MESSAGE_MARKS, detail_of, mark_of

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
SYSTEM = frozenset({"system", "developer"})
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")
REASONING = ("reasoning_content", "thinking", "reasoning")
# in a message that was read: False where its turn is marked as not to be trained on, what nobody reads of it, and what
# a person should know of how it was read
MARK, UNUSED, NOTES = "__train__", "__unused__", "__notes__"
JOINED = "with messages of several text parts, which are joined with nothing between them"
_CALL_ROLES = ("function_call", "tool_call")  # roles whose content is a call
_TEXT_PARTS = ("text", "input_text", "output_text")


def as_messages(value: Any, column: str, learned: bool = True) -> list[dict[str, Any]]:
    """Messages with normalised roles and string content, from role/content, from/value, or JSON text of either.
    learned: whether the assistant's turns are to be learned from, and so must say something.

    Raises:
        BadRow: anything that is not a conversation; `column` names it in the message.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = as_json(value, column)
    if isinstance(value, dict):
        raise BadRow("wrong type", f"`{column}` is {of_columns(value) or kind(value)}, not a list of messages; mend it")
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise BadRow("wrong type", f"`{column}` is {kind(value)}, not a list of messages; mend it")
    if not value:
        raise BadRow("no turns", f"`{column}` is an empty list: nobody says anything; fill or remove the row")
    made: list[dict[str, Any]] = []
    for index, raw in enumerate(value):
        message = _message(raw, f"{column}[{index}]", learned)
        called = index > 0 and all(m.get(_key(m, ROLE_KEYS)) in _CALL_ROLES for m in (raw, value[index - 1]))
        if called and made[-1].get(MARK) == message.get(MARK):  # parallel calls, a message each
            made[-1]["tool_calls"] += message["tool_calls"]
        else:
            made.append(message)
    return made


def by_message(value: Any) -> Any:
    """A list of messages of an object with a list for each of their keys, as `datasets` has them; anything else as it
    is."""
    if not isinstance(value, dict) or not any(isinstance(value.get(key), list) for key in ROLE_KEYS):
        return value
    lists = list(value.values())
    if not all(isinstance(part, list) and len(part) == len(lists[0]) for part in lists):
        return value
    return [dict(zip(value, parts, strict=True)) for parts in zip(*lists, strict=True)]


def of_columns(value: Any) -> str:
    """What an object is that holds a column of a table, with the remedy; empty for anything else."""
    if not isinstance(value, dict) or not value or [*value] != [str(i) for i in range(len(value))]:
        return ""
    return 'a column of a whole table (an object with the numbers of rows as keys: write orient="records" in pandas)'


def is_message(value: Any) -> bool:
    """Whether something can only be a message: it has a known role, and says something or calls something."""
    if not isinstance(value, dict):
        return False
    said = value.get(_key(value, ROLE_KEYS))
    keys = (*CONTENT_KEYS, "tool_calls", "function_call")
    return isinstance(said, str) and said.strip().lower() in ROLES and any(key in value for key in keys)


def _key(raw: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((name for name in names if raw.get(name) is not None), names[0])


def _message(raw: dict[str, Any], where: str, learned: bool) -> dict[str, Any]:
    role_key, content_key = _key(raw, ROLE_KEYS), _key(raw, CONTENT_KEYS)
    said = raw.get(role_key)
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if said is None:
        raise BadRow(
            "no role",
            f"{where} has no `role` (its keys are {', '.join(raw) or 'none'}); a message has role and content, or from "
            "and value: rename its keys",
        )
    if role is None:
        raise BadRow("unknown role", f"{where}: role {said!r}; roles are system, user, assistant and tool")
    marked = _marked(raw, role, where)
    taken = {role_key, content_key, *MESSAGE_MARKS, *DETAILS}
    kept = {key: value for key, value in raw.items() if value is not None and key not in taken}
    optional = any(key in kept for key in REASONING)
    for key in REASONING:
        if str(kept.get(key, "")).strip() in ("", "[]", "{}"):  # an empty thought is none
            kept.pop(key, None)
    if "function_call" in kept:  # OpenAI's way before there were several calls a turn
        if kept.get("tool_calls"):
            raise BadRow("wrong type", f"{where} has both function_call and tool_calls; keep tool_calls")
        kept["tool_calls"] = kept.pop("function_call")
    if not kept.get("tool_calls"):
        kept.pop("tool_calls", None)
    else:
        kept["tool_calls"] = _tool_calls(kept["tool_calls"], where)
    optional = optional or "tool_calls" in kept
    if content_key not in raw and not optional:
        raise BadRow(
            "no content", f"{where} has no `content` (its keys are {', '.join(raw)}); rename the one with the text"
        )
    texts, thoughts, unused = _content(raw.get(content_key), where, optional)
    content = "".join(texts)
    if thoughts and not any(kept.get(key) for key in REASONING):
        kept["reasoning_content"] = thoughts
    if said in _CALL_ROLES and "tool_calls" not in kept:
        kept["tool_calls"], content = _tool_calls(as_json(content, where), where), ""
    made = {"role": role, "content": content, **kept}
    if learned and role == "assistant" and not says(made):
        raise BadRow("empty completion", f"{where}: the assistant's turn is empty; there is nothing to train on")
    if marked is False:
        made[MARK] = False
    elif marked and role != "assistant":
        unused.append(f"message.{_key(raw, tuple(MESSAGE_MARKS))} of {role} turns")
    if role != "assistant":
        unused += [f"message.{key} of {role} turns" for key in DETAILS if raw.get(key)]
    if unused:
        made[UNUSED] = unused
    if sum(map(bool, texts)) > 1:
        made[NOTES] = [JOINED]
    return made


def _marked(raw: dict[str, Any], role: str, where: str) -> bool | None:
    whole = mark_of(raw, MESSAGE_MARKS, f"{where}: ")
    if raw.get("mask") is not None:
        raise BadRow(
            "mark",
            f"{where}: `mask` is trained on in some tools and left out in others; rename it to `train`, true or false",
        )
    content = raw.get(_key(raw, CONTENT_KEYS))
    detail = detail_of(raw, len(content) if isinstance(content, str) else 0, f"{where}: ", role != "assistant")
    return whole if detail is None else False


def _content(value: Any, where: str, optional: bool) -> tuple[list[str], str, list[str]]:
    """The texts of a message's content, its thoughts where they are a part of it, and keys of parts that nobody reads.
    optional: whether there need be none."""
    if isinstance(value, str):
        return [value], "", []
    if value is None and optional:
        return [], "", []
    if not isinstance(value, list):
        raise not_text(value, f"{where}: content")
    texts: list[str] = []
    thoughts: list[str] = []
    unused: list[str] = []
    for given in value:
        part = {"text": given} if isinstance(given, str) else given if isinstance(given, dict) else {"type": None}
        key = part.get("type", "text")
        thinks = key in ("thinking", "reasoning")
        words = part.get(str(key) if thinks else "text") if thinks or key in _TEXT_PARTS else None
        if not isinstance(words, str):
            found = f"a part of type {key!r}" if isinstance(key, str) else "a list of other things than text"
            raise BadRow("wrong type", f"{where}: content is {found}, not a string; only text can be trained on")
        (thoughts if thinks else texts).append(words)
        rest = (name for name in part if name not in ("type", "text", key) and part[name] is not None)
        unused += [f"message.content[].{name}" for name in rest]
    return texts, "".join(thoughts), unused


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Templates write arguments with `tojson`: text that is JSON already would be quoted a second time. Nulls within
    arguments are said by whoever called, and stay."""
    if isinstance(value, str):
        value = as_json(value, where)
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) for call in calls):
        raise BadRow("wrong type", f"{where}: tool_calls is not a list of objects; mend it")
    made = []
    for call in calls:
        inner = call["function"] if isinstance(call.get("function"), dict) else call
        function = {key: part for key, part in inner.items() if part is not None}
        if not isinstance(function.get("name"), str):
            raise BadRow("wrong type", f"{where}: a tool call has no name; mend it")
        given = function.get("arguments")
        if isinstance(given, str):
            given = as_json(given, f"{where} arguments") if given.strip() else {}
        function["arguments"] = {} if given is None else given  # no template reads a call without them
        extra = {key: part for key, part in call.items() if part is not None} if inner is not call else {}
        made.append({"type": "function", **extra, "function": function})
    return made


def says(message: dict[str, Any]) -> bool:
    """Whether a message holds anything: words, calls or thoughts."""
    return bool(message["content"].strip() or message.get("tool_calls") or any(message.get(k) for k in REASONING))


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    """Whether two runs of messages say the same: words up to white space around them, calls, thoughts and all else."""

    def told(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        bare = [{k: v for k, v in m.items() if k not in (MARK, UNUSED, NOTES)} for m in messages]
        return [{k: v.strip() if isinstance(v, str) else v for k, v in m.items()} for m in bare]

    return told(first) == told(second)


def alike(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    """Whether two runs of messages are the same turns: roles, names, words up to white space around them, thoughts, and
    what is called with which arguments. Ids, times and other notes may differ."""
    return list(map(_turn, first)) == list(map(_turn, second))


def _turn(message: dict[str, Any]) -> tuple[Any, ...]:
    calls = [
        (call["function"].get("name"), call["function"].get("arguments")) for call in message.get("tool_calls", ())
    ]
    thoughts = [str(message[key]).strip() for key in REASONING if message.get(key)]
    return message["role"], message.get("name"), message["content"].strip(), thoughts, calls


def as_tools(value: Any, column: str) -> list[Any] | None:
    """Tool schemas from a list or its JSON text; None where there are none. Bare functions, as OpenAI's older
    `functions` has them, become tools."""
    if isinstance(value, str):
        value = as_json(value, column) if value.strip() else None
    if value is not None and not isinstance(value, list):
        raise BadRow("wrong type", f"`{column}` is {kind(value)}, not a list of tool schemas; mend it")
    tools = [_tool(tool, f"{column}[{i}]") for i, tool in enumerate(value or [])]
    bare = [("name" in tool and "function" not in tool and "type" not in tool) for tool in tools]
    made = [{"type": "function", "function": t} if alone else t for t, alone in zip(tools, bare, strict=True)]
    return made or None


def _tool(value: Any, where: str) -> dict[str, Any]:
    """A tool's schema, or JSON text of one."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = as_json(value, where)
    if not isinstance(value, dict):
        shown = repr(value)[:40] if isinstance(value, str) else kind(value)
        raise BadRow(
            "wrong type",
            f"`{where}` is {shown}, not a tool's schema; write an object with name, description and parameters",
        )
    return value


def as_json(text: str, where: str) -> Any:
    """What JSON text holds.

    Raises:
        BadRow: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        printed = text.lstrip().startswith(("[{'", "{'", "['"))
        remedy = "it looks like a Python list that was printed: write it with json.dumps" if printed else "mend it"
        raise BadRow("wrong type", f"{where}: not valid JSON ({fault_of(error)}); {remedy}") from error


def fault_of(error: ValueError | RecursionError) -> str:
    """What is wrong with JSON, by what Python's reader raised."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} column {error.colno}"
    return "nested too deeply to read" if isinstance(error, RecursionError) else "a number of more than 4,300 digits"


def check_order(messages: list[dict[str, Any]], answered: bool = True) -> None:
    """Raise BadRow where no conversation runs like this. Templates may be stricter, and say so themselves. answered:
    whether the assistant must have had a turn."""
    roles = [m["role"] for m in messages]
    said = ", ".join(roles)
    if answered and "assistant" not in roles:
        raise BadRow("no assistant turn", f"no assistant turn (roles: {said}); there is nothing to train on")
    first = next((i for i, role in enumerate(roles) if role not in SYSTEM), None)
    if first is None:
        raise BadRow("empty prompt", "a system prompt, and nobody asks anything; add the user's turn")
    asked = roles.index("assistant", first) if "assistant" in roles[first:] else len(roles)
    if asked > first and not any(map(says, messages[first:asked])):
        raise BadRow(
            "empty prompt", "the turns before the assistant's are empty: nothing is asked; fill or remove the row"
        )
    turns = roles[first:]
    if not SYSTEM.isdisjoint(turns):
        raise BadRow("role order", f"a system turn after the first turn (roles: {said}); move it to the top")
    if roles[0] == "assistant":
        raise BadRow("role order", "the conversation starts with the assistant; put the user's turn before it")
    if "tool" in turns and any(
        role == "tool" and before not in ("assistant", "tool") for before, role in pairwise(["", *turns])
    ):
        raise BadRow("role order", f"a tool turn that no assistant turn called (roles: {said}); mend it")


def kind(value: Any) -> str:
    """What a value is, in words for a message."""
    names = {str: "a string", list: "a list", dict: "an object", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"{value!r}"[:40])


def not_text(value: Any, where: str, wanted: str = "a string") -> BadRow:
    """What is wrong with a value that must be text, or one of what is `wanted`."""
    remedy = {bool: "write it in quotes", int: "write it in quotes", float: "write it in quotes"}
    remedy |= {dict: "write it as text", type(None): "fill or remove it"}
    return BadRow("wrong type", f"{where} is {kind(value)}, not {wanted}; {remedy.get(type(value), 'mend it')}")
