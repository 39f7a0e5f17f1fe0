"""FSDP2: build a model on the meta device, shard it, and fill in the weights from rank zero.

The decoder layers are sharded and then the model itself, nothing between: embedding, final norm and LM head stay in
the root group, because a tied or separately sharded head meets mixed Tensor and DTensor operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.policy import Backbone, Policy
from lit_posttrain.models.spec import ModelSpec

AnyModel = TypeVar("AnyModel", bound=Backbone)


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy with every process data-parallel.

    Its own "auto" sizes mean tensor-parallel within a node: processes would train on identical data, unsharded.
    """

    def __init__(self, **options: Any) -> None:
        # one file, written atomically like any other checkpoint; Lightning's default is a folder that is not
        options.setdefault("save_distributed_checkpoint", False)
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, **options)

    def setup_environment(self) -> None:
        # the world size is known only now; "auto" would be read as the number of nodes
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def decoder_layers(policy: Backbone) -> nn.ModuleList:
    """The stack of transformer blocks: the longest ModuleList of the decoder."""
    stacks = [m for m in policy.transformer.base_model.modules() if isinstance(m, nn.ModuleList)]
    return max(stacks, key=len)


def build_sharded(
    build: Callable[..., AnyModel], spec: ModelSpec, vocabulary: int, mesh: DeviceMesh, device: torch.device
) -> AnyModel:
    """A model whose parameters are sharded over `mesh`; only rank zero ever holds all weights, on the CPU.

    build: `build_policy` or `build_scorer`.

    Raises:
        PostTrainError: for a quantized base, whose sharded training was seen to diverge from DDP's.
    """
    if spec.quantization:
        raise PostTrainError(
            f"quantization {spec.quantization} and FSDP2 do not go together: losses were seen to diverge from DDP's; "
            "use --trainer.strategy ddp, or LoRA without quantization"
        )
    policy = build(spec, vocabulary, meta=True, device_type=device.type)
    for layer in decoder_layers(policy):
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    if isinstance(policy, Policy):
        register_fsdp_forward_method(policy, "decode")
    policy.to_empty(device=device)
    full: dict[str, Any] = {}
    whole: AnyModel | None = None
    problem: list[str | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            whole = build(spec, vocabulary, device_type=device.type)
            full = whole.state_dict()
        except PostTrainError as found:
            problem = [str(found)]
    torch.distributed.broadcast_object_list(problem, src=0)  # or the others would wait for weights that never come
    if problem[0] is not None:
        raise PostTrainError(problem[0])
    set_model_state_dict(policy, full, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    _restore_buffers(policy, whole)
    return policy


def _restore_buffers(policy: Backbone, whole: Backbone | None) -> None:
    """Buffers outside the state dict (rotary frequencies, embedding scales) are garbage after `to_empty`: take them
    from rank zero's model."""
    saved = set(policy.state_dict().keys())
    fresh = dict(whole.named_buffers()) if whole is not None else {}
    for name, buffer in policy.named_buffers():
        if name in saved:
            continue
        if whole is not None:
            buffer.copy_(fresh[name])
        torch.distributed.broadcast(buffer, src=0)
