"""Every method trained, and a reward model used, on a GPU that is not there: nothing mixes devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pytest
import torch
from cases import METHODS
from helpers import tiny
from helpers.pretend_gpu import CUDA, PretendGPU
from helpers.runs import write
from transformers import LlamaForSequenceClassification

from lit_posttrain import LoRASpec, ModelSpec
from lit_posttrain.callbacks import FiniteLossGuard, Throughput
from lit_posttrain.inference.chat import ChatModel
from lit_posttrain.inference.score import ResponseScorer
from lit_posttrain.rewards import RewardModelScore
from lit_posttrain.rewards.base import RewardBatch
from lit_posttrain.rollout.engine import Sampling


def test_the_pretence_tells_devices_apart() -> None:
    with PretendGPU() as gpu:
        there, here = torch.zeros(3, device="cuda"), torch.ones(3)
        assert (there.device, here.device, (there + 1).device) == (CUDA, torch.device("cpu"), CUDA)
        assert here.to(CUDA).device == CUDA
        assert here.device == there.cpu().device == torch.device("cpu")
        layer = torch.nn.Linear(3, 3).to("cuda")
        layer(there[None]).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.device == CUDA
        assert not gpu.mixed
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        there + here
        here[there.long()]
        there.cumsum(0), there.long().cumsum(0)
    assert {operator for operator, _ in gpu.mixed} == {"aten::add", "aten::index"}
    assert {operator for operator, _ in gpu.not_deterministic} == {"aten::cumsum"}


class OnTheGPU(pl.Callback):
    """The weights and the batch are there while it trains."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *step: Any) -> None:
        assert {p.device for p in pl_module.parameters()} == {CUDA}
        assert step[1].input_ids.device == CUDA


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("lora", "precision"), [(None, "bf16-mixed"), (LoRASpec(r=2), "32-true")])
def test_training_mixes_no_devices(
    method: str, lora: LoRASpec | None, precision: Literal["bf16-mixed", "32-true"], tiny_model: Path, tmp_path: Path
) -> None:
    case = METHODS[method]
    with PretendGPU() as gpu:
        trainer = pl.Trainer(
            strategy=gpu.strategy(),
            max_steps=2,
            precision=precision,
            gradient_clip_val=1.0,
            callbacks=[FiniteLossGuard(), Throughput(1.0), OnTheGPU()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            log_every_n_steps=1,
        )
        module = case.build(ModelSpec(str(tiny_model), lora=lora))
        trainer.fit(module, datamodule=case.data(tmp_path))
    assert trainer.global_step == 2
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not gpu.mixed
    assert not gpu.not_deterministic


@pytest.fixture(autouse=True)
def _cudnn_attention() -> Iterator[None]:
    """On at first, as torch has it."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(1)
    LlamaForSequenceClassification(tiny.llama_config(num_labels=1)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompts", [1, 20])
def test_a_reward_model_scores_alike_on_both_devices(prompts: int, reward_model: Path) -> None:
    """One prompt packs into a single row, many into several."""
    asked = [[{"role": "user", "content": f"question {i} " + "how " * i}] for i in range(prompts) for _ in range(2)]
    said = [f"answer {i} " + "so " * (i % 7) for i in range(len(asked))]
    batch = RewardBatch(asked, said, {}, [[] for _ in said], [False for _ in said], ["" for _ in said])
    here = RewardModelScore(str(reward_model))
    here.prepare(torch.device("cpu"))
    expected = here.score(batch)
    with PretendGPU() as gpu:
        there = RewardModelScore(str(reward_model))
        there.prepare(CUDA)
        found = there.score(batch)
    assert not gpu.mixed
    assert not gpu.not_deterministic
    assert found == pytest.approx(expected, abs=1e-5)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("rows", [1, 20])
def test_a_file_is_scored_alike_on_both_devices(
    rows: int, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [{"prompt": f"p {i} " + "how " * i, "chosen": f"yes {i}", "rejected": "no"} for i in range(rows)]
    file, cache = write(tmp_path / "pairs.jsonl", pairs), str(tmp_path / "cache")
    expected = [scores for _, scores in ResponseScorer(str(reward_model)).score_file(file, cache)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with PretendGPU() as gpu:
        scorer = ResponseScorer(str(reward_model))
        assert scorer.device.type == "cuda"
        found = [scores for _, scores in scorer.score_file(file, cache)]
    assert not gpu.mixed
    assert not gpu.not_deterministic
    for here, there in zip(expected, found, strict=True):
        assert there == pytest.approx(here, abs=1e-5)


def test_answering_mixes_no_devices(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with PretendGPU() as gpu:
        (answers,) = ChatModel(str(tiny_model)).answer(
            [[{"role": "user", "content": "how?"}]], 3, Sampling(8, top_p=0.9)
        )
    assert not gpu.mixed
    assert not gpu.not_deterministic
    assert len(answers) == 3
    assert not torch.backends.cuda.cudnn_sdp_enabled()
