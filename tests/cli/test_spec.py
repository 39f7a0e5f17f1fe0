"""A model's options on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import tiny
from helpers.cli import fit, one_line
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lit_posttrain.cli.main import main

VALUES = {
    "lora.r": ["0", "-4"],
    "lora.dropout": ["1.5", "1", "-0.1", "nan"],
    "lora.alpha": ["0", "-1", "nan", "inf"],
    "special_tokens": ["[a, '']"],
    "path": ["''"],
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in VALUES.items() for v in values])
def test_values_out_of_range(
    option: str, value: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "" if value == "''" else value
    assert fit(chats, tiny_model, "--model.policy.lora.r", "4", f"--model.policy.{option}", given) == 2
    assert option.replace("path", "path is empty") in one_line(capsys)
    assert not Path("runs").exists()


def test_a_resumed_run_has_the_same_tokens(chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The embeddings have rows to spare: nothing else would tell."""
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1", "--data.val_fraction", "0") == 0
    capsys.readouterr()
    more = ["--model.policy.special_tokens", "[<|more|>]", "--trainer.max_steps", "2"]
    assert main(["fit", "--resume", "one", *more]) == 2
    assert "trained with special_tokens [] and this run has ['<|more|>']" in one_line(capsys)


def test_weights_that_come_quantized_are_not_trained(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that bitsandbytes wrote: only norms would be trained."""
    packed = AutoModelForCausalLM.from_pretrained(
        tiny_model, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    packed.save_pretrained("packed")
    tiny.tokenizer().save_pretrained("packed")
    assert fit(chats, Path("packed"), "--trainer.max_steps", "1") == 2
    assert "the weights of packed are quantized (bitsandbytes)" in one_line(capsys)
    assert fit(chats, Path("packed"), "--trainer.max_steps", "1", "--model.policy.lora.r", "4") == 0
