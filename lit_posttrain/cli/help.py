"""`lit-posttrain fit --help`: every option of a trainer command, with those of its method and data module.

Making a page takes seconds of imports, so it is kept for the next time.
"""

from __future__ import annotations

from lit_posttrain.cli.arguments import bundled_configs, take_option, take_options
from lit_posttrain.cli.main import HELP
from lit_posttrain.cli.parsing.config_file import read_config
from lit_posttrain.cli.parsing.option_tree import keep, kept, kept_tree


def run(args: list[str]) -> int:
    """Print the help of `args[0]`; the other arguments may choose a config, a method and a data module."""
    command = args[0]
    classes = {"model": "SFT", "data": "ConversationData"}
    rest = bundled_configs(["--config" if a == "-c" else a for a in args[1:] if a not in HELP])
    configs, rest = take_options(rest, "--config")
    for config in configs:  # the last one that names a class wins
        written = read_config(config).options
        sections = {name: written.get(name) for name in classes}
        named = {name: s.get("class_path") if isinstance(s, dict) else s for name, s in sections.items()}
        classes |= {name: chosen for name, chosen in named.items() if isinstance(chosen, str)}
    for name in list(classes):
        chosen, rest = take_option(rest, f"--{name}")
        classes[name] = chosen or classes[name]
    tree = kept_tree()
    families = {"model": "method", "data": "data module"}
    known = tree is not None and all(tree.resolve(families[name], chosen) for name, chosen in classes.items())
    kept_name = "-".join([command, *classes.values()])
    page = kept(kept_name) if known else None
    if page is None:
        from lit_posttrain.cli import help_page

        page = help_page.made(command, classes)
        if known:  # pages of classes of one's own may change
            keep(kept_name, page)
    print(page)
    return 0
