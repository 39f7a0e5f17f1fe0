"""Repeats calls that failed in passing: overload, faults of the server, cut connections, late or garbled replies."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.backend import Backend, Call, CallFailed, Reply, Transient
from lit_posttrain.judges.usage import Usage

_FIRST_S, _LONGEST_S = 1.0, 30.0  # the pauses, which double: six last a minute, over which many servers count calls
_FIRST_CONNECTIONS = 3  # attempts to reach a server that has never answered
_MOST_ASKED_S = 600.0  # a server that asks for a longer pause is not waited for
_GIVEN_UP = 20  # calls in a row, after which the server counts as down


class Retrying:
    """Calls of another backend, each repeated up to `retries` times. Pauses double from one second to 30, up to half of
    each by chance, so that calls that failed together do not come together again; what the server asks for by
    Retry-After holds for all calls."""

    def __init__(
        self,
        inner: Backend,
        retries: int,
        usage: Usage,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._inner, self._retries, self._usage = inner, retries, usage
        self._chance = random.Random(seed)
        self._clock, self._sleep = clock, sleep
        self._closed_until = 0.0
        self._answered, self._in_a_row = False, 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the inner backend."""
        return self._inner.identity

    async def ask(self, call: Call) -> Reply:
        """The reply to one call.

        Raises:
            CallFailed: there is none, after all retries.
            PostTrainError: the server is down: it was never reached, or 20 calls in a row have failed.
        """
        for attempt in range(self._retries + 1):
            await self._wait()
            try:
                reply = await self._inner.ask(call)
            except Transient as failure:
                last = failure
                never_reached = not self._answered and not failure.reached
                if (failure.retry_after_s or 0.0) > _MOST_ASKED_S or (
                    never_reached and attempt + 1 == _FIRST_CONNECTIONS
                ):
                    break
                if attempt < self._retries:
                    await self._pause(attempt, failure)
                    self._usage.repeated += 1
            except CallFailed:
                self._usage.failed += 1
                raise
            else:
                self._answered, self._in_a_row = True, 0
                return reply
        raise self._given_up(last, attempt + 1)

    async def close(self) -> None:
        """Close the inner backend."""
        await self._inner.close()

    async def _wait(self) -> None:
        """Until the server wants to be asked again."""
        while (left := self._closed_until - self._clock()) > 0:
            await self._sleep(left)

    async def _pause(self, attempt: int, failure: Transient) -> None:
        if failure.retry_after_s is not None:
            self._closed_until = max(self._closed_until, self._clock() + failure.retry_after_s)
        await self._sleep(min(_FIRST_S * 2**attempt, _LONGEST_S) * self._chance.uniform(0.5, 1.0))

    def _given_up(self, failure: Transient, attempts: int) -> Exception:
        self._usage.failed += 1
        self._in_a_row += 1
        tried = f"{failure}, at the last of {attempts} attempts" if attempts > 1 else str(failure)
        if not self._answered and not failure.reached:
            return PostTrainError(f"the judge cannot be reached ({tried}); check the endpoint's URL and start it")
        if self._in_a_row >= _GIVEN_UP:
            return PostTrainError(
                f"{self._in_a_row} calls of the judge in a row have failed ({tried}); start again when it answers"
            )
        return CallFailed(tried)
