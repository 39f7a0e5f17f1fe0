"""A GPU that is not there: tensors live on the CPU and say that they are on "cuda".

Code under test creates tensors on that device, moves them there, and takes the branches that it would take on a GPU.
Which tensor lies where is kept per storage. An operator whose tensors lie on both devices, which a CPU computes and a
GPU refuses, is collected in `mixed`, with the line of this package that asked for it.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import lit_posttrain
from lit_posttrain.models import pretrained

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
_PACKAGE = str(Path(lit_posttrain.__file__).resolve().parent)
# what torch.use_deterministic_algorithms refuses on a GPU for numbers that are not integers (torch's own list)
_NOT_DETERMINISTIC = {"aten::cumsum", "aten::cumprod", "aten::histc", "aten::kthvalue", "aten::median", "aten::put_"}
_MAY_MIX = {"aten::copy_", "aten::_to_copy", "aten::set_", "aten::lift_fresh"}
_ABOUT_DEVICES = {"device", "_parse_to"}  # which name devices and make no tensors
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class _Places:
    """Which storages lie on the GPU. They are kept alive, so that no address is given out twice."""

    def __init__(self) -> None:
        self._on_gpu: dict[int, torch.UntypedStorage] = {}
        self._on_cpu: dict[int, torch.UntypedStorage] = {}

    def put(self, tensor: Tensor, gpu: bool) -> Tensor:
        storage = tensor.untyped_storage()
        here, there = (self._on_gpu, self._on_cpu) if gpu else (self._on_cpu, self._on_gpu)
        there.pop(storage._cdata, None)
        here[storage._cdata] = storage
        return tensor

    def knows(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._on_gpu | self._on_cpu

    def gpu(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._on_gpu


class PretendGPU:
    """Used as a context manager around everything that is to run on the GPU.

    mixed: by operator and line of the package, how often tensors of both devices met. not_deterministic: likewise, for
    operators that `--trainer.deterministic true` would refuse on a GPU.
    """

    def __init__(self) -> None:
        self.mixed: Counter[tuple[str, str]] = Counter()
        self.not_deterministic: Counter[tuple[str, str]] = Counter()
        self.places = _Places()
        self.paused = False
        self._modes = (_Operators(self), _Functions(self))

    def __enter__(self) -> PretendGPU:
        self._stack = ExitStack()
        for entered in (*self._patches(), *self._modes):
            self._stack.enter_context(entered)
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.close()

    def _patches(self) -> list[Any]:
        """What the modes do not see, or should not: generators, figures of the device, and how transformers loads."""
        generator, autocast, load = torch.Generator, torch.autocast, pretrained.load_model

        def load_on_cpu(*args: Any) -> Any:
            self.paused = True
            try:
                with CPU:
                    return load(*args)
            finally:
                self.paused = False

        return [
            mock.patch.object(torch, "Generator", side_effect=lambda device="cpu": generator("cpu")),
            mock.patch.object(torch, "autocast", side_effect=lambda _, *how, **more: autocast("cpu", *how, **more)),
            mock.patch.multiple("torch.cuda", synchronize=mock.Mock(), max_memory_allocated=mock.Mock(return_value=0)),
            mock.patch.object(pretrained, "load_model", side_effect=load_on_cpu),
        ]

    def note(self, operator: str, found: Counter[tuple[str, str]]) -> None:
        """Count an operator by the line of the package that is running."""
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(_PACKAGE)]
        where = f"{Path(frames[-1].filename).relative_to(_PACKAGE)}:{frames[-1].lineno}" if frames else "a library"
        found[operator, where] += 1

    def strategy(self) -> SingleDeviceStrategy:
        """For a Trainer that trains on the GPU."""
        return SingleDeviceStrategy(CUDA, accelerator=_Accelerator())


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        assert device == CUDA


class _Functions(TorchFunctionMode):
    """Devices that are named and asked for."""

    def __init__(self, pretend: PretendGPU) -> None:
        super().__init__()
        self.pretend, self.places = pretend, pretend.places

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.pretend.paused or name in _ABOUT_DEVICES:
            return func(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        asked = getattr(func, "__self__", None)
        if first is not None and asked is torch.Tensor.device:
            return CUDA if self.places.gpu(first) else CPU
        if first is not None and asked is torch.Tensor.is_cuda:
            return self.places.gpu(first)
        if name in ("numpy", "__array__") and first is not None and self.places.gpu(first):
            raise TypeError("can't convert a cuda tensor to numpy; use Tensor.cpu() first")
        named = [d for d in (*args, *kwargs.values()) if _is_device(d)]
        if name == "cpu":
            named = [CPU]
        if name in ("cuda",):
            args, named = args[:1], [CUDA]
        result = func(*tree_map(_real, args), **tree_map(_real, kwargs))
        if name == "new_tensor" and not named:
            return self.places.put(result, self.places.gpu(args[0]))
        if not named or not isinstance(result, Tensor):
            return result
        gpu = torch.device(named[-1]).type == "cuda"
        if result is first:
            if self.places.gpu(result) == gpu:
                return result
            result = _like(result)
        elif first is not None and result.untyped_storage()._cdata == first.untyped_storage()._cdata:
            result = result.clone() if self.places.gpu(first) != gpu else result
        return self.places.put(result, gpu)


def _like(tensor: Tensor) -> Tensor:
    """A copy, as a leaf where the original is one."""
    if tensor.is_leaf:
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return tensor.clone()


def _is_device(value: Any) -> bool:
    """A GPU or the CPU; others, such as meta, are left alone."""
    kind = value.type if isinstance(value, torch.device) else value.split(":")[0] if isinstance(value, str) else None
    return kind in ("cuda", "cpu")


def _real(value: Any) -> Any:
    return CPU if _is_device(value) else value


class _Operators(TorchDispatchMode):
    """What is computed from what, autograd's backward included."""

    def __init__(self, pretend: PretendGPU) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.pretend, self.places = pretend, pretend.places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.pretend.paused:
            return func(*args, **kwargs)
        name = func.name().split(".")[0]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        places = {self.places.gpu(t) for t in given if t.dim() > 0}
        if name in _INDEXED:
            # a GPU tensor may be indexed by a CPU index, not a CPU tensor by a GPU index
            indices = [i for i in args[1] if isinstance(i, Tensor)]
            values = [v for v in args[2:3] if isinstance(v, Tensor) and v.dim() > 0]
            places = {self.places.gpu(t) for t in (args[0], *values)}
            places |= {True for i in indices if self.places.gpu(i)}
        if len(places) > 1 and name not in _MAY_MIX:
            self.pretend.note(name, self.pretend.mixed)
        if name in _NOT_DETERMINISTIC and True in places and given[0].is_floating_point():
            self.pretend.note(name, self.pretend.not_deterministic)
        result = func(*args, **kwargs)
        gpu = True in places or (not places and any(self.places.gpu(t) for t in given))
        if name == "aten::_to_copy":
            gpu = self.places.gpu(given[0])
        old = {t.untyped_storage()._cdata for t in given}
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage()._cdata not in old:
                self.places.put(made, gpu)
        return result
