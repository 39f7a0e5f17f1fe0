"""Keeps the calls of a judge within concurrency, requests a minute and tokens a minute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_posttrain.judges.backend import Backend, Call, CallFailed, Reply, most_tokens
from lit_posttrain.judges.spec import JudgeLimits
from lit_posttrain.judges.usage import spent_on

_WINDOW_S = 60.0
_ROUNDING_S = 1e-6  # a pause this short might not move the clock
# Servers count calls when they arrive. On a busy machine that was seconds after they were sent, and a minute later the
# next ones arrived at once: 94 of 90. Without a reply a call counts as arrived after this time.
_ARRIVED_S = 5.0


@dataclass
class _Sent:
    """A call in the window. time_s: when it has arrived at the latest. tokens: until it is answered, the most that it
    may cost."""

    time_s: float
    tokens: int


class Limited:
    """Calls of another backend, each of which waits until it keeps the limits; in the order in which they came. In any
    60 seconds no more is sent than the limits say: the window slides."""

    def __init__(
        self,
        inner: Backend,
        limits: JudgeLimits,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._inner, self._limits = inner, limits
        self._clock, self._sleep = clock, sleep
        self._places = asyncio.Semaphore(limits.concurrency)
        self._turn = asyncio.Lock()  # the next call waits for room, the others behind it
        self._window: list[_Sent] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the inner backend."""
        return self._inner.identity

    async def ask(self, call: Call) -> Reply:
        """The reply to one call.

        Raises:
            CallFailed: the call alone may cost more tokens than a minute has; and as the inner backend.
        """
        async with self._places:
            sent = await self._send(most_tokens(call))
            try:
                reply = await self._inner.ask(call)
                sent.tokens = sum(spent_on(call, reply))
                return reply
            finally:
                sent.time_s = min(sent.time_s, self._clock())

    async def close(self) -> None:
        """Close the inner backend."""
        await self._inner.close()

    async def _send(self, tokens: int) -> _Sent:
        """Wait for room in the window, and take it."""
        most = self._limits.tokens_per_minute
        if most is not None and tokens > most:
            raise CallFailed(f"a call of up to {tokens} tokens, and limits.tokens_per_minute is {most}; raise it")
        async with self._turn:
            while (wait := self._wait_s(tokens)) > 0:
                await self._sleep(wait)
            sent = _Sent(self._clock() + _ARRIVED_S, tokens)
            self._window.append(sent)
            return sent

    def _wait_s(self, tokens: int) -> float:
        """Seconds until enough calls have left the window, as far as is known now; 0 if there is room."""
        now = self._clock()
        self._window = sorted((one for one in self._window if self._left_s(one, now)), key=lambda one: one.time_s)
        requests, used, wait = len(self._window), sum(one.tokens for one in self._window), 0.0
        for one in self._window:
            if self._fits(requests, used + tokens):
                break
            requests, used, wait = requests - 1, used - one.tokens, self._left_s(one, now)
        return wait

    def _left_s(self, one: _Sent, now: float) -> float:
        left = one.time_s + _WINDOW_S - now
        return left if left > _ROUNDING_S else 0.0

    def _fits(self, requests: int, tokens: int) -> bool:
        a_minute = self._limits
        return (a_minute.requests_per_minute is None or requests < a_minute.requests_per_minute) and (
            a_minute.tokens_per_minute is None or tokens <= a_minute.tokens_per_minute
        )
