"""Checks values with the parser itself, protects texts from being read twice, and describes what an option takes."""

from __future__ import annotations

import json
import math
import re
from copy import deepcopy
from functools import cache
from typing import Any, Literal, get_args

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader

from lit_posttrain.cli.parsing.option_tree import Option
from lit_posttrain.cli.parsing.spelling import close_name

_NULLS = ("null", "Null", "NULL", "~")
_MARK = "\ue000"  # for private use: no text of anyone begins with it
_TWO_ESCAPES = re.compile(r"(?<!\\)((?:\\\\)*)(\\u[dD][89abAB]..\\u[dD][c-fC-F]..)")
_UNPRINTED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_CALLED = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "None": "null"}


def as_typed(text: str, option: Option) -> Any:
    """The value that a text of the command line means: null, a list or a mapping where the option takes one, else the
    text itself, of which the parser makes numbers and the like. A text that looks like one of those is put in quotes:
    '"null"'."""
    loaded = _loaded(text)
    if isinstance(loaded, str) and text[:1] in ("'", '"') and _misread(loaded, option):
        return loaded
    if loaded is None:
        takes_null = "None" in option.hint or option.family  # a class is not called null
        return None if takes_null and text.strip() in _NULLS else text
    takes_lists = "list[" in option.hint or "tuple[" in option.hint or option.many
    takes_mappings = "dict[" in option.hint or bool(option.group or option.family)
    if isinstance(loaded, list) and "list[str]" in option.hint:
        written = yaml.load(text, Loader=yaml.BaseLoader)  # as texts, which YAML else takes for truth or numbers
        return [w if isinstance(v, (bool, int, float)) else v for v, w in zip(loaded, written, strict=True)]
    if (isinstance(loaded, list) and takes_lists) or (isinstance(loaded, dict) and takes_mappings):
        return loaded
    return loaded if isinstance(loaded, bool) and option.family and "bool" in option.hint else text


def protected(value: Any, option: Option) -> Any:
    """A value that the parser will read as it was meant: it reads texts in configs once more, and "null" would become
    null. Numbers that JSON lacks become texts, which the parser reads as numbers again."""
    if isinstance(value, str):
        return f"{_MARK}{value}" if _misread(value, option) else value
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, list):
        return [protected(item, option) for item in value]
    return {key: protected(item, option) for key, item in value.items()} if isinstance(value, dict) else value


def guarded(config: Any) -> Any:
    """A copy of a parsed config for the parser to build from, protected because it reads texts in mappings again."""
    if isinstance(config, Namespace):
        copy = config.clone()
        for key, value in vars(config).items():
            copy[key] = guarded(value)
        return copy
    if isinstance(config, list):
        return [guarded(value) for value in config]
    return protected(config, Option("dict[str, Any]")) if isinstance(config, dict) else config


def as_json(value: Any) -> str:
    """A value as JSON that YAML's reader takes too: it does not know the two escapes that JSON has for one character,
    such as an emoji, and wants escapes for those that it does not print."""
    return _UNPRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def as_yaml(value: Any) -> str:
    """A config as YAML in which every text stays a text when it is read."""
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=10**9)


class _Writer(yaml.SafeDumper):
    """Quotes texts that the parser's YAML reader, which is not PyYAML's, would take for something else."""


_Writer.add_representer(
    str,
    lambda writer, text: writer.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if isinstance(_loaded(text), str) else "'"
    ),
)


def of_json(text: str) -> str:
    """A text for YAML's reader, which knows what JSON writes but for the two escapes of one character."""
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return text
    return _TWO_ESCAPES.sub(lambda found: found[1] + str(json.loads(f'"{found[2]}"')), text)


def plain(config: Any) -> Any:
    """A parsed config with the texts as they were before `protected`; namespaces are changed in place."""
    if isinstance(config, str):
        return config.removeprefix(_MARK)
    if isinstance(config, list):
        return [plain(item) for item in config]
    if isinstance(config, (dict, Namespace)):
        for key, value in list(vars(config).items() if isinstance(config, Namespace) else config.items()):
            config[key] = plain(value)
    return config


def same_value(typed: Any, written: Any) -> bool:
    """True if a value of the command line, of which numbers are still texts, is one of a file."""
    return bool(typed == written or (isinstance(typed, str) and _loaded(typed) == written))


def _misread(text: str, option: Option) -> bool:
    """True if the parser would read a text as something else."""
    loaded = _loaded(text)
    if "dict[str, Any]" in option.hint:
        return not isinstance(loaded, str)
    lists = isinstance(loaded, list) and "list[" in option.hint
    return "str" in option.hint and ((loaded is None and "None" in option.hint) or lists)


def accepts(value: Any, option: Option) -> bool:
    """True if the parser accepts a value for the option's type."""
    if not option.hint:
        return not (option.group or option.family)
    try:
        _parser(option.hint).parse_object({"value": deepcopy(value)})  # it changes mappings in place
    except ArgumentError:
        return False
    return True


def mismatch(value: Any, option: Option, in_file: bool) -> str | None:
    """The error for a value that was typed or is in a file; None if the option takes it."""
    if accepts(value, option):
        return None
    kinds = expected(option)
    told = f"expected {kinds}, got {describe(value)}"
    if "list[" in option.hint and isinstance(value, (str, int, float)):
        written = f"[{value}]" if in_file else f"'[{value}]'"
        return f"{told}; a list is written {written}"
    meant = close_name(str(value), choices_of(option))
    return f"{told}; did you mean {meant}?" if meant else told


def expected(option: Option) -> str:
    """What an option takes, in words."""
    words = [] if not option.group else ["options, each a name and a value"]
    if choices := choices_of(option):
        words.append("one of " + ", ".join(choices))
    for part in option.hint.split(" | ") if option.hint else ():
        if part.startswith("Literal["):
            continue
        if part.startswith(("list[", "tuple[")):
            words.append("a list")
        elif part.startswith("dict["):
            words.append("a mapping")
        else:
            words.append(_CALLED.get(part, part))
    return " or ".join(dict.fromkeys(words))


def choices_of(option: Option) -> list[str]:
    """The values of an option that takes only certain ones, as they are written."""
    parts = [part for part in option.hint.split(" | ") if part.startswith("Literal[")]
    return list(dict.fromkeys(str(choice) for part in parts for choice in get_args(type_of(part))))


def describe(value: Any) -> str:
    """A value as an error shows it."""
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return f"{'a list' if isinstance(value, list) else 'a mapping'} ({str(value)[:60]})"
    return str(value).lower() if isinstance(value, bool) else str(value) or "an empty text"


def type_of(hint: str) -> Any:
    """The type of an option's hint."""
    return eval(hint, {"Literal": Literal, "Any": Any}) or type(None)


@cache
def _parser(hint: str) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=type_of(hint))
    return parser


def _loaded(text: str) -> Any:
    try:
        return get_loader("yaml")(of_json(text)) if text.strip() else text
    except yaml.YAMLError:
        return text
