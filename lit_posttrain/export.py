"""From a checkpoint to a Hugging Face folder: weights as safetensors, tokenizer, template, generation config, card."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lit_posttrain import __version__
from lit_posttrain.arguments import alternatives
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.loading import DTYPES, build_policy, build_scorer
from lit_posttrain.models.policy import Backbone, Scorer
from lit_posttrain.models.restore import Restored, find_checkpoint, restore
from lit_posttrain.models.spec import DType
from lit_posttrain.models.weights import load_weights


class Exported(NamedTuple):
    """A written folder, the checkpoint it came from and the optimizer step that was saved at."""

    folder: Path
    checkpoint: Path
    step: int


def export_checkpoint(
    ckpt: str, out: str, *, adapter: bool = False, dtype: DType | None = None, trust_remote_code: bool = False
) -> Exported:
    """Write `out`, a folder that `AutoModelForCausalLM.from_pretrained` (or peft, with adapter=True) loads; for a
    reward model `AutoModelForSequenceClassification`.

    LoRA is merged into the base unless `adapter`; a quantized base is unpacked to what it computed with, so the
    merged model equals the trained one. dtype: of the written weights; by default that of the training run.

    Raises:
        PostTrainError: when there is no checkpoint, the folder exists already, or adapter=True without LoRA or for a
            reward model.
    """
    found, target = find_checkpoint(ckpt), Path(out)
    if found is None:
        place = Path(ckpt)
        runs = [str(f.parent) for f in place.parent.glob("*/last.ckpt")]
        raise PostTrainError(
            f"--ckpt {ckpt}: neither a .ckpt file nor a run's folder with best.ckpt or last.ckpt; "
            + alternatives(ckpt, runs, "runs there")
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PostTrainError(f"--out {target} exists already and is not empty; choose another folder")
    restored = restore(str(found), trust_remote_code)
    if adapter and restored.spec.lora is None:
        raise PostTrainError(f"--adapter: {found} holds a fully trained model, not LoRA adapters; leave --adapter out")
    if adapter and isinstance(restored.model, Scorer):
        raise PostTrainError(
            "--adapter: a reward model needs a padding token of its own, which an adapter cannot bring; leave it out"
        )
    model = restored.model.model if adapter else merged(restored)
    if dtype is not None:
        model = model.to(DTYPES[dtype])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        fresh = Path(scratch) / "model"
        _write(model, restored, fresh, found, adapter)
        if target.exists():
            target.rmdir()
        shutil.move(fresh, target)
    return Exported(target, found, restored.step)


def merged(restored: Restored) -> Any:
    """A plain transformers model with the adapters added into its weights."""
    if restored.spec.lora is None:
        return restored.model.model
    whole = _unquantized(restored) if restored.spec.quantization else restored.model
    model: Any = whole.model
    return model.merge_and_unload(safe_merge=True)


def _unquantized(restored: Restored) -> Backbone:
    """The same model on a dense base of the very weights that the quantized one computes with.

    peft would round the merged weights to 4 bits again; a dense folder need not lose that.
    """
    from peft.utils.integrations import dequantize_bnb_weight

    build: Callable[..., Backbone] = build_scorer if isinstance(restored.model, Scorer) else build_policy
    dense = build(replace(restored.spec, quantization=None, dtype="float32"), len(restored.tokenizer))
    weights = {}
    for name, module in restored.model.named_modules():
        for own, value in module.named_parameters(prefix=name, recurse=False):
            quantized = type(value).__name__ in ("Params4bit", "Int8Params")
            full = dequantize_bnb_weight(value, state=getattr(module, "state", None)) if quantized else value
            weights[own] = full.detach().float()
    kept = dense.state_dict()
    weights |= {name: value for name, value in restored.model.named_buffers() if name in kept}
    load_weights(dense, weights, f"{restored.path}, unpacked", frozen_too=True)
    return dense.eval()


def _write(model: Any, restored: Restored, folder: Path, ckpt: Path, adapter: bool) -> None:
    from transformers import GenerationConfig

    tokenizer = restored.tokenizer
    if isinstance(restored.model, Scorer):
        add_padding_token(model, tokenizer)
    elif not adapter:
        ends = restored.eos_ids
        model.config.eos_token_id = ends[0] if len(ends) == 1 else ends
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
        )
    with warnings.catch_warnings():
        # peft asks the hub whether the base's vocabulary has changed; it has not, adapters train no embeddings
        warnings.filterwarnings("ignore", message="Could not find a config file in")
        model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(restored, ckpt, adapter), encoding="utf-8")
    for file in folder.glob("*.safetensors"):  # written for its owner alone, whatever the umask
        shutil.copymode(folder / "README.md", file)


def add_padding_token(model: Any, tokenizer: Any) -> None:
    """Give a sequence classifier a padding token that no text has. transformers reads the score at the last token that
    is not padding: where padding is the end token, it would look past the end of every response."""
    if "<|padding|>" not in tokenizer.get_vocab():
        tokenizer.add_tokens(["<|padding|>"], special_tokens=True)
    tokenizer.pad_token = "<|padding|>"
    tokenizer.padding_side = "right"
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def model_card(restored: Restored, ckpt: Path, adapter: bool) -> str:
    """What the model is, what it was trained on and how, and the figures of its run, as far as its folder says."""
    spec, home = restored.spec, ckpt.parent
    method = restored.run.get("method", "unknown")
    kind = "LoRA adapter" if adapter else "reward model" if isinstance(restored.model, Scorer) else "model"
    lines = ["---", f"base_model: {spec.path}", "library_name: transformers", "tags: [lit-posttrain]", "---", ""]
    lines += [f"# {home.name}", "", f"A {kind} trained from `{spec.path}` with lit-posttrain {__version__} ({method})."]
    lines += [
        "",
        "## Training",
        "",
        f"- method: {method}",
        f"- tokens seen: {int(restored.run.get('num_tokens', 0)):,}",
    ]
    if spec.lora is not None:
        lora = spec.lora
        name = ("rs" if lora.rslora else "") + ("DoRA" if lora.dora else "LoRA")
        lines.append(f"- {name}: r {lora.r}, alpha {lora.peft_alpha:g}, target {lora.target_modules}")
    if spec.quantization:
        lines.append(f"- base quantized to {spec.quantization} while training")
    lines += _data_lines(home / "audit.json") + _figure_lines(home / "metrics.csv", restored.step)
    lines += ["", "## Limits", "", "Not evaluated beyond the figures above; it inherits what its base model does."]
    return "\n".join(lines) + "\n"


def _data_lines(file: Path) -> list[str]:
    if not file.is_file():
        return []
    files = json.loads(file.read_text(encoding="utf-8")).get("files", [])
    named = [f for f in files if isinstance(f, dict) and f.get("name", f.get("path"))]
    return [f"- data: {f.get('name', f.get('path'))}, {f.get('rows', f.get('rows_read', '?'))} rows" for f in named]


def _figure_lines(file: Path, step: int) -> list[str]:
    """The last figures logged until the checkpoint was saved. Rows count optimizer steps from 0, checkpoints from 1."""
    if not file.is_file():
        return []
    last: dict[str, str] = {}
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if int(row["step"]) < step:
                last |= {k: v for k, v in row.items() if v}
    shown = [k for k in last if k.endswith(("/loss", "mean_token_accuracy", "perplexity", "accuracies", "/ece"))]
    lines = ["", f"## Figures at step {step}", ""] + [f"- {name}: {float(last[name]):.4f}" for name in shown]
    return lines if shown else []
