"""What closes the turns that were trained ends a response everywhere: training, generation, exported folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from helpers import tiny
from helpers.cli import fit, one_line
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lit_posttrain import ModelSpec
from lit_posttrain.cli.main import main
from lit_posttrain.inference.chat import ChatModel
from lit_posttrain.models.restore import restore
from lit_posttrain.models.tokenizers import closing_token, load_tokenizer, template_ends
from lit_posttrain.rollout.hf import HFEngine

PAD, START, END, LAST = 0, 1, 2, 3
SHORT = ["--name", "one", "--trainer.max_steps", "1"]
# turns of few words end otherwise than those of many, as those that call tools do in some templates
BY_CONTENT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|last|>' if 'equals' in m['content'] else '<|im_end|>' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model without a template, whose end token is the padding token, which closes no turn."""
    folder = tiny.save_model(tmp_path / "base", eos_token_id=PAD)
    GenerationConfig(eos_token_id=PAD).save_pretrained(folder)
    tokenizer = tiny.tokenizer(chat_template=None)
    tokenizer.eos_token = "<|pad|>"
    tokenizer.save_pretrained(folder)
    return folder


def template(text: str = tiny.CHATML) -> list[str]:
    Path("mine.jinja").write_text(text)
    return ["--model.policy.chat_template", "mine.jinja"]


@pytest.mark.parametrize("lora", [False, True])
def test_a_template_of_ones_own_ends_responses_everywhere(
    lora: bool, chats: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []
    begin = HFEngine.__init__

    def noted(self: HFEngine, policy: Any, eos_ids: list[int], **options: Any) -> None:
        drawn.append(sorted(eos_ids))
        begin(self, policy, eos_ids, **options)

    monkeypatch.setattr(HFEngine, "__init__", noted)
    Path("ask.jsonl").write_text('{"prompt": "what is 3"}\n')
    samples = ["--trainer.callbacks+=SampleLogger", "--trainer.callbacks.prompts", "ask.jsonl"]
    samples += ["--trainer.callbacks.max_new_tokens", "2", "--trainer.val_check_interval", "1"]
    assert fit(chats, base, *SHORT, *template(), *(["--model.policy.lora.r", "4"] if lora else []), *samples) == 0
    assert drawn
    assert all(ends == [PAD, END] for ends in drawn), "samples while training"
    assert torch.load("runs/one/last.ckpt", weights_only=True)["lit_posttrain"]["ends"] == ["<|pad|>", "<|im_end|>"]
    assert ChatModel("runs/one").engine.eos_ids.tolist() == [PAD, END]
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    assert GenerationConfig.from_pretrained("out").eos_token_id == [PAD, END]
    assert AutoModelForCausalLM.from_pretrained("out").config.eos_token_id == [PAD, END]
    assert AutoTokenizer.from_pretrained("out").eos_token == "<|im_end|>"
    assert ChatModel("out").engine.eos_ids.tolist() == [PAD, END]
    if lora:
        assert main(["export", "--ckpt", "runs/one", "--out", "adapter", "--adapter", "true"]) == 0
        assert AutoTokenizer.from_pretrained("adapter").eos_token == "<|im_end|>"
        assert "`<|pad|>`, `<|im_end|>`" in Path("adapter/README.md").read_text()


@pytest.mark.parametrize("lora", [False, True])
def test_ends_that_only_the_data_shows_are_kept(lora: bool, chats: Path, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|last|>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    last = len(tokenizer) - 1
    adapters = ["--model.policy.lora.r", "4"] if lora else []
    assert fit(chats, base, *SHORT, *template(BY_CONTENT), *adapters) == 0
    assert restore("runs/one").eos_ids == [PAD, END, last]
    assert main(["fit", "--resume", "one", "--trainer.max_steps", "2"]) == 0
    assert restore("runs/one/last.ckpt").eos_ids == [PAD, END, last]
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    assert GenerationConfig.from_pretrained("out").eos_token_id == [PAD, END, last]
    if lora:
        assert main(["export", "--ckpt", "runs/one", "--out", "adapter", "--adapter", "true"]) == 0
        assert ChatModel("adapter").engine.eos_ids.tolist() == [PAD, END, last]


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_responses_that_methods_sample_end_there_too(
    method: str, chats: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    generate = HFEngine.generate

    def noted(self: HFEngine, *arguments: Any, **options: Any) -> Any:
        seen.append(self.eos_ids.tolist())
        return generate(self, *arguments, **options)

    monkeypatch.setattr(HFEngine, "generate", noted)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"is {i}", "answer": "1"}) + "\n" for i in range(8)))
    arguments = [
        "--config",
        f"demo_{method}.yaml",
        "--data.path",
        "prompts.jsonl",
        "--model.policy.path",
        str(base),
        *SHORT,
    ]
    arguments += ["--wandb.mode", "disabled", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    arguments += ["--model.rollout.max_new_tokens", "4", "--data.val_fraction", "0.3"]
    assert main(["fit", *arguments, *template()]) == 0
    assert seen
    assert all(ends == [PAD, END] for ends in seen)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("named", "expected"), [("<|im_start|>", [START]), ('["<|im_start|>", "<|im_end|>"]', [START, END])]
)
def test_end_tokens_can_be_named(named: str, expected: list[int], lora: bool, chats: Path, base: Path) -> None:
    adapters = ["--model.policy.lora.r", "4"] if lora else []
    assert fit(chats, base, *SHORT, *template(), "--model.policy.eos", named, *adapters) == 0
    assert restore("runs/one").eos_ids == expected
    for adapter in ["false", *(["true"] if lora else [])]:
        assert main(["export", "--ckpt", "runs/one", "--out", adapter, "--adapter", adapter]) == 0
        written = GenerationConfig.from_pretrained(adapter).eos_token_id
        assert (written if isinstance(written, list) else [written]) == expected
        assert AutoTokenizer.from_pretrained(adapter).eos_token_id == START
        assert set(expected) <= set(found := ChatModel(adapter).engine.eos_ids.tolist())
        assert PAD not in found, "the end that the base had"


def test_an_end_token_that_is_none_is_one_line(chats: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(chats, base, *SHORT, *template(), "--model.policy.eos", "<|over|>") == 2
    assert "--model.policy.eos '<|over|>': not a token of the vocabulary" in one_line(capsys)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("<|im_end|>", [END]),
        ("<|im_end|>\n", [END]),
        (" \n<|im_end|>", [END]),
        ("<|im_start|><|im_end|>", [END]),
        ("<|im_end|><|im_start|>", [END]),
        ("<|pad|><|im_start|>", [START]),
        ("", [START]),
        ("\n\n", [START]),
        (".<|im_end|>", []),
    ],
)
def test_what_closes_a_turn_of_a_template(ending: str, expected: list[int], base: Path) -> None:
    """A run's end of sequence (here <|im_end|>) or else its last token; without any, what opens the next turn."""
    tokenizer = load_tokenizer(ModelSpec(str(base), eos="<|im_end|>"))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>' + m.content + '|' }}"
        "{% else %}{{ m.content + ENDING }}{% endif %}{% endfor %}"
    ).replace("ENDING", repr(ending))
    assert template_ends(tokenizer) == expected


@pytest.mark.parametrize("ask", ["<|im_start|>assistant\n", "<|pad|>assistant<|pad|>\n\n"])
def test_a_prompt_that_is_always_written_closes_nothing(ask: str, base: Path) -> None:
    """As in the first template of Llama 3, whose end of turn is not its end of sequence."""
    tokenizer = load_tokenizer(ModelSpec(str(base)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>", "<|head|>"], "eos_token": "</s>"})
    ask = ask.replace("<|pad|>", "<|head|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ HEAD + m.role + CLOSE + m.content + '<|eot|>' }}{% endfor %}{{ ASK }}"
    )
    for name, text in {"HEAD": ask.split("assistant")[0], "CLOSE": ask.partition("assistant")[2], "ASK": ask}.items():
        tokenizer.chat_template = tokenizer.chat_template.replace(name, repr(text))
    assert [tokenizer.convert_ids_to_tokens(i) for i in template_ends(tokenizer)] == ["<|eot|>"]


# templates that write BOS, the user's turn, the answer's header, the answer, its end where it is the last, its end
# elsewhere, and then perhaps what asks for an answer
LAST_ALONE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}USER{% else %}HEAD{{ m.content }}"
    "{% if loop.last %}END{% else %}ELSE{% endif %}{% endif %}{% endfor %}ASK"
)
ASKS = {"asked": "{% if add_generation_prompt %}HEAD{% endif %}", "always": "HEAD", "never": ""}
USERS = {"open": "User: {{ m.content }}\n", "closed": "User: {{ m.content }}END", "bare": "{{ m.content }}END"}


@pytest.mark.parametrize("end", ["</s>", "<|eot|>", "<|eot|>\n", "<|eot|></s>"])
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(("ask", "between"), [("asked", "\n"), ("asked", "END"), ("never", "\n"), ("always", "END")])
def test_what_closes_the_last_answer_may_stand_elsewhere_too(
    ask: str, between: str, user: str, end: str, base: Path
) -> None:
    tokenizer = load_tokenizer(ModelSpec(str(base)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>", "<|head|>"], "eos_token": "</s>"})
    text = LAST_ALONE.replace("ASK", ASKS[ask]).replace("USER", USERS[user]).replace("ELSE", between)
    for tokenizer.bos_token in ("<|im_start|>", "</s>"):
        for head in ("Assistant: ", "<|head|>assistant\n", "<|head|>"):
            tokenizer.chat_template = text.replace("HEAD", head).replace("END", end)
            found = [tokenizer.convert_ids_to_tokens(i) for i in closing_token(tokenizer)]
            assert found == ["</s>" if "</s>" in end else "<|eot|>"], tokenizer.chat_template


@pytest.mark.parametrize("ask", ASKS)
def test_turns_without_a_header_that_end_alike(ask: str, base: Path) -> None:
    tokenizer = load_tokenizer(ModelSpec(str(base), eos="<|im_end|>"))
    text = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' or loop.last %}<|im_end|>{% endif %}"
    tokenizer.chat_template = text + "{% endfor %}" + ASKS[ask].replace("HEAD", "")
    assert closing_token(tokenizer) == [END]


def test_published_templates_close_their_turns() -> None:
    """Of the templates that TRL carries; every tag that a template writes is a token here."""
    found = {}
    for file in sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja")):
        text, tokenizer = file.read_text(), tiny.tokenizer()
        tags = set(re.findall(r"<[|｜]?[^<>\s{}'\"]{2,40}[|｜]?>|<｜[^｜]+｜>", text))
        tags -= {"<think>", "</think>", "<tool_call>", "</tool_call>"}
        tokenizer.add_special_tokens({"additional_special_tokens": sorted({*tags, "</s>"})})
        tokenizer.eos_token, tokenizer.chat_template = "</s>", text
        found[file.stem] = tokenizer.convert_ids_to_tokens(template_ends(tokenizer))
    assert len(found) > 50
    assert all(found.values()), found
    expected = {"llama3_1": "<|eot_id|>", "gemma3": "<end_of_turn>", "qwen3": "<|im_end|>", "phi3": "<|end|>"}
    expected |= {"gptoss": "<|return|>", "cohere2": "<|END_OF_TURN_TOKEN|>", "glm4moe": "<|user|>"}
    assert {name: found[name] for name in expected} == {name: [token] for name, token in expected.items()}
