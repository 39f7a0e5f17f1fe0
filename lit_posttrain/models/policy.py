"""The trained model as one nn.Module that takes a TreeBatch: FSDP2 gathers parameters by its forward hooks.

`Policy` is a language model, `Scorer` a reward model, `ValueModel` the critic of PPO.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_posttrain.models import attention
from lit_posttrain.models.architectures import architecture_of, attention_masks, flat_masks, plain_mask
from lit_posttrain.ops.head import HeadInputs, HeadTransform
from lit_posttrain.ops.logprobs import TokenLogprobs, token_logprobs
from lit_posttrain.ops.routing import routed
from lit_posttrain.types import TreeBatch

log = logging.getLogger(__name__)


@dataclass
class DecodeOutput:
    """One step of generation: logits (B, V) of the last position, and the cache for the next step; None for a model
    without a cache, which needs whole sequences."""

    logits: Tensor
    cache: Any


def _packs(batch: TreeBatch) -> bool:
    """True if a row holds more than one sequence."""
    first = batch.tree_ids[:, :1]
    return bool(((batch.tree_ids != first) & (batch.tree_ids >= 0)).any() or (batch.branch_ids > 1).any())


class WrappedModel(nn.Module):
    """A transformers model that is called on packed rows. Subclasses add the head.

    `forward` and `Policy.decode` are entry points that sharding knows; call nothing inside from outside, or sharded
    parameters are not gathered.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.balanced = False  # whether forward passes that are trained on note how their tokens were routed
        self.routing: tuple[Tensor, Tensor] | None = None  # of the last one, see ops/routing.py
        self.architecture = architecture_of(self.config)

    @property
    def transformer(self) -> Any:
        """The transformers model, without peft's wrapper (adapters stay active inside)."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def config(self) -> Any:
        """The transformers config."""
        return self.transformer.config

    def _inputs(self, batch: TreeBatch) -> dict[str, Any]:
        """The arguments of the transformers model: tokens, positions and attention masks."""
        if self.architecture is None and _packs(batch):
            raise ValueError(f"{self.config.model_type} is not proven for packed rows; lay batches out with layout_of")
        inputs = {"input_ids": batch.input_ids, "use_cache": False}
        if self.architecture is None:
            return inputs | {"attention_mask": plain_mask(batch)}
        inputs["position_ids"] = batch.position_ids
        config = self.config
        if config._attn_implementation == attention.NAME and len(batch.input_ids) == 1:
            masks = flat_masks(batch, config)
            return inputs | {"attention_mask": masks, "tree_plan": attention.plan_of(batch)}
        device = batch.input_ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.transformer.dtype
        masks = attention_masks(batch, config, config._attn_implementation, dtype)
        return inputs | {"attention_mask": masks}

    def _hidden(self, batch: TreeBatch, index: Tensor) -> Tensor:
        """(N, H) hidden states at flat indices into the rows."""
        out = self.transformer.base_model(**self._inputs(batch), **self._routing_asked)
        self._note_routing(out, batch)
        hidden: Tensor = out.last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1])[index]

    @property
    def _routing_asked(self) -> dict[str, bool]:
        return {"output_router_logits": True} if self.balanced and torch.is_grad_enabled() else {}

    def _note_routing(self, out: Any, batch: TreeBatch) -> None:
        """Keep the routing of the states that predict targets: each counts once, in every layout."""
        if self._routing_asked:
            gates = [logits for logits in out.router_logits if logits is not None]
            gates = [logits.reshape(-1, logits.shape[-1]) for logits in gates]
            top_k: int = self.config.get_text_config(decoder=True).num_experts_per_tok
            self.routing = routed(gates, batch.target_index, top_k)


class Scorer(WrappedModel):
    """A reward model: the decoder of a transformers sequence classifier with one label, and its score head.

    `forward(batch)` gives (M,) float32 scores, read at the last token of every response.
    """

    def forward(self, batch: TreeBatch) -> Tensor:
        """(M,) scores of the batch's responses."""
        return _head_values(self._hidden(batch, batch.response_last), self.transformer.score)


class ValueModel(WrappedModel):
    """A value model: as `Scorer`, but with a value for every target.

    `forward(batch)` gives (N,) float32 values of the states from which the batch's targets are drawn.
    """

    def forward(self, batch: TreeBatch) -> Tensor:
        """(N,) values."""
        return _head_values(self._hidden(batch, batch.target_index), self.transformer.score)


def _head_values(hidden: Tensor, head: nn.Module) -> Tensor:
    """(N,) outputs of a head with one output on hidden states (N, H), in full precision."""
    weight = next(head.parameters())
    # in bfloat16 a number has three digits; the head sees so few rows that precision is free
    with torch.autocast(hidden.device.type, enabled=False):
        found: Tensor = head(hidden.to(weight.dtype)).flatten().clone()  # FSDP2 warns of views that leave a module
    return found if found.dtype == torch.float64 else found.float()


def _cache_argument(model: nn.Module) -> str | None:
    """The name of the cache among the arguments and outputs of the model's forward; None for a model without one.

    It differs between models and versions of transformers. A model ignores a cache that is passed under another name,
    and would continue from the last token alone.
    """
    taken = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in taken), None)


class Policy(WrappedModel):
    """A causal language model with the operators that methods need, and optional value heads.

    `forward(batch)` gives the log-probabilities of a batch's targets; `decode` is one step of generation.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.value_heads = nn.ModuleDict()
        config, head = self.config, self.transformer.get_output_embeddings()
        # LoRA on the head, or a head of its own kind: its weight alone would not be what the model computes
        self.fused_head = self.architecture is not None and type(head) is nn.Linear
        self.head_transform = self.architecture.head(config) if self.architecture else HeadTransform()
        self._cache_argument = _cache_argument(self.transformer)
        self._routers_told = "output_router_logits" in inspect.signature(self.transformer.forward).parameters
        if not self.fused_head:
            log.warning(
                "%s: no proven chunked head, so full logits of every token are computed (more memory, same numbers)",
                config.model_type,
            )

    def add_value_head(self, name: str) -> nn.Linear:
        """Add a value head beside the LM head. Its weights start at zero."""
        embeddings = self.transformer.get_input_embeddings().weight
        dtype = torch.promote_types(embeddings.dtype, torch.float32)  # it is trained, also beside a base in bfloat16
        head = nn.Linear(embeddings.shape[1], 1, device=embeddings.device, dtype=dtype)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.value_heads[name] = head
        return head

    def forward(
        self,
        batch: TreeBatch,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        correct: bool = False,
        values: bool = False,
        use: Callable[[HeadInputs], Any] | None = None,
    ) -> Any:
        """`TokenLogprobs` of the batch's N targets; see ops/logprobs.py for entropy and correct. values: with the
        outputs of the value heads. use: return what this function makes of the targets' hidden states and the head
        instead, for operators of two models: sharded weights are gathered only during the forward.

        Raises:
            ValueError: for values of a policy without value heads, or with a head that is not proven.
        """
        if values and not (self.value_heads and self.fused_head):
            raise ValueError("no value head, or one beside a head of the model's own kind")
        if not self.fused_head:
            logits = self._logits(batch)
            return (
                self._of_logits(logits, batch, temperature, entropy, correct)
                if use is None
                else use(HeadInputs(logits))
            )
        head = self.transformer.get_output_embeddings()
        hidden = self._hidden(batch, batch.target_index)
        if use is not None:
            return use(HeadInputs(hidden, head.weight, head.bias, self.head_transform))
        found = token_logprobs(
            hidden,
            head.weight,
            batch.target_ids,
            head.bias,
            head=self.head_transform,
            temperature=temperature,
            entropy=entropy,
            correct=correct,
        )
        if values:
            found.values = {name: _head_values(hidden, head) for name, head in self.value_heads.items()}
        return found

    def _logits(self, batch: TreeBatch) -> Tensor:
        """(N, V) logits of the targets, for a head that the fused operators do not know."""
        if self.architecture is not None:
            hidden = self._hidden(batch, batch.target_index)
            return self.head_transform(self.transformer.get_output_embeddings()(hidden))
        out = self.transformer(**self._inputs(batch), **self._routing_asked)
        self._note_routing(out, batch)
        found: Tensor = out.logits.reshape(-1, out.logits.shape[-1])[batch.target_index]
        return found

    @staticmethod
    def _of_logits(chosen: Tensor, batch: TreeBatch, temperature: float, entropy: bool, correct: bool) -> TokenLogprobs:
        precise = torch.float64 if chosen.dtype == torch.float64 else torch.float32
        logps = torch.log_softmax(chosen.to(precise) / temperature, dim=-1)
        return TokenLogprobs(
            logps.gather(1, batch.target_ids[:, None])[:, 0],
            -(logps.exp() * logps).sum(1) if entropy else None,
            logps.argmax(1) == batch.target_ids if correct else None,
        )

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: Any
    ) -> DecodeOutput:
        """Logits after the last of `input_ids` (B, S); attention_mask (B, past + S) or None where nothing is padded,
        position_ids (B, S)."""
        name = self._cache_argument
        options: dict[str, Any] = {name: cache} if name else {}
        if self._routers_told:  # or it would compute the routers' loss, of a mask that is longer than these tokens
            options["output_router_logits"] = False
        out = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=name is not None,
            logits_to_keep=1,
            **options,
        )
        return DecodeOutput(out.logits[:, -1], getattr(out, name, None) if name else None)
