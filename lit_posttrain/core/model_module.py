"""A LightningModule with a model: what is trained, its tokenizer, how it is built, what it says and generates, and what
a run of it keeps in a checkpoint beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from lit_posttrain.core import resume
from lit_posttrain.core.building import build_model, device_type
from lit_posttrain.core.component import Component
from lit_posttrain.core.generation import policy_engine
from lit_posttrain.core.metric_log import MetricLog
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.routing import Balance
from lit_posttrain.data.modules.base import TreeData
from lit_posttrain.data.modules.prompt_files import SourcedPrompt
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.architectures import attention_implementation, layout_of
from lit_posttrain.models.identity import Identity, tokenizer_identity
from lit_posttrain.models.loading import build_policy, build_scorer, load_config
from lit_posttrain.models.model_config import Head, max_positions
from lit_posttrain.models.policy import Policy, WrappedModel
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizers import eos_ids, load_tokenizer
from lit_posttrain.ops.logprobs import TokenLogprobs
from lit_posttrain.rollout.engine import Completion, Sampling
from lit_posttrain.rollout.hf import HFEngine
from lit_posttrain.rollout.said import SaidBy
from lit_posttrain.rollout.text import Prompt, PromptEncoder
from lit_posttrain.trainer_state import attached_trainer, fitting
from lit_posttrain.types import RowLayout, TreeBatch

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedTokenizerFast


class ModelModule(pl.LightningModule):
    """A LightningModule whose model comes from a `ModelSpec`, with the state of a run, which core/checkpoints.py saves
    and restores.

    head: what stands on the model, a language model's head or a score. dropout: True if the model's own dropout is on
    by default. policy: the model, None until `configure_model`. ends_resumed: tokens that end a response for the run
    that is resumed. components: what it has beside the model, by name; see `add`. frozen: identities of the models that
    checkpoints do not hold, by option. num_tokens: tokens that the run has trained on. optimizer_settings: those that a
    resumed run must share.
    """

    head: ClassVar[Head] = "lm"
    dropout: ClassVar[bool] = False
    policy: WrappedModel | None

    def __init__(self, policy: ModelSpec, optim: Optim) -> None:
        """
        Args:
            policy: The model to train.
            optim: The optimizer and the schedule of its learning rate.
        """
        super().__init__()
        self.model_spec, self.optim = policy, optim
        self.components: dict[str, Component] = {}
        self.metrics = MetricLog()
        self.num_tokens = 0.0
        self.frozen: dict[str, Identity] = {}
        self.optimizer_settings: dict[str, Any] = {}
        self.policy = None
        self.ends_resumed: list[str] = []

    # Building ----------------------------------------------------------------------------------------------------

    @property
    def builder(self) -> Callable[..., WrappedModel]:
        """The function that builds the model from a spec, see `build_policy`."""
        return build_scorer if self.head == "score" else build_policy

    def build_policy(self) -> WrappedModel:
        """A model with the weights that the spec names, sharded where the strategy shards. Collective."""
        return build_model(self, self.builder, self.model_spec, len(self.tokenizer), dropout=self.dropout)

    # Log-probs and generation --------------------------------------------------------------------------------------

    def token_logprobs(
        self,
        batch: TreeBatch,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        correct: bool = False,
        values: bool = False,
    ) -> TokenLogprobs:
        """Log-probs of the batch's N targets under the policy, with a graph; see `Policy.forward`."""
        found: TokenLogprobs = self.language_model(
            batch, temperature=temperature, entropy=entropy, correct=correct, values=values
        )
        return found

    @contextmanager
    def eval_no_grad(self) -> Iterator[Policy]:
        """The policy in eval mode under no_grad; restores train mode."""
        policy = self.language_model
        training = policy.training
        policy.eval()
        try:
            with torch.no_grad():
                yield policy
        finally:
            policy.train(training)

    @property
    def language_model(self) -> Policy:
        """The policy, once it is built."""
        assert isinstance(self.policy, Policy)
        return self.policy

    def over_ranks(self, sums: Tensor) -> Tensor:
        """The sum of a tensor over all data-parallel ranks. Collective."""
        trainer = attached_trainer(self)
        if trainer is None:
            return sums
        total: Tensor = trainer.strategy.reduce(sums, reduce_op="sum")
        return total

    def engine(self, batch_size: int = 32) -> HFEngine:
        """An engine on the policy as it is, in the Trainer's precision.

        Raises:
            PostTrainError: for a method that trains no language model.
        """
        self._require_language_model()
        return policy_engine(self, self.language_model, self.eos_ids, batch_size)

    def _require_language_model(self) -> None:
        if self.head != "lm":
            raise PostTrainError(
                f"{type(self).__name__} trains no language model that could answer; leave SampleLogger out"
            )

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int = 1) -> list[list[Completion]]:
        """n responses to each prompt (token ids) from the policy as it is. Collective."""
        return self.engine().generate(prompts, n, sampling)

    # What is known of it -------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the policy."""
        return load_tokenizer(self.model_spec)

    @cached_property
    def tokenizer_identity(self) -> Identity:
        """The tokenizer's identity, for checkpoints."""
        return tokenizer_identity(self.tokenizer)

    @property
    def eos_ids(self) -> list[int]:
        """Every id that ends a response, also those that are known from the training data."""
        assert self.policy is not None
        configs = self.policy.config, getattr(self.policy.transformer, "generation_config", None)
        return eos_ids(self.tokenizer, *configs, spec=self.model_spec, learnt=self._trained_ends())

    def _trained_ends(self) -> list[str]:
        """Tokens that close the trained turns of the data, or closed those of the run that is resumed."""
        trainer = attached_trainer(self)
        data = getattr(trainer, "datamodule", None)
        closed = data.audit.closing_tokens if fitting(trainer) and isinstance(data, TreeData) else []
        return sorted({*closed, *self.ends_resumed})

    @cached_property
    def model_config(self) -> Any:
        """The transformers config of the policy; known before the model is built."""
        return load_config(self.model_spec, self.head)

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model and the components' models take; None for any."""
        limits = [max_positions(self.model_config), *(part.max_positions for part in self.components.values())]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def limited_by(self) -> str:
        """The model that `max_positions` is of, for messages: "the model", or a component such as "the teacher"."""
        least = self.max_positions
        if least == max_positions(self.model_config):
            return "the model"
        found = next(name for name, part in self.components.items() if part.max_positions == least)
        return f"the {found.removesuffix('s')}"  # critics

    @property
    def layout(self) -> RowLayout:
        """How trees may be packed for this model and device."""
        device = device_type(self)
        return layout_of(
            self.model_config, device, attention_implementation(self.model_spec.attention, self.model_config, device)
        )

    # What a run keeps ----------------------------------------------------------------------------------------------

    def add(self, name: str, component: Component) -> None:
        """Give the method a component, whose state is saved under this name.

        Raises:
            PostTrainError: for a name that another one has.
        """
        if name in self.components:
            raise PostTrainError(f"{type(self).__name__}: two components are called {name}; give one another name")
        self.components[name] = component

    @cached_property
    def balance(self) -> Balance:
        """The load-balancing loss of a mixture of experts."""
        return Balance(self.model_spec, self.model_config)

    @property
    def method_options(self) -> dict[str, Any]:
        """Hyperparameters that a resume checks: constructor arguments of this class and of those that it inherits from,
        stored under their names, and what the policy is trained for. Dataclasses are compared option by option."""
        own = [name for name in resume.arguments_of(type(self)) if name not in ("policy", "optim")]
        kept = [resume.flat_options(name, getattr(self, name)) for name in own if hasattr(self, name)]
        found = {option: value for part in kept for option, value in part.items()}
        found |= resume.model_objective("policy", self.model_spec, self.dropout)
        return found | {"policy.router_aux_loss": self.balance.weight}

    @property
    def frozen_weights(self) -> dict[str, list[Tensor]]:
        """The parameters of frozen models in memory, by what they are."""
        return {name: held for part in self.components.values() for name, held in part.frozen_weights.items()}

    # What callbacks ask for ----------------------------------------------------------------------------------------

    def generate_text(
        self, conversations: Sequence[Prompt], max_new_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """One answer to each conversation, as text: what callbacks that show samples ask for."""
        encoder = PromptEncoder(self.tokenizer)
        ids = [encoder.ids(conversation) for conversation in conversations]
        drawn = self.generate(ids, Sampling(max_new_tokens, temperature, seed=seed))
        said_by = SaidBy(self.tokenizer)
        return [said_by(answers[0]).text for answers in drawn]

    def check_prompts(self, prompts: Sequence[SourcedPrompt]) -> None:
        """Refuse prompts that `generate_text` could not answer, before training and not at the first validation.

        Raises:
            PostTrainError: naming the first one; for a method that trains no language model.
        """
        self._require_language_model()
        PromptEncoder(self.tokenizer).check(prompts, self.max_positions)
