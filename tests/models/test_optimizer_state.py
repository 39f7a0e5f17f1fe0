"""An optimizer's state finds its parameters by their names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.optimizer_state import name_parameters


class Net(nn.Module):
    """Parameters a, b (matrices of one shape) and c, of which the first named come first."""

    def __init__(self, names: str = "abc") -> None:
        super().__init__()
        for name in names:
            shape = (3,) if name == "c" else (3, 3)
            self.register_parameter(name, nn.Parameter(torch.full(shape, float(ord(name)))))


def adamw(net: Net, groups: list[str], lr: float = 0.1) -> torch.optim.Optimizer:
    named = dict(net.named_parameters())
    made = [{"params": [named[n] for n in names], "weight_decay": float(i)} for i, names in enumerate(groups)]
    optimizer = torch.optim.AdamW(made, lr=lr)
    name_parameters(optimizer, net)
    return optimizer


def stepped(net: Net, groups: list[str]) -> dict[str, Any]:
    optimizer = adamw(net, groups)
    for name, parameter in net.named_parameters():
        parameter.grad = torch.full_like(parameter, float(ord(name)))
    optimizer.step()
    return copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize("groups", [["ab", "c"], ["c", "ba"], ["ba", "c"], ["b", "a", "c"]])
def test_states_go_to_their_parameters_whatever_the_order(groups: list[str]) -> None:
    saved = stepped(Net(), ["ab", "c"])
    net = Net("cba")
    optimizer = adamw(net, groups, lr=7.0)
    optimizer.load_state_dict(saved)
    for name, parameter in net.named_parameters():
        expected = torch.full_like(parameter, 0.1 * ord(name))
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], expected)
    for group in optimizer.param_groups:
        decay = 1.0 if group["param_names"] == ["c"] else 0.0
        assert (group["lr"], group["weight_decay"]) == (0.1, decay), "options come from the group they were saved in"


def test_without_names_places_count() -> None:
    saved = stepped(Net(), ["ab", "c"])
    for group in saved["param_groups"]:
        del group["param_names"]
    net = Net()
    optimizer = adamw(net, ["ab", "c"])
    optimizer.load_state_dict(saved)
    assert float(optimizer.state[dict(net.named_parameters())["b"]]["exp_avg"].max()) == pytest.approx(0.1 * ord("b"))


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ("ab", "abc", "does not know 1 parameters that are trained now, such as c"),
        ("abc", "ab", "not trained now, such as c"),
    ],
)
def test_other_parameters_are_one_line(before: str, now: str, told: str) -> None:
    saved = stepped(Net(before), [before])
    with pytest.raises(PostTrainError, match=told):
        adamw(Net(now), [now]).load_state_dict(saved)


def test_nothing_has_been_stepped_yet() -> None:
    saved = adamw(Net(), ["ab", "c"]).state_dict()
    optimizer = adamw(Net("cba"), ["c", "ab"])
    optimizer.load_state_dict(saved)
    assert not optimizer.state
