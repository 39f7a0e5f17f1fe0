"""Checks that a resumed run continues the one that wrote the checkpoint: anything else would silently be
another model, another objective or other data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.imports import place_of
from lit_posttrain.models.identity import Identity, tokenizer_difference
from lit_posttrain.models.spec import LoRASpec, ModelSpec
from lit_posttrain.runs.redaction import comparable
from lit_posttrain.runs.run_state import RunState


def arguments_of(kind: type) -> dict[str, Any]:
    """The types of the arguments of a constructor, by name, and of those of its parents that it passes on by
    `**options`.

    Raises:
        PostTrainError: for a type that cannot be found when the program runs.
    """
    found: dict[str, Any] = {}
    for one in kind.__mro__:
        if "__init__" not in vars(one) or one.__module__.partition(".")[0] in ("torch", "lightning", "builtins"):
            continue
        function = vars(one)["__init__"]
        hints, parameters = _types(function), list(inspect.signature(function).parameters.values())[1:]
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        for parameter in parameters:
            if parameter.kind not in variable:
                found.setdefault(parameter.name, hints.get(parameter.name, Any))
        if not any(parameter.kind in variable for parameter in parameters):
            break
    return found


def _types(constructor: Any) -> dict[str, Any]:
    try:
        return get_type_hints(constructor)
    except (NameError, AttributeError) as problem:
        name = constructor.__qualname__.removesuffix(".__init__")
        raise PostTrainError(
            f"{name} ({place_of(constructor)}): a type of its __init__ is not known ({first_line(problem)}); import it "
            "at the top of the module, outside of `if TYPE_CHECKING`"
        ) from problem


def flat_options(name: str, value: Any) -> dict[str, Any]:
    """A constructor argument by dotted name, dataclasses option by option. Options that a dataclass names in its
    `free_on_resume` are left out: they decide how fast a run is, not what it learns."""
    if not is_dataclass(value) or isinstance(value, type):
        return {name: value}
    kept = [f.name for f in fields(value) if f.name not in getattr(value, "free_on_resume", ())]
    inner = [flat_options(f"{name}.{option}", getattr(value, option)) for option in kept]
    return {option: choice for part in inner for option, choice in part.items()}


def saved_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a checkpoint can hold, without secrets (see `comparable`). Exact types: a subclass, such as
    NumPy's float64, is saved as an object, with which the checkpoint could not be read again."""
    found: dict[str, Any] = comparable({name: value for name, value in options.items() if _is_plain(value)})
    return found


def require_same_options(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """
    Raises:
        PostTrainError: naming an option that differs.
    """
    for name, before in saved.items():
        if name in now and now[name] != before:
            raise PostTrainError(
                f"the checkpoint was trained with --model.{name} {before} and this run has {now[name]}: resume "
                "with the same, or start anew from its exported weights"
            )


def require_epochs_left(checkpoint: Mapping[str, Any], max_epochs: int | None) -> None:
    """
    Raises:
        PostTrainError: for a run that is to end before the checkpoint's epoch, which Lightning refuses.
    """
    done = int(checkpoint["epoch"])  # counted from 0: so many are complete
    if max_epochs is not None and 0 <= max_epochs < done:
        raise PostTrainError(
            f"--trainer.max_epochs is {max_epochs}, and the checkpoint is of epoch {done + 1}: pass at least "
            f"{done + 1} to train on, or use the checkpoint as it is"
        )


def require_same_adapters(saved: Mapping[str, Any] | None, now: LoRASpec | None) -> None:
    """Adapters that are read in another way than they were trained are the same weights and another model.

    Raises:
        PostTrainError: naming the option that differs.
    """
    if now is None or saved is None:
        return
    before = LoRASpec(**saved)  # a checkpoint of an earlier version lacks newer fields: it was trained without them
    for name in ("r", "peft_alpha", "rslora", "dora"):
        was, is_ = getattr(before, name), getattr(now, name)
        if was != is_:
            option = name.removeprefix("peft_")
            raise PostTrainError(
                f"the checkpoint's adapters were trained with {option} {was} and this run has {option} {is_}: "
                f"pass --model.policy.lora.{option} {str(was).lower()}"
            )


def require_same_base_dtype(saved: RunState, spec: ModelSpec, dtype: str) -> None:
    """
    Raises:
        PostTrainError: for adapters whose base is rounded otherwise than in training.
    """
    if spec.lora is not None and saved.dtype != dtype:
        raise PostTrainError(
            f"the checkpoint's adapters were trained on a base in {saved.dtype} and this run has it in {dtype}: pass "
            f"--model.policy.dtype {saved.dtype}"
        )


def require_same_tokens(saved: RunState, spec: ModelSpec, tokenizer: Identity) -> None:
    """With another tokenizer or chat template the weights would take tokens for others.

    Raises:
        PostTrainError: saying in what they differ.
    """
    was, now = saved.policy["special_tokens"], spec.special_tokens
    if was != now:
        raise PostTrainError(
            f"the checkpoint was trained with special_tokens {was} and this run has {now}: resume with the same "
            "--model.policy.special_tokens"
        )
    if told := tokenizer_difference(saved.tokenizer, tokenizer):
        raise PostTrainError(
            f"--model.policy.path {spec.path}: another tokenizer than the checkpoint was trained with "
            f"({told}); bring the old one back, or name it with --model.policy.tokenizer"
        )
    if saved.tokenizer["chat_template"] != tokenizer["chat_template"]:
        raise PostTrainError(
            "the chat template is another than the checkpoint was trained with: bring the old one back (export "
            "writes it), or name it with --model.policy.chat_template"
        )


def another_model(name: str, spec: ModelSpec, told: str) -> PostTrainError:
    """The error for a model that checkpoints do not hold and that is not the one of training. name: of its option.
    spec: of the policy. told: in what it differs."""
    if name == "policy" and spec.lora is None:  # it is the reference alone that is frozen
        return PostTrainError(
            f"--model.policy.path {spec.path}: another model than when the run began ({told}), and it is the "
            "reference; pass the same --model.policy, bring its old files back, or start anew"
        )
    return PostTrainError(
        f"--model.{name}: another model than the checkpoint was trained with ({told}); pass the same --model.{name} "
        "(path, revision, dtype, quantization), or bring its old files back"
    )


def model_objective(name: str, spec: ModelSpec, dropout: bool) -> dict[str, Any]:
    """The options of a model that decide what it is trained for. name: of the option that the spec is given as."""
    on = dropout if spec.dropout is None else spec.dropout
    return {f"{name}.dropout": on, f"{name}.eos": ", ".join(spec.ends) or None}


def constructed(kind: Any, value: Any) -> Any:
    """A dataclass, nested ones included, from what `asdict` made of it. No `trust_remote_code`: a file of weights must
    not be able to switch on code."""
    if not (is_dataclass(kind) and isinstance(value, Mapping)):
        return value
    hints = get_type_hints(kind)
    parts = {}
    for name, inner in value.items():
        if name == "trust_remote_code":
            continue
        inner_kind = next((k for k in (*get_args(hints[name]), hints[name]) if is_dataclass(k)), None)
        parts[name] = constructed(inner_kind, inner)
    made: Any = kind
    return made(**parts)


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _is_plain(one) for key, one in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    return type(value) in (int, float, str, bool, type(None))
