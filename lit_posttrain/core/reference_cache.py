"""One pass over a data set that writes down the log-probs of its targets; its file: data/store/logprob_cache.py."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor

from lit_posttrain.data.store.logprob_cache import FilePositions, LogprobCache, TargetTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.distributed import all_gather_object, together
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import RowLayout, TreeBatch

log = logging.getLogger(__name__)


def cached_logprobs(
    trees: TargetTrees,
    root: Path,
    about: Mapping[str, str],
    logprobs: Callable[[TreeBatch], Tensor],
    trainer: Trainer,
    layout: RowLayout,
    batch_size: int,
) -> Any:
    """The log-probs of all targets of the file that `trees` belong to; what is missing is computed first.

    about: what they depend on besides the tokens (which cover template and truncation): weights, precision.
    logprobs: gives (N,) of a batch. batch_size: rows a batch over all ranks; every rank calls this.
    """
    about = {**about, "data": trees.identity}
    keeper = trainer.local_rank == 0  # of a node; its disk may be its own
    together(trainer, lambda: LogprobCache(root, trees.num_targets, about) if keeper else None)
    cache = LogprobCache(root, trees.num_targets, about, create=False)
    whole = trees.whole()
    begin = min(all_gather_object(cache.done, trainer))
    if begin < len(whole):
        _fill(cache, whole, begin, logprobs, trainer, layout, max(batch_size, trainer.world_size))
    return cache.checked()


def _fill(
    cache: LogprobCache,
    whole: TargetTrees,
    begin: int,
    logprobs: Callable[[TreeBatch], Tensor],
    trainer: Trainer,
    layout: RowLayout,
    batch_size: int,
) -> None:
    """Compute the rows from `begin` on, those of a batch spread over the ranks, and write them on every node."""
    keeper = trainer.local_rank == 0
    values = cache.writable() if keeper else None
    whole.reference = FilePositions()
    shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
    bar = Tqdm(total=len(whole), initial=begin, desc="reference", unit="row", disable=not shown, mininterval=1.0)
    try:
        for start in range(begin, len(whole), batch_size):
            end = min(start + batch_size, len(whole))
            mine = list(range(start + trainer.global_rank, end, trainer.world_size))
            batch = collate([whole[row] for row in mine], layout, {}, mine).to(trainer.strategy.root_device)
            with trainer.precision_plugin.forward_context():
                found = logprobs(batch).float().cpu()
            given = batch.per_target.get("ref_logprobs")
            places = found.long() if given is None else given.long().cpu()
            for where, what in all_gather_object((places.numpy(), found.numpy()), trainer):
                if np.isnan(what).any():
                    raise PostTrainError(
                        f"the reference gives a log-prob that is no number, in rows {start} to {end - 1}"
                    )
                if values is not None:
                    values[where] = what
            if values is not None:
                values.flush()
                cache.mark(end)
            bar.update(end - start)
    except (KeyboardInterrupt, SystemExit):
        if trainer.is_global_zero:
            told = "the reference's log-probs of %d of %d rows are kept: the same command goes on from there"
            log.warning(told, cache.done, len(whole))
        raise
    finally:
        bar.close()
    trainer.strategy.barrier()
