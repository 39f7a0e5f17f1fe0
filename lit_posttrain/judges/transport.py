"""The way from a judge's questions to its model, put together from small layers, each a backend around the next."""

from __future__ import annotations

from pathlib import Path

from lit_posttrain.judges.backend import Backend
from lit_posttrain.judges.budget import Budgeted
from lit_posttrain.judges.cache import Cached
from lit_posttrain.judges.endpoint import Endpoint
from lit_posttrain.judges.limits import Limited
from lit_posttrain.judges.retrying import Retrying
from lit_posttrain.judges.spec import JudgeSpec
from lit_posttrain.judges.usage import Usage
from lit_posttrain.models.paths import cache_root


def layered(model: Backend, spec: JudgeSpec, usage: Usage) -> Backend:
    """A model with the retries, limits, budget and cache of a spec. usage: is counted in.

    What is in the cache costs nothing and waits for nothing. Repeated calls count in limits and budget like others, and
    hold no place while they pause. Of one event loop.

    Raises:
        PostTrainError: the cache cannot be written.
    """
    folder = Path(spec.cache_dir).expanduser() if spec.cache_dir else cache_root() / "judges"
    asked = Limited(Budgeted(model, spec.budget, usage), spec.limits)
    return Cached(Retrying(asked, spec.retries, usage, spec.seed), folder, usage)


def open_backend(spec: JudgeSpec, usage: Usage) -> Backend:
    """The model of a spec, behind its endpoint or in this process, with its layers.

    Raises:
        PostTrainError: the key, a package or the model is missing, or the cache cannot be written.
    """
    if spec.endpoint is not None:
        return layered(Endpoint(spec), spec, usage)
    from lit_posttrain.judges.in_process import InProcess  # loads torch

    return layered(InProcess.of(spec), spec, usage)
