"""The base class of rewards, and the batch of responses that they score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import PromptRecord

Scores = Sequence[float | Exception | None] | Tensor


class Sampled(Protocol):
    """A sampled response: its tokens, and whether it ended by itself ("stop") or was cut off ("length")."""

    @property
    def tokens(self) -> Iterable[int]: ...
    @property
    def finish_reason(self) -> str: ...


@dataclass(frozen=True)
class RewardBatch:
    """M responses to judge, each with its prompt.

    prompts: the messages of each prompt. responses: texts, without the end token. columns: the values of the prompts'
    rows by column; None if a row lacks it. tokens: the ids of each response. truncated: True if it reached the maximum
    length. sources: `file:line` of each prompt's row. records: the prompts with tools and template variables; may be
    empty. messages: each response as messages: the policy's, and between them those of an environment; `responses`
    are then the texts of the policy's last messages.
    """

    prompts: Sequence[Sequence[Mapping[str, Any]]]
    responses: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    tokens: Sequence[Sequence[int]]
    truncated: Sequence[bool]
    sources: Sequence[str]
    records: Sequence[PromptRecord] = ()
    messages: Sequence[Sequence[Mapping[str, Any]]] = ()

    def __len__(self) -> int:
        return len(self.responses)

    def only(self, place: int) -> RewardBatch:
        """The batch with only one of the responses."""
        one = slice(place, place + 1)
        columns = {name: values[one] for name, values in self.columns.items()}
        rest = (self.tokens[one], self.truncated[one], self.sources[one], self.records[one], self.messages[one])
        return RewardBatch(self.prompts[one], self.responses[one], columns, *rest)


class Reward(ABC):
    """Base class of rewards.

    needs: columns that the data must have. shaping: True if it only shapes other rewards, as a length penalty: to
    dynamic sampling, responses that differ in nothing else have equal rewards. timed: False if `score` limits its time
    itself, as a judge does whose every call has a deadline: --model.rollout.reward_timeout does not end it. compares:
    True if a response has a score only beside others to the same prompt. Subclasses implement `score`.
    """

    needs: Sequence[str] = ()
    shaping: ClassVar[bool] = False
    timed: ClassVar[bool] = True
    compares: bool = False

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called, rewards/NAME/mean. Default: the class, in lower case.
        """
        self.weight, self.name = weight, name or type(self).__name__.lower()

    def resume_options(self) -> dict[str, Any]:
        """Options beside weight and name that a resumed run must have in common, such as a pattern. They are written
        into every checkpoint, so leave out keys and passwords. Default: none."""
        return {}

    @abstractmethod
    def score(self, batch: RewardBatch) -> Scores | Awaitable[Scores]:
        """(M,) one finite number per response. None: not applicable. An Exception *instance*: scoring failed; the
        response gets no total and is masked. May be async."""

    def prepare(self, device: Any) -> None:  # noqa: B027  # most rewards have nothing to load
        """Load models and other resources; called once, before the first batch. Default: nothing."""

    @property
    def weights_held(self) -> list[Tensor]:
        """The parameters of the model that this reward keeps in memory, if any."""
        return []

    def unusable(self, row: Mapping[str, Any]) -> str:
        """Why this reward cannot score responses to a prompt with these columns; empty if it can."""
        return ""

    def check(self, columns: Sequence[str], source: str) -> None:
        """Refuse data without the columns of `needs`. source: `file:line` of a row.

        Raises:
            PostTrainError: naming the column.
        """
        for column in self.needs:
            if column not in columns:
                known = ", ".join(columns)
                raise PostTrainError(
                    f"{source}: {type(self).__name__} needs the column `{column}`, and there are {known}; name another "
                    "one in its init_args, or add it to the data"
                )
