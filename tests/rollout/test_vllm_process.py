"""The trainer's side of vLLM's process, against a process that is none of vLLM's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lit_posttrain.errors import PostTrainError
from lit_posttrain.rollout.vllm_process import VLLMProcess, environment


def test_a_process_that_reads_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request larger than a pipe would block for good."""
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    worker = VLLMProcess(tmp_path, environment(torch.device("cpu")), timeout=0.5)
    with pytest.raises(PostTrainError, match=r"vLLM has read no request for 0.5 s .*; see .*vllm\.log"):
        worker.send("generate", prompts=[[5] * 100_000])
    assert worker.ended
    with pytest.raises(PostTrainError, match="vLLM's process ended with status -9"):
        worker.send("generate", prompts=[])
