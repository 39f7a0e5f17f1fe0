"""Warns when a reward rises because responses exploit it, and not because they get better."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_posttrain.callbacks.protocols import ShowsCompletions, sampling_part
from lit_posttrain.errors import PostTrainError

log = logging.getLogger(__name__)

_WORDS = 32  # of a response that distinct_2 counts: longer responses repeat more pairs
Figures = dict[str, float]


class RewardHackingWatch(Callback):
    """Warns when the reward rises while another figure says that the responses get no better.

    The figures of a phase, over all its responses: hacking/distinct_2, distinct pairs of neighbouring words over all
    such pairs (Li et al. 2016) in the first 32 words; hacking/repeated, the share of responses that are also given,
    word for word, to another prompt; hacking/length, mean tokens; hacking/second, the mean of the reward named by
    `second`. The last `window` phases are compared with the first `window`. hacking/flags counts the figures that have
    drifted while the reward rose; each is reported once, with a response, and again after it had recovered.
    """

    def __init__(
        self,
        window: int = 10,
        rise: float = 2.0,
        diversity: float = 0.3,
        repeated: float = 0.2,
        length: float = 0.5,
        second: str | None = None,
        on_flag: Literal["warn", "stop"] = "warn",
    ) -> None:
        """
        Args:
            window: Phases on either side of the comparison.
            rise: Least rise of the reward, and least fall of `second`, in standard errors of the difference.
            diversity: Flag distinct_2 if it falls by this share.
            repeated: Flag the share of repeated responses if it rises by this much.
            length: Flag the mean length if it rises or falls by this share.
            second: Name of a reward to compare with the sum of all, such as one of weight 0, which is not optimised.
            on_flag: `warn`, or `stop` the run at the end of the step (the command line saves it).
        """
        if window < 2:
            raise PostTrainError(f"RewardHackingWatch: window is {window}; it must be at least 2 phases")
        for name, value in (("rise", rise), ("diversity", diversity), ("repeated", repeated), ("length", length)):
            if value <= 0:
                raise PostTrainError(f"RewardHackingWatch: {name} is {value:g}; it must be above 0")
        self.window, self.rise, self.second, self.on_flag = window, rise, second, on_flag
        self.limits = {"distinct_2": diversity, "repeated": repeated, "length": length}
        self._first: list[Figures] = []
        self._last: list[Figures] = []
        self._flagged: list[str] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that samples no responses, one without rewards, and a `second` that is not there."""
        shown, method = sampling_part(pl_module, ShowsCompletions), type(pl_module).__name__
        if shown is None:
            raise PostTrainError(
                f"RewardHackingWatch looks at responses that a method samples (PPO, GRPO); {method} samples none here: "
                "drop it"
            )
        names = shown.reward_names
        if not names:
            raise PostTrainError(
                f"RewardHackingWatch compares rewards, and this {method} has none: name one with --model.rewards+=..., "
                "or drop it"
            )
        if self.second is not None and self.second not in names:
            raise PostTrainError(f"RewardHackingWatch: second is {self.second}; the rewards are {', '.join(names)}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the figures of a phase, at the end of its first step."""
        shown = sampling_part(pl_module, ShowsCompletions)
        if batch_idx + 1 != trainer.accumulate_grad_batches or shown is None:
            return
        rows = shown.completions()
        found = phase_figures(rows, self.second)
        if "reward" not in found:
            return
        if len(self._first) < self.window:
            self._first.append(found)
        else:
            self._last = [*self._last, found][-self.window :]
        flags = self._flags() if len(self._last) == self.window else {}
        fresh = [name for name in flags if name not in self._flagged]
        self._flagged = list(flags)
        figures = {f"hacking/{name}": value for name, value in found.items() if name != "reward"}
        figures["hacking/flags"] = float(len(flags))
        for name, figure in figures.items():
            pl_module.log(name, figure, logger=False, batch_size=1)  # for what monitors it
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step - 1)  # Lightning counts the step under way from 0
        if fresh and trainer.is_global_zero:
            best = max((row for row in rows if row["reward"] is not None), key=lambda row: float(row["reward"]))
            told = "; ".join(flags[name] for name in fresh)
            log.warning(
                "step %d: the reward has risen, and %s. Such as: %s",
                trainer.global_step,
                told,
                _short(best["response"]),
            )
        trainer.should_stop = trainer.should_stop or (self.on_flag == "stop" and bool(fresh))

    def _flags(self) -> dict[str, str]:
        """The figures that have drifted while the reward rose, with a sentence for each."""
        if self._errors_apart("reward") < self.rise:
            return {}
        found = {}
        for name, limit in self.limits.items():
            before, now = self._mean(self._first, name), self._mean(self._last, name)
            change = now - before if name == "repeated" else now / before - 1 if before > 0 else float("nan")
            drifts = abs(change) if name == "length" else -change if name == "distinct_2" else change
            if drifts > limit:  # False for NaN, where nothing could be measured
                found[name] = f"{name} has gone from {before:.3g} to {now:.3g}"
        if self.second is not None and -self._errors_apart("second") >= self.rise:
            before, now = self._mean(self._first, "second"), self._mean(self._last, "second")
            found["second"] = f"{self.second} has fallen from {before:.3g} to {now:.3g}"
        return found

    @staticmethod
    def _mean(phases: Sequence[Figures], name: str) -> float:
        values = [phase[name] for phase in phases if name in phase]
        return float(np.mean(values)) if values else float("nan")

    def _errors_apart(self, name: str) -> float:
        """By how many standard errors the last phases are above the first; NaN if there are too few."""
        sides = [[phase[name] for phase in side if name in phase] for side in (self._first, self._last)]
        if min(len(side) for side in sides) < 2:
            return float("nan")
        error = sum(float(np.var(side, ddof=1)) / len(side) for side in sides) ** 0.5
        apart = float(np.mean(sides[1]) - np.mean(sides[0]))
        return apart / error if error > 0 else float(np.sign(apart)) * float("inf") if apart else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "last": self._last, "flagged": self._flagged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first, self._last = state_dict["first"], state_dict["last"]
        self._flagged = state_dict["flagged"]


def phase_figures(rows: Sequence[Mapping[str, Any]], second: str | None = None) -> Figures:
    """The figures of a phase's responses (rows of `ShowsCompletions`): reward, distinct_2, repeated, length and second,
    without those that cannot be measured."""
    found: Figures = {}
    if rewards := [float(row["reward"]) for row in rows if row["reward"] is not None]:
        found["reward"] = float(np.mean(rewards))
    if second is not None and (others := [row[f"rewards/{second}"] for row in rows]):
        known = [float(value) for value in others if value is not None]
        found |= {"second": float(np.mean(known))} if known else {}
    if not rows:
        return found
    words = [str(row["response"]).split()[:_WORDS] for row in rows]
    if pairs := [pair for said in words for pair in pairwise(said)]:
        found["distinct_2"] = len(set(pairs)) / len(pairs)
    asked: dict[str, set[str]] = {}
    for row in rows:
        asked.setdefault(str(row["response"]).strip(), set()).add(str(row["prompt"]))
    found["repeated"] = float(np.mean([len(asked[str(row["response"]).strip()]) > 1 for row in rows]))
    found["length"] = float(np.mean([float(row["tokens"]) for row in rows]))
    return found


def _short(text: str) -> str:
    line = " ".join(text.split())
    return json.dumps(line if len(line) <= 120 else line[:116] + " ...", ensure_ascii=False)
