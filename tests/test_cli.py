"""The command line as people use it, on a tiny model: runs, resumes, exports, and what mistakes look like."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_posttrain import SFT, PostTrainError, PostTrainingModule
from lit_posttrain.cli import main
from lit_posttrain.models.restore import restore

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file of conversations in an empty working directory, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIT_POSTTRAIN_RUN", raising=False)
    rows = [{"prompt": f"what is {i} plus {i}", "completion": f"{i} plus {i} equals {2 * i}"} for i in range(24)]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def fit(chats: Path, model: Path, *extra: str) -> int:
    common = ["--data.path", str(chats), "--model.policy.path", str(model), "--wandb.mode", "disabled"]
    common += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--data.val_share", "0.3"]
    return main(["fit", "--config", "configs/sft.yaml", *common, *extra])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert "Traceback" not in "\n".join(lines)
    return errors[0]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "audit", "export", "generate", "score", "chat", "configs"):
        assert f"  {command}" in shown


@pytest.mark.parametrize("extra", [[], ["--config", "sft.yaml"], ["--model", "SFT"]])
def test_help_of_a_command_explains_every_option(extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *extra, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--model.policy.lora", "--data.path", "--data.overlong", "--trainer.max_epochs", "--wandb.mode"):
        assert f"  {option} " in shown
    assert "Longer conversations: `drop` them" in " ".join(shown.split())


def test_fit_leaves_a_run_behind_and_resume_goes_on(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--data.batch_size", "8") == 0
    run = Path("runs/one")
    first = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert {"config.yaml", "audit.json", "metrics.csv", "last.ckpt", "best.ckpt"} <= {f.name for f in run.iterdir()}
    shown = capsys.readouterr().out
    for word in ("24 rows", "optimizer steps", "trained", "memory"):
        assert word in shown
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["name"] == "one"
    assert config["trainer"]["precision"] is not None
    assert fit(chats, tiny_model, "--name", "one") == 2
    assert "--resume one" in one_line(capsys)
    assert main(["fit", "--resume", "one", "--trainer.max_epochs", "2"]) == 0
    steps = [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps), key=int), "no step twice after a resume"
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 2 * first


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_other_precisions_train_with_clipping(precision: str, chats: Path, tiny_model: Path) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.precision", precision) == 0
    saved = torch.load("runs/one/last.ckpt", weights_only=True)["state_dict"]
    expected = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
    assert {weight.dtype for weight in saved.values()} == {expected}


def test_metrics_are_summed_exactly_in_bf16_true(chats: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"what is {i}", "completion": f"{i} " * (1 + i % 4)} for i in range(600)]
    Path("many.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    losses = []
    for size in ("1", "600"):
        extra = ["--trainer.precision", "bf16-true", "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
        extra += ["--name", size]
        extra += ["--data.val_path", "many.jsonl", "--data.val_share", "0", "--data.eval_batch_size", size]
        assert fit(chats, tiny_model, *extra) == 0
        with Path(f"runs/{size}/metrics.csv").open() as stream:
            losses += [float(r["val/loss"]) for r in csv.DictReader(stream) if r["val/loss"]]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)  # the model itself rounds


def test_a_dry_run_leaves_nothing_and_takes_any_accumulation(chats: Path, tiny_model: Path) -> None:
    assert fit(chats, tiny_model, "--trainer.fast_dev_run", "true", "--trainer.accumulate_grad_batches", "2") == 0
    assert not list(Path().glob("runs/*/*.ckpt"))


def test_a_run_that_fails_later_keeps_its_folder(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = iter(range(100))

    def fails_at_the_third(module: SFT, batch: Any, batch_idx: int) -> Any:
        if next(steps) == 2:
            raise PostTrainError("the third step")
        return PostTrainingModule.training_step(module, batch, batch_idx)

    monkeypatch.setattr(SFT, "training_step", fails_at_the_third, raising=False)
    extra = ["--data.batch_size", "4", "--trainer.logger", "false", "--trainer.val_check_interval", "2"]
    assert fit(chats, tiny_model, "--name", "one", *extra) == 2
    assert "the third step" in one_line(capsys)
    assert {"config.yaml", "audit.json", "best.ckpt"} <= {f.name for f in Path("runs/one").iterdir()}


def test_what_a_failed_run_did_not_write_stays(chats: Path, tiny_model: Path) -> None:
    Path("own").mkdir()
    assert fit(chats, tiny_model, "--runs", "own", "--model.policy.quantization", "nf4") == 2
    assert list(Path("own").iterdir()) == []


@pytest.mark.parametrize("config", ["dpo.yaml", "simpo.yaml", "orpo.yaml"])
def test_preferences_from_the_command_to_the_folder(
    config: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"what is {i}", "chosen": f"it is {i}", "rejected": "no " * (1 + i % 5)} for i in range(32)]
    Path("pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    common = ["--model.policy.path", str(tiny_model), "--wandb.mode", "disabled", "--trainer.accelerator", "cpu"]
    common += ["--data.path", "pairs.jsonl", "--model.optimizer.init_args.lr", "3e-3", "--trainer.max_epochs", "6"]
    assert main(["fit", "--config", config, *common, "--name", "one", "--data.val_share", "0.2"]) == 0
    with Path("runs/one/metrics.csv").open() as stream:
        measured = [r for r in csv.DictReader(stream) if r["val/loss"]]
    assert float(measured[-1]["val/rewards/accuracies"]) == 1.0, "rows so alike are learned at once"
    assert float(measured[-1]["val/rewards/margins"]) > float(measured[0]["val/rewards/margins"])
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    assert main(["generate", "--model", "out", "--prompt", "what is 3", "--max_new_tokens", "4"]) == 0


def test_validate_says_what_it_measured(chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.precision", "32-true") == 0
    shown = capsys.readouterr().out
    aside = json.loads(Path("runs/one/audit.json").read_text())["held_out"]
    with Path("runs/one/metrics.csv").open() as stream:
        loss = [float(r["val/loss"]) for r in csv.DictReader(stream) if r["val/loss"]][-1]
    assert f"{aside} held out for validation" in shown
    assert f"val/loss {loss:.4g}" in shown
    assert "lit-posttrain export --ckpt runs/one --out one-hf" in shown
    # a run's folder stands for its best checkpoint, and its config for its data
    assert main(["validate", "--config", "runs/one/config.yaml", "--ckpt_path", "runs/one"]) == 0
    shown = capsys.readouterr().out
    assert f"{tiny_model} with the weights of runs/one/best.ckpt" in shown
    assert f"{aside} conversations: the rows held out of {chats}" in shown
    figures = {line.split()[0]: float(line.split()[1]) for line in shown.splitlines() if line.startswith("val/")}
    assert figures["val/loss"] == pytest.approx(loss, rel=1e-4)
    # a file of its own is measured alone
    own = ["--config", "sft.yaml", "--data.val_path", str(chats), "--model.policy.path", str(tiny_model)]
    assert main(["validate", *own, "--trainer.accelerator", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "as it is, without a --ckpt_path" in shown
    assert f"24 conversations: {chats}" in shown
    assert "held out" not in shown


def test_predict_covers_every_row(chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1", "--trainer.precision", "32-true") == 0
    common = ["predict", "--config", "runs/one/config.yaml", "--ckpt_path", "last"]
    assert main(common) == 0
    assert "wrote 24 rows to runs/one/predictions.jsonl" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("runs/one/predictions.jsonl").read_text().splitlines()]
    assert all(r["logprob"] < 0 and r["tokens"] > 0 for r in rows)
    assert [r["source"] for r in rows] == [f"{chats}:{line}" for line in range(1, 25)]
    answer = json.loads(chats.read_text().splitlines()[3])["completion"]
    fourth = restore("runs/one")
    text = fourth.tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is 3 plus 3"}], tokenize=False, add_generation_prompt=True
    )
    before, whole = (fourth.tokenizer(t, return_tensors="pt")["input_ids"] for t in (text, f"{text}{answer}<|im_end|>"))
    with torch.no_grad():
        logps = fourth.policy.transformer(whole).logits.log_softmax(-1)[0, before.shape[1] - 1 : -1]
    expected = float(logps.gather(1, whole[0, before.shape[1] :, None]).sum())
    assert rows[3]["logprob"] == pytest.approx(expected, abs=1e-3)
    assert main(common) == 2
    assert "predictions.jsonl exists already" in one_line(capsys)
    Path("two.jsonl").write_text("".join(chats.read_text().splitlines(keepends=True)[:2]))
    assert main([*common, "--data.test_path", "two.jsonl", "--overwrite", "true"]) == 0
    rows = [json.loads(line) for line in Path("runs/one/predictions.jsonl").read_text().splitlines()]
    assert [r["source"] for r in rows] == ["two.jsonl:1", "two.jsonl:2"]


@pytest.mark.parametrize(("command", "option"), [("validate", "val"), ("test", "test")])
def test_nothing_to_evaluate_is_an_error(
    command: str, option: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--config", "sft.yaml", "--model.policy.path", str(tiny_model), "--data.path", str(chats)]
    assert main([command, *common, "--data.val_share", "0", "--trainer.accelerator", "cpu"]) == 2
    assert f"nothing to {command} on: name a file with --data.{option}_path" in one_line(capsys)


def test_a_refused_resume_or_overwrite_changes_nothing(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_epochs", "2", "--data.batch_size", "8") == 0
    capsys.readouterr()
    before = {f: f.read_bytes() for f in Path("runs/one").iterdir() if f.is_file()}
    other = Path("other.jsonl")
    other.write_text("".join(chats.read_text().splitlines(keepends=True)[:20]))
    assert main(["fit", "--resume", "one", "--data.path", "other.jsonl", "--trainer.max_epochs", "3"]) == 2
    assert "other.jsonl" in one_line(capsys)
    assert main(["fit", "--resume", "one", "--trainer.max_epochs", "1"]) == 0
    assert "nothing was left to do" in capsys.readouterr().out, "a run's folder names it too"
    assert fit(other, tiny_model, "--name", "one", "--overwrite", "true", "--data.max_length", "2") == 2
    assert "raise --data.max_length" in one_line(capsys)
    assert {f: f.read_bytes() for f in Path("runs/one").iterdir() if f.is_file()} == before
    assert main(["fit", "--resume", "runs/one"]) == 0
    assert "nothing was left to do" in capsys.readouterr().out, "a run's folder names it too"
    assert fit(other, tiny_model, "--name", "one", "--overwrite", "true") == 0
    assert json.loads(Path("runs/one/audit.json").read_text())["files"][0]["name"] == "other.jsonl"


@pytest.fixture
def ctrl_c_works() -> Iterator[None]:
    """A shell starts its background jobs with Ctrl-C ignored, and tests may run in one."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("ctrl_c_works")
@pytest.mark.parametrize(
    ("at", "sent", "status", "said"),
    [
        (2, [signal.SIGINT], 130, "stopped at step 2; go on with: lit-posttrain fit --resume one"),
        (2, [signal.SIGTERM], 143, "stopped at step 2; go on with: lit-posttrain fit --resume one"),
        (2, [signal.SIGINT, signal.SIGINT], 130, "stopped at once, at step 1; go on from the last save"),
        (4, [signal.SIGINT], 0, "done       step 4"),
    ],
)
def test_signals(
    at: int,
    sent: list[signal.Signals],
    status: int,
    said: str,
    chats: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = SFT.training_step

    def sends(module: SFT, batch: Any, batch_idx: int) -> Any:
        if module.trainer.global_step == at - 1:
            for number in sent:
                os.kill(os.getpid(), number)
        return original(module, batch, batch_idx)

    monkeypatch.setattr(SFT, "training_step", sends)
    options = ["--name", "one", "--data.batch_size", "4", "--trainer.max_epochs", "1", "--checkpoint_every", "1"]
    assert fit(chats, tiny_model, *options) == status
    assert said in capsys.readouterr().out
    assert torch.load("runs/one/last.ckpt", weights_only=True)["global_step"] == int(said.split("step ")[1][0])
    assert Path("runs/one/best.ckpt").exists() == (at == 4), "the last step is validated"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    monkeypatch.undo()


@pytest.mark.usefixtures("ctrl_c_works")
def test_ctrl_c_before_training_leaves_nothing(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = SFT.configure_model

    def sends(module: SFT) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original(module)

    monkeypatch.setattr(SFT, "configure_model", sends)
    assert fit(chats, tiny_model, "--name", "one", "--wandb.mode", "offline") == 130
    assert "interrupted" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--model.optimizer.init_args.lr", "1e-3", "with lr 2e-05 and this run has lr 0.001"),
        ("--model.optimizer.init_args.weight_decay", "0.1", "weight_decay 0.0"),
        ("--model.schedule", "linear", "schedule cosine"),
        ("--model.warmup", "0.5", "warmup 0.03"),
    ],
)
def test_resuming_with_another_optimizer_is_refused(
    option: str, value: str, said: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_epochs", "1") == 0
    before = Path("runs/one/config.yaml").read_bytes()
    more = ["fit", "--resume", "one", "--trainer.max_epochs", "2"]
    assert main([*more, option, value]) == 2
    assert said in one_line(capsys)
    assert Path("runs/one/config.yaml").read_bytes() == before
    assert main([*more, "--model.optimizer.init_args.fused", "false"]) == 0


def test_the_logged_learning_rate_is_the_one_of_the_step(chats: Path, tiny_model: Path) -> None:
    options = ["--name", "one", "--data.batch_size", "4", "--model.schedule", "linear", "--model.warmup", "0"]
    assert fit(chats, tiny_model, *options, "--model.optimizer.init_args.lr", "1.0") == 0
    with Path("runs/one/metrics.csv").open() as stream:
        rates = [float(r["train/lr"]) for r in csv.DictReader(stream) if r["train/lr"]]
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_longer_plan_is_told(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert fit(chats, tiny_model, "--name", "one") == 0
    assert main(["fit", "--resume", "one", "--trainer.max_epochs", "2"]) == 0
    assert "planned for 1 steps, now for 2" in caplog.text


@pytest.mark.parametrize(
    ("overlay", "extra", "tolerance"),
    [
        ("none", [], 1e-4),
        ("lora", ["--config", "configs/with/lora.yaml"], 1e-4),
        ("qlora", ["--config", "configs/with/qlora.yaml"], 1e-4),
        ("dora", ["--model.policy.lora.r", "4", "--model.policy.lora.dora", "true"], 1e-4),
        ("rslora", ["--model.policy.lora.r", "4", "--model.policy.lora.rslora", "true"], 1e-4),
        ("qdora", ["--config", "configs/with/qlora.yaml", "--model.policy.lora.dora", "true"], 1e-4),
    ],
)
def test_the_exported_folder_equals_the_trained_module(
    overlay: str, extra: list[str], tolerance: float, chats: Path, tiny_model: Path
) -> None:
    # a learning rate that moves the weights enough for a wrong merge to show
    assert fit(chats, tiny_model, *extra, "--name", "one", "--model.optimizer.init_args.lr", "0.01") == 0
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    trained = restore("runs/one").policy.transformer
    plain = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert tokenizer.chat_template
    assert not (Path("out") / "adapter_config.json").exists()
    ids = torch.tensor([tokenizer("what is 3 plus 3")["input_ids"]])
    with torch.no_grad():
        actual, expected = plain(ids).logits, trained(ids).logits
        start = AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits
    assert float((actual - expected).abs().max()) <= tolerance
    assert float((actual - start).abs().max()) > 100 * tolerance, "training changed the model"
    card = (Path("out") / "README.md").read_text()
    assert "SFT" in card
    assert "24 rows" in card
    saved = torch.load("runs/one/last.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in saved) == (overlay != "none"), "adapters are saved alone"


def test_adapters_are_exported_for_peft(chats: Path, tiny_model: Path) -> None:
    from peft import PeftModel

    assert fit(chats, tiny_model, "--config", "with/lora.yaml", "--name", "one") == 0
    assert main(["export", "--ckpt", "runs/one", "--out", "adapter", "--adapter", "true"]) == 0
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded = PeftModel.from_pretrained(base, "adapter").eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, restore("runs/one").policy.transformer(ids).logits)


def test_generate_and_audit(chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["--prompts", str(chats), "--max_new_tokens", "4", "--n", "2", "--temperature", "1.0"]
    assert main(["generate", "--model", str(tiny_model), *prompts, "--out", "answers.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert all(len(r["responses"]) == 2 for r in rows)
    arguments = ["--config", "sft.yaml", "--data.path", str(chats), "--model.policy.path", str(tiny_model)]
    assert main(["audit", *arguments, "--out", "audit.json"]) == 0
    assert "24" in capsys.readouterr().out
    assert json.loads(Path("audit.json").read_text())["total"]["rows"] == 24
    assert not Path("runs").exists(), "an audit leaves no run behind"


def test_chat_keeps_the_conversation(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = iter(["what is one", "and two", "/reset", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    assert main(["chat", "--model", str(tiny_model), "--max_new_tokens", "3"]) == 0
    assert capsys.readouterr().out.count("model>") == 2


def test_configs_are_listed_and_copied(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    assert "with/lora.yaml" in capsys.readouterr().out
    assert main(["configs", "--copy", "sft.yaml"]) == 0
    assert Path("sft.yaml").is_file()
    assert main(["configs", "--copy", "sft.yaml"]) == 2
    assert "exists already" in one_line(capsys)


SFT_TINY = ["--config", "sft.yaml", "--model.policy.path", "TINY", "--data.batch_size", "4"]
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown command": (["fitt"], ["unknown command fitt", "did you mean fit"]),
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
    "a misplaced option": (["fit", *SFT_TINY, "--model.lr", "1"], ["did you mean --model.optimizer.init_args.lr?"]),
    "another trainer's option": (["fit", *SFT_TINY, "--num_train_epochs", "1"], ["did you mean --trainer.max_epochs?"]),
    "a misspelt column": (["fit", *SFT_TINY, "--data.columns.prompr", "x"], ["did you mean --data.columns.prompt?"]),
    "a misspelt option of adapters": (
        ["fit", *SFT_TINY, "--model.policy.lora.rank", "4"],
        ["did you mean --model.policy.lora.r?"],
    ),
    "a misspelt option of a command": (["chat", "--modle", "x"], ["--modle", "did you mean --model?"]),
    "a wrong choice": (["fit", *SFT_TINY, "--data.overlong", "chop"], ["--data.overlong: expected one of drop, cut"]),
    "a wrong number": (["fit", *SFT_TINY, "--trainer.max_epochs", "three"], ["expected a whole number, got three"]),
    "a wrong nested number": (
        ["fit", *SFT_TINY, "--model.optimizer.init_args.lr", "high"],
        ["--model.optimizer.init_args.lr: expected a number, got high"],
    ),
    "no such class": (["fit", *SFT_TINY, "--model.optimizer", "Adamm"], ["--model.optimizer Adamm", "no such class"]),
    "an impossible learning rate": (
        ["fit", *SFT_TINY, "--model.optimizer.init_args.lr", "-1"],
        ["--model.optimizer: Invalid learning rate: -1"],
    ),
    "another spelling": (
        ["fit", *SFT_TINY, "--model.optimiser.init_args.lr", "1"],
        ["--model.optimiser.init_args.lr: no such option; did you mean --model.optimizer.init_args.lr?"],
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
        ["chats.jsonl:1", "not recognised as preferences: prompt, completion"],
    ),
    "a reference that cannot be": (
        ["fit", "--config", "dpo.yaml", "--model.policy.path", "TINY", "--model.reference", "adapter_off"],
        ["--model.reference adapter_off", "--model.policy.lora.r"],
    ),
    "a value out of range": (["fit", *SFT_TINY, "--data.val_share", "5"], ["--data.val_share is 5"]),
    "best of nothing": (["validate", *SFT_TINY, "--ckpt_path", "best"], ["runs/NAME/best.ckpt"]),
    "a checkpoint that is not there": (["validate", *SFT_TINY, "--ckpt_path", "x.ckpt"], ["x.ckpt: no such file"]),
    "a folder without checkpoints": (["validate", *SFT_TINY, "--ckpt_path", "."], ["neither best.ckpt nor last.ckpt"]),
    "too many processes": (["fit", *SFT_TINY, "--trainer.accelerator", "cpu", "--trainer.devices", "2000"], ["2000"]),
    "the training's loss": (
        ["fit", *SFT_TINY, "--data.val_share", "0.3", "--monitor", "loss"],
        ["--monitor", "val/loss"],
    ),
    "a metric that no validation has": (
        ["fit", *SFT_TINY, "--data.val_share", "0.3", "--monitor", "val/los"],
        ["val/loss?"],
    ),
    "no such checkpoint": (["export", "--ckpt", "nothere.ckpt", "--out", "x"], ["nothere.ckpt", "no such checkpoint"]),
    "bad type": (["fit", "--config", "sft.yaml", "--data.batch_size", "many"], ["batch_size"]),
    "missing option": (["export", "--ckpt", "x.ckpt"], ["--out: required"]),
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


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_with_a_remedy(
    mistake: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, parts = MISTAKES[mistake]
    ranked = {"prompt": "a", "responses": ["b", "c"], "ranks": [0, 3]}
    places = {"TINY": str(tiny_model), "CHATS": str(chats), "RANKED": str(chats.parent.parent / "ranked.jsonl")}
    Path(places["RANKED"]).write_text(json.dumps(ranked) + "\n")
    places["LONE"] = str(chats.parent.parent / "lone.jsonl")
    lone = [{"prompt": f"a {n}", "completion": "b", "label": True} for n in range(20)]
    Path(places["LONE"]).write_text("".join(json.dumps(row) + "\n" for row in lone))
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
    assert fit(chats, tiny_model, "--config", "with/gpu.yaml", "--trainer.accelerator", "gpu") == 2
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


def test_the_card_of_the_best_checkpoint_shows_its_own_figures(chats: Path, tiny_model: Path) -> None:
    # a learning rate that ruins the model: the first validation is the best one
    rates = ["--model.optimizer.init_args.lr", "0.5", "--model.warmup", "0", "--model.schedule", "constant"]
    steps = ["--data.batch_size", "4", "--trainer.val_check_interval", "1"]
    assert fit(chats, tiny_model, "--name", "one", *rates, *steps) == 0
    best = torch.load("runs/one/best.ckpt", weights_only=True)
    assert best["global_step"] < torch.load("runs/one/last.ckpt", weights_only=True)["global_step"]
    assert main(["export", "--ckpt", "runs/one/best.ckpt", "--out", "out"]) == 0
    with Path("runs/one/metrics.csv").open() as stream:
        logged = [r for r in csv.DictReader(stream) if r["val/loss"]]
    lowest = min(float(r["val/loss"]) for r in logged)
    card = Path("out/README.md").read_text()
    assert f"- val/loss: {lowest:.4f}" in card
    assert f"- val/loss: {float(logged[-1]['val/loss']):.4f}" not in card


def test_a_damaged_checkpoint_is_named(chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1") == 0
    checkpoint = Path("runs/one/last.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert main(["export", "--ckpt", str(checkpoint), "--out", "out"]) == 2
    assert "last.ckpt" in one_line(capsys)
    assert not Path("out").exists()


def test_secrets_stay_out_of_saved_configs(chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1") == 0
    for file in Path("runs/one").rglob("*"):
        if file.is_file():
            assert b"a" * 40 not in file.read_bytes(), file


def every_config() -> list[str]:
    home = REPOSITORY / "configs"
    return sorted(str(f.relative_to(home)) for f in home.rglob("*.yaml"))


@pytest.mark.parametrize("name", every_config())
def test_every_config_is_read_and_opens_with_its_command(name: str, tiny_model: Path, chats: Path) -> None:
    from lit_posttrain.training import PostTrainCLI

    text = (REPOSITORY / "configs" / name).read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any("lit-posttrain fit --config" in line for line in header)
    if name == "with/gpu.yaml" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    configs = ["--config", str(REPOSITORY / "configs" / name)]
    if name.startswith("with/"):
        configs = ["--config", str(REPOSITORY / "configs/sft.yaml"), *configs]
    configs += ["--model.policy.path", str(tiny_model), "--wandb.mode", "disabled"]
    cli: Any = PostTrainCLI(args=configs, run=False, tracking=False)
    assert cli.model.spec.path == str(tiny_model)


def test_lightnings_own_quantization_is_refused_with_the_reason(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = '{"class_path": "lightning.pytorch.plugins.BitsandbytesPrecision", "init_args": {"mode": "nf4"}}'
    assert fit(chats, tiny_model, f"--trainer.plugins={plugin}") == 2
    assert "--model.policy.quantization nf4" in one_line(capsys)
