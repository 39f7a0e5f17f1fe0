"""Chat templates of every kind, and what is trained on with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from helpers import tiny
from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.store.build import TokenizeOptions, build_store
from lit_posttrain.data.store.store import TreeStore

ASK, MORE = {"role": "user", "content": "the colour"}, {"role": "user", "content": "and the dog"}
SAY, LAST = {"role": "assistant", "content": "a fox"}, {"role": "assistant", "content": "it is lazy"}
TALK = [ASK, SAY, MORE, LAST]
HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
ZULU = {"type": "function", "function": {"name": "zulu", "parameters": {}}}
OPENS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def tokenizer(template: str, *special: str) -> PreTrainedTokenizerFast:
    made = tiny.tokenizer(template)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def build(tmp_path: Path, made: Any, *rows: Any, options: Any = None) -> tuple[TreeStore, AuditReport]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_store([str(path)], made, options or TokenizeOptions(), str(tmp_path / "cache"))


def trained(made: Any, store: TreeStore) -> list[str]:
    return [made.decode(r.tokens[r.loss_mask]) for i in range(len(store)) for r in store[i].responses]


def given(made: Any, messages: list[dict[str, Any]], **variables: Any) -> list[int]:
    text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    return list(made(text, add_special_tokens=False)["input_ids"])


# a thought that the prompt opens or closes -> what is trained without and with a thought; None: refused
THOUGHTS = {
    "opened, and closed by an empty turn": ("<think>\n", "<think></think>", "</think>a fox", "hm\n</think>a fox"),
    "opened, never closed": ("<think>\n", "", "\n</think>\n\na fox", "hm\n</think>\n\na fox"),
    "closed": ("<think></think>", "</think>", "a fox", "a fox"),
    "an empty channel": ("<|channel>thought\n<channel|>", "", "a fox", "a fox"),
    "white space in one token": (
        "<think>\n",
        "<think>\n\n</think>\n\n",
        "\n</think>\n\na fox",
        "hm\n</think>\n\na fox",
    ),
}


SWITCH = (
    HEAD + "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
