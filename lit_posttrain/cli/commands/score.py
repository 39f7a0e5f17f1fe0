"""`lit-posttrain score`: scores of the responses of a file by a reward model, as JSON lines."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from lit_posttrain.cli.commands import LateType, call
from lit_posttrain.cli.commands.rows import prepare, refuse_existing, write
from lit_posttrain.cli.parsing.early import check_data, check_model
from lit_posttrain.data.files.own_format import in_format
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.files.sources import find_sources, read_records
from lit_posttrain.data.rows.votes import Winner
from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.signals import terminable

if TYPE_CHECKING:
    from lit_posttrain.cli.commands.part import Part


def score(
    model: str,
    data: str,
    out: str | None = None,
    batch_size: int = 16,
    columns: Any = None,
    format: str | None = None,
    system: str | None = None,
    benchmark: bool = False,
    label_values: dict[str, Winner] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> int:
    """Score the responses of a file with a reward model; every row comes back with `scores`, in its responses' order.

    Args:
        model: A reward model: a folder that export wrote, a hub name, a run's folder or a .ckpt file.
        data: Rows to score: chosen/rejected, a prompt with a list of responses (as generate writes them), two
            responses to compare, prompt and completion, or messages (scored at the last turn). Files as for fit.
        out: File for the scores. Default: the console. Until all are there they are kept in OUT.part, and the same
            command goes on from it.
        batch_size: Number of rows that are scored together.
        columns: Names of the columns, where they are not recognised; as in --data.columns of fit; labels and ranks
            are read with --benchmark alone.
        format: A function of your own that makes each row one with recognised columns, by its import path, as in
            --data.format of fit. What it returns comes back with the scores.
        system: System prompt put before prompts that bring none; the one that the model was trained with.
        benchmark: Show how often the better response has the higher score, for each value of a column `subset` and
            overall, with 95 % intervals. Rows are preference data; RewardBench and RewardBench 2 are scored as their
            authors do. The rows themselves are written to --out alone.
        label_values: With --benchmark, what the labels of judged pairs mean; as in --data.label_values of fit.
        precision: float32 gives the scores of plain transformers; bfloat16 is faster, and differs in the third digit.
        overwrite: Replace an existing file, and scores in OUT.part that other options gave.
        trust_remote_code: Run Python code that comes with a hub model. Off unless you read that code.
    """
    if label_values and not benchmark:
        raise PostTrainError("--label_values says what labels mean, which are read with --benchmark true alone")
    if batch_size < 1:
        raise PostTrainError(f"--batch_size is {batch_size}; it must be at least 1")
    refuse_existing(out, overwrite)
    check_model(model)
    check_data([data])
    # after what is refused without them: they load torch
    from lit_posttrain.cli.commands.part import Part, model_state
    from lit_posttrain.data.audit.warnings import changed_by_template
    from lit_posttrain.inference.benchmark import Benchmark
    from lit_posttrain.inference.score import ResponseScorer
    from lit_posttrain.runtime import quiet_libraries, tune_allocator

    prepare(out, overwrite)
    quiet_libraries()
    tune_allocator()
    total, expected = 0, Benchmark(columns, label_values) if benchmark else None
    for record in read_records(data, format):
        total += 1
        if expected is not None:
            expected.expect(record)
        if "scores" in record.data and (out is not None or not benchmark):
            where = f"{record.file}:{record.line}"
            raise PostTrainError(f"{where}: has a column `scores` already, which would be lost; rename it")
    if expected is not None:
        expected.check()
    scorer = ResponseScorer(model, batch_size, trust_remote_code, system, precision == "bfloat16", columns, format)
    store, audit = scorer.read(data)
    for file in audit.files:
        for line in [*file.read_as(), *changed_by_template(file)]:
            if not benchmark or line != file.not_used:  # the labels are used, though not for the scores
                print(line, file=sys.stderr)
    made_by = {
        "model": model_state(model, trust_remote_code),
        "data": [source.digest() for source in in_format(find_sources(data), format)],
        "reading": [columns and asdict(columns), system, precision],
    }
    part = Part(out, total, "row", "scored", made_by, overwrite)
    rows = _rows(scorer.scored(data, store, tuple(part.known)), part, batch_size)
    with terminable(), part.until_written(), closing(rows):
        if out is None and benchmark:
            deque(rows, maxlen=0)
        else:
            write(rows, out)
    if expected is not None:
        print("\n".join(expected.report(part.known).lines()))
    if none := total - len(store):
        print(f"{none} of {total} rows have no score (scores is null), see above", file=sys.stderr)
    return 0


def _rows(
    scored: Iterator[tuple[Record, list[float] | None]], part: Part, batch_size: int
) -> Generator[dict[str, Any], None, None]:
    """Yields rows with their scores, which are kept batch by batch."""
    known, fresh = len(part.known), []
    try:
        for number, (record, scores) in enumerate(scored):
            if number >= known:
                fresh.append(scores)
            if len(fresh) == batch_size:
                part.keep(fresh)
                fresh = []
            yield {**record.data, "scores": scores}
    finally:
        part.keep(fresh)


def _columns() -> LateType:
    from lit_posttrain.data.formats.comparisons import PreferenceColumns

    return LateType(PreferenceColumns | None)


def run(args: list[str]) -> int:
    """Entry point."""
    return call(score, args, {"columns": _columns})
