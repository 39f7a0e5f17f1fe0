"""A YAML file of options with the line of every key, so that errors can name file and line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from lit_posttrain.cli.parsing.values import of_json
from lit_posttrain.errors import PostTrainError

Keys = tuple[str | int, ...]  # where a value stands: names of mappings, positions in lists
Mark = tuple[int, str | None]


@dataclass
class ConfigFile:
    """A config file.

    path: as it was given. options: its mapping. lines: by the keys that lead to a value, the line number. texts: by the
    same keys, the source text of values without quotes.
    """

    path: str
    options: dict[str, Any]
    lines: dict[Keys, int]
    texts: dict[Keys, str]


def read_config(path: str) -> ConfigFile:
    """Read a file of options.

    Raises:
        PostTrainError: for a file that cannot be read, is no YAML, is empty, or is not a mapping of names, each of
            which occurs once.
    """
    text = _text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        options = get_loader("yaml")(text)  # as the parser reads it: 1e-5 is a number, a date is a text
    except yaml.YAMLError as problem:
        raise PostTrainError(_syntax_error(path, text, problem)) from None
    if root is None:
        raise PostTrainError(f"{path}: there is nothing in this file; a config has at least `model:` or `data:`")
    if not isinstance(root, yaml.MappingNode):
        found = "a list" if isinstance(root, yaml.SequenceNode) else f"`{text.splitlines()[_line(root) - 1].strip()}`"
        raise PostTrainError(
            f"{path}:{_line(root)}: expected options, each a name, a colon, a space and a value, got {found}"
        )
    marks = dict(_marks(path, root, ()))
    lines = {(): _line(root)} | {keys: line for keys, (line, _) in marks.items()}
    return ConfigFile(path, options, lines, {keys: text for keys, (_, text) in marks.items() if text is not None})


def _text(path: str) -> str:
    try:
        raw = Path(path).read_bytes()
    except OSError as problem:
        raise PostTrainError(f"{path}: cannot be read ({problem.strerror})") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
        raise PostTrainError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    return of_json(text)


def _marks(path: str, node: yaml.Node, keys: Keys, above: tuple[yaml.Node, ...] = ()) -> Iterator[tuple[Keys, Mark]]:
    """The lines and texts of everything below a node. An alias (`*name`) has those of its anchor."""
    if any(node is other for other in above):
        raise PostTrainError(f"{path}:{_line(node)}: an alias (*) here stands for something that it is part of")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            yield (*keys, place), (_line(item), _bare(item))
            yield from _marks(path, item, (*keys, place), above)
    if not isinstance(node, yaml.MappingNode):
        return
    merges = [value for key, value in node.value if key.tag == _MERGE]  # `<<: *name`; keys beside it win
    for value in merges:
        for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            yield from _marks(path, part, keys, above)
    seen: dict[Any, int] = {}
    for key, value in node.value:
        if key.tag == _MERGE:
            continue
        name = key.value if key.tag == _TEXT else yaml.safe_load(key.value)
        if name in seen:
            raise PostTrainError(
                f"{path}:{_line(key)}: `{name}` stands here a second time (first on line {seen[name]}); keep one"
            )
        seen[name] = _line(key)
        yield (*keys, name), (_line(key), _bare(value))
        yield from _marks(path, value, (*keys, name), above)


_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def _bare(node: yaml.Node) -> str | None:
    return node.value if isinstance(node, yaml.ScalarNode) and node.style is None else None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_error(path: str, text: str, problem: yaml.YAMLError) -> str:
    """An error that is understood without knowing YAML's grammar."""
    said = str(getattr(problem, "problem", None) or getattr(problem, "reason", None) or problem)
    mark = getattr(problem, "problem_mark", None)
    if mark is None:  # a character that YAML does not allow
        before = text[: int(getattr(problem, "position", 0))]
        return f"{path}:{before.count(chr(10)) + 1}: a character that YAML does not allow ({said})"
    began = getattr(problem, "context_mark", None) or mark
    lines = text.splitlines() or [""]
    at, start = min(mark.line, len(lines) - 1), min(began.line, len(lines) - 1)
    line, above = lines[at], max((n for n in range(at) if lines[n].strip()), default=at)
    place = f"{path}:{at + 1}"
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{place}: a tab in the indentation; YAML wants spaces"
    if "undefined alias" in said:
        return f"{place}: {said.removeprefix('found ')}; name it with & before it is used"
    if "could not find expected ':'" in said:
        return f"{path}:{start + 1}: a colon is missing after `{lines[start].strip()}`"
    if "mapping values are not allowed" in said and ":" not in lines[above]:
        return f"{path}:{above + 1}: a colon is missing in `{lines[above].strip()}`"
    if "mapping values are not allowed" in said and ": " in line.replace(": ", "", 1):
        return f"{place}: two colons in `{line.strip()}`; put a value that holds one in quotes"
    if "mapping values are not allowed" in said or "<block end>" in said:
        return f"{place}: `{line.strip()}` is not indented like the lines above it"
    if "end of stream" in said and "quoted" in str(getattr(problem, "context", "")):
        return f"{path}:{start + 1}: a quote is opened and not closed"
    if "',' or" in said:
        return f"{path}:{start + 1}: a bracket is opened and not closed, or a comma is missing"
    if "single document" in str(problem):
        return f"{place}: a second document begins here (---); a config is one"
    return f"{place}: not valid YAML near `{line.strip()}` ({said}); a text with such characters needs quotes"
