"""`lit-posttrain audit`: a report on the data of a config, as it would be trained on."""

from __future__ import annotations

import sys
from pathlib import Path


def run(args: list[str]) -> int:
    """Take the options of `fit`, read and tokenise the data, print the report; `--out FILE` writes it as JSON,
    `--show N` prints the first N rows with their trained tokens marked."""
    from lit_posttrain.cli.arguments import resolve_arguments
    from lit_posttrain.cli.commands.rows import prepare
    from lit_posttrain.cli.training import PostTrainCLI
    from lit_posttrain.data.audit.show import shown
    from lit_posttrain.data.modules.base import TreeData
    from lit_posttrain.data.modules.method import LearnsFromSingles
    from lit_posttrain.data.modules.streamable import StreamableData
    from lit_posttrain.errors import PostTrainError
    from lit_posttrain.runs.atomic import write_text
    from lit_posttrain.runtime import quiet_libraries

    quiet_libraries()
    cli = PostTrainCLI(args=resolve_arguments(args)[1:], run=False, tracking=False)
    out, show, data = cli.option("out"), cli.option("show") or 0, cli.datamodule
    if not isinstance(data, TreeData):
        raise PostTrainError(
            f"--data {type(data).__name__}: audit reads the files of this package's data modules; let it inherit from "
            "one of them, such as PreferenceData"
        )
    if show < 0:
        raise PostTrainError(f"--show {show}: how many rows to show, such as --show 3")
    if show and isinstance(data, StreamableData) and data.streaming:
        raise PostTrainError("--show reads no streams; take it without --data.streaming, of a file with fewer rows")
    paths = [*data.paths, *data.val_paths, *data.test_paths]
    prepare(out, cli.option("overwrite"), paths)
    singles = isinstance(cli.model, LearnsFromSingles)
    data.build(cli.model.tokenizer, cli.model.max_positions, cli.model.layout.tails, cli.model.limited_by, singles)
    print(data.audit.table())
    if out is not None:
        write_text(Path(out), data.audit.to_json())
        print(f"wrote {out}")
    if show:
        for index in range(min(show, len(data.train_store))):
            print(f"\n{shown(data.train_store[index], cli.model.tokenizer, colour=sys.stdout.isatty())}")
    cli.model.check_data(data)  # below the report, which shows what is refused
    return 0
