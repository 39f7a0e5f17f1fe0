"""A reward model as a reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lit_posttrain.data.formats.example import Example, bare_text
from lit_posttrain.data.render.masks import TokenMask
from lit_posttrain.data.render.templates import ConversationTemplate
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.store.packing import collate
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.model_config import max_positions
from lit_posttrain.models.restore import restore
from lit_posttrain.rewards.base import Reward, RewardBatch, Scores
from lit_posttrain.types import PromptRecord, Tree


class RewardModelScore(Reward):
    """The score of the conversation by a reward model: an exported folder, a run, a checkpoint or a hub name.

    Prompt and response go through the reward model's own chat template and tokenizer, so that its vocabulary may differ
    from the policy's. If prompt and response are too long for it, scoring fails: the response gets no total.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 32,
        bfloat16: bool = False,
        trust_remote_code: bool = False,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        """
        Args:
            path: The reward model.
            batch_size: Responses scored together.
            bfloat16: Compute in bfloat16: faster on most hardware, and different in the third digit.
            trust_remote_code: Run Python code that comes with a hub model. Off unless you read that code.
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called. Default: rewardmodelscore.
        """
        super().__init__(weight, name)
        if batch_size < 1:
            raise PostTrainError(f"RewardModelScore: batch_size is {batch_size}; it must be at least 1")
        self.path, self.batch_size, self.bfloat16 = path, batch_size, bfloat16
        self.trust_remote_code = trust_remote_code
        self._model: Any = None

    def prepare(self, device: Any) -> None:
        """Load the model onto the device, once.

        Raises:
            PostTrainError: for a folder without a reward model.
        """
        if self._model is not None:
            return
        if "/" not in self.path and not Path(self.path).exists():  # the hub's reward models have an owner
            raise PostTrainError(
                f"RewardModelScore: path: there is no folder {self.path}; train one with configs/reward.yaml, and "
                "export it"
            )
        try:
            restored = restore(self.path, self.trust_remote_code, device)
        except PostTrainError as problem:
            raise PostTrainError(f"RewardModelScore: path: {problem}") from problem
        self._model = restored.scorer.requires_grad_(False)
        self._template = ConversationTemplate(restored.tokenizer, "completion", empty_turns=True, scored=True)
        self._mask = TokenMask(restored.tokenizer)
        self._limit = max_positions(self._model.config)
        self._device = restored.device
        self._layout = replace(restored.layout, tails=True)

    def resume_options(self) -> dict[str, Any]:
        """The path of the model. batch_size and bfloat16 may differ in a resumed run."""
        return {"path": str(Path(self.path).resolve()) if Path(self.path).exists() else self.path}

    @property
    def weights_held(self) -> list[torch.Tensor]:
        """The parameters of the reward model, once it is loaded."""
        return [] if self._model is None else list(self._model.parameters())

    def score(self, batch: RewardBatch) -> Scores:
        """(M,) scores; an exception for a response that is too long."""
        records = batch.records or [PromptRecord([dict(m) for m in prompt], {}) for prompt in batch.prompts]
        turns = batch.messages or [[{"role": "assistant", "content": said}] for said in batch.responses]
        asked = zip(records, turns, batch.responses, strict=True)
        trees = [self._tree(record, messages[:-1], said) for record, messages, said in asked]
        found: list[float | Exception] = [tree if isinstance(tree, Exception) else math.nan for tree in trees]
        known = {place: tree for place, tree in enumerate(trees) if isinstance(tree, Tree)}
        for start in range(0, len(known), self.batch_size):
            joined, order = _by_prompt(list(known.items())[start : start + self.batch_size])
            packed = collate(joined, self._layout, {}).to(self._device)
            with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self.bfloat16):
                scores = self._model(packed).tolist()
            for place, score in zip(order, scores, strict=True):
                found[place] = score
        return found

    def _tree(self, asked: PromptRecord, earlier: Sequence[Mapping[str, Any]], said: str) -> Tree | Exception:
        """earlier: the turns of a response, by the policy and an environment, before the policy's last words `said`."""
        prompt, answer = asked.messages, [*map(dict, earlier), {"role": "assistant", "content": said}]
        text, around = bare_text(prompt, answer, asked.tools), {"tools": asked.tools, "variables": asked.variables}
        example = Example.of(prompt, answer, Row({}), text=text, **around)
        if earlier:  # the score is read behind the last turn
            example.prompt_turns, example.continued = len(example.messages) - 1, ""
        try:
            rendered = self._template.render(example)[-1]
            (encoding,) = self._mask.encode([rendered.text], rendered.plain)
            tree = self._mask.tree(rendered, encoding, whole=True)
        except BadRow as problem:  # what its template refuses
            return problem
        size = len(tree.prompt) + len(tree.responses[0].tokens)
        if self._limit is not None and size > self._limit:
            return ValueError(f"prompt and response are {size} tokens, and the reward model takes {self._limit}")
        return tree


def _by_prompt(trees: Sequence[tuple[int, Tree]]) -> tuple[list[Tree], list[int]]:
    """Trees of one response each, joined by prompt, and the places of the responses in the batch."""
    groups: dict[bytes, tuple[Tree, list[int]]] = {}
    for place, tree in trees:
        whole, places = groups.setdefault(tree.prompt.tobytes(), (Tree(tree.prompt, []), []))
        whole.responses.extend(tree.responses)
        places.append(place)
    return [tree for tree, _ in groups.values()], [place for _, places in groups.values() for place in places]
