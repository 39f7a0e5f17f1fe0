"""The audit as plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from textwrap import wrap

from lit_posttrain.data.audit.figures import AuditFigures, Share
from lit_posttrain.data.audit.file_audit import FileAudit
from lit_posttrain.data.audit.warnings import warnings_of

_WIDTH = 100


def table_of(report: AuditFigures) -> str:
    """The audit as plain text, at most 100 columns wide unless names are longer."""
    sections = [
        _block(report, f"first {report.first_rows:,} rows of a stream" if report.first_rows else "training data")
    ]
    if report.mix:
        sections.append(_mix_table(report.mix))
    sections += [_block(of, f"validation: {name}") for name, of in report.validation.items()]
    if warnings := warnings_of(report):
        sections.append("\n".join(["to look at", *(f"  - {line}" for line in warnings)]))
    return "\n\n".join(sections)


def _block(report: AuditFigures, title: str) -> str:
    columns = report.files if len(report.files) == 1 else [*report.files, report.total]
    rows: list[tuple[str, Callable[[FileAudit], str]]] = [
        ("rows read", lambda f: f"{f.rows:,}"),
        (report.kind, lambda f: f"{f.examples:,}"),
        ("dropped", lambda f: f"{f.dropped_count:,}"),
        *((f"  {reason}", _dropped(reason)) for reason in report.total.dropped),
        *_shortened(report),
        ("repeated rows", lambda f: f"{f.duplicates:,}"),
        ("tokens", lambda f: f"{f.tokens:,}"),
        *(_trained() if report.trains else []),
        ("length, mean", lambda f: f"{f.mean:,.1f}"),
        ("length, median", lambda f: f"{f.p50:,}"),
        ("length, 95 %", lambda f: f"{f.p95:,}"),
        ("length, longest", lambda f: f"{f.max:,}"),
    ]
    if report.total.empty_pieces:
        rows.insert(5, ("pieces left out", lambda f: f"{f.empty_pieces:,}"))
    label = max(len(name) for name, _ in rows) + 2
    shown = dict(zip(map(id, columns), _labels([f.name for f in columns]), strict=True))
    lines = [title]
    while columns:
        widths = [max(len(shown[id(f)]), 11) + 2 for f in columns]
        fits = max(sum(1 for total in accumulate(widths, initial=label) if total <= _WIDTH) - 1, 1)
        here, columns = list(zip(columns[:fits], widths, strict=False)), columns[fits:]
        lines.append(" " * label + "".join(shown[id(f)].rjust(w) for f, w in here))
        lines += [name.ljust(label) + "".join(value(f).rjust(w) for f, w in here) for name, value in rows]
    return "\n".join([*lines, *_footnotes(report)])


def _trained() -> list[tuple[str, Callable[[FileAudit], str]]]:
    return [
        ("trained tokens", lambda f: f"{f.trained_tokens:,}"),
        ("trained share", lambda f: f"{f.trained_share:.1%}"),
    ]


def _shortened(report: AuditFigures) -> list[tuple[str, Callable[[FileAudit], str]]]:
    """In comparisons only prompts are cut, at their beginning."""
    if report.compared:
        return [("prompts cut", lambda f: f"{f.cut:,}")]
    return [("cut at the end", lambda f: f"{f.cut:,}"), ("split in pieces", lambda f: f"{f.split:,}")]


def _footnotes(report: AuditFigures) -> list[str]:
    limits = f"max_length {report.max_length}, overlong rows: {report.overlong}"
    notes = [f"trained on: {report.train_on}; {limits}" if report.trains else f"prompts to be answered; {limits}"]
    formats = dict.fromkeys(f.format for f in report.files)
    notes.append("columns: " + ", ".join(formats) + (f", of what {report.read_by} returns" if report.read_by else ""))
    notes += report.compared.lines() if report.compared else []
    if report.pad_is_eos:
        notes.append("pad = eos: yes; end tokens stay trained, padding is told apart by its place")
    else:
        notes.append("pad = eos: no")
    if report.val_fraction:
        notes.append(f"held out for validation: {report.held_out:,} {report.kind}")
    for file in report.files:
        if file.longest:
            longest = ", ".join(f"line {line} ({length:,})" for line, length in file.longest[:3])
            notes.append(f"{file.name}: longest are {longest}")
        for line in file.read_as():
            notes += wrap(line, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return notes


def _mix_table(mix: Sequence[Share]) -> str:
    heads = ("weight", "examples", "an epoch", "share", "of tokens")
    rows = [
        (f"{s.weight:g}", f"{s.examples:,}", f"{s.shown:,}", f"{s.of_examples:.1%}", f"{s.of_tokens:.1%}") for s in mix
    ]
    names = _labels([share.path for share in mix])
    label = max(len(name) for name in ("an epoch's mix", *names)) + 2
    lines = [
        name.ljust(label) + "".join(cell.rjust(15) for cell in cells)
        for name, cells in zip(("an epoch's mix", *names), (heads, *rows), strict=True)
    ]
    return "\n".join(lines)


def _dropped(reason: str) -> Callable[[FileAudit], str]:
    return lambda file: f"{file.dropped[reason].count if reason in file.dropped else 0:,}"


def _labels(names: Sequence[str]) -> list[str]:
    """Short names for column heads: the last part of each path, with its folder if that is ambiguous."""
    parts = [name.rstrip("/").split("/") for name in names]
    last = [p[-1] for p in parts]
    labels = [p[-1] if last.count(p[-1]) == 1 else "/".join(p[-2:]) for p in parts]
    return [label if len(label) <= 24 else "…" + label[-23:] for label in labels]
