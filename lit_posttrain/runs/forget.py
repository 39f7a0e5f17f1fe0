"""Removes the files of an earlier run from a folder in which a new one starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from lit_posttrain.runs.checkpoint_shards import remove
from lit_posttrain.runs.folder import RUN_ID, predictions_in
from lit_posttrain.runs.requeued import ASIDE


def forget_run(folder: Path | str) -> None:
    """Remove the files of an earlier run, so that they are not taken for those of the new one. metrics.csv stays: the
    logger of the new run may have begun one already."""
    place = Path(folder)
    written = ("rewards.jsonl", "reward_examples.jsonl", "rewards.png")
    names = [*written, *(f"validate_{name}" for name in written)]
    names += ["wandb_id.txt", RUN_ID, "audit.json", "samples.jsonl", "completions.jsonl"]
    for file in [*(place / name for name in names), *predictions_in(place)]:
        if file.is_file() or file.is_symlink():
            file.unlink()
    shutil.rmtree(place / ASIDE, ignore_errors=True)
    # last: if another file cannot be removed, the earlier run can still be resumed
    requeued = [file for file in place.glob("hpc_ckpt_*.ckpt") if file.is_file() or file.is_symlink()]
    for checkpoint in [place / "best.ckpt", *requeued, place / "last.ckpt"]:
        remove(checkpoint)
