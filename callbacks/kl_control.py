"""The KL of the policy from its reference on fresh responses: measured, limited, and its weight adapted."""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_posttrain.callbacks.protocols import HasTokenizer, MeasuresKL, OffersPrompts, WeighsKL, part_of
from lit_posttrain.callbacks.reference_sync import ReferenceSync
from lit_posttrain.data.modules.prompt_files import prompts_of
from lit_posttrain.errors import PostTrainError
from lit_posttrain.ops.kl import adapted, k1, k3
from lit_posttrain.rollout.text import prompt_ids
from lit_posttrain.trainer_state import ends_step, seed_of

log = logging.getLogger(__name__)

# options of no effect on a method that measures its own KL, and their defaults
_OF_FRESH_RESPONSES = {"prompts": None, "every_n_steps": 50, "samples": 8, "max_new_tokens": 64}


class KLControl(Callback):
    """Measures the KL of the policy from its reference. A method that samples its own responses with a KL in its loss
    or reward (PPO, GRPO) measures it itself, every phase, and this changes its weight. For other methods with a
    reference (DPO, KTO, OnlineDPO) it draws fresh responses every few optimizer steps.

    The weight begins at --model.beta. `adaptive` (Ziegler et al. 2019) raises it while the KL of a phase, kl/response,
    is above `target` and lowers it while it is below: b (1 + clip(KL/target - 1, -0.2, 0.2) n/horizon) after n
    responses. `linear` takes it to `final` over the run. It is logged as kl_coefficient; a resumed run goes on with it.

    Start near the weight's final value. The best policy at weight b is the reference tilted by exp(reward/b): about
    s^2/(2 b^2) nats away if the rewards of a prompt are spread evenly with deviation s; so b is about
    s/sqrt(2 target), with s = 1 for advantages that are divided by it (grpo). From a weight that is far too small the
    policy overshoots its target before the weight has grown, and returns slowly. Some targets cannot be reached: where
    answers are right or wrong and a share p is right, a policy moves log(1/p) nats at most, and the weight keeps
    falling.

    For fresh responses it logs kl/sampled, the mean over responses of the sum over their tokens of
    d = log pi - log pi_ref at temperature 1: the k1 estimator, unbiased for responses of up to `max_new_tokens`, in
    nats per response; and kl/sampled_per_token, the mean over all tokens of k3 = exp(-d) - 1 + d, in nats per token:
    less noisy and never negative. The standard error is printed when the ceiling is crossed.

    All processes draw the same responses, seeded by run and step, from generators of their own: training does not
    change, and a resumed run draws the same. The time counts as training in perf/tokens_per_s. kl/batch, which the
    method logs, is k3 on the responses of the data: a distance, not a KL.
    """

    def __init__(
        self,
        prompts: list[str] | str | None = None,
        every_n_steps: int = 50,
        samples: int = 8,
        max_new_tokens: int = 64,
        ceiling: float | None = None,
        on_ceiling: Literal["warn", "stop"] = "warn",
        coefficient: Literal["fixed", "adaptive", "linear"] = "fixed",
        target: float | None = None,
        horizon: float = 1000.0,
        final: float | None = None,
    ) -> None:
        """
        Args:
            prompts: User messages to draw fresh responses to; or a file of prompts, as `lit-posttrain generate
                --prompts` takes it. Default: prompts of the first validation set, or without one of the training rows.
            every_n_steps: Optimizer steps between two measurements on fresh responses.
            samples: Fresh responses of a measurement, spread over the prompts; each of `prompts` gets at least one.
            max_new_tokens: Longest fresh response, in tokens.
            ceiling: Highest kl/response or kl/sampled, in nats per response.
            on_ceiling: Above the ceiling `warn`, or `stop` the run at the end of the step (the command line saves it).
            coefficient: The weight of the KL in PPO and GRPO stays (fixed), follows the KL (adaptive), or goes to
                `final` (linear).
            target: The kl/response that adaptive aims at, in nats per response.
            horizon: Responses over which adaptive changes the weight by 20 % at most; fewer adapt faster. Take ten
                phases or more: the policy needs several to follow a weight, and a faster one oscillates. A phase with
                more responses counts as this many.
            final: The weight at the end of the run, for linear.
        """
        counts = {"every_n_steps": every_n_steps, "samples": samples, "max_new_tokens": max_new_tokens}
        for name, value in counts.items():
            if value < 1:
                raise PostTrainError(f"KLControl: {name} is {value}; it must be at least 1")
        if ceiling is not None and ceiling <= 0:
            raise PostTrainError(f"KLControl: ceiling is {ceiling}; it must be above 0, in nats per response")
        if ceiling is None and on_ceiling == "stop":
            raise PostTrainError("KLControl: on_ceiling is stop and there is no ceiling; name one (20 nats, say)")
        if (coefficient == "adaptive") != (target is not None) or (target is not None and target <= 0):
            raise PostTrainError(
                "KLControl: coefficient adaptive needs a target above 0, in nats per response, and a target needs "
                "coefficient adaptive"
            )
        if (coefficient == "linear") != (final is not None) or (final is not None and final < 0):
            raise PostTrainError(
                "KLControl: coefficient linear needs a final weight of at least 0, and final needs coefficient linear"
            )
        if horizon <= 0:
            raise PostTrainError(f"KLControl: horizon is {horizon:g}; it must be above 0, in responses")
        if horizon != 1000.0 and coefficient != "adaptive":
            raise PostTrainError(f"KLControl: horizon {horizon:g} is for coefficient adaptive; leave it out")
        self.coefficient, self.target, self.horizon, self.final = coefficient, target, horizon, final
        self.prompts = prompts_of(prompts or [])
        if prompts is not None and not self.prompts:
            raise PostTrainError("KLControl got no prompts; name some, or leave them out for those of the data")
        self.every_n_steps, self.samples, self.max_new_tokens = every_n_steps, samples, max_new_tokens
        self._given = {"prompts": prompts, **counts}
        self.ceiling, self.on_ceiling = ceiling, on_ceiling
        self._asked: list[list[int]] = []  # token ids, one entry a response
        self._begun: float | None = None  # the weight at the run's first step
        self._phases, self._measured = 0, False  # finished phases of this run, and True once a KL was measured

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a method whose KL cannot be measured or weighted, and tokenise the prompts."""
        if (weight := part_of(pl_module, WeighsKL)) is not None:
            if not weight.used:
                raise PostTrainError(
                    "KLControl: --model.beta is 0, so there is no KL; pass --model.beta 0.05, say, or drop KLControl"
                )
            unused = [name for name, default in _OF_FRESH_RESPONSES.items() if self._given[name] != default]
            if unused:
                raise PostTrainError(
                    f"KLControl: {' and '.join(unused)} would do nothing: they are for fresh responses, and "
                    f"{type(pl_module).__name__} measures the KL on those that it samples; leave them out"
                )
            return
        if self.coefficient != "fixed":
            raise PostTrainError(
                f"KLControl: {self.coefficient} drives the weight of the KL in methods that have one (PPO, GRPO); "
                f"{type(pl_module).__name__} has none: drop it"
            )
        reference = part_of(pl_module, MeasuresKL)
        if reference is None or not isinstance(pl_module, HasTokenizer):
            raise PostTrainError(
                f"KLControl needs a method with a reference (DPO, KTO); {type(pl_module).__name__} has none: drop it"
            )
        if not reference.scores_fresh_text:
            raise PostTrainError(
                "KLControl draws fresh responses, and a cached reference knows those of the data alone; pass "
                "--model.reference copy"
            )
        loosely: Any = trainer
        before = loosely.callbacks[: loosely.callbacks.index(self)]
        if any(isinstance(callback, ReferenceSync) for callback in before):
            raise PostTrainError(
                "KLControl stands behind ReferenceSync, and would measure from a reference that has just followed the "
                "policy; name it first"
            )
        data = getattr(trainer, "datamodule", None)
        if self.prompts:
            prompts = [prompt_ids(pl_module.tokenizer, conversation) for conversation in self.prompts]
        else:
            prompts = data.example_prompts(self.samples) if isinstance(data, OffersPrompts) else []
        if not prompts:
            raise PostTrainError("KLControl found no prompts in the data; name some with --trainer.callbacks.prompts")
        limit, longest = pl_module.max_positions, max(len(prompt) for prompt in prompts)
        if limit is not None and longest >= limit:
            raise PostTrainError(f"KLControl: a prompt of {longest} tokens, and the model takes {limit}; shorten it")
        self._asked = [prompts[i % len(prompts)] for i in range(max(self.samples, len(self.prompts)))]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the run ends before the next measurement; refuse linear for a run without a planned end."""
        self._phases, self._measured = 0, False
        if self.final is not None and trainer.estimated_stepping_batches == math.inf:
            raise PostTrainError(
                "KLControl: linear leads to the run's end, which is not planned; set --trainer.max_steps"
            )
        if part_of(pl_module, WeighsKL) is not None:
            return
        steps, every = trainer.estimated_stepping_batches, self.every_n_steps
        if steps // every == trainer.global_step // every and trainer.is_global_zero:
            told = "KLControl measures every %d steps and the run ends at %d: lower --trainer.callbacks.every_n_steps"
            log.warning(told, every, steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure at the end of every n-th optimizer step, or take what the method has measured in a phase."""
        step = trainer.global_step
        if not ends_step(trainer, batch_idx):
            return
        if (weight := part_of(pl_module, WeighsKL)) is not None:
            self._drive(trainer, weight)
            return
        if step % self.every_n_steps:
            return
        reference = part_of(pl_module, MeasuresKL)
        assert reference is not None
        drawn = reference.sampled_log_ratios(self._asked, self.max_new_tokens, seed_of(step))
        ratios = [ratio.cpu().double() for ratio in drawn]
        of_responses = torch.stack([k1(ratio).sum() for ratio in ratios])
        value = float(of_responses.mean())
        found = {"kl/sampled": value, "kl/sampled_per_token": float(k3(torch.cat(ratios)).mean())}
        for name, figure in found.items():
            pl_module.log(name, figure, logger=False, batch_size=1)  # for what monitors it
        for logger in trainer.loggers:
            # at once: Lightning would drop it on a step that it does not log. It counts the step under way from 0
            logger.log_metrics(found, step=step - 1)
        error = f" +- {float(of_responses.std()) / len(ratios) ** 0.5:.2g}" if len(ratios) > 1 else ""
        self._judge(trainer, step, value, error)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the method has measured no KL in two phases, of which the first may have begun before a resume."""
        self._phases += 1
        needs = self.target is not None or self.ceiling is not None
        if part_of(pl_module, WeighsKL) is None or not needs or self._measured or self._phases != 2:
            return
        if trainer.is_global_zero:
            told = "KLControl has had no effect in two phases: %s has a KLWeight and has not called its `measure`"
            log.warning(told, type(pl_module).__name__)

    def _drive(self, trainer: Trainer, weight: WeighsKL) -> None:
        found = weight.take()
        if self.final is not None:
            begun = self._begun if self._begun is not None else weight.coefficient
            self._begun = begun
            share = min(trainer.global_step / max(float(trainer.estimated_stepping_batches), 1.0), 1.0)
            weight.coefficient = begun + (self.final - begun) * share
        if found is None:
            return
        self._measured, (value, responses) = True, found
        if self.target is not None:
            weight.coefficient = adapted(weight.coefficient, value, self.target, responses, self.horizon)
        self._judge(trainer, trainer.global_step, value, "", "kl/response")

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self._begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._begun = state_dict["begun"]

    def _judge(self, trainer: Trainer, step: int, value: float, error: str, name: str = "kl/sampled") -> None:
        above = self.ceiling is not None and not value <= self.ceiling  # NaN is above
        if not trainer.strategy.reduce_boolean_decision(above, all=False):
            return
        stops = self.on_ceiling == "stop"
        if trainer.is_global_zero:
            told = f"{name} is {value:.3g}{error} at step {step}, above the ceiling of {self.ceiling:g}"
            remedy = "the run ends here" if stops else "lower the learning rate or raise --model.beta"
            log.warning("%s: %s", told, remedy)
        trainer.should_stop = trainer.should_stop or stops
