"""The base class of every method: it trains a model on packed batches, with the loss that a subclass defines.

A method implements `loss_terms`. Global loss normalisation, metrics, exact resume and checkpoints are here, once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lit_posttrain.core import checkpoints, optimisation, resume
from lit_posttrain.core.directions import Direction
from lit_posttrain.core.metric_log import MetricLog, log_evaluation, log_values, require_metric
from lit_posttrain.core.model_module import ModelModule
from lit_posttrain.core.optimisation import Gradient, Optim
from lit_posttrain.core.predictions import predicted_rows
from lit_posttrain.core.terms import Term, loss_of, require_gradient, require_terms
from lit_posttrain.core.trainer_checks import (
    check_accumulation,
    check_epoch,
    check_states,
    check_trainer,
    require_monitored,
    require_trees,
)
from lit_posttrain.data.store.loader import AuxiliaryRows, Trees, step_denominators
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.errors import alike_on_all_ranks
from lit_posttrain.models.identity import identity_of
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.overrides import check_overrides
from lit_posttrain.trainer_state import ends_step, evaluating, logs_step, num_replicas, seed_of
from lit_posttrain.types import Tree, TreeBatch


class PostTrainingModule(ModelModule):
    """Base class of all methods. Subclasses implement `loss_terms`.

    monitored: the metric that selects the best weights. in_bar: metrics of a training step that the progress bar shows.
    better: min or max by metric, or by pattern, see core/directions.py; a class declares its own.
    """

    monitored: ClassVar[str] = "val/loss"
    in_bar: ClassVar[tuple[str, ...]] = ("loss",)
    better: ClassVar[Mapping[str, Direction]] = {"loss": "min", "loss/*": "min"}

    def __init__(self, policy: ModelSpec, optim: Optim = Optim(lr=2e-5)) -> None:
        """
        Args:
            policy: The model to train.
            optim: The optimizer and the schedule of its learning rate.
        """
        super().__init__(policy, optim)
        self.gradient = Gradient(self.parameters)
        self.resumption = checkpoints.Resumption()
        self._learning_rate = 0.0  # of the step at hand
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

    def derived_metrics(self, values: Mapping[str, float]) -> dict[str, float]:
        """Metrics that are functions of reduced ones, such as a perplexity. `values` holds them without their stage."""
        return {}

    def check_data(self, data: LightningDataModule | None) -> None:
        """Validate the built data module; raise PostTrainError if this method cannot train on it. Default: accept."""

    def trained_parts(self) -> list[optimisation.ParameterGroup]:
        """The parameters that are trained, as groups with options of their own, such as `lr`. Default: one group."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    # What a method uses ----------------------------------------------------------------------------------------

    @property
    def evaluating(self) -> bool:
        """True while validation or test data is under way."""
        return evaluating(self)

    def track(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add to a metric: it is logged as sum(total) / sum(count) over all micro-batches and ranks since the last
        log, reduced once. total: a scalar tensor. count: a number or a scalar tensor, such as the number of tokens.

        Raises:
            PostTrainError: for anything else.
        """
        require_metric(name, total, count)
        self.metrics.add(name, total, count, self.evaluating)

    def batch_of(self, trees: Sequence[Tree]) -> TreeBatch:
        """Trees, such as those of a data module's `train_store`, as one batch on the model's device, which is taken as
        a whole optimizer step. It needs no Trainer: for notebooks and tests."""
        denominators = step_denominators(MemoryTrees(trees), range(len(trees)))
        return collate(trees, self.layout, denominators, range(len(trees))).to(self.device)

    def metrics_of(self, batch: TreeBatch) -> dict[str, float]:
        """The loss and the metrics of one batch, which needs no Trainer: for notebooks and tests. The batch is taken as
        a whole optimizer step; what a Trainer is about to log stays as it is."""
        kept, self.metrics = self.metrics, MetricLog().to(self.device)
        try:
            with torch.no_grad():
                self.tracked_terms(batch)
            values = self.metrics.take_evaluation()[1] if self.evaluating else self.metrics.take_steps()
        finally:
            self.metrics = kept
        return values | self.derived_metrics(values)

    # What callbacks ask for -----------------------------------------------------------------------------------------

    def gradient_norm(self) -> Tensor:
        """Norm of the gradient that the optimizer step at hand will take, before clipping: a scalar on the device."""
        return self.gradient.norm()

    # Lightning's hooks: building and the optimizer ---------------------------------------------------------------

    @alike_on_all_ranks()
    def configure_callbacks(self) -> list[pl.Callback]:
        """None; Lightning asks before anything else of a run, so this refuses what does not work here.

        Raises:
            PostTrainError: see `check_trainer` and `check_overrides`; for a constructor of which a checkpoint could
                not save the options.
        """
        check_trainer(self.trainer)
        check_overrides(type(self))
        resume.arguments_of(type(self))
        return []

    def configure_model(self) -> None:
        """Build the policy and the components; Lightning calls it in the right device and dtype context, possibly more
        than once."""
        if self.policy is not None:
            return
        self.policy = self.build_policy()
        self.policy.balanced = self.balance.weight > 0
        if self.model_spec.lora is not None:
            self.frozen["policy"] = identity_of(self.policy)
        for component in self.components.values():
            component.configure_model()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer on matrices with weight decay and vectors without, and its schedule."""
        factor = 1.0 if self.model_spec.lora is None else self.model_spec.lora.lr_factor
        rate = self.optim.lr * factor
        parts = [{"lr": rate, **part} for part in self.trained_parts()]
        optimizer, scheduler = optimisation.configure(self, self.optim, parts)
        self.optimizer_settings = optimisation.settings_of(optimizer, self.optim)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_after_backward(self) -> None:
        """Invalidates the cached gradient norm."""
        self.gradient.changed()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradient before it is clipped on the steps that are logged, and note the step's learning rate,
        which the schedule changes right after it."""
        self._learning_rate = float(optimizer.param_groups[0]["lr"])
        if logs_step(self.trainer, self.trainer.global_step + 1):
            self.gradient.norm()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, sharded gradients included; under 16-mixed, whose loss is scaled, as Lightning does."""
        if not gradient_clip_val:
            return
        if self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.gradient.clip(gradient_clip_val, gradient_clip_algorithm)

    # Lightning's hooks: training ---------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Refuse to go on with other data or another optimizer before anything is computed with them. Where weights are
        sharded the checkpoint is read only later: `on_train_start` asks again."""
        with alike_on_all_ranks():
            self.resumption.go_on(self)
        if self.global_rank == 0:
            self.balance.tell()
        self.check_data(getattr(self.trainer, "datamodule", None))
        for component in self.components.values():
            component.on_fit_start()

    @alike_on_all_ranks()
    def on_train_start(self) -> None:
        """Put the training loader where the checkpoint left it. Lightning does so only for loaders that are not made
        before its checkpoint is read (ours is, by `estimated_stepping_batches`), and not at an epoch's end.

        Raises:
            PostTrainError: if an epoch would end within an optimizer step, whose denominators count the whole step; see
                `require_monitored` and `check_states`.
        """
        check_epoch(self.trainer)
        check_states(self.trainer)
        require_monitored(self.trainer)
        self.resumption.go_on(self)
        self.resumption.begin(self)

    def on_train_batch_start(self, batch: TreeBatch, batch_idx: int) -> int | None:
        """Seed every micro-batch by its place in the run, so that dropout is the same after a resume.

        Raises:
            PostTrainError: for the batch of a loader that makes no `TreeBatch`.
        """
        require_trees(self, batch)
        torch.manual_seed(seed_of(self.trainer.global_step, batch_idx, self.trainer.global_rank))
        return None

    def training_step(self, batch: TreeBatch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the step's loss, times what Lightning and DDP will divide it by.

        Raises:
            PostTrainError: if a callback has changed the accumulation, of which the loader has planned steps; for a
                loss without a gradient.
        """
        check_accumulation(self.trainer)
        if ends_step(self.trainer, batch_idx):
            self.num_tokens += batch.denominators["input_tokens"]  # before callbacks save at the step's end
        terms = self.tracked_terms(batch)
        if ends_step(self.trainer, batch_idx):
            self.balance.end_step(self.over_ranks)
            self.on_step_end(batch)
        ranks, _ = num_replicas(self.trainer)
        loss = require_gradient(loss_of(terms, batch.denominators), type(self))
        return loss * (self.trainer.accumulate_grad_batches * ranks)

    def on_step_end(self, batch: TreeBatch) -> None:
        """Called once a step, after the losses of all its micro-batches and before its last backward pass: for what a
        method sums over a step. batch: the last micro-batch. Collectives are allowed."""

    def tracked_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The terms of the loss on a micro-batch, the router's included, tracked as loss/NAME."""
        terms = require_terms(self.loss_terms(batch), type(self))
        spread = self.balance.total(self.policy) if self.balance.weight and self.policy is not None else None
        if spread is not None:
            terms["router"] = Term(spread, "tokens", self.balance.weight)
        for name, term in terms.items():
            self.track(f"loss/{name}", term.weight * term.total, batch.local_count(term.unit))
        return terms

    def on_train_batch_end(self, outputs: Any, batch: TreeBatch, batch_idx: int) -> None:
        """At the end of a step log it, if no callback has asked for that to save it."""
        if ends_step(self.trainer, batch_idx):
            self.finish_step()

    def finish_step(self) -> None:
        """Where Lightning logs the step that has just ended, reduce the metrics once and hand them over; remember what
        a checkpoint of its end says. Once a step, however often it is called."""
        if self.resumption.finished_step == self.trainer.global_step:
            return
        if logs_step(self.trainer):
            values = self.metrics.take_steps()
            now = {"num_tokens": self.num_tokens, "grad_norm": float(self.gradient.norm()), "lr": self._learning_rate}
            log_values(self, "train", {**values, **self.derived_metrics(values), **now}, bar=self.in_bar)
        self.resumption.finish(self)

    # Lightning's hooks: evaluation -------------------------------------------------------------------------------

    def validation_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Add a batch to the metrics of its file. What a method returns is for callbacks."""
        require_trees(self, batch)
        self.metrics.file = dataloader_idx
        self.tracked_terms(batch)

    def test_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As `validation_step`."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log each file's metrics and, for several files, their sum."""
        log_evaluation(self, "val", self.metrics, self.derived_metrics)

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        log_evaluation(self, "test", self.metrics, self.derived_metrics)

    def predict_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Per response: its row, its trained tokens and their summed log-probability (nats), see `predicted_rows`."""
        require_trees(self, batch)
        logprobs = self.token_logprobs(batch).logprobs
        return predicted_rows(batch, dataloader_idx, "logprob", batch.sum(logprobs))

    # Lightning's hooks: checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the `RunState`, and leave frozen weights out."""
        checkpoint["state_dict"] = checkpoints.saved_weights(self, checkpoint["state_dict"])
        self.resumption.state(self).put_into(checkpoint)

    @alike_on_all_ranks()
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run's kind, or one that lacks something that is trained here; where training
        goes on, take up its state.

        Raises:
            PostTrainError: naming what differs.
        """
        self.resumption.load(self, checkpoint)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = None, **given: Any) -> Self:  # type: ignore[override]  # hparams_file and strict have no meaning here
        """The trained method, for use outside of a Trainer: built with the options that the checkpoint knows and the
        arguments that are given here. Rewards, functions and other objects are not in a checkpoint.

        Raises:
            PostTrainError: for a checkpoint of another method, or one that lacks trained weights.
        """
        return checkpoints.load_from_checkpoint(cls, checkpoint_path, map_location, given)
