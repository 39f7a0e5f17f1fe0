"""Checkpoints with tensors that are sharded over processes (DTensor): gather, split into shards, load."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lit_posttrain.runs.checkpoint_shards import Shards, mapped, place_of


def gathered(content: Any, keep: bool) -> Any:
    """The checkpoint with whole tensors on the CPU in place of sharded ones. Collective; ranks that do not `keep` it
    get empty tensors."""

    def whole(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.cpu() if keep else full.new_empty(0)

    return mapped(content, whole)


def taken_apart(content: Any) -> tuple[Any, list[Tensor]]:
    """The checkpoint with numbers in place of the tensors that are sharded along their first dimension, and this rank's
    shards in the order of the numbers. All ranks must call it: tensors that are sharded otherwise are gathered."""
    shards: list[Tensor] = []

    def numbered(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        if not _by_rows(value):
            return value.full_tensor().cpu()
        shards.append(value.to_local().detach().cpu())
        return place_of(len(shards) - 1)

    return mapped(content, numbered), shards


def like(value: Tensor | Shards, target: Tensor) -> Tensor:
    """A tensor of a checkpoint, sharded as `target` is, which has its shape. Every rank reads its own part; none waits
    for another."""
    if not isinstance(target, DTensor):
        return value.whole if isinstance(value, Shards) else value
    device = target.to_local().device
    if not _by_rows(target):
        whole = (value.whole if isinstance(value, Shards) else value).to(device)
        return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
    rows, ranks, rank = target.shape[0], target.device_mesh.size(), target.device_mesh.get_local_rank()
    size = -(-rows // ranks)  # as torch.chunk cuts
    first, last = min(rank * size, rows), min((rank + 1) * size, rows)
    own = value.rows(first, last) if isinstance(value, Shards) else value[first:last].clone()
    assert own.shape == target.to_local().shape
    return DTensor.from_local(
        own.to(device),
        target.device_mesh,
        target.placements,
        run_check=False,
        shape=target.shape,
        stride=target.stride(),
    )


def _by_rows(value: DTensor) -> bool:
    return value.device_mesh.ndim == 1 and tuple(value.placements) == (Shard(0),)


def unsharded(value: Any) -> Any:
    """A tensor itself where it lies on one device, its whole where it is in shards."""
    return value.whole if isinstance(value, Shards) else value
