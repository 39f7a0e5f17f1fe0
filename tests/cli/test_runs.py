"""What `fit` leaves behind, and how a run is resumed, refused or replaced."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.cli import fit, one_line

from lit_posttrain import SFT, PostTrainError, PostTrainingModule
from lit_posttrain.cli.main import main


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


def test_a_run_with_its_progress_bar_is_resumed_at_an_epochs_end(chats: Path, tiny_model: Path) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.enable_progress_bar", "true") == 0
    assert main(["fit", "--resume", "one", "--trainer.max_epochs", "2"]) == 0
    assert torch.load("runs/one/last.ckpt", weights_only=True)["global_step"] == 2


def test_a_finished_run_on_a_stream_is_prolonged(chats: Path, tiny_model: Path) -> None:
    """Whatever number of epochs the config has: a stream is one epoch as long as the run."""
    stream = ["--data.streaming", "true", "--data.val_fraction", "0", "--trainer.max_epochs", "1"]
    assert fit(chats, tiny_model, "--name", "one", *stream, "--trainer.max_steps", "1") == 0
    assert main(["fit", "--resume", "one", "--trainer.max_steps", "3"]) == 0
    assert torch.load("runs/one/last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_other_precisions_train_with_clipping(precision: str, chats: Path, tiny_model: Path) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.precision", precision) == 0
    saved = torch.load("runs/one/last.ckpt", weights_only=True)["state_dict"]
    expected = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
    assert {weight.dtype for weight in saved.values()} == {expected}


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_on_a_processor_that_is_slow_in_it_is_warned_of(
    fast: bool, chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lit_posttrain.cli.training.fast_bfloat16_cpu", lambda: fast)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert fit(chats, tiny_model, "--trainer.precision", "bf16-mixed", "--trainer.max_steps", "1") == 0
    assert ("slower than float32; 32-true is faster" in caplog.text) != fast


def test_metrics_are_summed_exactly_in_bf16_true(chats: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"what is {i}", "completion": f"{i} " * (1 + i % 4)} for i in range(600)]
    Path("many.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    losses = []
    for size in ("1", "600"):
        extra = ["--trainer.precision", "bf16-true", "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
        extra += ["--name", size]
        extra += ["--data.val_path", "many.jsonl", "--data.val_fraction", "0", "--data.eval_batch_size", size]
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
    assert main(["fit", "--resume", "one", "--data.path", "other.jsonl"]) == 2
    assert "other.jsonl" in one_line(capsys), "though nothing was left to do"
    assert main(["fit", "--resume", "one", "--trainer.max_epochs", "1"]) == 0
    assert "nothing was left to do" in capsys.readouterr().out, "a run's folder names it too"
    assert fit(other, tiny_model, "--name", "one", "--overwrite", "true", "--data.max_length", "2") == 2
    assert "raise --data.max_length" in one_line(capsys)
    assert {f: f.read_bytes() for f in Path("runs/one").iterdir() if f.is_file()} == before
    assert main(["fit", "--resume", "runs/one"]) == 0
    assert "nothing was left to do" in capsys.readouterr().out, "a run's folder names it too"
    assert fit(other, tiny_model, "--name", "one", "--overwrite", "true") == 0
    assert json.loads(Path("runs/one/audit.json").read_text())["files"][0]["name"] == "other.jsonl"


def test_a_used_folder_is_not_begun_in_with_the_checkpoint_of_another_run(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not silently; and best.ckpt is of the run itself, however good the other one was."""
    start = ["--ckpt_path", "runs/a/last.ckpt", "--trainer.max_epochs", "2"]
    assert fit(chats, tiny_model, "--name", "a") == 0
    assert fit(chats, tiny_model, "--name", "b", "--model.optim.lr", "1e-4") == 0
    capsys.readouterr()
    before = {f: f.read_bytes() for f in Path("runs/b").iterdir() if f.is_file()}
    assert fit(chats, tiny_model, "--name", "b", *start) == 2
    assert (
        "runs/b holds a run already, which --ckpt_path runs/a/last.ckpt is not of (else put it into that folder): go on"
        in one_line(capsys)
    )
    assert main(["fit", "--resume", "b", *start]) == 2
    assert "which --ckpt_path runs/a/last.ckpt is not of" in one_line(capsys)
    assert {f: f.read_bytes() for f in Path("runs/b").iterdir() if f.is_file()} == before
    saved = torch.load("runs/a/last.ckpt", weights_only=True)
    saved["callbacks"]["BestCheckpoint[val/loss,min]"]["best_score"] = 0.0  # which no validation attains
    torch.save(saved, "runs/a/last.ckpt")
    for name, more in (("c", []), ("b", ["--overwrite", "true"])):
        assert fit(chats, tiny_model, "--name", name, *start, *more) == 0
        assert torch.load(f"runs/{name}/best.ckpt", weights_only=True)["global_step"] == saved["global_step"] + 1


def test_a_run_goes_on_from_checkpoints_that_it_keeps_elsewhere(chats: Path, tiny_model: Path) -> None:
    """Behind a link to another disk, or in a folder of ModelCheckpoint; with the same metrics and W&B run."""
    kept = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath", "scratch"]
    kept += ["--trainer.callbacks.filename", "own", "--trainer.callbacks.save_weights_only", "false"]
    assert fit(chats, tiny_model, "--name", "a", *kept) == 0
    steps = len(Path("runs/a/metrics.csv").read_text().splitlines())
    more = ["--resume", "a", "--trainer.max_epochs"]
    assert main(["fit", *more, "2", "--ckpt_path", "scratch/own.ckpt"]) == 0
    assert len(Path("runs/a/metrics.csv").read_text().splitlines()) > steps
    Path("runs/a/last.ckpt").rename("scratch/last.ckpt")
    Path("runs/a/last.ckpt").symlink_to(Path("scratch/last.ckpt").absolute())
    Path("runs/a/samples.jsonl").touch()
    assert main(["fit", *more, "3"]) == 0
    assert Path("runs/a/samples.jsonl").exists(), "nothing of the run is forgotten"


@pytest.mark.parametrize("given", [["--resume", "auto"], ["--trainer.max_epochs", "2"]])
def test_a_requeued_job_goes_on_from_what_lightning_saved(
    given: list[str], chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--name", "a") == 0
    Path("runs/a/best.ckpt").unlink()
    Path("runs/a/last.ckpt").rename("runs/a/hpc_ckpt_1.ckpt")
    Path("runs/a/samples.jsonl").touch()
    if "auto" not in given:  # Lightning finds it by itself
        monkeypatch.setenv("SLURM_JOB_NAME", "j")
        for name, value in {"NTASKS": "1", "JOB_ID": "1", "NODEID": "0", "PROCID": "0", "LOCALID": "0"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
    capsys.readouterr()
    assert fit(chats, tiny_model, "--name", "a", *given, "--trainer.max_epochs", "2") == 0
    assert ", from step " in capsys.readouterr().out
    assert {"hpc_ckpt_1.ckpt", "samples.jsonl"} <= {file.name for file in Path("runs/a").iterdir()}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--model.optim.lr", "1e-3", "with lr 2e-05 and this run has lr 0.001"),
        ("--model.optim.weight_decay", "0.1", "weight_decay 0.0"),
        ("--model.optim.schedule", "linear", "schedule cosine"),
        ("--model.optim.warmup_ratio", "0.5", "warmup_ratio 0.03"),
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
    assert main([*more, "--model.optim.options", "{fused: false}"]) == 0


def test_the_logged_learning_rate_is_the_one_of_the_step(chats: Path, tiny_model: Path) -> None:
    options = [
        "--name",
        "one",
        "--data.batch_size",
        "4",
        "--model.optim.schedule",
        "linear",
        "--model.optim.warmup_ratio",
        "0",
    ]
    assert fit(chats, tiny_model, *options, "--model.optim.lr", "1.0") == 0
    with Path("runs/one/metrics.csv").open() as stream:
        rates = [float(r["train/lr"]) for r in csv.DictReader(stream) if r["train/lr"]]
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_longer_plan_is_told(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert fit(chats, tiny_model, "--name", "one") == 0
    assert main(["fit", "--resume", "one", "--trainer.max_epochs", "2"]) == 0
    assert "planned for 1 steps, now for 2" in caplog.text


def test_secrets_stay_out_of_saved_configs(chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1") == 0
    for file in Path("runs/one").rglob("*"):
        if file.is_file():
            assert b"a" * 40 not in file.read_bytes(), file


def test_a_run_that_saved_nothing_is_not_begun_anew_silently(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its metrics would be lost. A job that is requeued before anything was saved does begin anew."""
    unsaved = ["--trainer.enable_checkpointing", "false"]
    assert fit(chats, tiny_model, "--name", "one", *unsaved) == 0
    before = Path("runs/one/metrics.csv").read_bytes()
    capsys.readouterr()
    assert fit(chats, tiny_model, "--name", "one", *unsaved) == 2
    assert "runs/one holds a run already, without a last.ckpt or best.ckpt" in one_line(capsys)
    assert Path("runs/one/metrics.csv").read_bytes() == before
    assert fit(chats, tiny_model, "--resume", "auto", "--name", "one") == 0
    assert Path("runs/one/last.ckpt").exists()


def test_a_dry_run_may_have_the_name_of_a_run(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--name", "one") == 0
    before = {f: f.read_bytes() for f in Path("runs/one").iterdir() if f.is_file()}
    dry = ["--trainer.fast_dev_run", "true", "--wandb.mode", "offline"]
    for name in ("one", "two"):
        assert fit(chats, tiny_model, "--name", name, *dry) == 0
    assert {f: f.read_bytes() for f in Path("runs/one").iterdir()} == before
    assert not Path("runs/two").exists()


def test_nothing_of_the_old_run_stays_when_one_starts_anew(chats: Path, tiny_model: Path) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_epochs", "2") == 0
    for name in ("samples.jsonl", "completions.jsonl"):
        Path("runs/one", name).write_text('{"step": 1}\n')
    assert fit(chats, tiny_model, "--name", "one", "--overwrite", "true", "--trainer.logger", "false") == 0
    left = {f.name for f in Path("runs/one").iterdir()}
    assert left == {"config.yaml", "audit.json", "run_id.txt", "last.ckpt", "best.ckpt"}


def test_an_error_does_not_speak_of_the_checkpoint_of_an_earlier_run(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--name", "one", "--data.batch_size", "4", "--trainer.val_check_interval", "2"]
    assert fit(chats, tiny_model, *options) == 0

    def fails(module: SFT, batch: Any, batch_idx: int) -> Any:
        raise PostTrainError("at once")

    monkeypatch.setattr(SFT, "training_step", fails)
    capsys.readouterr()
    for checkpoint, said in (("best", False), ("last", True)):
        assert main(["fit", "--resume", "one", "--ckpt_path", checkpoint, "--trainer.max_epochs", "2"]) == 2
        assert ("is saved in" in capsys.readouterr().out) == said


def test_predictions_that_fail_leave_the_old_ones(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(chats, tiny_model, "--name", "one") == 0
    folder = Path("runs/one")
    for name in ("predictions.jsonl", "predictions-1.jsonl"):
        (folder / name).write_text("old\n")
    (folder / "predictions-mine.jsonl").write_text("of somebody\n")
    command = ["predict", "--config", "runs/one/config.yaml", "--ckpt_path", "last", "--overwrite", "true"]

    def fails(module: SFT, batch: Any, batch_idx: int) -> Any:
        raise PostTrainError("at once")

    with monkeypatch.context() as patched:
        patched.setattr(SFT, "predict_step", fails)
        assert main(command) == 2
    assert (folder / "predictions.jsonl").read_text() == (folder / "predictions-1.jsonl").read_text() == "old\n"
    assert main(command) == 0
    assert {f.name for f in folder.glob("predictions*")} == {"predictions.jsonl", "predictions-mine.jsonl"}
    assert (folder / "predictions.jsonl").read_text() != "old\n"
