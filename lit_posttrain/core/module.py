"""The spine of every method: policy, optimizer, global loss normalisation, metrics, checkpoints.

A method says what its loss terms are (`loss_terms`); everything else is here, once.
"""

from __future__ import annotations

import inspect
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, is_dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_posttrain.core.measured import MeasuredModule
from lit_posttrain.core.metrics import WeightedMeans
from lit_posttrain.core.routing import Balance
from lit_posttrain.core.schedules import Schedule
from lit_posttrain.core.terms import Term, loss_of
from lit_posttrain.core.trainer_checks import check_trainer
from lit_posttrain.data.modules.asked import Asked
from lit_posttrain.data.modules.base import TreeData
from lit_posttrain.data.store.loader import AuxiliaryRows, Trees
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.architectures import attention_implementation, layout_of
from lit_posttrain.models.identity import (
    Identity,
    difference,
    identity_of,
    tokenizer_difference,
    tokenizer_identity,
)
from lit_posttrain.models.loading import (
    Head,
    build_policy,
    build_scorer,
    load_config,
    max_positions,
    require_trainable,
)
from lit_posttrain.models.policy import Policy, WrappedModel
from lit_posttrain.models.sharding import AnyModel, build_sharded
from lit_posttrain.models.spec import DType, LoRASpec, ModelSpec
from lit_posttrain.models.tokenizers import eos_ids, load_tokenizer
from lit_posttrain.models.weights import require_state
from lit_posttrain.rollout.engine import Completion, Sampling
from lit_posttrain.rollout.hf import HFEngine
from lit_posttrain.rollout.said import SaidBy
from lit_posttrain.rollout.text import Prompt, PromptEncoder
from lit_posttrain.runs.folder import run_identity
from lit_posttrain.runs.redaction import comparable
from lit_posttrain.trainer_state import dry_run, ends_step, logs_step, seed_of
from lit_posttrain.types import RowLayout, TreeBatch

log = logging.getLogger(__name__)


class PostTrainingModule(MeasuredModule):
    """Base class of all methods. Subclasses implement `loss_terms`.

    head: what stands on the model that is trained, a language model's head or a score. dropout: whether the
    model's own dropout is on by default. monitored: the metric of the validation that says which weights are the best.
    """

    head: ClassVar[Head] = "lm"
    dropout: ClassVar[bool] = False
    monitored: ClassVar[str] = "val/loss"
    policy: WrappedModel | None

    def __init__(
        self,
        policy: ModelSpec,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-5, weight_decay=0.0),
        schedule: Schedule = "linear",
        warmup: float = 0.03,
    ) -> None:
        """
        Args:
            policy: The model to train.
            optimizer: Any torch optimizer, such as torch.optim.AdamW with its learning rate.
            schedule: How the learning rate falls after warm-up, per optimizer step.
            warmup: Share of all optimizer steps over which the learning rate rises from zero.
        """
        super().__init__(optimizer, schedule, warmup)
        self.spec = policy
        self.policy = None
        self.num_tokens = 0.0
        self._loader_state: dict[str, Any] | None = None
        self._steps_planned: float | None = None  # of the run that is resumed
        self._settings_resumed: dict[str, Any] = {}
        self._ends_resumed: list[str] = []
        self._finished: dict[str, Any] | None = None  # what is remembered of the last optimizer step's end
        self.frozen: dict[str, Identity] = {}  # of what is trained upon and not saved, by the option it comes from
        # adapters are saved alone; on_load_checkpoint checks that nothing that was trained is missing
        self.strict_loading = policy.lora is None

    # What a method defines -------------------------------------------------------------------------------------

    @abstractmethod
    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The terms of the loss on a micro-batch, by name. Call `track` for further metrics."""

    def auxiliary_rows(self, store: Trees, max_length: int) -> dict[str, AuxiliaryRows]:
        """By name, further rows that the method wants to see beside those of `store`, one for each and of at most
        `max_length` tokens; by default none. The first micro-batch of a step has those of the whole step in
        `TreeBatch.extras`. A cached reference covers those that are `TargetTrees`."""
        return {}

    # What a method uses ----------------------------------------------------------------------------------------

    def token_logprobs(self, batch: TreeBatch, **options: Any) -> Any:
        """Log-probs of the batch's targets under the policy; options as in `Policy.forward`."""
        assert self.policy is not None
        return self.policy(batch, **options)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int = 1) -> list[list[Completion]]:
        """n responses to each prompt (token ids) from the current policy. With several processes, call it on all."""
        return self.engine().generate(prompts, n, sampling)

    def generate_text(
        self, conversations: Sequence[Prompt], max_new_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """One answer to each conversation, as text: what callbacks that show samples ask for."""
        encoder = PromptEncoder(self.tokenizer)
        ids = [encoder.ids(conversation) for conversation in conversations]
        drawn = self.generate(ids, Sampling(max_new_tokens, temperature, seed=seed))
        said_by = SaidBy(self.tokenizer)
        return [said_by(answers[0]).text for answers in drawn]

    def check_prompts(self, prompts: Sequence[Asked]) -> None:
        """Refuse prompts that `generate_text` could not answer, before training and not at the first validation.

        Raises:
            PostTrainError: naming the first one.
        """
        PromptEncoder(self.tokenizer).check(prompts, self.max_positions)

    def engine(self, batch_size: int = 32) -> HFEngine:
        """An engine on the current policy, in the trainer's precision."""
        if not isinstance(self.policy, Policy):
            raise PostTrainError(f"{type(self).__name__} trains no language model that could answer; leave samples out")
        trainer = self._attached_trainer()
        sharded = trainer is not None and self.device_mesh is not None

        @contextmanager
        def context() -> Iterator[None]:
            with trainer.precision_plugin.forward_context() if trainer is not None else nullcontext():
                before = torch.is_autocast_cache_enabled()
                # Lightning's autocast would cast every weight anew at every token. Of sharded weights the casts are not
                # kept: that would keep the whole model on every rank.
                torch.set_autocast_cache_enabled(before or not sharded)
                try:
                    yield
                finally:
                    torch.set_autocast_cache_enabled(before)

        any_rank = (lambda flag: bool(trainer.strategy.reduce_boolean_decision(flag, all=False))) if sharded else None
        return HFEngine(self.policy, self.eos_ids, batch_size=batch_size, context=context, any_rank=any_rank)

    # What data modules and callbacks ask for -------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the policy."""
        return load_tokenizer(self.spec)

    @cached_property
    def _tokenizer_identity(self) -> Identity:
        return tokenizer_identity(self.tokenizer)

    @property
    def eos_ids(self) -> list[int]:
        """Every id that ends a response, also those that are known from the training data."""
        assert self.policy is not None
        configs = self.policy.config, getattr(self.policy.transformer, "generation_config", None)
        return eos_ids(self.tokenizer, *configs, spec=self.spec, learnt=self._trained_ends())

    def _trained_ends(self) -> list[str]:
        """Tokens that close the trained turns of the data, or closed those of the run that is resumed."""
        trainer = self._attached_trainer()
        data: Any = getattr(trainer, "datamodule", None)
        known = trainer is not None and isinstance(data, TreeData) and trainer.state.fn == TrainerFn.FITTING
        closed = data.audit.closing_tokens if known else []
        return sorted({*closed, *self._ends_resumed})

    @cached_property
    def model_config(self) -> Any:
        """The transformers config of the policy; known before the model is built."""
        return load_config(self.spec, self.head)

    @cached_property
    def balance(self) -> Balance:
        """The load-balancing loss of a mixture of experts."""
        return Balance(self.spec, self.model_config)

    @property
    def lr_factor(self) -> float:
        """That of the adapters."""
        return 1.0 if self.spec.lora is None else self.spec.lora.lr_factor

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model takes."""
        return max_positions(self.model_config)

    @property
    def layout(self) -> RowLayout:
        """How trees may be packed for this model and device."""
        device = self._device_type()
        return layout_of(
            self.model_config, device, attention_implementation(self.spec.attention, self.model_config, device)
        )

    # Lightning's hooks -----------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[pl.Callback]:
        """None; Lightning asks before anything else of a run, so this refuses what does not work here.

        Raises:
            PostTrainError: see `check_trainer`.
        """
        check_trainer(self.trainer)
        return []

    def configure_model(self) -> None:
        """Build the policy; Lightning calls it in the right device and dtype context, possibly more than once."""
        if self.policy is not None:
            return
        balance = self.balance
        self.policy = self.build_policy()
        self.policy.balanced = balance.weight > 0
        if self.spec.lora is not None:
            self.frozen["policy"] = identity_of(self.policy)

    def on_fit_start(self) -> None:
        """Refuse to go on with other data or another optimizer before anything is computed with them. Where weights are
        sharded the checkpoint is read only later: `on_train_start` asks again."""
        self._go_on_from_checkpoint()
        if self.global_rank == 0:
            self.balance.tell()
        data: Any = getattr(self.trainer, "datamodule", None)
        self.check_data(data)

    def check_data(self, data: Any) -> None:
        """Refuse a data module that has been built and that the method cannot learn from; by default none is."""

    def on_train_start(self) -> None:
        """Put the training loader where the checkpoint left it. Lightning does so only for loaders that are not made
        before its checkpoint is read (ours is, by `estimated_stepping_batches`), and not at an epoch's end.

        Raises:
            PostTrainError: if an epoch would end within an optimizer step, whose denominators count the whole step.
        """
        accumulate, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        if batches != math.inf and batches % accumulate and not dry_run(self.trainer):
            raise PostTrainError(
                f"--trainer.limit_train_batches (or overfit_batches) leaves {batches} micro-batches an epoch, not a "
                f"multiple of --trainer.accumulate_grad_batches {accumulate}: the last step would lack some of its rows"
            )
        self._go_on_from_checkpoint()
        self._loader_state = None
        self._finished = self._progress()
        steps, planned = self.trainer.estimated_stepping_batches, self._steps_planned
        moves = self.schedule != "constant" or self.warmup > 0
        # `LastCheckpoint` has it take one more where the validation of the last one is to be made up
        ended = planned == self.trainer.global_step == steps - 1 == self.trainer.max_steps - 1
        if planned is not None and planned != steps and moves and not ended and self.global_rank == 0:
            told = "the run was planned for %s steps, now for %s: the learning rate follows the new plan and may jump"
            log.warning(told, planned, steps)
        # Resumed at the end of an epoch, Lightning begins the next one without counting it: harmless once, but a run
        # killed and resumed at two epoch ends would train an epoch too many.
        loop = self.trainer.fit_loop
        progress = loop.epoch_progress
        if loop.restarted_mid_epoch and progress.current.ready == progress.current.completed and not loop.done:
            progress.increment_ready()
            progress.increment_started()

    def on_train_batch_start(self, batch: TreeBatch, batch_idx: int) -> int | None:
        """Seed every micro-batch by its place in the run, so that dropout is the same after a resume."""
        torch.manual_seed(seed_of(self.trainer.global_step, batch_idx, self.trainer.global_rank))
        return None

    def training_step(self, batch: TreeBatch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the step's loss, times what Lightning and DDP will divide it by.

        Raises:
            PostTrainError: if a callback has changed the accumulation, of which the loader has planned steps.
        """
        planned = getattr(self.trainer.train_dataloader, "accumulate", None)
        if planned not in (None, self.trainer.accumulate_grad_batches):
            raise PostTrainError(
                f"a callback has set accumulate_grad_batches to {self.trainer.accumulate_grad_batches}, and every step "
                f"was planned of {planned} micro-batches: leave that callback out"
            )
        if ends_step(self.trainer, batch_idx):
            self.num_tokens += batch.denominators["input_tokens"]  # before callbacks save at the step's end
        terms = self._tracked_terms(batch)
        if ends_step(self.trainer, batch_idx):
            self.balance.end_step(self)
        sampler = self.trainer.distributed_sampler_kwargs
        ranks = sampler["num_replicas"] if sampler else 1
        return loss_of(terms, batch.denominators) * (self.trainer.accumulate_grad_batches * ranks)

    def on_train_batch_end(self, outputs: Any, batch: TreeBatch, batch_idx: int) -> None:
        """At the end of a step log it, if no callback has asked for that to save it."""
        if ends_step(self.trainer, batch_idx):
            self.finish_step()

    def finish_step(self) -> None:
        """Where Lightning logs the step that has just ended, reduce the metrics once and hand them over; remember what
        a checkpoint of its end says. Once a step, however often it is asked."""
        if self._finished is not None and self._finished["step"] == self.trainer.global_step:
            return
        if logs_step(self.trainer):
            values = {"num_tokens": self.num_tokens, "grad_norm": float(self.gradient_norm())}
            self.log_training(values | {"lr": self._learning_rate})
        self._finished = self._progress()

    def validation_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Add a batch to the totals of its file. What a method returns is for callbacks."""
        self._file = f"{dataloader_idx}:"
        self._tracked_terms(batch)

    def test_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As `validation_step`."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Per response: the row it came from, its trained tokens and their summed log-probability (nats)."""
        logprobs = self.token_logprobs(batch).logprobs
        of_response = batch.target_response >= 0
        zeros = logprobs.new_zeros(batch.num_responses)
        sums = zeros.index_add(0, batch.target_response[of_response], logprobs[of_response])
        sizes = batch.target_response[of_response].bincount(minlength=batch.num_responses)
        rows = [batch.example_ids[tree] for tree in batch.response_tree.tolist()]
        return [
            {"row": row, "file": dataloader_idx, "logprob": logprob, "tokens": size}
            for row, logprob, size in zip(rows, sums.tolist(), sizes.tolist(), strict=True)
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what an export needs to know, and leave frozen weights out."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        if self.spec.lora is not None:
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        done = self.progress_saved
        checkpoint["lit_posttrain"] = {
            "method": type(self).__name__,
            "run": run_identity(self.trainer.default_root_dir),
            "head": self.head,
            "policy": asdict(self.spec.found_from_anywhere()),
            "dtype": self.dtype_of(self.spec),
            "router_load": done["router_load"],
            "num_tokens": done["num_tokens"],
            "totals": done["totals"].dump(),
            "loader": done["loader"],
            "steps_planned": self.trainer.estimated_stepping_batches,
            "optimizer": self.optimizer_settings,
            "options": self.options_saved,
            "ends": [token for token in self.tokenizer.convert_ids_to_tokens(self.eos_ids) if token],
            "frozen": self.frozen,
            "tokenizer": self._tokenizer_identity,
        }

    @property
    def progress_saved(self) -> dict[str, Any]:
        """What a checkpoint that is written now says of the run's progress: that of the last optimizer step's end."""
        if self._finished is not None and self._finished["step"] == self.trainer.global_step:
            return self._finished
        found = self._progress()
        if logs_step(self.trainer):  # a callback saves before the step is logged and its sums are reset
            found["totals"] = WeightedMeans()
        return found

    def _progress(self) -> dict[str, Any]:
        """What moves on within an optimizer step and is saved. The values are not changed later."""
        loader: Any = self.trainer.train_dataloader
        return {
            "step": self.trainer.global_step,
            "num_tokens": self.num_tokens,
            "totals": self._totals.copied(),
            "router_load": self.balance.load,
            "loader": loader.state_dict() if hasattr(loader, "state_dict") else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore counters when training goes on; refuse a checkpoint that lacks something that is trained here."""
        if "lit_posttrain" not in checkpoint:
            raise PostTrainError("--ckpt_path: a checkpoint, but not one that lit-posttrain wrote")
        saved = checkpoint["lit_posttrain"]
        self._require_same_adapters(saved["policy"]["lora"])
        self._require_same_tokens(saved)
        base, now = saved.get("dtype", "float32"), self.dtype_of(self.spec)
        if self.spec.lora is not None and base != now:
            raise PostTrainError(
                f"the checkpoint's adapters were trained on a base in {base} and this run has it in {now}: pass "
                f"--model.policy.dtype {base}"
            )
        self._require_same_bases(saved.get("frozen", {}))  # a checkpoint of an earlier version has none
        if checkpoint.get("state_dict"):  # sharded weights are not in it
            require_state(
                self,
                checkpoint["state_dict"],
                "--ckpt_path: the checkpoint",
                remedy="resume with the same --model.policy (path, lora, quantization) as it was trained with",
            )
        self._ends_resumed = saved.get("ends", [])
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        if saved["method"] != type(self).__name__:  # nor would its adapters start at zero, as a reference wants them
            raise PostTrainError(
                f"--ckpt_path: a checkpoint of {saved['method']}, and {type(self).__name__} cannot go on with it; "
                "make a model folder of it (lit-posttrain export) and start from that with --model.policy.path"
            )
        self._require_same_options(saved.get("options", {}))  # a checkpoint of an earlier version has none
        self.num_tokens = saved["num_tokens"]
        self.balance.load = saved.get("router_load")
        self._loader_state, self._steps_planned = saved["loader"], saved["steps_planned"]
        self._settings_resumed = saved["optimizer"]
        self._totals.restore(saved["totals"], first_rank=self.trainer.global_rank == 0)

    def _go_on_from_checkpoint(self) -> None:
        self.require_same_optimizer(self._settings_resumed)
        if self._loader_state is not None and self.trainer.limit_train_batches:
            self.trainer.fit_loop.setup_data()  # else a run without a last epoch makes its loader only later
            loader: Any = self.trainer.train_dataloader
            loader.load_state_dict(self._loader_state)

    @property
    def options_saved(self) -> dict[str, Any]:
        """Those of `method_options` that a checkpoint can hold, without secrets, see `comparable`. Exact types: a
        subclass, such as NumPy's float64, is saved as an object, with which the checkpoint could not be read again."""
        found: dict[str, Any] = comparable({name: v for name, v in self.method_options.items() if _is_plain(v)})
        return found

    @property
    def method_options(self) -> dict[str, Any]:
        """What decides the objective, such as beta, and a resumed run must have in common: the constructor's arguments,
        beyond those that all methods have, that it keeps under the same names; and those options of the policy."""
        common = inspect.signature(PostTrainingModule).parameters
        own = [name for name in inspect.signature(type(self)).parameters if name not in common]
        kept = {name: getattr(self, name) for name in own if hasattr(self, name)}
        for name, value in list(kept.items()):
            if is_dataclass(value) and not isinstance(value, type):
                inner = {f"{name}.{option}": choice for option, choice in asdict(value).items()}
                kept |= {option: choice for option, choice in inner.items() if not isinstance(choice, dict)}
        return kept | self.objective_of("policy", self.spec) | {"policy.router_aux_loss": self.balance.weight}

    def objective_of(self, name: str, spec: ModelSpec) -> dict[str, Any]:
        """The options of a model that decide what it is trained for. name: of the option that the spec stands for."""
        dropout = self.dropout if spec.dropout is None else spec.dropout
        return {f"{name}.dropout": dropout, f"{name}.eos": ", ".join(spec.ends) or None}

    def _require_same_options(self, saved: dict[str, Any]) -> None:
        """Refuse to go on with another objective than the run began with."""
        now = self.options_saved
        for name, before in saved.items():
            if name in now and now[name] != before:
                raise PostTrainError(
                    f"the checkpoint was trained with --model.{name} {before} and this run has {now[name]}: resume "
                    "with the same, or start anew from its exported weights"
                )

    def _require_same_adapters(self, saved: dict[str, Any] | None) -> None:
        """Refuse adapters that are read in another way than they were trained: the same weights, another model."""
        if self.spec.lora is None or saved is None:
            return
        before = LoRASpec(**saved)  # a checkpoint of an earlier version lacks newer fields: it was trained without them
        for name in ("r", "peft_alpha", "rslora", "dora"):
            was, now = getattr(before, name), getattr(self.spec.lora, name)
            if was != now:
                option = name.removeprefix("peft_")
                raise PostTrainError(
                    f"the checkpoint's adapters were trained with {option} {was} and this run has {option} {now}: "
                    f"pass --model.policy.lora.{option} {str(was).lower()}"
                )

    def _require_same_tokens(self, saved: dict[str, Any]) -> None:
        """Refuse another tokenizer or chat template: the weights would take tokens for others without a word."""
        was, now = saved["policy"]["special_tokens"], self.spec.special_tokens
        if was != now:
            raise PostTrainError(
                f"the checkpoint was trained with special_tokens {was} and this run has {now}: resume with the same "
                "--model.policy.special_tokens"
            )
        today = self._tokenizer_identity
        before = saved.get("tokenizer", today)  # a checkpoint of an earlier version has none
        if told := tokenizer_difference(before, today):
            raise PostTrainError(
                f"--model.policy.path {self.spec.path}: another tokenizer than the checkpoint was trained with "
                f"({told}); bring the old one back, or name it with --model.policy.tokenizer"
            )
        if before["chat_template"] != today["chat_template"]:
            raise PostTrainError(
                "the chat template is another than the checkpoint was trained with: bring the old one back (export "
                "writes it), or name it with --model.policy.chat_template"
            )

    def _require_same_bases(self, saved: dict[str, Identity]) -> None:
        """Refuse adapters on another model than they were trained on."""
        for name in saved.keys() & self.frozen.keys():
            if told := difference(saved[name], self.frozen[name]):
                raise self.changed(name, told)

    def changed(self, name: str, told: str) -> PostTrainError:
        """The error for a frozen model that is another than in training: in what it differs."""
        return PostTrainError(
            f"--model.{name}: another model than the checkpoint's adapters were trained on ({told}); pass the same "
            f"--model.{name} (path, revision, dtype, quantization), or bring its old files back"
        )

    def build_policy(self) -> WrappedModel:
        """A model with the weights that the spec names, sharded where the strategy shards."""
        vocabulary = len(self.tokenizer)
        return self.built(self.builder, self.spec, vocabulary)

    @property
    def builder(self) -> Callable[..., WrappedModel]:
        """What builds the policy of a spec, see `build_policy`."""
        return build_scorer if self.head == "score" else build_policy

    def built(self, build: Callable[..., AnyModel], spec: ModelSpec, vocabulary: int) -> AnyModel:
        """A model of a spec, sharded where the strategy shards; what the spec leaves open is decided here. What is
        drawn, such as adapters, is drawn alike under every strategy: from the run's seed, whatever else was drawn."""
        require_trainable(spec)
        dropout = self.dropout if spec.dropout is None else spec.dropout
        spec = replace(spec, dropout=dropout, dtype=self.dtype_of(spec))

        def drawn_alike(*given: Any, **options: Any) -> AnyModel:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch.initial_seed())
                return build(*given, **options)

        if self.device_mesh is None:
            return drawn_alike(spec, vocabulary, device_type=self._device_type())
        mesh = self.device_mesh["data_parallel"]
        return build_sharded(drawn_alike, spec, vocabulary, mesh, self.trainer.strategy.root_device)

    def dtype_of(self, spec: ModelSpec) -> DType:
        """The type of a spec's weights in memory: what it says, or what `auto` means in this run."""
        if spec.dtype != "auto":
            return spec.dtype
        trainer = self._attached_trainer()
        computes = str(trainer.precision) if trainer is not None else ""
        return "bfloat16" if spec.lora is not None and computes == "bf16-mixed" else "float32"

    # Inside ----------------------------------------------------------------------------------------------------

    def _device_type(self) -> str:
        trainer = self._attached_trainer()
        return str(trainer.strategy.root_device.type) if trainer is not None else self.device.type

    def _tracked_terms(self, batch: TreeBatch) -> dict[str, Term]:
        terms = self.loss_terms(batch)
        spread = self.balance.total(self.policy) if self.balance.weight and self.policy is not None else None
        if spread is not None:
            terms["router"] = Term(spread, "tokens", self.balance.weight)
        for name, term in terms.items():
            self.track(f"loss/{name}", term.weight * term.total, batch.local_count(term.unit))
        return terms


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _is_plain(one) for key, one in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    return type(value) in (int, float, str, bool, type(None))
