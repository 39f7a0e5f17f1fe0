"""Tool schemas and tool calls, as chat templates want them."""

from __future__ import annotations

from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.values import as_json, kind


def as_tools(value: Any, column: str) -> list[dict[str, Any]] | None:
    """Tool schemas from a list or its JSON text; None for an empty one. Bare functions, as in OpenAI's older
    `functions`, become tools."""
    if isinstance(value, str):
        value = as_json(value, column) if value.strip() else None
    if value is not None and not isinstance(value, list):
        raise BadRow("wrong type", f"`{column}` is {kind(value)}, not a list of tool schemas; mend it")
    tools = [_tool(tool, f"{column}[{i}]") for i, tool in enumerate(value or [])]
    bare = [("name" in tool and "function" not in tool and "type" not in tool) for tool in tools]
    made = [{"type": "function", "function": t} if alone else t for t, alone in zip(tools, bare, strict=True)]
    return made or None


def _tool(value: Any, where: str) -> dict[str, Any]:
    """A tool's schema, from an object or its JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = as_json(value, where)
    if not isinstance(value, dict):
        shown = repr(value)[:40] if isinstance(value, str) else kind(value)
        raise BadRow(
            "wrong type",
            f"`{where}` is {shown}, not a tool's schema; write an object with name, description and parameters",
        )
    return value


def tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls with arguments as objects: templates write them with `tojson`, which would quote JSON text a second
    time. Nulls within arguments are part of the call, and stay."""
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
