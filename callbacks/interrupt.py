"""Ctrl-C, SIGTERM or SIGHUP ends a run at the end of an optimizer step and saves it, so that it resumes exactly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_posttrain.callbacks.checkpoint import LastCheckpoint
from lit_posttrain.callbacks.protocols import AwaitsRewards, StartsProcesses, part_of
from lit_posttrain.errors import on_all_ranks
from lit_posttrain.runs.requeued import offer_to_lightning
from lit_posttrain.runs.signals import STOPS, RunStopped, give_back, handled_here, leave_closed_terminal, take_over
from lit_posttrain.runs.slurm import requeue_job, requeue_signals
from lit_posttrain.trainer_state import dry_run, ends_step


class GracefulInterrupt(Callback):
    """On the first Ctrl-C, SIGTERM or SIGHUP (a closed terminal) finishes the optimizer step, saves last.ckpt and ends
    the run; a further Ctrl-C stops at once. It does the same on the signal at which Lightning would requeue a SLURM
    job, and then requeues the job; there `trainer.fit` without a ckpt_path resumes the run, as with Lightning alone.
    Child processes of the run do not inherit this: a signal ends them as usual.

    Responses that are being sampled and rewarded are discarded: the signal reaches the processes of rewards too, and
    their scores cannot be trusted. The resumed run samples them again. (Not with several processes.)

    A running validation is stopped too, by `RunStopped`: a scheduler gives seconds between its signal and SIGKILL. The
    resumed run begins with it. A validation that would follow the step is left out, except after the last step, which
    ends the run by itself. interrupted: True if a signal stopped the run. signal: which one.
    """

    def __init__(self, resume_command: str = "", requeue: bool = True) -> None:
        """
        Args:
            resume_command: The command to print for a resume, such as `lit-posttrain fit --resume NAME`. Default: the
                call of `trainer.fit` for a script.
            requeue: Requeue a SLURM job. False if the job's command would begin another run.
        """
        self.resume_command, self.requeue = resume_command, requeue
        self.interrupted = False
        self.signal: int = signal.SIGINT
        self._previous_handlers: dict[int, Any] = {}
        self._requeues: list[int] = []  # the signals after which the job is to be requeued
        self._validation_batches: int | float | None = None
        self._between_steps = True
        self._stopping = False
        self._validates = False  # True while rows of a validation are evaluated
        self._alone = True
        self._rewarded: AwaitsRewards | None = None
        self._callbacks: list[Callback] = []  # of the trainer, while some of them are set aside

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signal that requeues a job: Lightning handles it from here on, and would save before a step."""
        self.interrupted, self._requeues = False, requeue_signals()
        self._listen(self._requeues)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals, in the main thread only. Before training there is nothing to save.

        Raises:
            SIGTERMException: if SIGTERM came since Lightning took it over; it would end the run after a batch, unsaved.
        """
        if trainer.received_sigterm:
            raise SIGTERMException
        if not self._previous_handlers:
            self.interrupted, self._requeues = False, requeue_signals()
        self._between_steps, self._stopping = True, False
        self._validates, self._alone = False, trainer.world_size == 1
        self._rewarded = part_of(pl_module, AwaitsRewards) if self._alone else None
        self._listen((*STOPS, *self._requeues))

    def _listen(self, numbers: Sequence[int]) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in filter(handled_here, set(numbers) - set(self._previous_handlers)):
                self._previous_handlers[number] = take_over(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.interrupted:  # a scheduler may send SIGTERM to the process and to its group
            return
        self.interrupted, self.signal = True, number
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        if number == signal.SIGHUP:
            leave_closed_terminal()
        if self._rewarded is not None and self._rewarded.awaits_rewards:
            self._rewarded.given_up = number
            raise RunStopped(number)
        if self._validates and self._alone:
            raise RunStopped(number)
        print(f"\nstopping after this optimizer step{again}", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop at the end of a step if any process got a signal; `LastCheckpoint` runs after this and saves."""
        self._between_steps = ends_step(trainer, batch_idx)
        if self._between_steps and self._asked(trainer):
            self._stop(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop the validation if any process got a signal.

        Raises:
            RunStopped: on all processes at once.
        """
        self._validates = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self._validates and self._between_steps and self._asked(trainer):
            raise on_all_ranks(RunStopped(self.signal))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the validation's results are saved."""
        self._validates = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal came after the last row: there is no step to wait for."""
        if trainer.state.fn == TrainerFn.FITTING and self._between_steps and self._asked(trainer):
            self._stop(trainer)

    def _asked(self, trainer: Trainer) -> bool:
        own = self.interrupted
        self.interrupted = bool(trainer.strategy.reduce_boolean_decision(own, all=False))
        if self.interrupted:  # known to all processes by now
            for number in (*STOPS, *self._requeues):  # the last one that any process got
                got = own and self.signal == number
                if trainer.strategy.reduce_boolean_decision(got, all=False):
                    self.signal = number
        return self.interrupted

    def _stop(self, trainer: Trainer) -> None:
        if trainer.global_step >= trainer.estimated_stepping_batches:  # the run ends here by itself, validated and all
            self.interrupted = False
            return
        if trainer.training:
            self._validation_batches, trainer.limit_val_batches = trainer.limit_val_batches, 0
        trainer.should_stop = self._stopping = True
        saving = any(isinstance(c, LastCheckpoint) for c in trainer.checkpoint_callbacks)
        if not saving and not dry_run(trainer):
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set aside the callbacks that look at a metric when an epoch ends: the epoch ends in the resumed run."""
        if self._stopping:
            loosely: Any = trainer  # `callbacks` is set by a connector, unseen by type checkers
            self._callbacks = list(loosely.callbacks)
            loosely.callbacks = [c for c in self._callbacks if not isinstance(c, (EarlyStopping, ModelCheckpoint))]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print how to resume."""
        if self.interrupted and trainer.is_global_zero:
            print(f"{self._name}: stopped at step {trainer.global_step}; {self._how(trainer, 'go on')}", flush=True)
            self._requeue(trainer)

    @property
    def _name(self) -> str:
        return signal.Signals(self.signal).name

    def _requeue(self, trainer: Trainer) -> None:
        if not self.interrupted or self.signal not in self._requeues:
            return
        if not self.requeue:
            print(
                "the job is not requeued: its command would not go on with the run; with --resume auto it would",
                flush=True,
            )
            return
        folder = Path(trainer.default_root_dir)
        try:
            if not self.resume_command and trainer.global_step > 0 and not dry_run(trainer):
                offer_to_lightning(folder)
        except OSError as problem:
            print(f"the job is not requeued: no link to {folder / 'last.ckpt'} can be made there ({problem.strerror})")
            return
        print(requeue_job(), flush=True)

    def _how(self, trainer: Trainer, what: str) -> str:
        path = Path(trainer.default_root_dir) / "last.ckpt"
        if not path.exists():
            return "nothing was saved yet"
        return f"{what} with: {self.resume_command or f'trainer.fit(..., ckpt_path={str(path)!r})'}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers and the validation, before Lightning restores the handlers that it replaced."""
        self._restore(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As `on_train_end`, which is not called then. Print what the run resumes from."""
        self._validates = False
        stops = isinstance(exception, (KeyboardInterrupt, RunStopped))
        if stops and self._previous_handlers:
            lost = ""
            for last in (c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)):
                last.save_finished_step(trainer, pl_module, exception)
                lost = last.lost_steps(trainer)
            way = self._how(trainer, "go on from the last save")
            if trainer.is_global_zero:
                step = f"{trainer.global_step}, {lost}" if lost else f"{trainer.global_step}"
                print(f"\n{self._name}: stopped at once, at step {step}; {way}", flush=True)
                self._requeue(trainer)
        if (starter := part_of(pl_module, StartsProcesses)) is not None:
            starter.end_processes(stuck_only=True)
        self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        for number, handler in self._previous_handlers.items():
            give_back(number, handler)
        self._previous_handlers = {}
        if self._callbacks:
            loosely: Any = trainer
            loosely.callbacks, self._callbacks = self._callbacks, []
        if self._validation_batches is not None:
            trainer.limit_val_batches = self._validation_batches
            self._validation_batches = None
