"""The data module of on-policy methods: prompts that the policy answers, with the columns that rewards need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from lit_posttrain.data.files.source import Record, Source
from lit_posttrain.data.formats.prompts import PromptColumns, prompt_reader
from lit_posttrain.data.modules.base import TreeData
from lit_posttrain.data.render.options import Reader
from lit_posttrain.data.render.overlong import Fitted
from lit_posttrain.data.render.rendered import TrainOn
from lit_posttrain.data.store.loader import EvalLoader
from lit_posttrain.data.store.mixing import Mix
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Tree, TreeBatch

TOO_LONG = "prompt longer than max_length"


@dataclass(frozen=True)
class PromptOptions:
    """The options of `PromptData` that decide which prompts are made."""

    columns: PromptColumns | None = None
    system_prompt: str | None = None
    template: str | None = None
    max_length: int = 2048
    overlong: str = "drop"
    on_bad_row: Literal["error", "skip"] = "error"
    train_on: TrainOn = "nothing"
    whole_text: bool = True
    scored: bool = False

    def prepared(self, source: Source) -> Source:
        """As it is."""
        return source

    def reader(self, record: Record) -> Reader:
        """By the columns of prompts."""
        return prompt_reader(record, self.columns, self.system_prompt, self.template)

    def fit(self, tree: Tree) -> Fitted:
        """Drop a prompt that is too long: a cut one would ask something else."""
        return Fitted([tree]) if len(tree.prompt) <= self.max_length else Fitted(dropped=TOO_LONG)


class SampledBatches(Protocol):
    """Micro-batches of responses that a method has sampled."""

    def __iter__(self) -> Iterator[TreeBatch]: ...
    def step_sources(self, rows: list[int]) -> list[str]:
        """`file:line` of the prompts of the current step, by `TreeBatch.example_ids`."""
        ...


@runtime_checkable
class CollectsExperience(Protocol):
    """A method that trains on responses which it samples itself."""

    def experience_loader(self, prompts: TreeStore, mix: Mix | None, data: PromptData) -> SampledBatches:
        """Its micro-batches, for a run on these prompts."""
        ...


@dataclass(kw_only=True, eq=False, repr=False)
class PromptData(TreeData):
    """Prompts for methods whose policy answers them, from files, folders or the hub.

    Columns are recognised by their names: `prompt` (a string, a transcript or messages), `instruction`, `question`,
    `query` or `problem` (with `input` or `context`), `messages` without their last answer, and the prompts of
    preference data; in addition `system`, `tools`, `history` and `chat_template_kwargs`. Rewards get all columns of a
    row, such as the right `answer`. An `input` next to `prompt` and a right answer (`answer`, `tests`, `ground_truth`,
    ...) is passed to rewards alone: it is the input of a program, and would give the test away.

    Args:
        weights: For each entry of `path` how many times an epoch over the prompts shows its rows. Default: all once.
        val_path: Prompts to validate on: answered without randomness, and rewarded. Every entry is a data set.
        test_path: Prompts for `test`. Default: the validation prompts.
        columns: Names of the columns, where they are not recognised.
        template: Text around every last user message, with `{prompt}` in its place, such as the wanted format.
        max_length: Longest prompt, in tokens; longer ones are dropped and counted. Default: the model's limit, at most
            2048.
        batch_size: Prompts per rollout phase, over all devices. The method samples several responses to each, and the
            phase's optimizer steps share them.
        eval_batch_size: Prompts answered together in validation, over all devices.
        shuffle: Take the prompts in another order every time around.
        seed: Seed of that order.
    """

    columns: PromptColumns | None = None
    template: str | None = None
    batch_size: int = 8
    eval_batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None and "{prompt}" not in self.template:
            raise PostTrainError("--data.template has no {prompt}, where the prompt goes")
        self._loader: SampledBatches | None = None

    def _options(self, max_length: int) -> PromptOptions:
        return PromptOptions(self.columns, self.system_prompt, self.template, max_length, on_bad_row=self.on_bad_row)

    def predict_dataloader(self) -> list[EvalLoader]:
        """Not available: prompts have no responses.

        Raises:
            PostTrainError: always.
        """
        raise PostTrainError(
            "prompts have no responses whose log-probability could be computed; answer them with `lit-posttrain "
            "generate`, or take a config with ConversationData or PreferenceData"
        )

    def train_dataloader(self) -> Iterable[TreeBatch]:
        """Micro-batches of the responses that the method samples to the prompts.

        Raises:
            PostTrainError: for a method that learns from given answers.
        """
        owner = self._owner()
        if not isinstance(owner, CollectsExperience):
            raise PostTrainError(
                f"PromptData holds prompts without answers, and {type(owner).__name__} learns from answers; take "
                "ConversationData or PreferenceData"
            )
        self._loader = owner.experience_loader(self.train_store, self._mix, self)
        return self._loader

    def row_sources(self, rows: list[int]) -> list[str]:
        """`file:line` of the prompts of the current step (`TreeBatch.example_ids`), for messages to people."""
        return super().row_sources(rows) if self._loader is None else self._loader.step_sources(rows)
