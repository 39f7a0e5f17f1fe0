"""Where a run's metrics go: metrics.csv in its folder, and Weights & Biases where that works."""

from __future__ import annotations

import csv
import logging
import os
import shutil
import subprocess
import uuid
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_posttrain.runs.atomic import whole_file, write_text
from lit_posttrain.runs.checkpoint_shards import remove
from lit_posttrain.runs.folder import RUN_ID, predictions_in
from lit_posttrain.runs.redaction import redacted
from lit_posttrain.runs.requeued import ASIDE

log = logging.getLogger(__name__)

_INIT_TIMEOUT_S = 30.0
_FINISH_TIMEOUT_S = 60.0


@dataclass
class WandbOptions:
    """Weights & Biases.

    Args:
        project: Project that the run belongs to.
        mode: auto is online where WANDB_API_KEY is set, else offline (`wandb sync` uploads later); disabled is off.
        entity: User or team; by default the key's own.
    """

    project: str = "lit-posttrain"
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    entity: str | None = None


class MetricsCSV(Logger):
    """metrics.csv: one row per step, a column per metric, complete after every call.

    A step that was logged already (a run resumed from an earlier checkpoint) takes the rows from there on away.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._row: dict[str, str] = {}  # the last one, which may get more metrics
        self._row_start = 0  # where it begins in the file
        self._open = False
        self._kept_steps = 0  # those of the run that is resumed

    @property
    def name(self) -> str:
        return ""  # Lightning's callbacks make folders of it within the run's

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.file.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml holds them."""

    def goes_on_from(self, step: int) -> None:
        """The run is resumed after so many optimizer steps: their rows stay, and the last one may get the metrics of a
        validation that is made up."""
        self._kept_steps = step

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add to the row of `step`, by default the last one."""
        current = int(self._row.get("step", 0)) if step is None else step
        if not self._open or current < int(self._row.get("step", -1)):
            self._go_back_to(current)
        if self._row.get("step") != str(current):
            self._row = {"step": str(current)}
            self._row_start = self.file.stat().st_size
        self._row |= {name: str(value) for name, value in metrics.items()}
        fresh = [name for name in self._row if name not in self._columns]
        if fresh:
            rows = [row for row in self._read() if row["step"] != str(current)]
            self._columns += fresh
            self._write([*rows, self._row])
        else:
            with self.file.open("r+", newline="", encoding="utf-8") as stream:
                stream.seek(self._row_start)
                stream.truncate()
                self._writer(stream).writerow(self._row)

    def _go_back_to(self, step: int) -> None:
        """Keep the rows before `step`, and those of the resumed run, alone."""
        self._open = True
        end = max(step, self._kept_steps)
        rows = [row for row in self._read() if _number(row.get("step")) < end]
        self._columns = self._columns or ["step"]
        last = rows[-1] if rows and rows[-1]["step"] == str(step) else {}
        self._row = {name: value for name, value in last.items() if value}
        self._kept_steps = 0  # from now on this run's own
        self._write(rows)

    def _read(self) -> list[dict[str, str]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, restval="")
            rows = list(reader)
            self._columns = self._columns or list(reader.fieldnames or [])
        return rows

    def _write(self, rows: list[dict[str, str]]) -> None:
        with whole_file(self.file) as part, part.open("w", newline="", encoding="utf-8") as stream:
            writer = self._writer(stream)
            writer.writeheader()
            for row in rows:
                self._row_start = stream.tell()
                writer.writerow(row)

    def _writer(self, stream: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(stream, self._columns, restval="", extrasaction="ignore", lineterminator="\n")


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return float("inf")  # a row that a crash cut short


def forget_run(folder: Path | str) -> None:
    """Remove what an earlier run left in a folder in which a new one starts, so that it is not taken for its own.
    metrics.csv is the logger's own matter: the new run may have begun one."""
    place = Path(folder)
    written = ("rewards.jsonl", "reward_examples.jsonl", "rewards.png")
    names = [*written, *(f"validate_{name}" for name in written)]
    names += ["wandb_id.txt", RUN_ID, "audit.json", "samples.jsonl", "completions.jsonl"]
    for file in [*(place / name for name in names), *predictions_in(place)]:
        if file.is_file() or file.is_symlink():
            file.unlink()
    shutil.rmtree(place / ASIDE, ignore_errors=True)
    # last of all: what else cannot be removed leaves a run that can go on
    requeued = [file for file in place.glob("hpc_ckpt_*.ckpt") if file.is_file() or file.is_symlink()]
    for checkpoint in [place / "best.ckpt", *requeued, place / "last.ckpt"]:
        remove(checkpoint)


class ForgivingWandbLogger(WandbLogger):
    """A WandbLogger that warns once and falls silent when its background process is gone, instead of ending the run."""

    _lost = False
    _last_step = 0

    def _try(self, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._lost:
            return
        try:
            call(*args, **kwargs)
        except OSError as problem:  # the connection to the process is gone for good
            self._lost = True
            log.warning("Weights & Biases is gone (%s); metrics.csv has the rest", _line(problem))
        except Exception as problem:  # whatever it is, it is not worth the run
            log.warning("Weights & Biases did not take something (%s); metrics.csv has the metrics", _line(problem))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(self._log, metrics, step)

    def _log(self, metrics: Mapping[str, float], step: int | None) -> None:
        # W&B's own count follows the run's: an offline part of a resumed run would begin at 0 again, and the parts
        # would write over each other when they are uploaded. What is logged for an earlier step joins the last one
        at = {} if step is None else {"trainer/global_step": step}
        self._last_step = max(step or 0, self._last_step)
        self.experiment.log({**metrics, **at}, step=self._last_step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        self._try(super().log_hyperparams, params)

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        self._try(super().log_table, *args, **kwargs)

    def finalize(self, status: str) -> None:
        self._try(super().finalize, status)


def wandb_logger(
    folder: Path | str, options: WandbOptions, name: str, config: Mapping[str, Any], anew: bool = False
) -> WandbLogger | None:
    """A Weights & Biases logger, or None with a warning if it cannot be had. Asks nothing, and waits 30 s at most.

    A resumed run goes on in the W&B run whose id is in wandb_id.txt (`keep_run_id`), unless `anew`. A run that cannot
    be online is offline.
    """
    if options.mode == "disabled" or os.environ.get("WANDB_MODE") == "disabled":
        return None
    try:
        import wandb

        wandb.setup(settings=_quiet_settings(wandb))
        mode = _mode(options.mode, wandb)
        try:
            return _start(wandb, Path(folder), options, mode, name, config, anew)
        except Exception as problem:
            if mode != "online":
                raise
            log.warning("Weights & Biases cannot be reached (%s): offline, `wandb sync` uploads later", _line(problem))
            wandb.teardown()  # the run that did not start holds on to its id
            return _start(wandb, Path(folder), options, "offline", name, config, anew)
    except Exception as problem:  # no tracking is better than no training
        log.warning("no Weights & Biases (%s); metrics.csv has the metrics", _line(problem))
        return None


def _start(
    wandb: Any, folder: Path, options: WandbOptions, mode: str, name: str, config: Mapping[str, Any], anew: bool
) -> WandbLogger:
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        name=name,
        project=options.project,
        entity=options.entity,
        dir=str(folder),
        id=_run_id(folder, anew),
        resume="allow",
        reinit="finish_previous",
        mode=mode,
        config=redacted(dict(config)) | {"git_commit": git_commit()},
        settings=_quiet_settings(wandb),
    )
    run.define_metric("trainer/global_step")  # as WandbLogger does with a run that it starts itself
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return ForgivingWandbLogger(experiment=run, project=options.project, save_dir=str(folder), id=run.id)


def _quiet_settings(wandb: Any) -> Any:
    wanted = {
        "silent": True,
        "console": "off",
        # the command line and git remotes can hold secrets; config and commit are saved without them
        "x_disable_meta": True,
        "disable_git": True,
        "save_code": False,
        "init_timeout": _INIT_TIMEOUT_S,
        "finish_timeout": _FINISH_TIMEOUT_S,
    }
    known = getattr(wandb.Settings, "model_fields", wanted)
    return wandb.Settings(**{key: value for key, value in wanted.items() if key in known})


def _mode(asked: str, wandb: Any) -> str:
    if asked == "auto":
        asked = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if asked == "online" and not os.environ.get("WANDB_API_KEY"):
        try:
            known = wandb.login(prompt=False, verify=False)
        except TypeError:  # before wandb 0.31 it would ask
            known = False
        if not known:
            log.warning("no key for Weights & Biases: offline; set WANDB_API_KEY, or `wandb sync` later")
            return "offline"
    return asked


def _line(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return str(redacted(lines[0])) if lines else type(problem).__name__


def keep_run_id(folder: Path, identity: str) -> None:
    """Remember the W&B run of a run's folder, for when it is resumed."""
    write_text(folder / "wandb_id.txt", identity + "\n")


def _run_id(folder: Path, anew: bool) -> str:
    file = folder / "wandb_id.txt"
    return uuid.uuid4().hex[:12] if anew or not file.exists() else file.read_text(encoding="utf-8").strip()


def git_commit() -> str | None:
    """The commit of the working directory, `+changes` with uncommitted ones; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=True, timeout=5)
    return done.stdout.strip()
