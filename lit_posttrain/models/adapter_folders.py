"""Folders of adapters, as peft writes them: merged into their base model once, in the cache."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.identity import Identity, difference, identity_of
from lit_posttrain.models.merging import plain
from lit_posttrain.models.model_config import Head, read_config
from lit_posttrain.models.paths import Place, located, made_once
from lit_posttrain.models.policy import Policy, Scorer
from lit_posttrain.models.pretrained import load_model
from lit_posttrain.models.proof import Proof
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizer_files import read_tokenizer

BASE_FILE = "base.json"  # beside the adapters: what their base was
GENERATION = "generation_config.json"
_BEFORE = "base_model.model."  # peft puts it in front of every name


def resolve(path: str, trust_remote_code: bool = False) -> Place:
    """The place of a whole model: as `located`, but adapters are merged into their base first.

    Raises:
        PostTrainError: as `located` and `merged_folder`.
    """
    place = located(path)
    return Place(str(merged_folder(Path(place.where), trust_remote_code))) if place.adapters else place


def write_base(folder: Path, spec: ModelSpec, base: Identity | None) -> None:
    """Write beside adapters what base they were trained on. base: its identity, if the checkpoint has it."""
    told = {"dtype": spec.dtype, "quantization": spec.quantization, "identity": base}
    (folder / BASE_FILE).write_text(json.dumps(told, indent=1), encoding="utf-8")


def merged_folder(folder: Path, trust_remote_code: bool = False) -> Path:
    """A model folder with the adapters of `folder` merged into their base, which is dequantized first if necessary.

    Raises:
        PostTrainError: if the base is not named, does not exist or is another than in training; for files that are
            damaged or do not fit, and adapters that cannot be merged.
    """
    told = _read(folder / "adapter_config.json")
    name, weights = told.get("base_model_name_or_path"), folder / "adapter_model.safetensors"
    if not name:
        raise PostTrainError(f"model path {folder}: an adapter, and its adapter_config.json names no base model")
    if not weights.is_file():
        raise PostTrainError(f"model path {folder}: an adapter without adapter_model.safetensors")
    noted = folder / BASE_FILE
    trained = _read(noted) if noted.is_file() else {}
    spec = ModelSpec(
        name,
        revision=told.get("revision"),
        dtype=trained.get("dtype", "float32"),
        quantization=trained.get("quantization"),
        trust_remote_code=trust_remote_code,
    )
    head: Head = "score" if told.get("task_type") == "SEQ_CLS" else "lm"
    try:
        base_place = resolve(spec.path, trust_remote_code)
        config = read_config(spec, base_place, "score")
    except PostTrainError as problem:
        raise PostTrainError(f"model path {folder}: the base of the adapter: {problem}") from problem

    def make(target: Path) -> None:
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = read_tokenizer(replace(spec, tokenizer=str(folder)), Place(str(folder)))
        else:
            tokenizer = read_tokenizer(spec, base_place)
        model = _adapted(folder, weights, _wrapped(spec, base_place, head), len(tokenizer))
        base = trained.get("identity")
        if base is not None and (what := difference(base, identity_of(model))):
            raise PostTrainError(
                f"model path {folder}: its adapters were trained on another model than what is at {name} now ({what}); "
                "bring the old files back"
            )
        failed = f"model path {folder}: merging the adapters would make another model of them"
        proof = Proof(model, len(tokenizer), failed)
        plain(model, proof, f"model path {folder}: ").save_pretrained(target)
        del model
        again = _wrapped(ModelSpec(str(target), trust_remote_code=trust_remote_code), Place(str(target)), head).eval()
        proof.compare("reading the merged model back", proof.answers(again.transformer))
        tokenizer.save_pretrained(target)
        if (folder / GENERATION).is_file():
            _end_with(_read(folder / GENERATION), target)

    base_files = _files(Path(base_place.where)) if Path(base_place.where).is_dir() else []
    state = f"{base_place.where}@{getattr(config, '_commit_hash', None)}"  # of a model on the hub
    return made_once(weights, "merged", make, beside=[*_files(folder), *base_files], told=state)


def _wrapped(spec: ModelSpec, place: Place, head: Head) -> Policy | Scorer:
    model = load_model(spec, place, head, "cpu")
    return Scorer(model) if head == "score" else Policy(model)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise PostTrainError(f"{file}: not JSON, or cut short ({first_line(problem)}); write it again") from problem
    if not isinstance(found, dict):
        raise PostTrainError(f"{file}: a {type(found).__name__}, and not a JSON object; write it again")
    return found


def _files(folder: Path) -> list[Path]:
    """The files that may decide what the model in a folder computes: all of its files, and templates in subfolders."""
    return sorted(file for file in (*folder.iterdir(), *folder.glob("*/*.jinja")) if file.is_file())


def _end_with(generation: dict[str, Any], folder: Path) -> None:
    """Write a generation config, with its end tokens, into a model folder."""
    (folder / GENERATION).write_text(json.dumps(generation, indent=1), encoding="utf-8")
    if "eos_token_id" in generation:
        config = _read(folder / "config.json") | {"eos_token_id": generation["eos_token_id"]}
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _adapted(folder: Path, weights: Path, base: Policy | Scorer, vocabulary: int) -> Policy | Scorer:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        found = load_file(weights)
        _fit_embeddings(folder, base.transformer, found, vocabulary)
        with warnings.catch_warnings():  # of what is compared below
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")
            model: Any = PeftModel.from_pretrained(base.model, str(folder))
            wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
            loaded = get_peft_model_state_dict(model, save_embedding_layers=True)
    except PostTrainError:
        raise
    except Exception as problem:  # adapters of any kind, of anybody
        raise PostTrainError(f"model path {folder}: the adapter cannot be read: {first_line(problem)}") from problem
    if not hasattr(model, "merge_and_unload"):
        kind = getattr(model.peft_config["default"].peft_type, "value", "unknown")
        raise PostTrainError(
            f"model path {folder}: an adapter of the kind {kind}, which cannot be merged into a model; take a LoRA"
        )
    unfit = {n for n, value in found.items() if n not in loaded or not _same(value, loaded[n])}
    if lacking := wanted - found.keys():
        raise _misfit(folder, f"{len(lacking)} weights are missing, such as {min(lacking)}")
    if unfit:
        raise _misfit(folder, f"{len(unfit)} weights have no place in the model, such as {min(unfit)}")
    return type(base)(model.eval())


def _misfit(folder: Path, what: str) -> PostTrainError:
    return PostTrainError(f"model path {folder}: the adapter does not fit its base: {what}")


def _same(given: Tensor, taken: Tensor) -> bool:
    return given.shape == taken.shape and torch.allclose(given.to(taken), taken, rtol=0, atol=0, equal_nan=True)


def _fit_embeddings(folder: Path, model: Any, found: dict[str, Tensor], vocabulary: int) -> None:
    """Give a model as many embeddings as the adapter's file holds. Those of new tokens it must hold: they would be
    drawn at random here."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    parts = [embeddings] if head is None or head.weight is embeddings.weight else [embeddings, head]
    named = {id(module): name for name, module in model.named_modules()}
    keys = [[f"{_BEFORE}{named[id(part)]}.{end}" for end in ("weight", "base_layer.weight")] for part in parts]
    held = [next((found[key] for key in either if key in found), None) for either in keys]
    rows = max([vocabulary if vocabulary > len(embeddings.weight) else 0, *(len(v) for v in held if v is not None)])
    if rows > len(embeddings.weight) and any(value is None for value in held):
        lacking = " and ".join(named[id(part)] for part, value in zip(parts, held, strict=True) if value is None)
        raise PostTrainError(
            f"model path {folder}: an adapter for {rows} tokens on a base that has {len(embeddings.weight)}, without "
            f"the embeddings of the new ones ({lacking}); save it again with save_embedding_layers=True"
        )
    if rows not in (0, len(embeddings.weight)):
        model.resize_token_embeddings(rows, mean_resizing=False)
