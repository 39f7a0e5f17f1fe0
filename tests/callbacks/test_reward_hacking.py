"""The watch for rewards that are gamed: its figures by hand, what it flags and what it leaves alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from cases import build
from helpers.runs import quiet_trainer, write

from lit_posttrain import GRPO, ModelSpec, PostTrainError, PromptData, RolloutConfig
from lit_posttrain.callbacks import RewardHackingWatch
from lit_posttrain.callbacks.reward_hacking import phase_figures
from lit_posttrain.rewards import FunctionReward


def row(prompt: str, said: str, reward: float | None = 1.0, second: float | None = None) -> dict[str, Any]:
    return {"prompt": prompt, "response": said, "tokens": 2 * len(said), "reward": reward, "rewards/taste": second}


def test_figures_by_hand() -> None:
    rows = [
        row("a", "x y x y", 1.0, 0.5),  # pairs xy yx xy
        row("a", "x y x y", None),  # to the same prompt: no repetition
        row("b", "one ", 0.0, 0.0),
        row("c", "one", 0.5),
    ]
    found = phase_figures(rows, "taste")
    assert found == {
        "reward": pytest.approx(0.5),
        "second": pytest.approx(0.25),
        "distinct_2": pytest.approx(2 / 6),
        "repeated": 0.5,
        "length": pytest.approx((14 + 14 + 8 + 6) / 4),
    }
    assert phase_figures([]) == {}
    assert "distinct_2" not in phase_figures([row("a", "one")])
    long = " ".join(f"w{i}" for i in range(32)) + " the the the the"
    assert phase_figures([row("a", long)])["distinct_2"] == 1.0


class Method:
    """A method as the callback sees it."""

    reward_names = ("taste",)
    group_size = 2
    engine_name = "hf"
    samples = True

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.logged: dict[str, float] = {}

    def completions(self) -> list[dict[str, Any]]:
        return self.rows

    def log(self, name: str, value: float, **_: Any) -> None:
        self.logged[name] = value


class Unrewarded(Method):
    """As Distillation without rewards, which need none."""

    reward_names = ()  # type: ignore[assignment]  # none


class Watched:
    """What it asks of a trainer."""

    accumulate_grad_batches = 2
    is_global_zero = True

    def __init__(self) -> None:
        self.loggers: list[Any] = []
        self.global_step = 0
        self.should_stop = False


def watched(watch: RewardHackingWatch, phases: list[list[dict[str, Any]]], trainer: Watched | None = None) -> Method:
    method, trainer = Method(), trainer or Watched()
    for rows in phases:
        method.rows = rows
        trainer.global_step += 1
        for batch in range(4):  # looked at once a phase, at the end of its first step
            watch.on_train_batch_end(trainer, method, None, None, batch)  # type: ignore[arg-type]  # stand-ins
    return method


GOOD = [[row("a", "red apple pie", 0.1 + 0.01 * i, 0.5), row("b", "blue sky", 0.2, 0.4)] for i in (0, 1, 2)]


def better(said: tuple[str, str], second: float = 0.5) -> list[list[dict[str, Any]]]:
    return [[row("a", said[0], 0.9 + 0.01 * i, second), row("b", said[1], 0.9, second - 0.01 * i)] for i in (0, 1, 2)]


@pytest.mark.parametrize(
    ("later", "second", "told"),
    [
        (better(("green apple pie", "grey sky")), None, ""),
        (
            better(("it is great", "it is great")),
            None,
            "distinct_2 has gone from 1 to 0.5; repeated has gone from 0 to 1",
        ),
        (better(("red apple pie and more and some cake", "blue sky, rain")), None, "length has gone from 21 to 50"),
        (better(("green apple pie", "grey sky"), second=0.2), "taste", "taste has fallen from 0.45 to 0.195"),
        (better(("green apple pie", "grey sky"), second=0.45), "taste", ""),
    ],
)
def test_drift_is_flagged_while_the_reward_rises(
    later: list[list[dict[str, Any]]], second: str | None, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = RewardHackingWatch(window=3, second=second)
    with caplog.at_level(logging.WARNING):
        method = watched(watch, [*GOOD, *later])
    assert [record.getMessage() for record in caplog.records if told and told in record.getMessage()] or not told
    assert len(caplog.records) == bool(told), "what is flagged is told once"
    assert method.logged["hacking/flags"] == (told.count("has ") if told else 0)


def test_without_a_rising_reward_nothing_is_flagged(caplog: pytest.LogCaptureFixture) -> None:
    same = [[{**r, "reward": 0.15, "response": "it is great"} for r in rows] for rows in GOOD]
    method = watched(RewardHackingWatch(window=3), [*GOOD, *same, *same])
    assert not caplog.records
    assert method.logged["hacking/flags"] == 0
    assert method.logged["hacking/repeated"] == 1.0


def test_it_goes_on_after_a_resume_and_may_stop(caplog: pytest.LogCaptureFixture) -> None:
    hacked = better(("it is great", "it is great"))
    first, again = RewardHackingWatch(window=3, on_flag="stop"), RewardHackingWatch(window=3, on_flag="stop")
    watched(first, [*GOOD, *hacked[:2]])
    again.load_state_dict(first.state_dict())
    trainer = Watched()
    assert not caplog.records
    watched(again, hacked[2:], trainer)
    assert len(caplog.records) == 1
    assert trainer.should_stop


def test_a_run_with_a_reward_that_can_be_gamed(tiny_model: Path, tmp_path: Path) -> None:
    """Through a Trainer and a method's own completions."""
    asked = [{"prompt": f"say {i}"} for i in range(8)]
    data = PromptData(write(tmp_path / "p.jsonl", asked), batch_size=4, cache_dir=str(tmp_path / "cache"))
    module = GRPO(
        ModelSpec(str(tiny_model)),
        [FunctionReward(lambda completions: [float(len(said)) for said in completions], name="long")],
        rollout=RolloutConfig(group_size=2, max_new_tokens=8),
    )
    watch = RewardHackingWatch(window=2, second="long")
    trainer = quiet_trainer(watch, max_epochs=3, default_root_dir=str(tmp_path))
    trainer.fit(module, datamodule=data)
    assert {"hacking/distinct_2", "hacking/length", "hacking/second", "hacking/flags"} <= set(trainer.callback_metrics)
    assert len(watch.state_dict()["first"]) == 2
    assert len(watch.state_dict()["last"]) == 1


def test_what_cannot_be_watched_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    trainer: Any = Watched()
    with pytest.raises(PostTrainError, match="DPO samples none here: drop it"):
        RewardHackingWatch().on_fit_start(trainer, build("dpo", tiny_model))
    with pytest.raises(PostTrainError, match="second is other; the rewards are taste"):
        RewardHackingWatch(second="other").on_fit_start(trainer, Method())  # type: ignore[arg-type]  # a stand-in
    with pytest.raises(PostTrainError, match=r"this Unrewarded has none: name one with --model\.rewards"):
        RewardHackingWatch().on_fit_start(trainer, Unrewarded())  # type: ignore[arg-type]  # a stand-in
    with pytest.raises(PostTrainError, match="window is 1"):
        RewardHackingWatch(window=1)
    with pytest.raises(PostTrainError, match="length is 0"):
        RewardHackingWatch(length=0)
