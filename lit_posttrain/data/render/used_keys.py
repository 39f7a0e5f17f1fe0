"""Which keys of messages, tools and template variables a chat template uses: those whose removal changes what it
renders. A key that it never uses would otherwise be lost silently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lit_posttrain.data.audit.file_audit import FileAudit
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.render.rendered import Rendered, TrainOn
from lit_posttrain.data.render.templates import ConversationTemplate
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError
from lit_posttrain.tokenizer import Tokenizer

_TRIES = 64  # a template may use a key in some turns only; one that was no use in so many rows is not used
_CALL, _FUNCTION = "message.tool_calls[].", "message.tool_calls[].function."


class UsedKeys:
    """Counts, for one tokenizer, the rows with keys that its chat template does not use.

    A key counts as unused until some row proves otherwise; it is then removed from the audits. used: keys that are
    known to be used.
    """

    def __init__(self, tokenizer: Tokenizer, train_on: TrainOn, scored: bool = False) -> None:
        # one of its own: it counts what it alters
        self._template = ConversationTemplate(tokenizer, train_on, scored=scored)
        self.used: set[str] = set()
        self._tries: dict[str, int] = {}
        self._audits: list[FileAudit] = []

    def look(self, examples: Sequence[Example], line: int, audit: FileAudit) -> None:
        """Count the keys of a row's examples that are not known to be used."""
        unused = dict.fromkeys(path for example in examples for path in self._unused(example))
        left = [path for path in unused if path not in self.used]
        if left and not any(seen is audit for seen in self._audits):
            self._audits.append(audit)
        audit.leave(left, line)

    def _unused(self, example: Example) -> Iterator[str]:
        texts: list[Rendered] | None = None
        for path in dict.fromkeys(_paths(example)):
            if path in self.used:
                continue
            if self._template.has_template and self._tries.get(path, 0) < _TRIES:
                self._tries[path] = self._tries.get(path, 0) + 1
                texts = texts or self._texts(example)
                if self._texts(_without(example, path)) != texts:
                    self.used.add(path)
                    for seen in self._audits:
                        seen.unread.pop(path, None)
                    continue
            yield path

    def _texts(self, example: Example) -> list[Rendered]:
        """The rendered texts with their trained spans: a key may move words from the answer to its prompt. Empty if the
        template needs the missing key."""
        try:
            return self._template.render(example)
        except (BadRow, PostTrainError):
            return []


def _paths(example: Example) -> Iterator[str]:
    """All keys of an example besides roles, content, and the names and arguments of calls."""
    if example.tools:
        yield "tools"
    for name in example.variables:
        yield f"chat_template_kwargs.{name}"
    for message in example.messages:
        for key in message:
            if key not in ("role", "content"):
                yield f"message.{key}"
        for call in message.get("tool_calls", ()):
            yield from (_CALL + key for key in call if key not in ("type", "function"))
            yield from (_FUNCTION + key for key in call["function"] if key not in ("name", "arguments"))


def _without(example: Example, path: str) -> Example:
    if path == "tools":
        return replace(example, tools=None)
    if path.startswith("chat_template_kwargs."):
        name = path.removeprefix("chat_template_kwargs.")
        return replace(example, variables=_less(example.variables, name))
    return replace(example, messages=[_message_without(message, path) for message in example.messages])


def _message_without(message: dict[str, Any], path: str) -> dict[str, Any]:
    calls = message.get("tool_calls", [])
    if path.startswith(_FUNCTION):
        key = path.removeprefix(_FUNCTION)
        return message | {"tool_calls": [{**call, "function": _less(call["function"], key)} for call in calls]}
    if path.startswith(_CALL):
        return {**message, "tool_calls": [_less(call, path.removeprefix(_CALL)) for call in calls]}
    return _less(message, path.removeprefix("message."))


def _less(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
