"""Responses of several turns: what the policy says is kept token by token, with what an environment says in between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from helpers.runs import quiet_trainer, write

from lit_posttrain import GRPO, Completion, ModelSpec, PostTrainError, PromptData, RolloutConfig, Sampling, Tree
from lit_posttrain.on_policy.environment import Environment, Step
from lit_posttrain.on_policy.rollouts import Trajectory
from lit_posttrain.on_policy.turns import Episodes
from lit_posttrain.rewards import FunctionReward
from lit_posttrain.types import PromptRecord

ASKED = [{"role": "user", "content": "name a colour"}]


class Counting(Environment):
    """Says how often it was answered, and ends after some turns."""

    def __init__(self, turns: int = 2, opening: str = "") -> None:
        self.turns, self.opening, self.heard = turns, opening, 0

    def reset(self, record: PromptRecord) -> Sequence[dict[str, Any]]:
        assert record.messages[0] == ASKED[0]
        return [{"role": "user", "content": self.opening}] if self.opening else []

    def step(self, message: dict[str, Any]) -> Step:
        assert message["role"] == "assistant"
        self.heard += 1
        return Step([{"role": "user", "content": f"turn {self.heard}?"}], 0.5, done=self.heard >= self.turns)


class Wrong(Environment):
    """Answers with anything."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def step(self, message: dict[str, Any]) -> Step:
        found: Step = self.answer(message)
        return found


def prompt(tokenizer: Any) -> Tree:
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"]
    return Tree(np.array(ids, np.int32), [], record=PromptRecord(ASKED, {}).to_json())


class Scripted:
    """Draws given texts, a turn after another, each with the end token; remembers what it was asked."""

    def __init__(self, tokenizer: Any, *turns: str) -> None:
        self.tokenizer, self.turns = tokenizer, list(turns)
        self.asked: list[list[list[int]]] = []
        self.room: list[int] = []

    def __call__(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int]
    ) -> list[list[Completion]]:
        self.asked.append([list(ids) for ids in prompts])
        self.room.append(sampling.max_new_tokens)
        if not prompts:
            return []
        ids = [*self.tokenizer(self.turns.pop(0))["input_ids"], self.tokenizer.eos_token_id]
        return [[Completion(ids, [-0.5] * len(ids), "stop") for _ in range(n)] for _ in prompts]


def played(environment: Environment, *turns: str, n: int = 1, room: int = 200) -> tuple[list[Trajectory], Scripted]:
    spoken = tiny.tokenizer()
    draw, tree = Scripted(spoken, *turns), prompt(spoken)
    episodes = Episodes(spoken, environment)
    return episodes.played(episodes.opened([tree]), n, Sampling(room), draw)[0], draw


def test_a_response_is_what_the_chat_template_writes_of_the_conversation() -> None:
    spoken = tiny.tokenizer()
    (one,), draw = played(Counting(turns=3), "red", "green or blue", "blue")
    said = [("red", "turn 1?"), ("green or blue", "turn 2?")]
    talk = [*ASKED]
    for mine, theirs in said:
        talk += [{"role": "assistant", "content": mine}, {"role": "user", "content": theirs}]
    talk.append({"role": "assistant", "content": "blue"})
    whole = spoken.apply_chat_template(talk, tokenize=False)
    assert spoken.decode([*prompt(spoken).prompt, *one.tokens]) + "\n" == whole
    assert [message["content"] for message in one.messages] == ["red", "turn 1?", "green or blue", "turn 2?", "blue"]
    assert draw.asked[2] == [[*prompt(spoken).prompt, *one.tokens[: len(draw.asked[2][0]) - len(draw.asked[0][0])]]]


def test_sampled_tokens_are_told_from_inserted_ones() -> None:
    spoken = tiny.tokenizer()
    (one,), _ = played(Counting(), "red", "green")
    end = spoken.eos_token
    assert spoken.decode(one.tokens[one.sampled]) == f"red{end}green{end}"
    assert (one.logprobs == np.where(one.sampled, np.float32(-0.5), 0)).all()
    assert "turn 1?" in spoken.decode(one.tokens[~one.sampled])


def test_rewards_of_all_steps_are_summed_and_episodes_share_nothing() -> None:
    answers, _ = played(Counting(), "red", "green", n=3)  # a shared environment would have ended the others' episodes
    assert [one.reward for one in answers] == [1.0, 1.0, 1.0]
    assert [len(one.messages) for one in answers] == [3, 3, 3]


def test_what_reset_returns_stands_in_the_prompt() -> None:
    spoken = tiny.tokenizer()
    (opened,) = Episodes(spoken, Counting(opening="of the sky")).opened([prompt(spoken)])
    tree = opened.tree
    talk = [*ASKED, {"role": "user", "content": "of the sky"}]
    assert tree.prompt.tolist() == spoken.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    assert PromptRecord.of(tree).messages == talk


def test_a_response_is_at_most_as_long_as_it_may_be_with_all_its_turns() -> None:
    (whole,), _ = played(Counting(), "red", "green or blue")
    (cut,), draw = played(Counting(), "red", "green or blue", room=len(whole.tokens) - 2)
    before = int(np.argmin(whole.sampled)) + int((~whole.sampled).sum())
    assert draw.room == [len(whole.tokens) - 2, len(whole.tokens) - 2 - before]
    assert cut.tokens.tolist() == whole.tokens[:-2].tolist()
    assert cut.truncated
    (last,) = np.split(cut.tokens, np.flatnonzero(np.diff(cut.sampled.astype(int))) + 1)[2:]
    assert cut.text == cut.messages[-1]["content"] == tiny.tokenizer().decode(last), "rewards judge what is trained on"
    first = int(np.argmin(whole.sampled))
    (alone,), _ = played(Counting(), "red", room=first + 3)  # no room for what the environment says
    assert alone.tokens.tolist() == whole.tokens[:first].tolist()
    assert alone.truncated


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            lambda message: Step(done=False),
            r"Wrong is not done and has nothing to say; let step return messages, or done",
        ),
        (lambda message: ("no", 1.0), r"Wrong: step returned tuple; let it return Step\(messages, reward, done\)"),
        (
            lambda message: Step({"role": "user"}),  # type: ignore[arg-type]  # the mistake
            r"Wrong returned {'role': 'user'} as messages; they are a list, such",
        ),
        (lambda message: Step(reward=float("nan")), r"Wrong: step gave the reward nan; give None for no reward"),
        (lambda message: message["text"], r"Wrong fails at .*test_episodes.py:\d+: KeyError: 'text'"),
    ],
)
def test_a_mistake_of_an_environment_is_told_in_a_line(answer: Any, told: str) -> None:
    with pytest.raises(PostTrainError, match=f"^the environment {told}"):
        played(Wrong(answer), "red")


def test_turns_need_a_chat_template() -> None:
    spoken = tiny.tokenizer()
    episodes = Episodes(spoken, Counting())
    opened = episodes.opened([prompt(spoken)])
    spoken.chat_template = None
    with pytest.raises(PostTrainError, match="an environment with turns needs a chat template"):
        episodes.played(opened, 1, Sampling(100), Scripted(spoken, "red"))


def length(completions: list[str]) -> list[float]:
    return [0.01 * len(said) for said in completions]


def trained(folder: Path, model: Path, environment: Environment | None, rewards: list[Any], **options: Any) -> GRPO:
    """Two steps on four prompts. Many tokens end a turn: the tiny model says its own end token too seldom."""
    words = sorted(tiny.tokenizer().get_vocab().items(), key=lambda item: item[1])
    ends = [word for word, token in words if token > 2 and token % 4 == 0 and word.isalnum()]
    rollout = RolloutConfig(group_size=4, max_new_tokens=100, environment=environment)
    module = GRPO(ModelSpec(str(model), eos=ends), rewards, rollout=rollout)
    rows = write(folder / "prompts.jsonl", [{"prompt": ASKED[0]["content"]} for _ in range(4)])
    data = PromptData(rows, batch_size=4, cache_dir=str(folder / "cache"))
    resumed = options.pop("ckpt_path", None)
    trainer = quiet_trainer(max_steps=2, max_epochs=-1, default_root_dir=folder, **options)
    trainer.fit(module, datamodule=data, ckpt_path=resumed)
    trainer.save_checkpoint(folder / "end.ckpt")
    return module


def test_a_method_trains_on_what_it_sampled_alone(tiny_model: Path, tmp_path: Path) -> None:
    module = trained(tmp_path, tiny_model, Counting(), [FunctionReward(length)])
    rollouts = module.collector.rollouts
    turns = [one.sampled for rollout in rollouts for one in rollout.trajectories]
    assert any((~sampled).any() for sampled in turns)
    for rollout in rollouts:
        assert set(rollout.scores) == {"length", "environment"}
        assert rollout.total == pytest.approx(rollout.scores["length"] + rollout.scores["environment"])
        for response, one in zip(rollout.tree.responses, rollout.trajectories, strict=True):
            assert response.loss_mask.tolist() == one.sampled.tolist()


def test_the_policy_gives_sampled_tokens_the_log_probs_they_were_drawn_with(tiny_model: Path, tmp_path: Path) -> None:
    """Across turns: what was inserted is read by the model, and is not predicted."""
    module = trained(tmp_path, tiny_model, Counting(turns=3), [FunctionReward(length)], log_every_n_steps=1)
    sampled = [one.sampled for rollout in module.collector.rollouts for one in rollout.trajectories]
    assert sum(int((np.diff(turns.astype(int)) == 1).sum()) for turns in sampled) > 4  # turns after the first one
    assert module.trainer.callback_metrics["train/rollout/engine_logp_diff"] < 1e-5


def test_an_environment_is_enough_to_learn_from(tiny_model: Path, tmp_path: Path) -> None:
    assert trained(tmp_path, tiny_model, Counting(), []).collector.reward_names == ["environment"]
    with pytest.raises(PostTrainError, match=r"--model.rewards is empty"):
        trained(tmp_path, tiny_model, None, [])


def test_its_scores_are_told_from_those_of_rewards(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match="one is called environment, as the scores of "):
        trained(tmp_path, tiny_model, Counting(), [FunctionReward(length, name="environment")])


class Shorter(Counting):
    def resume_options(self) -> dict[str, Any]:
        return {"turns": self.turns}


def test_a_resumed_run_has_the_same_environment(tiny_model: Path, tmp_path: Path) -> None:
    trained(tmp_path, tiny_model, Shorter(), [])
    resumed = str(tmp_path / "end.ckpt")
    told = r"--model.rollout.environment.turns 2 and this run has 3"
    with pytest.raises(PostTrainError, match=told):
        trained(tmp_path, tiny_model, Shorter(turns=3), [], ckpt_path=resumed)
    with pytest.raises(PostTrainError, match=r"--model.rollout.environment Shorter and this run has Counting"):
        trained(tmp_path, tiny_model, Counting(), [], ckpt_path=resumed)
    loaded = GRPO.load_from_checkpoint(resumed, rewards=[FunctionReward(length)])
    assert loaded.rollout.group_size == 4
    with pytest.raises(PostTrainError, match=r"does not hold rewards: pass them to GRPO\.load_from_checkpoint"):
        GRPO.load_from_checkpoint(resumed)
