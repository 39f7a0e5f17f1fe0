"""Sampled responses of a rollout with the score of each reward, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from lit_posttrain.callbacks.protocols import ShowsCompletions
from lit_posttrain.callbacks.step_rows import rewrite
from lit_posttrain.trainer_state import dry_run

_WIDTH = 100  # of a text in the console
_CELL = 500  # of a text in a table


def show_completions(trainer: Trainer, method: ShowsCompletions, count: int) -> None:
    """Write `count` responses of the current phase into completions.jsonl and a Weights & Biases table, and print the
    best and the worst. Call it on the first process, at the end of a step."""
    rows = [{"step": trainer.global_step, **row} for row in _spread(method.completions(), count)]
    if not rows:
        return
    if not dry_run(trainer):
        rewrite(Path(trainer.default_root_dir) / "completions.jsonl", trainer.global_step, rows)
    scored = sorted((row for row in rows if row["reward"] is not None), key=lambda row: float(row["reward"]))
    lines = [f"completions at step {trainer.global_step} ({len(rows)} in completions.jsonl):"]
    for name, row in (("best", scored[-1]), ("worst", scored[0])) if scored else ():
        lines.append(f"  {name} {row['reward']:.3g}  {row['source']}")
        lines += [f"    > {_cut(row['prompt'], _WIDTH, end=True)}", f"    < {_cut(row['response'], _WIDTH)}"]
    print("\n".join(lines), flush=True)
    columns = list(rows[0])
    table = [[_cut(v, _CELL) if isinstance(v, str) else v for v in row.values()] for row in rows]
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table("completions", columns=columns, data=table, step=trainer.global_step - 1)


def _spread(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` rows, evenly spread over the phase."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def _cut(text: str, width: int, end: bool = False) -> str:
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    return "... " + line[4 - width :] if end else line[: width - 4] + " ..."
