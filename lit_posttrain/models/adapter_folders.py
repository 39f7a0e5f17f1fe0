"""LoRA adapters in folders, as peft writes them, as models: merged into the base that they name, once, in the cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.identity import Identity, difference, identity_of
from lit_posttrain.models.loading import build_policy, build_scorer
from lit_posttrain.models.merging import merged
from lit_posttrain.models.paths import made_once, resolve
from lit_posttrain.models.policy import Policy, Scorer
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizers import load_tokenizer

BASE_FILE = "base.json"  # beside the adapters: what their base was


def write_base(folder: Path, spec: ModelSpec, base: Identity | None) -> None:
    """Note beside adapters what they were trained on. base: as the checkpoint has it, if it does."""
    told = {"dtype": spec.dtype, "quantization": spec.quantization, "identity": base}
    (folder / BASE_FILE).write_text(json.dumps(told, indent=1), encoding="utf-8")


def merged_folder(folder: Path) -> Path:
    """A model folder with the adapters of `folder` merged into their base.

    Raises:
        PostTrainError: adapters whose base is not named, is not there or another than they were trained on, that were
            trained on a quantized base, or whose weights do not fit.
    """
    told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    name, weights = told.get("base_model_name_or_path"), folder / "adapter_model.safetensors"
    if not name:
        raise PostTrainError(f"model path {folder}: an adapter, and its adapter_config.json names no base model")
    if not weights.is_file():
        raise PostTrainError(f"model path {folder}: an adapter without adapter_model.safetensors")
    noted = folder / BASE_FILE
    trained = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
    if trained.get("quantization"):
        raise PostTrainError(
            f"model path {folder}: an adapter that was trained on a base in {trained['quantization']}; export its run "
            "merged (without --adapter) and name that folder"
        )
    spec = ModelSpec(name, revision=told.get("revision"), dtype=trained.get("dtype", "float32"))
    try:
        where, gguf = resolve(spec.path)
    except PostTrainError as problem:
        raise PostTrainError(f"model path {folder}: the base of the adapter: {problem}") from problem
    files = sorted(Path(where).glob("*.safetensors")) if Path(where).is_dir() else []
    spec = replace(spec, tokenizer=str(folder) if (folder / "tokenizer_config.json").is_file() else None)
    head = "score" if told.get("task_type") == "SEQ_CLS" else "lm"

    def make(target: Path) -> None:
        tokenizer = load_tokenizer(spec)
        model = _adapted(folder, weights, replace(spec, tokenizer=None), head, len(tokenizer))
        base = trained.get("identity")
        if base is not None and (what := difference(base, identity_of(model))):
            raise PostTrainError(
                f"model path {folder}: its adapters were trained on another model than what is at {name} now ({what}); "
                "bring the old files back"
            )
        merged(model).save_pretrained(target)
        tokenizer.save_pretrained(target)

    return made_once(weights, "merged", make, beside=[*files, *([Path(where) / gguf] if gguf else [])])


def _adapted(folder: Path, weights: Path, spec: ModelSpec, head: str, vocabulary: int) -> Policy | Scorer:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    base = (build_scorer if head == "score" else build_policy)(spec, vocabulary)
    try:
        model: Any = PeftModel.from_pretrained(base.model, str(folder))
        wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        with safe_open(weights, "pt") as file:
            found = set(file.keys())
    except Exception as problem:  # adapters of any kind, of anybody
        raise PostTrainError(f"model path {folder}: the adapter cannot be read: {first_line(problem)}") from problem
    lacking, left = wanted - found, {key for key in found - wanted if "lora_" in key}
    if lacking or left:
        raise PostTrainError(
            f"model path {folder}: the adapter does not fit its base: {len(lacking)} weights are missing and "
            f"{len(left)} are unknown, such as {min(lacking or left)}"
        )
    return type(base)(model.eval())
