"""`lit-posttrain score`: what a reward model thinks of the responses of a file, as JSON lines."""

from __future__ import annotations

import sys
from typing import Any, Literal

from lit_posttrain.command_line.early import check_data, check_model
from lit_posttrain.commands import call
from lit_posttrain.commands.rows import prepare, refuse_existing, write
from lit_posttrain.data.sources import Record, find_sources
from lit_posttrain.errors import PostTrainError


def score(
    model: str,
    data: str,
    out: str | None = None,
    batch_size: int = 16,
    columns: Any = None,
    system: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> int:
    """Score the responses of a file with a reward model; every row comes back with `scores`, in its responses' order.

    Args:
        model: A reward model: a folder that export wrote, a hub name, a run's folder or a .ckpt file.
        data: Rows to score: chosen/rejected, a prompt with a list of responses (as generate writes them), two
            responses to compare, prompt and completion, or messages (scored at the last turn). Files as for fit.
        out: File for the scores. Default: the console.
        batch_size: How many rows are scored together.
        columns: Names of the columns, where they are not recognised; as in --data.columns of fit, without labels.
        system: System prompt put before prompts that bring none; the one that the model was trained with.
        precision: float32 gives the scores of plain transformers; bfloat16 is faster, and differs in the third digit.
        overwrite: Replace an existing file.
        trust_remote_code: Run Python code that comes with a hub model. Off unless you read that code.
    """
    if batch_size < 1:
        raise PostTrainError(f"--batch_size is {batch_size}; it must be at least 1")
    refuse_existing(out, overwrite)
    check_model(model)
    check_data([data])
    # after what is refused without them: they load torch
    from lit_posttrain.runtime import quiet_libraries, tune_allocator
    from lit_posttrain.scoring import ResponseScorer

    prepare(out, overwrite)
    quiet_libraries()
    tune_allocator()
    for source in find_sources(data):
        _refuse_column(next(source.records()))  # before the work, again
    scorer = ResponseScorer(model, batch_size, trust_remote_code, system, precision == "bfloat16", columns)
    rows = []
    try:
        for record, scores in scorer.score_file(data):
            _refuse_column(record)
            rows.append({**record.data, "scores": scores})
    except PostTrainError as problem:  # the readers know the option by the name it has in training
        raise PostTrainError(str(problem).replace("--data.columns", "--columns")) from None
    write(rows, out)
    if scorer.unscored:
        print(f"without a score (scores is null): {', '.join(scorer.unscored)}", file=sys.stderr)
    return 0


def _refuse_column(record: Record) -> None:
    if "scores" in record.data:
        raise PostTrainError(
            f"{record.file}:{record.line}: has a column `scores` already, which would be lost; rename it"
        )


def _columns() -> Any:
    from lit_posttrain.data.comparisons import PreferenceColumns

    return PreferenceColumns | None


def run(args: list[str]) -> int:
    """Entry point."""
    return call(score, args, {"columns": _columns})
