"""The optimizer's side of every method: parameter groups, schedule, the gradient's norm, clipping."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_posttrain.core.schedules import Schedule, scheduler_of
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.optimizer_state import name_parameters, require_sharded_steps
from lit_posttrain.trainer_state import logs_step

_HOW_IT_IS_COMPUTED = ("fused", "foreach", "capturable", "differentiable", "maximize")


class OptimizedModule(pl.LightningModule):
    """A LightningModule with one optimizer, stepped by Lightning's automatic optimisation."""

    def __init__(self, optimizer: OptimizerCallable, schedule: Schedule, warmup: float) -> None:
        """
        Args:
            optimizer: Any torch optimizer, such as torch.optim.AdamW with its learning rate.
            schedule: How the learning rate falls after warm-up, per optimizer step.
            warmup: Share of all optimizer steps over which the learning rate rises from zero.
        """
        super().__init__()
        if not 0 <= warmup <= 1:
            raise PostTrainError(f"--model.warmup is {warmup}; it is a share of all steps, 0 to 1 (0.03 is usual)")
        self.optimizer_factory = optimizer
        self.schedule, self.warmup = schedule, warmup
        self.optimizer_settings: dict[str, Any] = {}
        self._gradient_norm: Tensor | None = None  # of the step at hand, before clipping
        self._learning_rate = 0.0  # of the step at hand

    def configure_optimizers(self) -> Any:
        """AdamW or the configured one, on two groups: matrices with weight decay, vectors without."""
        groups: list[dict[str, Any]] = []
        for part in self.trained_parts():
            trained = part.pop("params")
            groups.append({"params": [p for p in trained if p.dim() > 1], **part})
            groups.append({"params": [p for p in trained if p.dim() <= 1], **part, "weight_decay": 0.0})
        groups = [group for group in groups if group["params"]]
        with_rates = ["lr" in group for group in groups]  # the optimizer adds its own to the others
        try:
            optimizer = self.optimizer_factory(groups)
        except (ValueError, TypeError) as problem:
            raise PostTrainError(f"--model.optimizer: {problem}") from problem
        for group, has_its_own in zip(optimizer.param_groups, with_rates, strict=True):
            group["lr"] = group["lr"] if has_its_own else group["lr"] * self.lr_factor
        name_parameters(optimizer, self)
        self.optimizer_settings = self._settings(optimizer)
        if self.trainer.precision == "16-mixed" and any(group.get("fused") for group in optimizer.param_groups):
            raise PostTrainError(
                "--trainer.precision 16-mixed: a fused optimizer undoes the scale of the loss too late to clip or "
                "measure the gradient; pass --model.optimizer.init_args.fused false, or take bf16-mixed"
            )
        self._require_moving(optimizer)
        if self.device_mesh is not None:
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            require_sharded_steps(self.optimizer_factory, trained, self.device_mesh["data_parallel"])
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf") and (self.schedule != "constant" or self.warmup):
            raise PostTrainError(
                f"a {self.schedule} schedule needs an end: give --trainer.max_epochs or --trainer.max_steps, "
                "or --model.schedule constant --model.warmup 0"
            )
        total = 1 if steps == float("inf") else int(steps)
        scheduler = scheduler_of(optimizer, self.schedule, round(self.warmup * total), total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _require_moving(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a fused optimizer that changes nothing: torch's SGD (2.13) leaves most weights of 16 bits on a CPU as
        they are.

        Raises:
            PostTrainError: if a step with a large gradient leaves a weight where it was.
        """
        weights = [p for group in optimizer.param_groups for p in group["params"] if group.get("fused")]
        for dtype, device in {(p.dtype, p.device) for p in weights}:
            weight = torch.nn.Parameter(torch.full((64,), 0.5, dtype=dtype, device=device))
            weight.grad = torch.ones_like(weight)
            trial = self.optimizer_factory([weight])
            trial.param_groups[0]["lr"] = 0.25
            trial.step()
            if bool((weight == 0.5).any()):
                raise PostTrainError(
                    f"--model.optimizer {type(optimizer).__name__}: fused, it leaves {dtype} weights on a "
                    f"{device.type} as they are; pass --model.optimizer.init_args.fused false"
                )

    @property
    def lr_factor(self) -> float:
        """What the optimizer's learning rate is multiplied by, for groups without one of their own."""
        return 1.0

    def trained_parts(self) -> list[dict[str, Any]]:
        """The parameters that are trained, as groups with options of their own, such as `lr`; by default one."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def _settings(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What a resumed run must have in common with the one before: its optimizer takes these from the checkpoint,
        whatever the config says. How the step is computed (fused, foreach) may differ."""
        kept = {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", *_HOW_IT_IS_COMPUTED)}
        plain = {k: v for k, v in kept.items() if v is None or isinstance(v, (bool, int, float, str, tuple))}
        return {"optimizer": type(optimizer).__name__, "schedule": self.schedule, "warmup": self.warmup, **plain}

    def require_same_optimizer(self, saved: dict[str, Any]) -> None:
        """Refuse to resume with another optimizer or schedule: the old one would silently be used.

        Raises:
            PostTrainError: if the settings differ from those of the checkpoint.
        """
        for name, before in saved.items():
            now = self.optimizer_settings.get(name)
            if now != before:
                raise PostTrainError(
                    f"the checkpoint was trained with {name} {before} and this run has {name} {now}: resume with the "
                    "same optimizer, schedule and warm-up, or start anew from its exported weights"
                )

    def on_after_backward(self) -> None:
        """A new part of the gradient: its norm is another one."""
        self._gradient_norm = None

    def gradient_norm(self) -> Tensor:
        """Norm of the gradient that the optimizer step at hand will take, before clipping: a scalar on the device.
        Measured once, however many ask."""
        if self._gradient_norm is None:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
            self._gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return self._gradient_norm

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradient before it is clipped on the steps that are logged, and note the step's learning rate,
        which the schedule changes right after it."""
        self._learning_rate = float(optimizer.param_groups[0]["lr"])
        if logs_step(self.trainer, self.trainer.global_step + 1):
            self.gradient_norm()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, sharded gradients included. Lightning refuses to clip for fused optimizers under bf16-mixed too, where
        there is no loss scale that they could unscale twice; only 16-mixed is left to it."""
        if not gradient_clip_val:
            return
        if self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, self.gradient_norm())
