"""The data module of supervised fine-tuning: conversations, prompts with completions, plain text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_posttrain.data.formats.conversations import Columns
from lit_posttrain.data.modules.streamable import StreamableData
from lit_posttrain.data.store.build import TokenizeOptions


@dataclass(kw_only=True, eq=False, repr=False)
class ConversationData(StreamableData):
    """Conversations, prompts with completions, or plain text, from files, folders or the hub.

    Columns are recognised by their names: `messages` (role/content or from/value), prompt/completion (or response),
    instruction/input/output, instruction/context/response, question/answer, query/response, problem/solution, text;
    in addition `system`, `tools`, `history`, `chat_template_kwargs`, and marks such as `weight` 0 on what is not to
    be trained on. Others are named with `--data.columns`. The audit lists what was read, dropped, trained on and
    not used.

    Args:
        columns: Names of the columns, where they are not recognised.
        train_on: `assistant`: every assistant turn. `last`: the last one. `completion`: the assistant turns that
            follow the row's own prompt (all of them where a row is one conversation). `all`: every token.
            Plain text is trained on as a whole.
        overlong: Longer conversations: `drop` them, `cut` them at the end, or `split` them into pieces. The audit
            counts them.
    """

    columns: Columns | None = None
    train_on: Literal["assistant", "last", "completion", "all"] = "assistant"
    overlong: Literal["drop", "cut", "split"] = "drop"

    def _options(self, max_length: int) -> TokenizeOptions:
        return TokenizeOptions(
            self.columns, self.train_on, self.system_prompt, max_length, self.overlong, self.on_bad_row
        )
