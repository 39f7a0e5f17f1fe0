"""Write docs/lightning.md from the tables in lit_posttrain/core/supported.py: python tools/lightning_table.py"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lit_posttrain.core import supported
from lit_posttrain.core.supported import Support
from lit_posttrain.core.supported_options import OPTIONS

PAGE = Path(__file__).parent.parent / "docs" / "lightning.md"
_INTRODUCTION = """# What works of Lightning

Written by tools/lightning_table.py from lit_posttrain/core/supported.py; tests/trainer runs every row. A row that is
refused ends the command before training, with one line that says what the row says.
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
    lines = [f"| `{name}` | {'works' if row.works else 'refused'} | {row.says} |" for name, row in rows.items()]
    return "\n".join([f"## {title}", "", "| | | |", "|---|---|---|", *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
