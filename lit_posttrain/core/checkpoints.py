"""Saving a method's state into a checkpoint, and restoring it.

Between two optimizer steps the weights stand still while counters and the place in the data move on. A checkpoint
always holds those of the last step's end, whenever it is written, so that a resumed run goes on exactly.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from torch import Tensor

from lit_posttrain.core import resume
from lit_posttrain.core.building import dtype_of
from lit_posttrain.core.metrics import WeightedMeans
from lit_posttrain.core.model_module import ModelModule
from lit_posttrain.core.optimisation import require_same_settings
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.identity import difference
from lit_posttrain.models.policy import WrappedModel
from lit_posttrain.models.precision import compute_in_float32
from lit_posttrain.models.restore import read_checkpoint
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.weights import require_state
from lit_posttrain.runs.folder import run_identity
from lit_posttrain.runs.run_state import RunState
from lit_posttrain.trainer_state import attached_trainer, fitting, logs_step

log = logging.getLogger(__name__)

# compared on resume, and not enough to build them from: `policy` is saved whole, and objects are not saved
_DESCRIBED = ("policy", "rewards", "rollout.environment")

Method = TypeVar("Method", bound=ModelModule)


@dataclass
class Progress:
    """A copy of the saved state that changes within an optimizer step. Fields as in `RunState`; components: their
    snapshots."""

    step: int
    num_tokens: float
    totals: WeightedMeans
    router_load: Tensor | None
    loader: dict[str, Any] | None
    components: dict[str, Any]

    @classmethod
    def of(cls, module: ModelModule) -> Progress:
        """That of a module now."""
        loader: Any = module.trainer.train_dataloader
        return cls(
            step=module.trainer.global_step,
            num_tokens=module.num_tokens,
            totals=module.metrics.steps.copied(),
            router_load=module.balance.load,
            loader=loader.state_dict() if hasattr(loader, "state_dict") else None,
            components={name: part.snapshot() for name, part in module.components.items()},
        )


class Resumption:
    """The state of a module's run: that of its last step's end, and that of the run that it resumes."""

    def __init__(self) -> None:
        self._finished: Progress | None = None
        self._resumed: RunState | None = None
        self._places_loader = False  # True until the loader has been put where the checkpoint left it

    # Saving

    @property
    def finished_step(self) -> int | None:
        """The optimizer step whose end is remembered."""
        return None if self._finished is None else self._finished.step

    def finish(self, module: ModelModule) -> None:
        """Remember the end of an optimizer step."""
        self._finished = Progress.of(module)

    def state(self, module: ModelModule) -> RunState:
        """The state for a checkpoint that is written now: that of the last optimizer step's end. Collective."""
        done = self._finished
        if done is None or done.step != module.trainer.global_step:
            done = Progress.of(module)
            if logs_step(module.trainer):  # a callback saves before the step is logged and its sums are reset
                done.totals = WeightedMeans()
        parts = {name: part.state(done.components[name]) for name, part in module.components.items()}
        return RunState(
            method=type(module).__name__,
            run=run_identity(module.trainer.default_root_dir),
            head=module.head,
            policy=asdict(module.model_spec.found_from_anywhere()),
            dtype=dtype_of(module, module.model_spec),
            ends=[token for token in module.tokenizer.convert_ids_to_tokens(module.eos_ids) if token],
            tokenizer=module.tokenizer_identity,
            frozen=module.frozen,
            options=resume.saved_options(module.method_options),
            optimizer=module.optimizer_settings,
            steps_planned=module.trainer.estimated_stepping_batches,
            num_tokens=done.num_tokens,
            totals=done.totals.dump(),
            router_load=done.router_load,
            loader=done.loader,
            parts={name: part for name, part in parts.items() if part},
        )

    # Resuming

    def load(self, module: ModelModule, checkpoint: Mapping[str, Any]) -> None:
        """Check a checkpoint, and take up its state where training goes on; see `on_load_checkpoint`."""
        saved, trainer = RunState.of(checkpoint, "--ckpt_path"), attached_trainer(module)
        resume.require_same_adapters(saved.policy["lora"], module.model_spec.lora)
        resume.require_same_tokens(saved, module.model_spec, module.tokenizer_identity)
        resume.require_same_base_dtype(saved, module.model_spec, dtype_of(module, module.model_spec))
        for name in saved.frozen.keys() & module.frozen.keys():
            if told := difference(saved.frozen[name], module.frozen[name]):
                raise resume.another_model(name, module.model_spec, told)
        if checkpoint.get("state_dict"):  # sharded weights are not in it
            require_state(
                module,
                checkpoint["state_dict"],
                "--ckpt_path: the checkpoint",
                buffers=saved_buffers(module),
                remedy="resume with the same --model.policy (path, lora, quantization) as it was trained with",
            )
        module.ends_resumed = saved.ends
        if trainer is not None and fitting(trainer):
            self._check_goes_on(module, saved)
            resume.require_epochs_left(checkpoint, trainer.max_epochs)
            self._resumed, self._places_loader = saved, True
            module.num_tokens, module.balance.load = saved.num_tokens, saved.router_load
            module.metrics.steps.restore(saved.totals, first_rank=module.trainer.global_rank == 0)
        for name, part in module.components.items():
            if name in saved.parts:
                part.load_state(saved.parts[name], fitting(trainer))

    @staticmethod
    def _check_goes_on(module: ModelModule, saved: RunState) -> None:
        own = type(module).__name__
        if saved.method != own:  # nor would its adapters start at zero, as a reference wants them
            raise PostTrainError(
                f"--ckpt_path: a checkpoint of {saved.method}, and {own} cannot go on with it; make a model folder of "
                "it (lit-posttrain export) and start from that with --model.policy.path"
            )
        resume.require_same_options(saved.options, resume.saved_options(module.method_options))

    def go_on(self, module: ModelModule) -> None:
        """Refuse another optimizer than that of the run that is resumed, and put the training loader where it was."""
        if self._resumed is None:
            return
        require_same_settings(self._resumed.optimizer, module.optimizer_settings)
        if self._places_loader and self._resumed.loader is not None and module.trainer.limit_train_batches:
            module.trainer.fit_loop.setup_data()  # else a run without a last epoch makes its loader only later
            loader: Any = module.trainer.train_dataloader
            loader.load_state_dict(self._resumed.loader)

    def begin(self, module: ModelModule) -> None:
        """Training begins: the loader is in its place. Warns if the learning rate may jump."""
        self._places_loader = False
        self.finish(module)
        _count_epoch(module.trainer)
        trainer, optim = module.trainer, module.optim
        steps, planned = trainer.estimated_stepping_batches, self._resumed and self._resumed.steps_planned
        moves = optim.schedule != "constant" or optim.warmup_ratio > 0
        # `LastCheckpoint` has it take one more where the validation of the last one is to be made up
        ended = planned == trainer.global_step == steps - 1 == trainer.max_steps - 1
        if planned is not None and planned != steps and moves and not ended and module.global_rank == 0:
            told = "the run was planned for %s steps, now for %s: the learning rate follows the new plan and may jump"
            log.warning(told, planned, steps)


def _count_epoch(trainer: Trainer) -> None:
    """Resumed at the end of an epoch, Lightning begins the next one without counting it: harmless once, but a run that
    is killed and resumed at two epoch ends would train an epoch too many."""
    loop = trainer.fit_loop
    progress = loop.epoch_progress
    if loop.restarted_mid_epoch and progress.current.ready == progress.current.completed and not loop.done:
        progress.increment_ready()
        progress.increment_started()


def saved_buffers(module: ModelModule) -> set[str]:
    """Names of the state dict that are a method's own buffers and extra state: they are saved with adapters too."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    models = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, WrappedModel))
    names = module.state_dict(keep_vars=True)
    return {name for name in names if name not in parameters and not name.startswith(models)}


def saved_weights(module: ModelModule, state: dict[str, Any]) -> dict[str, Any]:
    """Of a state dict what a checkpoint keeps: all of it, or with adapters what is trained and the method's buffers."""
    if module.model_spec.lora is None:
        return state
    kept = {name for name, p in module.named_parameters() if p.requires_grad} | saved_buffers(module)
    return {name: value for name, value in state.items() if name in kept}


def load_from_checkpoint(kind: type[Method], path: Any, map_location: Any, given: Mapping[str, Any]) -> Method:
    """See `PostTrainingModule.load_from_checkpoint`."""
    checkpoint = read_checkpoint(Path(path))
    saved = RunState.of(checkpoint, path)
    if saved.method != kind.__name__:
        raise PostTrainError(f"{path}: a checkpoint of {saved.method}, not of {kind.__name__}; load it with that class")
    hints, options = resume.arguments_of(kind), _nested(saved.options)
    known = {name: resume.constructed(hints[name], options[name]) for name in options.keys() & hints.keys()}
    spec: ModelSpec = resume.constructed(ModelSpec, saved.policy)
    rounded = spec.lora is not None and spec.dtype == "auto"  # by the run: the base of adapters is what it was there
    as_trained: dict[str, Any] = {"dtype": saved.dtype} if rounded else {}
    arguments = {"policy": replace(spec, **as_trained), **known, **given}
    lacking = [
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if lacking:
        raise PostTrainError(
            f"{path}: a checkpoint does not hold {', '.join(lacking)}: pass them to "
            f"{kind.__name__}.load_from_checkpoint"
        )
    method = kind(**arguments)
    method.configure_model()
    if rounded and "policy" not in given and method.policy is not None:
        compute_in_float32(method.policy)
    method.on_load_checkpoint(checkpoint)
    method.load_state_dict(checkpoint["state_dict"], strict=method.strict_loading)
    return method.to(map_location) if map_location is not None else method


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Options by dotted name as nested dicts; not those that only describe an argument, or stand under None."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        if f"{name}.".startswith(tuple(f"{described}." for described in _DESCRIBED)):
            continue
        *above, last = name.split(".")
        inner: dict[str, Any] | None = found
        for part in above:
            inner = None if inner is None else inner.setdefault(part, {})
        if inner is not None:
            inner[last] = value
    return found
