"""Building a sharded model: what fails where the weights are read reaches the processes that wait for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_posttrain import ModelSpec, PostTrainError
from lit_posttrain.models import sharding
from lit_posttrain.models.loading import build_policy


@pytest.mark.parametrize("failure", [PostTrainError("gone"), MemoryError("full"), OSError("no space"), ValueError("x")])
@pytest.mark.parametrize("rank", [0, 1])
def test_any_failure_of_the_first_process_is_told_to_all(
    rank: int, failure: Exception, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[Any]] = []

    def build(*given: Any, meta: bool = False, **options: Any) -> Any:
        if not meta:
            raise failure
        return build_policy(*given, meta=True, **options)

    def broadcast(problem: list[Any], src: int) -> None:
        if rank == 1:
            problem[0] = str(failure)
        told.append(problem)

    for name in ("fully_shard", "register_fsdp_forward_method"):
        monkeypatch.setattr(sharding, name, lambda *given, **options: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    mesh: Any = None
    with pytest.raises(type(failure) if rank == 0 else PostTrainError, match=str(failure)):
        sharding.build_sharded(build, ModelSpec(str(tiny_model)), 400, mesh, torch.device("cpu"))
    assert told == [[str(failure)]]
