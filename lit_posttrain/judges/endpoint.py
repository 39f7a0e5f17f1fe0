"""The judge behind an endpoint that speaks OpenAI's chat completions: one call, one request, no retries."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.backend import Call, CallFailed, Reply, Transient
from lit_posttrain.judges.endpoint_errors import Refused, as_failure
from lit_posttrain.judges.endpoint_replies import NoProbabilities, refuse_alike, reply_of
from lit_posttrain.judges.spec import JudgeSpec

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_CONNECT_S, _FIRST_TOKEN_S, _TOKENS_PER_S = 10.0, 30.0, 10.0
_FIRST_REFUSALS = 3  # questions, after which it is taken to refuse every one
_MOST_BYTES = 2**24  # of a reply: a server that never ends one is not read until the memory is full
_OTHER_KINDS = "judge with a kind that reads words: --judge.kind verdict, listwise or rubric"
# what a server may refuse to know, and is then asked without; of fewer top_logprobs, and of max_tokens by its new name
_OPTIONAL = {"response_format", "max_tokens", "temperature", "seed"}


class Endpoint:
    """Asks one server. Of one event loop; a deadline that a call does not meet in all, from connecting to the last
    byte, ends it. Requests by which it learns what a server does not know are counted by nobody: they are refused, one
    for each such option and call under way.

    Raises:
        PostTrainError: the openai package, or the key that the spec names, is missing; headers in the
            environment would be sent to another server than OpenAI's.
    """

    def __init__(self, spec: JudgeSpec) -> None:
        self._model, self._url = spec.model, str(spec.endpoint).rstrip("/")
        self._timeout_s = spec.timeout_s
        self._key_name = spec.api_key_env
        of_openai = urlsplit(self._url).hostname == "api.openai.com"
        if self._key_name is None and of_openai:
            self._key_name = "OPENAI_API_KEY"
        self._key = os.environ.get(self._key_name, "").strip() if self._key_name else ""
        if self._key_name and not self._key:
            raise PostTrainError(
                f"{self._url}: the key is missing; put it into the environment variable {self._key_name}"
            )
        if not re.fullmatch("[!-~]*", self._key):  # no header can hold it, and the error of one would repeat it
            raise PostTrainError(
                f"{self._url}: the key in {self._key_name} has a space, a line break or a character outside ASCII; "
                "set it anew"
            )
        if os.environ.get("OPENAI_CUSTOM_HEADERS") and not of_openai:
            raise PostTrainError(
                f"{self._url}: the openai package would send it the headers in the environment variable "
                "OPENAI_CUSTOM_HEADERS, which may hold a key; unset it"
            )
        self._client = _client(self._url, self._key)
        if not of_openai:  # by default they come from the environment
            self._client.organization = self._client.project = None
        self._refused: set[str] = set()
        self._answered, self._refusals = False, 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model and endpoint."""
        return {"model": self._model, "endpoint": self._url}

    async def ask(self, call: Call) -> Reply:
        """The reply to one call.

        Raises:
            CallFailed: there is none; `Transient` if it may help to ask again.
            PostTrainError: the server refuses every call like this: a wrong key or model, no probabilities.
        """
        limit = self._timeout_s or _FIRST_TOKEN_S + (1 if call.choices else call.max_tokens) / _TOKENS_PER_S
        try:
            async with asyncio.timeout(limit):
                body = await self._posted(call)
        except TimeoutError:
            raise Transient(f"no whole reply within {limit:g} s (timeout_s)", charged=True) from None
        try:
            reply = reply_of(body, call, self._hidden)
        except NoProbabilities:
            raise self._stop(f"gives no probabilities of answers (top_logprobs); {_OTHER_KINDS}") from None
        self._answered = True
        return reply

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _posted(self, call: Call) -> bytes:
        """The body of the server's answer. What it refuses to know is left out from then on."""
        without, told = set(self._refused), dict[str, str]()
        while True:
            asked = self._request(call, without)
            try:
                body = await self._post(asked)
            except Refused as refusal:
                name = _objection(refusal, asked)
                if name is None or name in without:
                    raise self._refusal(refusal) from None
                without.add(name)
                told[name] = refusal.told
            else:
                for name in sorted(without - self._refused):
                    self._refused.add(name)
                    print(f"{self._url} refuses {name} and is asked without: {told[name]}", file=sys.stderr)
                return body

    async def _post(self, asked: dict[str, Any]) -> bytes:
        import openai

        try:
            async with self._client.chat.completions.with_streaming_response.create(**asked) as answer:
                body = bytearray()
                async for piece in answer.iter_bytes():
                    body += piece
                    if len(body) > _MOST_BYTES:
                        raise Transient(f"a reply of more than {_MOST_BYTES >> 20} MiB was not read", charged=True)
                return bytes(body)
        except openai.APIError as problem:
            raise as_failure(problem, self._hidden) from None
        except CallFailed:
            raise
        except Exception as problem:  # of the HTTP library while it reads, which is another one by openai's version
            cut = f"the connection broke off ({type(problem).__name__})"
            raise Transient(cut, charged=True) from None

    def _request(self, call: Call, without: Set[str]) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "model": self._model,
            "messages": [dict(message) for message in call.messages],
            "max_tokens": 1 if call.choices else call.max_tokens,
            "temperature": call.temperature,
            "seed": call.seed,
        }
        if call.choices:
            refuse_alike(call.choices)
            asked |= {"logprobs": True, "top_logprobs": 5 if "top_logprobs" in without else 20}
        if call.schema is not None:
            schema = {"name": "reply", "schema": dict(call.schema), "strict": True}
            asked["response_format"] = {"type": "json_schema", "json_schema": schema}
        for name in sorted(without & _OPTIONAL & asked.keys()):
            value = asked.pop(name)
            if name == "max_tokens":
                asked["max_completion_tokens"] = value
        return asked

    def _refusal(self, refusal: Refused) -> Exception:
        """What a refusal means: that of one question, or of all."""
        if refusal.too_long:
            return CallFailed(f"the question is longer than the judge's context: {refusal.told}")
        if refusal.withheld:
            return CallFailed(f"the endpoint's content filter refuses the question: {refusal.told}")
        if refusal.status == 401 and not self._key:
            named = "name the environment variable that has it with --judge.api_key_env"
            return self._stop(f"asks for a key; {named} (HTTP 401)")
        if refusal.status == 401 or (refusal.status == 403 and not self._answered):
            key = f"the key in {self._key_name}" if self._key else "the request"
            return self._stop(f"refuses {key} (HTTP {refusal.status}: {refusal.told})")
        if refusal.status == 404:
            known = f"has no model {self._model}, or no chat completions at this URL"
            return self._stop(f"{known} (HTTP 404: {refusal.told}); most URLs end in /v1")
        if refusal.status == 429:
            return self._stop(f"has nothing left to spend: {refusal.told}")
        if "logprobs" in refusal.told:
            return self._stop(f"gives no probabilities of answers ({refusal.told}); {_OTHER_KINDS}")
        told = f"HTTP {refusal.status}: {refusal.told}"
        # a request that is wrong in form is wrong every time; a single question may be refused for what it says
        self._refusals += 1
        if self._answered or self._refusals < _FIRST_REFUSALS:
            return CallFailed(told)
        return self._stop(f"refuses the first {_FIRST_REFUSALS} questions ({told})")

    def _stop(self, told: str) -> PostTrainError:
        return PostTrainError(f"the judge at {self._url} {told}")

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _objection(refusal: Refused, asked: Mapping[str, Any]) -> str | None:
    """What of a request the server refuses to know, if the call is worth another try without it."""
    if refusal.too_long or refusal.withheld or refusal.status not in (400, 422):
        return None
    optional = [name for name in ("top_logprobs", *sorted(_OPTIONAL)) if name in asked]
    for name in optional:
        if name == refusal.parameter or re.search(rf"\b{name}\b", refusal.told):
            return name
    # servers refuse a schema in many words
    return "response_format" if "response_format" in asked and refusal.parameter is None else None


def _client(url: str, key: str) -> AsyncOpenAI:
    try:
        from openai import AsyncOpenAI
    except ImportError:
        raise PostTrainError(
            'a judge behind an endpoint needs the openai package: pip install "lit-posttrain[feedback]"'
        ) from None
    # the client demands some key, also of servers that ask for none
    return AsyncOpenAI(api_key=key or "none", base_url=url, max_retries=0, timeout=_timeout())


def _timeout() -> Any:
    """Only connecting is limited here: the deadline of the whole call holds besides."""
    from openai import Timeout

    return Timeout(None, connect=_CONNECT_S)
