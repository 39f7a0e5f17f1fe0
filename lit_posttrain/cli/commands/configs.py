"""`lit-posttrain configs`: the configs that come with the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from lit_posttrain.cli.commands import call
from lit_posttrain.errors import PostTrainError

HOME = Path(__file__).parents[2] / "configs"


def configs(copy: str | None = None, to: str = ".") -> int:
    """List the ready-made configs, or copy one to edit.

    Args:
        copy: Name of a config, such as sft.yaml, to copy.
        to: Folder or file that it is copied to.
    """
    known = sorted(str(f.relative_to(HOME)) for f in HOME.rglob("*.yaml"))
    if copy is None:
        width = max(map(len, known))
        for name in known:
            purpose = (HOME / name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            print(f"{name:<{width}}  {purpose}")
        print("\nUse one by its name (--config sft.yaml), or copy it: lit-posttrain configs --copy sft.yaml")
        return 0
    name = copy.removeprefix("configs/")
    if name not in known:
        raise PostTrainError(f"--copy {copy}: there is no such config; there are {', '.join(known)}")
    target = Path(to) / Path(name).name if Path(to).is_dir() else Path(to)
    if target.exists():
        raise PostTrainError(f"{target} exists already; name another place with --to")
    shutil.copyfile(HOME / name, target)
    print(f"wrote {target}")
    return 0


def run(args: list[str]) -> int:
    """Entry point."""
    return call(configs, args)
