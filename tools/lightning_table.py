"""Write docs/lightning.md from the tables in lit_posttrain/core/supported.py: python tools/lightning_table.py"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lit_posttrain.core import supported
from lit_posttrain.core.supported import Support
from lit_posttrain.core.supported_options import OPTIONS

PAGE = Path(__file__).parent.parent / "docs" / "lightning.md"
_INTRODUCTION = """# What works of Lightning

Everything that Lightning ships is in one of these tables. What is refused ends the command before training, in one line
with the reason. In short:

- Processes: `--trainer.devices 2` (DDP), `--config configs/with/fsdp2.yaml` (FSDP2); see
  [memory_and_speed.md](memory_and_speed.md#several-processes).
- Checkpoints, resume and SLURM: [checkpoints.md](checkpoints.md).
- A callback or logger is added by its class, with its options below it:

```bash
lit-posttrain fit --config configs/sft.yaml --data.path my.jsonl \\
  --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/loss --data.val_fraction 0.1 --name stopped
```

Written by tools/lightning_table.py from lit_posttrain/core/supported.py; tests/trainer runs every row.
"""
_PARTS: dict[str, Mapping[str, Support]] = {
    "Options of the Trainer": OPTIONS,
    "Callbacks": supported.CALLBACKS,
    "Tuner (in scripts)": supported.TUNER,
    "Loggers": supported.LOGGERS,
    "Profilers": supported.PROFILERS,
    "Strategies": supported.STRATEGIES,
    "Precisions": supported.PRECISIONS,
    "Accelerators": supported.ACCELERATORS,
    "Plugins": supported.PLUGINS,
}


def page() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *(_part(title, rows) for title, rows in _PARTS.items())])


def _part(title: str, rows: Mapping[str, Support]) -> str:
    """A table, first what works; names of which the same is said share a row."""
    names: dict[Support, list[str]] = {}
    for name, row in sorted(rows.items(), key=lambda item: not item[1].works):
        names.setdefault(row, []).append(f"`{name}`")
    lines = [f"| {', '.join(n)} | {'works' if row.works else 'refused'} | {row.says} |" for row, n in names.items()]
    return "\n".join([f"## {title}", "", "| name | | what it does, or why not |", "|---|---|---|", *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
