"""The figures that stand for a run."""

from __future__ import annotations

from pathlib import Path

from lit_posttrain.runs.figures import run_figures


def test_training_is_a_mean_over_the_last_steps_and_validation_the_last_value(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    rows = [f"{i},{i}.0,{'0.' + str(i // 50 + 1) if i % 50 == 49 else ''}" for i in range(200)]
    file.write_text("step,train/loss,val/loss\n" + "\n".join(rows) + "\n")
    found = run_figures(file)
    assert found["train/loss"].value == sum(range(180, 200)) / 20
    assert str(found["train/loss"]) == "189.5 (mean of 20 steps)"
    assert str(found["val/loss"]) == "0.4"
    earlier = run_figures(file, before=60)
    assert earlier["train/loss"].value == sum(range(50, 60)) / 10, "ten steps at least"
    assert earlier["val/loss"].value == 0.1


def test_what_was_not_measured_is_no_figure(tmp_path: Path) -> None:
    assert run_figures(tmp_path / "metrics.csv") == {}
    file = tmp_path / "metrics.csv"
    file.write_text("step,train/reward,val/reward\n0,nan,\n1,2.0,\n")
    assert {name: str(figure) for name, figure in run_figures(file).items()} == {"train/reward": "2"}


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    for end in ("12,1.3e", "12,1.3e,", "12", "1\0,", "12,5.0"):
        file.write_text(f"step,train/loss,val/loss\n0,1.0,2.0\n1,3.0,\n{end}")
        assert {name: figure.value for name, figure in run_figures(file).items()} == {
            "train/loss": 2.0,
            "val/loss": 2.0,
        }
