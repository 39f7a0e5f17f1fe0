"""Conversations with a restored model: messages in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_posttrain.data.modules.prompt_files import SourcedPrompt
from lit_posttrain.models.model_config import max_positions
from lit_posttrain.models.restore import restore
from lit_posttrain.rollout.engine import Completion, Sampling
from lit_posttrain.rollout.restored import restored_engine
from lit_posttrain.rollout.said import Said, SaidBy
from lit_posttrain.rollout.text import Prompt, PromptEncoder
from lit_posttrain.template_variables import with_variables


@dataclass
class Answer:
    """An answer's text, why it ended, the sum of its tokens' log-probabilities, its tokens, and the thought before the
    text, where the model marks it with special tokens."""

    text: str
    finish_reason: str
    logprob: float
    tokens: list[int]
    thought: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """The answer as the assistant's turn."""
        return Said(self.text, self.thought).message

    @property
    def value(self) -> str | list[dict[str, Any]]:
        """The answer as a column of preference data: its text, or a message with its thought."""
        return [self.message] if self.thought else self.text


class ChatModel:
    """A model folder, hub name, run folder or checkpoint that answers conversations.

    It computes in bfloat16 on hardware that is fast in it.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 16,
        trust_remote_code: bool = False,
        template_variables: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            path: The model.
            batch_size: Answers that are generated together.
            trust_remote_code: Run Python code that comes with a hub model.
            template_variables: Values for variables of the chat template, beside those that the model was trained with.

        Raises:
            PostTrainError: for what cannot be loaded, and a variable that the template does not use.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.restored = restore(path, trust_remote_code, self.device)
        self.tokenizer = self.restored.tokenizer
        self.tokenizer.chat_template = with_variables(self.tokenizer.chat_template, template_variables or {})
        self.engine = restored_engine(self.restored, batch_size)

    def check(self, prompts: Sequence[SourcedPrompt]) -> list[str]:
        """Sentences on what the chat template leaves out of the prompts or changes in them.

        Raises:
            PostTrainError: for a prompt that `answer` would refuse, naming its place.
        """
        encoder = PromptEncoder(self.tokenizer)
        encoder.check(prompts, max_positions(self.restored.model.config))
        return encoder.changed(prompts)

    def answer(self, conversations: Sequence[Prompt], n: int, sampling: Sampling, first: int = 0) -> list[list[Answer]]:
        """n answers to each conversation. first: index of the first conversation among all that are answered with the
        same seed.

        Raises:
            PostTrainError: as `PromptEncoder.ids`, and for a conversation that leaves no room for an answer.
        """
        encoder = PromptEncoder(self.tokenizer)
        ids = [encoder.ids(conversation) for conversation in conversations]
        said_by = SaidBy(self.tokenizer)
        drawn = self.engine.generate(ids, n, sampling, range(first, first + len(ids)))
        return [[_answer(said_by(completion), completion) for completion in completions] for completions in drawn]


def _answer(said: Said, drawn: Completion) -> Answer:
    return Answer(said.text, drawn.finish_reason, sum(drawn.logprobs), drawn.tokens, said.thought)
