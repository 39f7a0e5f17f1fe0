"""Under FSDP2 every rank takes part in every forward: ranks with less work must neither hang nor change the answers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from generate_sharded import LIMITS, PROMPTS
from helpers.processes import run_script
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_posttrain.models.policy import Policy
from lit_posttrain.rollout.engine import Sampling
from lit_posttrain.rollout.hf import HFEngine


def test_sharded_generation_and_whole_weights_equal_one_process(tiny_model: Path, tmp_path: Path) -> None:
    script = Path(__file__).parent / "generate_sharded.py"
    out = tmp_path / "drawn"
    done = run_script(script, tiny_model, out, devices=2)
    engine = HFEngine(Policy(AutoModelForCausalLM.from_pretrained(tiny_model)), [2])
    for rank, (prompts, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True)):
        file = tmp_path / f"drawn-{rank}.json"
        assert file.exists(), done.stderr[-3000:]
        expected = [answers[0].tokens for answers in engine.generate(prompts, 1, Sampling(limit, temperature=0.0))]
        assert json.loads(file.read_text()) == expected
        whole = load_file(tmp_path / f"drawn-{rank}.safetensors")
        plain = dict(engine.policy.transformer.named_parameters())
        assert whole.keys() == plain.keys()
        assert all(torch.equal(value, plain[name]) for name, value in whole.items())
