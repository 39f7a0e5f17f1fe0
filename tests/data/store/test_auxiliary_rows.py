"""Rows that a method asks for beside those that it trains on: any method, any data module."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import conversation_files
from helpers.runs import quiet_trainer

from lit_posttrain import SFT, ConversationData, ModelSpec, Term, Tree, TreeBatch
from lit_posttrain.data.store.loader import AuxiliaryRows, Trees


class FromBehind:
    """Beside every row the one at the same place from behind."""

    def __init__(self, store: Trees) -> None:
        self.store = store

    def __getitem__(self, index: int) -> Tree:
        return self.store[len(self.store) - 1 - index]


class Beside(SFT):
    """Keeps the lines of the rows beside, and how they come."""

    def __init__(self, model: Path) -> None:
        super().__init__(ModelSpec(str(model)))
        self.asked: list[int] = []
        self.seen: list[dict[str, list[int]]] = []

    def auxiliary_rows(self, store: Trees, max_length: int) -> dict[str, AuxiliaryRows]:
        self.asked.append(max_length)
        return {"behind": FromBehind(store)}

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        rows = {name: [row for one in others for row in one.example_ids] for name, others in batch.extras.items()}
        self.seen.append({"own": list(batch.example_ids), **rows})
        return super().loss_terms(batch)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_method_sees_the_rows_that_it_asks_for(streaming: bool, tiny_model: Path, tmp_path: Path) -> None:
    files = conversation_files(tmp_path).paths
    data = ConversationData(
        files[1:], val_path=files[0], batch_size=6, streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    module = Beside(tiny_model)
    trainer = quiet_trainer(max_steps=2, accumulate_grad_batches=2, num_sanity_val_steps=0, val_check_interval=2)
    trainer.fit(module, datamodule=data)
    first, second = module.seen[:2]
    assert sorted(first["behind"]) == sorted(first["own"] + second["own"]), "the first one has those of the whole step"
    assert "behind" not in second
    (evaluated, *_) = [one for one in module.seen if len(one["own"]) == 16]
    assert evaluated["behind"] == evaluated["own"]
    assert set(module.asked) == {data._limit(module.max_positions)}
    plain = SFT(ModelSpec(str(tiny_model)))
    seen: list[int] = []
    plain.loss_terms = lambda batch: seen.append(len(batch.extras)) or SFT.loss_terms(plain, batch)  # type: ignore[method-assign, func-returns-value]  # looks on
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(plain, datamodule=data)
    assert seen == [0], "another method on the same data asks for itself"
