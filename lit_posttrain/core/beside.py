"""Models beside the policy that read its tokens, such as a teacher or a critic: the vocabulary that they must share
with it, and how they read its batches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lit_posttrain.core.building import device_type
from lit_posttrain.core.model_module import ModelModule
from lit_posttrain.data.store.repack import repacked
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.architectures import attention_implementation, layout_of
from lit_posttrain.models.loading import load_config
from lit_posttrain.models.model_config import Head
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizers import load_tokenizer
from lit_posttrain.types import RowLayout, TreeBatch

_OF_TEXT = ("chat_template", "template_variables", "eos")  # special_tokens can make the vocabularies the same


def refuse_text_options(spec: ModelSpec, option: str) -> None:
    """Refuse options of a spec that are about text: the model reads the policy's tokens.

    Raises:
        PostTrainError: naming the first that is set.
    """
    for name in set_options(spec, _OF_TEXT):
        raise PostTrainError(
            f"--model.{option}.{name}: it reads the tokens of the policy, whose tokenizer and chat template hold; "
            f"leave it out, or set --model.policy.{name}"
        )


def set_options(spec: ModelSpec, names: Sequence[str]) -> list[str]:
    """Those of `names` that have another value than by default."""
    default = ModelSpec(spec.path)
    return [name for name in names if getattr(spec, name) != getattr(default, name)]


def require_same_vocabulary(module: ModelModule, spec: ModelSpec, option: str) -> list[str]:
    """Refuse a model that would take the policy's tokens for others. It may have more, such as a reward model's padding
    token: these are returned, in the order of their ids.

    Raises:
        PostTrainError: naming the option.
    """
    theirs, own = load_tokenizer(spec).get_vocab(), module.tokenizer.get_vocab()
    if any(theirs.get(token) != number for token, number in own.items()):
        raise PostTrainError(
            f"--model.{option}.path {spec.path}: another vocabulary than the policy's, and it reads the policy's "
            "tokens; take a model with the same tokenizer"
        )
    return sorted(theirs.keys() - own.keys(), key=theirs.__getitem__)


def own_layout(module: ModelModule, spec: ModelSpec, head: Head = "lm") -> RowLayout | None:
    """How batches are packed anew for a model; None where it reads those that are packed for the policy."""
    config, device = load_config(spec, head), device_type(module)
    layout = layout_of(config, device, attention_implementation(spec.attention, config, device))
    return None if layout.takes(module.layout) else layout


def as_read(batch: TreeBatch, layout: RowLayout | None) -> tuple[TreeBatch, Tensor | slice]:
    """The batch in a model's `own_layout`, and where its targets are among those of the batch that is returned."""
    return (batch, slice(None)) if layout is None else repacked(batch, layout)
