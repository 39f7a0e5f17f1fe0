"""An error of a callback's at a step's end, behind or before those that change what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cases import METHODS, build
from helpers.runs import quiet_trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from lit_posttrain.callbacks import KLControl, LastCheckpoint, ReferenceSync


class Fails(pl.Callback):
    """At the end of the third step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("of one's own")


# before the steps of Fails; 2 of 3 steps kept means that the third could not be told from a half-done one
@pytest.mark.parametrize(
    ("method", "callback", "kept"),
    [
        ("dpo", lambda: KLControl(every_n_steps=100, samples=1, max_new_tokens=1), 3),
        ("grpo", lambda: KLControl(), 3),
        ("grpo", lambda: KLControl(coefficient="adaptive", target=0.1), 2),
        ("dpo", lambda: ReferenceSync(every_n_steps=2), 3),
        ("dpo", lambda: ReferenceSync(every_n_steps=3), 2),
        ("dpo", lambda: EMAWeightAveraging(update_every_n_steps=3), 3),
        ("dpo", lambda: EMAWeightAveraging(update_every_n_steps=2), 2),
    ],
)
def test_steps_are_lost_only_where_a_callback_may_not_have_come_to_them(
    method: str, callback: Any, kept: int, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.seed_everything(0, verbose=False)
    last = LastCheckpoint(2)
    trainer = quiet_trainer(Fails(), callback(), last, max_epochs=5, max_steps=5, default_root_dir=tmp_path / "run")
    with pytest.raises(RuntimeError, match="of one's own"):
        trainer.fit(build(method, tiny_model), datamodule=METHODS[method].data(tmp_path))
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == kept
    said = capsys.readouterr().out
    assert f"step {kept} is saved in {tmp_path / 'run/last.ckpt'}; " in said
    assert ("; the last step is lost; go on with: " in said) == (kept == 2)


def test_what_is_lost_is_said_where_nothing_was_saved(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [Fails(), EMAWeightAveraging(), LastCheckpoint(100)]
    trainer = quiet_trainer(
        *callbacks, max_steps=5, max_epochs=5, limit_val_batches=0, default_root_dir=tmp_path / "run"
    )
    with pytest.raises(RuntimeError):
        trainer.fit(build("sft", tiny_model), datamodule=METHODS["sft"].data(tmp_path))
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "the last 3 steps are lost"
    assert not (tmp_path / "run/last.ckpt").exists()
