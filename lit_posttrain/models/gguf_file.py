"""The header of a GGUF file, and a check that transformers has used all of the file.

transformers silently leaves out tensors that it has no name for, such as rope_freqs, Llama 3.1's scaling of positions.
The model would compute something else than the file's.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.gguf_settings import require_settings
from lit_posttrain.models.weights import require_fit

# by type number in the file: struct's format of a plain value; 8 is a string, 9 a list
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9
INSTEAD = "take the model's Hugging Face folder instead"


@dataclass
class Header:
    """The header of a GGUF file. values: by name, without lists. shapes: of the tensors by name, in torch's order."""

    values: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """llama, qwen2, ..."""
        return str(self.values.get("general.architecture", "unnamed"))


def read_header(file: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        PostTrainError: for another kind of file, and one that ends within its header.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF" or _plain(stream, "I") not in (2, 3):
                raise PostTrainError(f"{file}: not a GGUF file of version 2 or 3")
            tensors, values = _plain(stream, "Q"), _plain(stream, "Q")
            found = {_text(stream): _value(stream, _plain(stream, "I")) for _ in range(values)}
            shapes, end = {}, 0
            for _ in range(tensors):
                name = _text(stream)
                shapes[name] = tuple(_plain(stream, "Q") for _ in range(_plain(stream, "I")))[::-1]
                numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType(_plain(stream, "I"))]
                end = max(end, _plain(stream, "Q") + math.prod(shapes[name]) // numbers * size)
            step = found.get("general.alignment", 32)
            whole = file.stat().st_size >= -(-stream.tell() // step) * step + end
    except (struct.error, ValueError, LookupError, OverflowError, MemoryError):
        whole = False
    if not whole:
        raise PostTrainError(f"{file}: a damaged GGUF file, or one that was not downloaded to its end")
    return Header({name: value for name, value in found.items() if not isinstance(value, _Skipped)}, shapes)


class _Skipped:
    pass


def _plain(stream: BinaryIO, form: str) -> Any:
    return struct.unpack(f"<{form}", stream.read(struct.calcsize(form)))[0]


def _text(stream: BinaryIO) -> str:
    return stream.read(_plain(stream, "Q")).decode()


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(stream)
    if kind != _LIST:
        return _plain(stream, _FORMATS[kind])
    inner, length = _plain(stream, "I"), _plain(stream, "Q")
    if inner in _FORMATS:
        stream.seek(struct.calcsize(_FORMATS[inner]) * length, 1)
    else:
        for _ in range(length):
            _value(stream, inner)
    return _Skipped()


def require_all_read(file: Path, model: Any) -> None:
    """Check that the model that transformers made of a GGUF file has a place for everything in the file.

    Raises:
        PostTrainError: naming tensors, settings, or a scaling of positions, that were left out.
    """
    header, config = read_header(file), model.config
    scaling = str(header.values.get(f"{header.architecture}.rope.scaling.type", "none"))
    rope = getattr(config, "rope_parameters", None) or {}
    if scaling != "none" and rope.get("rope_type", "default") == "default":
        raise PostTrainError(
            f"the model at {file}: it scales its positions ({scaling}), which transformers does not read from a GGUF "
            f"file; {INSTEAD}"
        )
    require_settings(file, header.architecture, header.values, config, INSTEAD)
    shapes, score = dict(header.shapes), getattr(model, "score", None)
    if getattr(config, "tie_word_embeddings", False) or score is not None:
        shapes.pop("output.weight", None)  # some write tied embeddings twice; a scorer does without
    held = sum(math.prod(shape) for shape in shapes.values())
    drawn = sum(parameter.numel() for parameter in score.parameters()) if score is not None else 0
    if held > sum(parameter.numel() for parameter in model.parameters()) - drawn:
        unknown = set(shapes) - _known(header.architecture, model)
        remedy = f"transformers leaves out what it has no name for, so this would be another model; {INSTEAD}"
        require_fit(f"the model at {file}", shapes, [], unknown or shapes, remedy=remedy)


def _known(architecture: str, model: Any) -> set[str]:
    """The names that llama.cpp gives to the parameters of a transformers model."""
    import gguf

    number = next((a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
    if number is None:
        return set()
    layers = getattr(model.config, "num_hidden_layers", 0)
    names = gguf.get_tensor_name_map(number, layers)
    found = (names.get_name(name, try_suffixes=(".weight", ".bias")) for name, _ in model.named_parameters())
    return {name for name in found if name is not None}
