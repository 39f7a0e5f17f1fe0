"""Saves the config, the audit and the ids of a run in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from lit_posttrain.cli.parsing.paths import each_takes_paths, takes_paths
from lit_posttrain.loggers import MetricsCSV, keep_run_id
from lit_posttrain.models.paths import found_from_anywhere
from lit_posttrain.runs.atomic import whole_file, write_text
from lit_posttrain.runs.folder import goes_on, keep_identity
from lit_posttrain.runs.forget import forget_run

_WRITTEN = ("dirpath", "save_dir")  # folders of ModelCheckpoint and loggers, which need not exist yet


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved config, the audit and the run's ids at the first batch: a run that is refused before, such as
    a resume on other data, leaves those of the earlier run as they were."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Do nothing: Lightning would save here, before the checkpoint is read."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save at the first batch."""
        if not self.already_saved and trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")
        self.already_saved = True

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace the files, each in one step: a resumed run may have other options."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not goes_on(folder, trainer.ckpt_path):
            forget_run(folder)
            if not any(isinstance(logger, MetricsCSV) for logger in trainer.loggers):
                (folder / "metrics.csv").unlink(missing_ok=True)
        keep_identity(folder)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and logger.version:
                keep_run_id(folder, logger.version)
        # what began this run must not begin the next one that is made from its config
        config = self.config.clone()
        config["ckpt_path"], config["overwrite"] = None, False
        for section in ("model", "data", "trainer"):
            config[section] = with_absolute_paths(config[section])
        with whole_file(folder / "config.yaml") as part:
            self.parser.save(config, str(part), skip_none=False, overwrite=True, multifile=False)
        audit = getattr(getattr(trainer, "datamodule", None), "audit", None)
        if audit is not None:
            write_text(folder / "audit.json", audit.to_json())


def with_absolute_paths(value: Any, name: str = "") -> Any:
    """A section of a config that can be used from any folder: relative paths to files that exist become absolute, in
    options that take paths. name: the option that `value` belongs to."""
    if isinstance(value, str):
        if name in _WRITTEN and value and "://" not in value:
            return str(Path(value).absolute())
        return found_from_anywhere(value, name) if takes_paths(name) else value
    if isinstance(value, (list, tuple)):
        inner = name if each_takes_paths(name) else ""
        return type(value)(with_absolute_paths(one, inner) for one in value)
    if isinstance(value, (dict, Namespace)):
        for key, one in list(vars(value).items() if isinstance(value, Namespace) else value.items()):
            if key != "columns":  # which are names of columns, not files
                value[key] = with_absolute_paths(one, key)
    return value
