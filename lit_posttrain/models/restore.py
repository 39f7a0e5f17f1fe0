"""Load a checkpoint, a run's folder or a model folder for use without a Trainer."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.architectures import layout_of
from lit_posttrain.models.builtin_templates import TEMPLATES
from lit_posttrain.models.identity import difference, identity_of, tokenizer_difference, tokenizer_identity
from lit_posttrain.models.loading import build_policy, build_scorer, has_score_head
from lit_posttrain.models.model_config import Head
from lit_posttrain.models.paths import find_checkpoint
from lit_posttrain.models.policy import Policy, Scorer, WrappedModel
from lit_posttrain.models.precision import compute_in_float32
from lit_posttrain.models.spec import LoRASpec, ModelSpec
from lit_posttrain.models.tokenizers import eos_ids, load_tokenizer
from lit_posttrain.models.weights import load_weights
from lit_posttrain.runs.checkpoint_shards import read_whole
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import RowLayout


@dataclass
class Restored:
    """A model in eval mode on its device, with its tokenizer and spec. run: the run's part of the checkpoint. step: the
    optimizer step that it was saved at."""

    model: WrappedModel
    tokenizer: Tokenizer
    spec: ModelSpec
    run: dict[str, Any]
    step: int = 0
    path: str = ""  # where it was found
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def policy(self) -> Policy:
        """The language model.

        Raises:
            PostTrainError: for a reward model.
        """
        if not isinstance(self.model, Policy):
            raise PostTrainError(f"{self.path}: a reward model cannot write, it scores; see lit-posttrain score --help")
        return self.model

    @property
    def scorer(self) -> Scorer:
        """The reward model.

        Raises:
            PostTrainError: for a language model.
        """
        if not isinstance(self.model, Scorer):
            raise PostTrainError(
                f"{self.path}: a language model without a score head; train one with --config configs/reward.yaml"
            )
        return self.model

    def release(self) -> WrappedModel:
        """The model, without keeping a reference to it, so that the caller can free it."""
        model = self.model
        del self.model
        return model

    @property
    def layout(self) -> RowLayout:
        """How trees may be packed for the model on its device."""
        config = self.model.config
        return layout_of(config, self.device.type, config._attn_implementation)

    @property
    def eos_ids(self) -> list[int]:
        """Every id that ends a response."""
        configs = self.model.config, getattr(self.model.transformer, "generation_config", None)
        return eos_ids(self.tokenizer, *configs, spec=self.spec, learnt=self.run.get("ends", []))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of this project, with weights_only.

    Raises:
        PostTrainError: if it is missing, damaged, or not a checkpoint of this project.
    """
    content = read_whole(path)
    if "lit_posttrain" not in content:
        raise PostTrainError(f"{path}: a checkpoint, but not one that lit-posttrain wrote")
    return content


def restore(path: str, trust_remote_code: bool = False, device: torch.device | str = "cpu") -> Restored:
    """Load a model folder, hub name, GGUF file, run folder or checkpoint onto a device, which decides how attention is
    computed and rows are packed.

    Raises:
        PostTrainError: as `read_checkpoint` and `build_policy`; for a checkpoint that lacks trained weights.
    """
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        spec = ModelSpec(path, trust_remote_code=trust_remote_code)
        head: Head = "score" if has_score_head(spec) else "lm"
        run: dict[str, Any] = {}
        state: dict[str, Any] = {}
        step = 0
    else:
        content = read_checkpoint(checkpoint)
        run, step = content["lit_posttrain"], int(content["global_step"])
        head = run.get("head", "lm")
        saved = dict(run["policy"])
        unknown = set(saved) - {f.name for f in fields(ModelSpec)}
        unknown |= set(saved["lora"] or ()) - {f.name for f in fields(LoRASpec)}
        if unknown:
            raise PostTrainError(f"{checkpoint}: from a newer lit-posttrain ({', '.join(sorted(unknown))}); update it")
        saved["lora"] = LoRASpec(**saved["lora"]) if saved["lora"] else None
        spec = ModelSpec(**saved)
        # a file of weights must not be able to switch on code: only the caller can
        spec = replace(spec, checkpointing=False, dropout=None, trust_remote_code=trust_remote_code)
        state = {k.removeprefix("policy."): v for k, v in content["state_dict"].items() if k.startswith("policy.")}
    tokenizer = _tokenizer(spec, run, str(checkpoint))
    device = torch.device(device)
    build = build_scorer if head == "score" else build_policy
    decided = spec.dtype == "auto" and checkpoint is not None  # by the run: its base is rounded again as it was there
    spec = replace(spec, dtype=run.get("dtype", "float32")) if spec.dtype == "auto" else spec
    model: WrappedModel = build(spec, len(tokenizer), device_type=device.type)
    if spec.lora is not None:
        _require_same_base(run, model, spec, str(checkpoint))
    if decided:
        compute_in_float32(model)
    if checkpoint is not None:
        load_weights(model, state, str(checkpoint), spare="value_heads.")  # PPO's, of no use outside training
    return Restored(model.eval().to(device), tokenizer, spec, run, step, path, device)


def _tokenizer(spec: ModelSpec, run: dict[str, Any], checkpoint: str) -> Tokenizer:
    """The tokenizer of a checkpoint, with the chat template of the training: the template's file may have changed."""
    if "tokenizer" not in run:
        return load_tokenizer(spec)
    named = spec.chat_template if spec.chat_template in TEMPLATES else None  # they add tokens
    tokenizer = load_tokenizer(replace(spec, chat_template=named, template_variables={}))  # they are in it
    tokenizer.chat_template = run["tokenizer"]["chat_template"]
    if told := tokenizer_difference(run["tokenizer"], tokenizer_identity(tokenizer)):
        raise PostTrainError(
            f"{checkpoint}: the tokenizer at {spec.tokenizer or spec.path} is another than in training ({told}); "
            "bring the old files back"
        )
    return tokenizer


def _require_same_base(run: dict[str, Any], model: WrappedModel, spec: ModelSpec, checkpoint: str) -> None:
    base = run.get("frozen", {}).get("policy")  # a checkpoint of an earlier version has none
    if base is not None and (told := difference(base, identity_of(model))):
        raise PostTrainError(
            f"{checkpoint}: its adapters were trained on another model than what is at {spec.path} now ({told}); "
            "bring the old files back"
        )
