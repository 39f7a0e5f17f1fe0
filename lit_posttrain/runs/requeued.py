"""Lightning's checkpoints of requeued SLURM jobs: hpc_ckpt_N.ckpt in the Trainer's folder. In a SLURM job `trainer.fit`
without a ckpt_path resumes from the last of them, even if a newer checkpoint is beside it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

ASIDE = ".replaced"
_REQUEUED = re.compile(r"hpc_ckpt_(\d+)\.ckpt")


def requeued(folder: Path) -> Path | None:
    """The last of them in a run's folder; None if there is none."""
    return max(_requeued(folder), default=(0, None))[1]


def _requeued(folder: Path) -> list[tuple[int, Path]]:
    return [(int(name[1]), file) for file in folder.glob("hpc_ckpt_*") if (name := _REQUEUED.fullmatch(file.name))]


def offer_to_lightning(folder: Path) -> None:
    """Make `trainer.fit` without a ckpt_path resume from a folder's last.ckpt, also as it is replaced later, by a link
    with the name that Lightning looks for."""
    last = folder / "last.ckpt"
    number, known = max(_requeued(folder), default=(0, None))
    if last.exists() and not (known is not None and known.exists() and known.samefile(last)):
        (folder / f"hpc_ckpt_{number + 1}.ckpt").symlink_to(last.name)


def set_aside(folder: Path) -> None:
    """Move them to a subfolder, so that Lightning does not resume from them a run that is to begin anew."""
    for file in folder.glob("hpc_ckpt_*"):
        if _REQUEUED.fullmatch(file.name.partition(".shards-")[0]):
            (folder / ASIDE).mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another process of the run was faster
                file.replace(folder / ASIDE / file.name)


def put_back(folder: Path) -> None:
    """Move them back: the run could not begin."""
    for file in folder.glob(f"{ASIDE}/*"):
        with suppress(FileNotFoundError):
            file.replace(folder / file.name)
    with suppress(OSError):
        (folder / ASIDE).rmdir()


def last_state(folder: Path) -> Path | None:
    """The checkpoint of a run with the most optimizer steps: last.ckpt, or Lightning's of a requeued job; best.ckpt if
    there is neither; None if there is none at all.

    Raises:
        PostTrainError: if one of the first two is damaged where there are both.
    """
    last, best, other = folder / "last.ckpt", folder / "best.ckpt", requeued(folder)
    if other is not None and other.exists() and last.exists() and not other.samefile(last):
        from lit_posttrain.runs.checkpoint_shards import read  # imports torch, which `--help` does not wait for

        return other if read(other).get("global_step", 0) > read(last).get("global_step", 0) else last
    return next((file for file in (last, other, best) if file is not None and file.exists()), None)
