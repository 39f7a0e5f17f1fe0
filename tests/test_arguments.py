"""How the arguments of a trainer command are rewritten before LightningCLI sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_posttrain.cli.arguments import goes_on_again, resolve_arguments
from lit_posttrain.cli.failures import buried
from lit_posttrain.cli.parsing.spelling import likely
from lit_posttrain.errors import PostTrainError


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder, names in {"runs/mine": ("last", "best"), "runs/group/mine": ("last",), "old/mine": ("last",)}.items():
        Path(folder).mkdir(parents=True)
        for name in ("config.yaml", *(f"{n}.ckpt" for n in names)):
            (Path(folder) / name).write_text("trainer: {}\n")
    return tmp_path


def place(arguments: list[str]) -> str:
    """The folder in which the run goes on, and the checkpoint it goes on from."""
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    return f"{options['--runs']}/{options['--name']} {options['--ckpt_path']}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--resume", "mine"], "runs/mine runs/mine/last.ckpt"),
        (["--resume", "runs/mine"], "runs/mine runs/mine/last.ckpt"),
        (["--resume", "group/mine"], "runs/group/mine runs/group/mine/last.ckpt"),
        (["--resume", "old/mine"], "old/mine old/mine/last.ckpt"),
        (["--resume", "mine", "--runs", "old"], "old/mine old/mine/last.ckpt"),
        (["--resume=ABSOLUTE"], "ABSOLUTE ABSOLUTE/last.ckpt"),
        (["--resume", "mine", "--ckpt_path", "best"], "runs/mine runs/mine/best.ckpt"),
    ],
)
def test_a_resumed_run_stays_in_its_folder(given: list[str], expected: str, runs: Path) -> None:
    absolute = str(runs / "old/mine")
    resolved = resolve_arguments(["fit", *(word.replace("ABSOLUTE", absolute) for word in given)])
    assert place(resolved) == expected.replace("ABSOLUTE", absolute)


def test_a_folder_stands_for_its_checkpoint(runs: Path) -> None:
    assert resolve_arguments(["validate", "-c", "sft.yaml", "--ckpt_path", "runs/mine"])[-1] == "runs/mine/best.ckpt"
    assert resolve_arguments(["fit", "-c", "sft.yaml", "--ckpt_path", "runs/mine"])[-1] == "runs/mine/last.ckpt"
    named = ["validate", "--config", "runs/mine/config.yaml", "--ckpt_path", "best"]
    assert resolve_arguments(named)[-1] == "runs/mine/best.ckpt"
    assert resolve_arguments(["fit", "-c", "sft.yaml", "--ckpt_path", "null"])[-1] == "null"
    (runs / "runs/mine/last.ckpt").unlink()
    assert resolve_arguments(["fit", "-c", "sft.yaml", "--ckpt_path", "runs/mine"])[-1] == "runs/mine/best.ckpt"
    assert place(resolve_arguments(["fit", "--resume", "mine"])) == "runs/mine runs/mine/best.ckpt"
    auto = ["fit", "-c", "sft.yaml", "--resume", "auto", "--name", "mine"]
    assert resolve_arguments(auto)[-1] == "runs/mine/best.ckpt"
    (runs / "runs/mine/best.ckpt").unlink()
    with pytest.raises(PostTrainError, match=r"a folder that holds neither last\.ckpt nor best\.ckpt"):
        resolve_arguments(["fit", "-c", "sft.yaml", "--ckpt_path", "runs/mine"])


@pytest.mark.parametrize("where", ["typed", "in a config", "in two configs"])
def test_a_run_that_begins_or_goes_on_does_so_by_the_same_options(where: str, runs: Path) -> None:
    (runs / "named.yaml").write_text("name: mine\nruns: old\n")
    (runs / "other.yaml").write_text("name: other\nruns: runs\n")
    typed = ["--name", "mine", "--runs", "old"]
    named = {
        "typed": typed,
        "in a config": ["-c", "named.yaml"],
        "in two configs": ["--config=other.yaml", "-c", "named.yaml"],
    }
    command = ["fit", "--config", "sft.yaml", "--resume", "auto", *named[where], "--trainer.callbacks+=KLControl"]
    going_on = resolve_arguments(command)
    assert going_on[-2:] == ["--ckpt_path", "old/mine/last.ckpt"]
    (runs / "old/mine/last.ckpt").unlink()
    beginning = resolve_arguments(command)
    assert beginning == going_on[:-2]
    assert beginning[-2:] == ["--name", "mine"]


def test_a_checkpoint_may_be_named_in_a_config(runs: Path) -> None:
    (runs / "from.yaml").write_text("ckpt_path: runs/mine\n")
    command = ["validate", "-c", "sft.yaml", "-c", "from.yaml"]
    assert resolve_arguments(command)[-2:] == ["--ckpt_path", "runs/mine/best.ckpt"]
    (runs / "from.yaml").write_text("ckpt_path: best\nname: mine\n")
    assert resolve_arguments(command)[-2:] == ["--ckpt_path", "runs/mine/best.ckpt"]
    (runs / "from.yaml").write_text("ckpt_path: nothere\n")
    with pytest.raises(PostTrainError, match="nothere: no such file"):
        resolve_arguments(command)
    assert resolve_arguments(["audit", *command[1:]])[-1] == "from.yaml", "an audit needs none"


def test_a_mistyped_run_is_suggested(runs: Path) -> None:
    with pytest.raises(PostTrainError, match="--resume mime: no such run; did you mean mine"):
        resolve_arguments(["fit", "--resume", "mime"])


def test_a_run_goes_on_by_its_own_config_and_begins_by_another(runs: Path) -> None:
    auto = ["fit", "--resume", "auto", "--name"]
    assert place(resolve_arguments([*auto, "mine"])) == "runs/mine runs/mine/last.ckpt"
    assert place(resolve_arguments([*auto, "mine", "--runs", "old"])) == "old/mine old/mine/last.ckpt"
    with pytest.raises(PostTrainError, match="there is no run runs/new yet, and to begin it takes a config, such as"):
        resolve_arguments([*auto, "new"])


@pytest.mark.parametrize(
    ("given", "again"),
    [
        ([], False),
        (["--name", "mine"], False),
        (["--resume", "mine"], True),
        (["--resume=mine", "--ckpt_path", "last"], True),
        (["--resume", "mine", "--ckpt_path=runs/mine/last.ckpt"], True),
        (["--resume", "mine", "--ckpt_path=best"], False),
        (["--resume", "auto", "--ckpt_path", "runs/other/last.ckpt"], True),  # with which it begins
    ],
)
def test_which_command_goes_on_when_it_is_started_again(given: list[str], again: bool) -> None:
    assert goes_on_again(["fit", *given]) == again


@pytest.mark.parametrize("asking", [["--print_config"], ["--model.help", "SFT"]])
def test_questions_need_no_config(asking: list[str]) -> None:
    assert resolve_arguments(["fit", *asking]) == ["fit", *asking]


def test_a_wrapped_error_is_found_and_a_handled_one_is_not() -> None:
    def wrapped() -> None:
        try:
            raise PostTrainError("the cause")
        except PostTrainError:
            raise ValueError("a library's words")  # noqa: B904  as jsonargparse does

    def handled() -> None:
        try:
            raise PostTrainError("long over")
        except PostTrainError:
            raise KeyError("a bug") from None

    with pytest.raises(ValueError, match="words") as first:
        wrapped()
    assert str(buried(first.value)) == "the cause"
    with pytest.raises(KeyError) as second:
        handled()
    assert buried(second.value) is None


def test_a_name_is_not_suggested_for_itself() -> None:
    assert likely("ckpt_path", ["ckpt_path"]) is None
    assert likely("batch_size", ["data.batch_size", "data.eval_batch_size"]) == "data.batch_size"
