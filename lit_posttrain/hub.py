"""Asks the Hugging Face hub, once and with a short timeout, if a model or data set exists and if a model is adapters.

The hub's own client retries for every file: without a network, a mistyped name took a minute.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from lit_posttrain.errors import first_line

_SECONDS = 5.0
_ADAPTERS = "adapter_config.json"


@cache
def missing_reason(name: str, kind: Literal["model", "dataset"]) -> str | None:
    """Why a model or data set cannot come from the hub; None if it is there, or was downloaded before."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if _fetched(name, kind):
        return None
    if kind == "model" and "/" not in name:
        return "names on the hub have an owner, such as openai-community/gpt2"
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=_SECONDS)
    except RepositoryNotFoundError:
        return f"the hub has no {kind} of that name, or none that you may see (`hf auth login`)"
    except HFValidationError as problem:
        return first_line(problem)
    except Exception as problem:  # a network can fail with many exceptions
        return f"the hub cannot be reached ({first_line(problem)})"
    return None


@cache
def fetched_adapters(name: str) -> Path | None:
    """The folder that a hub repository of adapters is downloaded to; None for a repository with a whole model."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, _ADAPTERS), str):
        if _fetched(name, "model"):
            return None
        files = HfApi().model_info(name, timeout=_SECONDS).siblings or []
        if _ADAPTERS not in {file.rfilename for file in files}:
            return None
    return Path(snapshot_download(name))


def _fetched(name: str, kind: Literal["model", "dataset"]) -> bool:
    from huggingface_hub import constants

    stored = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    if stored.is_dir() and any(stored.iterdir()):
        return True
    if kind == "model":
        return False
    import datasets

    return (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir()
