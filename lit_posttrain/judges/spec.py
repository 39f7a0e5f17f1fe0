"""What judges, as one dataclass that nests in configs and overrides on the command line."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from lit_posttrain.errors import PostTrainError

Kind = Literal["pairwise", "verdict", "listwise", "score", "rubric"]
# keys of some providers have the form of a name: a short prefix, then many letters and digits
_KEY_NAME = re.compile(r"(?![a-z0-9]{2,5}_[A-Za-z0-9]{16,}$)[A-Za-z_][A-Za-z0-9_]*")


@dataclass
class JudgeLimits:
    """How fast an endpoint is asked. Retried calls count too.

    Args:
        concurrency: Number of calls at once. A model in this process answers as many together as one batch.
        requests_per_minute: Most requests in any 60 seconds. Default: no limit.
        tokens_per_minute: Most tokens, of questions and replies together, in any 60 seconds. Default: no limit.
    """

    concurrency: int = 16
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute"):
            _at_least_one(f"limits.{name}", getattr(self, name))


@dataclass
class JudgeBudget:
    """What a run may spend on an endpoint. Judging stops before the call that could exceed it; what is judged is kept.
    Replies from the cache cost nothing.

    Args:
        max_calls: Most requests, retried ones included. Default: no limit.
        max_tokens: Most tokens, of questions and replies together. Default: no limit.
        max_cost: Most money, in the unit of the prices. Default: no limit.
        price_in: Price of a million tokens of questions.
        price_out: Price of a million tokens of replies.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_calls", "max_tokens"):
            _at_least_one(f"budget.{name}", getattr(self, name))
        for name in ("max_cost", "price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise PostTrainError(f"budget.{name} is {value}; it must be at least 0")
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise PostTrainError(
                "budget.max_cost needs the prices of a million tokens: set budget.price_in and budget.price_out too"
            )


@dataclass
class JudgeSpec:
    """A model that judges responses: in this process, or behind an endpoint that speaks OpenAI's chat completions.

    Args:
        model: A model folder, hub name, run folder or checkpoint; with `endpoint`, the name of the model there.
        endpoint: URL of an OpenAI-compatible server, such as http://localhost:8000/v1 (needs the extra `feedback`).
        api_key_env: Environment variable with the endpoint's key, which is read from nowhere else and never saved.
            Default: OPENAI_API_KEY for api.openai.com; other endpoints get no key.
        kind: pairwise compares two responses by the probabilities of the answers A and B, a soft label. verdict does
            so by a written verdict with reasons. listwise ranks all responses at once. score is the expected value of
            a mark from 0 to 9 for each response alone. rubric marks each response on weighted criteria, reasons first.
        disagreement: Where a pair is judged differently in its two orders: soft keeps the mean of both, tie makes it a
            tie.
        constitution: File with the principles to judge by. Default: principles that come with lit-posttrain.
        principles: Number of principles that each comparison is judged by, drawn by `seed`; with more than one the
            verdicts are averaged. 0 shows all of them at once.
        criteria: File with the criteria of a rubric (YAML or JSON), or the name of the column that has them.
        max_tokens: Longest reply, in tokens, where the judge writes one.
        temperature: 0 takes the judge's most likely reply.
        seed: The same seed draws the same principles and samples the same replies.
        reasks: How often a reply that cannot be read is asked for again, with another seed.
        timeout_s: Seconds that one call to an endpoint may take in all. Default: 30, and 1 more for every 10 tokens of
            `max_tokens`.
        retries: How often a failed call is repeated, with growing pauses, or those that the server asks for.
        limits: How fast the endpoint is asked.
        budget: What may be spent on the endpoint.
        cache_dir: Folder of the replies so far: the same question is never asked twice. Default: `judges` in
            $LIT_POSTTRAIN_CACHE, or ~/.cache/lit_posttrain/judges.
        trust_remote_code: Run Python code that comes with a hub model. Off unless you read that code.
    """

    model: str
    endpoint: str | None = None
    api_key_env: str | None = None
    kind: Kind = "pairwise"
    disagreement: Literal["soft", "tie"] = "soft"
    constitution: str | None = None
    principles: int = 0
    criteria: str | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    reasks: int = 2
    timeout_s: float | None = None
    retries: int = 6
    limits: JudgeLimits = field(default_factory=JudgeLimits)
    budget: JudgeBudget = field(default_factory=JudgeBudget)
    cache_dir: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise PostTrainError("the judge's model is empty; name a model folder, or the endpoint's model")
        _at_least_one("max_tokens", self.max_tokens)
        for name in ("principles", "reasks", "retries", "temperature"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise PostTrainError(f"{name} is {value}; it must be at least 0")
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise PostTrainError(f"timeout_s is {self.timeout_s}; it must be above 0")
        if not _KEY_NAME.fullmatch(self.api_key_env or "unset"):  # a key itself, perhaps: it is not repeated
            raise PostTrainError(
                "api_key_env is the name of an environment variable, such as OPENAI_API_KEY, not the key itself"
            )
        if self.endpoint is not None:
            _check_url(self.endpoint)


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise PostTrainError(f"{name} is {value}; it must be at least 1")


def _check_url(endpoint: str) -> None:
    """Raises PostTrainError, which repeats no credentials."""
    try:
        url = urlsplit(endpoint)
        url.port  # noqa: B018 (raises for a port that is no number)
    except ValueError:
        raise PostTrainError("endpoint is no URL; one looks like http://localhost:8000/v1") from None
    if url.username is not None or url.password is not None or url.query or url.fragment:
        raise PostTrainError(
            "endpoint has a user, a password or parameters in its URL; a key belongs into the environment variable "
            "that api_key_env names"
        )
    if url.scheme not in ("http", "https") or not url.hostname:
        raise PostTrainError(f"endpoint {endpoint} is no URL; one looks like http://localhost:8000/v1")
