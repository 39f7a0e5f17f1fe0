"""What is done to the arguments of a trainer command before LightningCLI sees them: `--resume`, bundled configs."""

from __future__ import annotations

from pathlib import Path

from lit_posttrain.errors import PostTrainError


def resolve_arguments(args: list[str]) -> list[str]:
    """Rewrite `--resume NAME` into the run's config and checkpoint, and find bundled configs by name.

    Raises:
        PostTrainError: if the run has nothing to resume from, or a config does not exist.
    """
    args = [_bundled(arg, previous) for previous, arg in zip(["", *args], args, strict=False)]
    name, rest = take_option(args, "--resume")
    if name is None:
        return rest
    runs, _ = take_option(rest, "--runs")
    folder = Path(runs or "runs") / name
    for needed in ("config.yaml", "last.ckpt"):
        if not (folder / needed).exists():
            raise PostTrainError(f"--resume {name}: {folder / needed} does not exist: nothing to go on from")
    own = ["--config", str(folder / "config.yaml"), "--name", name, "--ckpt_path", str(folder / "last.ckpt")]
    return [rest[0], *own, *rest[1:]]


def take_option(args: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of `--option VALUE` or `--option=VALUE` (the last one, None without), and the other arguments.

    Raises:
        PostTrainError: if the option stands at the end, without a value.
    """
    value, rest = None, []
    words = iter(args)
    for word in words:
        if word == option:
            value = next(words, None)
            if value is None:
                raise PostTrainError(f"{option} needs a value")
        elif word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
        else:
            rest.append(word)
    return value, rest


def _bundled(arg: str, previous: str) -> str:
    joined = arg.startswith("--config=")
    if previous != "--config" and not joined:
        return arg
    path = arg.removeprefix("--config=")
    if Path(path).exists():
        return arg
    home = Path(__file__).parent / "configs"
    found = home / path.removeprefix("configs/")
    if not found.is_file():
        known = ", ".join(sorted(str(f.relative_to(home)) for f in home.rglob("*.yaml")))
        raise PostTrainError(f"--config {path}: no such file, and not one of the ready-made configs ({known})")
    return f"--config={found}" if joined else str(found)
