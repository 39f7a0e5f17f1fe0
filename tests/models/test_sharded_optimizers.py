"""Which of torch's optimizers step on sharded parameters is found before training, for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.optimizer_state import require_sharded_steps

STEPS = ["Adadelta", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "SGD", "Adagrad", "Muon"]
FUSED = ["Adam", "AdamW"]
REFUSED = ["Adafactor", "Rprop"]
OTHERS = ["LBFGS", "SparseAdam", "Optimizer"]  # want a closure, sparse gradients; the base class


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    if distributed.is_initialized():  # Lightning leaves that of a test before to the end of the process
        distributed.destroy_process_group()
    meeting = tmp_path_factory.mktemp("mesh") / "meeting"
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def check(mesh: DeviceMesh, name: str, **options: Any) -> None:
    dims = (2,) if name == "Muon" else (1, 2)  # matrices alone
    parameters = [
        nn.Parameter(distribute_tensor(torch.ones([4] * dim), mesh, [Shard(0)], src_data_rank=None)) for dim in dims
    ]
    require_sharded_steps(partial(getattr(torch.optim, name), lr=0.1, **options), parameters, mesh)


def test_every_optimizer_of_torchs_is_known() -> None:
    names = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    assert names == {*STEPS, *REFUSED, *OTHERS}


@pytest.mark.parametrize("name", STEPS)
def test_steps(mesh: DeviceMesh, name: str) -> None:
    check(mesh, name)


@pytest.mark.parametrize("name", FUSED)
def test_steps_fused(mesh: DeviceMesh, name: str) -> None:
    check(mesh, name, fused=True)


@pytest.mark.parametrize("name", REFUSED)
def test_one_line(mesh: DeviceMesh, name: str) -> None:
    with pytest.raises(PostTrainError, match=rf"--model.optim.optimizer \S*{name}: cannot step on .*; take AdamW") as e:
        check(mesh, name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_fused_is_named(mesh: DeviceMesh, name: str) -> None:
    with pytest.raises(PostTrainError, match=r"leave `fused` out of --model\.optim\.options, or take AdamW"):
        check(mesh, name, fused=True)
