"""A language model that a method runs and never trains: a copy of its policy, its policy without the adapters, or
another model, such as a teacher."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_posttrain.core.beside import as_read, own_layout, refuse_text_options, require_same_vocabulary, set_options
from lit_posttrain.core.building import build_model
from lit_posttrain.core.component import Component
from lit_posttrain.core.model_module import ModelModule
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.identity import Identity, identity_of
from lit_posttrain.models.loading import build_policy, load_config
from lit_posttrain.models.model_config import max_positions
from lit_posttrain.models.policy import Policy
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.ops.head import HeadInputs
from lit_posttrain.ops.logprobs import TokenLogprobs
from lit_posttrain.types import RowLayout, TreeBatch

log = logging.getLogger(__name__)

_SHOWN = 3  # tokens in a message
_OF_TRAINING = ("lora", "random_init", "checkpointing", "dropout", "router_aux_loss")

Made = TypeVar("Made")


class FrozenModel:
    """A frozen language model, sharded where the strategy shards, on the module's device and in its policy's type.

    layout: how rows are packed for it, where its architecture is not the policy's; None where a batch serves both.
    own_dtype: keep its type, whatever the policy's is. more_tokens: those that its tokenizer has and the policy's has
    not.
    """

    more_tokens: Sequence[str] = ()

    def __init__(
        self, module: ModelModule, model: Policy, layout: RowLayout | None = None, own_dtype: bool = False
    ) -> None:
        self.module, self.layout, self._own_dtype = module, layout, own_dtype
        self._model = [model.requires_grad_(False).eval()]  # in a list: no submodule, neither trained nor saved

    @classmethod
    def copy_of(cls, module: ModelModule) -> FrozenModel:
        """A copy of the policy that has just been built. Collective."""
        if module.device_mesh is not None:  # sharded parameters cannot be copied; built anew they are the same
            return cls.rebuilt(module)
        return cls(module, copy.deepcopy(module.language_model))

    @classmethod
    def rebuilt(cls, module: ModelModule) -> FrozenModel:
        """The policy as it was before training, built anew from its spec. Collective."""
        model = module.build_policy()
        assert isinstance(model, Policy)
        return cls(module, model)

    @classmethod
    def from_spec(cls, module: ModelModule, spec: ModelSpec, option: str) -> FrozenModel:
        """Another model that reads the policy's tokens. option: the one that names the spec, for errors. Collective.

        Raises:
            PostTrainError: for another vocabulary.
        """
        more_tokens = require_same_vocabulary(module, spec, option)
        model = build_model(module, build_policy, spec, len(module.tokenizer), dropout=False, trained=False)
        found = cls(module, model, own_layout(module, spec), own_dtype=spec.dtype != "auto")
        found.more_tokens = more_tokens
        return found

    @property
    def model(self) -> Policy:
        """The model itself."""
        return self._model[0]

    def __call__(self, batch: TreeBatch, *, temperature: float = 1.0, entropy: bool = False) -> TokenLogprobs:
        """Log-probs of the batch's N targets, without a graph; see `Policy.forward`."""
        own, order = as_read(batch, self.layout)
        with self.running() as model:
            found: TokenLogprobs = model(own, temperature=temperature, entropy=entropy)
        of_entropy = found.entropy[order] if found.entropy is not None else None
        return TokenLogprobs(found.logprobs[order], of_entropy)

    def logprobs(self, batch: TreeBatch, temperature: float = 1.0) -> Tensor:
        """(N,) log-probs of the batch's targets, without a graph."""
        return self(batch, temperature=temperature).logprobs

    def with_head(self, batch: TreeBatch, use: Callable[[HeadInputs], Made]) -> Made:
        """The result of `use`, which is called with the hidden states of the batch's N targets, without a graph, and
        the model's head, while sharded weights are whole."""
        own, order = as_read(batch, self.layout)
        graph = torch.is_grad_enabled()

        def with_graph(inputs: HeadInputs) -> Made:
            with torch.set_grad_enabled(graph):
                return use(replace(inputs, hidden=inputs.hidden[order]))

        with self.running() as model:
            found: Made = model(own, use=with_graph)
        return found

    @contextmanager
    def running(self) -> Iterator[Policy]:
        """The model on the module's device, under no_grad."""
        with torch.no_grad():
            yield self.ready()

    def ready(self) -> Policy:
        """The model on the module's device."""
        policy, model = self.module.policy, self.model.to(self.module.device)
        assert policy is not None
        # under bf16-true Lightning casts only what it knows of
        fixed = self._own_dtype or hasattr(model.transformer, "hf_quantizer")
        if not fixed and model.transformer.dtype != policy.transformer.dtype:
            model.to(policy.transformer.dtype)
        return model

    @property
    def weights(self) -> list[Tensor]:
        """Its parameters."""
        return list(self.model.parameters())

    def identity(self) -> Identity:
        """Its identity, for checkpoints. Collective."""
        return identity_of(self.model)


class AdapterOff(FrozenModel):
    """The policy without its adapters; a policy without adapters as it is. It takes no memory of its own."""

    def __init__(self, module: ModelModule) -> None:
        self.module, self.layout = module, None

    @property
    def model(self) -> Policy:
        """The policy."""
        return self.module.language_model

    @contextmanager
    def running(self) -> Iterator[Policy]:
        """The policy in eval mode with its adapters off, under no_grad."""
        adapted: Any = self.model.model
        off = adapted.disable_adapter() if self.module.model_spec.lora is not None else nullcontext()
        with self.module.eval_no_grad() as policy, off:
            yield policy

    @property
    def weights(self) -> list[Tensor]:
        """None of its own."""
        return []


class FrozenPart(Component):
    """A frozen model as a method's component, such as a teacher: built with the policy, planned for in memory, and the
    same one after a resume. option: the one that names its spec."""

    def __init__(self, module: PostTrainingModule, spec: ModelSpec, option: str) -> None:
        """
        Raises:
            PostTrainError: for options of training, such as new adapters or random weights, and of text.
        """
        for name in set_options(spec, _OF_TRAINING):
            trained = f" (--model.{option}.path may be a folder of trained adapters)" if name == "lora" else ""
            raise PostTrainError(f"--model.{option}.{name}: the {option} is not trained; leave it out{trained}")
        refuse_text_options(spec, option)
        self.module, self.spec, self.option = module, spec, option
        self._built: FrozenModel | None = None
        module.add(option, self)

    def configure_model(self) -> None:
        """Build it."""
        self._built = FrozenModel.from_spec(self.module, self.spec, self.option)
        self.module.frozen[self.option] = self._built.identity()
        if (more := self._built.more_tokens) and self.module.global_rank == 0:
            log.warning(
                "--model.%s.path %s: its tokenizer has %d tokens that the policy's has not (%s%s): they are left out",
                *(self.option, self.spec.path, len(more), ", ".join(more[:_SHOWN]), ", ..." * (len(more) > _SHOWN)),
            )

    @property
    def model(self) -> FrozenModel:
        """The model, once it is built."""
        assert self._built is not None
        return self._built

    def columns(self, batch: TreeBatch, wanted: set[str], temperature: float) -> dict[str, Tensor]:
        """Its log-probs (N,), such as `teacher_logprobs`, if they are wanted."""
        name = f"{self.option}_logprobs"
        return {name: self.model.logprobs(batch, temperature)} if name in wanted else {}

    @cached_property
    def max_positions(self) -> int | None:
        """The longest sequence that it takes."""
        return max_positions(load_config(self.spec))

    @property
    def frozen_weights(self) -> dict[str, list[Tensor]]:
        """Its parameters."""
        return {} if self._built is None else {self.option: self._built.weights}
