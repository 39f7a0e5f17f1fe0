"""`lit-posttrain audit`: what the data of a config looks like to the trainer."""

from __future__ import annotations

from pathlib import Path

from lit_posttrain.errors import PostTrainError


def run(args: list[str]) -> int:
    """Take the options of `fit`, read and tokenise the data, print the report; `--out FILE` writes it as JSON."""
    from lit_posttrain.runtime import quiet_libraries
    from lit_posttrain.training import PostTrainCLI, resolve_arguments

    quiet_libraries()
    rest, out = _take_out(args)
    cli = PostTrainCLI(args=resolve_arguments(rest)[1:], run=False, tracking=False)
    cli.datamodule.build(cli.model.tokenizer, cli.model.max_positions)
    print(cli.datamodule.audit.table())
    if out is not None:
        Path(out).write_text(cli.datamodule.audit.to_json(), encoding="utf-8")
        print(f"wrote {out}")
    return 0


def _take_out(args: list[str]) -> tuple[list[str], str | None]:
    if "--out" not in args:
        return args, None
    place = args.index("--out")
    if place + 1 == len(args):
        raise PostTrainError("--out needs the name of a file")
    return args[:place] + args[place + 2 :], args[place + 1]
