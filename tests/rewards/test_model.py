"""The score of a reward model as a reward: that of `lit-posttrain score` on the same text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import tiny
from helpers.runs import quiet_trainer
from rewards.test_rules import batch

from lit_posttrain import GRPO, ModelSpec, PromptData
from lit_posttrain.data.modules.prompt_files import read_prompts
from lit_posttrain.errors import PostTrainError
from lit_posttrain.inference.score import ResponseScorer
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.rewards import LengthPenalty, RewardBatch, RewardModelScore, RewardSum

SAID = ["a fox", "", "seven wizards brew strong potions", "no", "a lazy dog"]
ASKED = ["what is it", "what is it", "who are they", "what is it", "who are they"]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny reward model, whose template is not the policy's."""
    folder = tmp_path_factory.mktemp("reward")
    base = tiny.save_model(folder / "base", seed=4)
    return tiny.save_scorer(base, folder / "hf", tiny.CHATML.replace("user", "human"))


def judged() -> RewardBatch:
    found = batch(SAID)
    prompts = [[{"role": "user", "content": asked}] for asked in ASKED]
    return RewardBatch(prompts, SAID, {}, found.tokens, found.truncated, found.sources)


@pytest.mark.parametrize("size", [1, 2, 32])
def test_scores_are_those_of_the_score_command(size: int, reward_model: Path, tmp_path: Path) -> None:
    reward = RewardModelScore(str(reward_model), batch_size=size)
    reward.prepare(torch.device("cpu"))
    found = reward.score(judged())
    assert isinstance(found, list)
    rows = [{"prompt": a, "completion": s} for a, s in zip(ASKED, SAID, strict=True) if s]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = ResponseScorer(str(reward_model)).score_file(str(tmp_path / "rows.jsonl"), str(tmp_path / "cache"))
    expected = [scores[0] for _, scores in scored if scores]
    assert [score for score, said in zip(found, SAID, strict=True) if said] == pytest.approx(expected, abs=1e-5)
    assert found[1] is not None, "a response that says nothing has a score too"
    assert len({round(float(score), 4) for score in found if score is not None}) == 5


def test_it_reads_tools_and_goes_on_where_the_prompt_has_begun(reward_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(reward_model, folder)
    tiny.tokenizer("{% if tools %}{{ tools | tojson }}{% endif %}" + tiny.CHATML).save_pretrained(folder)
    begun = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "It is"}]
    tool = {"type": "function", "function": {"name": "zulu", "parameters": {}}}
    rows = [{"prompt": begun, "tools": [tool]}, {"prompt": begun}, {"prompt": begun[:1]}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, said = read_prompts(str(tmp_path / "asked.jsonl")), [" a fox", " a fox", "It is a fox"]
    reward = RewardModelScore(str(folder))
    reward.prepare(torch.device("cpu"))
    prompts = [record.messages for record in records]
    with_tools, without, whole = reward.score(
        RewardBatch(prompts, said, {}, [[1]] * 3, [False] * 3, ["x"] * 3, records)
    )
    assert without == pytest.approx(whole, abs=1e-6)
    assert with_tools != pytest.approx(without, abs=1e-4)


def test_turns_of_an_environment_are_part_of_the_conversation(reward_model: Path, tmp_path: Path) -> None:
    """Also if the first goes on from what the prompt has begun, and in a batch with responses of one turn."""
    asked, begun = {"role": "user", "content": "what is it"}, {"role": "assistant", "content": "It is"}
    turns = [{"role": "assistant", "content": "a fox"}, {"role": "user", "content": "who says so"}]
    last = {"role": "assistant", "content": "seven wizards"}
    goes_on = [{"role": "assistant", "content": " a fox"}, *turns[1:]]
    whole = [[asked, *turns, last], [asked, last], [asked, {**begun, "content": "It is a fox"}, turns[1], last]]
    prompts, said = [[asked], [asked], [asked, begun]], [[*turns, last], [last], [*goes_on, last]]
    rows = "".join(json.dumps({"messages": talk}) + "\n" for talk in whole)
    (tmp_path / "rows.jsonl").write_text(rows)
    scored = ResponseScorer(str(reward_model)).score_file(str(tmp_path / "rows.jsonl"), str(tmp_path / "cache"))
    reward = RewardModelScore(str(reward_model))
    reward.prepare(torch.device("cpu"))
    texts = [last["content"]] * 3
    found = reward.score(RewardBatch(prompts, texts, {}, [[1]] * 3, [False] * 3, ["x"] * 3, messages=said))
    assert found == pytest.approx([scores[0] for _, scores in scored if scores], abs=1e-5)
    assert isinstance(found, list)
    assert found[0] != pytest.approx(found[1], abs=1e-4)


def test_what_is_too_long_has_no_score(reward_model: Path) -> None:
    reward = RewardModelScore(str(reward_model))
    reward.prepare(torch.device("cpu"))
    prompt = [{"role": "user", "content": "what is it"}]
    long = RewardBatch([prompt] * 2, ["a fox", "a fox " * 600], {}, [[1]] * 2, [False] * 2, ["x:1"] * 2)
    found = reward.score(long)
    assert isinstance(found, list)
    assert found[0] is not None
    assert str(found[1]) == "prompt and response are 1219 tokens, and the reward model takes 512"
    # a second reward with a say would make the one that the reward model cannot read the best
    total = RewardSum([reward, LengthPenalty(100, 20)])(long).total
    assert total.isnan().tolist() == [False, True]


def test_validate_loads_it(reward_model: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": asked}) + "\n" for asked in ASKED))
    data = PromptData("builtin:demo_words", val_path=str(tmp_path / "p.jsonl"), cache_dir=str(tmp_path / "cache"))
    module = GRPO(
        ModelSpec(str(tiny_model)), [RewardModelScore(str(reward_model))], rollout=RolloutConfig(max_new_tokens=4)
    )
    (found,) = quiet_trainer(default_root_dir=str(tmp_path)).validate(module, datamodule=data, verbose=False)
    assert found["val/rewards/rewardmodelscore/failed"] == 0
    assert "val/reward" in found


def test_a_language_model_is_no_reward(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"there is no folder scores-hf; train one with configs/reward\.yaml"):
        RewardModelScore("scores-hf").prepare(torch.device("cpu"))
    with pytest.raises(PostTrainError, match="a language model without a score head"):
        RewardModelScore(str(tiny_model)).prepare(torch.device("cpu"))
    shutil.copytree(tiny_model, tmp_path / "x")
    with pytest.raises(PostTrainError, match="batch_size is 0"):
        RewardModelScore("x", batch_size=0)
