"""`lit-posttrain fit | validate | test | predict`: LightningCLI with a run's folder, tracking and one-line errors."""

from __future__ import annotations

import logging
import os
import signal
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_posttrain.callbacks import (
    AtomicCheckpointIO,
    GracefulInterrupt,
    StepProgressBar,
    Throughput,
)
from lit_posttrain.callbacks.protocols import StartsProcesses, part_of
from lit_posttrain.cli.arguments import goes_on_again, resolve_arguments
from lit_posttrain.cli.failures import BEFORE_STEPS
from lit_posttrain.cli.guards import explained_failures
from lit_posttrain.cli.options import AuditOptions, RunOptions, RunParser, load_class, option_tree
from lit_posttrain.cli.parsing.reader import CommandLine
from lit_posttrain.cli.parsing.values import plain
from lit_posttrain.cli.run_config import SaveRunConfig
from lit_posttrain.cli.run_place import RunPlace, is_main_process
from lit_posttrain.cli.run_trainer import (
    evaluating_callbacks,
    listed,
    make_plain,
    refuse_too_many_processes,
    training_callbacks,
)
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.trainer_checks import check_chosen
from lit_posttrain.errors import PostTrainError
from lit_posttrain.imports import place_of
from lit_posttrain.loggers import MetricsCSV, WandbOptions, wandb_logger
from lit_posttrain.runs.checkpoint_shards import read
from lit_posttrain.runs.folder import goes_on
from lit_posttrain.runs.redaction import redacted
from lit_posttrain.runs.signals import RunStopped, Terminated, terminable
from lit_posttrain.runtime import fast_bfloat16_cpu, quiet_libraries, tune_allocator

log = logging.getLogger(__name__)

TRAINER_DEFAULTS = {
    "precision": None,
    "max_epochs": 1,
    "log_every_n_steps": 1,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}


class PostTrainCLI(LightningCLI):
    """LightningCLI with this project's defaults. In notebooks: `PostTrainCLI(run=False, args={...})`.

    tracking: True to keep a run's folder with metrics, checkpoints and W&B; False for `audit`. requeue: True if the
    same command, started again, resumes the run, so that SLURM may requeue its job.
    """

    def __init__(self, args: Any = None, run: bool = True, tracking: bool = True, requeue: bool = False) -> None:
        self.tracking, self._requeue = tracking, requeue
        self._has_commands = run
        self._command = args[0] if run and isinstance(args, list) and args else None
        self.place: RunPlace | None = None  # until the options are known
        try:
            with explained_failures(lambda: self.place.going_on if self.place is not None else "start it again"):
                super().__init__(
                    PostTrainingModule,
                    pl.LightningDataModule,
                    save_config_callback=SaveRunConfig,
                    save_config_kwargs={"save_to_log_dir": False},
                    subclass_mode_model=True,
                    subclass_mode_data=True,
                    seed_everything_default=0,
                    trainer_defaults=TRAINER_DEFAULTS,
                    parser_class=RunParser,
                    parser_kwargs={"description": "Post-training of language models."} if not run else None,
                    args=args,
                    run=run,
                    auto_configure_optimizers=False,
                    load_from_checkpoint_support=False,
                )
        except SIGTERMException:
            self._forget_unborn()
            raise Terminated(signal.SIGTERM) from None  # Lightning's own status would be 0
        except SystemExit as stop:
            trainer = getattr(self, "trainer", None)
            if trainer is None or not trainer.interrupted:
                raise  # such as after --print_config
            self._forget_unborn()
            if isinstance(stop, Terminated):
                raise
            if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning turns into its own exit
                raise KeyboardInterrupt(*self._before_steps()) from stop
            raise PostTrainError(
                f"{_origin(stop)} called sys.exit({stop.code or 0}) in the middle of the run"
            ) from stop
        except KeyboardInterrupt as stop:
            self._forget_unborn()
            raise KeyboardInterrupt(*self._before_steps()) from stop
        except BaseException:
            self._forget_unborn()
            raise
        finally:
            if self.place is not None:
                self.place.release()
            model = getattr(self, "model", None)
            starter = part_of(model, StartsProcesses) if run and model is not None else None
            if starter is not None:
                starter.end_processes(stuck_only=False)

    def _forget_unborn(self) -> None:
        if self.place is not None:
            self.place.forget_unborn(getattr(self, "trainer", None))

    def _before_steps(self) -> list[str]:
        """What to tell of a run that was interrupted before its first step, if this is one."""
        trainer = getattr(self, "trainer", None)
        if self.place is None or self.subcommand != "fit" or (trainer is not None and trainer.global_step > 0):
            return []
        return [f"{BEFORE_STEPS}: {self.place.going_on}"]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As LightningCLI does, without its warning that `args` is given: the command passes its own."""
        if isinstance(args, list):
            command, options = (args[:1], args[1:]) if self._has_commands else ([], args)
            line = _reader(command[0] if command else "audit")
            self.config = plain(parser.parse_args([*command, *line.read(options)]))
            for note in line.notes if is_main_process() else ():
                log.warning(note)
        elif isinstance(args, dict) and not self._has_commands:
            self.config = plain(parser.parse_object(_reader("audit").read_options(args)))
        else:
            super().parse_arguments(parser, args)
        section = self.config[self.config.subcommand] if self.config.get("subcommand") else self.config
        make_plain(section.trainer)
        check_chosen(section.trainer)
        checkpoint = Path(section.get("ckpt_path") or "")
        if checkpoint.is_file():
            read(checkpoint)  # LightningCLI looks into it next, and takes it for a dict

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method of LightningCLI
        """The one that runs: gathering the options of the other three takes a tenth of a second."""
        every = LightningCLI.subcommands()
        return {self._command: every[self._command]} if self._command in every else every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of a run beside model, data and trainer."""
        parser.add_class_arguments(RunOptions, instantiate=False)
        parser.add_class_arguments(WandbOptions, "wandb")
        parser.add_lightning_class_args(Throughput, "throughput")
        if not self._has_commands:  # then it takes what `fit` does, such as the config of a run
            parser.add_method_arguments(pl.Trainer, "fit", skip=set(self.subcommands()["fit"]))
        if not self.tracking:
            parser.add_class_arguments(AuditOptions)

    def option(self, key: str) -> Any:
        """A parsed option of this run, by its dotted name."""
        return self.config.get(f"{self.subcommand}.{key}" if self.subcommand else key)

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        assert self.place is not None
        return self.place.folder

    def before_instantiate_classes(self) -> None:
        """Choose the run's name and the precision, so that they are in the saved config."""
        section = self.config[self.subcommand] if self.subcommand else self.config
        self.place = RunPlace(self.subcommand, section, self.tracking)
        fast = torch.cuda.is_available() or fast_bfloat16_cpu()
        if section.trainer.precision is None:
            section.trainer.precision = "bf16-mixed" if fast else "32-true"
        elif str(section.trainer.precision).startswith("bf16") and not fast and is_main_process():
            told = "--trainer.precision %s: this processor multiplies bfloat16 slower than float32; 32-true is faster"
            log.warning(told, section.trainer.precision)
        if (section.data or {}).get("init_args", {}).get("streaming"):
            section.trainer.max_epochs = -1  # configs set epochs, and a stream has none: max_steps ends the run
        if self.option("tune_allocator") and not torch.cuda.is_available():
            tune_allocator()
        if "verbose" in section:
            section.verbose = False  # EvaluationReport prints the figures
        refuse_too_many_processes(section.trainer)
        self.place.take()

    def before_fit(self) -> None:
        """See `RunPlace.begin`."""
        assert self.place is not None
        self.place.begin()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add the run's folder, loggers, checkpoints and callbacks to those of the config.

        Raises:
            PostTrainError: for a method or a data module whose constructor does not call that of its base class.
        """
        assert self.place is not None
        for made, attribute in ((self.model, "resumption"), (self.datamodule, "prepare_data_per_node")):
            if not hasattr(made, attribute):
                name = type(made).__name__
                raise PostTrainError(f"the constructor of {name} must call super().__init__ ({place_of(type(made))})")
        options: dict[str, Any] = {"default_root_dir": str(self.run_dir)}
        chosen = self.config_init[self.subcommand].trainer if self.subcommand else self.config_init.trainer
        fitting = self.tracking and self.subcommand in (None, "fit")
        if fitting and chosen.logger is not False and not chosen.fast_dev_run:
            options["logger"] = self._loggers(chosen.logger)
        elif chosen.logger is None:
            options["logger"] = False
        options["plugins"] = [*listed(chosen.plugins), AtomicCheckpointIO()]
        callbacks = listed(chosen.callbacks)
        if self.subcommand in ("validate", "test", "predict"):
            callbacks += evaluating_callbacks(self.subcommand, self.option)
        if fitting:
            checkpoints = chosen.enable_checkpointing is not False
            callbacks += training_callbacks(self.model, self.place, self.option, self._requeue, checkpoints)
        if chosen.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            # behind the plan, which it is drawn below, and before what is said of an evaluation at its end
            callbacks.insert(len(callbacks) if fitting else 0, StepProgressBar())
        return super().instantiate_trainer(**{**options, "callbacks": callbacks, **kwargs})

    def _loggers(self, chosen_ones: Any) -> list[Any]:
        """metrics.csv and Weights & Biases, and then the loggers of the config."""
        assert self.place is not None
        own = [logger for logger in listed(chosen_ones) if isinstance(logger, Logger)]  # True is the default
        options = self.option("wandb")
        config = redacted(self.config[self.subcommand].as_dict() if self.subcommand else self.config.as_dict())
        first = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0
        anew = not goes_on(self.run_dir, self.option("ckpt_path"))
        chosen = WandbOptions(**options.as_dict())
        first = first and not any(isinstance(logger, WandbLogger) for logger in own)  # it is set up by its owner
        wandb = wandb_logger(self.run_dir, chosen, self.place.name, config, anew=anew) if first else None
        if own and is_main_process():
            names = ", ".join(type(logger).__name__ for logger in own)
            print(f"{'logging':<10} to {names}, beside metrics.csv{' and Weights & Biases' if wandb else ''}")
        return [MetricsCSV(self.run_dir), *([wandb] if wandb is not None else []), *own]


def _reader(command: str) -> CommandLine:
    tree = option_tree()
    return CommandLine(tree, command, partial(load_class, tree))


def _origin(problem: BaseException) -> str:
    """`file:line` of the code that raised an exception."""
    place = traceback.extract_tb(problem.__traceback__)[-1]
    return f"{place.filename}:{place.lineno}"


def run(args: list[str]) -> int:
    """Run a trainer subcommand; 128 + its number when a signal (Ctrl-C is 2) stopped it, as shells count."""
    quiet_libraries()
    try:
        with terminable():
            cli = PostTrainCLI(args=resolve_arguments(args), requeue=goes_on_again(args))
    except RunStopped as stop:
        return 128 + stop.number if is_main_process() else 0
    trainer: Any = cli.trainer  # `callbacks` is set by a connector, unseen by type checkers
    stops = [c.signal for c in trainer.callbacks if isinstance(c, GracefulInterrupt) and c.interrupted]
    # a process that another one started ends well: its launcher would kill the others for anything else
    return 128 + stops[0] if stops and trainer.is_global_zero else 0
