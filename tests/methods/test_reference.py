"""The reference of DPO and KTO: three sources that agree, a cache that is shared and continued, a moving copy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from cases import METHODS, comparison_files, feedback_files
from helpers import tiny
from helpers.runs import quiet_trainer

from lit_posttrain import DPO, GRPO, KTO, LoRASpec, ModelSpec, PostTrainError, PreferenceData
from lit_posttrain.callbacks import LastCheckpoint, ReferenceSync
from lit_posttrain.core import reference_cache as caching
from lit_posttrain.core.frozen import AdapterOff
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.rewards import Repetition

STEPS = 10


class Losses(pl.Callback):
    """The loss of every micro-batch, to the last bit."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def run(
    module: PostTrainingModule, data: pl.LightningDataModule, folder: Path, steps: int = STEPS, *callbacks: pl.Callback
) -> list[float]:
    """Train for some optimizer steps of two micro-batches, from last.ckpt where it is there."""
    pl.seed_everything(0, verbose=False)
    losses, last = Losses(), folder / "last.ckpt"
    trainer = quiet_trainer(
        losses,
        *callbacks,
        LastCheckpoint(every_n_steps=1),
        max_steps=steps,
        accumulate_grad_batches=2,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None)
    assert trainer.global_step == steps
    return losses.values


ADAM = Optim(lr=1e-2, weight_decay=0.01, warmup_ratio=0.0)


def dpo(spec: ModelSpec, **options: Any) -> DPO:
    """With a learning rate that does not depend on how many steps are planned."""
    return DPO(spec, replace(ADAM, schedule="constant"), **options)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each caching pass had left to do."""
    seen: list[int] = []
    fill = caching._fill

    def counted(cache: Any, whole: Any, *rest: Any) -> None:
        seen.append(len(whole) - cache.done)
        fill(cache, whole, *rest)

    monkeypatch.setattr(caching, "_fill", counted)
    return seen


@pytest.mark.parametrize("lora", [LoRASpec(r=4), None])
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_sources_of_the_reference_agree(
    method: str, lora: LoRASpec | None, tiny_model: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(str(tiny_model), lora=lora)
    kind, files = {"dpo": (DPO, comparison_files), "kto": (KTO, feedback_files)}[method]
    losses = {
        reference: run(kind(spec, ADAM, reference=reference), files(tmp_path), tmp_path / reference)
        for reference in ("adapter_off", "copy", "cached")
        if lora or reference != "adapter_off"
    }
    first = losses["copy"]
    assert max(abs(loss - first[0]) for loss in first) > 0.01, "the policy moved away from the reference"
    for values in losses.values():
        assert values == pytest.approx(first, abs=1e-5)


def test_a_cache_is_filled_once_and_shared(tiny_model: Path, tmp_path: Path, passes: list[int]) -> None:
    spec = ModelSpec(str(tiny_model))
    first = run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "one", 2)
    again = run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "two", 2)
    assert again == first
    assert passes == [51]
    other = tiny.save_model(tmp_path / "other", seed=7)
    run(dpo(ModelSpec(str(other)), reference="cached"), comparison_files(tmp_path), tmp_path / "three", 1)
    assert passes == [51, 51], "other weights have another cache"


def test_an_interrupted_pass_goes_on(
    tiny_model: Path,
    tmp_path: Path,
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = ModelSpec(str(tiny_model))
    whole = run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "whole", 2)
    (values,) = (tmp_path / "cache" / "reference").glob("*/values.f32")
    expected = np.fromfile(values, np.float32)
    bare = AdapterOff.logprobs
    calls = 0

    def breaks(self: AdapterOff, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return bare(self, batch)

    (tmp_path / "b").mkdir()
    data = comparison_files(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(AdapterOff, "logprobs", breaks)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(dpo(spec, reference="cached"), data, tmp_path / "part", 2)
    assert "32 of 51 rows are kept: the same command goes on" in caplog.text
    resumed = run(dpo(spec, reference="cached"), comparison_files(tmp_path / "b"), tmp_path / "rest", 2)
    assert passes == [51, 51, 51 - 2 * 16]
    assert resumed == whole
    (again,) = (tmp_path / "b" / "cache" / "reference").glob("*/values.f32")
    assert np.fromfile(again, np.float32) == pytest.approx(expected, abs=1e-5)


def test_resuming_needs_neither_the_cache_nor_luck(tiny_model: Path, tmp_path: Path, passes: list[int]) -> None:
    """The policy has moved on when a run resumes; what the cache lacks is computed by the weights of the start."""
    import shutil

    spec = ModelSpec(str(tiny_model))
    whole = run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "whole", 4)
    run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "cut", 2)
    shutil.rmtree(tmp_path / "cache" / "reference")
    rest = run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "cut", 4)
    assert passes == [51, 51]
    assert rest == pytest.approx(whole[4:], abs=1e-5)


def test_a_resume_on_other_data_is_refused_before_the_pass(tiny_model: Path, tmp_path: Path, passes: list[int]) -> None:
    spec, pairs = ModelSpec(str(tiny_model)), comparison_files(tmp_path)
    run(dpo(spec, reference="cached"), pairs, tmp_path / "run", 2)
    other = PreferenceData(pairs.paths[:2], batch_size=7, seed=3, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(PostTrainError, match="resume with the same data"):
        run(dpo(spec, reference="cached"), other, tmp_path / "run", 4)
    with pytest.raises(PostTrainError, match="resume with the same data"):
        run(dpo(spec, reference="cached"), other, tmp_path / "run", 2)
    assert passes == [51]


def test_training_one_module_twice_caches_where_it_started(tiny_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(str(tiny_model))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    module = dpo(spec, reference="cached")
    run(module, comparison_files(tmp_path / "a"), tmp_path / "first", 5)
    run(module, comparison_files(tmp_path / "b"), tmp_path / "second", 1)
    (first,), (second,) = ((tmp_path / name / "cache/reference").glob("*/values.f32") for name in "ab")
    assert np.fromfile(second, np.float32) == pytest.approx(np.fromfile(first, np.float32), abs=1e-5)


def test_another_config_is_another_reference(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", seed=1)
    run(dpo(ModelSpec(str(model))), comparison_files(tmp_path), tmp_path / "run", 1)
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500.0
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(PostTrainError, match=r"rope_theta 10000\.0 in its config then, 500\.0 now"):
        run(dpo(ModelSpec(str(model))), comparison_files(tmp_path), tmp_path / "run", 2)


def test_rows_to_test_on_need_no_cache(tiny_model: Path, tmp_path: Path) -> None:
    module = dpo(ModelSpec(str(tiny_model)), reference="cached")
    run(module, comparison_files(tmp_path), tmp_path / "run", 2)
    other = dpo(ModelSpec(str(tiny_model)), reference="copy")
    run(other, comparison_files(tmp_path), tmp_path / "copy", 2)
    figures = []
    for trained in (module, other):
        data = comparison_files(tmp_path)
        data.test_paths = data.paths[:1]
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
        figures.append(trainer.test(trained, datamodule=data, verbose=False)[0]["test/loss"])
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)


def test_a_cache_of_something_else_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(str(tiny_model))
    run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "one", 1)
    (about,) = (tmp_path / "cache" / "reference").glob("*/about.json")
    original = about.read_text()
    about.write_text(json.dumps(json.loads(original) | {"weights": "others"}))
    with pytest.raises(PostTrainError, match="was made for other weights; remove the folder"):
        run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "two", 1)
    (about.parent / "values.f32").write_bytes(b"1234")
    about.write_text(original)
    with pytest.raises(PostTrainError, match="the reference cache is cut short; remove the folder"):
        run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "two", 1)


def test_a_reference_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", seed=1)
    run(dpo(ModelSpec(str(model))), comparison_files(tmp_path), tmp_path / "run", 1)
    tiny.save_model(tmp_path / "model", seed=2)
    with pytest.raises(PostTrainError, match="other weights"):
        run(dpo(ModelSpec(str(model))), comparison_files(tmp_path), tmp_path / "run", 2)


@pytest.mark.parametrize(("lora", "mix"), [(None, 0.6), (LoRASpec(r=4), 1.0)])
def test_a_synced_reference_follows_and_resumes(
    lora: LoRASpec | None, mix: float, tiny_model: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(str(tiny_model), lora=lora)

    def make() -> DPO:
        return dpo(spec, reference="copy")

    whole = run(make(), comparison_files(tmp_path), tmp_path / "whole", 6, ReferenceSync(2, mix))
    still = run(make(), comparison_files(tmp_path), tmp_path / "still", 6)
    assert whole[:4] == still[:4], "the first sync is behind the second step"
    assert whole[4:] != still[4:]
    cut = run(make(), comparison_files(tmp_path), tmp_path / "cut", 3, ReferenceSync(2, mix))
    rest = run(make(), comparison_files(tmp_path), tmp_path / "cut", 6, ReferenceSync(2, mix))
    assert cut + rest == whole
    module = make()
    run(module, comparison_files(tmp_path), tmp_path / "hard", 2, ReferenceSync(2))
    assert module.policy is not None
    for one, other in zip(module.policy.parameters(), module.frozen_weights["reference"], strict=True):
        assert torch.equal(one, other)


def test_the_source_of_the_reference_may_change_unless_it_has_moved(tiny_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(str(tiny_model))
    whole = run(dpo(spec, reference="copy"), comparison_files(tmp_path), tmp_path / "whole", 4)
    run(dpo(spec, reference="copy"), comparison_files(tmp_path), tmp_path / "cut", 2)
    rest = run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "cut", 4)
    assert rest == pytest.approx(whole[4:], abs=1e-5)
    run(dpo(spec, reference="copy"), comparison_files(tmp_path), tmp_path / "moved", 2, ReferenceSync(2))
    with pytest.raises(PostTrainError, match="has followed the policy"):
        run(dpo(spec, reference="cached"), comparison_files(tmp_path), tmp_path / "moved", 4)


def test_a_moved_reference_is_of_no_use_where_there_is_none(tiny_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(str(tiny_model))

    def grpo(beta: float) -> GRPO:
        return GRPO(spec, [Repetition()], rollout=RolloutConfig(max_new_tokens=4), beta=beta, reference="copy")

    trainer = quiet_trainer(ReferenceSync(1), LastCheckpoint(every_n_steps=1), max_steps=1, default_root_dir=tmp_path)
    data: Any = METHODS["grpo"].data(tmp_path)
    data.val_fraction = 0.5
    trainer.fit(grpo(0.1), datamodule=data)
    assert "reference" in torch.load(tmp_path / "last.ckpt", weights_only=True)["lit_posttrain"]["parts"]
    quiet_trainer(default_root_dir=tmp_path).validate(
        grpo(0.0), datamodule=data, ckpt_path=tmp_path / "last.ckpt", verbose=False
    )


def test_a_soft_update_of_adapters_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    module = dpo(ModelSpec(str(tiny_model), lora=LoRASpec(r=4)), reference="copy")
    with pytest.raises(PostTrainError, match="no mix of weights"):
        run(module, comparison_files(tmp_path), tmp_path / "run", 1, ReferenceSync(1, 0.5))


def test_only_a_copy_can_follow(tiny_model: Path, tmp_path: Path) -> None:
    module = dpo(ModelSpec(str(tiny_model), lora=LoRASpec(r=4)))
    with pytest.raises(PostTrainError, match=r"--model\.reference copy"):
        run(module, comparison_files(tmp_path), tmp_path / "run", 1, ReferenceSync(1))


def test_four_bits_and_adapters_learn_on_a_cpu(tiny_model: Path, tmp_path: Path) -> None:
    """The reference is the 4-bit base itself, so the first loss is log 2."""
    module = dpo(ModelSpec(str(tiny_model), lora=LoRASpec(r=4), quantization="nf4"))
    assert module.reference.kind == "adapter_off"
    losses = run(module, comparison_files(tmp_path), tmp_path / "run", 3)
    assert sum(losses[:2]) == pytest.approx(np.log(2), abs=1e-5)
    assert sum(losses[-2:]) < 0.99 * np.log(2)


def test_another_methods_checkpoint_is_no_start(tiny_model: Path, tmp_path: Path) -> None:
    """Its adapters are not zero: switched off, they would leave another reference than the start of training."""
    spec = ModelSpec(str(tiny_model), lora=LoRASpec(r=4))
    run(KTO(spec, replace(ADAM, warmup_ratio=0.1)), feedback_files(tmp_path), tmp_path / "run", 1)
    with pytest.raises(PostTrainError, match="a checkpoint of KTO, and DPO cannot go on with it"):
        run(dpo(spec), comparison_files(tmp_path), tmp_path / "run", 2)
