"""The data module of reward models and preference optimisation: a prompt and its compared responses are one tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_posttrain.data.files.source import Record, Source
from lit_posttrain.data.formats.comparison import Candidate, Comparison
from lit_posttrain.data.formats.comparison_readers import Annotators
from lit_posttrain.data.formats.comparisons import ComparisonFormat, PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.example import Example, Labelled, bare_text
from lit_posttrain.data.formats.neighbours import joined
from lit_posttrain.data.modules.streamable import StreamableData
from lit_posttrain.data.render.options import Reader
from lit_posttrain.data.render.overlong import Fitted, fit_comparison
from lit_posttrain.data.render.rendered import TrainOn
from lit_posttrain.data.rows.message_checks import check_order
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.votes import Winner
from lit_posttrain.data.store.build import cache_home
from lit_posttrain.data.store.logprob_cache import TargetTrees
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Tree


@dataclass(frozen=True)
class PreferenceOptions:
    """The options of `PreferenceData` that decide which trees are made."""

    columns: PreferenceColumns | None = None
    annotators: Annotators = "soft"
    label_values: dict[str, Winner] | None = None
    system_prompt: str | None = None
    max_length: int = 2048
    overlong: Literal["drop", "cut_prompt"] = "drop"
    on_bad_row: Literal["error", "skip"] = "error"
    train_on_prompt: bool = False
    train_on: TrainOn = "completion"
    whole_text: bool = True
    scored: bool = False
    singles: bool = False

    def prepared(self, source: Source) -> Source:
        """With the neighbouring rows of a prompt joined, unless single responses are asked for."""
        return source if self.columns and self.columns.completion else joined(source)

    def reader(self, record: Record) -> Reader:
        """By the columns of preference data."""
        shape = recognise_comparison(
            record, self.columns, self.annotators, values=self.label_values, singles=self.singles
        )
        return ComparisonReader(shape, self.system_prompt)

    def fit(self, tree: Tree) -> Fitted:
        """Drop the tree, or cut its prompt; train on the prompt's tokens if that is asked for."""
        if self.train_on_prompt:
            tree.prompt_loss_mask = np.ones(len(tree.prompt), np.bool_)
        return fit_comparison(tree, self.max_length, self.overlong)


@dataclass(frozen=True)
class ComparisonReader:
    """Comparisons as examples with one prompt."""

    shape: ComparisonFormat
    system_prompt: str | None

    @property
    def name(self) -> str:
        """What the audit calls the columns."""
        return self.shape.name

    @property
    def doubt(self) -> str:
        """As `Votes.doubt`."""
        return self.shape.votes.doubt if self.shape.votes else ""

    def read(self, data: Mapping[str, Any]) -> Labelled:
        """The examples of a record."""
        row = Row(data)
        comparison = self.shape.read(row, self.system_prompt)
        examples = [_example(comparison, candidate, row) for candidate in comparison.candidates]
        if not self.shape.labelled:  # to be scored, not trained on
            for example in examples:
                example.untrained = frozenset()
        labels = [candidate.labels for candidate in comparison.candidates]
        return Labelled(examples, labels, unread=row.unread, notes=row.notes)


def _example(comparison: Comparison, candidate: Candidate, row: Row) -> Example:
    prompt, said = comparison.prompt, candidate.messages
    text = bare_text(prompt, said, comparison.around.get("tools"))
    example = Example.of(prompt, said, row, text=text, **comparison.around)
    check_order(example.messages)
    return example


@dataclass(kw_only=True, eq=False, repr=False)
class PreferenceData(StreamableData):
    """Comparisons of responses to the same prompt, from files, folders or the hub.

    Columns are recognised by their names: chosen/rejected (strings, messages, or `Human:`/`Assistant:` transcripts,
    with or without a prompt of their own), a prompt with a list of ranked `responses`, two judged responses
    (response1/response2 with annotator1.., output_1/output_2 with label), and prompt/completion/label for single good
    and bad ones; published sets (UltraFeedback, HelpSteer2, Nectar, RewardBench 2, ...) as they are; in addition
    `system`, `tools`, `history` and `chat_template_kwargs`. Others are named with `--data.columns`. Rows without a
    preference (equal sides, no common prompt, only ties) are dropped, counted and listed in the audit.

    Args:
        columns: Names of the columns, where they are not recognised.
        annotators: Where several people judged a pair: `soft` keeps the share of their votes as a probability,
            `majority` takes the more frequent vote as certain and drops ties.
        label_values: What the labels of judged pairs mean, by their value: `first`, `second`, `tie` or
            `neither` (both are bad: a tie, and for KTO two bad responses), such as '{1: first, 0: second}' or
            '{model_a: first, model_b: second, tie: tie}'. Default: 1 is the first response, 2 the second, 0 a tie; the
            published columns of PKU-SafeRLHF, SHP, HelpSteer and LMArena are known.
        train_on_prompt: Include the prompt in likelihood terms per token. Preference terms never do.
        max_length: Most tokens of a prompt with its longest response. Default: the model's limit, at most 2048.
        overlong: Longer rows: `drop` them, or `cut_prompt` at its beginning. Responses are never cut. The audit counts.
        batch_size: Prompts per optimizer step, over all micro-batches and devices.
        eval_batch_size: Prompts per validation batch, over all devices.
    """

    columns: PreferenceColumns | None = None
    annotators: Literal["soft", "majority"] = "soft"
    label_values: dict[str, Winner] | None = None
    train_on_prompt: bool = False
    overlong: Literal["drop", "cut_prompt"] = "drop"

    @property
    def target_trees(self) -> list[TargetTrees]:
        """All trees of which a run computes log-probs: training and validation rows, and their auxiliary rows."""
        if self.streaming:
            raise PostTrainError(
                "--model.reference cached is computed before training, when a stream has not been read; take "
                "--model.reference copy, or with adapters adapter_off"
            )
        stores = [self.train_store, *self.val_stores.values()]
        beside = [rows for store in stores for rows in self._auxiliary(store).values()]
        return [*stores, *(rows for rows in beside if isinstance(rows, TargetTrees) and rows.num_targets)]

    @property
    def reference_folder(self) -> Path:
        """The folder of cached reference log-probs."""
        return cache_home(self.cache_dir) / "reference"

    def _options(self, max_length: int) -> PreferenceOptions:
        return PreferenceOptions(
            self.columns,
            self.annotators,
            self.label_values,
            self.system_prompt,
            max_length,
            self.overlong,
            self.on_bad_row,
            self.train_on_prompt,
            scored=self._scored,
            singles=self._singles,
        )
