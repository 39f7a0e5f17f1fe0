"""Count in an audit what the chat template does to rows."""

from __future__ import annotations

from lit_posttrain.data.audit.file_audit import FileAudit, Tally
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.render.rendered import Rendered
from lit_posttrain.data.render.templates import ConversationTemplate


class CountedTemplate:
    """Renders rows, and counts each finding once per row: a row may have several responses, see `next_row`."""

    def __init__(self, template: ConversationTemplate) -> None:
        self.template = template
        self._told: set[str] = set()

    def next_row(self) -> None:
        """Start another row."""
        self._told.clear()

    def render(self, example: Example, line: int, audit: FileAudit) -> list[Rendered]:
        """As `ConversationTemplate.render`; `line` is the row's."""
        template = self.template
        before = template.rewritten, template.unanswered, template.altered, template.generated
        texts = template.render(example)
        audit.rewritten += template.rewritten - before[0]
        audit.unanswered += template.unanswered - before[1]
        found = {
            "altered": template.altered > before[2],
            "generated": template.generated > before[3],
            "opened": template.opens(example),
            "control": template.holds_control_tokens(example),
        }
        names = {name for name, is_so in found.items() if is_so}
        for name in names - self._told:
            getattr(audit, name).add(line)
        for what in set(template.missed) - self._told:
            audit.lost.setdefault(what, Tally()).add(line)
        self._told.update(template.missed, names)
        return texts
