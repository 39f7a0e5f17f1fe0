"""Copies of configs without secrets, to be logged or saved."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

_HIDDEN = "***"
# ends of names that hold a secret and nothing else
_SECRET = re.compile(
    r"((^|[_\-.])(access|api|auth|hf|hub|private|secret)[_\-.]?(key|token)"
    r"|apikey|passphrase|passwd|password|secret|credential)s?$"
)
# and of those that may hold one (`key`, `judge_token`), with first words of names that do not (`eos_token`)
_PERHAPS = re.compile(r"(^|[_\-.])(token|key)$")
_HARMLESS = re.compile(r"(^|\.)(eos|bos|pad|unk|sep|cls|mask|image|special|stop|end|primary|sort|group)[_\-.]")
# `judge_keys` may hold secrets as `label_keys` holds words: those that look like secrets are
_SEVERAL, _LOOKS_SECRET = re.compile(r"(token|key)s$"), re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w\-.+/=]{20,}")
_CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SHORTEST_SECRET = 8
_DIGITS = 4  # hexadecimal: enough to tell two values apart, and too few to find a secret by


def redacted(value: Any, name: str = "") -> Any:
    """A copy of a config without secrets: without the values of options that are named like one (`hf_token`), the
    credentials in URLs, and, anywhere, the values of environment variables that are named like one."""
    return _without(value, name, lambda hidden: _HIDDEN)


def comparable(value: Any, name: str = "") -> Any:
    """As `redacted`, for values that are compared later. A value that may be a secret or an ordinary option (`key`)
    keeps a few digits of its hash, so that two can be told apart. Values that are certainly secrets (`api_key`) all
    become the same: a secret may be replaced between two parts of a run, and decides nothing."""
    return _without(value, name, lambda hidden: f"{_HIDDEN} ({_digest(hidden)})")


def _without(value: Any, name: str, perhaps: Callable[[Any], str]) -> Any:
    """perhaps: the replacement for a value that may be a secret."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if value is None or isinstance(value, bool):
        return value
    if _SECRET.search(snake):
        return _HIDDEN
    if isinstance(value, Mapping):
        return {str(key): _without(item, str(key), perhaps) for key, item in value.items()}
    if isinstance(value, (str, list, tuple)) and value and _may_be_secret(snake):
        return perhaps(value)
    if isinstance(value, (list, tuple)):
        return [_without(item, name, perhaps) for item in value]
    if isinstance(value, (int, float)):
        return value
    if _SEVERAL.search(snake) and _LOOKS_SECRET.fullmatch(str(value)):
        return perhaps(value)
    text = _CREDENTIALS_IN_URL.sub(lambda found: perhaps(found[0]), str(value))
    for variable, secret in os.environ.items():
        if len(secret) >= _SHORTEST_SECRET and (_SECRET.search(variable.lower()) or _may_be_secret(variable.lower())):
            text = text.replace(secret, perhaps(secret))
    return text


def _may_be_secret(snake: str) -> bool:
    return bool(_PERHAPS.search(snake)) and not _HARMLESS.search(snake)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:_DIGITS]
