"""Training on responses of several turns: what rewards see, tokens that no text gives, resuming, several processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.processes import run_script
from helpers.runs import quiet_trainer, write
from turns_processes import GROUP, PROMPTS, Insists, grpo, main, prompts

from lit_posttrain import GRPO, Completion, EngineSpec, PostTrainError, PromptData, Sampling, Tree
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.on_policy import sampler
from lit_posttrain.on_policy.environment import Environment, Step
from lit_posttrain.on_policy.turns import Episodes
from lit_posttrain.rewards import Reward, RewardBatch
from lit_posttrain.rollout.hf import HFEngine
from lit_posttrain.types import PromptRecord


class Listens(Reward):
    """Remembers what it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[RewardBatch] = []

    def score(self, batch: RewardBatch) -> list[float]:
        self.batches.append(batch)
        return [float(len(said)) for said in batch.responses]


def fit(module: GRPO, folder: Path, steps: int, resume: Path | None = None, **options: Any) -> GRPO:
    pl.seed_everything(0, verbose=False)
    trainer = quiet_trainer(
        LastCheckpoint(every_n_steps=1), max_epochs=-1, max_steps=steps, default_root_dir=folder, **options
    )
    trainer.fit(module, datamodule=prompts(folder), ckpt_path=str(resume) if resume else None, weights_only=True)
    return module


def test_rewards_see_all_messages_and_judge_the_last_words(tiny_model: Path, tmp_path: Path) -> None:
    module, heard = grpo(str(tiny_model)), Listens()
    module.collector.rewards = type(module.collector.rewards)([heard])
    fit(module, tmp_path, 1)
    (batch,) = heard.batches
    trajectories = [one for rollout in module.collector.rollouts for one in rollout.trajectories]
    assert batch.messages == [one.messages for one in trajectories]
    assert any(len(messages) > 3 for messages in batch.messages), "several turns are the point"
    for response, messages, one in zip(batch.responses, batch.messages, trajectories, strict=True):
        said = [message for message in messages if message["role"] == "assistant"]
        assert response == said[-1]["content"]
        assert [m["content"] for m in messages[1::2]] == ["again"] * (len(said) - 1)
        if not one.truncated:
            assert one.reward == pytest.approx(sum(0.1 * len(m["content"]) for m in said))


class Insisting(Environment):
    """Says "again" once, to the prompt that it was reset with."""

    def __init__(self) -> None:
        self.asked = ""

    def reset(self, record: PromptRecord) -> Sequence[dict[str, Any]]:
        self.asked = record.messages[-1]["content"]
        return [{"role": "user", "content": "please"}]

    def step(self, message: dict[str, Any]) -> Step:
        again, self.asked = self.asked, ""
        return Step([{"role": "user", "content": again}], done=not again)


def test_sampled_tokens_are_kept_though_their_text_has_others() -> None:
    spoken = tiny.tokenizer()
    letters = [spoken.convert_tokens_to_ids(letter) for letter in "colour"] + [spoken.eos_token_id]
    assert spoken("colour")["input_ids"] != letters[:-1]
    asked: list[list[list[int]]] = []

    def draw(
        prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int]
    ) -> list[list[Completion]]:
        asked.append([list(ids) for ids in prompts])
        return [[Completion(letters, [-1.0] * len(letters), "stop") for _ in range(n)] for _ in prompts]

    talk = [{"role": "user", "content": "name one"}]
    ids = np.array(spoken.apply_chat_template(talk, add_generation_prompt=True)["input_ids"], np.int32)
    episodes = Episodes(spoken, Insisting())
    opened = episodes.opened([Tree(ids, [], record=PromptRecord(talk, {}).to_json())])
    ((one,),) = episodes.played(opened, 1, Sampling(100), draw)
    assert one.tokens[one.sampled].tolist() == letters * 2
    assert asked[1][0][: len(asked[0][0]) + len(letters)] == asked[0][0] + letters
    inserted = spoken.decode(one.tokens[~one.sampled])
    assert inserted == "\n<|im_start|>user\nname one<|im_end|>\n<|im_start|>assistant\n"
    assert one.messages[1]["content"] == "name one", "it was reset with the prompt, once, and not with its own opening"


def test_a_rollout_of_several_turns_is_gone_on_from_bitwise(tiny_model: Path, tmp_path: Path) -> None:
    how = {"inner_epochs": 2, "minibatches": 3}
    whole = fit(grpo(str(tiny_model), **how), tmp_path, 9)
    fit(grpo(str(tiny_model), **how), tmp_path, 8)  # six steps a rollout
    resumed = fit(grpo(str(tiny_model), **how), tmp_path, 9, tmp_path / "last.ckpt")
    assert not resumed.collector.rollouts, "nothing was sampled again"
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    start = grpo(str(tiny_model))
    start.configure_model()
    assert any(not torch.equal(value, whole.state_dict()[name]) for name, value in start.state_dict().items())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_with_unequal_numbers_of_turns(strategy: str, tiny_model: Path, tmp_path: Path) -> None:
    """They wait for each other, and sample what one process samples."""
    main(str(tiny_model), tmp_path, "auto", 1)
    done = run_script(Path(__file__).parent / "turns_processes.py", tiny_model, tmp_path, strategy, 2, devices=2)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = torch.load(tmp_path / "auto-1-0.pt", weights_only=True)
    first, second = (torch.load(tmp_path / f"{strategy}-2-{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second
    assert first[0] == alone[0], "before the first step the weights are the same to the last bit"
    turns = [sum(np.diff([0, *sampled]) == 1) for _, sampled, _ in alone[0]]
    half = PROMPTS // 2 * GROUP
    assert max(turns[:half]) > 1, "the first process has more turns to play"
    assert set(turns[half:]) == {1}


@pytest.mark.parametrize(("where", "told"), [("reset", "nothing to play"), ("step", "the game is lost")])
def test_an_environment_that_raises_in_one_process_ends_both(
    where: str, told: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The other one is playing its own episodes, and does not wait for the first one's next turn."""
    done = run_script(
        Path(__file__).parent / "turns_processes.py", tiny_model, tmp_path, "ddp", 2, where, limit_s=120, devices=2
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        (said,) = torch.load(tmp_path / f"ddp-2-{rank}.pt", weights_only=True)
        assert said.startswith("the environment Fails fails at ")
        assert said.endswith(told)


def test_an_environment_that_raises_ends_the_run(tiny_model: Path, tmp_path: Path) -> None:
    class Broken(Insists):
        def step(self, message: dict[str, Any]) -> Step:
            raise PostTrainError("the game is lost")

    with pytest.raises(PostTrainError, match="the game is lost"):
        fit(grpo(str(tiny_model), environment=Broken()), tmp_path, 1)


class Grows(Environment):
    """Adds more and more to prompts, and answers nothing."""

    def __init__(self, words: int) -> None:
        self.words = words

    def reset(self, record: PromptRecord) -> Sequence[dict[str, Any]]:
        number = int(record.messages[-1]["content"].split()[1])
        return [{"role": "user", "content": " a" * self.words * number}]

    def step(self, message: dict[str, Any]) -> Step:
        return Step(reward=float(len(message["content"])))


def test_an_environment_that_adds_more_than_the_model_takes_is_told_in_a_line(tiny_model: Path, tmp_path: Path) -> None:
    told = (
        r"prompts\.jsonl:6: its prompt, what Grows adds to it and --model\.rollout\.max_new_tokens make \d+ tokens, "
        r"and the model takes 512; lower --model\.rollout\.max_new_tokens"
    )
    with pytest.raises(PostTrainError, match=told):
        fit(grpo(str(tiny_model), environment=Grows(90)), tmp_path, 1)


def test_vllm_begins_anew_for_prompts_that_an_environment_makes_longer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has room for what it was begun for, and would cut responses short without a word."""
    begun: list[int] = []

    def engine(policy: Any, eos_ids: Sequence[int], spec: Any, *, longest: int, **rest: Any) -> HFEngine:
        begun.append(longest)
        return HFEngine(policy, eos_ids)

    monkeypatch.setattr(sampler, "VLLMEngine", engine)
    monkeypatch.setattr(sampler, "check_installed", lambda: None)
    module = grpo(str(tiny_model), environment=Grows(3), engine=EngineSpec("vllm"))
    data = PromptData(
        write(tmp_path / "grows.jsonl", [{"prompt": f"say {number} 0"} for number in range(6)]),
        batch_size=2,
        shuffle=False,
        cache_dir=str(tmp_path / "cache"),
    )
    quiet_trainer(max_steps=4, max_epochs=-1, default_root_dir=tmp_path).fit(module, datamodule=data)
    longest = [len(rollout.tree.prompt) for rollout in module.collector.rollouts]
    assert begun == sorted(set(begun)), "each is longer than those before it"
    assert len(begun) == 3, "the fourth rollout has the prompts of the first"
    assert begun[-1] >= max(longest) + 80
