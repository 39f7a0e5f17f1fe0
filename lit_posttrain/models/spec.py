"""What model to train, as one dataclass that nests in configs and overrides on the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.paths import found_from_anywhere

DType = Literal["float32", "bfloat16", "float16", "float64"]
Quantization = Literal["nf4", "int8"]
Attention = Literal["auto", "sdpa", "eager"]


@dataclass
class LoRASpec:
    """Low-rank adapters (Hu et al. 2021) through peft; the base weights stay frozen and out of the checkpoints.

    Args:
        r: Rank of the adapters; larger learns more and costs more memory.
        alpha: Scale of the adapters; their product is multiplied by alpha / r, with rslora by alpha / sqrt(r).
            Default: 2 * r, with rslora 8; at rank 16 both multiply by 2.
        dropout: Dropout on the adapters' input while training.
        target_modules: "all-linear", or the names of the layers to adapt, such as [q_proj, v_proj].
        dora: Learn the length of every row of a weight apart from its direction, which the adapters change (DoRA, Liu
            et al. 2024). Often better at small ranks, for more time a step.
        rslora: Divide by sqrt(r) instead of r (rsLoRA, Kalajdzievski 2023): large ranks, from about 64 on, otherwise
            learn hardly more than small ones, because their gradients shrink.
        lr_factor: The optimizer's learning rate is multiplied by this. Adapters want about ten times the rate of all
            weights, whatever the method: configs/with/lora.yaml asks for that.
    """

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    dora: bool = False
    rslora: bool = False
    lr_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise PostTrainError(f"lora.r is {self.r}; the rank must be at least 1 (16 is usual)")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise PostTrainError(f"lora.alpha is {self.alpha}; the scale must be above 0 (2 * r is usual)")
        if not 0 <= self.dropout < 1:
            raise PostTrainError(f"lora.dropout is {self.dropout}; it is a share, at least 0 and below 1")
        if not 0 < self.lr_factor < math.inf:
            raise PostTrainError(f"lora.lr_factor is {self.lr_factor}; it must be above 0 (10 is usual)")

    @property
    def peft_alpha(self) -> float:
        """alpha, or its default."""
        # a default that grew with the rank would undo what rsLoRA is for: a scale that falls as 1 / sqrt(r)
        default = 8 if self.rslora else 2 * self.r
        return default if self.alpha is None else self.alpha


@dataclass
class ModelSpec:
    """Where a model comes from and how it is loaded.

    Args:
        path: A Hugging Face hub name, a folder, a .gguf file, or package:NAME/FILE for a file inside an installed
            Python package.
        revision: Branch, tag or commit of a hub model.
        dtype: Type of the weights in memory. auto: float32 where they are trained, since weights kept in bfloat16 do
            not move under small learning rates; a frozen base of adapters in bfloat16 where --trainer.precision
            bf16-mixed computes in it.
        lora: Train low-rank adapters instead of all weights; --model.policy.lora.r 16 is enough to switch it on.
        quantization: Load the frozen base in 4 bits (nf4) or 8 bits (int8) with bitsandbytes; needs lora to train.
        attention: Attention implementation; auto takes the one that is exact and fast for the model.
        checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        dropout: Use the model's own dropout (0.1 in GPT-2, for example) in training. Default: on in SFT; off in
            the other methods, which compare log-probabilities or scores and would compare noise. lora.dropout is apart.
        router_aux_loss: Weight of the loss that spreads tokens over the experts of a mixture of experts; 0 is none.
            Default: as the model's config says, its router_aux_loss_coef where output_router_logits is true.
        chat_template: Template for a model that has none, or to replace its own: chatml, or a Jinja file.
        template_variables: Values for variables of the chat template, such as '{enable_thinking: false}'. They hold in
            training, rollouts, validation and every later use, and stand in the template of an exported folder. A
            row's own chat_template_kwargs win over them.
        tokenizer: Where the tokenizer comes from when it is not beside the model.
        eos: Token, or list of tokens, that ends a response. Default: the end tokens of the model and its tokenizer, and
            what closes the assistant's turns in the chat template and in the data.
        special_tokens: Tokens to add to the vocabulary; the embeddings grow to fit.
        random_init: Start from random weights of the same shape, to train from nothing or to measure.
        trust_remote_code: Run Python code that comes with a hub model. Off unless you read that code.
    """

    path: str
    revision: str | None = None
    dtype: DType | Literal["auto"] = "auto"
    lora: LoRASpec | None = None
    quantization: Quantization | None = None
    attention: Attention = "auto"
    checkpointing: bool = False
    dropout: bool | None = None
    router_aux_loss: float | None = None
    chat_template: str | None = None
    template_variables: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    eos: str | list[str] | None = None
    special_tokens: list[str] = field(default_factory=list)
    random_init: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise PostTrainError("the model's path is empty; name a hub model, a folder or a .gguf file")
        if self.router_aux_loss is not None and not 0 <= self.router_aux_loss < math.inf:
            raise PostTrainError(f"router_aux_loss is {self.router_aux_loss}; it must be at least 0 (0.001 is usual)")
        if any(not token.strip() for token in self.special_tokens):
            raise PostTrainError(f"special_tokens {self.special_tokens}: a token cannot be empty")

    @property
    def ends(self) -> list[str]:
        """The tokens that `eos` names."""
        return [self.eos] if isinstance(self.eos, str) else list(self.eos or [])

    def same_weights(self, other: ModelSpec) -> bool:
        """True if both are the same model before training."""
        pair = [spec.found_from_anywhere() for spec in (self, other)]
        mine, theirs = [(spec.path, spec.revision, spec.quantization, spec.dtype) for spec in pair]
        return mine == theirs and not self.random_init

    def found_from_anywhere(self) -> ModelSpec:
        """The same spec with absolute paths, to be read from another folder; hub names stay."""
        return replace(
            self,
            path=found_from_anywhere(self.path),
            tokenizer=self.tokenizer and found_from_anywhere(self.tokenizer, "tokenizer"),
            chat_template=self.chat_template and found_from_anywhere(self.chat_template, "chat_template"),
        )
