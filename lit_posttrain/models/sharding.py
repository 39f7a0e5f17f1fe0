"""FSDP2: build a model on the meta device, shard it, and load the weights from rank zero.

The decoder layers are sharded and then the model itself, nothing between: embedding, final norm and LM head stay in
the root group, because a tied or separately sharded head meets mixed Tensor and DTensor operands.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from lit_posttrain.distributed import all_gather_object, together
from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.dtensors import gathered, like, taken_apart
from lit_posttrain.models.optimizer_state import fitted_state
from lit_posttrain.models.policy import Policy, WrappedModel
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.runs.checkpoint_files import require_space, tensor_bytes
from lit_posttrain.runs.checkpoint_shards import new_folder, read, write_index, write_shards

AnyModel = TypeVar("AnyModel", bound=WrappedModel)
_PATIENCE = timedelta(minutes=30)  # as Lightning has it


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy, but all processes are data-parallel and checkpoints are those of other strategies.

    Lightning's "auto" sizes mean tensor-parallel within a node: processes would train on identical data, unsharded. Its
    own checkpoints number the optimizer's parameters in another order than a run on one device, and are not atomic.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = _PATIENCE,
    ) -> None:
        """
        Args:
            save_distributed_checkpoint: Let every process save its own shards in a folder beside last.ckpt, instead of
                gathering weights and optimizer state on the first one, which needs 12 bytes of main memory a parameter.
                Either is written whole or not at all, resumes on any number of processes, and can be exported.
            process_group_backend: How processes talk to each other, such as nccl or gloo. Default: what the device
                wants.
            timeout: How long a process waits for the others.
        """
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
            tensor_parallel_size=1,
        )
        self.save_distributed_checkpoint = save_distributed_checkpoint

    def setup_environment(self) -> None:
        # the world size is known only now; "auto" would be read as the number of nodes
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # Checkpoints: what is sharded stays so until `save_checkpoint`, which all ranks reach, and from `load_checkpoint`
    # on, so that the hooks in between see what they see under any other strategy

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning asks for `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's own, in shards; tied weights are one object."""
        assert self.lightning_module is not None
        tied: dict[int, Tensor] = {}
        named = self.lightning_module.state_dict(keep_vars=True)
        return {name: tied.setdefault(id(value), value.detach()) for name, value in named.items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's own, in shards."""
        return ParallelStrategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write one file, or shards and then the file that names them. Collective.

        Raises:
            PostTrainError: on all ranks, if one of them could not write.
        """
        path = self.broadcast(str(filepath))
        assert self.lightning_module is not None
        trainer, first = self.lightning_module.trainer, self.is_global_zero

        def on_first(work: Callable[[], Any]) -> Any:
            return self.broadcast(together(trainer, lambda: work() if first else None))

        if not self.save_distributed_checkpoint:
            whole = gathered(checkpoint, keep=first)
            on_first(lambda: self.checkpoint_io.save_checkpoint(whole, path, storage_options))
            return
        if "://" in path:
            raise PostTrainError(
                f"{path}: shards go to a folder of this machine; leave save_distributed_checkpoint out"
            )
        index, shards = taken_apart(checkpoint)
        target, needed = Path(path), sum(all_gather_object(tensor_bytes(shards), trainer))

        def begin() -> tuple[str, str]:
            target.parent.mkdir(parents=True, exist_ok=True)
            require_space(target.parent, needed, f"a checkpoint ({target.name})")
            return new_folder(target), secrets.token_hex(8)

        folder, save = on_first(begin)
        together(trainer, lambda: write_shards(shards, target, folder, self.global_rank, save))
        on_first(lambda: write_index(index, target, folder, self.world_size, save))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint of any strategy; its tensors are memory-mapped."""
        path = self.broadcast(str(checkpoint_path))
        if "://" in path:
            return self.checkpoint_io.load_checkpoint(path, weights_only=True)
        return read(Path(path))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every rank its shards of the weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        given = checkpoint["state_dict"]
        state = {name: like(value, own[name]) if name in own else value for name, value in given.items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every rank its shards of the optimizer's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(fitted_state(state, optimizer))


def decoder_layers(policy: WrappedModel) -> nn.ModuleList:
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
    failure: Exception | None = None
    if torch.distributed.get_rank() == 0:
        try:
            whole = build(spec, vocabulary, device_type=device.type)
            full = whole.state_dict()
        except Exception as found:  # whatever it is
            failure, problem = found, [first_line(found)]
    torch.distributed.broadcast_object_list(problem, src=0)  # or the others would wait for weights that never come
    if failure is not None:
        raise failure
    if problem[0] is not None:
        raise PostTrainError(problem[0])
    set_model_state_dict(policy, full, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    _restore_buffers(policy, whole)
    return policy


def _restore_buffers(policy: WrappedModel, whole: WrappedModel | None) -> None:
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
