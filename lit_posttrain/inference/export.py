"""From a checkpoint to a Hugging Face folder: weights as safetensors, tokenizer, template, generation config, card."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.inference.export_card import model_card
from lit_posttrain.inference.export_older import readable_by_older
from lit_posttrain.inference.export_paths import check_export
from lit_posttrain.inference.export_proof import check_tokenizer, load_adapter, load_model
from lit_posttrain.models.adapter_folders import GENERATION, resolve, write_base
from lit_posttrain.models.loading import build_policy
from lit_posttrain.models.merging import cast_saved, plain
from lit_posttrain.models.paths import cache_root
from lit_posttrain.models.policy import Scorer
from lit_posttrain.models.precision import DTYPES, torch_dtype
from lit_posttrain.models.proof import Proof
from lit_posttrain.models.restore import Restored, restore
from lit_posttrain.models.spec import DType, ModelSpec
from lit_posttrain.models.tokenizers import closing_token
from lit_posttrain.runs.atomic import whole_folder
from lit_posttrain.tokenizer import Tokenizer

_QUICK_BYTES = 2 * 2**30  # of a base in float32 that is loaded once more for a figure


class Exported(NamedTuple):
    """A written folder, its checkpoint, and the optimizer step of that. difference: the largest difference of the
    logits (or scores: `what`) from those of the trained model, the largest of which is `scale`. needs_options: True for
    an adapter whose base was in half precision or quantized, which peft has to be told. untold: the difference if peft
    is not told; None if that takes long to compute."""

    folder: Path
    checkpoint: Path
    step: int
    what: str
    difference: float
    scale: float
    needs_options: bool = False
    untold: float | None = None


def export_checkpoint(
    ckpt: str, out: str, *, adapter: bool = False, dtype: DType | None = None, trust_remote_code: bool = False
) -> Exported:
    """Write `out`, a folder that `AutoModelForCausalLM.from_pretrained` (or `AutoPeftModelForCausalLM`, with
    adapter=True) loads; for a reward model `AutoModelForSequenceClassification`.

    LoRA is merged into the base unless `adapter`; a quantized base is unpacked to what it computed with, so the
    merged model equals the trained one. The folder appears only once it has been loaded again and gives the logits of
    the trained model. dtype: of the written weights; by default that of the training run.

    Raises:
        PostTrainError: when there is no checkpoint, the folder exists already, adapter=True without LoRA or for a
            reward model, or the folder would be another model than the trained one.
    """
    found, target = check_export(ckpt, out)
    restored = restore(str(found), trust_remote_code)
    if adapter and restored.spec.lora is None:
        raise PostTrainError(f"--adapter: {found} holds a fully trained model, not LoRA adapters; leave --adapter out")
    if adapter and isinstance(restored.model, Scorer):
        raise PostTrainError(
            "--adapter: a reward model needs a padding token of its own, which an adapter cannot bring; leave it out"
        )
    failed = "export would write another model than was trained, so nothing is written"
    proof = Proof(restored.model, len(restored.tokenizer), failed)
    with whole_folder(target) as fresh:
        base_size = 0
        with _quiet_peft():
            if adapter:
                base_size = _write_adapter(restored, fresh, target, dtype, proof)
            else:
                _write_model(restored, fresh, dtype, proof)
        (fresh / "README.md").write_text(model_card(restored, found, adapter), encoding="utf-8")
        for file in fresh.rglob("*.safetensors"):  # written for its owner alone, whatever the umask
            shutil.copymode(fresh / "README.md", file)
    done = Exported(target, found, restored.step, proof.what, proof.difference, proof.scale)
    spec = restored.spec
    if not adapter or not (spec.quantization or torch_dtype(spec) in (torch.bfloat16, torch.float16)):
        return done
    return done._replace(needs_options=True, untold=_untold(target, proof, spec, base_size))


def _untold(folder: Path, proof: Proof, spec: ModelSpec, base_size: int) -> float | None:
    """The difference of an adapter from the trained model if peft loads its base in float32. It is for a note to the
    user: not computed for a large base, and None if it fails."""
    if base_size > _QUICK_BYTES:
        return None
    try:
        with _quiet_peft():
            return proof.off(proof.answers(load_adapter(folder, proof, spec, as_trained=False)))
    except Exception:  # whatever fails here, such as memory: the folder is written and proven
        return None


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Hide peft's warnings: what they ask for is done here, or checked not to matter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
        yield


def _write_model(restored: Restored, folder: Path, dtype: DType | None, proof: Proof) -> None:
    spec, tokenizer, ends = restored.spec, restored.tokenizer, restored.eos_ids
    close_with(tokenizer, spec)
    padding = -1
    model = plain(restored.release(), proof)
    # merged into a base that the run kept in bfloat16 as it wished: float32 keeps what adapters add to it
    written = DTYPES[dtype] if dtype else torch_dtype(replace(spec, dtype=restored.run["policy"]["dtype"]))
    cast_saved(model, written)
    if proof.scored:
        padding = add_padding_token(model, tokenizer)
    else:
        end_with(model, tokenizer, ends)
    _save(model, folder)
    tokenizer.save_pretrained(folder)
    readable_by_older(folder)
    proof.compare_rounded("the weights", written, proof.answers(model))
    del model  # two models might not fit
    proof.compare("reading the folder back", _read_back(folder, padding, proof, spec.trust_remote_code))
    check_tokenizer(folder, tokenizer, spec.trust_remote_code)


def _read_back(folder: Path, padding: int, proof: Proof, trust_remote_code: bool) -> Tensor:
    model = load_model(folder, proof, trust_remote_code)
    return proof.padded_scores(model, padding) if proof.scored else proof.answers(model)


def _write_adapter(restored: Restored, folder: Path, target: Path, dtype: DType | None, proof: Proof) -> int:
    """Write only the adapters. peft finds the base by adapter_config.json: a hub name, or a folder on this machine. A
    .gguf file, which peft cannot read, and a base in the cache are written beside the adapters. Returns the bytes of
    the base in float32."""
    spec, tokenizer, ends = restored.spec, restored.tokenizer, restored.eos_ids
    model: Any = restored.release().model
    size = 4 * int(model.get_nb_trainable_parameters()[1])
    close_with(tokenizer, spec)
    config = model.peft_config["default"]
    place = resolve(spec.path, spec.trust_remote_code)
    where, local = place.where, Path(place.where).is_dir()
    beside = place.gguf is not None or Path(where).resolve().is_relative_to(cache_root().resolve())
    config.revision = None if local else spec.revision
    trained = [value for value in model.parameters() if value.requires_grad]
    if dtype is not None:
        for value in trained:  # peft reads adapters as float32
            value.data = value.data.to(DTYPES[dtype]).float()
        proof.compare_rounded("the adapters", DTYPES[dtype], proof.answers(model.get_base_model()))
        for value in trained:
            value.data = value.data.to(DTYPES[dtype])
    base = folder / "base" if beside else Path(where)
    config.base_model_name_or_path = str(base.resolve()) if local else where
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    readable_by_older(folder)
    write_base(folder, spec, restored.run.get("frozen", {}).get("policy"))
    end_with(model.get_base_model(), tokenizer, ends)
    model.get_base_model().generation_config.to_json_file(folder / GENERATION)
    del model
    if beside:
        dense = build_policy(replace(spec, lora=None, quantization=None), 0).transformer
        end_with(dense, tokenizer, ends)
        _save(dense, base)
        readable_by_older(base)
        del dense
    proof.compare("reading the folder back", proof.answers(load_adapter(folder, proof, spec)))
    check_tokenizer(folder, tokenizer, spec.trust_remote_code)
    if beside:
        config.base_model_name_or_path = str((target / "base").resolve())
        config.save_pretrained(folder)
    return size


def end_with(model: Any, tokenizer: Tokenizer, ends: list[int]) -> None:
    """Set the end tokens of the run in the generation config, whose other settings stay."""
    from transformers import GenerationConfig

    if getattr(model, "generation_config", None) is None:  # transformers cannot generate with it
        model.generation_config = GenerationConfig()
    model.config.eos_token_id = model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def _save(model: Any, folder: Path) -> None:
    """Save a transformers model. Its generation config is written unchecked: transformers refuses to save some that
    publishers have written, such as a temperature without do_sample."""
    from transformers import GenerationConfig

    generation = getattr(model, "generation_config", None)
    if generation is not None:
        model.generation_config = GenerationConfig()
    model.save_pretrained(folder, safe_serialization=True)
    if generation is not None:
        generation.to_json_file(folder / GENERATION)


def close_with(tokenizer: Tokenizer, spec: ModelSpec) -> None:
    """Make the token that closes the assistant's turns the tokenizer's eos_token, as other tools know only one end
    token; unless end tokens were named, or the template writes the eos_token itself."""
    ends = closing_token(tokenizer)
    if ends and not spec.eos and tokenizer.eos_token_id not in ends and "eos_token" not in str(tokenizer.chat_template):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])


def add_padding_token(model: Any, tokenizer: Tokenizer) -> int:
    """Give a sequence classifier a padding token that no text has, and return its id. transformers reads the score at
    the last token that is not padding: where padding is the end token, it would look past the end of every response."""
    if "<|padding|>" not in tokenizer.get_vocab():
        tokenizer.add_tokens(["<|padding|>"], special_tokens=True)
    tokenizer.pad_token = "<|padding|>"
    tokenizer.padding_side = "right"
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    assert tokenizer.pad_token_id is not None
    return tokenizer.pad_token_id
