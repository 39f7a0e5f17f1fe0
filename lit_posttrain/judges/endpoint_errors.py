"""What errors of an endpoint mean: may the call be repeated, or is it refused?"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from lit_posttrain.judges.backend import CallFailed, Transient

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

_LONGEST_TOLD = 300  # characters of a server's message
_REPEATED = (408, 409, 425, 429)  # and all from 500
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|(prompt|input|request)s? .*too (long|large)|too many tokens", re.I
)
_WITHHELD = re.compile(r"content[ _-]?(filter|policy)|moderation|responsible ?ai", re.I)
_SPENT = ("insufficient_quota", "billing_hard_limit_reached", "access_terminated")


class Refused(Exception):
    """The server will not answer this question, however often it is asked.

    status: of HTTP. told: its message in a line, without the key. parameter: what it objects to, if it says so.
    too_long: True if the question has more tokens than the model takes. withheld: True if a content filter objects to
    it.
    """

    def __init__(
        self,
        status: int,
        told: str,
        parameter: str | None = None,
        too_long: bool = False,
        withheld: bool = False,
    ) -> None:
        super().__init__(told)
        self.status = status
        self.told = told
        self.parameter = parameter
        self.too_long = too_long
        self.withheld = withheld


def as_failure(problem: APIError, hidden: Callable[[str], str]) -> CallFailed | Refused:
    """An error of the openai client as ours. hidden: removes the key from a text."""
    import openai

    if isinstance(problem, openai.APIStatusError):
        return _of_status(problem, problem.status_code, hidden)
    if isinstance(problem, openai.APITimeoutError):
        return Transient("no connection in time", reached=False)
    cause = problem.__cause__
    why = hidden(" ".join(f"{cause or problem}".split()))[:_LONGEST_TOLD] or type(cause).__name__
    # only a connection that was never made has certainly cost nothing
    connected = type(cause).__name__ not in ("ConnectError", "ConnectTimeout")
    return Transient(f"no answer: {why}", charged=connected, reached=connected)


def retry_after_s(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds that `Retry-After` asks to wait, which it says in seconds or as a date; None without, or for nonsense."""
    said = headers.get("retry-after", "").strip()
    if not said:
        return None
    try:
        wait = float(said)
    except ValueError:
        try:
            wait = parsedate_to_datetime(said).timestamp() - now()
        except ValueError:
            return None
    return max(wait, 0.0) if wait < float("inf") else None


def _of_status(problem: APIStatusError, status: int, hidden: Callable[[str], str]) -> CallFailed | Refused:
    body = problem.body if isinstance(problem.body, Mapping) else {}
    told = hidden(" ".join(str(body.get("message") or problem.message).split()))[:_LONGEST_TOLD]
    code = str(body.get("code") or body.get("type") or "")
    if status == 429 and code in _SPENT:
        return Refused(status, told)
    if status >= 500 or status in _REPEATED:
        return Transient(f"HTTP {status}: {told}", retry_after_s(problem.response.headers))
    parameter = body.get("param")
    too_long = status == 413 or code == "context_length_exceeded" or bool(_TOO_LONG.search(told))
    withheld = status in (400, 403, 422) and bool(_WITHHELD.search(f"{code} {told}"))
    return Refused(status, told, parameter if isinstance(parameter, str) else None, too_long, withheld)
