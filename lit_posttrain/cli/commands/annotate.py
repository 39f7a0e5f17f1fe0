"""`lit-posttrain annotate`: a page on which people rank, compare, rate or write responses."""

from __future__ import annotations

import getpass
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lit_posttrain.cli.commands import LateType, call
from lit_posttrain.cli.commands.rows import refuse_existing
from lit_posttrain.cli.parsing.early import check_data
from lit_posttrain.errors import PostTrainError

_NEEDS = ("starlette", "uvicorn", "markdown_it", "nh3")
_NAME = re.compile(r"\w[\w .@+-]{0,39}")


def annotate(
    data: str,
    out: str,
    mode: Literal["rank", "pair", "write", "rate"] = "rank",
    annotators: list[str] | None = None,
    guidelines: str | None = None,
    criteria: list[str] | None = None,
    overlap: float = 0.0,
    gold: str | None = None,
    columns: Any = None,
    format: str | None = None,
    system: str | None = None,
    seed: int = 0,
    host: str = "127.0.0.1",
    port: int = 8765,
) -> int:
    """Open a page on which people rank, compare, rate or write responses; their decisions are preference data.

    Args:
        data: What people see: prompts with several responses, as `generate --n 4` writes them, pairs or rankings (their
            labels are not shown). To rate one response is enough, to write a prompt. Files as for fit.
        out: File of decisions, to which lines are added. The same command goes on from it.
        mode: rank orders all responses, with ties. pair says which of two is better. rate gives each response 1 to 5 on
            every criterion. write asks for the reply itself, from nothing or from a response.
        annotators: Names of the people, each of whom gets a link. Default: you.
        guidelines: Markdown file that is shown beside every item.
        criteria: What responses are rated on, such as '[helpful, honest, harmless]'. Needs --mode rate.
        overlap: How many people beyond the first see an item, on average: 0.2 shows a fifth of the items to two people,
            from which agreement is measured; 1 shows every item to two.
        gold: File of pairs or rankings that are known to be right. Everybody gets them among the others; the statistics
            say who orders them so.
        columns: Names of the columns, where they are not recognised; as in --data.columns of fit, without labels.
        format: A function of your own that makes each row one with recognised columns, by its import path, as in
            --data.format of fit.
        system: System prompt put before prompts that bring none.
        seed: Of the order of items and of the responses to each.
        host: Address of this machine on which the page is served. By default nobody else's machine can reach it.
        port: Port of the page; 0 takes any that is free.
    """
    lacking = [name for name in _NEEDS if find_spec(name) is None]
    if lacking:
        raise PostTrainError(
            f'{lacking[0]} is not installed, which the page needs: pip install "lit-posttrain[feedback]"'
        )
    names = annotators if annotators is not None else [_user()]
    if not names or len(set(names)) < len(names):
        raise PostTrainError("--annotators: name each person once")
    if unfit := [name for name in names if not _NAME.fullmatch(name)]:
        raise PostTrainError(
            f"--annotators: {unfit[0]!r} is no name; use letters, digits, spaces and . @ + - (up to 40)"
        )
    if (mode == "rate") != bool(criteria):
        raise PostTrainError(
            "--mode rate and --criteria go together: say what is rated, as --criteria '[helpful, honest]'"
        )
    if criteria and (len(set(criteria)) < len(criteria) or not all(one.strip() for one in criteria)):
        raise PostTrainError("--criteria: name each criterion once")
    if not 0 <= overlap <= 100:
        raise PostTrainError(
            f"--overlap is {overlap}; it is a number from 0: 0.2 shows a fifth of the items to two people"
        )
    if overlap > len(names) - 1:
        raise PostTrainError(
            f"--overlap {overlap} needs more people than --annotators names ({len(names)}); name more, or lower it"
        )
    if gold is not None and mode not in ("rank", "pair"):
        raise PostTrainError(f"--gold says which response is better, which --mode {mode} does not ask; leave it out")
    if not 0 <= port <= 65535:
        raise PostTrainError(f"--port is {port}; a port is a number from 0 to 65535")
    files = [data, *([gold] if gold is not None else [])]
    check_data(files)
    refuse_existing(out, True, files)  # lines are added to a file that is there, but not to the data
    told = _read(guidelines) if guidelines is not None else ""
    from lit_posttrain.feedback.annotate.answers import Question
    from lit_posttrain.feedback.annotate.render import rendered
    from lit_posttrain.feedback.annotate.serve import serve
    from lit_posttrain.feedback.annotate.tasks import read_tasks

    tasks = read_tasks(data, mode, gold, columns, format, system)
    question = Question(mode, criteria or [], rendered(told) if told.strip() else "")
    serve(tasks, question, out, names, overlap, seed, host, port)
    return 0


def _user() -> str:
    try:
        return re.sub(r"[^\w.@+-]", "-", getpass.getuser())
    except (OSError, KeyError):  # no user of that number
        return "annotator"


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8"
        raise PostTrainError(f"--guidelines {file}: cannot be read ({reason}); name a Markdown file") from problem


def _columns() -> LateType:
    from lit_posttrain.data.formats.comparisons import PreferenceColumns

    return LateType(PreferenceColumns | None)


def run(args: list[str]) -> int:
    """Entry point."""
    return call(annotate, args, {"columns": _columns})
