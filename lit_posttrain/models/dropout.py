"""Switch off the randomness of a model in training: dropout, and noise in routers."""

from __future__ import annotations

from typing import Any

from torch import nn

# by their names in configs and modules: dropout, attn_pdrop, layerdrop, drop_path_rate; a router's jitter_noise
_RANDOM = ("drop", "jitter")
_SAMPLED = "router_jitter_noise"  # PhiMoE: among which experts it samples in training; evaluation reads it too


def without_dropout(model: Any) -> None:
    """Set every dropout rate of a transformers model to 0, and the noise of routers.

    Some models have the rate in a dropout layer, some as a number in a module, some read their config in every forward.
    A router that samples its experts in training routes as in evaluation.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, _SAMPLED):
            module.register_forward_pre_hook(_evaluate)
        _zero(module)
        _zero(getattr(module, "config", None))
    _zero(model.config.get_text_config(decoder=True))


def _evaluate(module: nn.Module, _: Any) -> None:
    module.eval()


def _zero(owner: Any) -> None:
    for name, value in list(vars(owner).items()) if owner is not None else ():
        if isinstance(value, float) and name != _SAMPLED and any(part in name for part in _RANDOM):
            setattr(owner, name, 0.0)
