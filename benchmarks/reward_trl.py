"""TRL's RewardTrainer for benchmarks/reward.py: it trains on the train.jsonl of a folder and leaves `hf`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--home", required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--precision", required=True)
    options = parser.parse_args()
    home = Path(options.home)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.add_tokens(["<|padding|>"], special_tokens=True)
    tokenizer.pad_token = "<|padding|>"  # of its own, as ours: with pad = eos the score is read elsewhere
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=1, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    rows = [json.loads(line) for line in (home / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    trainer = RewardTrainer(
        model,
        args=RewardConfig(
            output_dir=str(home / "trl"),
            per_device_train_batch_size=options.batch,
            num_train_epochs=options.epochs,
            learning_rate=options.lr,
            warmup_steps=0.05,
            lr_scheduler_type="linear",
            max_length=2048,
            bf16=options.precision == "bf16-mixed",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            logging_steps=10,
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(home / "hf"))
    tokenizer.save_pretrained(home / "hf")


if __name__ == "__main__":
    main()
