"""Settings that transformers 4.57 reads under other names than 5, written under both.

transformers 5 moved the settings of rotary positions into `rope_parameters`, which 4.57 does not read: it silently uses
its default rope_theta instead. Classes and keys of tokenizers have new names too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PER_LAYER = {"full_attention", "sliding_attention"}


def readable_by_older(folder: Path) -> None:
    """Add the older names to config.json and tokenizer_config.json; transformers 5 reads either."""
    _edit(folder / "config.json", _with_older_names)
    _edit(folder / "tokenizer_config.json", _with_older_tokenizer)


def _edit(file: Path, change: Any) -> None:
    if file.is_file():
        content = change(json.loads(file.read_text(encoding="utf-8")))
        file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _with_older_names(config: dict[str, Any]) -> dict[str, Any]:
    made = {
        name: _with_older_names(value) if name.endswith("_config") and isinstance(value, dict) else value
        for name, value in config.items()
    }
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        made |= _older_rope(rope, str(config.get("model_type", "")))
    if "num_local_experts" in config:
        made.setdefault("num_experts", config["num_local_experts"])
    return made


def _older_rope(rope: dict[str, Any], model_type: str) -> dict[str, Any]:
    if rope.keys() >= _PER_LAYER:  # Gemma 3
        older = _older_rope(rope["full_attention"], model_type)
        return older | {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
    if "rope_theta" not in rope:
        return {}
    older = {"rope_theta": rope["rope_theta"]}
    if "partial_rotary_factor" in rope:
        older["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if model_type.startswith("gpt_neox"):
        older = {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope.get("partial_rotary_factor", 0.25)}
    if rope.get("rope_type", "default") != "default":
        apart = ("rope_theta", "partial_rotary_factor")
        older["rope_scaling"] = {name: value for name, value in rope.items() if name not in apart}
    return older


def _with_older_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    made = dict(config)
    if made.get("tokenizer_class") == "TokenizersBackend":
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(made.get("extra_special_tokens"), list):
        made["additional_special_tokens"] = made.pop("extra_special_tokens")
    return made
