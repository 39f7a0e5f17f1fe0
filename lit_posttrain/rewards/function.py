"""Any Python function as a reward."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.imports import imported
from lit_posttrain.rewards.base import Reward, RewardBatch, Scores

_OF_TRL = ("trainer_state", "log_metric", "log_extra")


class FunctionReward(Reward):
    """A function of yours: `function(prompts, completions, **columns)` returns one number, or None, per completion.

    It is called with keyword arguments: prompts are lists of messages, completions are texts, completion_ids their
    tokens, and every column of the data is a list with one value per completion. Only arguments that the function has
    parameters for are passed. It may be async.
    """

    def __init__(self, function: Callable[..., Any] | str, weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            function: The function, or its import path, such as my_rewards.short for one in my_rewards.py beside you.
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called. Default: the function's name.

        Raises:
            PostTrainError: if the import path is wrong, and for what cannot be called with keyword arguments.
        """
        if isinstance(function, str):
            function = _named(function)
        if isinstance(function, type):
            raise PostTrainError(
                f"FunctionReward: {function.__name__} is a class; give a function, or name the class in place of "
                f"FunctionReward: --model.rewards+={function.__module__}.{function.__qualname__}"
            )
        super().__init__(weight, name or getattr(function, "__name__", None))
        self.function, self._parameters = function, _parameters_of(function)
        self.needs = [
            p.name
            for p in self._parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            if p.name not in ("prompts", "completions", "completion_ids")
        ]

    def resume_options(self) -> dict[str, Any]:
        """The function's name."""
        return {"function": getattr(self.function, "__name__", None)}

    def check(self, columns: Sequence[str], source: str) -> None:
        """Refuse data without a column that the function has a parameter for."""
        for column in self.needs:
            if column in _OF_TRL and column not in columns:
                raise PostTrainError(
                    f"the reward function {self.name} takes `{column}`, which TRL passes and lit-posttrain does not; "
                    "remove the parameter, or give it a default"
                )
            if column not in columns:
                raise PostTrainError(
                    f"{source}: the reward function {self.name} takes `{column}`, and the columns there are "
                    f"{', '.join(columns) or 'none'}; rename the one or the other, or give the parameter a default"
                )

    def score(self, batch: RewardBatch) -> Scores | Awaitable[Scores]:
        """The return value of the function."""
        given = {**batch.columns, "prompts": batch.prompts, "completions": batch.responses}
        given["completion_ids"] = batch.tokens
        if not any(p.kind is p.VAR_KEYWORD for p in self._parameters.values()):
            given = {name: value for name, value in given.items() if name in self._parameters}
        found: Scores | Awaitable[Scores] = self.function(**given)
        return found


def _named(path: str) -> Callable[..., Any]:
    try:
        found = imported(path)
    except PostTrainError as problem:
        raise PostTrainError(f"FunctionReward: function {problem}") from problem
    if not callable(found):
        raise PostTrainError(f"FunctionReward: function {path} is {found!r:.40}, not a function")
    function: Callable[..., Any] = found
    return function


def _parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        found = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError) as problem:  # of a C function
        raise PostTrainError(
            f"FunctionReward: the parameters of {function!r:.60} cannot be told; write a Python function that calls it"
        ) from problem
    by_place = next((p.name for p in found.values() if p.kind is p.POSITIONAL_ONLY), None)
    if by_place is not None:
        raise PostTrainError(
            f"FunctionReward: {function!r:.60} takes `{by_place}` only by position, and arguments are passed by name; "
            "write a Python function that takes prompts, completions or columns of the data"
        )
    return found
