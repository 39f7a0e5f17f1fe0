"""Finds the checkpoint to export and checks the folder, before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from lit_posttrain.errors import PostTrainError, alternatives
from lit_posttrain.models.paths import find_checkpoint


def check_export(ckpt: str, out: str) -> tuple[Path, Path]:
    """(checkpoint, folder to write).

    Raises:
        PostTrainError: if there is no such checkpoint, or the folder holds something.
    """
    found, target = find_checkpoint(ckpt), Path(out)
    if target.is_symlink():
        target = target.resolve()  # the folder is what is replaced, not the link
    if found is None:
        place = Path(ckpt)
        runs = [str(f.parent) for folder in (place.parent, Path("runs")) for f in folder.glob("*/last.ckpt")]
        runs = [run for run in runs if Path(run).name == place.name] or runs  # the name alone was given
        raise PostTrainError(
            f"--ckpt {ckpt}: neither a .ckpt file nor a run's folder with best.ckpt or last.ckpt; "
            + alternatives(ckpt, runs, "runs there")
        )
    if not found.exists():
        raise PostTrainError(f"{found}: no such checkpoint")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PostTrainError(f"--out {target} exists already and is not empty; choose another folder")
    above = next(place for place in target.absolute().parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise PostTrainError(f"--out {target}: {above} is not a folder that you may write to; choose another folder")
    return found, target
