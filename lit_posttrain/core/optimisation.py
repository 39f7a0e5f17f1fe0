"""The optimizer's side of every method: its options, parameter groups, the gradient's norm, clipping."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_posttrain.core.schedules import Schedule, scheduler_of
from lit_posttrain.errors import PostTrainError, alternatives
from lit_posttrain.imports import imported
from lit_posttrain.models.optimizer_state import name_parameters, require_sharded_steps

ParameterGroup = dict[str, Any]
_FROM_ABOVE = ("lr", "weight_decay")
_SELECTS_KERNEL = ("fused", "foreach", "capturable", "differentiable", "maximize")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer and the schedule of its learning rate.

    Args:
        lr: Peak learning rate.
        weight_decay: Weight decay of matrices; vectors, such as norms and biases, have none.
        schedule: How the learning rate falls after warm-up, per optimizer step: linearly or by half a cosine to zero,
            or not at all (constant).
        warmup_ratio: Share of all optimizer steps over which the learning rate rises from zero.
        optimizer: A class of torch.optim by its name, or any optimizer class by its import path.
        options: Further arguments of that class, such as '{betas: [0.9, 0.95]}'. AdamW is fused unless it says
            otherwise.
    """

    lr: float = 1e-5
    weight_decay: float = 0.0
    schedule: Schedule = "linear"
    warmup_ratio: float = 0.03
    optimizer: str | type[Optimizer] = "AdamW"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf:
            raise PostTrainError(f"--model.optim.lr is {self.lr}; a learning rate must be at least 0")
        if not 0 <= self.weight_decay < math.inf:
            raise PostTrainError(f"--model.optim.weight_decay is {self.weight_decay}; it must be at least 0")
        if not 0 <= self.warmup_ratio <= 1:
            raise PostTrainError(
                f"--model.optim.warmup_ratio is {self.warmup_ratio}; it is a share of all steps, 0 to 1 (0.03 is usual)"
            )
        known = {k: p for k, p in inspect.signature(self.kind).parameters.items() if k != "params"}
        for name in self.options:
            if name in _FROM_ABOVE:
                raise PostTrainError(f"--model.optim.options has {name}: give it as --model.optim.{name}")
            if name not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
                others = [k for k in known if k not in _FROM_ABOVE]
                raise PostTrainError(
                    f"--model.optim.options: {self.kind.__name__} has no argument {name}; "
                    + alternatives(name, others, "its arguments")
                )

    @property
    def kind(self) -> type[Optimizer]:
        """The optimizer's class.

        Raises:
            PostTrainError: if there is no such optimizer.
        """
        return optimizer_class(self.optimizer) if isinstance(self.optimizer, str) else self.optimizer

    def build(self, params: Iterable[Any], **more: Any) -> Optimizer:
        """The optimizer of parameters or groups of them.

        Raises:
            PostTrainError: if the class refuses its arguments.
        """
        above = {"lr": self.lr, "weight_decay": self.weight_decay}
        known = inspect.signature(self.kind).parameters
        given = {name: value for name, value in above.items() if name in known}
        try:
            return self.kind(params, **{**given, **more, **self.options})
        except (ValueError, TypeError, RuntimeError) as problem:
            raise PostTrainError(f"--model.optim {self.kind.__name__}: {problem}") from problem


def optimizer_class(name: str) -> type[Optimizer]:
    """An optimizer by its name in torch.optim, or by its import path.

    Raises:
        PostTrainError: if there is none.
    """
    try:
        found = imported(name) if "." in name else getattr(torch.optim, name, None)
    except PostTrainError as problem:
        raise PostTrainError(f"--model.optim.optimizer {problem}") from problem
    if isinstance(found, type) and issubclass(found, Optimizer):
        return found
    known = [k for k, v in vars(torch.optim).items() if isinstance(v, type) and issubclass(v, Optimizer)]
    raise PostTrainError(
        f"--model.optim.optimizer {name}: there is no such optimizer; "
        + alternatives(name.rpartition(".")[2], [k for k in known if k != "Optimizer"], "torch.optim has")
    )


def configure(
    module: pl.LightningModule, optim: Optim, parts: Sequence[ParameterGroup]
) -> tuple[Optimizer, LRScheduler]:
    """The optimizer, and the scheduler that is stepped after each of its steps. parts: parameters ("params") with
    options of their own, such as `lr`; each becomes two groups: matrices with weight decay, vectors without.

    Raises:
        PostTrainError: for an optimizer that cannot step on these parameters, or a schedule without an end.
    """
    groups: list[ParameterGroup] = []
    for part in parts:
        params, own = part["params"], {name: value for name, value in part.items() if name != "params"}
        groups.append({"params": [p for p in params if p.dim() > 1], **own})
        groups.append({"params": [p for p in params if p.dim() <= 1], **own, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    trained = [p for group in groups for p in group["params"]]
    scaled = module.trainer.precision == "16-mixed"
    kernel = _kernel(optim, trained, scaled)
    optimizer = optim.build(groups, **kernel)
    name_parameters(optimizer, module)
    if scaled and any(group.get("fused") for group in optimizer.param_groups):
        raise PostTrainError(
            "--trainer.precision 16-mixed: a fused optimizer undoes the scale of the loss too late to clip or "
            "measure the gradient; leave `fused` out of --model.optim.options, or take bf16-mixed"
        )
    _require_moving(optimizer, optim)
    if module.device_mesh is not None:
        require_sharded_steps(partial(optim.build, **kernel), trained, module.device_mesh["data_parallel"])
    steps = module.trainer.estimated_stepping_batches
    if steps == math.inf and (optim.schedule != "constant" or optim.warmup_ratio):
        raise PostTrainError(
            f"a {optim.schedule} schedule needs an end: give --trainer.max_epochs or --trainer.max_steps, "
            "or --model.optim.schedule constant --model.optim.warmup_ratio 0"
        )
    total = 1 if steps == math.inf else int(steps)
    return optimizer, scheduler_of(optimizer, optim.schedule, round(optim.warmup_ratio * total), total)


def _kernel(optim: Optim, params: Sequence[Tensor], scaled: bool) -> dict[str, Any]:
    """The fused kernel for AdamW, several times as fast as the others, where it can be had."""
    asked = any(name in optim.options for name in _SELECTS_KERNEL)
    fits = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)
    return {"fused": True} if optim.kind is torch.optim.AdamW and fits and not (asked or scaled) else {}


def _require_moving(optimizer: Optimizer, optim: Optim) -> None:
    """Refuse a fused optimizer that changes nothing: torch's SGD (2.13) leaves most weights of 16 bits on a CPU as
    they are.

    Raises:
        PostTrainError: if a step with a large gradient leaves a weight where it was.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"] if group.get("fused")]
    for dtype, device in {(p.dtype, p.device) for p in weights}:
        weight = torch.nn.Parameter(torch.full((64,), 0.5, dtype=dtype, device=device))
        weight.grad = torch.ones_like(weight)
        replace(optim, lr=0.25, weight_decay=0.0).build([weight], fused=True).step()
        if bool((weight == 0.5).any()):
            raise PostTrainError(
                f"--model.optim.optimizer {type(optimizer).__name__}: fused, it leaves {dtype} weights on a "
                f"{device.type} as they are; leave `fused` out of --model.optim.options"
            )


def settings_of(optimizer: Optimizer, optim: Optim) -> dict[str, Any]:
    """Optimizer settings that a resumed run must share: Lightning restores them from the checkpoint, whatever the
    config says. The kernel (fused, foreach) may differ."""
    group = dict(optimizer.param_groups[0])
    group["lr"] = group.pop("initial_lr")  # the peak: the schedule has changed `lr` already
    kept = {k: v for k, v in group.items() if k not in ("params", *_SELECTS_KERNEL)}
    plain = {k: v for k, v in kept.items() if v is None or isinstance(v, (bool, int, float, str, tuple))}
    named = {"optimizer": type(optimizer).__name__, "schedule": optim.schedule, "warmup_ratio": optim.warmup_ratio}
    return named | plain


def require_same_settings(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume with another optimizer or schedule: the old one would silently be used.

    Raises:
        PostTrainError: if the settings differ from those of the checkpoint.
    """
    for name, before in saved.items():
        if now.get(name) != before:
            raise PostTrainError(
                f"the checkpoint was trained with {name} {before} and this run has {name} {now.get(name)}: resume with "
                "the same --model.optim, or start anew from its exported weights"
            )


class Gradient:
    """The gradient of the optimizer step at hand, of all of a module's parameters."""

    def __init__(self, parameters: Callable[[], Iterable[Tensor]]) -> None:
        self._parameters = parameters
        self._norm: Tensor | None = None

    def changed(self) -> None:
        """Forget the norm: the gradient has been added to."""
        self._norm = None

    def norm(self) -> Tensor:
        """Its norm before clipping, over all shards: a scalar on the device. Computed once, however many ask."""
        if self._norm is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters() if p.grad is not None])
            self._norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return self._norm

    def clip(self, limit: float, algorithm: str | None) -> None:
        """Clip it by value or by norm. Lightning refuses to clip for fused optimizers under bf16-mixed too, where there
        is no loss scale that they could undo twice."""
        if algorithm == "value":
            torch.nn.utils.clip_grad_value_(self._parameters(), limit)
        else:
            torch.nn.utils.clip_grads_with_norm_(self._parameters(), limit, self.norm())
