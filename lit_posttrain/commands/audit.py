"""`lit-posttrain audit`: what the data of a config looks like to the trainer."""

from __future__ import annotations

import sys
from pathlib import Path


def run(args: list[str]) -> int:
    """Take the options of `fit`, read and tokenise the data, print the report; `--out FILE` writes it as JSON,
    `--show N` prints the first N rows with their trained tokens marked."""
    from lit_posttrain.arguments import resolve_arguments, take_option
    from lit_posttrain.data.show import shown
    from lit_posttrain.errors import PostTrainError
    from lit_posttrain.runtime import quiet_libraries
    from lit_posttrain.training import PostTrainCLI

    quiet_libraries()
    out, rest = take_option(args, "--out")
    asked, rest = take_option(rest, "--show")
    if asked is not None and not asked.isdecimal():
        raise PostTrainError(f"--show {asked}: how many rows to show, such as --show 3")
    cli = PostTrainCLI(args=resolve_arguments(rest)[1:], run=False, tracking=False)
    cli.datamodule.build(cli.model.tokenizer, cli.model.max_positions, cli.model.layout.tails)
    print(cli.datamodule.audit.table())
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(cli.datamodule.audit.to_json(), encoding="utf-8")
        print(f"wrote {out}")
    if asked is not None:
        if cli.datamodule.streaming:
            raise PostTrainError("--show reads no streams; take it without --data.streaming, of a file with fewer rows")
        store, tokenizer = cli.datamodule.train_store, cli.model.tokenizer
        for index in range(min(int(asked), len(store))):
            print(f"\n{shown(store[index], tokenizer, colour=sys.stdout.isatty())}")
    cli.model.check_data(cli.datamodule)  # below the report, which shows what is refused
    return 0
