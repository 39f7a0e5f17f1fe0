"""GRPO on prompts whose episodes have unequal numbers of turns, in as many processes as it is told (MODEL FOLDER
STRATEGY DEVICES [FAILS]): every rank runs it. Writes FOLDER/STRATEGY-DEVICES-RANK.pt: all responses
of two rollouts as this rank has them, or what the run ended with. FAILS: where the environment raises on the first
process, reset or step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from helpers import tiny
from helpers.runs import quiet_trainer, write

from lit_posttrain import GRPO, ModelSpec, PostTrainError, PromptData, RolloutConfig
from lit_posttrain.models.sharding import FSDP2Strategy
from lit_posttrain.on_policy.environment import Environment, Step
from lit_posttrain.types import PromptRecord

PROMPTS, GROUP = 6, 2


class Insists(Environment):
    """Asks again as often as the prompt says with its last word, and gives more the more was said."""

    def __init__(self) -> None:
        self.left = 0

    def reset(self, record: PromptRecord) -> Sequence[dict[str, Any]]:
        self.left = int(record.messages[-1]["content"].split()[-1])
        return ()

    def step(self, message: dict[str, Any]) -> Step:
        self.left -= 1
        return Step([{"role": "user", "content": "again"}], 0.1 * len(message["content"]), done=self.left < 0)


class Fails(Insists):
    """Raises on the prompts of the first process: as it begins, or on its second answer."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.spoilt = where, False

    def reset(self, record: PromptRecord) -> Sequence[dict[str, Any]]:
        super().reset(record)
        self.spoilt = self.left > 0
        if self.spoilt and self.where == "reset":
            raise ValueError("nothing to play")
        return ()

    def step(self, message: dict[str, Any]) -> Step:
        if self.spoilt and self.left < 3:
            raise ValueError("the game is lost")
        return super().step(message)


def ends() -> list[str]:
    """Many tokens end a turn: the tiny model says its own end token too seldom."""
    words = sorted(tiny.tokenizer().get_vocab().items(), key=lambda item: item[1])
    return [word for word, token in words if token > 2 and token % 4 == 0 and word.isalnum()]


def grpo(model: str, **rollout: Any) -> GRPO:
    config = RolloutConfig(**{"group_size": GROUP, "max_new_tokens": 80, "environment": Insists(), **rollout})
    return GRPO(ModelSpec(model, eos=ends()), [], rollout=config)


def prompts(folder: Path) -> PromptData:
    """The first half is asked again three times, the others not at all: the turns of two processes differ."""
    rows = [{"prompt": f"say {number} {3 if number < PROMPTS // 2 else 0}"} for number in range(PROMPTS)]
    file = write(folder / "prompts.jsonl", rows) if not (folder / "prompts.jsonl").exists() else None
    return PromptData(
        file or str(folder / "prompts.jsonl"), batch_size=PROMPTS, shuffle=False, cache_dir=str(folder / "cache")
    )


class Responses(pl.Callback):
    """What every rollout holds."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        all_of_them = [one for rollout in pl_module.collector.rollouts for one in rollout.trajectories]
        self.found.append([[one.tokens.tolist(), one.sampled.tolist(), one.reward] for one in all_of_them])


def main(model: str, folder: Path, strategy: str, devices: int, fails: str = "") -> None:
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    seen = Responses()
    trainer = quiet_trainer(
        seen,
        devices=devices,
        strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
        max_epochs=2,
        default_root_dir=folder,
    )
    try:
        trainer.fit(grpo(model, **({"environment": Fails(fails)} if fails else {})), datamodule=prompts(folder))
    except PostTrainError as problem:
        seen.found = [str(problem)]
    torch.save(seen.found, folder / f"{strategy}-{devices}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
