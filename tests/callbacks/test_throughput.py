"""Speed, padding, memory, and operations counted against PyTorch's own counter."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import tiny
from lightning.pytorch.loggers import Logger
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config

from lit_posttrain.callbacks import Throughput
from lit_posttrain.callbacks.flops import measured_peak, training_flops
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import RowLayout, TreeBatch


class Perf(Logger):
    """Every logged perf/ metric by step."""

    name = version = "perf"

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int | None, dict[str, float]] = {}

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if found := {k.removeprefix("perf/"): v for k, v in metrics.items() if k.startswith("perf/")}:
            self.rows[step] = found


class Count(pl.Callback):
    """What the monitor should find. Training and validation are slow enough to tell their times apart."""

    def __init__(self) -> None:
        self.tokens: list[float] = []
        self.padding: list[tuple[int, int]] = []
        self.ends: list[float] = []
        self.validations: list[tuple[float, float]] = []

    def on_validation_start(self, *_: Any, **__: Any) -> None:
        self.validations.append((time.perf_counter(), 0.0))

    def on_validation_end(self, *_: Any, **__: Any) -> None:
        self.validations[-1] = (self.validations[-1][0], time.perf_counter())

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        time.sleep(0.02)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: TreeBatch, batch_idx: int) -> None:
        self.padding.append((int((batch.tree_ids < 0).sum()), batch.tree_ids.numel()))
        if batch_idx % 3 == 2:
            self.tokens.append(batch.denominators["input_tokens"])
            self.ends.append(time.perf_counter())

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        time.sleep(0.3)


def test_logs_what_was_trained(fit_in: Any, tmp_path: Path) -> None:
    """Windows of two steps; validation of two batches falls into the second and the fifth."""
    perf, count = Perf(), Count()
    fit_in(
        tmp_path,
        [Throughput(peak_tflops=1.0), count],
        loggers=[perf],
        max_epochs=2,
        log_every_n_steps=2,
        validate=True,
        val_check_interval=9,
        layout=RowLayout(multiple=64),
    )
    assert len(perf.rows) == 5
    for window, row in enumerate(perf.rows.values()):
        tokens = sum(count.tokens[2 * window : 2 * window + 2])
        padding, positions = (sum(c) for c in zip(*count.padding[6 * window : 6 * window + 6], strict=True))
        assert row["padding_share"] == pytest.approx(padding / positions)
        assert padding > 0
        assert 0.1 < row["peak_memory_gb"] < 20
        assert 0 < row["mfu"] < 0.1
        if window > 0:
            begin, end = count.ends[2 * window - 1], count.ends[2 * window + 1]
            validated = sum(last - first for first, last in count.validations if begin < first < end)
            assert (validated > 0.6) == (window in (1, 4))
            trained = end - begin - validated
            assert tokens / row["tokens_per_s"] == pytest.approx(trained, rel=0.2)


def flops_of(model: Any, length: int) -> tuple[float, float]:
    """PyTorch's count of a backbone's forward and backward: (weights, attention)."""
    ids = torch.randint(3, 60, (1, length))
    with FlopCounterMode(display=False) as counter:
        model.base_model(ids).last_hidden_state.sum().backward()
    by_op = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for op, count in by_op.items() if "bmm" in op)
    return sum(by_op.values()) - attention, attention


@pytest.mark.parametrize("family", ["llama", "untied", "gpt2"])
def test_operations_agree_with_pytorch(family: str) -> None:
    config: Any = tiny.llama_config(512, tie_word_embeddings=family == "llama")
    if family == "gpt2":
        config = GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    weights, attention = flops_of(model, 50)
    counted = training_flops(model, config)
    assert counted.per_token * 50 == pytest.approx(weights, rel=0.01)
    assert counted.per_pair * 50 * 50 == pytest.approx(attention, rel=0.01)  # eager computes what it masks
    assert counted.per_target == 6 * config.vocab_size * config.hidden_size
    assert counted.of(50, 7, 1275) == 50 * counted.per_token + 7 * counted.per_target + 1275 * counted.per_pair


def test_frozen_weights_take_two_thirds() -> None:
    config = tiny.llama_config(512)
    base = AutoModelForCausalLM.from_config(config)
    full = training_flops(base, config)
    adapted = training_flops(get_peft_model(base, LoraConfig(r=1, target_modules=["q_proj"])), config)
    adapters = config.num_hidden_layers * 2 * config.hidden_size
    assert adapted.per_token == pytest.approx(full.per_token * 2 / 3 + 6 * adapters)
    assert adapted.per_target == pytest.approx(full.per_target * 2 / 3)
    assert training_flops(base).per_pair == 0


def test_peak_is_measured_quickly() -> None:
    start = time.perf_counter()
    peak = measured_peak(torch.device("cpu"), torch.float32)
    assert time.perf_counter() - start < 3
    assert 1e8 < peak < 1e14


def test_peak_must_be_positive() -> None:
    with pytest.raises(PostTrainError, match="peak_tflops is 0"):
        Throughput(0)


def test_the_peak_is_measured_on_numbers_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU clocks higher on constant ones than training lets it."""
    seen: list[torch.Tensor] = []
    product = torch.mm

    def recorded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen.extend([left, right])
        return product(left, right)

    monkeypatch.setattr(torch, "mm", recorded)
    measured_peak(torch.device("cpu"), torch.float32)
    assert all(0.9 < float(matrix.std()) < 1.1 for matrix in seen[:2])
    assert not torch.equal(seen[0], seen[1])
