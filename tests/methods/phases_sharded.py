"""Two rollouts of every on-policy method in two processes; every rank runs it (MODEL FOLDER HOW)."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from cases import SAMPLING, build, prompt_files
from helpers.runs import quiet_trainer

from lit_posttrain.models.sharding import FSDP2Strategy


class Counts(pl.Callback):
    """Per phase the lengths of all responses, and the loss of every step."""

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trees = [one.tree for one in pl_module.collector.rollouts]
        self.lengths.append([len(response.tokens) for tree in trees for response in tree.responses])


def main() -> None:
    torch.set_num_threads(1)
    model, folder, strategy = sys.argv[1:]
    for method in SAMPLING:
        pl.seed_everything(0, verbose=False)
        module: Any = build(method, Path(model))
        if method == "ppo":
            module.stop.limit = None  # both phases as a whole
        # or a tiny model goes on to the end
        type(module).eos_ids = property(lambda _: list(range(0, 512, 12)))
        seen = Counts()
        trainer = quiet_trainer(
            seen,
            devices=2,
            strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
            max_epochs=2,
            accumulate_grad_batches=2,
            default_root_dir=folder,
        )
        data = prompt_files(Path(folder))
        data.val_fraction, data.batch_size = 0.1, 8
        try:
            trainer.fit(module, datamodule=data)
        except Exception:
            Path(folder, f"{method}-{trainer.global_rank}.txt").write_text(traceback.format_exc())
            raise
        found = {"lengths": seen.lengths, "losses": seen.losses, "step": trainer.global_step}
        found["val"] = float(trainer.callback_metrics[module.monitored])
        torch.save(found, Path(folder, f"{method}-{trainer.global_rank}.pt"))


if __name__ == "__main__":
    main()
