"""`--model.policy.template_variables` from the command line to the exported folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import tiny
from helpers.cli import fit, one_line
from transformers import AutoTokenizer

from lit_posttrain.cli.main import main
from lit_posttrain.inference.chat import ChatModel
from lit_posttrain.rollout.text import prompt_ids

# like Qwen3.5: the prompt opens a thought, or closes an empty one
THINKS = tiny.CHATML.replace(
    "assistant\n' }}{% endif",
    "assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '(no thought)' }}{% else %}"
    "{{ '(thought)' }}{% endif %}{% endif",
)
ASKED = [{"role": "user", "content": "what is it"}]


def test_they_hold_from_training_to_the_exported_folder(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.jinja").write_text(THINKS)
    rows = [json.loads(line) for line in chats.read_text().splitlines()]
    rows[0]["chat_template_kwargs"] = {"enable_thinking": True}
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model.policy.chat_template", "own.jinja", "--model.policy.template_variables"]
    assert (
        fit(chats, tiny_model, *options, "{enable_thinking: false}", "--name", "one", "--trainer.max_steps", "1") == 0
    )
    audit = json.loads(Path("runs/one/audit.json").read_text())
    assert audit["files"][0]["generated"]["count"] == 24
    chat = ChatModel("runs/one")
    assert chat.tokenizer.decode(prompt_ids(chat.tokenizer, ASKED)).endswith("assistant\n(no thought)")
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    exported = AutoTokenizer.from_pretrained("out")
    assert exported.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True).endswith("(no thought)")
    assert exported.apply_chat_template(
        ASKED, tokenize=False, add_generation_prompt=True, enable_thinking=True
    ).endswith("(thought)")
    shown = capsys.readouterr().out
    assert "trained as generated" in shown
    # another name is refused before anything is trained
    assert fit(chats, tiny_model, *options, "{thinking: false}", "--name", "two") == 2
    assert "does not use thinking; it uses: enable_thinking" in one_line(capsys)
    assert not Path("runs/two").exists()
