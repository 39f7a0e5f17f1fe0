"""Episodes: the policy and an environment take turns until the environment is done or the tokens are used up.

What the policy has sampled stays as it is, token by token; only what the environment says is rendered by the chat
template and tokenised, behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from lit_posttrain.data.render.rendering import Conversation, Renderer
from lit_posttrain.errors import PostTrainError
from lit_posttrain.on_policy.environment import Environment, answer, reset
from lit_posttrain.on_policy.rollouts import Trajectory
from lit_posttrain.rollout.engine import Completion, Sampling
from lit_posttrain.rollout.said import SaidBy
from lit_posttrain.rollout.text import PromptEncoder
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import PromptRecord, Tree

_WORDS = "Said7here8alone"  # no template writes them by itself
_TURN_SEEDS = 1_000_003  # apart from the seeds of other rollouts and retries, which are hashes


class Draw(Protocol):
    """Draws n responses to each prompt (token ids), `numbers` as in `Engine.generate`."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int]
    ) -> list[list[Completion]]: ...


@dataclass
class Opened:
    """A prompt with what its environment added to it, and the environment as it is before the policy answers; None for
    one turn."""

    tree: Tree
    environment: Environment | None


@dataclass
class _Episode:
    """One response as it grows. number: of it among those of all ranks."""

    number: int
    prompt: list[int]
    record: PromptRecord
    environment: Environment | None
    trajectory: Trajectory = field(default_factory=Trajectory.empty)
    done: bool = False


class Episodes:
    """Plays the episodes of prompts in environments of one kind."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        environment: Environment | None = None,
        any_rank: Callable[[Callable[[], bool]], bool] = lambda work: work(),
    ) -> None:
        """any_rank: runs its argument on every rank; True if it returns True on any, and raises on all if it raises on
        any. Collective."""
        self._tokenizer, self._environment, self._any_rank = tokenizer, environment, any_rank
        self._said_by = SaidBy(tokenizer)

    def opened(self, prompts: Sequence[Tree]) -> list[Opened]:
        """The prompts with what their environments add to them before the policy answers. Every prompt has an
        environment of its own, reset once; its responses begin with copies of it."""
        if self._environment is None:
            return [Opened(tree, None) for tree in prompts]
        encoder, found = PromptEncoder(self._tokenizer), []
        for tree in prompts:
            record, environment = PromptRecord.of(tree), deepcopy(self._environment)
            added = reset(environment, record)
            if added:
                record = replace(record, messages=[*record.messages, *added])
                tree = replace(tree, prompt=np.array(encoder.ids(record), np.int32), record=record.to_json())
            found.append(Opened(tree, environment))
        return found

    def played(
        self, prompts: Sequence[Opened], n: int, sampling: Sampling, draw: Draw, first: int = 0
    ) -> list[list[Trajectory]]:
        """n responses to each prompt. first: number of the first prompt among those of all ranks. With several
        processes every rank plays the same number of turns; those that have nothing left draw nothing. Collective."""
        tokens = [one.tree.prompt.tolist() for one in prompts]
        drawn = draw(tokens, n, sampling, range(first, first + len(prompts)))
        episodes = [
            self._begun((first + place) * n + k, one, completion)
            for place, (one, answers) in enumerate(zip(prompts, drawn, strict=True))
            for k, completion in enumerate(answers)
        ]
        if self._environment is not None:
            self._go_on(episodes, sampling, draw)
        return [[one.trajectory for one in episodes[at : at + n]] for at in range(0, len(episodes), n)]

    def _begun(self, number: int, one: Opened, completion: Completion) -> _Episode:
        prompt, record = one.tree.prompt.tolist(), PromptRecord.of(one.tree)
        episode = _Episode(number, prompt, record, deepcopy(one.environment))
        self._add(episode, completion)
        return episode

    def _add(self, episode: _Episode, completion: Completion) -> None:
        """Add a turn of the policy."""
        one, said = episode.trajectory, self._said_by(completion)
        one.tokens = np.concatenate([one.tokens, np.array(completion.tokens, np.int32)])
        one.sampled = np.concatenate([one.sampled, np.ones(len(completion.tokens), np.bool_)])
        one.logprobs = np.concatenate([one.logprobs, np.array(completion.logprobs, np.float32)])
        one.messages.append(said.message)
        one.text = said.text
        one.finish_reason = completion.finish_reason

    # Further turns -----------------------------------------------------------------------------------------------

    def _go_on(self, episodes: Sequence[_Episode], sampling: Sampling, draw: Draw) -> None:
        inserted, turn, longest = Inserted(self._tokenizer), 0, sampling.max_new_tokens
        asked: list[_Episode] = []

        def answered() -> bool:
            asked[:] = [one for one in episodes if not one.done and self._answered(one, inserted, longest)]
            return bool(asked)

        while self._any_rank(answered):
            turn += 1
            room = [longest - len(one.trajectory.tokens) for one in asked]
            again = replace(sampling, max_new_tokens=max(room, default=1), seed=sampling.seed + turn * _TURN_SEEDS)
            prompts = [[*one.prompt, *one.trajectory.tokens.tolist()] for one in asked]
            drawn = draw(prompts, 1, again, [one.number for one in asked])
            for one, left, (completion,) in zip(asked, room, drawn, strict=True):
                self._add(one, completion.cut(left))

    def _answered(self, episode: _Episode, inserted: Inserted, longest: int) -> bool:
        """Let the environment answer; True if the policy is to go on."""
        one, environment = episode.trajectory, episode.environment
        assert environment is not None
        step = answer(environment, one.messages[-1])
        if step.reward is not None:
            one.reward = step.reward + (one.reward or 0.0)
        episode.done = step.done or one.truncated
        if episode.done:
            return False
        record = replace(episode.record, messages=[*episode.record.messages, *one.messages[:-1]])
        added = inserted.ids(record, step.messages, int(one.tokens[-1]))
        if len(one.tokens) + len(added) >= longest:  # no room is left to answer in
            one.finish_reason, episode.done = "length", True
            return False
        one.tokens = np.concatenate([one.tokens, np.array(added, np.int32)])
        one.sampled = np.concatenate([one.sampled, np.zeros(len(added), np.bool_)])
        one.logprobs = np.concatenate([one.logprobs, np.zeros(len(added), np.float32)])
        one.messages += step.messages
        return True


class Inserted:
    """Token ids of what an environment says, from the end of the policy's turn to where it is to answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._renderer = tokenizer, Renderer(tokenizer)

    def ids(self, record: PromptRecord, messages: Sequence[dict[str, Any]], last: int) -> list[int]:
        """record: the conversation before the policy's turn. messages: what follows the turn. last: the policy's last
        token, which the template may write at the end of the turn.

        Raises:
            PostTrainError: without a chat template that can write it.
        """
        if self._tokenizer.chat_template is None:
            raise PostTrainError("an environment with turns needs a chat template: pass --model.policy.chat_template")
        turn = {"role": "assistant", "content": _WORDS}
        talk = Conversation([*record.messages, turn, *messages], record.tools, record.variables)
        text = self._renderer.text(self._renderer.spelled(talk, prompt=True), prompt=True)
        _, found, behind = text.rpartition(_WORDS)
        if not found:
            raise PostTrainError("the chat template leaves out what the assistant said; an environment needs it")
        found_ids = self._tokenizer(behind, add_special_tokens=False)["input_ids"]
        ids = [int(token) for token in found_ids]
        return ids[1:] if ids[:1] == [last] else ids
