"""`lit-posttrain fit --help`: every option of a trainer command, of the method and the data module that it is asked of.

jsonargparse's own help leaves the last two out, since other classes have other options, and begins with pages of usage.
"""

from __future__ import annotations

import re
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import yaml

from lit_posttrain.arguments import bundled_configs, take_option, take_options
from lit_posttrain.runtime import quiet_libraries
from lit_posttrain.training import PostTrainCLI

_OPENING = """usage: lit-posttrain {command} --config CONFIG [OPTIONS]

Ready-made configs, and how to begin:
  --config CONFIG       configs/sft.yaml, with overlays such as a second --config configs/with/lora.yaml;
                        `lit-posttrain configs` lists them. Options given after it win.
"""
_RESUME = "  --resume NAME         Go on with the run of this name (or folder) from its last.ckpt, exactly.\n"
_AUDIT = "  --out FILE            Write the report as JSON too.\n"
# how a section of Lightning's help begins, and what it holds
_TITLES = {
    "options:": "The run:",
    "Customize every aspect": "Lightning's trainer:",
    "Base class of all methods": "Another method:",
    "A DataModule standardizes": "Another data module:",
    "Runs the full optimization": "Checkpoints:",
    "Perform one evaluation epoch": "Checkpoints:",
    "Run inference on your data": "Checkpoints:",
}


def run(args: list[str]) -> int:
    """Print the help of `args[0]`; the other arguments may choose a config, a method and a data module."""
    quiet_libraries()
    command = args[0]
    classes = {"model": "SFT", "data": "ConversationData"}
    rest = bundled_configs([a for a in args[1:] if a not in ("-h", "--help")])
    configs, rest = take_options(rest, "--config")
    for config in configs:  # the last one that names a class wins
        written = yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}
        sections = {name: written.get(name) for name in classes}
        classes |= {name: s["class_path"] for name, s in sections.items() if isinstance(s, dict) and "class_path" in s}
    for name in list(classes):
        chosen, rest = take_option(rest, f"--{name}")
        classes[name] = chosen or classes[name]
    opening = _OPENING.format(command=command) + {"audit": _AUDIT, "fit": _RESUME}.get(command, "")
    pages = [["--model.help", classes["model"]], ["--data.help", classes["data"]], ["--help"]]
    of = "fit" if command == "audit" else command  # it takes the options of `fit`
    print("\n".join([opening, *(_sections(of, page) for page in pages)]))
    return 0


def _sections(command: str, options: list[str]) -> str:
    """What the parser prints, without its usage lines and with titles that say what follows."""
    page = StringIO()
    with redirect_stdout(page), suppress(SystemExit):
        PostTrainCLI(args=[command, *options])
    kept = []
    for section in re.split(r"\n\n+", page.getvalue().strip()):
        title, _, body = section.partition("\n")
        if body.startswith("  -"):  # options, not usage or prose
            known = next((ours for theirs, ours in _TITLES.items() if title.startswith(theirs)), title)
            kept.append(f"{known}\n{body}\n")
    return "\n".join(kept)
