"""What a reward is: it looks at prompts, responses and the columns of their rows, and gives numbers."""

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

    prompts: the messages of each one's prompt. responses: texts, without the end token. columns: what stands in the
    prompt's row, by column; None where a row lacks it. tokens: the ids of each response. truncated: True if it was cut
    off at its longest length. sources: `file:line` of the prompt's row. records: of each prompt, what its chat template
    got besides the messages; may be empty. messages: each response as messages: what the policy said, and where an
    environment answers it, what that said in between; `responses` then has the policy's last words.
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
        """One of the responses alone."""
        one = slice(place, place + 1)
        columns = {name: values[one] for name, values in self.columns.items()}
        rest = (self.tokens[one], self.truncated[one], self.sources[one], self.records[one], self.messages[one])
        return RewardBatch(self.prompts[one], self.responses[one], columns, *rest)


class Reward(ABC):
    """Base class of rewards.

    needs: columns that the data must have. shaping: True if it only shapes what others ask for: responses that differ
    in nothing else are alike to dynamic sampling. A subclass implements `score`.
    """

    needs: Sequence[str] = ()
    shaping: ClassVar[bool] = False

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called, rewards/NAME/mean. Default: the class, in lower case.
        """
        self.weight, self.name = weight, name or type(self).__name__.lower()

    def resume_options(self) -> dict[str, Any]:
        """What decides its scores beside weight and name, such as a pattern: a resumed run must have the same. Written
        into every checkpoint, so it holds no key or password. By default nothing."""
        return {}

    @abstractmethod
    def score(self, batch: RewardBatch) -> Scores | Awaitable[Scores]:
        """(M,) one finite number a response, None where this reward has nothing to say on it, or, not raised, the
        error that it fails on it with: such a response has no score at all. May be async."""

    def prepare(self, device: Any) -> None:  # noqa: B027  # most rewards have nothing to load
        """Load what is needed, once, before the first batch; by default nothing is."""

    @property
    def weights_held(self) -> list[Tensor]:
        """The parameters of a model that it keeps in memory, if it does."""
        return []

    def unusable(self, row: Mapping[str, Any]) -> str:
        """What of a row's columns this reward cannot judge responses by, in words; empty for nothing."""
        return ""

    def check(self, columns: Sequence[str], source: str) -> None:
        """Refuse data without the columns that are needed.

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
