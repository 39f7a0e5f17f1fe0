"""Decisions of people (data/feedback/record.py) as the conversations that they wrote."""

from __future__ import annotations

from lit_posttrain.data.formats.conversation_readers import Parts
from lit_posttrain.data.formats.decisions import decision_of
from lit_posttrain.data.rows.bad_rows import NothingToLearn
from lit_posttrain.data.rows.message_checks import alike, check_order
from lit_posttrain.data.rows.messages import as_messages
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.turns import conversation


def written(row: Row) -> Parts:
    """The conversation that a decision has written; what follows the item's prompt is the response.

    Raises:
        NothingToLearn: the decision is one on responses, or none.
    """
    decision = decision_of(row)
    if not decision.messages:
        raise NothingToLearn("nothing written", "a decision on responses, of which PreferenceData learns")
    messages = as_messages(decision.messages, "messages")
    check_order(messages)
    asked = conversation(decision.prompt, "prompt", row.notes, "user") if decision.prompt else []
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    count = len(asked) if alike(messages[: len(asked)], asked) and len(asked) < len(messages) else first
    return Parts(messages[:count], messages[count:])
