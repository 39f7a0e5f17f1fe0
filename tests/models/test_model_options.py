"""Options of a model that cannot be: one line each, before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from lit_posttrain import LoRASpec, ModelSpec, PostTrainError
from lit_posttrain.models.gguf_settings import require_settings
from lit_posttrain.models.loading import build_policy, build_scorer, load_config
from lit_posttrain.models.tokenizers import load_tokenizer

LINEAR = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
TARGETS: list[tuple[Any, str]] = [
    (["q_proj", "v_prj"], "no layer named v_prj; did you mean v_proj?"),
    (["qproj"], "no layer named qproj; did you mean q_proj?"),
    (["query_key_value"], f"no layer named query_key_value; it has {LINEAR}"),
    (
        ["q_proj", "self_attn"],
        f"LlamaAttention, not a layer that adapters go on; the model has {LINEAR}",
    ),
    (["input_layernorm"], "input_layernorm is a LlamaRMSNorm"),
    ([], f"is empty; leave it out for all linear layers, or name some: {LINEAR}"),
    ("", "is empty"),
    ("q_proj", "such as model.layers.0.self_attn.q_proj, and matches none; a list of names is written '[q_proj]'"),
    ("all_linear", "all linear layers are all-linear"),
    (".*(q_proj", "not a regular expression"),
    (".*attn.*", "self_attn is a LlamaAttention"),
]


@pytest.mark.parametrize(("targets", "told"), TARGETS, ids=[str(t) for t, _ in TARGETS])
def test_adapters_on_layers_that_are_not_there(targets: Any, told: str, tiny_model: Path) -> None:
    """peft trains the ones it finds and says nothing of the others."""
    with pytest.raises(PostTrainError) as problem:
        build_policy(ModelSpec(str(tiny_model), lora=LoRASpec(r=4, target_modules=targets)), 400)
    assert told in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        ("all-linear", 7),
        (["q_proj", "v_proj"], 2),
        (["self_attn.q_proj"], 1),
        (r".*\.(up|down)_proj", 2),
    ],
)
def test_adapters_on_layers_that_are_there(targets: Any, adapted: int, tiny_model: Path) -> None:
    policy = build_policy(ModelSpec(str(tiny_model), lora=LoRASpec(r=4, target_modules=targets)), 400)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * adapted, "two matrices on a layer of both blocks"


def test_a_score_head_is_no_place_for_adapters(tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match="trained whole"):
        build_scorer(ModelSpec(str(tiny_model), lora=LoRASpec(r=4, target_modules=["q_proj", "score"])), 400)


def test_experts_that_get_no_adapters_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    AutoModelForCausalLM.from_config(tiny.mixtral_config()).save_pretrained(tmp_path)
    policy = build_policy(ModelSpec(str(tmp_path), lora=LoRASpec(r=4, target_modules=["q_proj"])), 400)
    (told,) = [r.getMessage() for r in caplog.records if "adapters" in r.name]
    experts = sum(p.numel() for p in policy.parameters() if p.dim() == 3)
    share = 100 * experts / sum(p.numel() for p in policy.parameters())
    assert 25 < share < 40
    assert f"leave the experts as they are: {share:.0f} % of all weights" in told


@pytest.mark.parametrize(
    "how", [{"special_tokens": ["<|new|>", "the"]}, {"tokenizer": "other"}, {"chat_template": "chatml"}]
)
@pytest.mark.parametrize("rows", [512, 390])
def test_adapters_leave_new_tokens_untrained(
    how: dict[str, Any], rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the embedding has rows to spare, as Qwen2.5's."""
    monkeypatch.chdir(tmp_path)
    model = tiny.save_model(tmp_path / "model", vocab_size=rows)
    other = tiny.tokenizer()
    if "chat_template" in how:  # a model without ChatML's tokens
        text = (model / "tokenizer.json").read_text().replace("<|im_", "<|my_")
        (model / "tokenizer.json").write_text(text)
        config = json.loads((model / "tokenizer_config.json").read_text())
        config |= {"bos_token": "<|my_start|>", "eos_token": "<|my_end|>"}
        (model / "tokenizer_config.json").write_text(json.dumps(config))
    other.add_tokens(["<|new|>"])
    other.save_pretrained("other")
    spec = ModelSpec(str(model), lora=LoRASpec(r=4), **how)
    with pytest.raises(PostTrainError, match=r"<\|(new|im_end)\|>.*adapters would leave their embeddings untrained"):
        build_policy(spec, len(load_tokenizer(spec)))


def test_tokens_that_the_model_knows_are_not_new(tiny_model: Path) -> None:
    spec = ModelSpec(str(tiny_model), lora=LoRASpec(r=4), special_tokens=["<|im_end|>"], chat_template="chatml")
    build_policy(spec, len(load_tokenizer(spec)))


BROKEN_CONFIGS: dict[str, str] = {
    "empty": "",
    "not JSON": "{a",
    "null": "null",
    "a list": "[]",
    "a wrong type": '{"hidden_size": "64"}',
    "impossible": '{"num_attention_heads": 5}',
    "an unknown kind": '{"model_type": "nothing"}',
    "an unknown activation": '{"hidden_act": "nothing"}',
    "an unknown type of weights": '{"dtype": "nothing"}',
    "a padding token that is none": '{"pad_token_id": 9999}',
}


@pytest.mark.parametrize("case", BROKEN_CONFIGS)
def test_a_config_that_cannot_be(case: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    text = BROKEN_CONFIGS[case]
    if text.startswith('{"'):
        text = json.dumps(json.loads((folder / "config.json").read_text()) | json.loads(text))
    (folder / "config.json").write_text(text)
    with pytest.raises(PostTrainError, match=str(folder)) as problem:
        build_policy(ModelSpec(str(folder)), 400)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{a", "null", "[]"])
def test_a_tokenizer_that_cannot_be_read(file: str, text: str, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / file).write_text(text)
    with pytest.raises(PostTrainError, match=r"cannot be read: .") as problem:
        load_tokenizer(ModelSpec(str(tmp_path / "model")))
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("missing", ["tokenizer*", "tokenizer.json"])
def test_a_folder_without_a_tokenizer_says_how_to_name_one(missing: str, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns(missing, "chat_template*"))
    with pytest.raises(PostTrainError, match=r"no tokenizer in .*; name one with --model.policy.tokenizer"):
        load_tokenizer(ModelSpec(str(tmp_path / "model")))


GGUF_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "an architecture that transformers lacks": (lambda raw: raw.replace(b"llama", b"lloma"), "lloma is not supported"),
    "cut in its header": (lambda raw: raw[:3000], "not downloaded to its end"),
    "cut in its tensors": (lambda raw: raw[:-2000], "not downloaded to its end"),
    "another file": (lambda raw: b"hello", "not a GGUF file"),
    "an empty file": (lambda raw: b"", "not a GGUF file"),
}


@pytest.mark.parametrize("case", GGUF_FILES)
def test_a_gguf_file_that_cannot_be_read(
    case: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    change, told = GGUF_FILES[case]
    file = tiny.save_gguf(tiny_model, tmp_path / "model.gguf")
    file.write_bytes(change(file.read_bytes()))
    for load in (load_config, load_tokenizer, lambda spec: build_policy(spec, 400)):
        with pytest.raises(PostTrainError, match=f"model.gguf.*{told}") as problem:
            load(ModelSpec(str(file)))
        assert "\n" not in str(problem.value)


def test_a_gguf_file_that_scales_its_positions(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers reads no scaling from a GGUF file: the model would be another one."""
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    file = tiny.save_gguf(tiny_model, tmp_path / "model.gguf", rope_scaling="yarn")
    with pytest.raises(PostTrainError, match=r"scales its positions \(yarn\)"):
        build_policy(ModelSpec(str(file)), 400)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"rope.freq_base": 500000.0}, ""),
        ({"attention.sliding_window": 600.0}, ""),
        ({"attention.sliding_window": 64.0}, "its attention.sliding_window is 64, and 0"),
        ({"final_logit_softcapping": 30.0}, "its final_logit_softcapping is 30"),
        ({"logit_scale": 0.5}, "its logit_scale is 0.5, and 1"),
        ({"residual_scale": 0.5}, "its residual_scale is 0.5"),
    ],
)
def test_settings_of_a_gguf_file_are_those_of_the_model(
    settings: dict[str, float], refused: str, tiny_model: Path, tmp_path: Path
) -> None:
    file = tiny.save_gguf(tiny_model, tmp_path / "model.gguf", settings=settings)
    if not refused:
        config = build_policy(ModelSpec(str(file)), 400).config
        assert config.rope_parameters["rope_theta"] == settings.get("rope.freq_base", 10000.0)
        return
    with pytest.raises(PostTrainError, match=f"model.gguf: {refused}.*Hugging Face folder"):
        build_policy(ModelSpec(str(file)), 400)


SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, float], str]] = {
    "starcoder2": ("starcoder2", {}, {"rope.freq_base": 1e6}, "rope.freq_base is 1e"),
    "stablelm": ("stablelm", {}, {"rope.freq_base": 1e5}, "rope.freq_base is 100000"),
    "phi3": ("phi3", {}, {"attention.sliding_window": 2047}, "attention.sliding_window is 2047, and 0"),
    "phi3, of 128k": ("phi3", {"max_position_embeddings": 131072}, {"attention.sliding_window": 262144}, ""),
    "phi4": ("phi3", {"hidden_size": 3072, "num_attention_heads": 24}, {"rope.dimension_count": 96}, "count is 96"),
    "gemma2": ("gemma2", {}, {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}, ""),
    "gemma2 of 27B": (
        "gemma2",
        {"hidden_size": 4608, "num_attention_heads": 32, "num_hidden_layers": 46, "head_dim": 128},
        {},
        "query_pre_attn_scalar is 144, and 256",
    ),
    "gemma3 of 27B": (
        "gemma3",
        {"hidden_size": 5376, "num_attention_heads": 32, "num_hidden_layers": 62, "head_dim": 128},
        {},
        "query_pre_attn_scalar is 168, and 256",
    ),
    "gemma3": ("gemma3", {}, {"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4}, ""),
    "epsilon": ("qwen2", {}, {"attention.layer_norm_rms_epsilon": 1e-5}, "epsilon is 1e-05, and 1e-06"),
    "experts": ("qwen3_moe", {"norm_topk_prob": False}, {"expert_weights_norm": True}, "weights_norm is 1, and 0"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_of_other_architectures(case: str) -> None:
    kind, changes, settings, refused = SETTINGS[case]
    config = AutoConfig.for_model({"gemma3": "gemma3_text"}.get(kind, kind), **changes)
    given = {f"{kind}.{name}": value for name, value in settings.items()}
    with pytest.raises(PostTrainError, match=f"x.gguf: its .*{refused}") if refused else nullcontext():
        require_settings(Path("x.gguf"), kind, given, config, "take another")


@pytest.mark.parametrize(
    ("add_bos", "splitter", "opened"),
    [
        (True, None, "<|im_start|>"),
        (False, None, ""),
        (None, None, ""),
        (None, "qwen2", ""),
        (None, "llama-bpe", "<|im_start|>"),
        (None, "tekken", "<|im_start|>"),
        (False, "llama-bpe", ""),
    ],
)
def test_a_gguf_file_that_wants_a_bos_gets_one(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    add_bos: bool | None,
    splitter: str | None,
    opened: str,
) -> None:
    """transformers does not read this of a file whose vocabulary is of GPT-2's kind, as Llama 3's is."""
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    spec = ModelSpec(str(tiny.save_gguf(tiny_model, tmp_path / "model.gguf", add_bos=add_bos, splitter=splitter)))
    for _ in range(2):  # converted, and from the cache
        tokenizer = load_tokenizer(spec)
        assert tokenizer.decode(tokenizer("the fox")["input_ids"]) == opened + "the fox"
        assert tokenizer.decode(tokenizer("the fox", add_special_tokens=False)["input_ids"]) == "the fox"
        asked = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        assert asked.count("<|im_start|>") == 1
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(ModelSpec("any", tokenizer=str(tmp_path / "saved")))
    assert again("the fox")["input_ids"] == tokenizer("the fox")["input_ids"]


def test_a_revision_of_a_folder(tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match=r"revision main: .* only models of the hub"):
        load_config(ModelSpec(str(tiny_model), revision="main"))


@pytest.mark.parametrize("options", [{}, {"random_init": True}, {"quantization": "nf4", "lora": LoRASpec(r=4)}])
@pytest.mark.parametrize("meta", [False, True])
def test_code_that_is_trusted_is_trusted_wherever_the_model_is_built(
    options: dict[str, Any], meta: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    spec = ModelSpec(str(tiny.with_own_code(tiny_model, tmp_path / "remote")), trust_remote_code=True, **options)
    assert type(build_policy(spec, 400, meta=meta).transformer).__name__ == "OwnModel"
    with pytest.raises(PostTrainError):
        build_policy(replace(spec, trust_remote_code=False), 400)
