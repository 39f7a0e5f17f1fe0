"""Distributions of rewards at every validation, and the pairs that a model separates best, worst and least."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from lit_posttrain.callbacks.completions import show_completions
from lit_posttrain.callbacks.protocols import (
    RewardsResponses,
    ShowsCompletions,
    ShowsEvaluatedRows,
    sampling_part,
)
from lit_posttrain.callbacks.reward_plot import draw
from lit_posttrain.callbacks.reward_summary import Distribution, RewardSummary, margins, short, summarise, telling_pairs
from lit_posttrain.callbacks.step_rows import rewrite
from lit_posttrain.distributed import all_gather_object
from lit_posttrain.errors import PostTrainError
from lit_posttrain.trainer_state import dry_run
from lit_posttrain.types import RewardedResponses

log = logging.getLogger(__name__)

_WIDTH = 100  # of a text in the console
_CELL = 500  # of a text in a table
_TEXTS = ("prompt", "chosen", "rejected")
_COLUMNS = ("step", "data", "kind", "source", *_TEXTS, "reward_chosen", "reward_rejected", "margin", "flip_prob")


class RewardLogger(Callback):
    """Logs distributions of rewards and margins after every validation, and the pairs that are worth reading.

    For methods that sample their responses (GRPO, PPO) it writes completions.jsonl and a table `completions`, every few
    phases. For methods on preferences it writes into the run's folder: rewards.jsonl (a line per step and data set:
    quantiles, histograms, reliability), reward_examples.jsonl (whole pairs of kind `clear`, `wrong` and `close`), and
    if matplotlib is installed rewards.png of the last validation; `validate` writes validate_rewards.jsonl and so on.
    In Weights & Biases: histograms val/rewards/chosen_histogram, ..., and a table `reward_examples`.

    Chosen and rejected are the two sides of all pairs, as in the metrics rewards/chosen and rewards/rejected (KTO's
    metrics count every response once, by its label), and the good and the bad ones of single responses, which have no
    margin and are in no example. The reliability takes s(margin) for the probability of a preference: what a reward
    model and DPO with its sigmoid loss are trained to predict.
    """

    def __init__(self, show: int = 8, every_n_phases: int = 10) -> None:
        """
        Args:
            show: Pairs of each kind, or completions of a phase, in the file and the table; the console shows the first.
            every_n_phases: Phases from one table of completions to the next, for a method that samples its responses.
        """
        if show < 0:
            raise PostTrainError(f"RewardLogger: show is {show}; it must be at least 0")
        if every_n_phases < 1:
            raise PostTrainError(f"RewardLogger: every_n_phases is {every_n_phases}; it must be at least 1")
        self.show, self.every_n_phases = show, every_n_phases
        self._parts: dict[int, list[RewardedResponses]] = {}  # by data set
        self._begun = False
        self._plots = True
        self._told_of_none = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run without rewards or sampled responses."""
        if not isinstance(pl_module, RewardsResponses) and sampling_part(pl_module, ShowsCompletions) is None:
            raise PostTrainError(
                f"RewardLogger needs a method that learns from preferences or from responses that it samples, and "
                f"{type(pl_module).__name__} does not here: drop it"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse preference data without a validation set."""
        data, compares = getattr(trainer, "datamodule", None), isinstance(pl_module, RewardsResponses)
        if compares and isinstance(data, ShowsEvaluatedRows) and not data.val_names:
            raise PostTrainError(
                "RewardLogger has nothing to look at: name a file with --data.val_path, or hold rows out with "
                "--data.val_fraction 0.05"
            )
        self._begun = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Now that the run is under way, drop the rows of steps that it takes again."""
        if not self._begun and trainer.is_global_zero and not dry_run(trainer):
            for name in ("rewards.jsonl", "reward_examples.jsonl", "completions.jsonl"):
                rewrite(Path(trainer.default_root_dir) / name, trainer.global_step + 1, [])
        self._begun = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show sampled responses, at the end of a phase's first step."""
        first = batch_idx + 1 == trainer.accumulate_grad_batches and trainer.current_epoch % self.every_n_phases == 0
        shown = sampling_part(pl_module, ShowsCompletions)
        if first and trainer.is_global_zero and self.show and shown is not None:
            show_completions(trainer, shown, self.show)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier validation."""
        self._parts = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rewards of a batch in main memory."""
        if not trainer.sanity_checking and isinstance(outputs, RewardedResponses):
            self._parts.setdefault(dataloader_idx, []).append(outputs.cpu())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rewards of all processes; the first one writes."""
        if trainer.sanity_checking:
            return
        found = _gathered({number: RewardedResponses.joined(parts) for number, parts in self._parts.items()}, trainer)
        self._parts = {}
        if not trainer.is_global_zero:
            return
        if not found:
            self._tell_of_none(pl_module)
            return
        data = getattr(trainer, "datamodule", None)
        named = data if isinstance(data, ShowsEvaluatedRows) else None
        step = trainer.global_step if trainer.state.fn == TrainerFn.FITTING else None
        summaries, examples = [], []
        for number, rewards in found.items():
            summaries.append(summarise(rewards, named.val_names[number] if named is not None else f"file_{number}"))
            if named is not None:
                examples += [{"step": step, **row} for row in _examples(rewards, number, named, self.show)]
        if not dry_run(trainer):
            self._write(trainer, step, summaries, examples)
        print(_block(step, summaries, examples), flush=True)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                # while training, beside the validation's metrics: Lightning counts the step under way from 0
                _to_wandb(logger, trainer.global_step - (step is not None), summaries, examples)

    def _tell_of_none(self, pl_module: LightningModule) -> None:
        """Once, for a method on preferences that keeps no rewards."""
        if isinstance(pl_module, RewardsResponses) and not self._told_of_none:
            told = "RewardLogger has nothing to log: %s.loss_terms calls neither track_rewards nor keep_rewards"
            log.warning(told, type(pl_module).__name__)
            self._told_of_none = True

    def _write(
        self,
        trainer: Trainer,
        step: int | None,
        summaries: Sequence[RewardSummary],
        examples: Sequence[Mapping[str, Any]],
    ) -> None:
        folder, prefix = Path(trainer.default_root_dir), "" if step is not None else "validate_"
        rewrite(folder / f"{prefix}rewards.jsonl", step or 0, (summary.as_row(step) for summary in summaries))
        rewrite(folder / f"{prefix}reward_examples.jsonl", step or 0, examples)
        if not self._plots:
            return
        try:
            draw(summaries, "rewards" if step is None else f"rewards at step {step}", folder / f"{prefix}rewards.png")
        except ImportError:
            self._plots = False
            log.warning("no matplotlib, so no rewards.png: `pip install matplotlib`; rewards.jsonl has the figures")
        except (OSError, ValueError) as problem:  # a picture is no reason to lose a run
            self._plots = False
            log.warning("rewards.png could not be drawn (%s); rewards.jsonl has the figures", problem)


def _gathered(own: dict[int, RewardedResponses], trainer: Trainer) -> dict[int, RewardedResponses]:
    """The rewards of all processes, by data set and in the order of its rows."""
    everyone = all_gather_object(own, trainer)
    whole = {number: RewardedResponses.joined([part[number] for part in everyone]) for number in sorted(own)}
    return {number: _in_order(found) for number, found in whole.items()}


def _in_order(found: RewardedResponses) -> RewardedResponses:
    """With the pairs in the order of the data, so that ties do not depend on the number of processes."""
    order = torch.arange(len(found.first))
    for key in (found.places[found.second], found.places[found.first], found.rows[found.first]):  # the last one counts
        order = order[key[order].argsort(stable=True)]
    pairs = {name: getattr(found, name)[order] for name in ("first", "second", "flip_prob")}
    return RewardedResponses(found.rewards, found.rows, found.places, found.desirable, **pairs)


def _examples(found: RewardedResponses, number: int, data: ShowsEvaluatedRows, show: int) -> list[dict[str, Any]]:
    """Rows of reward_examples.jsonl, without their step."""
    margin, rows = margins(found), []
    for kind, pair in telling_pairs(margin, show):
        first, second = int(found.first[pair]), int(found.second[pair])
        source, prompt, responses = data.evaluated_texts(int(found.rows[first]), number)
        rows.append(
            {
                "data": data.val_names[number],
                "kind": kind,
                "source": source,
                "prompt": prompt,
                "chosen": responses[int(found.places[first])],
                "rejected": responses[int(found.places[second])],
                "reward_chosen": short(float(found.rewards[first])),
                "reward_rejected": short(float(found.rewards[second])),
                "margin": short(float(margin[pair])),
                "flip_prob": short(float(found.flip_prob[pair])),
            }
        )
    return rows


def _block(step: int | None, summaries: Sequence[RewardSummary], examples: Sequence[Mapping[str, Any]]) -> str:
    """The text for the console: a line per data set, and the first pair of each kind."""
    lines = [f"rewards{'' if step is None else f' at step {step}'}:"]
    for summary in summaries:
        sides = [f"chosen {_spread(summary.chosen)}", f"rejected {_spread(summary.rejected)}"]
        if len(summary.margins.values) or summary.margins.not_finite:
            sides.append(f"margin {_spread(summary.margins)}")
        lines.append(f"  {summary.name}: {', '.join(sides)} (5 % .. median .. 95 %)")
        shown: set[str] = set()
        for row in examples:
            if row["data"] == summary.name and row["kind"] not in shown:
                shown.add(row["kind"])
                lines.append(f"    {row['kind']} {row['margin']:+.3g}  {row['source']}")
                lines += [
                    f"      {mark} {_cut(name, row[name], _WIDTH)}" for mark, name in zip(">+-", _TEXTS, strict=True)
                ]
    return "\n".join(lines)


def _spread(found: Distribution) -> str:
    left_out = f" and {found.not_finite} not finite" if found.not_finite else ""
    if not len(found.values):
        return f"(none{left_out})"
    return " .. ".join(f"{value:.3g}" for value in np.quantile(found.values, (0.05, 0.5, 0.95))) + left_out


def _cut(name: str, text: str, width: int) -> str:
    """A text on one line; of a long prompt its end, where the question is."""
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    return "... " + line[4 - width :] if name == "prompt" else line[: width - 4] + " ..."


def _to_wandb(
    logger: WandbLogger, step: int, summaries: Sequence[RewardSummary], examples: Sequence[Mapping[str, Any]]
) -> None:
    import wandb

    found: dict[str, Any] = {}
    for summary in summaries:
        place = f"val/{summary.name}" if len(summaries) > 1 else "val"
        for name in ("chosen", "rejected", "margins"):
            part: Distribution = getattr(summary, name)
            if len(part.values):
                # rewards/chosen itself is a number; a chart cannot mix the two
                found[f"{place}/rewards/{name}_histogram"] = wandb.Histogram(np_histogram=(part.counts, part.edges))
    logger.log_metrics(found, step)
    if examples:
        rows = [[_cut(c, row[c], _CELL) if c in _TEXTS else row[c] for c in _COLUMNS] for row in examples]
        logger.log_table("reward_examples", columns=list(_COLUMNS), data=rows, step=step)
