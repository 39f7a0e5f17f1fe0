"""What a method keeps beside its weights, a buffer and a module's extra state, is saved and taken up again, with
adapters too, which are otherwise saved alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import conversation_files
from helpers.runs import quiet_trainer
from torch import nn

from lit_posttrain import SFT, LoRASpec, ModelSpec, PostTrainError, TreeBatch
from lit_posttrain.callbacks import LastCheckpoint

SPECS = [None, LoRASpec(r=4)]


class Notes(nn.Module):
    """Something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": list(self.steps)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = list(state["steps"])


class Counts(SFT):
    """Counts its steps in a buffer, and notes them."""

    taken: torch.Tensor

    def __init__(self, policy: ModelSpec) -> None:
        super().__init__(policy)
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        self.notes = Notes()

    def on_step_end(self, batch: TreeBatch) -> None:
        self.taken += 1
        self.notes.steps.append(int(self.taken))


def fit(model: Path, lora: LoRASpec | None, folder: Path, steps: int) -> Counts:
    module, last = Counts(ModelSpec(str(model), lora=lora)), folder / "last.ckpt"
    trainer = quiet_trainer(LastCheckpoint(every_n_steps=1), max_epochs=-1, max_steps=steps, default_root_dir=folder)
    module.optim = type(module.optim)(schedule="constant", warmup_ratio=0.0)
    data, resume = conversation_files(folder), str(last) if last.exists() else None
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize("lora", SPECS)
def test_they_survive_a_resume(lora: LoRASpec | None, tiny_model: Path, tmp_path: Path) -> None:
    fit(tiny_model, lora, tmp_path, 2)
    resumed = fit(tiny_model, lora, tmp_path, 3)
    assert int(resumed.taken) == 3
    assert resumed.notes.steps == [1, 2, 3]
    loaded = Counts.load_from_checkpoint(tmp_path / "last.ckpt")
    assert int(loaded.taken) == 3
    assert loaded.notes.steps == [1, 2, 3]


@pytest.mark.parametrize("lora", SPECS)
@pytest.mark.parametrize("name", ["taken", "notes._extra_state"])
def test_a_checkpoint_without_them_is_refused(
    name: str, lora: LoRASpec | None, tiny_model: Path, tmp_path: Path
) -> None:
    fit(tiny_model, lora, tmp_path, 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint["state_dict"][name]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(PostTrainError, match=rf"--ckpt_path: the checkpoint: .* missing \({name}\)") as refused:
        fit(tiny_model, lora, tmp_path, 2)
    assert "\n" not in str(refused.value)
