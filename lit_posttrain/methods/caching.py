"""One pass over a data set that writes down the log-probs of its targets; see data/logprob_cache.py for the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor

from lit_posttrain.data.logprob_cache import LogprobCache, Places, TargetTrees
from lit_posttrain.data.packing import collate
from lit_posttrain.types import RowLayout, TreeBatch

_MARK_EVERY = 20  # batches


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
    if trainer.is_global_zero:
        LogprobCache(root, trees.num_targets, about)
    trainer.strategy.barrier()
    cache = LogprobCache(root, trees.num_targets, about, create=False)
    whole = trees.whole()
    if cache.done < len(whole):
        _fill(cache, whole, logprobs, trainer, layout, max(batch_size, trainer.world_size))
    return cache.checked()


def _fill(
    cache: LogprobCache,
    whole: TargetTrees,
    logprobs: Callable[[TreeBatch], Tensor],
    trainer: Trainer,
    layout: RowLayout,
    batch_size: int,
) -> None:
    begin, first = cache.done, trainer.is_global_zero
    whole.reference = Places()
    shown = first and trainer.progress_bar_callback is not None
    bar = Tqdm(total=len(whole), initial=begin, desc="reference", unit="row", disable=not shown, mininterval=1.0)
    for number, start in enumerate(range(begin, len(whole), batch_size), 1):
        end = min(start + batch_size, len(whole))
        mine = list(range(start + trainer.global_rank, end, trainer.world_size))
        batch = collate([whole[row] for row in mine], layout, {}, mine).to(trainer.strategy.root_device)
        with trainer.precision_plugin.forward_context():
            found = logprobs(batch)
        if batch.reference is not None:
            cache.values[batch.reference.long().cpu().numpy()] = found.float().cpu().numpy()
        if number % _MARK_EVERY == 0 or end == len(whole):
            cache.values.flush()
            trainer.strategy.barrier()  # everybody has written
            if first:
                cache.mark(end)
        bar.update(end - start)
    bar.close()
    trainer.strategy.barrier()
