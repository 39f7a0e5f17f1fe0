"""`lit-posttrain generate`: rows come as they are drawn, none is lost, and a command that was stopped goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.cli import fit, one_line
from helpers.processes import locked_elsewhere
from helpers.runs import write

from lit_posttrain.cli.main import main
from lit_posttrain.inference.chat import ChatModel
from lit_posttrain.rewards import Repetition
from lit_posttrain.rewards.processes import RewardProcesses
from lit_posttrain.rollout.text import prompt_ids


class Draws:
    """Counts the prompts that are answered; is interrupted at a call, if one is named."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[int] = []
        self.stop_at: int | None = None
        answer = ChatModel.answer

        def watched(model: ChatModel, some: Sequence[Any], n: int, sampling: Any, first: int = 0) -> Any:
            if len(self.prompts) == self.stop_at:
                raise KeyboardInterrupt
            self.prompts.append(len(some))
            return answer(model, some, n, sampling, first)

        monkeypatch.setattr(ChatModel, "answer", watched)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    return Draws(monkeypatch)


@pytest.fixture
def command(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """40 prompts, answered at random, 16 at a time."""
    monkeypatch.chdir(tmp_path)
    asked = write(tmp_path / "asked.jsonl", [{"id": i, "prompt": f"what is {i}"} for i in range(40)])
    drawn = ["--max_new_tokens", "5", "--temperature", "1", "--batch_size", "4"]
    return ["generate", "--model", str(tiny_model), "--prompts", asked, *drawn]


def rows(file: str) -> list[Any]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_the_console_shows_rows_as_they_are_drawn(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    draws.stop_at = 2
    assert main(command) == 130
    shown = capsys.readouterr()
    assert [json.loads(line)["id"] for line in shown.out.splitlines()] == list(range(32))
    assert "stopped with 32 of 40 prompts answered" in shown.err


def test_a_stopped_command_goes_on_where_it_was(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--out", "whole.jsonl"]) == 0
    draws.prompts, draws.stop_at = [], 2
    assert main([*command, "--out", "parted.jsonl"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not Path("parted.jsonl").exists()
    part = Path("parted.jsonl.part")
    part.write_bytes(part.read_bytes()[:-7])  # as a crash within the last line leaves it
    draws.prompts, draws.stop_at = [], None
    assert main([*command, "--out", "parted.jsonl"]) == 0
    assert "31 of 40 prompts are answered" in capsys.readouterr().err
    assert draws.prompts == [1, 8]
    assert rows("parted.jsonl") == rows("whole.jsonl")
    assert not part.exists()


def test_answers_that_other_options_left_are_not_taken(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    draws.stop_at = 1
    assert main([*command, "--out", "out.jsonl"]) == 130
    draws.stop_at = None
    capsys.readouterr()
    assert main([*command, "--seed", "1", "--out", "out.jsonl"]) == 2
    assert "out.jsonl.part holds what another model, other data or other options gave" in one_line(capsys)
    assert main([*command, "--seed", "1", "--out", "out.jsonl", "--overwrite", "true"]) == 0
    assert len(rows("out.jsonl")) == 40


def test_rewards_that_rank_nothing_are_refused_before_anything_is_drawn(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    best = [*command, "--n", "2", "--out", "best.jsonl", "--keep", "best", "--rewards+=Repetition"]
    assert main([*best, "--rewards.weight", "0"]) == 2
    assert "--rewards: all have the weight 0, which measures and ranks nothing" in one_line(capsys)
    assert not draws.prompts
    assert not Path("best.jsonl.part").exists()


def test_answers_of_which_nothing_is_kept_are_not_lost(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    best = [*command, "--n", "2", "--out", "best.jsonl", "--keep", "best", "--rewards+=Repetition"]
    best[best.index("--max_new_tokens") + 1] = "1"
    assert main([*best, "--min_reward", "5"]) == 2
    told = capsys.readouterr().err
    assert "nothing is left to keep" in told
    assert "to answer anew, with more tokens, say, pass --overwrite true: best.jsonl.part keeps these answers" in told
    assert "40 of 40 prompts answered; they are kept in best.jsonl.part\n" in told, "the same command cannot help"
    draws.prompts = []
    assert main([*best, "--cut_off", "true"]) == 0
    assert draws.prompts == [], "they are not drawn again"
    assert rows("best.jsonl")
    assert not Path("best.jsonl.part").exists()


def test_answers_are_kept_when_a_reward_fails(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = [*command, "--n", "2", "--out", "best.jsonl", "--keep", "best", "--cut_off", "true", "--rewards+=Repetition"]

    def broken(reward: Repetition, batch: Any) -> Any:
        raise ValueError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(Repetition, "score", broken)
        assert main(best) == 2
    told = capsys.readouterr().err
    assert "reward repetition fails on every response" in told
    assert "16 of 40 prompts answered; they are kept in best.jsonl.part" in told
    draws.prompts = []
    assert main(best) == 0
    assert sum(draws.prompts) == 24


def test_answers_that_are_all_cut_off_are_told_of_early(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_posttrain.models.restore.Restored.eos_ids", property(lambda self: [999]))
    draws.stop_at = 1
    assert main(command) == 130
    assert "all 16 answers so far were cut off at 5 tokens; raise --max_new_tokens?" in capsys.readouterr().err


def test_overwrite_goes_on_with_what_the_same_options_left(command: list[str], draws: Draws) -> None:
    Path("out.jsonl").write_text("old")
    draws.stop_at = 2
    assert main([*command, "--out", "out.jsonl", "--overwrite", "true"]) == 130
    draws.prompts, draws.stop_at = [], None
    assert main([*command, "--out", "out.jsonl", "--overwrite", "true"]) == 0
    assert draws.prompts == [8]
    assert len(rows("out.jsonl")) == 40


@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_answers_of_a_model_that_has_changed_are_not_taken(
    kind: str, command: list[str], draws: Draws, tiny_model: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path("model") if kind == "folder" else Path("runs/one")
    if kind == "folder":
        shutil.copytree(tiny_model, model)
        weights = model / "model.safetensors"
    else:
        assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1") == 0
        weights = next(model.glob("*.ckpt"))
    command[command.index("--model") + 1] = str(model)
    draws.stop_at = 1
    assert main([*command, "--out", "out.jsonl"]) == 130
    weights = weights.parent / ("best.ckpt" if (weights.parent / "best.ckpt").exists() else weights.name)
    os.utime(weights, ns=(1, 1))
    draws.stop_at = None
    capsys.readouterr()
    assert main([*command, "--out", "out.jsonl"]) == 2
    assert "holds what another model" in one_line(capsys)


@pytest.mark.parametrize(
    "option",
    [["--min_reward", "0"], ["--cut_off", "true"], ["--reward_timeout", "60"], ["--prompt+=x"], ["--prompt+", "x"]],
)
def test_options_that_would_do_nothing_are_refused(
    option: list[str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *option]) == 2
    assert option[0].partition("=")[0] in one_line(capsys)


@pytest.mark.parametrize("where", ["plain/x.jsonl", "closed/x.jsonl", "folder", "folder/" + 300 * "x"])
@pytest.mark.parametrize("name", ["generate", "score"])
def test_an_output_that_cannot_be_written_is_said_before_the_work(
    name: str, where: str, command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plain").write_text("")
    Path("folder").mkdir()
    Path("closed").mkdir()
    Path("closed").chmod(0o500)
    if where.startswith("closed") and os.access("closed", os.W_OK):
        pytest.skip("the superuser may write anywhere")
    if name == "score":
        command = ["score", "--model", command[2], "--data", command[4]]
    assert main([*command, "--out", where, "--overwrite", "true"]) == 2
    assert f"--out {where}: " in one_line(capsys)
    assert draws.prompts == []


def test_two_commands_do_not_write_one_file(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked_elsewhere(Path("out.jsonl.part")):
        assert main([*command, "--out", "out.jsonl"]) == 2
    assert "another command is writing it" in one_line(capsys)
    assert Path("out.jsonl.part").exists()


PAIR = {"chosen": "\n\nHuman: what is it\n\nAssistant: a fox", "rejected": "\n\nHuman: what is it\n\nAssistant: a dog"}
CLASHES = {
    "responses": {"messages": [{"role": "user", "content": "what is it"}], "responses": ["a fox", "a dog"]},
    "chosen": PAIR,
    "reward": {"prompt": "what is it", "reward": 1},
}


@pytest.mark.parametrize("column", CLASHES)
def test_columns_that_would_be_overwritten_are_refused_before_the_work(
    column: str, command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write(Path("rows.jsonl"), [{"prompt": "what is it"}] * 20 + [CLASHES[column]])
    command[command.index("--prompts") + 1] = given
    kept = [] if column == "responses" else ["--n", "2", "--keep", "pairs", "--rewards+=Repetition"]
    assert main([*command, *kept]) == 2
    assert f"rows.jsonl:21: the column `{column}` is also one of the output; rename it" in one_line(capsys)
    assert draws.prompts == []


def test_what_is_not_shown_to_the_model_is_said(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    tool = {"type": "function", "function": {"name": "zulu", "parameters": {}}}
    given = [{"prompt": "what is it", "tools": [tool]}, {"prompt": "Human: what is it\n\nAssistant:"}, PAIR]
    command[command.index("--prompts") + 1] = write(Path("rows.jsonl"), given)
    assert main(command) == 0
    told = capfd.readouterr()
    assert "rows.jsonl: the chat template has no place for tools (1 row): the model never sees it" in told.err
    assert json.loads(told.out.splitlines()[2])["chosen"] == PAIR["chosen"]


def test_a_prompt_that_leaves_no_room_is_said_before_the_work(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [{"prompt": "what is it"}] * 20 + [{"prompt": "what " * 600}]
    command[command.index("--prompts") + 1] = write(Path("rows.jsonl"), given)
    assert main(command) == 2
    assert "rows.jsonl:21: a prompt of 6" in one_line(capsys)
    assert draws.prompts == []


def test_template_variables_reach_the_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.save_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(tiny.CHATML + "{% if quiet is defined %}{{ quiet }}{% endif %}")
    ask = ["generate", "--model", str(model), "--prompt", "what is it", "--max_new_tokens", "2"]
    assert main([*ask, "--template_variables", "{quiet: brown fox}"]) == 0
    assert main([*ask, "--template_variables", "{loud: 1}"]) == 2
    assert "--template_variables: the chat template does not use loud; it uses: quiet" in one_line(capsys)
    talker = ChatModel(str(model), template_variables={"quiet": "brown fox"})
    assert talker.tokenizer.decode(prompt_ids(talker.tokenizer, [{"role": "user", "content": "a"}])).endswith(
        "brown fox"
    )
    bare = tiny.save_model(tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    ask[2] = str(bare)
    assert main([*ask, "--system", "be brief"]) == 2
    assert "system prompts need; take a model whose tokenizer has one" in one_line(capsys)


def test_processes_of_rewards_end_with_the_command(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(RewardProcesses, "end_stuck", lambda self: ended.append("stuck"))
    monkeypatch.setattr(RewardProcesses, "end", lambda self: ended.append("all"))
    best = [*command, "--n", "2", "--cut_off", "true", "--keep", "best", "--rewards+=Repetition"]
    assert main(best) == 0
    assert ended == ["stuck"]
    Draws(monkeypatch).stop_at = 0
    assert main(best) == 130
    assert ended == ["stuck", "all", "stuck"]


READ = "def read(row):\n    return None if row['id'] % 2 else {'id': row['id'], 'question': row['prompt'].upper()}\n"


def test_prompts_in_a_format_of_ones_own(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path())
    Path("prompts_of_mine.py").write_text(READ)
    assert main([*command, "--format", "prompts_of_mine.read", "--out", "out.jsonl"]) == 0
    assert sum(draws.prompts) == 20
    assert [(row["id"], row["prompt"]) for row in rows("out.jsonl")] == [(i, f"WHAT IS {i}") for i in range(0, 40, 2)]
    Path("asked.txt").write_text("what\n")
    lines = [*command[:3], "--prompts", "asked.txt", "--format", "prompts_of_mine.read"]
    assert main(lines) == 2
    assert "asked.txt: a text file has lines, and --format prompts_of_mine.read reads rows" in one_line(capsys)
    assert main([*command[:3], "--prompt", "what", "--format", "prompts_of_mine.read"]) == 2
    assert "--format prompts_of_mine.read reads the rows of --prompts, which is not given" in one_line(capsys)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--rewards+=Repetitoin"], "--rewards Repetitoin: there is no such reward; did you mean Repetition?"),
        (["--rewards+=Regex", "--rewards.whol", "true"], "--rewards.whol: no such option; did you mean --rewards.who"),
        (["--rewards+=Repetition", "--rewards.n", "many"], "--rewards.n: expected a whole number, got many"),
        (["--rewards+=Regex"], "--rewards: Regex needs pattern"),
        (["--rewards+=Regex", "--rewards.pattern", "("], "Regex: pattern"),
        (
            ["--rewards+=FunctionReward", "--rewards.function", "builtins.sun"],
            "FunctionReward: function builtins.sun: mo",
        ),
        (["--rewards+=pathlib.Path"], "is a class of another kind; a reward is wanted"),
    ],
)
def test_a_mistake_in_a_reward_is_told_as_fit_tells_it(
    given: list[str], told: str, command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--n", "2", "--keep", "best", *given]) == 2
    assert told in (line := one_line(capsys))
    assert "--model." not in line
    assert draws.prompts == []


def test_every_file_of_a_folder_has_the_columns_that_rewards_need(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    write(Path("folder/a.jsonl"), [{"prompt": "1+1", "answer": "2"}])
    write(Path("folder/b.jsonl"), [{"prompt": "1+2", "solution": "3"}])
    command[command.index("--prompts") + 1] = "folder"
    assert main([*command, "--n", "2", "--keep", "best", "--rewards+=ExactMatch"]) == 2
    assert "b.jsonl:1: ExactMatch needs the column `answer`" in one_line(capsys)
    assert draws.prompts == []


MINE = """
from lit_posttrain.rewards import Reward, RewardBatch

class Starts(Reward):
    def __init__(self, column: str = "start") -> None:
        super().__init__()
        self.needs = [column]

    def score(self, batch: RewardBatch) -> list[float]:
        return [float(text.startswith(start)) for text, start in zip(batch.responses, batch.columns[self.needs[0]])]
"""


def test_a_reward_of_ones_own(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path())
    Path("starts_with.py").write_text(MINE)
    mine = [*command, "--n", "2", "--keep", "best", "--cut_off", "true", "--rewards+=starts_with.Starts"]
    assert main([*mine, "--rewards.columnx", "prompt"]) == 2
    assert "--rewards.columnx: no such option; did you mean --rewards.column?" in one_line(capsys)
    assert main([*mine, "--out", "out.jsonl"]) == 2
    assert "asked.jsonl:1: Starts needs the column `start`" in one_line(capsys)
    command[command.index("--prompts") + 1] = write(Path("rows.jsonl"), [{"prompt": "what", "start": ""}] * 3)
    mine[: len(command)] = command
    assert main([*mine, "--out", "out.jsonl"]) == 0
    assert len(rows("out.jsonl")) == 3
