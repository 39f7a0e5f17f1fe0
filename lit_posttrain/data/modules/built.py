"""The data sets of a data module once they are read, and what callbacks and messages need to know of them."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from lightning.pytorch import LightningDataModule

from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.modules.method import TokenizerOwner
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.errors import PostTrainError
from lit_posttrain.tokenizer import Tokenizer

HELD_OUT = "held_out"


class BuiltData(LightningDataModule):
    """The training, validation and test sets of a data module by name, and what callbacks ask about their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []
        self._whole: TreeStore | None = None
        self._train: TreeStore | None = None
        self._val: dict[str, TreeStore] = {}
        self._test: dict[str, TreeStore] = {}
        self._titles: dict[str, str] = {}  # what to call each data set in messages, by its name
        self._audit: AuditReport | None = None

    @abstractmethod
    def build(
        self,
        tokenizer: Tokenizer,
        max_positions: int | None = None,
        scored: bool = False,
        limited_by: str = "the model",
        singles: bool = False,
    ) -> None:
        """Read everything, see `TreeData.build`."""

    @property
    def train_store(self) -> TreeStore:
        """The training examples.

        Raises:
            PostTrainError: before `build`.
        """
        if self._train is None:
            raise PostTrainError("the data has not been read yet; call build(tokenizer, max_positions) first")
        return self._train

    @property
    def known_stores(self) -> list[TreeStore]:
        """The training and validation sets whose rows are known before training."""
        return [self.train_store, *self.val_stores.values()]

    @property
    def val_stores(self) -> dict[str, TreeStore]:
        """Validation sets by name: one per entry of `val_path`, or `held_out`."""
        return self._val

    @property
    def test_stores(self) -> dict[str, TreeStore]:
        """Test sets by name; without `test_path` the validation sets."""
        return self._test or self._val

    @property
    def predict_stores(self) -> dict[str, TreeStore]:
        """Data sets of `predict` by name: the test sets, or without `test_path` all of `path`."""
        return self._test or ({", ".join(self.paths): self._whole} if self._whole is not None else {})

    @property
    def val_names(self) -> list[str]:
        """Names of the validation sets in metrics, in the order of `val_dataloader`."""
        return list(self.val_stores)

    @property
    def test_names(self) -> list[str]:
        """Names of the test sets in metrics, in the order of `test_dataloader`."""
        return list(self.test_stores)

    def row_sources(self, rows: list[int]) -> list[str]:
        """`file:line` of training rows (`TreeBatch.example_ids`), for messages to people."""
        return self.train_store.sources(rows)

    def predicted_row_sources(self, rows: list[int], dataloader_idx: int) -> list[str]:
        """`file:line` of rows of the data set with this index in `predict_dataloader`."""
        return list(self.predict_stores.values())[dataloader_idx].sources(rows)

    def evaluated_texts(self, row: int, dataloader_idx: int) -> tuple[str, str, list[str]]:
        """A row of the validation set with this index in `val_dataloader`: its `file:line`, prompt and responses as the
        model sees them, without special tokens."""
        tree, tokenizer = list(self.val_stores.values())[dataloader_idx][row], self._owner().tokenizer
        sides = [tree.prompt, *(response.tokens for response in tree.responses)]
        prompt, *responses = [tokenizer.decode(side.tolist(), skip_special_tokens=True).strip() for side in sides]
        return tree.source, prompt, responses

    def example_prompts(self, count: int) -> list[list[int]]:
        """At most `count` prompts (token ids), spread evenly over the first validation set, or without one over the
        training rows unless they are a stream; rows without a prompt are left out."""
        store = next(iter(self.val_stores.values()), None) or self._train
        if store is None:
            return []
        asked = np.flatnonzero(store.prompt_lengths)
        count = min(count, len(asked))
        return [store[int(asked[place * len(asked) // count])].prompt.tolist() for place in range(count)]

    def evaluated_rows(self, stage: str) -> dict[str, int]:
        """Number of examples of each data set that `validate`, `test` or `predict` uses, by its name."""
        stores = {"validate": self.val_stores, "test": self.test_stores, "predict": self.predict_stores}[stage]
        return {self._titles[name]: len(store) for name, store in stores.items()}

    @property
    def audit(self) -> AuditReport:
        """What became of every row."""
        if self._audit is None:
            raise PostTrainError("the data has not been read yet; call build(tokenizer, max_positions) first")
        return self._audit

    def _owner(self) -> TokenizerOwner:
        module = self.trainer.lightning_module if self.trainer else None
        if not isinstance(module, TokenizerOwner):
            raise PostTrainError(
                f"{type(self).__name__} needs a module with `tokenizer`, `max_positions` and `layout`, and has "
                f"{type(module).__name__}; train a lit_posttrain method, or call build(tokenizer, max_positions)"
            )
        return module
