"""Constitutions: the principles that a judge compares by, and that `revise` criticises and rewrites by.

Two forms of file are read, as YAML or JSON: the project's own, {"principles": [...]} with a text or name, prefer,
critique and revision for each; and the one that is common for constitutional data, {"constitutions": [{"critic",
"revision"}], "system_chat": [conversations that show how it is done]}.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.messages import as_messages
from lit_posttrain.errors import PostTrainError, first_line

_KEYS = ("name", "prefer", "critique", "revision")


@dataclass(frozen=True)
class Principle:
    """One principle. prefer: completes "Prefer the response that ...". critique, revision: requests to a model that is
    shown a response, and for the revision its own critique too."""

    name: str
    prefer: str
    critique: str
    revision: str


@dataclass(frozen=True)
class Constitution:
    """Principles in the file's order. examples: conversations that show a model how critiques and revisions are done;
    each is a list of messages. hash: of all of it."""

    principles: tuple[Principle, ...]
    examples: tuple[tuple[Mapping[str, Any], ...], ...] = ()

    @property
    def hash(self) -> str:
        """Changes with every word of it."""
        told = [[vars(one) for one in self.principles], [list(map(dict, talk)) for talk in self.examples]]
        return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()

    def drawn(self, count: int, *key: object) -> list[Principle]:
        """`count` different principles (all of them if there are fewer), drawn by a seed that `key` makes: the same key
        draws the same ones, in whatever order items are judged."""
        seed = hashlib.blake2b(json.dumps(key, sort_keys=True, default=str).encode(), digest_size=8).digest()
        chosen = random.Random(int.from_bytes(seed)).sample(self.principles, min(count, len(self.principles)))
        return list(chosen)


def read_constitution(path: str | None = None) -> Constitution:
    """The constitution of a YAML or JSON file; None is the project's own.

    Raises:
        PostTrainError: there is no such file, or it is not a constitution.
    """
    if path is None:
        return _constitution(yaml.safe_load((files("lit_posttrain.judges") / "constitution.yaml").read_text()), "")
    return _constitution(read_settings(path, "constitution"), path)


def read_settings(path: str, what: str) -> Any:
    """The content of a YAML or JSON file; `what` names it in errors.

    Raises:
        PostTrainError: there is no such file, or it is neither YAML nor JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except OSError as problem:
        raise PostTrainError(f"{path}: the {what} cannot be read ({problem.strerror}); name a file") from problem
    except (yaml.YAMLError, ValueError) as problem:
        raise PostTrainError(f"{path}: the {what} is neither YAML nor JSON ({first_line(problem)})") from problem


def _constitution(content: Any, where: str) -> Constitution:
    told = content if isinstance(content, dict) else {"principles": content}
    found = told.get("principles", told.get("constitutions"))
    if not isinstance(found, list) or not found:
        raise PostTrainError(
            f"{where}: a constitution has a list `principles` of texts, or `constitutions` of objects with critic and "
            "revision, with one entry at least"
        )
    principles = tuple(_principle(one, f"{where}: principle {number}", number) for number, one in enumerate(found, 1))
    names = [one.name for one in principles]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PostTrainError(f"{where}: two principles are called {min(twice)}; give each a name of its own")
    return Constitution(principles, _examples(told.get("system_chat", []), where))


def _principle(told: Any, where: str, number: int) -> Principle:
    """A principle from a text, the project's form, or critic and revision."""
    if isinstance(told, str) and told.strip():
        text = told.strip().rstrip(".")
        return Principle(
            f"principle {number}",
            f"follows this principle better: {text}",
            f"Say where the response does not follow this principle: {text}.",
            f"Rewrite the response so that it follows this principle: {text}.",
        )
    if not isinstance(told, dict) or not all(isinstance(value, str) and value.strip() for value in told.values()):
        raise PostTrainError(f"{where} is neither a text nor an object of texts")
    given = {name: " ".join(value.split()) for name, value in told.items()}
    given.setdefault("name", f"principle {number}")
    if {"critic", "revision"} <= set(given):
        given["critique"] = given.pop("critic")
        given.setdefault("prefer", f"would come off better if somebody were told: {given['critique']}")
    if lacking := [name for name in _KEYS if name not in given]:
        raise PostTrainError(f"{where} lacks {', '.join(lacking)}; one has {', '.join(_KEYS)}, or critic and revision")
    if unknown := sorted(set(given) - set(_KEYS)):
        raise PostTrainError(f"{where} has {', '.join(unknown)}, which is not known; remove it")
    return Principle(**given)


def _examples(told: Any, where: str) -> tuple[tuple[Mapping[str, Any], ...], ...]:
    talks = [told] if isinstance(told, Sequence) and told and isinstance(told[0], dict) else told or []
    try:
        return tuple(tuple(as_messages(talk, f"system_chat[{number}]")) for number, talk in enumerate(talks))
    except BadRow as problem:
        raise PostTrainError(f"{where}: {problem}") from problem
