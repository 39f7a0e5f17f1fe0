"""The spine of on-policy methods: phases, prompts, faults, and what a checkpoint keeps of a phase."""

from __future__ import annotations

import inspect
import json
import math
import re
from enum import StrEnum
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from cases import recorded
from helpers.runs import quiet_trainer

from lit_posttrain import (
    GRPO,
    SFT,
    Completion,
    ModelSpec,
    PostTrainError,
    PromptData,
    Response,
    RolloutConfig,
    Tree,
    rewards,
)
from lit_posttrain.callbacks import BestCheckpoint, LastCheckpoint, ReferenceSync, RewardLogger
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.resume import require_same_options, saved_options
from lit_posttrain.on_policy.experience import Experience, PromptStream, num_targets, split_trees
from lit_posttrain.on_policy.policy_gradient import Clip
from lit_posttrain.rewards import (
    ExactMatch,
    FunctionReward,
    JsonValid,
    MathAnswer,
    Regex,
    Reward,
    RewardBatch,
    RewardModelScore,
)


def letters(completions: list[str]) -> list[float]:
    return [float(len(said)) for said in completions]


def prompts(folder: Path, count: int = 12, **options: Any) -> PromptData:
    file = folder / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"tell me about {i}", "answer": str(i)}) + "\n" for i in range(count))
    )
    return PromptData(str(file), **{"batch_size": 4, "cache_dir": str(folder / "cache"), **options})


def grpo(model: Path, rewards: Any = None, **options: Any) -> GRPO:
    """Eight tokens for each of four responses, where `rollout` does not say otherwise."""
    rollout = RolloutConfig(**{"group_size": 4, "max_new_tokens": 8, **options.pop("rollout", {})})
    return GRPO(ModelSpec(str(model)), rewards or [FunctionReward(letters)], rollout=rollout, **options)


def fit(module: GRPO, data: Any, folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    trainer = quiet_trainer(
        *callbacks, **{"max_epochs": 2, "default_root_dir": folder, "log_every_n_steps": 1, **options}
    )
    trainer.fit(module, datamodule=data)
    return trainer


def sampled_trees() -> list[Tree]:
    random = np.random.default_rng(0)
    trees = []
    for row in range(3):
        responses = []
        for k in range(row + 1):
            counted = np.full(4 + k, k != 1, np.bool_)
            labels = {"reward": 0.1 + k} | ({"rank": float(k), "cost": 1 / 3} if row else {})
            responses.append(Response(random.integers(3, 90, 4 + k).astype(np.int32), counted, labels))
        tree = Tree(random.integers(3, 90, 5).astype(np.int32), responses, file="a.jsonl", line=row)
        tree.per_target = {
            "old_logprobs": random.random(num_targets(tree)),
            "advantage": random.random(num_targets(tree)),
        }
        trees.append(tree)
    return trees


def same(one: Tree, other: Tree) -> None:
    assert one.source == other.source
    assert np.array_equal(one.prompt, other.prompt)
    for a, b in zip(one.responses, other.responses, strict=True):
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.loss_mask, b.loss_mask)
        assert a.labels == b.labels
    assert one.per_target.keys() == other.per_target.keys()
    assert all(np.array_equal(values, other.per_target[name]) for name, values in one.per_target.items())


def test_experience_survives_a_checkpoint(tmp_path: Path) -> None:
    trees = sampled_trees()
    del trees[1].responses[1].labels["reward"]  # of a response that no reward could judge
    torch.save(Experience(trees).dump(), tmp_path / "x.pt")
    found = Experience.restored(torch.load(tmp_path / "x.pt", weights_only=True)).trees
    for one, other in zip(trees, found, strict=True):
        same(one, other)


def test_trees_are_split_with_their_columns() -> None:
    trees = sampled_trees()
    pieces = split_trees(trees, 5)
    assert [len(piece.responses) for piece in pieces] == [1, 1, 1, 1, 2]
    whole = np.concatenate([tree.per_target["old_logprobs"] for tree in trees])
    assert np.array_equal(np.concatenate([piece.per_target["old_logprobs"] for piece in pieces]), whole)
    assert all(num_targets(piece) == len(piece.per_target["old_logprobs"]) for piece in pieces)
    assert len(split_trees(trees, 99)) == 6
    assert split_trees([], 3) == []


def test_prompts_come_in_passes(tmp_path: Path, tiny_model: Path, tokenizer: Any) -> None:
    data = prompts(tmp_path, 5)
    data.build(tokenizer)
    stream = PromptStream(data.train_store, seed=1, shuffle=True)
    taken = [stream.take(3) for _ in range(5)]
    flat = [row for rows in taken for row in rows]
    assert all(sorted(flat[i : i + 5]) == list(range(5)) for i in (0, 5, 10))
    again = PromptStream(data.train_store, seed=1, shuffle=True)
    again.position = 6
    assert again.take(3) == taken[2]


class Logged(pl.Callback):
    """The metrics of every phase."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_top_up_replaces_groups_that_teach_nothing(tiny_model: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def sometimes(prompts: Any, completions: list[str]) -> list[float]:
        asked.append(len(completions))
        numbers = [int(prompt[-1]["content"].rsplit(" ", 1)[1]) for prompt in prompts]
        return [float(len(said)) if number % 2 else 1.0 for said, number in zip(completions, numbers, strict=True)]

    seen = Logged()
    module = grpo(tiny_model, [FunctionReward(sometimes)], rollout={"dynamic_sampling_retries": 8})
    fit(module, prompts(tmp_path), tmp_path, seen, max_epochs=1)
    assert len(asked) > 1
    assert len(module.collector.rollouts) == 4
    assert all(one.has_reward_variance for one in module.collector.rollouts)
    assert seen.rows[0]["train/frac_reward_zero_std"] > 0, "the metric is of all that was sampled"
    asked.clear()

    class Shaped(FunctionReward):
        shaping = True

    def right(completions: list[str]) -> list[float]:
        asked.append(len(completions))
        return [1.0] * len(completions)

    rewards = [FunctionReward(right), Shaped(letters)]
    shaped = grpo(tiny_model, rewards, rollout={"dynamic_sampling_retries": 1})
    fit(shaped, prompts(tmp_path), tmp_path / "shaped", seen, max_epochs=1)
    assert any(one.has_reward_variance for one in shaped.collector.rollouts)
    assert not any(one.has_signal for one in shaped.collector.rollouts)
    assert asked == [16, 16], "its one further attempt is made, for all of the prompts"
    never = grpo(
        tiny_model,
        [FunctionReward(lambda completions: [1.0] * len(completions))],
        rollout={"dynamic_sampling_retries": 2},
    )
    trainer = fit(never, prompts(tmp_path), tmp_path / "never", max_epochs=1)
    assert trainer.global_step == 1, "a phase that teaches nothing is a step all the same"
    assert len(never.collector.rollouts) == 4


def test_groups_without_a_lesson_change_no_gradient(tiny_model: Path, tmp_path: Path) -> None:
    """They are left out of the computation, and stay in its denominators."""

    def odd(prompts: Any, completions: list[str]) -> list[float]:
        numbers = [int(prompt[-1]["content"].rsplit(" ", 1)[1]) for prompt in prompts]
        return [float(len(said)) * (number % 2) for said, number in zip(completions, numbers, strict=True)]

    found = []
    for everything in (False, True):
        module = grpo(
            tiny_model,
            [FunctionReward(odd)],
            optim=Optim(lr=0.5, optimizer="SGD", schedule="constant", warmup_ratio=0.0),
        )
        if everything:
            module.has_gradient = lambda tree: True  # type: ignore[method-assign]  # as if it were not left out
        fit(module, prompts(tmp_path, shuffle=False), tmp_path, max_epochs=1)
        found.append({name: p.detach().clone() for name, p in module.named_parameters()})
    start = grpo(tiny_model)
    start.configure_model()
    assert any(not torch.equal(p, found[0][name]) for name, p in start.named_parameters())
    for name, weight in found[0].items():
        assert torch.allclose(weight, found[1][name], atol=1e-6), name


def test_a_reward_that_fails_on_everything_ends_a_phase_and_a_validation(tiny_model: Path, tmp_path: Path) -> None:
    def broken(completions: list[str]) -> list[float]:
        return [math.nan] * len(completions)

    with pytest.raises(PostTrainError, match=r"reward broken fails on every response, first on the prompt .*:\d+: "):
        fit(grpo(tiny_model, [FunctionReward(broken)]), prompts(tmp_path), tmp_path / "fit", max_epochs=1)
    trainer = quiet_trainer(default_root_dir=tmp_path)
    with pytest.raises(PostTrainError, match="reward broken fails on every response"):
        trainer.validate(grpo(tiny_model, [FunctionReward(broken)]), datamodule=prompts(tmp_path, val_fraction=0.5))


def test_a_reward_that_breaks_down_ends_the_run_before_its_rollout_is_trained_on(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that goes on, with the reward mended, ends as one whose reward has always worked."""
    calls: list[int] = []

    def later(completions: list[str]) -> list[float]:
        calls.append(len(completions))
        return [float(len(said)) if len(calls) < works else math.nan for said in completions]

    works = 99
    whole = grpo(tiny_model, [FunctionReward(later)])
    fit(whole, prompts(tmp_path), tmp_path / "whole", max_epochs=4)

    calls.clear()
    works = 3
    with pytest.raises(PostTrainError, match=r"reward later fails on every response, first on the prompt .*; mend it"):
        fit(
            grpo(tiny_model, [FunctionReward(later)]),
            prompts(tmp_path),
            tmp_path,
            LastCheckpoint(100),
            max_epochs=4,
            min_epochs=4,
        )
    assert f"step 2 is saved in {tmp_path / 'last.ckpt'}" in capsys.readouterr().out
    works = 99
    module = grpo(tiny_model, [FunctionReward(later)])
    again = quiet_trainer(LastCheckpoint(100), max_epochs=4, default_root_dir=tmp_path)
    again.fit(module, datamodule=prompts(tmp_path), ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 4
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), whole.parameters(), strict=True))


def test_responses_without_a_score_are_told_once(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "some.jsonl"
    rows = [{"prompt": f"tell me about {i}", "answer": "a fox" if i % 2 else None} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PromptData(str(file), batch_size=4, cache_dir=str(tmp_path / "cache"), shuffle=False)
    fit(grpo(tiny_model, [ExactMatch()]), data, tmp_path)
    assert caplog.text.count("8 of 16 responses have no score and train nothing, first those to ") == 1


@pytest.mark.parametrize(("longest", "told"), [(2, 1), (200, 0)])
def test_responses_that_are_mostly_cut_off_are_told_of_once(
    longest: int, told: int, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(grpo(tiny_model, rollout={"max_new_tokens": longest, "seed": 1}), prompts(tmp_path), tmp_path, max_steps=2)
    assert sum("were cut off at 2 tokens" in r.getMessage() for r in caplog.records) == told


def _unanswered(folder: Path, name: str) -> str:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"tell me about {i}", "answer": None}) + "\n" for i in range(8)))
    return str(file)


def test_a_run_without_any_score_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    data = PromptData(_unanswered(tmp_path, "none"), batch_size=4, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(PostTrainError, match=r"none of the \d+ responses of this run has a score"):
        fit(grpo(tiny_model, [ExactMatch()]), data, tmp_path)


def test_a_validation_without_any_score_is_said_as_what_it_is(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"tell me about {i}", "answer": "a fox"} for i in range(8)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = _unanswered(tmp_path, "none")
    data = PromptData(
        str(tmp_path / "all.jsonl"),
        val_path=held_out,
        batch_size=4,
        cache_dir=str(tmp_path / "cache"),
        val_fraction=0.0,
    )
    with pytest.raises(PostTrainError, match="no reward has a say on any response to the validation's prompts"):
        fit(grpo(tiny_model, [ExactMatch()]), data, tmp_path, BestCheckpoint("val/reward", "max"))


def test_a_dry_run_is_part_of_a_phase(tiny_model: Path, tmp_path: Path) -> None:
    trainer = fit(grpo(tiny_model), prompts(tmp_path, val_fraction=0.3), tmp_path, fast_dev_run=True)
    assert trainer.global_step == 1


def test_there_is_no_reference_to_move(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"ReferenceSync: there is no reference to move; --model\.beta above 0"):
        fit(grpo(tiny_model), prompts(tmp_path), tmp_path, ReferenceSync(1))


def test_what_has_no_score_trains_nothing(tiny_model: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def broken(completions: list[str]) -> list[float]:
        calls.append(len(completions))
        if len(completions) == 1 and len(calls) % 3 == 0:
            raise RuntimeError("no connection")
        if len(completions) > 1:
            raise RuntimeError("too many at once")
        return [float(len(completions[0]))]

    seen = Logged()
    module = grpo(tiny_model, [FunctionReward(broken)])
    fit(module, prompts(tmp_path), tmp_path, seen, max_epochs=1, log_every_n_steps=1)
    row = seen.rows[0]
    assert row["train/reward/missing_ratio"] == row["train/rewards/broken/failed"] > 0.2
    for one in module.collector.rollouts:
        for response in one.tree.responses:
            assert response.loss_mask.any() == ("reward" in response.labels)


def test_validation_answers_greedily_and_logs_rewards(tiny_model: Path, tmp_path: Path) -> None:
    trainer = fit(grpo(tiny_model), prompts(tmp_path, 20, val_fraction=0.3), tmp_path, max_epochs=1)
    first = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
    assert first["val/reward"] == first["val/rewards/letters/mean"]
    assert first["val/reward/missing_ratio"] == 0


def test_the_reward_logger_shows_completions(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = grpo(tiny_model, [FunctionReward(letters), FunctionReward(lambda completions: [None] * len(completions))])
    fit(module, prompts(tmp_path), tmp_path, RewardLogger(show=5, every_n_phases=2), max_epochs=4)
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1] * 5 + [3] * 5
    for row in rows:
        assert row["reward"] == row["rewards/letters"] == len(row["response"])
        assert row["rewards/<lambda>"] is None
        assert "tell me about" in row["prompt"]
        assert row["source"].startswith(str(tmp_path))
    out = capsys.readouterr().out
    assert "completions at step 3 (5 in completions.jsonl):" in out
    assert "  best " in out


def test_a_column_that_only_another_file_has_is_missed_at_the_start(tiny_model: Path, tmp_path: Path) -> None:
    data = prompts(tmp_path)
    (tmp_path / "other.jsonl").write_text('{"prompt": "what is it", "solution": "7"}\n')
    data = PromptData([str(tmp_path / "prompts.jsonl"), str(tmp_path / "other.jsonl")], cache_dir=str(tmp_path / "c"))
    with pytest.raises(PostTrainError, match=r"other.jsonl:1: ExactMatch needs the column `answer`"):
        fit(grpo(tiny_model, [ExactMatch()]), data, tmp_path)


def test_rows_of_a_step_are_named_by_their_prompts(tiny_model: Path, tmp_path: Path) -> None:
    module, data = grpo(tiny_model), prompts(tmp_path)
    seen: list[tuple[list[str], list[str]]] = []

    class Names(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            sources = sorted({one.tree.source for one in pl_module.collector.rollouts if one.has_reward_variance})
            seen.append((sorted(data.row_sources(batch.example_ids)), sources))

    fit(module, data, tmp_path, Names())
    assert seen
    assert all(named == sources for named, sources in seen)


def test_masked_responses_are_in_no_mean_of_the_kl(tiny_model: Path, tmp_path: Path) -> None:
    module = grpo(tiny_model, rollout={"inner_epochs": 2, "mask_truncated": True}, beta=0.1)
    module.collector.sampler.answers = lambda prompts, n, *_: recorded(prompts, n)  # type: ignore[method-assign]  # some end
    trainer = fit(module, prompts(tmp_path), tmp_path, max_epochs=1)
    counted = [r for one in module.collector.rollouts for r in one.tree.responses if r.loss_mask.any()]
    assert 0 < len(counted) < 16, "some responses are cut off, and some are not"
    found = module.kl.take()
    assert found is not None
    assert found[1] == len(counted)
    assert trainer.global_step == 2


def test_an_engine_that_gives_too_little_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    def fewer(prompts: Any, n: int, sampling: Any, numbers: Any) -> Any:
        return [[Completion([5], [-1.0], "stop")] * (4 - number % 2) for number, _ in enumerate(prompts)]

    def nothing(prompts: Any, n: int, sampling: Any, numbers: Any) -> Any:
        return [[Completion([], [], "stop")] * 4 for _ in prompts]

    for answers, said in ((fewer, "fewer responses than it was asked for"), (nothing, "response without tokens")):
        module = grpo(tiny_model)
        module.collector.sampler.answers = answers  # type: ignore[method-assign]  # an engine that fails
        with pytest.raises(PostTrainError, match=said):
            fit(module, prompts(tmp_path), tmp_path)


def test_resuming_with_other_options_of_a_reward_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    before = grpo(tiny_model, [Regex("a+", name="r"), ExactMatch("answer", name="e")]).method_options
    for other, said in (
        ([Regex("b+", name="r"), ExactMatch("answer", name="e")], "--model.rewards.r.pattern a+ and this run has b+"),
        (
            [Regex("a+", name="r"), ExactMatch("gold", name="e")],
            "--model.rewards.e.column answer and this run has gold",
        ),
        ([Regex("a+", True, name="r"), ExactMatch("answer", name="e")], "--model.rewards.r.whole False"),
        ([Regex("a+", 2.0, name="x")], "--model.rewards 1 x r, 1 x e and"),
    ):
        with pytest.raises(PostTrainError, match=re.escape(said)):
            require_same_options(saved_options(before), grpo(tiny_model, other).method_options)


def test_what_trl_passes_to_a_reward_function_is_passed_or_refused() -> None:
    def counted(prompts: Any, completions: Any, completion_ids: Any, **more: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    def logs(prompts: Any, completions: Any, log_metric: Any, **more: Any) -> list[float]:
        return [0.0 for _ in completions]

    reward = FunctionReward(counted)
    reward.check(["answer"], "a.jsonl:1")
    batch = RewardBatch([[], []], ["a", "b"], {}, [[1, 2], [3]], [False, False], ["a.jsonl:1"] * 2)
    assert reward.score(batch) == [2.0, 1.0]
    with pytest.raises(PostTrainError, match="logs takes `log_metric`, which TRL passes and lit-posttrain does not"):
        FunctionReward(logs).check(["answer"], "a.jsonl:1")


class Judge(Reward):
    """Where it asks, and by what key, decides no score."""

    def __init__(self, url: str, api_key: str = "", words: Any = None) -> None:
        super().__init__()
        self.url, self.api_key = url, api_key
        self.words = words
        self.options = {"retries": 3}

    def score(self, batch: RewardBatch) -> list[float]:
        return [float(len(said)) for said in batch.responses]


def test_a_run_goes_on_with_a_reward_of_ones_own_that_asks_elsewhere(tiny_model: Path, tmp_path: Path) -> None:
    """And its checkpoint holds neither objects, which could not be read again, nor keys."""
    judge = Judge("http://one", "a-key", [re.compile("a+")])
    fit(grpo(tiny_model, [judge]), prompts(tmp_path), tmp_path, LastCheckpoint(100), max_epochs=-1, max_steps=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["lit_posttrain"]["options"]["rewards"] == "1 x judge"
    assert b"a-key" not in (tmp_path / "last.ckpt").read_bytes()
    trainer = quiet_trainer(max_epochs=-1, max_steps=2, default_root_dir=tmp_path)
    later = grpo(tiny_model, [Judge("http://two", "another")])
    trainer.fit(later, datamodule=prompts(tmp_path), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert trainer.global_step == 2


def test_no_object_is_saved_among_the_options_of_a_method(tiny_model: Path, tmp_path: Path) -> None:
    class Grade(StrEnum):
        A = "a"

    class Own(SFT):
        def __init__(self, policy: ModelSpec, given: Any = None, kept: Any = None) -> None:
            super().__init__(policy)
            self.given, self.kept = given, kept

    for given in (np.float64(0.5), Grade.A, [re.compile("a")], {"a": [np.float64(1)]}, {1: 2}, (1, 2), {"a"}):
        assert "given" not in saved_options(Own(ModelSpec(str(tiny_model)), given).method_options)
    hidden = saved_options(Own(ModelSpec(str(tiny_model)), kept={"api_key": "a-key"}).method_options)["kept"]
    assert "a-key" not in str(hidden)
    kept = {"a": [1, 0.5, None, True, "x"]}
    assert saved_options(Own(ModelSpec(str(tiny_model)), kept=kept).method_options)["kept"] == kept


# arguments of rewards that change nothing of what their scores mean
COMPUTED = {"weight", "name", "batch_size", "bfloat16", "trust_remote_code"}


GIVEN: dict[str, Any] = {"column": "c", "pattern": "p", "keys": ["k"], "limit": 8, "buffer": 4, "n": 2}
GIVEN |= {"path": "owner/model", "function": letters, "ignore_case": True, "whole": True}
KINDS = [
    kind for kind in vars(rewards).values() if inspect.isclass(kind) and issubclass(kind, Reward) and kind != Reward
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_decides_the_score_of_every_reward_is_compared(kind: type[Reward]) -> None:
    own = [one for one in inspect.signature(kind).parameters if one not in COMPUTED]
    said = {**GIVEN, "function": "letters"}
    assert kind(**{one: GIVEN[one] for one in own}).resume_options() == {one: said[one] for one in own}


@pytest.mark.parametrize("kind", KINDS)
def test_no_option_of_a_reward_is_hidden_from_a_resumed_run(kind: type[Reward], tiny_model: Path) -> None:
    own = [one for one in inspect.signature(kind).parameters if one not in COMPUTED]
    module = grpo(tiny_model, [reward := kind(**{one: GIVEN[one] for one in own})])
    for option, value in reward.resume_options().items():
        assert saved_options(module.method_options)[f"rewards.{reward.name}.{option}"] == value


def test_a_run_goes_on_with_the_same_keys_alone(tiny_model: Path, tmp_path: Path) -> None:
    def go_on(keys: list[str], steps: int, **more: Any) -> pl.Trainer:
        trainer = quiet_trainer(LastCheckpoint(100), max_epochs=-1, max_steps=steps, default_root_dir=tmp_path)
        trainer.fit(grpo(tiny_model, [JsonValid(keys)]), datamodule=prompts(tmp_path), **more)
        return trainer

    go_on(["answer"], 1)
    resumed = {"ckpt_path": str(tmp_path / "last.ckpt"), "weights_only": True}
    with pytest.raises(PostTrainError, match=r"rewards.jsonvalid.keys \['answer'\] and this run has \['solution'\]"):
        go_on(["solution"], 2, **resumed)
    assert go_on(["answer"], 2, **resumed).global_step == 2


def test_the_reward_model_of_a_run_is_the_same_from_any_folder(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    assert RewardModelScore(tiny_model.name).resume_options() == {"path": str(tiny_model.resolve())}


def test_a_method_that_learns_from_scores_needs_a_reward(tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match=r"--model\.rewards is empty: GRPO learns from scores"):
        GRPO(ModelSpec(str(tiny_model)), [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rollout": {"group_size": 1}}, "group_size 1: a response is compared with others"),
        ({"rollout": {"temperature": 0.0}}, "--model.rollout.temperature is 0; it must be above 0"),
        ({"beta": -1.0}, "--model.beta is -1.0"),
        ({"reference": "cached"}, "--model.reference cached: responses are new every time"),
        ({"objective": "cispo", "clip": Clip(high=0.2)}, "take --model.ratio token, --model.clip.high 5"),
        ({"entropy": -0.1}, "--model.entropy is -0.1"),
        ({"epsilon": -1.0}, "--model.epsilon is -1.0"),
        ({"epsilon": math.nan}, "--model.epsilon is nan"),
        ({"beta": math.inf}, "--model.beta is inf"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str, tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match=said):
        grpo(tiny_model, **options)


@pytest.mark.parametrize(
    ("module", "data", "trainer", "said"),
    [
        ({"rollout": {"minibatches": 3}}, {}, {}, "no multiple of --model.rollout.minibatches 3"),
        (
            {"rollout": {"group_size": 2}},
            {"batch_size": 2},
            {"accumulate_grad_batches": 8},
            "2 prompts x 2 responses for 8",
        ),
        (
            {"rollout": {"max_new_tokens": 510}},
            {},
            {},
            r"prompts.jsonl:\d+: .* model takes 512; pass --data.max",
        ),
        (
            {"rewards": [ExactMatch("right")]},
            {},
            {},
            "prompts.jsonl:1: ExactMatch needs the column `right`, and there are prompt",
        ),
        (
            {"rewards": [FunctionReward(lambda completions, right, left=None, **_: [], name="mine")]},
            {},
            {},
            "prompts.jsonl:1: the reward function mine takes `right`, and the columns there are prompt",
        ),
        (
            {},
            {},
            {"limit_train_batches": 0.5},
            r"limit_train_batches \(or overfit_batches\) cuts a rollout short",
        ),
    ],
)
def test_what_does_not_go_together_is_said_at_the_start(
    module: dict[str, Any],
    data: dict[str, Any],
    trainer: dict[str, Any],
    said: str,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(PostTrainError, match=said):
        fit(grpo(tiny_model, **module), prompts(tmp_path, **data), tmp_path, **trainer)


def test_prompts_and_methods_that_do_not_go_together(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match="PromptData holds prompts without answers, and SFT learns from answers"):
        fit(SFT(ModelSpec(str(tiny_model))), prompts(tmp_path), tmp_path)  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("rollout.group_size", {"rollout": {"group_size": 5}}),
        ("rollout.max_new_tokens", {"rollout": {"max_new_tokens": 9}}),
        ("clip.high", {"clip": Clip(high=0.3)}),
        ("baseline", {"baseline": "leave_one_out", "scale_rewards": "none"}),
        ("beta", {"beta": 0.2}),
        ("rewards", {"rewards": [FunctionReward(letters, weight=2.0)]}),
    ],
)
def test_resuming_with_other_options_is_refused(
    name: str, changed: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    fit(grpo(tiny_model), prompts(tmp_path), tmp_path, LastCheckpoint(1), max_epochs=1)
    trainer = quiet_trainer(max_epochs=2, default_root_dir=tmp_path)
    with pytest.raises(PostTrainError, match=f"trained with --model.{name} .* and this run has"):
        trainer.fit(grpo(tiny_model, **changed), datamodule=prompts(tmp_path), ckpt_path=tmp_path / "last.ckpt")


def test_resuming_on_other_prompts_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    fit(grpo(tiny_model), prompts(tmp_path), tmp_path, LastCheckpoint(1), max_epochs=1)
    for other, said in (({"count": 13}, "takes other rows or tokens of it"), ({"batch_size": 3}, "with batch_size=4")):
        trainer = quiet_trainer(max_epochs=2, default_root_dir=tmp_path)
        with pytest.raises(PostTrainError, match=said):
            trainer.fit(grpo(tiny_model), datamodule=prompts(tmp_path, **other), ckpt_path=tmp_path / "last.ckpt")


def test_a_checkpoint_validates_and_trains_anew(tiny_model: Path, tmp_path: Path) -> None:
    data = {"count": 20, "val_fraction": 0.3}
    fit(grpo(tiny_model), prompts(tmp_path, **data), tmp_path, LastCheckpoint(1), max_epochs=1)
    module = grpo(tiny_model)
    trainer = quiet_trainer(default_root_dir=tmp_path)
    trainer.validate(module, datamodule=prompts(tmp_path, **data), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert fit(module, prompts(tmp_path, **data), tmp_path / "new", max_epochs=1).global_step == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_looks_at_the_rows_for_all(
    rank: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two could find different things, such as an answer that takes too long, and one would wait for the other."""
    module = grpo(tiny_model, [ExactMatch(), MathAnswer()])
    monkeypatch.setattr(GRPO, "global_rank", rank)
    monkeypatch.setattr(module.collector, "prepare", lambda stores: None)
    seen: list[str] = []
    monkeypatch.setattr(
        module.collector.rewards, "check_rows", lambda rows, skip: seen.extend(source for source, _ in rows)
    )
    data = prompts(tmp_path, 5, val_fraction=0.0)
    trainer = quiet_trainer(max_steps=1, default_root_dir=tmp_path)
    module.trainer = trainer
    trainer.datamodule = data
    data.trainer = trainer
    trainer.strategy.connect(module)
    data.setup("fit")
    module.check_data(data)
    assert len(seen) == (5 if rank == 0 else 0)
