"""Names that are no folder here: the hub is asked once and briefly, or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.cli import one_line
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lit_posttrain import ModelSpec, PostTrainError
from lit_posttrain.cli.main import main
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.hub import fetched_adapters, missing_reason
from lit_posttrain.models.adapter_folders import resolve
from lit_posttrain.models.loading import build_policy, load_config
from lit_posttrain.models.paths import Place
from lit_posttrain.models.tokenizers import load_tokenizer


class Hub:
    """What is asked of the hub, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, float]] = []
        self.answer: Exception | None = ConnectionError("Name or service not known")

    def repo_info(self, name: str, *, repo_type: str, timeout: float = 0.0, **_: Any) -> None:
        self.asked.append((name, repo_type, timeout))
        if self.answer is not None:
            raise self.answer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """No network, in an empty folder."""
    found = Hub()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(HfApi, "repo_info", lambda self, repo_id, **about: found.repo_info(repo_id, **about))
    monkeypatch.setattr(HfApi, "model_info", lambda self, repo_id, **about: SimpleNamespace(siblings=[]))
    missing_reason.cache_clear()
    fetched_adapters.cache_clear()
    yield found
    missing_reason.cache_clear()
    fetched_adapters.cache_clear()


def test_a_name_without_an_owner_is_not_asked_for(hub: Hub) -> None:
    Path("smollm").mkdir()
    with pytest.raises(
        PostTrainError, match=r"no model smolml: .* \(did you mean smollm\?\).*have an owner"
    ) as problem:
        resolve("smolml")
    assert "\n" not in str(problem.value)
    assert not hub.asked


@pytest.mark.parametrize("load", [load_config, load_tokenizer], ids=["model", "tokenizer"])
def test_a_hub_that_cannot_be_reached_is_asked_once(load: Any, hub: Hub) -> None:
    Path("runs/mine-hf").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(PostTrainError, match=r"did you mean runs/mine-hf\?.*cannot be reached \(Name or service"):
            load(ModelSpec("runs/mien-hf"))
    ((name, kind, timeout),) = hub.asked
    assert (name, kind) == ("runs/mien-hf", "model")
    assert timeout <= 10


def test_a_model_that_the_hub_does_not_have(hub: Hub) -> None:
    hub.answer = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # its response is made by several libraries
    with pytest.raises(PostTrainError, match=r"the hub has no model of that name, or none that you may see"):
        resolve("a/b")


def test_a_model_that_the_hub_has(hub: Hub) -> None:
    hub.answer = None
    assert resolve("a/b") == Place("a/b")


def test_adapters_on_the_hub_are_merged_into_their_base(hub: Hub, tiny_model: Path) -> None:
    """As they were fetched, with a folder a commit in the hub's cache; now there is no network."""
    hub.answer = OfflineModeIsEnabled()
    stored, commit = Path("hub/models--some--adapters"), "0" * 40
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, init_lora_weights=False))
    model.save_pretrained(stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = model(tokens).logits
        found = build_policy(ModelSpec("some/adapters", dtype="float32"), 0).transformer(tokens).logits
    assert (found - expected).abs().max() < 1e-5


def test_what_was_fetched_before_needs_no_network(hub: Hub) -> None:
    for name in ("models--a--b", "models--gpt2"):
        (Path("hub") / name / "snapshots" / "0123").mkdir(parents=True)
    assert resolve("a/b") == Place("a/b")
    assert resolve("gpt2") == Place("gpt2")
    assert not hub.asked


def test_a_data_set_is_asked_for_once_too(hub: Hub) -> None:
    with pytest.raises(PostTrainError, match=r"owner/rows: no such file, folder or hub data set.*cannot be reached"):
        find_sources("owner/rows")
    assert [(name, kind) for name, kind, _ in hub.asked] == [("owner/rows", "dataset")]


@pytest.mark.parametrize("name", ["smollm2", "owner/smollm2"])
def test_the_command_line_answers_soon(name: str, capsys: pytest.CaptureFixture[str], hub: Hub) -> None:
    begun = time.monotonic()
    assert main(["generate", "--prompt", "hello", "--model", name]) == 2
    assert time.monotonic() - begun < 5
    assert f"no model {name}" in one_line(capsys)
