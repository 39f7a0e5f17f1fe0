"""A judge as a reward: direct RLAIF (Lee et al. 2024)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.backend import Backend
from lit_posttrain.judges.building import check_judge, judge_of
from lit_posttrain.judges.constitution import read_constitution
from lit_posttrain.judges.endpoint import Endpoint
from lit_posttrain.judges.in_process import InProcess
from lit_posttrain.judges.judge import Judge
from lit_posttrain.judges.kinds.criteria import read_criteria
from lit_posttrain.judges.spec import JudgeSpec
from lit_posttrain.judges.transport import layered
from lit_posttrain.judges.usage import Usage
from lit_posttrain.rewards.base import Reward, RewardBatch, Scores

POINTWISE = ("score", "rubric")
# how an opinion is got, and how soon: a server may come back at another address
_FREE = ("endpoint", "api_key_env", "timeout_s", "retries", "limits", "budget", "cache_dir", "trust_remote_code")


class NoVerdict(Exception):
    """The judge has no verdict on a response: its reply could not be read, or its call failed."""


class JudgeReward(Reward):
    """The opinion of a judge, a model in this process or behind an endpoint, on each response.

    score and rubric mark every response alone. pairwise, verdict and listwise compare all responses to a prompt, and
    the score is the share of the others that a response was preferred to; one that is alone has no score. A response
    without a verdict, because the judge's reply could not be read or its call failed, has no score either, and trains
    nothing. Every call has a deadline of its own, so --model.rollout.reward_timeout does not apply.
    """

    timed: ClassVar[bool] = False

    def __init__(self, judge: JudgeSpec, weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            judge: What judges, and how it is asked.
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called. Default: judgereward.

        Raises:
            PostTrainError: as `check_judge`.
        """
        check_judge(judge)
        super().__init__(weight, name)
        self.spec = judge
        self.compares = judge.kind not in POINTWISE
        if judge.kind == "rubric" and judge.criteria and not Path(judge.criteria).exists():
            self.needs = [judge.criteria]
        self.usage = Usage()
        self._judge: Judge | None = None
        self._weights: list[Tensor] = []

    def resume_options(self) -> dict[str, Any]:
        """What an opinion depends on: the model, the kind and its options, and the contents of the constitution and the
        criteria."""
        told = {name: value for name, value in vars(self.spec).items() if name not in _FREE}
        model = Path(self.spec.model)
        told["model"] = str(model.resolve()) if model.exists() else self.spec.model
        told["constitution"] = read_constitution(self.spec.constitution).hash
        told["criteria"] = read_criteria(self.spec.criteria).hash
        return told

    @property
    def weights_held(self) -> list[Tensor]:
        """The parameters of a judge in this process, once it is loaded."""
        return self._weights

    def prepare(self, device: Any) -> None:
        """Load the judge, or its endpoint's client, once.

        Raises:
            PostTrainError: the model, a package or the endpoint's key is missing.
        """
        if self._judge is not None:
            return
        model: Backend
        if self.spec.endpoint is not None:
            model = Endpoint(self.spec)
        else:
            model = InProcess.of(self.spec, device)
            self._weights = list(model.restored.model.requires_grad_(False).parameters())
        self._judge = judge_of(self.spec, layered(model, self.spec, self.usage))

    async def score(self, batch: RewardBatch) -> Scores:
        """(M,) scores; None for a response that had none to be compared with, an exception for one without a
        verdict."""
        if self._judge is None:
            raise RuntimeError("prepare comes before score")
        places = range(len(batch))
        groups = _by_prompt(batch) if self.compares else [[place] for place in places]
        scored = await asyncio.gather(*(self._scores(self._judge, batch, group) for group in groups))
        return [score for some in scored for score in some]  # groups stand one behind the other

    async def _scores(self, judge: Judge, batch: RewardBatch, places: Sequence[int]) -> list[float | Exception | None]:
        """The scores of the responses at some places, all to one prompt. The same words have the same score, and are
        shown once: nobody could tell them apart."""
        said = [_said(batch.messages[place]) if batch.messages else batch.responses[place] for place in places]
        texts = list(dict.fromkeys(said))
        if self.compares and len(texts) == 1:
            return [0.5 if len(said) > 1 else None] * len(said)
        columns = {name: values[places[0]] for name, values in batch.columns.items()}
        prompt = [dict(message) for message in batch.prompts[places[0]]]
        item = Item(prompt, [{"text": text} for text in texts], columns, batch.sources[places[0]])
        try:
            scores = dict(zip(texts, await _opinion(judge, item), strict=True))
        except PostTrainError:
            raise
        # of these responses alone: raised, it would have each response judged without those that it is compared with
        except Exception as problem:
            return [problem] * len(said)
        return [scores[text] for text in said]


async def _opinion(judge: Judge, item: Item) -> list[float | Exception | None]:
    """The score of each response of an item, an exception for none."""
    opinion = await judge.opinion(item)
    none = NoVerdict(f"{opinion.outcome}: {opinion.error}")
    return [none if score is None else score for score in opinion.scores]


def _by_prompt(batch: RewardBatch) -> list[list[int]]:
    """The places of the responses to each prompt, which stand together."""

    def prompt(place: int) -> tuple[str, str]:
        return batch.sources[place], json.dumps(batch.prompts[place], default=str)

    return [list(places) for _, places in groupby(range(len(batch)), prompt)]


def _said(messages: Sequence[Mapping[str, Any]]) -> str:
    """A response; one of several turns with the role before each."""
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n\n".join(f"{message.get('role')}:\n{message.get('content') or ''}" for message in messages)
