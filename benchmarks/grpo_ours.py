"""One run of this project's GRPO for benchmarks/grpo.py: prints a JSON line of figures. Not to be run by itself."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from typing import Any

import lightning.pytorch as pl
import torch
from sides import WEIGHTS, now, peak_mb

from lit_posttrain import GRPO, EngineSpec, ModelSpec, PromptData, RolloutConfig
from lit_posttrain.rewards import FunctionReward
from lit_posttrain.rollout import hf
from lit_posttrain.runtime import quiet_libraries


def digits(completions: list[str]) -> list[float]:
    """Something that differs between completions."""
    return [sum(c.isdigit() for c in said) / 100 for said in completions]


class Clock(pl.Callback):
    """When steps ended, how long their rollouts took, and how long each of a step's parts.

    profile: measure what happens inside a rollout too, which costs a synchronisation a token.
    """

    def __init__(self, profile: bool) -> None:
        self.times: list[float] = []
        self.rollouts: list[float] = []
        self.tokens: list[int] = []
        self.parts: list[dict[str, float]] = []
        self._open: dict[str, float] = {}
        self._part: dict[str, float] = {}
        self.profile = profile

    def add(self, name: str, seconds: float) -> None:
        self._part[name] = self._part.get(name, 0.0) + seconds

    def timed(self, function: Any, name: Any) -> Any:
        """`function`, whose time is added to the part that `name` calls it by its arguments."""

        def wrapped(*given: Any, **named: Any) -> Any:
            begun = now()
            found = function(*given, **named)
            self.add(name(*given), now() - begun)
            return found

        return wrapped

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        engine: Any = hf.HFEngine
        engine.generate = self.generating(engine.generate)
        if self.profile:
            policy: Any = pl_module.policy
            policy.decode = self.timed(policy.decode, lambda ids, *_: "prefill" if ids.shape[1] > 1 else "decoding")
            hf.sample = self.timed(hf.sample, lambda *_: "drawing tokens")

    def generating(self, generate: Any) -> Any:
        """`generate`, whose time and tokens are the rollout's."""

        def wrapped(*given: Any) -> Any:
            begun = now()
            found = generate(*given)
            self.rollouts.append(now() - begun)
            self.tokens.append(sum(len(said.tokens) for group in found for said in group))
            return found

        return wrapped

    def on_train_batch_start(self, *_: Any) -> None:
        self._open["forward"] = now()

    def on_before_backward(self, *_: Any) -> None:
        self.add("forward", now() - self._open["forward"])
        self._open["backward"] = now()

    def on_after_backward(self, *_: Any) -> None:
        self.add("backward", now() - self._open["backward"])

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._open["clipping and optimizer"] = now()

    def on_train_batch_end(self, *_: Any) -> None:
        if begun := self._open.pop("clipping and optimizer", None):
            self.add("clipping and optimizer", now() - begun)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.times.append(now())
        self._part["reference"] = float(trainer.callback_metrics["train/rollout/scoring_seconds"])
        self.parts.append(self._part)
        self._part = {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    quiet_libraries()
    cuda = torch.cuda.is_available()
    clock = Clock(options.profile)
    module = GRPO(
        ModelSpec(options.model, dtype=WEIGHTS[options.precision]),
        [FunctionReward(digits)],
        rollout=RolloutConfig(
            group_size=options.group,
            max_new_tokens=options.tokens,
            engine=EngineSpec(batch_size=options.prompts * options.group),
        ),
        beta=0.04,
    )
    trainer = pl.Trainer(
        max_steps=options.steps,
        max_epochs=-1,
        precision=options.precision,
        gradient_clip_val=1.0,
        accumulate_grad_batches=options.accumulate,
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    data = PromptData(options.data, batch_size=options.prompts, shuffle=False, cache_dir=options.cache)
    trainer.fit(module, datamodule=data)
    steps = [b - a for a, b in itertools.pairwise(clock.times)]
    updates = [step - rollout for step, rollout in zip(steps, clock.rollouts[1:], strict=True)]
    figures: dict[str, Any] = {
        "step_s": statistics.median(steps),
        "rollout_s": statistics.median(clock.rollouts[1:]),
        "update_s": statistics.median(updates),
        "tokens": statistics.median(clock.tokens[1:]),
        "peak_mb": peak_mb(),
    }
    if options.profile:
        names = dict.fromkeys(name for part in clock.parts for name in part)
        figures["parts"] = {name: statistics.median(p.get(name, 0.0) for p in clock.parts[1:]) for name in names}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
