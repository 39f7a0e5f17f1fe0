"""A judge's model in this process. Calls that arrive together are answered as one batch, in a thread beside the event
loop."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lit_posttrain.data.render.rendered import special_tokens
from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.judges.backend import Call, CallFailed, Reply
from lit_posttrain.judges.choices import choice_masses, spellings
from lit_posttrain.judges.kinds.shown import apart
from lit_posttrain.judges.spec import JudgeSpec
from lit_posttrain.models.identity import fingerprint, identity_of, tokenizer_identity
from lit_posttrain.models.model_config import max_positions
from lit_posttrain.models.restore import Restored, restore
from lit_posttrain.rollout.engine import Completion, Sampling
from lit_posttrain.rollout.restored import computes_in_bfloat16, restored_engine
from lit_posttrain.rollout.said import SaidBy
from lit_posttrain.rollout.text import PromptEncoder

_GATHERING_S = 0.005  # calls that come within this time are one batch


@dataclass(frozen=True)
class _Waiting:
    """A call with its token ids, and where its reply is awaited."""

    call: Call
    ids: list[int]
    reply: asyncio.Future[Reply]

    @property
    def kind(self) -> tuple[object, ...]:
        """Calls of one kind can be answered together."""
        call = self.call
        return () if call.choices else (call.max_tokens, call.temperature)


class InProcess:
    """A model folder, hub name, run folder or checkpoint as a judge's backend. The JSON schema of a call is not forced
    on replies, only asked for in its words.

    Args:
        restored: The model, in eval mode on its device.
        name: What it is called in records.
        batch_size: How many calls are answered together.
    """

    def __init__(self, restored: Restored, name: str, batch_size: int) -> None:
        self.restored, self.name, self.batch_size = restored, name, batch_size
        self.engine = restored_engine(restored, batch_size)
        self._encoder = PromptEncoder(restored.tokenizer)
        self._said_by = SaidBy(restored.tokenizer)
        names = [name for name in special_tokens(restored.tokenizer).values() if len(name) > 1]
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._limit = max_positions(restored.model.config)
        self._spelt: dict[tuple[str, ...], dict[str, list[tuple[int, ...]]]] = {}
        self._thread = ThreadPoolExecutor(1, "judge")
        self._waiting: list[_Waiting] = []
        self._answering: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, spec: JudgeSpec, device: torch.device | None = None) -> InProcess:
        """The model of a spec without an endpoint. device: default a GPU where there is one.

        Raises:
            PostTrainError: it cannot be loaded, or is a reward model.
        """
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(restore(spec.model, spec.trust_remote_code, device), spec.model, spec.limits.concurrency)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """As `Backend.identity`: the model's name, and fingerprints of its weights and tokenizer."""
        told = [identity_of(self.restored.model), tokenizer_identity(self.restored.tokenizer)]
        written = "bfloat16" if computes_in_bfloat16(self.restored.device) else told[0]["dtype"]
        return {"model": self.name, "weights": fingerprint({"parts": told}), "written_in": written}

    async def ask(self, call: Call) -> Reply:
        """As `Backend.ask`.

        Raises:
            CallFailed: the chat template refuses the question, or it is too long for the model.
            PostTrainError: the model's numbers are not finite.
        """
        waiting = _Waiting(call, self._ids(call), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer())
        return await waiting.reply

    async def close(self) -> None:
        """Wait for the batch at hand, and free the thread."""
        await asyncio.to_thread(self._thread.shutdown)

    def _ids(self, call: Call) -> list[int]:
        try:
            # a response's text cannot end the turn that shows it
            messages = [{**one, "content": apart(str(one["content"]), self._control)} for one in call.messages]
            ids = self._encoder.ids(messages)
        except PostTrainError as problem:
            raise CallFailed(first_line(problem)) from problem
        longest = max((len(one) for said in self._choices(call).values() for one in said), default=1)
        if self._limit is not None and len(ids) + longest > self._limit:
            raise CallFailed(
                f"the question has {len(ids)} tokens, and the judge takes {self._limit}: leave out such long "
                "responses, or take a judge with a longer context"
            )
        return ids

    def _choices(self, call: Call) -> dict[str, list[tuple[int, ...]]]:
        if call.choices not in self._spelt:
            self._spelt[call.choices] = spellings(self.restored.tokenizer, call.choices)
        return self._spelt[call.choices]

    async def _answer(self) -> None:
        """Answer what waits, a batch of one kind at a time, until nothing does."""
        await asyncio.sleep(_GATHERING_S)
        while self._waiting:
            kind = self._waiting[0].kind
            some = [one for one in self._waiting if one.kind == kind][: self.batch_size]
            self._waiting = [one for one in self._waiting if one not in some]
            some = [one for one in some if not one.reply.done()]  # who asked may have gone
            work = self._probabilities if not kind else self._written
            try:
                replies = await asyncio.get_running_loop().run_in_executor(self._thread, work, some)
            except Exception as problem:  # to who awaits it
                for one in some:
                    if not one.reply.done():
                        one.reply.set_exception(problem)
                continue
            for one, reply in zip(some, replies, strict=True):
                if not one.reply.done():
                    one.reply.set_result(reply)

    def _probabilities(self, some: Sequence[_Waiting]) -> list[Reply]:
        found = choice_masses(self.engine, [one.ids for one in some], [self._choices(one.call) for one in some])
        replies = []
        for one, (masses, token) in zip(some, found, strict=True):
            total = sum(masses.values())
            if not total >= 0:
                raise PostTrainError(f"{self.name}: its logits are not finite, so it cannot judge; take another model")
            said = str(self.restored.tokenizer.decode([token], skip_special_tokens=False))
            shares = {choice: mass / total for choice, mass in masses.items()} if total > 0 else {}
            replies.append(Reply(said, "stop", shares, min(total, 1.0), len(one.ids), 1))
        return replies

    def _written(self, some: Sequence[_Waiting]) -> list[Reply]:
        call = some[0].call
        seeds = [one.call.seed for one in some]
        drawn = self.engine.generate([one.ids for one in some], 1, Sampling(call.max_tokens, call.temperature), seeds)
        return [self._reply(completion, one) for one, (completion,) in zip(some, drawn, strict=True)]

    def _reply(self, completion: Completion, asked: _Waiting) -> Reply:
        text = self._said_by(completion).text
        return Reply(text, completion.finish_reason, tokens_in=len(asked.ids), tokens_out=len(completion.tokens))
