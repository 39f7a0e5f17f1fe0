"""Rewrites the arguments of a trainer command before LightningCLI parses them: `--resume`, ready-made configs, and
checkpoints named by their run."""

from __future__ import annotations

import os
from pathlib import Path

from lit_posttrain.cli.parsing.config_file import read_config
from lit_posttrain.cli.parsing.paths import at_home
from lit_posttrain.errors import PostTrainError, alternatives
from lit_posttrain.runs.folder import measured, slurm_name
from lit_posttrain.runs.requeued import last_state


def resolve_arguments(args: list[str]) -> list[str]:
    """Replace `--resume NAME` by the run's config and checkpoint, and names of ready-made configs and of checkpoints by
    their paths.

    args: the command and its options.

    Raises:
        PostTrainError: if the run has nothing to resume from, a config or a checkpoint does not exist, or neither a
            config nor both --model and --data are given.
    """
    command, *rest = args
    if rest and not rest[0].startswith("-"):
        hint = f"did you mean --data.path {rest[0]}?" if Path(rest[0]).exists() else "--help lists the options"
        raise PostTrainError(f"{rest[0]}: every value needs its option's name before it; {hint}")
    rest = bundled_configs(["--config" if word == "-c" else word for word in rest])
    resume, rest = take_option(rest, "--resume")
    configured = _is_configured(rest)
    if resume == "auto":
        resume, rest = _begun(rest, configured)
    if resume is not None:
        return [command, *_resumed(command, resume, rest)]
    if not configured:
        raise PostTrainError(
            f"{command} needs a config, such as --config configs/sft.yaml (`lit-posttrain configs` lists them)"
        )
    checkpoint = chosen(rest, "ckpt_path")
    if checkpoint in (None, "null") or command == "audit":
        return [command, *rest]
    _, others = take_option(rest, "--ckpt_path")
    return [command, *others, "--ckpt_path", str(_checkpoint(command, checkpoint, rest))]


def goes_on_again(args: list[str]) -> bool:
    """True if the same command, started again, resumes its run: with `--resume`, unless from a fixed checkpoint. args:
    as typed.

    Raises:
        PostTrainError: as `take_option`.
    """
    resume, _ = take_option(args, "--resume")
    checkpoint, _ = take_option(args, "--ckpt_path")
    return resume == "auto" or (resume is not None and (checkpoint is None or Path(checkpoint).stem == "last"))


def bundled_configs(args: list[str]) -> list[str]:
    """The arguments with names of ready-made configs replaced by their files.

    Raises:
        PostTrainError: for a config that does not exist.
    """
    return [_bundled(arg, previous) for previous, arg in zip(["", *args], args, strict=False)]


def take_option(args: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of `--option VALUE` or `--option=VALUE` (the last one, None without), and the other arguments.

    Raises:
        PostTrainError: if the option stands at the end, without a value.
    """
    values, rest = take_options(args, option)
    return values[-1] if values else None, rest


def take_options(args: list[str], option: str) -> tuple[list[str], list[str]]:
    """The values of an option that may be given several times, as they were typed, and the other arguments.

    Raises:
        PostTrainError: as `take_option`.
    """
    values, rest = [], []
    words = iter(args)
    for word in words:
        if word == option:
            value = next(words, None)
            if value is None:
                raise PostTrainError(f"{option} needs a value")
            values.append(value)
        elif word.startswith(f"{option}="):
            values.append(word.removeprefix(f"{option}="))
        else:
            rest.append(word)
    return values, rest


def chosen(args: list[str], name: str) -> str | None:
    """The value of an option of the run: the last one, among those that are typed and those in the configs.

    Raises:
        PostTrainError: for a config that cannot be read.
    """
    value = None
    for before, word in zip(["", *args], args, strict=False):
        option, joined, text = word.partition("=")
        if before == "--config" or (option == "--config" and joined):
            written = read_config(word if before == "--config" else text).options
            value = written.get(name, value)
        elif before == f"--{name}" or (option == f"--{name}" and joined):
            value = word if before == f"--{name}" else text
    return None if value is None else str(at_home(value))


def _is_configured(rest: list[str]) -> bool:
    """True if the arguments choose a method and data, or ask something that needs neither."""
    given = {word.split("=")[0] for word in rest}
    asks = any(word.endswith(".help") or word == "--print_config" for word in given)
    return "--config" in given or {"--model", "--data"} <= given or asks


def _begun(rest: list[str], configured: bool) -> tuple[str | None, list[str]]:
    """(name of the run to resume by its saved config, or None; arguments) of `--resume auto`. A command with a config
    of its own begins the run or resumes it by that: after the saved config, options that append to a list would append
    again."""
    name = chosen(rest, "name") or slurm_name()
    if name is None:
        raise PostTrainError("--resume auto: pass --name NAME too, so that the run is found again")
    folder = Path(chosen(rest, "runs") or "runs") / name
    if not configured and not (folder / "config.yaml").exists():
        raise PostTrainError(
            f"--resume auto: there is no run {folder} yet, and to begin it takes a config, such as --config "
            "configs/sft.yaml (`lit-posttrain configs` lists them)"
        )
    if not configured:
        return name, take_option(rest, "--name")[1]
    rest = [*rest, "--name", name]
    if (found := _in_run("fit", folder)) is not None:
        return None, [*rest, "--ckpt_path", str(found)]
    # one that was killed before it saved anything begins anew
    return None, [*rest, "--overwrite", "true"] if measured(folder) else rest


def _resumed(command: str, name: str, rest: list[str]) -> list[str]:
    runs = Path(chosen(rest, "runs") or "runs")
    _, rest = take_option(rest, "--runs")
    given, rest = take_option(rest, "--ckpt_path")
    folder = runs / name
    if not folder.is_dir() and (Path(name) / "config.yaml").exists():  # the run's folder instead of its name
        folder = Path(name)
    if not folder.is_dir():
        known = [place.parent.name for place in runs.glob("*/config.yaml")]
        where = f"runs in {runs.absolute()}"
        raise PostTrainError(
            f"--resume {name}: no such run; {alternatives(name, known, where)}; its folder can be given too"
        )
    if not (folder / "config.yaml").exists():
        raise PostTrainError(f"--resume {name}: {folder / 'config.yaml'} does not exist: nothing to go on from")
    own = ["--config", str(folder / "config.yaml"), "--runs", str(folder.parent), "--name", folder.name]
    if command == "audit":
        return [*own, *rest]
    if given is not None:
        return [*own, "--ckpt_path", str(_checkpoint(command, given, own)), *rest]
    checkpoint = _in_run(command, folder)
    if checkpoint is None:
        raise PostTrainError(
            f"--resume {name}: {folder / 'last.ckpt'} does not exist, the run has saved nothing: begin it anew by its "
            "first command, with --overwrite true or --resume auto"
        )
    return [*own, "--ckpt_path", str(checkpoint), *rest]


def _checkpoint(command: str, value: str, args: list[str]) -> Path | str:
    if value in ("best", "last"):
        name, configs = chosen(args, "name"), take_options(args, "--config")[0]
        folders = [Path(config).parent for config in configs]
        folders += [Path(chosen(args, "runs") or "runs") / name] if name is not None else []
        found = next((f for folder in folders if (f := folder / f"{value}.ckpt").exists()), None)
        if found is None:
            raise PostTrainError(f"--ckpt_path {value}: of which run? Give the file, such as runs/NAME/{value}.ckpt")
        return found
    place = Path(value)
    if "://" in value or value == "hpc" or value.startswith("registry"):
        return value  # Lightning's own words
    if not place.exists():
        beside = [str(f) for f in [*place.parent.glob("*.ckpt"), *place.parent.glob("*/last.ckpt")]]
        raise PostTrainError(f"--ckpt_path {value}: no such file; {alternatives(value, beside, 'checkpoints there')}")
    if not place.is_dir():
        return place
    found = _in_run(command, place)
    if found is None:
        raise PostTrainError(f"--ckpt_path {value}: a folder that holds neither last.ckpt nor best.ckpt")
    return found


def _in_run(command: str, folder: Path) -> Path | None:
    """`fit` resumes from the last state; other commands measure the best one."""
    if command == "fit":
        return last_state(folder)
    return next((file for file in (folder / "best.ckpt", folder / "last.ckpt") if file.exists()), None)


def _bundled(arg: str, previous: str) -> str:
    joined = arg.startswith("--config=")
    if previous != "--config" and not joined:
        return arg
    path = arg.removeprefix("--config=")
    if os.path.exists(path):
        return arg
    home = Path(__file__).parents[1] / "configs"
    found = home / path.removeprefix("configs/")
    if not os.path.isfile(found):
        known = [str(f.relative_to(home)) for f in home.rglob("*.yaml")]
        nearby = [str(f) for f in Path(path).parent.glob("*.yaml")]
        hint = alternatives(path.removeprefix("configs/"), [*known, *nearby], "the ready-made ones")
        raise PostTrainError(f"--config {path}: no such file, and not one of the ready-made configs; {hint}")
    return f"--config={found}" if joined else str(found)
