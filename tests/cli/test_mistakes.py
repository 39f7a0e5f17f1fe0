"""What mistakes look like: one line that says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import fit, one_line
from helpers.pages import ROOT

from lit_posttrain import SFT
from lit_posttrain.cli.main import main
from lit_posttrain.cli.options import option_tree
from lit_posttrain.cli.parsing.reader import CommandLine
from lit_posttrain.errors import PostTrainError


@pytest.mark.parametrize(("command", "option"), [("validate", "val"), ("test", "test")])
def test_nothing_to_evaluate_is_an_error(
    command: str, option: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--config", "sft.yaml", "--model.policy.path", str(tiny_model), "--data.path", str(chats)]
    assert main([command, *common, "--data.val_fraction", "0", "--trainer.accelerator", "cpu"]) == 2
    assert f"nothing to {command} on: name a file with --data.{option}_path" in one_line(capsys)


SFT_TINY = ["--config", "sft.yaml", "--model.policy.path", "TINY", "--data.batch_size", "4"]


@pytest.mark.parametrize("config", ["sft.yaml", "demo_grpo.yaml", "ppo.yaml"])
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr", "--model.optim.lr"),
        ("--model.lr", "--model.optim.lr"),
        ("--learning_rate", "--model.optim.lr"),
        ("--model.optimizer.lr", "--model.optim.lr"),
        ("--model.optim.init_args.lr", "--model.optim.lr"),
        ("--model.optim.learning_rate", "--model.optim.lr"),
        ("--model.optimizer", "--model.optim.optimizer"),
        ("--model.optim.betas", "--model.optim.options"),
        ("--weight_decay", "--model.optim.weight_decay"),
        ("--warmup_ratio", "--model.optim.warmup_ratio"),
        ("--model.warmup", "--model.optim.warmup_ratio"),
        ("--model.schedule", "--model.optim.schedule"),
        ("--lr_scheduler_type", "--model.optim.schedule"),
        ("--max_new_tokens", "--model.rollout.max_new_tokens"),
        ("--model.sampling.max_new_tokens", "--model.rollout.max_new_tokens"),
        ("--num_generations", "--model.rollout.group_size"),
        ("--model.phases.group_size", "--model.rollout.group_size"),
        ("--model.kl_coefficient", "--model.beta"),
    ],
)
def test_short_and_foreign_names_lead_to_the_option(typed: str, meant: str, config: str) -> None:
    if config == "sft.yaml" and meant.split(".")[1] != "optim":
        pytest.skip("SFT has no such option")
    with pytest.raises(PostTrainError) as found:
        CommandLine(option_tree(), "fit").read(["--config", str(ROOT / "configs" / config), typed, "1"])
    assert str(found.value) == f"{typed}: no such option; did you mean {meant}?"


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown command": (["fitt"], ["unknown command fitt", "did you mean fit"]),
    "no command": (["--config", "sft.yaml"], ["say first what to do, as lit-posttrain fit --config"]),
    "the same answer several times": (
        ["generate", "--model", "TINY", "--prompt", "hi", "--n", "3"],
        ["--n 3 at temperature 0 gives the same answer 3 times"],
    ),
    "prompts written over": (
        ["generate", "--model", "TINY", "--prompts", "chats.jsonl", "--out", "./chats.jsonl", "--overwrite", "true"],
        ["--out ./chats.jsonl: a file of the data"],
    ),
    "unknown option": (["fit", "--config", "sft.yaml", "--data.pth", "x"], ["data.pth"]),
    "half an option": (
        ["fit", "--config", "sft.yaml", "--trainer.max_epoch", "2"],
        ["--trainer.max_epoch", "did you mean --trainer.max_epochs?"],
    ),
    "unknown config": (["fit", "--config", "sfft.yaml"], ["sfft.yaml", "sft.yaml"]),
    "missing file": (["fit", "--config", "sft.yaml", "--data.path", "nothere.jsonl"], ["nothere.jsonl"]),
    "missing model": (["fit", "--config", "sft.yaml", "--model.policy.path", "./nothere"], ["./nothere"]),
    "no such run": (["fit", "--resume", "nothere"], ["nothere", "no such run"]),
    "no config": (["fit", "--data.path", "chats.jsonl"], ["--config configs/sft.yaml"]),
    "a file without its option": (["fit", "chats.jsonl"], ["did you mean --data.path chats.jsonl?"]),
    "a misplaced option": (["fit", *SFT_TINY, "--model.lr", "1"], ["did you mean --model.optim.lr?"]),
    "another trainer's option": (["fit", *SFT_TINY, "--num_train_epochs", "1"], ["did you mean --trainer.max_epochs?"]),
    "a misspelt column": (["fit", *SFT_TINY, "--data.columns.prompr", "x"], ["did you mean --data.columns.prompt?"]),
    "a misspelt option of adapters": (
        ["fit", *SFT_TINY, "--model.policy.lora.rank", "4"],
        ["did you mean --model.policy.lora.r?"],
    ),
    "a misspelt option of a command": (["chat", "--modle", "x"], ["--modle", "did you mean --model?"]),
    "a wrong choice": (["fit", *SFT_TINY, "--data.overlong", "chop"], ["--data.overlong: expected one of drop, cut"]),
    "a wrong number": (
        ["fit", *SFT_TINY, "--trainer.max_epochs", "three"],
        ["expected a whole number or null, got three"],
    ),
    "a wrong nested number": (
        ["fit", *SFT_TINY, "--model.optim.lr", "high"],
        ["--model.optim.lr: expected a number, got high"],
    ),
    "no such class": (
        ["fit", *SFT_TINY, "--model.optim.optimizer", "Adamm"],
        ["--model.optim.optimizer Adamm: there is no such optimizer; did you mean Adam or RAdam?"],
    ),
    "an impossible learning rate": (
        ["fit", *SFT_TINY, "--model.optim.lr", "-1"],
        ["--model.optim.lr is -1.0; a learning rate must be at least 0"],
    ),
    "another spelling": (
        ["fit", *SFT_TINY, "--model.optimiser.init_args.lr", "1"],
        ["--model.optimiser.init_args.lr: no such option; did you mean --model.optim.lr?"],
    ),
    "no steps": (["fit", *SFT_TINY, "--data.batch_size", "0"], ["--data.batch_size is 0"]),
    "ranks with gaps": (
        ["fit", "--config", "dpo.yaml", "--model.policy.path", "TINY", "--data.path", "RANKED"],
        ["ranked.jsonl:1", "have gaps"],
    ),
    "smoothing that no loss uses": (
        ["fit", "--config", "dpo.yaml", "--model.policy.path", "TINY", "--model.label_smoothing", "0.1"],
        ["--model.label_smoothing 0.1", "conservative and robust"],
    ),
    "nothing to compare": (
        ["fit", "--config", "dpo.yaml", "--model.policy.path", "TINY", "--data.path", "LONE"],
        ["lone.jsonl:1", "no two responses to compare"],
    ),
    "conversations are no preferences": (
        ["fit", "--config", "dpo.yaml", "--model.policy.path", "TINY", "--data.path", "CHATS"],
        ["chats.jsonl:1", "not preferences but conversations", "configs/sft.yaml"],
    ),
    "preferences are no conversations": (
        ["fit", "--config", "sft.yaml", "--model.policy.path", "TINY", "--data.path", "PAIRS"],
        ["pairs.jsonl:1", "not conversations but pairs", "configs/dpo.yaml"],
    ),
    "half a pair": (
        ["audit", "--config", "dpo.yaml", "--model.policy.path", "TINY", "--data.path", "HALF"],
        ["half.jsonl:1", "beside chosen preferences need rejected", "--data.columns.rejected NAME", "mean `rejektd`?"],
    ),
    "no ranks": (
        ["audit", "--config", "dpo.yaml", "--model.policy.path", "TINY", "--data.path", "UNRANKED"],
        ["unranked.jsonl:1", "`responses` have no ranks", "--data.columns.ranks"],
    ),
    "an audit of what the method refuses": (
        ["audit", "--config", "dpo.yaml", "--model.policy.path", "TINY", "--data.path", "LONE"],
        ["lone.jsonl:1", "no two responses to compare"],
    ),
    "a list that is none": (
        ["fit", "--config", "dpo.yaml", "--data.columns.labels", "winner"],
        ["--data.columns.labels: expected a list or null, got winner; a list is written '[winner]'"],
    ),
    "a misspelt callback": (
        ["fit", *SFT_TINY, "--trainer.callbacks+=RewardLoger"],
        ["--trainer.callbacks RewardLoger: there is no such callback; did you mean RewardLogger?"],
    ),
    "a callback's misspelt option": (
        ["fit", *SFT_TINY, "--trainer.callbacks+=KLControl", "--trainer.callbacks.celing", "3"],
        ["--trainer.callbacks.celing: no such option; did you mean --trainer.callbacks.ceiling?"],
    ),
    "a callback's wrong value": (
        ["fit", *SFT_TINY, "--trainer.callbacks+=KLControl", "--trainer.callbacks.ceiling", "high"],
        ["--trainer.callbacks.ceiling: expected a number or null, got high"],
    ),
    "a misspelt method": (["fit", *SFT_TINY, "--model", "DPOO"], ["--model DPOO", "did you mean DPO?"]),
    "a method in other letters": (["fit", *SFT_TINY, "--model", "dpo"], ["--model dpo", "did you mean DPO?"]),
    "no such environment": (
        ["fit", "--config", "demo_grpo.yaml", "--model.policy.path", "TINY", "--model.rollout.environment", "Gym"],
        ["--model.rollout.environment Gym: there is no such environment; give its import path (a.b.Name)"],
    ),
    "no value for rewards": (
        ["fit", "--config", "demo_grpo.yaml", "--model.policy.path", "TINY", "--model.rewards", "null"],
        ["--model.rewards: expected a list of rewards, each a name, or class_path and init_args; got null"],
    ),
    "no method of that name": (
        ["fit", *SFT_TINY, "--model", "IPO"],
        ["--model IPO: there is no such method; give one of DPO, Distillation, GRPO"],
    ),
    "a method for data": (
        ["fit", *SFT_TINY, "--data", "DPO"],
        ["--data DPO: that is a method, and a data module is wanted"],
    ),
    "a misspelt callback of Lightning": (
        ["fit", *SFT_TINY, "--trainer.callbacks+=EarlyStoping"],
        ["--trainer.callbacks EarlyStoping: there is no such callback; did you mean EarlyStopping?"],
    ),
    "judges that are not named": (
        ["audit", "--config", "dpo.yaml", "--model.policy.path", "TINY", "--data.path", "JUDGED"],
        ["judged.jsonl:1", "need labels: --data.columns.labels '[NAME]'"],
    ),
    "a reference that cannot be": (
        ["fit", "--config", "dpo.yaml", "--model.policy.path", "TINY", "--model.reference", "adapter_off"],
        ["--model.reference adapter_off", "--model.policy.lora.r"],
    ),
    "a value out of range": (["fit", *SFT_TINY, "--data.val_fraction", "5"], ["--data.val_fraction is 5"]),
    "best of nothing": (["validate", *SFT_TINY, "--ckpt_path", "best"], ["runs/NAME/best.ckpt"]),
    "a checkpoint that is not there": (["validate", *SFT_TINY, "--ckpt_path", "x.ckpt"], ["x.ckpt: no such file"]),
    "a folder without checkpoints": (["validate", *SFT_TINY, "--ckpt_path", "."], ["neither last.ckpt nor best.ckpt"]),
    "too many processes": (["fit", *SFT_TINY, "--trainer.accelerator", "cpu", "--trainer.devices", "2000"], ["2000"]),
    "the training's loss": (
        ["fit", *SFT_TINY, "--data.val_fraction", "0.3", "--monitor", "loss"],
        ["--monitor", "val/loss"],
    ),
    "a metric that no validation has": (
        ["fit", *SFT_TINY, "--data.val_fraction", "0.3", "--monitor", "val/los"],
        ["val/loss?"],
    ),
    "no such checkpoint": (["export", "--ckpt", "nothere.ckpt", "--out", "x"], ["nothere.ckpt", "no such checkpoint"]),
    "bad type": (["fit", "--config", "sft.yaml", "--data.batch_size", "many"], ["batch_size"]),
    "an overlay alone": (["fit", "--config", "with/lora.yaml"], ["of which method? Give"]),
    "no method and no data": (["fit", "--config", "SEED"], ["fit needs --model and --data; --help says"]),
    "a method without data": (["fit", "--model", "SFT", "--data.path", "x"], ["needs a config"]),
    "missing option": (["export", "--ckpt", "x.ckpt"], ["export needs --out"]),
    "a reward without what it needs": (
        ["fit", "--config", "demo_grpo.yaml", "--model.rewards+=RewardModelScore"],
        ["RewardModelScore needs path"],
    ),
    "no package": (
        ["fit", "--config", "sft.yaml", "--model.policy.path", "package:not_there/x.gguf"],
        ["not_there", "pip install"],
    ),
    "epochs that end within a step": (
        ["fit", *SFT_TINY, "--trainer.accumulate_grad_batches", "2", "--trainer.limit_train_batches", "3"],
        ["--trainer.limit_train_batches", "3", "multiple"],
    ),
    "validation within a step": (
        ["fit", *SFT_TINY, "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "3"],
        ["--trainer.val_check_interval", "3", "multiple"],
    ),
    "4 bits without adapters": (
        ["fit", "--config", "sft.yaml", "--model.policy.quantization", "nf4", "--model.policy.path", "TINY"],
        ["nf4", "--model.policy.lora.r"],
    ),
}


FILES: dict[str, list[dict[str, Any]]] = {
    "RANKED": [{"prompt": "a", "responses": ["b", "c"], "ranks": [0, 3]}],
    "UNRANKED": [{"prompt": "a", "responses": ["b", "c"]}],
    "LONE": [{"prompt": f"a {n}", "completion": "b", "label": True} for n in range(20)],
    "PAIRS": [{"prompt": "a", "chosen": "b", "rejected": "c"}],
    "JUDGED": [{"prompt": "a", "response1": "b", "response2": "c", "winner": 1}],
    "HALF": [{"prompt": "a", "chosen": "b", "rejektd": "c"}],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_with_a_remedy(
    mistake: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, parts = MISTAKES[mistake]
    places = {"TINY": str(tiny_model), "CHATS": str(chats)}
    for name, rows in FILES.items():
        file = chats.parent.parent / f"{name.lower()}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        places[name] = str(file)
    seed = chats.parent.parent / "seed.yaml"
    seed.write_text("seed_everything: 3\n")
    places["SEED"] = str(seed)
    arguments = [places.get(a, a) for a in arguments]
    if arguments[0] in ("fit", "validate") and "sft.yaml" in arguments and "--data.path" not in arguments:
        arguments += ["--data.path", str(chats)]
    assert main(arguments) == 2
    error = one_line(capsys)
    for part in parts:
        assert part in error
    kept = {"runs"} if "--monitor" in arguments else set()  # it shows after the first step
    assert {f.name for f in Path().iterdir()} <= {"chats.jsonl", "cache", *kept}, "nothing half-written stays"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--model.policy.path", str(tiny_model), "--data.path", str(chats), "--wandb.mode", "disabled"]
    assert main(["fit", "--config", "sft.yaml", "--config", "with/gpu.yaml", *here]) == 2
    assert "--trainer: " in one_line(capsys)
    assert not Path("runs").exists()


def test_too_little_gpu_memory_is_explained(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_small(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("lit_posttrain.methods.sft.negative_log_likelihood", too_small)
    assert fit(chats, tiny_model) == 2
    assert "--trainer.accumulate_grad_batches" in one_line(capsys)


def test_an_encoder_is_refused(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bert").mkdir()
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 8, "vocab_size": 10}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    assert fit(chats, tmp_path / "bert") == 2
    assert "not a causal language model" in one_line(capsys)


def test_damaged_weights_are_named(
    chats: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert fit(chats, tmp_path / "cut") == 2
    assert "could not load the model" in one_line(capsys)
    assert not list(Path().glob("runs/*/*.ckpt"))


def test_a_damaged_checkpoint_is_named(chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1") == 0
    checkpoint = Path("runs/one/last.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert main(["export", "--ckpt", str(checkpoint), "--out", "out"]) == 2
    assert "last.ckpt" in one_line(capsys)
    assert not Path("out").exists()


def test_a_checkpoint_of_a_newer_version_is_refused(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--config", "with/lora.yaml", "--name", "one") == 0
    content = torch.load("runs/one/last.ckpt", weights_only=True)
    content["lit_posttrain"]["policy"]["lora"]["new_trick"] = True
    torch.save(content, "newer.ckpt")
    assert main(["export", "--ckpt", "newer.ckpt", "--out", "out"]) == 2
    assert "newer.ckpt: from a newer lit-posttrain (new_trick)" in one_line(capsys)


def test_lightnings_own_quantization_is_refused_with_the_reason(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = '{"class_path": "lightning.pytorch.plugins.BitsandbytesPrecision", "init_args": {"mode": "nf4"}}'
    assert fit(chats, tiny_model, f"--trainer.plugins={plugin}") == 2
    assert "--model.policy.quantization nf4" in one_line(capsys)


def test_the_end_of_another_process_names_the_run_to_go_on_with(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, fails_at = SFT.training_step, [0]

    def lost(module: SFT, batch: Any, batch_idx: int) -> Any:
        if module.trainer.global_step == fails_at[0]:
            raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:45216")
        return original(module, batch, batch_idx)

    monkeypatch.setattr(SFT, "training_step", lost)
    common = ["--name", "an orphan", "--runs", "all", "--data.batch_size", "4", "--checkpoint_every", "1"]
    for fails_at[0], told in (
        (0, "nothing was saved yet, start it again"),
        (2, "go on from the last checkpoint: lit-posttrain fit --resume 'an orphan' --runs all"),
    ):
        assert fit(chats, tiny_model, *common) == 2
        assert one_line(capsys).endswith(f"what it said is above; {told}")


def test_what_all_processes_fail_at_is_told_by_the_first(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_posttrain.cli.main._is_first_process", lambda: False)
    cut = ["--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2"]
    for options in (["--trainer.max_epochs", "0"], ["--trainer.limit_train_batches", "3"]):
        assert fit(chats, tiny_model, *cut, *options) == 2
        assert "error: " not in capsys.readouterr().err
    assert fit(chats, tiny_model, "--data.max_length", "1") == 2
    assert "--data.max_length is 1" in one_line(capsys), "another process may not have failed at this"
