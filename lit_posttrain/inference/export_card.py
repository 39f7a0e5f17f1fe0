"""The model card of an exported folder."""

from __future__ import annotations

import json
from pathlib import Path

from lit_posttrain import __version__
from lit_posttrain.models.restore import Restored
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.runs.figures import run_figures

_SHOWN = ("/loss", "/reward", "mean_token_accuracy", "perplexity", "accuracies", "/ece")


def model_card(restored: Restored, ckpt: Path, adapter: bool) -> str:
    """The card: model, data, method and figures of the run, as far as its folder has them."""
    spec, home = restored.spec, ckpt.resolve().parent
    method = restored.run.get("method", "unknown")
    kind = "LoRA adapter" if adapter else "reward model" if restored.run.get("head") == "score" else "model"
    base, of_hub = _base(spec)
    lines = [
        "---",
        *([f"base_model: {base}"] if of_hub else []),
        f"library_name: {'peft' if adapter else 'transformers'}",
    ]
    lines += ["tags: [lit-posttrain]", "---", "", f"# {home.name}", ""]
    lines += [f"A {kind} trained from `{base}` with lit-posttrain {__version__} ({method})."]
    if adapter:
        lines += _adapter_lines(spec, of_hub)
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
    if restored.run.get("ends") and restored.run.get("head") != "score":
        lines.append(f"- responses end with: {', '.join(f'`{token}`' for token in restored.run['ends'])}")
    if spec.quantization:
        lines.append(f"- base quantized to {spec.quantization} while training")
    lines += _data_lines(home / "audit.json") + _figure_lines(home / "metrics.csv", restored.step)
    lines += ["", "## Limits", "", "Not evaluated beyond the figures above; it inherits what its base model does."]
    return "\n".join(lines) + "\n"


def _base(spec: ModelSpec) -> tuple[str, bool]:
    """(name of the base without its folder on this machine, True if that is its name on the hub)."""
    if spec.path.startswith("package:"):
        return spec.path, False
    place = Path(spec.path).expanduser()
    return (place.resolve().name, False) if place.exists() else (spec.path, True)


def _adapter_lines(spec: ModelSpec, of_hub: bool) -> list[str]:
    """How to load an adapter, and where peft looks for its base."""
    names, options = "", f', dtype="{spec.dtype}"'
    if spec.quantization == "int8":
        options += ", quantization_config=BitsAndBytesConfig(load_in_8bit=True)"
    elif spec.quantization == "nf4":
        options += (
            ", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', "
            f"bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype='{spec.dtype}')"
        )
    if spec.quantization:
        names = "from transformers import BitsAndBytesConfig\n"
    code = f"from peft import AutoPeftModelForCausalLM\n{names}\n"
    code += f"model = AutoPeftModelForCausalLM.from_pretrained(FOLDER{options})"
    moved = (
        "The base is not a hub model: `base_model_name_or_path` in adapter_config.json names its folder on the machine "
        "where this was written. Change it if the folder is elsewhere."
    )
    return ["", "```python", *code.split("\n"), "```", *([] if of_hub else ["", moved])]


def _data_lines(file: Path) -> list[str]:
    if not file.is_file():
        return []
    files = json.loads(file.read_text(encoding="utf-8")).get("files", [])
    named = [f for f in files if isinstance(f, dict) and f.get("name", f.get("path"))]
    told = [(str(f.get("name", f.get("path"))), f.get("rows", f.get("rows_read", "?"))) for f in named]
    return [f"- data: {Path(name).name if Path(name).is_absolute() else name}, {rows} rows" for name, rows in told]


def _figure_lines(file: Path, step: int) -> list[str]:
    """The metrics up to the checkpoint. Rows count optimizer steps from 0, checkpoints from 1."""
    figures = run_figures(file, before=step)
    shown = [name for name in figures if name.endswith(_SHOWN)]
    lines = ["", f"## Figures at step {step}", ""] + [f"- {name}: {figures[name]:.4f}" for name in shown]
    return lines if shown else []
