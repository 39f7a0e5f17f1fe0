"""The Trainer's plugin for checkpoint files: checks the disk, then writes whole files or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_posttrain.runs.checkpoint_files import explained_reading, require_space, tensor_bytes
from lit_posttrain.runs.checkpoint_shards import read_whole, remove, write_whole


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and then replaces it in one step, so that a crash leaves the old one.

    Checks for disk space first; scratch files of killed runs are removed. Paths with a scheme (s3://...) are left to
    Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            PostTrainError: if the disk is too full or refuses the file; the file that was at `path` is untouched.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target.parent, tensor_bytes(checkpoint), f"a checkpoint ({target.name})")
        write_whole(checkpoint, target)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read tensors and plain values from `path`; `weights_only` is always on.

        Raises:
            PostTrainError: if there is no such file, it is damaged, or it holds anything else.
        """
        if "://" in str(path):
            with explained_reading(path):
                return super().load_checkpoint(path, map_location, weights_only=True)
        return read_whole(Path(path), mmap=False)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the checkpoint at `path`."""
        if "://" in str(path):
            super().remove_checkpoint(path)
        else:
            remove(Path(path))
