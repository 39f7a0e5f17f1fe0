"""`lit-posttrain fit | validate | test | predict`: LightningCLI with a run's folder, tracking and one-line errors."""

from __future__ import annotations

import difflib
import logging
import os
import shlex
import shutil
import signal
import sys
import traceback
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_posttrain.callbacks import (
    AtomicCheckpointIO,
    EvaluationReport,
    FiniteLossGuard,
    GracefulInterrupt,
    PredictionWriter,
    RunPlan,
    StepProgressBar,
    Throughput,
    run_checkpoints,
)
from lit_posttrain.callbacks.protocols import StartsProcesses, part_of
from lit_posttrain.cli.arguments import goes_on_again, resolve_arguments
from lit_posttrain.cli.guards import explained_failures
from lit_posttrain.cli.options import AuditOptions, RunOptions, RunParser, load_class, option_tree
from lit_posttrain.cli.parsing.reader import CommandLine
from lit_posttrain.cli.parsing.values import plain
from lit_posttrain.cli.run_config import SaveRunConfig
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.trainer_checks import check_chosen, named_strategy
from lit_posttrain.errors import PostTrainError
from lit_posttrain.loggers import MetricsCSV, WandbOptions, wandb_logger
from lit_posttrain.runs.checkpoint_shards import read
from lit_posttrain.runs.folder import RUN_ID, RunLock, fresh_name, goes_on, measured, predictions_in
from lit_posttrain.runs.redaction import redacted
from lit_posttrain.runs.requeued import last_state, put_back, requeued, set_aside
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
_PROCESSES_PER_CORE = 4


class PostTrainCLI(LightningCLI):
    """LightningCLI with this project's defaults. In notebooks: `PostTrainCLI(run=False, args={...})`.

    tracking: whether to keep a run's folder with metrics, checkpoints and W&B; `audit` does without.
    requeue: whether the same command, started again, goes on with the run, so that SLURM may requeue its job.
    """

    def __init__(self, args: Any = None, run: bool = True, tracking: bool = True, requeue: bool = False) -> None:
        self.tracking, self._requeue = tracking, requeue
        self._has_commands = run
        self._fresh = False  # whether this process began the run's folder, and the one around it
        self._made_runs = False
        self._lock: RunLock | None = None
        try:
            with explained_failures():
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
            self._forget_unborn_run()
            raise Terminated(signal.SIGTERM) from None  # Lightning's own status would be 0
        except SystemExit as stop:
            trainer = getattr(self, "trainer", None)
            if trainer is None or not trainer.interrupted:
                raise  # such as after --print_config
            self._forget_unborn_run()
            if isinstance(stop, Terminated):
                raise
            if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning turns into its own exit
                raise KeyboardInterrupt from stop
            raise PostTrainError(
                f"{_origin(stop)} called sys.exit({stop.code or 0}) in the middle of the run"
            ) from stop
        except BaseException:
            self._forget_unborn_run()
            raise
        finally:
            if self._lock is not None:
                self._lock.release()
            model = getattr(self, "model", None)
            starter = part_of(model, StartsProcesses) if run and model is not None else None
            if starter is not None:
                starter.end_processes(stuck_only=False)

    def _forget_unborn_run(self) -> None:
        """Nothing stays of a run that failed before its first step; what it did not write itself does."""
        trainer = getattr(self, "trainer", None)
        if trainer is not None:
            put_back(self.run_dir)
        if self._lock is not None:
            self._lock.release()
        if not self._fresh or not self.run_dir.exists() or (trainer is not None and trainer.global_step > 0):
            return
        if (self.run_dir / "wandb").exists():
            sys.modules["wandb"].teardown()  # it holds files open in the folder
            shutil.rmtree(self.run_dir / "wandb", ignore_errors=True)
        for name in ("config.yaml", "audit.json", "wandb_id.txt", RUN_ID):
            (self.run_dir / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in there
            self.run_dir.rmdir()
            if self._made_runs:
                self.run_dir.parent.rmdir()

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As LightningCLI does, without its warning that `args` is given: the command passes its own."""
        if isinstance(args, list):
            command, options = (args[:1], args[1:]) if self._has_commands else ([], args)
            line = _reader(command[0] if command else "audit")
            self.config = plain(parser.parse_args([*command, *line.read(options)]))
            for note in line.notes if _main_process() else ():
                log.warning(note)
        elif isinstance(args, dict) and not self._has_commands:
            self.config = plain(parser.parse_object(_reader("audit").read_options(args)))
        else:
            super().parse_arguments(parser, args)
        section = self.config[self.config.subcommand] if self.config.get("subcommand") else self.config
        _make_plain(section.trainer)
        check_chosen(section.trainer)
        checkpoint = Path(section.get("ckpt_path") or "")
        if checkpoint.is_file():
            read(checkpoint)  # LightningCLI looks into it next, and takes it for a dict

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
        return Path(self.option("runs")) / self.run_name

    def before_instantiate_classes(self) -> None:
        """Decide on name and precision, so that the saved config says what was run."""
        section = self.config[self.subcommand] if self.subcommand else self.config
        _refuse_no_folder(section)
        if section.get("name") is None:
            method = str(section.model.class_path).rsplit(".", 1)[-1].lower()
            self._made_runs = not Path(section["runs"]).exists()
            claim = self.subcommand == "fit" and self.tracking and _main_process() and not section.trainer.fast_dev_run
            section["name"] = fresh_name(method, Path(section["runs"]), claim)
            self._fresh = claim
        self.run_name = str(section["name"])
        if self.subcommand == "fit" and _main_process() and not self.run_dir.exists():
            self._fresh, self._made_runs = True, not self.run_dir.parent.exists()
        fast = torch.cuda.is_available() or fast_bfloat16_cpu()
        if section.trainer.precision is None:
            section.trainer.precision = "bf16-mixed" if fast else "32-true"
        elif str(section.trainer.precision).startswith("bf16") and not fast and _main_process():
            told = "--trainer.precision %s: this processor multiplies bfloat16 slower than float32; 32-true is faster"
            log.warning(told, section.trainer.precision)
        if (section.data or {}).get("init_args", {}).get("streaming"):
            section.trainer.max_epochs = -1  # configs set epochs, and a stream has none: max_steps ends the run
        if self.option("tune_allocator") and not torch.cuda.is_available():
            tune_allocator()
        if "verbose" in section:
            section.verbose = False  # EvaluationReport prints the figures
        _refuse_too_many_processes(section.trainer)
        self._name_requeued(section)
        if _main_process():
            self._refuse_to_mix_runs(section)
            if self.tracking and self.subcommand == "fit" and not section.trainer.fast_dev_run:
                lock = RunLock(self.run_dir)
                lock.take()
                self._lock = lock

    def _name_requeued(self, section: Any) -> None:
        """Name what Lightning saved when SLURM requeued a job of this run, if the run goes on from it. Without a
        --ckpt_path Lightning would take it by itself, however old it is."""
        state, given = requeued(self.run_dir), section.get("ckpt_path")
        if self.subcommand is None or state is None or section.trainer.fast_dev_run:
            return
        if given is None and self.subcommand != "fit" and SLURMEnvironment.detect():
            raise PostTrainError(
                f"{self.subcommand} without a --ckpt_path would take {state} in a SLURM job; pass --ckpt_path best, "
                "last or hpc (that file), or for the model as it is another --name"
            )
        unasked = given is None and not section["overwrite"] and SLURMEnvironment.detect()
        if given == "hpc" or (unasked and last_state(self.run_dir) == state):
            section["ckpt_path"] = str(state)

    def before_fit(self) -> None:
        """Let a run that is to begin anew do so: Lightning would go on from what it saved when a job was requeued."""
        if self.tracking and self.option("ckpt_path") is None and not self.option("trainer.fast_dev_run"):
            set_aside(self.run_dir)

    def _refuse_to_mix_runs(self, section: Any) -> None:
        if not self.tracking or section["overwrite"]:
            return
        saved = [self.run_dir / "last.ckpt", self.run_dir / "best.ckpt", requeued(self.run_dir)]
        used = any(file is not None and file.exists() for file in saved)
        start, fitting = section.get("ckpt_path"), self.subcommand in (None, "fit") and not section.trainer.fast_dev_run
        if fitting and used and not goes_on(self.run_dir, start):
            other = f", which --ckpt_path {start} is not of (else put it into that folder)" if start else ""
            raise PostTrainError(
                f"{self.run_dir} holds a run already{other}: go on with it (--resume {shlex.quote(self.run_name)}), "
                "choose another --name, or start anew in it with --overwrite true"
            )
        if fitting and not used and start is None and measured(self.run_dir):
            raise PostTrainError(
                f"{self.run_dir} holds a run already, without a last.ckpt or best.ckpt to go on from: choose another "
                "--name, or start anew in it with --overwrite true"
            )
        written = next((f for f in predictions_in(self.run_dir) if f.suffix == ".jsonl"), None)
        if self.subcommand == "predict" and written is not None:
            raise PostTrainError(f"{written} exists already; choose another --name, or pass --overwrite true")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add the run's folder, loggers, checkpoints and guards to what the config says."""
        options: dict[str, Any] = {"default_root_dir": str(self.run_dir)}
        chosen = self.config_init[self.subcommand].trainer if self.subcommand else self.config_init.trainer
        fitting = self.tracking and self.subcommand in (None, "fit")
        if fitting and chosen.logger is not False and not chosen.fast_dev_run:
            options["logger"] = self._loggers(chosen.logger)
        elif chosen.logger is None:
            options["logger"] = False
        options["plugins"] = [*_listed(chosen.plugins), AtomicCheckpointIO()]
        callbacks = _listed(chosen.callbacks)
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter())
        if self.subcommand in ("validate", "test", "predict"):
            checkpoint = self.option("ckpt_path")
            state = f"with the weights of {checkpoint}" if checkpoint else "as it is, without a --ckpt_path"
            model = self.option("model.init_args.policy.path")
            callbacks.append(EvaluationReport(f"{model} {state}"))
        if fitting:
            resume = f"lit-posttrain fit --resume {shlex.quote(self.run_name)}"
            if self.option("runs") != "runs":
                resume += f" --runs {shlex.quote(self.option('runs'))}"
            callbacks += [
                FiniteLossGuard(),
                RunPlan(_next_commands(self.run_dir, self.model)),
                GracefulInterrupt(resume, self._requeue),
            ]
            if chosen.enable_checkpointing is not False:
                monitor = self.option("monitor") or self.model.monitored
                mode = _mode_of(self.model, monitor, self.option("monitor_mode"))
                callbacks += run_checkpoints(self.option("checkpoint_every"), monitor, mode, resume)
        if chosen.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            # behind the plan, which it is drawn below, and before what is said of an evaluation at its end
            callbacks.insert(len(callbacks) if fitting else 0, StepProgressBar())
        return super().instantiate_trainer(**{**options, "callbacks": callbacks, **kwargs})

    def _loggers(self, chosen_ones: Any) -> list[Any]:
        """metrics.csv and Weights & Biases, and behind them loggers of one's own."""
        own = [logger for logger in _listed(chosen_ones) if isinstance(logger, Logger)]  # True is the default
        options = self.option("wandb")
        config = redacted(self.config[self.subcommand].as_dict() if self.subcommand else self.config.as_dict())
        first = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0
        anew = not goes_on(self.run_dir, self.option("ckpt_path"))
        chosen = WandbOptions(**options.as_dict())
        first = first and not any(isinstance(logger, WandbLogger) for logger in own)  # it is set up by its owner
        wandb = wandb_logger(self.run_dir, chosen, self.run_name, config, anew=anew) if first else None
        if own and _main_process():
            names = ", ".join(type(logger).__name__ for logger in own)
            print(f"{'logging':<10} to {names}, beside metrics.csv{' and Weights & Biases' if wandb else ''}")
        return [MetricsCSV(self.run_dir), *([wandb] if wandb is not None else []), *own]


def _reader(command: str) -> CommandLine:
    tree = option_tree()
    return CommandLine(tree, command, partial(load_class, tree))


def _origin(problem: BaseException) -> str:
    """`file:line` of the code that raised."""
    place = traceback.extract_tb(problem.__traceback__)[-1]
    return f"{place.filename}:{place.lineno}"


def _make_plain(options: Any) -> None:
    """Options of the Trainer as they can be read and saved: a strategy that is named by its class, which Lightning
    would look up among its own names, and Lightning's enums, which are texts that YAML cannot write."""
    chosen = options.get("strategy")
    path = named_strategy(chosen) if isinstance(chosen, str) else None
    if path is not None:
        options.strategy = type(options)(class_path=path)  # jsonargparse's Namespace
    for callback in _listed(options.get("callbacks")):
        arguments = callback.get("init_args") or {}
        for name, value in list(arguments.items()):
            if isinstance(value, Enum) and isinstance(value, str):
                arguments[name] = value.value


def _listed(value: Any) -> list[Any]:
    """What an option of the Trainer that takes one or several was given."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _mode_of(model: PostTrainingModule, monitor: str, given: Literal["min", "max"] | None) -> Literal["min", "max"]:
    """Whether the lowest or the highest value of a metric makes best.ckpt."""
    declared = model.direction_of(monitor)
    mode = given or declared
    if mode is None:
        known = [f"val/{name}" for name in model.known_directions() if "*" not in name]
        close = next(iter(difflib.get_close_matches(monitor, known, n=1, cutoff=0.6)), None)
        meant = f"did you mean {close}? Else pass" if close else "pass"
        raise PostTrainError(
            f"--monitor {monitor}: {meant} --monitor_mode min or max to say whether its lowest or highest value is best"
        )
    if declared is not None and mode != declared:
        extreme = "lowest" if declared == "min" else "highest"
        raise PostTrainError(f"--monitor_mode {mode}: the best {monitor} is the {extreme}; leave it out")
    return mode


def _next_commands(run: Path, model: PostTrainingModule) -> list[str]:
    """What people do after training."""
    out = shlex.quote(f"{run.name}-hf")
    use = f"score --model {out} --data FILE" if model.head == "score" else f"generate --model {out} --prompt TEXT"
    return [f"lit-posttrain export --ckpt {shlex.quote(str(run))} --out {out}", f"lit-posttrain {use}"]


def _refuse_no_folder(section: Any) -> None:
    """An empty name, such as of a shell variable that is not set, would make the folder of all runs that of one."""
    for option in ("name", "runs"):
        if section.get(option) is not None and not section[option].strip():
            raise PostTrainError(f"--{option} is empty; give one, or leave it out")
    if section.get("name") is not None and len((place := Path(section["name"])).parts) > 1 and place.is_absolute():
        apart = f"--runs {shlex.quote(str(place.parent))} --name {shlex.quote(place.name)}"
        raise PostTrainError(f"--name {place}: not the name of a folder in --runs; pass {apart}")
    if section.get("name") is not None and Path(os.path.normpath(section["name"])).parts[:1] in ((), ("..",), ("/",)):
        raise PostTrainError(f"--name {section['name']}: not the name of a folder in --runs; give one, or leave it out")


def _refuse_too_many_processes(trainer: Any) -> None:
    """A slip in --trainer.devices would start thousands of processes on a CPU."""
    devices, cores = str(trainer.devices), os.cpu_count() or 1
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    if on_cpu and devices.isdigit() and int(devices) > _PROCESSES_PER_CORE * cores:
        raise PostTrainError(f"--trainer.devices {devices}: so many processes on {cores} CPU cores; leave it out")


def _main_process() -> bool:
    """Whether this is the process that sees to the run's folder."""
    known: Any = rank_zero_only  # Lightning sets the attribute from the launcher's environment, unseen by type checkers
    return bool(known.rank == 0)


def run(args: list[str]) -> int:
    """Run a trainer subcommand; 128 + its number when a signal (Ctrl-C is 2) stopped it, as shells count."""
    quiet_libraries()
    try:
        with terminable():
            cli = PostTrainCLI(args=resolve_arguments(args), requeue=goes_on_again(args))
    except RunStopped as stop:
        return 128 + stop.number if _main_process() else 0
    trainer: Any = cli.trainer  # `callbacks` is set by a connector, unseen by type checkers
    stops = [c.signal for c in trainer.callbacks if isinstance(c, GracefulInterrupt) and c.interrupted]
    # a process that another one started ends well: its launcher would kill the others for anything else
    return 128 + stops[0] if stops and trainer.is_global_zero else 0
