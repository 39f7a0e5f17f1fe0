"""`lit-posttrain judge`: a model judges the responses of a file, as decisions that are preference data."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lit_posttrain.cli.commands import LateType, call
from lit_posttrain.cli.commands.rows import refuse_existing
from lit_posttrain.cli.parsing.early import check_data, check_model
from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.building import check_judge, judge_of
from lit_posttrain.judges.spec import JudgeSpec
from lit_posttrain.runs.signals import run_terminable, terminable

if TYPE_CHECKING:
    from lit_posttrain.data.feedback.item import Item
    from lit_posttrain.judges.runner import Judged
    from lit_posttrain.judges.usage import Usage


def judge_file(
    data: str,
    out: str,
    judge: JudgeSpec,
    columns: Any = None,
    format: str | None = None,
    system: str | None = None,
    retry_failed: bool = False,
) -> int:
    """Let a model judge the responses of a file; every item becomes a decision, which PreferenceData reads as it is.

    Args:
        data: Items to judge: a prompt with a list of responses (as generate writes them), chosen/rejected, or two
            responses to compare. Labels are not looked at. Files as for fit.
        out: File of decisions. Each is appended as soon as it is made; the same command goes on after what is there.
            Several judges may write to one file.
        judge: What judges.
        columns: Names of the columns, where they are not recognised; as in --data.columns of fit, without labels.
        format: A function of your own that makes each row one with recognised columns, by its import path, as in
            --data.format of fit.
        system: System prompt put before prompts that bring none.
        retry_failed: Judge again where an earlier run could not reach a verdict because a call had failed.
    """
    refuse_existing(out, overwrite=True, data=[data])
    check_data([data])
    if judge.endpoint is None:
        check_model(judge.model)
    check_judge(judge)
    # after what is refused without them: they load torch
    from lit_posttrain.data.modules.items import read_items
    from lit_posttrain.judges.runner import Judged
    from lit_posttrain.judges.usage import Usage
    from lit_posttrain.runtime import quiet_libraries, tune_allocator

    quiet_libraries()
    tune_allocator()
    items = read_items(data, columns, format, system, at_least=1 if judge.kind in ("score", "rubric") else 2)
    judged, usage = Judged(), Usage()
    with terminable(), _told(out, len(items), judged, usage):
        run_terminable(_judge(items, out, judge, retry_failed, judged, usage))
    return 0


async def _judge(
    items: Sequence[Item], out: str, spec: JudgeSpec, retry_failed: bool, judged: Judged, usage: Usage
) -> None:
    from tqdm import tqdm

    from lit_posttrain.data.feedback.log import FeedbackLog
    from lit_posttrain.judges.runner import judge_all
    from lit_posttrain.judges.transport import open_backend

    with FeedbackLog(out) as log:  # before a model is loaded, which takes longer than to refuse a file
        judging = judge_of(spec, open_backend(spec, usage))
        try:
            with tqdm(total=len(items), unit="item", disable=None) as bar:  # on a terminal alone
                await judge_all(items, judging, log, spec.limits.concurrency, judged, retry_failed, bar.update)
        finally:
            await judging.close()


@contextmanager
def _told(out: str, total: int, judged: Judged, usage: Usage) -> Iterator[None]:
    """Print what became of the items, also if the block is interrupted; raise what stopped it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        _tell(out, judged, usage)
        print(f"stopped with {judged.ended} of {total} items done; the same command goes on", file=sys.stderr)
        raise
    _tell(out, judged, usage)
    if judged.stopped is not None:
        print(f"stopped with {judged.ended} of {total} items done; the same command goes on", file=sys.stderr)
        raise judged.stopped
    made = judged.outcomes
    if made.total() and not made["verdict"] and not judged.known:
        last = "failed" if made["failed"] else "unparsable"
        raise PostTrainError(f"{out}: no item has a verdict; the decisions there say why ({last}: {judged.error})")


def _tell(out: str, judged: Judged, usage: Usage) -> None:
    for reason, places in judged.left_out.items():
        print(f"{places[0]}: left out, {reason} ({len(places)} in all)", file=sys.stderr)
    made = judged.outcomes
    parts = [f"{made['verdict']} verdicts", f"{made['unparsable']} unparsable", f"{made['failed']} failed"]
    parts += [f"{judged.known} were there already"] if judged.known else []
    print(f"{out}: {', '.join(parts)}")
    print(usage.told())
    if failed := made["failed"] + judged.known_failed:
        print(f"{failed} failed items have no score; --retry_failed true judges them again", file=sys.stderr)


def _columns() -> LateType:
    from lit_posttrain.data.formats.comparisons import PreferenceColumns

    return LateType(PreferenceColumns | None)


def run(args: list[str]) -> int:
    """Entry point."""
    return call(judge_file, args, {"columns": _columns})
