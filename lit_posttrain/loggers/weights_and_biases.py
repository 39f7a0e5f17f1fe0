"""A Weights & Biases logger that never ends a run: without a key, a network or the package, training continues."""

from __future__ import annotations

import logging
import os
import uuid
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger

from lit_posttrain.runs.atomic import write_text
from lit_posttrain.runs.commit import git_commit
from lit_posttrain.runs.redaction import redacted

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

    A resumed run continues the W&B run whose id is in wandb_id.txt (`keep_run_id`), unless `anew`. A run that cannot
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
    """Save the id of the W&B run in the run's folder, for a resume."""
    write_text(folder / "wandb_id.txt", identity + "\n")


def _run_id(folder: Path, anew: bool) -> str:
    file = folder / "wandb_id.txt"
    return uuid.uuid4().hex[:12] if anew or not file.exists() else file.read_text(encoding="utf-8").strip()
