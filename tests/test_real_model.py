"""The real chat model on real data, from the command to the exported folder (slow)."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_posttrain.cli.main import main
from lit_posttrain.models.restore import restore

# logits may differ by so much: float32 sums in another order
TOLERANCE = 1e-4
# a base that was unpacked from 4 bits is merged within float32's own rounding, which the test measures: each of the two
# models may be so far from the float64 one
ROUNDINGS = 2
OVERLAYS = {"all weights": [], "lora": ["--config", "with/lora.yaml"], "qlora": ["--config", "with/qlora.yaml"]}


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_thirty_steps_of_gsm8k(
    overlay: str,
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIT_POSTTRAIN_RUN", raising=False)
    rows = real_data / "gsm8k/dev.jsonl"
    command = ["fit", "--config", "configs/sft.yaml", *OVERLAYS[overlay], "--data.path", str(rows)]
    assert main([*command, "--trainer.max_steps", "30", "--name", "one"]) == 0
    assert main(["export", "--ckpt", "runs/one/last.ckpt", "--out", "hf"]) == 0
    trained = restore("runs/one/last.ckpt").policy.transformer
    plain = AutoModelForCausalLM.from_pretrained("hf", dtype=torch.float32).eval()
    exact = AutoModelForCausalLM.from_pretrained("hf", dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained("hf")
    worst = rounding = 0.0
    for line in rows.read_text(encoding="utf-8").splitlines()[:4]:
        row = json.loads(line)
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        ids = torch.tensor([tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"]])
        with torch.no_grad():
            exported = plain(ids).logits
            worst = max(worst, float((exported - trained(ids).logits).abs().max()))
            rounding = max(rounding, float((exported - exact(ids).logits).abs().max()))
    with Path("runs/one/metrics.csv").open(encoding="utf-8") as stream:
        losses = [float(r["train/loss"]) for r in csv.DictReader(stream) if r["train/loss"]]
    assert len(losses) == 30
    with capsys.disabled():
        first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
        print(f"\n{overlay}: loss of 5 steps {first:.4f} first, {last:.4f} last; logits {worst:.1e} apart")
        print(f"float32 itself is {rounding:.1e} from float64")
    assert last < first
    assert worst <= (ROUNDINGS * rounding if overlay == "qlora" else TOLERANCE)
