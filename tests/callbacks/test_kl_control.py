"""The KL of fresh responses: right where it can be worked out, the same after a resume, and nothing to training."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cases import build, comparison_files, feedback_files, prompt_files
from helpers.runs import quiet_trainer

from lit_posttrain import DPO, GRPO, KTO, LoRASpec, ModelSpec, OnlineDPO, PostTrainError, SimPO
from lit_posttrain.callbacks import KLControl, LastCheckpoint, ReferenceSync
from lit_posttrain.core.component import KLWeight
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.reference import Reference
from lit_posttrain.loggers import MetricsCSV
from lit_posttrain.rewards import Repetition


class Seen(pl.Callback):
    """Per micro-batch the loss, and per step what is measured and the state of torch's generator."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.measured: dict[int, tuple[float, float]] = {}
        self.states: list[torch.Tensor] = []
        self.modes: set[bool] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        self.states.append(torch.get_rng_state())
        self.modes.add(all(module.training for module in pl_module.policy.modules()))
        found = trainer.callback_metrics
        if "kl/sampled" in found:
            pair = (float(found["kl/sampled"]), float(found["kl/sampled_per_token"]))
            self.measured.setdefault(trainer.global_step, pair)


ADAM = Optim(lr=1e-2, weight_decay=0.01, schedule="constant", warmup_ratio=0.0)


def fit(
    folder: Path,
    tiny_model: Path,
    *callbacks: pl.Callback,
    steps: int = 4,
    lora: LoRASpec | None = None,
    reference: Any = "auto",
    method: Any = DPO,
    **options: Any,
) -> tuple[Seen, pl.Trainer]:
    """Train for some optimizer steps of two micro-batches, from last.ckpt where it is there."""
    pl.seed_everything(0, verbose=False)
    module = method(ModelSpec(str(tiny_model), lora=lora), ADAM, reference=reference)
    seen, last = Seen(), folder / "last.ckpt"
    trainer = quiet_trainer(
        *callbacks,
        seen,
        LastCheckpoint(every_n_steps=1),
        max_steps=steps,
        accumulate_grad_batches=2,
        default_root_dir=folder,
        **options,
    )
    data = (feedback_files if method is KTO else comparison_files)(folder.parent)
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None)
    return seen, trainer


@pytest.mark.parametrize("dropout", [None, 0.2])
def test_watching_changes_no_bit_of_training(dropout: float | None, tiny_model: Path, tmp_path: Path) -> None:
    lora = None if dropout is None else LoRASpec(r=4, dropout=dropout)
    bare, _ = fit(tmp_path / "bare", tiny_model, lora=lora)
    watched, _ = fit(tmp_path / "watched", tiny_model, KLControl(every_n_steps=1, max_new_tokens=8), lora=lora)
    assert watched.losses == bare.losses
    assert all(torch.equal(a, b) for a, b in zip(watched.states, bare.states, strict=True))
    assert watched.modes == bare.modes == {True}
    assert list(watched.measured) == [1, 2, 3, 4]
    assert all(per_token > 0 for _, per_token in watched.measured.values())


def test_a_resumed_run_draws_the_same(tiny_model: Path, tmp_path: Path) -> None:
    def watch() -> KLControl:
        return KLControl(every_n_steps=2, max_new_tokens=8)

    whole, _ = fit(tmp_path / "whole", tiny_model, watch(), steps=6)
    fit(tmp_path / "cut", tiny_model, watch(), steps=3)
    rest, _ = fit(tmp_path / "cut", tiny_model, watch(), steps=6)
    assert whole.measured[2] != whole.measured[4] != whole.measured[6]
    assert (rest.measured[4], rest.measured[6]) == (whole.measured[4], whole.measured[6])


def test_the_figure_is_the_kl(tiny_model: Path, tmp_path: Path) -> None:
    """Of a first token, where the KL is a sum over the vocabulary."""
    _, trainer = fit(tmp_path / "run", tiny_model, steps=3)
    module: Any = trainer.lightning_module
    prompt = module.trainer.datamodule.example_prompts(1)[0]
    ratios = module.reference.sampled_log_ratios([prompt] * 2000, 1, 0)
    assert {len(ratio) for ratio in ratios} == {1}
    with torch.no_grad():
        ids = torch.tensor([prompt])
        policy, reference = (
            model.transformer.eval()(ids).logits[0, -1].double().log_softmax(-1)
            for model in (module.policy, module.reference._frozen.model)
        )
    divergence = float((policy.exp() * (policy - reference)).sum())
    found = torch.cat(ratios).double()
    error = float(found.std() / math.sqrt(len(found)))
    assert divergence > 0.05
    assert float(found.mean()) == pytest.approx(divergence, abs=4 * error)
    assert error < divergence / 4


def test_every_source_of_a_reference_that_scores_fresh_text(tiny_model: Path, tmp_path: Path) -> None:
    measured = {}
    for reference in ("adapter_off", "copy", "cached"):
        watch = KLControl(["one plus two", "what is it"], every_n_steps=2, samples=3, max_new_tokens=8)
        seen, _ = fit(
            tmp_path / reference, tiny_model, watch, steps=2, lora=LoRASpec(r=4), reference=reference, method=KTO
        )
        measured[reference] = seen.measured[2]
        assert len(watch._asked) == 3
    assert measured["copy"] == pytest.approx(measured["adapter_off"], rel=1e-3)
    assert measured["cached"] == pytest.approx(measured["adapter_off"], rel=1e-3)


def test_the_ceiling_warns_or_stops(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warns = KLControl(every_n_steps=2, max_new_tokens=8, ceiling=1e-3)
    _, trainer = fit(tmp_path / "warn", tiny_model, warns)
    told = [r.message for r in caplog.records if r.message.startswith("kl/sampled is ")]
    assert len(told) == 2
    assert "at step 2, above the ceiling of 0.001: lower the learning rate" in told[0]
    assert trainer.global_step == 4
    caplog.clear()
    stops = KLControl(every_n_steps=2, max_new_tokens=8, ceiling=1e-3, on_ceiling="stop")
    _, trainer = fit(tmp_path / "stop", tiny_model, stops, steps=6)
    assert [r.message for r in caplog.records if "above the ceiling of 0.001: the run ends here" in r.message]
    assert trainer.global_step == 2
    assert torch.load(tmp_path / "stop" / "last.ckpt", weights_only=True)["global_step"] == 2
    caplog.clear()
    fit(tmp_path / "below", tiny_model, KLControl(every_n_steps=2, max_new_tokens=8, ceiling=1e6, on_ceiling="stop"))
    assert not [r for r in caplog.records if "ceiling" in r.message]


def test_the_standard_error_is_the_one_of_a_mean(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def drawn(values: list[float]) -> None:
        ratios = [torch.tensor([value / 2, value / 2]) for value in values]
        monkeypatch.setattr(Reference, "sampled_log_ratios", lambda *_: ratios)
        fit(tmp_path / str(len(values)), tiny_model, KLControl(every_n_steps=1, ceiling=0.1), steps=1)

    drawn([1.0, 2.0, 6.0])
    assert "kl/sampled is 3 +- 1.5 at step 1, above" in caplog.text  # std 2.646 over the root of 3
    drawn([4.0])
    assert "kl/sampled is 4 at step 1, above" in caplog.text, "one sample knows no error"


def test_figures_stand_in_the_row_of_their_step(tiny_model: Path, tmp_path: Path) -> None:
    """Also of steps that Lightning does not log, and beside the step's other metrics where it does."""
    watch = KLControl(every_n_steps=2, max_new_tokens=4)
    seen, _ = fit(
        tmp_path / "run", tiny_model, watch, steps=5, logger=MetricsCSV(tmp_path / "run"), log_every_n_steps=4
    )
    columns, *lines = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    rows = {row["step"]: row for row in (dict(zip(columns, line, strict=True)) for line in lines)}
    assert [step for step, row in rows.items() if row["kl/sampled"]] == ["1", "3"]
    assert float(rows["1"]["kl/sampled"]) == pytest.approx(seen.measured[2][0])
    assert rows["1"]["train/loss"] == ""
    assert float(rows["3"]["train/loss"]) > 0
    assert float(rows["3"]["train/kl/batch"]) > 0


@pytest.mark.parametrize(
    ("build", "options", "told"),
    [
        (OnlineDPO, {}, "adaptive drives the weight of the KL in methods that have one .*OnlineDPO has none: drop it"),
        (GRPO, {"beta": 0.0}, "--model.beta is 0, so there is no KL"),
    ],
)
def test_a_weight_that_is_not_there_is_not_driven(
    build: Any, options: dict[str, Any], told: str, tiny_model: Path, tmp_path: Path
) -> None:
    """A method that samples its own responses need not have one."""
    module = build(ModelSpec(str(tiny_model)), [Repetition()], **options)
    control = KLControl(coefficient="adaptive", target=0.1)
    with pytest.raises(PostTrainError, match=f"^KLControl: {told}"):
        quiet_trainer(control, max_steps=1, default_root_dir=tmp_path).fit(module, datamodule=prompt_files(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 4, "max_new_tokens": 8}, "samples and max_new_tokens would do nothing: they are for fresh"),
        ({"prompts": ["hello"]}, "prompts would do nothing"),
        ({"every_n_steps": 5}, "every_n_steps would do nothing"),
    ],
)
def test_options_of_fresh_responses_are_refused_where_none_are_drawn(
    options: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = quiet_trainer(KLControl(ceiling=1.0, **options), max_steps=1, default_root_dir=tmp_path)
    with pytest.raises(PostTrainError, match=f"^KLControl: {said}"):
        trainer.fit(build("ppo", tiny_model), datamodule=prompt_files(tmp_path))


class Unmeasured(KLWeight):
    """Of a method that forgets to measure."""

    def measure(self, total: float, responses: float) -> None:
        pass


@pytest.mark.parametrize("measures", [True, False])
def test_a_method_that_never_measures_is_told_of(
    measures: bool, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module: Any = build("grpo", tiny_model)
    module.collector.config = replace(module.rollout, mask_truncated=False)
    if not measures:
        module.kl = module.components["kl"] = Unmeasured(0.1)
    with caplog.at_level(logging.WARNING, "lit_posttrain"):
        trainer = quiet_trainer(KLControl(ceiling=1e9), max_epochs=3, default_root_dir=tmp_path)
        trainer.fit(module, datamodule=prompt_files(tmp_path))
    told = [record.getMessage() for record in caplog.records if "KLControl" in record.getMessage()]
    assert len(told) == (not measures)
    assert all("GRPO has a KLWeight and has not called its `measure`" in line for line in told)


def test_mistakes_are_said_before_training(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"knows those of the data alone; pass --model\.reference copy"):
        fit(tmp_path / "a", tiny_model, KLControl(), reference="cached")
    assert not (tmp_path / "cache" / "reference").exists(), "before the caching pass"
    simpo = SimPO(ModelSpec(str(tiny_model)))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[KLControl()])
    with pytest.raises(PostTrainError, match="SimPO has none: drop it"):
        trainer.fit(simpo, datamodule=comparison_files(tmp_path))
    with pytest.raises(PostTrainError, match=r"stands behind ReferenceSync, .* name it first"):
        fit(tmp_path / "c", tiny_model, ReferenceSync(every_n_steps=2), KLControl(every_n_steps=2))
    with pytest.raises(PostTrainError, match="the model takes 512; shorten it"):
        fit(tmp_path / "b", tiny_model, KLControl(["one " * 600]))
    for options, told in (
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"ceiling": 0.0}, "ceiling is 0"),
        ({"on_ceiling": "stop"}, "there is no ceiling"),
        ({"prompts": []}, "got no prompts"),
        ({"horizon": 50.0}, "horizon 50 is for coefficient adaptive"),
    ):
        with pytest.raises(PostTrainError, match=told):
            KLControl(**options)


def test_prompts_of_the_data_are_spread_over_the_validation_set(tokenizer: Any, tmp_path: Path) -> None:
    data = comparison_files(tmp_path)
    data.val_fraction = 0.4
    data.build(tokenizer)
    held_out = [data.val_stores["held_out"][i].prompt.tolist() for i in range(len(data.val_stores["held_out"]))]
    assert data.example_prompts(5) == [held_out[i * len(held_out) // 5] for i in range(5)]
    assert data.example_prompts(10**6) == held_out
    data.val_fraction = 0.0
    data.build(tokenizer)
    assert data.example_prompts(1) == [data.train_store[0].prompt.tolist()]


class Weights(pl.Callback):
    """Per phase the KL that was measured and the weight behind it."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if figures.get("train/kl/response") is not None:
            self.found.append((figures["train/kl/response"], pl_module.kl.coefficient))


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_an_adaptive_weight_follows_the_kl_of_a_phase(method: str, tiny_model: Path, tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, resume: bool = False) -> tuple[Weights, Any]:
        pl.seed_everything(0, verbose=False)
        module: Any = build(method, tiny_model)
        module.optim = ADAM
        module.collector.config = replace(module.rollout, mask_truncated=False)  # a response that is masked is in no KL
        seen = Weights()
        control = KLControl(coefficient="adaptive", target=0.02, horizon=60)
        trainer = quiet_trainer(
            control, seen, LastCheckpoint(1), max_epochs=epochs, default_root_dir=folder, log_every_n_steps=1
        )
        trainer.fit(module, datamodule=prompt_files(tmp_path), ckpt_path=str(folder / "last.ckpt") if resume else None)
        return seen, module

    seen, module = run(tmp_path / "whole", 4)
    weight, expected = 0.1, []
    phases = [kl for kl, _ in seen.found[::4]]
    for kl in phases:
        weight *= 1 + min(max(kl / 0.02 - 1, -0.2), 0.2) * 18 / 60
        expected.append(weight)
    assert len(phases) == 4
    assert [w for _, w in seen.found[::4]] == pytest.approx(expected, rel=1e-5)
    assert module.kl.coefficient != pytest.approx(0.1, rel=1e-3)
    run(tmp_path / "cut", 2)
    _, resumed = run(tmp_path / "cut", 4, resume=True)
    assert resumed.kl.coefficient == module.kl.coefficient


def test_a_linear_weight_ends_where_it_should(tiny_model: Path, tmp_path: Path) -> None:
    module: Any = build("ppo", tiny_model)
    control = KLControl(coefficient="linear", final=0.0)
    trainer = quiet_trainer(control, max_steps=8, max_epochs=-1, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=prompt_files(tmp_path))
    assert module.kl.coefficient == pytest.approx(0.0, abs=1e-12)


def test_from_the_command_line(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As configs/dpo.yaml says at its top."""
    from lit_posttrain.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIT_POSTTRAIN_RUN", raising=False)
    config = (Path(__file__).parents[2] / "configs" / "dpo.yaml").read_text()
    shown = "--trainer.callbacks+=KLControl --trainer.callbacks.ceiling 20"
    assert shown in config
    rows = [{"prompt": f"what is {i}", "chosen": f"it is {i}", "rejected": "no " * (1 + i % 5)} for i in range(16)]
    Path("pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    common = ["--model.policy.path", str(tiny_model), "--wandb.mode", "disabled", "--trainer.accelerator", "cpu"]
    common += ["--data.path", "pairs.jsonl", "--trainer.enable_progress_bar", "false", "--name", "one"]
    extra = ["--trainer.callbacks.every_n_steps", "1", "--trainer.callbacks+=RewardLogger"]
    assert main(["fit", "--config", "configs/dpo.yaml", *common, *shown.split(), *extra]) == 0
    assert "kl/sampled" in Path("runs/one/metrics.csv").read_text().splitlines()[0]
    assert Path("runs/one/rewards.jsonl").exists()
