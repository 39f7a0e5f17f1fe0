"""The one exception that people are meant to read: what was found, where, and what to do, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn


class PostTrainError(Exception):
    """A mistake in the input or the setup. The command line prints its message without a traceback and exits with 2.

    The message is one line: what was found, where (`file:line` if there is one), and the remedy.
    """


def first_line(problem: BaseException) -> str:
    """What an exception says, in one line: its first, and the next where that one only leads to it."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    text = lines[0] if lines else type(problem).__name__
    for line in lines[1:]:
        if not text.endswith(":"):
            break
        text += f" {line}"
    return f"{text} is not known" if isinstance(problem, KeyError) else text


class UsageError(PostTrainError):
    """What an argument parser found wrong, in its own words; `explained` makes one line of it.

    known: names of options, to suggest one for a mistyped name. classes: by option the names of classes that it takes.
    """

    def __init__(self, message: str, known: Sequence[str], classes: Mapping[str, Sequence[str]]) -> None:
        super().__init__(message)
        self.known, self.classes = known, classes


class OneLineErrors:
    """Mixin for argument parsers: a mistake is raised, instead of printed below the whole usage. Half an option's name
    is a mistake too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UsageError. Parsers of nested options raise it too, and the outer one adds where it was."""
        raise UsageError(str(message), self.option_names(), self.class_names()) from ex

    def option_names(self) -> list[str]:
        """Dotted names to suggest for a mistyped one."""
        return []

    def class_names(self) -> dict[str, list[str]]:
        """By option the names of classes that it takes."""
        return {}


_ANY_CLASS = "give its name, or where to import it from (a.b.Name)"


def buried(problem: BaseException) -> PostTrainError | None:
    """The PostTrainError that a library wrapped in `problem`, as jsonargparse does with those of constructors."""
    seen: BaseException | None = problem
    while seen is not None and not isinstance(seen, PostTrainError):
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return seen


def explained(message: str, known: Sequence[str] = (), classes: Mapping[str, Sequence[str]] | None = None) -> str:
    """A parser's message as one line that names the option. jsonargparse lists every type that a value is not.

    known: dotted option names, of which the likely one is suggested. classes: by option the names of classes that it
    takes.
    """
    text = " ".join(message.split())
    required = re.search(r"arguments are required: ((?:[\w.-]+, )*[\w.-]+)", text)
    if required:
        listed_names = required[1].split(", ")
        lacking = rf"class_path='[\w.]*?(\w+)', init_args=Namespace\([^()]*\b{re.escape(listed_names[0])}=None"
        if owner := re.findall(lacking, text):
            return f"{owner[-1]} needs {' and '.join(listed_names)}; --help says what it means"
        names = [f"--{re.sub(r'^(fit|validate|test|predict)[.]', '', name)}" for name in listed_names]
        return f"{' and '.join(names)}: required; --help says what it means"
    empty = re.match(r"argument (--[\w.]+)\S*: expected", text)
    if empty:
        return f"{empty[1]} needs a value"
    stray = re.search(r"unrecognized arguments: ([^-]\S*|-\d\S*)", text)
    if stray:
        return f"{stray[1]}: every value needs its option's name before it; --help lists the options"
    option = _option(text)
    refused = re.search(r"Option '([^']+)' is not accepted", text) or re.search(r"unrecognized arguments: (\S+)", text)
    if refused and f'key "{refused[1]}"' not in text:  # else one class takes it, and its value is wrong
        typed = refused[1].split("=")[0].lstrip("-") if refused[1].startswith("-") else ""
        option = option or typed
        close = likely(option, known)
        hint = f"did you mean --{close}?" if close else "--help lists the options"
        return f"--{option}: no such option; {hint}"
    # the innermost list of types is that of the option itself
    listed = re.findall(r"Expected an? (.+?)\. Got value", text) or re.findall(r"Subtypes: \[(.+?)\] Errors:", text)
    kinds = (
        [k for k in map(_kind, re.findall(r"[\w.]+\[[^\[\]]+\]|<class '[\w.]+'>", listed[-1])) if k] if listed else []
    )
    value = re.search(r"(?:Got value|Given value): (?!NestedArg)(\S+)", text) or re.search(r"val='([^']*)'", text)
    if option and kinds and value:
        given = value[1].rstrip(",")
        spelled = f"; a list is written '[{given}]'" if "a list" in kinds and not given.startswith("[") else ""
        return f"--{option}: expected {' or '.join(kinds)}, got {given}{spelled}"
    unknown = re.search(r"Expected a dot import path string: (\S+)", text)
    parts = [k for k in known if k.startswith(f"{option}.") and "." in option and ".init_args." not in k]
    if unknown and classes and option in classes:
        return f"--{option} {unknown[1]}: {_class_meant(unknown[1], option, classes)}"
    if unknown and parts:
        return f"--{option} {unknown[1]}: it has options of its own, such as --{parts[0]}"
    if unknown:
        return f"--{option} {unknown[1]}: there is no such class; {_ANY_CLASS}"
    return text


def _class_meant(name: str, option: str, classes: Mapping[str, Sequence[str]]) -> str:
    """What to say of a class that an option does not take."""
    other = next((place for place, names in classes.items() if name in names), None)
    if other is not None:
        return f"that class goes with --{other}; here {', '.join(classes[option])} would do"
    close = difflib.get_close_matches(name, classes[option], n=1, cutoff=0.8)
    return f"there is no such class; {f'did you mean {close[0]}?' if close else _ANY_CLASS}"


def likely(name: str, known: Sequence[str]) -> str | None:
    """The known dotted name that a mistyped or misplaced one stands for: the same last part, else a close spelling."""
    known = [k for k in known if k != name and (name.startswith(_CALLBACK) or not k.startswith(_CALLBACK))]
    last = _ELSEWHERE.get(name.rpartition(".")[2], name.rpartition(".")[2])
    same = [k for k in known if k.rpartition(".")[2] == last]
    if same and all(k.startswith(name.rpartition(".")[0] + ".") for k in same):
        return same[0]  # levels were left out: the most usual option is known first
    if same:
        return difflib.get_close_matches(name, same, n=1, cutoff=0.0)[0]
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    lasts = {k.rpartition(".")[2]: k for k in known}
    part = difflib.get_close_matches(last, lasts, n=1, cutoff=0.75)
    return whole[0] if whole else lasts[part[0]] if part else None


_CALLBACK = "trainer.callbacks."  # whose options are meant only where a callback was named
# what other trainers call the same thing
_ELSEWHERE = {
    "learning_rate": "lr",
    "epochs": "max_epochs",
    "num_train_epochs": "max_epochs",
    "gradient_accumulation_steps": "accumulate_grad_batches",
    "gradient_checkpointing": "checkpointing",
    "max_seq_length": "max_length",
    "train_batch_size": "batch_size",
    "model_name_or_path": "path",
    "output_dir": "runs",
}


def _option(text: str) -> str:
    """The dotted name of the option that a message is about."""
    keys = re.findall(r'[Pp]arser key "([^"]+)"', text)
    nested = re.findall(r"NestedArg\(key='([^']+)'", text)
    return ".".join([*keys[:1], max(nested, key=len) if nested else ".".join(keys[1:])]).rstrip(".")


def _kind(annotation: str) -> str:
    """A type as people call it; empty for None and for classes, which are no values to type."""
    if "Literal[" in annotation:
        return "one of " + ", ".join(re.findall(r"'([^']+)'", annotation))
    if annotation.startswith(("list[", "List[")):
        return "" if "." in annotation else "a list"
    name = re.sub(r"<class '([\w.]+)'>", r"\1", annotation)
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}.get(name, "")
