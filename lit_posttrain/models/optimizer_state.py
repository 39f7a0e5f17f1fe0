"""An optimizer's state between runs, matched by parameter names, independent of their order and sharding.

torch numbers parameters by their position in the groups. A resumed run may have other groups, or the same in another
order; so groups carry the names of their parameters (`param_names`, torch's own key), by which states are matched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.dtensors import like, unsharded
from lit_posttrain.runs.checkpoint_shards import Shards


def name_parameters(optimizer: Optimizer, module: nn.Module) -> None:
    """Let the optimizer save the names of its parameters, and match a loaded state by them."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in optimizer.param_groups:
        group["param_names"] = [names[id(parameter)] for parameter in group["params"]]
    optimizer.register_load_state_dict_pre_hook(lambda own, state: fitted_state(state, own))


def require_sharded_steps(
    factory: Callable[[list[nn.Parameter]], Optimizer], parameters: Iterable[Tensor], mesh: DeviceMesh
) -> None:
    """Try with a few numbers if the optimizer can step on parameters like these that are sharded over `mesh`.
    Collective.

    Raises:
        PostTrainError: if torch cannot do it.
    """
    kinds = {(p.dim(), p.dtype, p.device) for p in parameters}
    tried = [nn.Parameter(_ones(mesh, *kind)) for kind in sorted(kinds, key=str)]
    optimizer = factory(tried)
    for parameter in tried:
        parameter.grad = torch.ones_like(parameter)
    try:
        optimizer.step()
    except RuntimeError as problem:
        name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        fused = any(group.get("fused") for group in optimizer.param_groups)
        way = "leave `fused` out of --model.optim.options, or take AdamW" if fused else "take AdamW"
        raise PostTrainError(
            f"--model.optim.optimizer {name}: cannot step on parameters that are sharded ({first_line(problem)}); {way}"
        ) from problem


def _ones(mesh: DeviceMesh, dim: int, dtype: torch.dtype, device: torch.device) -> DTensor:
    whole = torch.ones([2 * mesh.size()] * dim, dtype=dtype, device=device)
    return distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)


def fitted_state(saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A saved state as `optimizer.load_state_dict` takes it: numbered, grouped and sharded as its own parameters are.
    If one of the two has no names, parameters are matched by position.

    Raises:
        PostTrainError: if the state belongs to other parameters.
    """
    named = all("param_names" in group for group in [*saved["param_groups"], *optimizer.param_groups])
    homes = {
        name: (group, number)
        for group, names in zip(saved["param_groups"], _names(saved["param_groups"], named), strict=True)
        for name, number in zip(names, group["params"], strict=True)
    }
    own_names = _names(optimizer.param_groups, named)
    _require_same(set(homes), {name for names in own_names for name in names})
    groups: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    number = 0
    for own, names in zip(optimizer.param_groups, own_names, strict=True):
        # the options of the group that its first parameter was in: all of them were in one of its kind
        options = {name: value for name, value in homes[names[0]][0].items() if name not in ("params", "param_names")}
        numbers = list(range(number, number + len(names)))
        groups.append({**options, "params": numbers, **({"param_names": names} if named else {})})
        for name, parameter in zip(names, own["params"], strict=True):
            state = saved["state"].get(homes[name][1], {})
            if state:
                states[number] = {key: _fitted(value, parameter) for key, value in state.items()}
            number += 1
    return {**saved, "state": states, "param_groups": groups}


def _names(groups: list[dict[str, Any]], named: bool) -> list[list[Any]]:
    """The keys of the parameters of each group: their names, or their positions."""
    if named:
        return [group["param_names"] for group in groups]
    places = itertools.count()
    return [[next(places) for _ in group["params"]] for group in groups]


def _require_same(saved: set[Any], own: set[Any]) -> None:
    told = "resume with the same --model.policy (lora, say) as the checkpoint was trained with"
    if lacking := own - saved:
        some = f"{len(lacking)} parameters that are trained now, such as {min(lacking)}"
        raise PostTrainError(f"the checkpoint's optimizer does not know {some}: {told}")
    if more := saved - own:
        some = f"{len(more)} parameters that are not trained now, such as {min(more)}"
        raise PostTrainError(f"the checkpoint's optimizer knows {some}: {told}")


def _fitted(value: Any, parameter: Tensor) -> Any:
    if isinstance(value, DTensor) or not isinstance(value, (Tensor, Shards)):
        return value
    if not isinstance(parameter, DTensor):
        return unsharded(value)
    if value.shape == parameter.shape:
        return like(value, parameter)
    return unsharded(value).clone()  # a number, such as the step; not in the file's memory
