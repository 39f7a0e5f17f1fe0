"""Stops a judge before the call that could cost more than its budget."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.backend import Backend, Call, CallFailed, Reply
from lit_posttrain.judges.spec import JudgeBudget
from lit_posttrain.judges.usage import Usage, cost_of, most_of, spent_on


class BudgetSpent(PostTrainError):
    """The next call could exceed the budget. What was judged before is kept."""


class Budgeted:
    """Calls of another backend, as long as the budget allows, counted in `usage`.

    A call is allowed if the budget bears the most that it and the calls under way may cost. Where only those under way
    leave no room, it waits for what they really cost.
    """

    def __init__(self, inner: Backend, budget: JudgeBudget, usage: Usage) -> None:
        self._inner, self._budget, self._usage = inner, budget, usage
        self._under_way = [0, 0, 0]  # calls, the most tokens of their questions and of their replies
        self._ended = asyncio.Condition()

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the inner backend."""
        return self._inner.identity

    async def ask(self, call: Call) -> Reply:
        """The reply to one call.

        Raises:
            BudgetSpent: the call could exceed the budget.
            CallFailed: as the inner backend.
        """
        most_in, most_out = most_of(call)
        async with self._ended:
            while problem := self._problem(most_in, most_out):
                if not self._under_way[0]:
                    raise BudgetSpent(problem)
                await self._ended.wait()
            self._count(1, most_in, most_out)
            self._usage.calls += 1
        cost = (0, 0)
        try:
            reply = await self._inner.ask(call)
            cost = spent_on(call, reply)
            return reply
        except (CallFailed, asyncio.CancelledError) as failure:
            if getattr(failure, "charged", True):  # the server may have worked, and nobody tells how much
                cost = (most_in, most_out)
            raise
        finally:
            self._usage.add(*cost, self._budget)
            self._count(-1, -most_in, -most_out)
            async with self._ended:
                self._ended.notify_all()

    async def close(self) -> None:
        """Close the inner backend."""
        await self._inner.close()

    def _count(self, *change: int) -> None:
        self._under_way = [one + more for one, more in zip(self._under_way, change, strict=True)]

    def _problem(self, most_in: int, most_out: int) -> str:
        """Why a call could exceed the budget; empty if it cannot."""
        budget, used = self._budget, self._usage
        _, others_in, others_out = self._under_way
        most_in, most_out = most_in + others_in, most_out + others_out
        if budget.max_calls is not None and used.calls + 1 > budget.max_calls:
            return _told("max_calls", f"{budget.max_calls}", f"{used.calls} calls were made")
        if budget.max_tokens is not None and used.tokens + most_in + most_out > budget.max_tokens:
            return _told("max_tokens", f"{budget.max_tokens}", f"{used.tokens} tokens were used")
        cost = used.cost + cost_of(most_in, most_out, budget)
        if budget.max_cost is not None and cost > budget.max_cost:
            return _told("max_cost", f"{budget.max_cost:g}", f"{used.cost:.6g} was spent")
        return ""


def _told(name: str, limit: str, used: str) -> str:
    return f"the judge's budget is spent: {used}, and the next call could exceed budget.{name} {limit}"
