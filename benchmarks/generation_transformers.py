"""One run of transformers' for benchmarks/generation.py: prints a JSON line of figures. Not to be run by itself."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from typing import Any

import torch
from generation import Prompts, figures, options_of_a_side, questions
from peft import LoraConfig, get_peft_model
from sides import now
from transformers import AutoModelForCausalLM


@torch.no_grad()
def sample(prompts: Prompts, options: argparse.Namespace) -> dict[str, Any]:
    mixed, device = options.precision == "bf16-mixed", "cuda" if torch.cuda.is_available() else "cpu"
    dtype = (
        torch.bfloat16 if mixed and options.lora else torch.float32
    )  # a base that is not trained is kept in bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(device)
    if options.lora:
        model = get_peft_model(
            model, LoraConfig(r=options.lora, lora_alpha=2 * options.lora, target_modules="all-linear")
        )
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    end = model.generation_config.eos_token_id
    how = {"do_sample": True, "top_k": 0, "num_return_sequences": options.group, "pad_token_id": end}

    def generate(tokens: int) -> list[list[int]]:
        rows = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, **how)[:, longest:].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    torch.manual_seed(0)
    with torch.autocast(device, torch.bfloat16) if mixed else nullcontext():
        generate(2)
        begun = now()
        drawn = generate(options.tokens)
    return figures(drawn, now() - begun)


if __name__ == "__main__":
    chosen = options_of_a_side()
    print(json.dumps(sample(questions(chosen), chosen)))
