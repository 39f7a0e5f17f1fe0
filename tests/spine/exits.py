"""A run that ends in a given way at a given moment and goes on from what it left, against one that never ended
(`python exits.py METHOD MODEL FOLDER EXIT:MOMENT...`; "METHOD averaged" validates and saves an average of the weights).
One process a run, forked from one that has imported all. Prints a line an exit and moment."""

from __future__ import annotations

import csv
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from cases import GIVEN_ROWS, METHODS, build, kl_coefficient, kl_control
from helpers.processes import forked
from helpers.runs import quiet_trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging

from lit_posttrain.callbacks import FiniteLossGuard, GracefulInterrupt, LastCheckpoint, run_checkpoints
from lit_posttrain.core.directions import direction_of
from lit_posttrain.loggers import MetricsCSV

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

ACCUMULATE = 2
EXITS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "exception", "sys.exit", "out of memory", "max_time")
MOMENTS = (
    "first micro-batch",
    "last micro-batch",
    "optimizer step",
    "after the step",
    "validation",
    "last validation",
    "end of validation",
    "save",
    "end of the epoch",
)
HAPPENED = "happened"  # a file with the steps taken by then, where the process does not live to say it
SAMPLED_MOMENTS = (*MOMENTS, "rollout", "reward")


class Ends(pl.Callback):
    """Ends the process at a moment of the second optimizer step of the second epoch, or the first one after that."""

    def __init__(self, how: str, moment: str) -> None:
        self.how, self.moment, self.happened = how, moment, False

    def at(self, moment: str, trainer: pl.Trainer) -> None:
        if moment != self.moment or self.happened or trainer.current_epoch < 1:
            return
        self.happened = True
        Path(trainer.default_root_dir, HAPPENED).write_text(str(trainer.global_step))
        if self.how.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.how))
        elif self.how == "exception":
            raise RuntimeError("something of the user's")
        elif self.how == "sys.exit":
            sys.exit(3)
        elif self.how == "out of memory":
            raise torch.OutOfMemoryError("no more of it")
        else:
            trainer.should_stop = True  # as Timer does

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= ACCUMULATE or trainer.num_training_batches <= ACCUMULATE:
            self.at("first micro-batch" if batch_idx % ACCUMULATE == 0 else "last micro-batch", trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, out: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % ACCUMULATE == 0:
            self.at("after the step", trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self.at("validation", trainer)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.at("last validation", trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.at("end of validation", trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.at("end of the epoch", trainer)

    def watch(self, trainer: pl.Trainer, module: Any) -> None:
        """Moments that are no hooks."""
        fsync, step = os.fsync, torch.optim.AdamW.step

        def slow_fsync(fd: FileDescriptorLike) -> None:
            self.at("save", trainer)
            fsync(fd)

        def stepping(optimizer: Any, closure: Any = None) -> Any:
            found = step(optimizer, closure)
            self.at("optimizer step", trainer)
            return found

        os.fsync = slow_fsync  # for this process
        torch.optim.AdamW.step = stepping  # type: ignore[assignment,method-assign]  # its type has self twice
        if hasattr(module, "collector"):
            sampler, calls = module.collector.sampler, module.collector.rewards._calls
            answers, judge = sampler.answers, calls.score

            def sampled(*given: Any) -> Any:
                if trainer.training:
                    self.at("rollout", trainer)
                return answers(*given)

            def judged(*given: Any) -> Any:
                if trainer.training:
                    self.at("reward", trainer)
                return judge(*given)

            sampler.answers, calls.score = sampled, judged


def run(method: str, model: Path, folder: Path, data: Path, how: str = "", moment: str = "") -> None:
    """Train to the end, from last.ckpt if it is there."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    method, _, averaged = method.partition(" ")
    pl.seed_everything(0, verbose=False)
    module: Any = build(method, model)
    source: Any = METHODS[method].data(data)
    source.val_fraction, source.eval_batch_size = 0.3, 3
    ends, last = Ends(how, moment), folder / "last.ckpt"
    monitor = module.monitored
    mode = direction_of(type(module), monitor)
    assert mode is not None
    early = EarlyStopping(monitor, patience=5, mode=mode)
    more = kl_control(module)
    more += [EMAWeightAveraging(decay=0.5)] if averaged else []
    trainer = quiet_trainer(
        ends,
        early,
        *more,
        FiniteLossGuard(),
        GracefulInterrupt(),
        *run_checkpoints(3, monitor, mode),
        logger=MetricsCSV(folder),
        log_every_n_steps=1,
        max_epochs=3,
        val_check_interval=2 * ACCUMULATE if averaged else 1.0,  # not where last.ckpt is saved anyway
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=0.5,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    if how:
        ends.watch(trainer, module)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and those of nohup this one
    trainer.fit(module, datamodule=source, ckpt_path=str(last) if last.exists() else None)
    interrupts = [c for c in trainer.callbacks if isinstance(c, GracefulInterrupt)]  # type: ignore[attr-defined]
    if trainer.global_step < trainer.estimated_stepping_batches or interrupts[0].interrupted:
        return
    best = next(c for c in trainer.checkpoint_callbacks if not isinstance(c, LastCheckpoint))
    end = {
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict()["state"],
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "num_tokens": module.num_tokens,
        "early": early.state_dict(),
        "best": best.state_dict(),
        **{f"{name}.ckpt": saved_weights(folder / f"{name}.ckpt") for name in ("best", "last")},
        "kl_coefficient": kl_coefficient(module),
    }
    torch.save(end, folder / "end.part")
    (folder / "end.part").replace(folder / "end.pt")


def saved_weights(file: Path) -> dict[str, Any]:
    """Those of a checkpoint, and those that an average stands for."""
    saved = torch.load(file, weights_only=True)
    return {name: saved[name] for name in ("state_dict", "current_model_state") if name in saved}


def in_child(*given: Any) -> int:
    """Run in a forked process; its status as `waitpid` has it."""
    return os.waitpid(forked(run, *given, output=given[2] / "output.txt"), 0)[1]


def same(found: Any, expected: Any) -> bool:
    """Bitwise, all the way down."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else bool(found == expected)


def figures(folder: Path, train_only: bool) -> list[dict[str, str]]:
    """What was logged, step by step, less what depends on the clock."""
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    left = ("seconds", "tokens_per_s", "epoch", *(["val/"] if train_only else []))
    return [{k: v for k, v in row.items() if v and not any(part in k for part in left)} for row in rows]


def may_lose(method: str, how: str, moment: str) -> bool:
    """Whether steps since the last save may be lost: after SIGKILL, an error that leaves weights of no step, and one
    that comes before callbacks have averaged the step, or weighed its KL anew."""
    breaks = how in ("exception", "sys.exit", "out of memory")
    unended = moment == "after the step" and (method.endswith("averaged") or method not in GIVEN_ROWS)
    return how == "SIGKILL" or (breaks and (moment == "optimizer step" or unended))


def differences(folder: Path, whole: Path, how: str) -> list[str]:
    """In what a run that went on is another one."""
    if not (folder / "end.pt").exists():
        return ["it did not go on to the end"]
    found, expected = (torch.load(place / "end.pt", weights_only=True) for place in (folder, whole))
    # a run that stops early is validated once more, and may find a better one there
    compared = set(expected) - ({"best", "best.ckpt", "early"} if how == "max_time" else set())
    names = sorted(name for name in compared if not same(found[name], expected[name]))
    return names + (["metrics"] if figures(folder, how == "max_time") != figures(whole, how == "max_time") else [])


def main(method: str, model: Path, root: Path, pairs: list[str]) -> None:
    data, whole = root / "data", root / "whole"
    for folder in (data, whole):
        folder.mkdir(parents=True)
    assert in_child(method, model, whole, data) == 0, (whole / "output.txt").read_text()
    for pair in pairs:
        how, moment = pair.split(":")
        folder = root / f"{how} {moment}"
        folder.mkdir()
        ended = in_child(method, model, folder, data, how, moment)
        lost = []
        if not (folder / HAPPENED).exists():
            told = "NOTHING HAPPENED, so it is "
        elif (folder / "end.pt").exists():  # a limit of time in the last validation comes too late
            came = how == "max_time" and moment == "last validation"
            told = "came to its end: " if came else "CAME TO ITS END, and is "
        else:
            saved = folder / "last.ckpt"
            kept = torch.load(saved, weights_only=True)["global_step"] if saved.exists() else 0
            taken = int((folder / HAPPENED).read_text())
            told = f"status {ended}, {kept} of {taken} steps kept: "
            lost = ["steps are lost"] if kept < taken and not may_lose(method, how, moment) else []
            in_child(method, model, folder, data)
        found = lost + differences(folder, whole, how)
        print(f"{method}, {how}, {moment}: {told}{'OTHER ' + ', '.join(found) if found else 'the same'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
