"""What a person should look at before training, a line each."""

from __future__ import annotations

from lit_posttrain.data.audit.figures import AuditFigures
from lit_posttrain.data.audit.file_audit import FileAudit, rows_of
from lit_posttrain.data.rows.beside import HISTORY, SYSTEM_COLUMNS, THOUGHT_COLUMNS, TOOL_COLUMNS, VARIABLES
from lit_posttrain.data.rows.kinds import INPUT
from lit_posttrain.data.rows.message_keys import REASONING


def warnings_of(audit: AuditFigures) -> list[str]:
    """All warnings of an audit and of those of its validation sets."""
    found = [*audit.left_out, *_about_ends(audit)]
    for file in audit.files:
        found += [*changed_by_template(file), *_about_columns(file), *_about_generation(file, audit.remedy)]
    found += _about_rows(audit)
    if audit.dated_template:
        found.append(
            f"the chat template writes the date of tokenisation ({audit.dated_template}) into prompts, and at "
            "inference the date of that day; a fixed date is safer"
        )
    for name, other in audit.validation.items():
        found += [f"{name}: {line}" for line in warnings_of(other)]
        if other.in_training:
            found.append(
                f"{name}: {other.in_training:,} of {rows_of(other.total.examples)} also in the training data; "
                "remove them from one side"
            )
    if audit.val_fraction and not audit.held_out:
        found.append(
            f"val_fraction {audit.val_fraction:g} holds out none of {rows_of(audit.total.examples)}; raise it, or give "
            "val_path"
        )
    found += _about_mix(audit)
    if audit.compared and (line := audit.compared.one_sided):
        found.append(f"of the first {audit.first_rows:,} rows {line}" if audit.first_rows else line)
    return found


def _about_ends(audit: AuditFigures) -> list[str]:
    turns, open_ended = sum(audit.ends.values()), audit.ends.get("", 0)
    if not audit.chat_template or not turns:
        return []
    if open_ended == turns:
        return [
            "no trained turn ends with an end-of-sequence token: the model would never learn to stop; have the "
            f"chat template end answers with {audit.eos!r}, or name the end token with --model.policy.eos (and add it "
            "with --model.policy.special_tokens if the tokenizer lacks it)"
        ]
    found = [f"{open_ended} of {turns} trained turns end without an end token"] if open_ended else []
    if audit.eos not in audit.ends:
        closing = ", ".join(repr(token) for token in audit.ends if token)
        found.append(
            f"turns end with {closing}, not with the tokenizer's eos {audit.eos!r}: generation stops at both, unless "
            "--model.policy.eos names one"
        )
    return found


def changed_by_template(file: FileAudit) -> list[str]:
    """What the tokenizer and the chat template do to rows that their authors did not write."""
    found = []
    if file.control.count:
        where = file.where(file.control)
        found.append(
            f"{rows_of(file.control.count)} with special tokens in the text ({where}); the tokenizer encodes them as "
            "such"
        )
    if ignored := _ignored(file):
        told = ", ".join(f"{name} ({rows_of(file.unread[name].count)})" for name in ignored)
        found.append(f"{file.name}: the chat template has no place for {told}: the model never sees it")
    if file.altered.count:
        found.append(
            f"the chat template changes or leaves out words of {rows_of(file.altered.count)} "
            f"({file.where(file.altered)})"
        )
    for what, tally in file.lost.items():
        if not _has_no_place(file, what):
            named = what if what.startswith("turn ") else f"the {what}"
            found.append(f"the chat template leaves out {named} of {rows_of(tally.count)} ({file.where(tally)})")
    return found


def _ignored(file: FileAudit) -> list[str]:
    """Unused columns and keys that are meant for the model, and for which the chat template has no place."""
    begins = ("chat_template_kwargs.", *(f"message.{key}" for key in REASONING))
    whole = ("tools", "message.tool_calls")
    return [name for name in file.unread if name in whole or name.startswith(begins)]


def _has_no_place(file: FileAudit, what: str) -> bool:
    """True if the template leaves this out of every row, which `_ignored` lists."""
    ignored = _ignored(file)
    if what == "tools":
        return "tools" in ignored
    return what == "thoughts" and any(f"message.{key}" in ignored for key in REASONING)


def _about_columns(file: FileAudit) -> list[str]:
    """Columns that are part of the prompt in other rows, and are not used in some."""
    beside = (*SYSTEM_COLUMNS, *TOOL_COLUMNS, HISTORY, VARIABLES, *THOUGHT_COLUMNS)
    names = (*beside, *INPUT) if "/" in file.format else beside  # a conversation has no input
    ignored = _ignored(file)
    return [
        f"`{name}` is not used in {rows_of(tally.count)} ({file.where(tally)}): the model never sees it"
        for name in names
        if (tally := file.unread.get(name)) is not None and name not in ignored
    ]


def _about_generation(file: FileAudit, remedy: str) -> list[str]:
    if not file.generated.count:
        return []
    return [
        f"in {rows_of(file.generated.count)} ({file.where(file.generated)}) the generation prompt is not a prefix of "
        "the rendered conversation; they are trained as generated: generation prompt, answer, end token"
        + (f"; {remedy}" if remedy else "")
    ]


def _about_rows(audit: AuditFigures) -> list[str]:
    found, total = [], audit.total
    if total.duplicates:
        places = "; ".join(file.where(file.repeated) for file in audit.files if file.repeated.count)
        found.append(f"{total.duplicates:,} of {rows_of(total.rows)} repeat an earlier row ({places})")
    if total.opened.count:
        found.append(
            f"the chat template adds a system prompt of its own to {rows_of(total.opened.count)}, "
            f"{audit.own_prompt_tokens} tokens each ({audit.own_prompt!r}); --data.system_prompt sets another"
        )
    if total.unanswered:
        found.append(f"{rows_of(total.unanswered)} with turns at the end without an answer; those turns are left out")
    if total.rewritten:
        found.append(f"the chat template rewrites earlier turns: {rows_of(total.rewritten)} trained turn by turn")
    overlong = sum(t.count for reason, t in total.dropped.items() if "max_length" in reason)
    if total.rows and overlong > 0.05 * total.rows:
        found.append(
            f"{overlong:,} of {rows_of(total.rows)} longer than max_length {audit.max_length}; "
            f"{audit.for_longer_rows}, or pass --data.overlong {'cut_prompt' if audit.compared else 'cut or split'}"
        )
    if audit.trains and total.tokens and total.trained_share < 0.02:
        found.append(f"only {total.trained_share:.1%} of the tokens are trained on")
    return found


def _about_mix(audit: AuditFigures) -> list[str]:
    """Weights that look like sampling probabilities, which they are in other tools."""
    mix = audit.mix
    meant = [share.weight for share in mix]
    alike = all(abs(share.weight - share.of_examples) < 0.02 for share in mix)
    if len(meant) < 2 or abs(sum(meant) - 1) > 1e-6 or alike or not all(share.examples for share in mix):
        return []
    most = min(share.examples / share.weight for share in mix if share.weight)
    right = ", ".join(f"{share.weight * most / share.examples:.3g}" for share in mix)
    shares = ", ".join(f"{share.of_examples:.1%}" for share in mix)
    wanted = ", ".join(f"{weight:.1%}" for weight in meant)
    return [
        f"weights multiply each source's rows: these add up to 1 and make shares of {shares}; for shares of {wanted} "
        f"pass --data.weights '[{right}]'"
    ]
