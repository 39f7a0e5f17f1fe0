"""Answers to fixed prompts after validations, for people to read how a model changes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from lit_posttrain.callbacks.protocols import GeneratesText
from lit_posttrain.callbacks.step_rows import rewrite
from lit_posttrain.data.modules.prompt_files import prompts_of
from lit_posttrain.errors import PostTrainError
from lit_posttrain.trainer_state import dry_run
from lit_posttrain.types import PromptRecord

_WIDTH = 100


class SampleLogger(Callback):
    """Answers the same prompts after validations, in samples.jsonl, the console and a Weights & Biases table."""

    def __init__(
        self,
        prompts: list[str] | str,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        every_n_validations: int = 1,
        show: int = 2,
    ) -> None:
        """
        Args:
            prompts: User messages; or a file of prompts, as `lit-posttrain generate --prompts` takes it.
            max_new_tokens: Longest answer, in tokens.
            temperature: 0 takes the most likely token every time; 1 samples, with the same seed every time.
            every_n_validations: Answer after every so many validations.
            show: How many answers to print; all are written.
        """
        self.prompts = prompts_of(prompts)
        if not self.prompts:
            raise PostTrainError("SampleLogger got no prompts; name some, or a file of them")
        if every_n_validations < 1:
            raise PostTrainError(f"every_n_validations is {every_n_validations}; it must be at least 1")
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.every_n_validations, self.show = every_n_validations, show
        self._validations = 0
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a method that cannot answer, and prompts that its model cannot."""
        if not isinstance(pl_module, GeneratesText):
            raise PostTrainError(
                f"SampleLogger needs a method that generates text, and {type(pl_module).__name__} does not: drop it"
            )
        if stage == "fit":
            pl_module.check_prompts(self.prompts)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._begun = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """At the first batch drop the rows of steps that a resumed run repeats."""
        if not self._begun and trainer.is_global_zero and not dry_run(trainer):
            rewrite(_file(trainer), trainer.global_step + 1, [])
        self._begun = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer the prompts, on all processes; the first one writes."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._validations += 1
        if self._validations % self.every_n_validations:
            return
        assert isinstance(pl_module, GeneratesText)
        answers = pl_module.generate_text(self.prompts, self.max_new_tokens, self.temperature, 0)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        prompts = [_shown(conversation) for conversation in self.prompts]
        pairs = list(zip(prompts, answers, strict=True))
        if not dry_run(trainer):
            rewrite(_file(trainer), step, ({"step": step, "prompt": p, "response": a} for p, a in pairs))
        print(_block(step, pairs[: self.show], len(pairs)), flush=True)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                rows = [[step, p, a] for p, a in pairs]
                # beside the validation's metrics: Lightning counts the step under way from 0
                logger.log_table("samples", columns=["step", "prompt", "response"], data=rows, step=step - 1)


def _shown(prompt: PromptRecord) -> str:
    """A lone user message as it is; several turns with their roles."""
    if len(prompt.messages) == 1:
        return str(prompt.messages[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt.messages)


def _block(step: int, pairs: Sequence[tuple[str, str]], count: int) -> str:
    lines = [f"answers at step {step} ({len(pairs)} of {count}):"]
    for prompt, answer in pairs:
        lines.append("  > " + textwrap.shorten(prompt, _WIDTH, placeholder=" ..."))
        wrapped = [part for line in answer.splitlines() for part in textwrap.wrap(line, _WIDTH) or [""]]
        lines += ["    " + line for line in wrapped or ["(nothing)"]]
    return "\n".join(lines)


def _file(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "samples.jsonl"
