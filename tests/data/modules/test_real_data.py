"""Data sets as people publish them, read from where LIT_POSTTRAIN_DATA points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.files.sources import read_records
from lit_posttrain.data.store.build import TokenizeOptions, build_store


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("gsm8k/dev.jsonl", 3000, "question/answer"),
        ("dolly/dev.jsonl", 633, "instruction/context/response"),
        ("self_instruct/dev.jsonl", 334, "instruction/input/output"),
        ("oasst_rankings/sft_dev.jsonl", 75, "messages"),
    ],
)
def test_published_data(
    real_data: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, rows: int, columns: str
) -> None:
    path = str(real_data / name)
    store, audit = build_store([path], tokenizer, TokenizeOptions(max_length=10**6), str(tmp_path))
    assert (audit.total.rows, audit.files[0].format, audit.total.dropped_count) == (rows, columns, 0)
    assert len(store) == rows
    # every trained turn, and nothing else, is there with its end token
    step = max(rows // 50, 1)
    for index, record in enumerate(read_records(path)):
        if index % step == 0:
            response = store[index].responses[0]
            said = str(tokenizer.decode(response.tokens[response.loss_mask])).split("<|im_end|>")
            data = record.data
            turns = [m["content"] for m in data.get("messages", []) if m["role"] == "assistant"]
            answer = next((data[c] for c in ("answer", "response", "output") if c in data), None)
            assert said == [*(turns or [answer]), ""]
    assert audit.ends == {"<|im_end|>": int(np.sum([_turns(store, i) for i in range(len(store))]))}


def _turns(store: object, index: int) -> int:
    response = store[index].responses[0]  # type: ignore[index]
    return int(np.count_nonzero(response.tokens[response.loss_mask] == 2))
