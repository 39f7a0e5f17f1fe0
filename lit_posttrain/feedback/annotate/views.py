"""An item as the page shows it: texts rendered and as they are, responses in the order in which they are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.annotate.render import rendered, visible
from lit_posttrain.feedback.annotate.tasks import Task

_DECIDED = ("ranks", "rejected", "strength", "criteria", "reason", "seconds")


def view(task: Task, order: Sequence[int]) -> dict[str, Any]:
    """The item for the page. Which model made a response is not in it: annotators are not to know."""
    return {
        "id": task.id,
        "prompt": [{"role": str(turn.get("role", "")), **_shown(_text(turn))} for turn in task.prompt],
        "responses": [{"place": place, **_response(task.responses[place])} for place in order],
        "order": list(order),
    }


def decided(decision: Decision) -> dict[str, Any]:
    """What the page needs to show a decision again, and nothing of where the item comes from. turns: texts that were
    written."""
    asked = 0 if isinstance(decision.prompt, str) else len(decision.prompt)
    said = {name: getattr(decision, name) for name in _DECIDED}
    said["turns"] = [turn.get("content") for turn in (decision.messages or [])[asked:]]
    told: dict[str, Any] = json.loads(json.dumps(said, ensure_ascii=False).encode(errors="replace"))
    return told


def _response(response: Mapping[str, Any]) -> dict[str, Any]:
    thought = response.get("reasoning_content")
    shown = _shown(str(response.get("text", "")))
    return {**shown, "thought": _shown(thought)} if isinstance(thought, str) and thought.strip() else shown


def _shown(text: str) -> dict[str, str]:
    """Both forms, and the text itself, which is the start of what an annotator writes."""
    return {"html": rendered(text), "plain": visible(text), "text": text.encode(errors="replace").decode()}


def _text(turn: Mapping[str, Any]) -> str:
    """A turn's words, and what else it says, such as calls of tools, as JSON."""
    said = turn.get("content")
    rest = {name: value for name, value in turn.items() if name not in ("role", "content") and value not in (None, "")}
    parts = [said if isinstance(said, str) else json.dumps(said, ensure_ascii=False, default=str)] if said else []
    if rest:
        parts.append(f"```json\n{json.dumps(rest, ensure_ascii=False, indent=2, default=str)}\n```")
    return "\n\n".join(parts)
