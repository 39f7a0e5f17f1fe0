"""What README.md, docs/ and the configs say is there: options, commands that no test runs, files and places."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import nbformat
import pytest
from helpers.pages import (
    CONFIGS,
    PAGES,
    ROOT,
    Command,
    blocks,
    commands,
    config_commands,
    inline_code,
    inline_commands,
    place,
)
from helpers.processes import environment
from PIL import Image

from lit_posttrain.cli.options import option_tree
from lit_posttrain.cli.parsing.option_tree import Option, OptionTree
from lit_posttrain.judges.spec import JudgeSpec
from lit_posttrain.models.architectures import PROVEN
from lit_posttrain.on_policy.rollouts import Rollout

README = PAGES[0]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEXTS = [*PAGES, ROOT / "CHANGELOG.md"]
LOGS = [ROOT / "docs" / name for name in ("benchmarks.md", "decisions.md", "proofs.md")]  # of other commits too
EARLY = ("fit", "validate", "test", "predict", "audit")
OTHER = ("agree", "annotate", "chat", "configs", "export", "feedback", "generate", "judge", "revise", "score")
CALLED = {"feedback": "convert", "judge": "judge_file"}  # the function of a command, if it has another name

WRITTEN = [
    *(command for page in PAGES for command in (*commands(page), *inline_commands(page))),
    *(command for file in CONFIGS for command in config_commands(file)),
]
CHECKED = [c for c in WRITTEN if re.match(rf"lit-posttrain ({'|'.join(EARLY)}) --", c.text) and "|" not in c.text]
SCRIPTS = [c for c in WRITTEN if re.match(r"python (-m pytest )?[\w/-]", c.text)]
CHECK = """
import json, sys
from lit_posttrain.cli.parsing.early import check_run
from lit_posttrain.errors import PostTrainError
problems = []
for command in json.load(sys.stdin):
    try:
        check_run(command)
        problems.append("")
    except PostTrainError as problem:
        problems.append(str(problem))
print(json.dumps([problems, "torch" in sys.modules]))
"""
SAVED = """
model: {class_path: SFT, init_args: {policy: {path: ./}}}
data: {class_path: ConversationData, init_args: {path: my.jsonl}}
ckpt_path: null
"""


@pytest.fixture(scope="module")
def tree() -> OptionTree:
    return option_tree()


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], bool]:
    """What the early check says of every command, and whether it loaded torch for that."""
    folder = tmp_path_factory.mktemp("early")
    words = []
    for command in CHECKED:
        given = [word for word in command.words[1:] if word != "..."]
        words.append(given if {"--config", "--resume"} & set(given) else [given[0], "--config", "sft.yaml", *given[1:]])
    names = {name for command in words for word in command for name in re.findall(r"[\w./-]+\.(?:jsonl|yaml)", word)}
    for name in names:
        if not name.startswith("configs/") and not (ROOT / "configs" / name).exists():
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text(SAVED if name.endswith(".yaml") else "")
    (folder / "config.json").write_text("{}")  # which makes it a model's folder
    for checkpoint in ("last", "best"):
        (folder / f"runs/mine/{checkpoint}.ckpt").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_POSTTRAIN_CACHE", str(folder / "cache"))
        option_tree()  # as any command before would leave it
        done = subprocess.run(
            [sys.executable, "-c", CHECK],
            cwd=folder,
            env=environment(),
            input=json.dumps(words),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    problems, torch_loaded = json.loads(done.stdout)
    return problems, torch_loaded


@pytest.mark.parametrize("index", range(len(CHECKED)), ids=[str(command) for command in CHECKED])
def test_a_command_passes_the_early_check(index: int, early: tuple[list[str], bool]) -> None:
    assert early[0][index] == "", CHECKED[index].text


def test_right_commands_need_no_torch_to_be_known_as_right(early: tuple[list[str], bool]) -> None:
    assert not early[1]
    assert any("--show" in command.words for command in CHECKED)


@pytest.mark.parametrize("command", SCRIPTS, ids=str)
def test_a_script_has_the_options_that_it_is_called_with(command: Command) -> None:
    (file,) = [ROOT / word for word in command.words if "/" in word][:1]
    assert file.exists()
    if file.parent.name != "benchmarks":
        return
    texts = [
        f.read_text()
        for f in (file, *(ROOT / "benchmarks" / f"{name}.py" for name in ("experiment", "learning", "sides")))
    ]
    for option in (word for word in command.words if word.startswith("--")):
        assert any(f'"{option}"' in text for text in texts), option


def test_make_has_the_targets_that_are_named() -> None:
    named = {target for c in WRITTEN for target in re.findall(r"^make ([\w-]+)", c.text)}
    assert {"demo", "test"} <= named
    heads = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named <= {target for head in heads for target in head.split()}


def options() -> Iterator[tuple[str, str]]:
    """Every option that is named between backticks or in a command, with its place."""
    for page in [*TEXTS]:
        for line, code in inline_code(page):
            if page not in LOGS and not code.startswith(("python", "#SBATCH", "sbatch")):
                yield from ((f"{place(page, line)}", option) for option in re.findall(r"(?<![\w-])--[a-z][\w.]*", code))
    for command in WRITTEN:
        if command.text.startswith("lit-posttrain"):
            yield from ((command.place, option) for option in re.findall(r"(?<![\w-])--[a-z][\w.]*", command.text))


def known(tree: OptionTree, option: str) -> bool:
    """True if a command, or any class that can be chosen, has this option."""
    name = option.removeprefix("--")
    if name.rpartition(".")[2] in own_arguments():
        return True
    if name.startswith("judge."):
        return _has(JudgeSpec, name.removeprefix("judge."))
    for command in OTHER:
        function = getattr(import_module(f"lit_posttrain.cli.commands.{command}"), CALLED.get(command, command))
        if name in inspect.signature(function).parameters:
            return True
    always = ("help", "resume", "traceback", "show", "out", "version", "ckpt_path")
    return name in always or any(_below(tree, listed, name) for listed in tree.commands.values())


def _has(options: Any, name: str) -> bool:
    """True if a dataclass of options has this one, perhaps within another."""
    first, _, rest = name.partition(".")
    found = get_type_hints(options)
    return first in found and (not rest or _has(found[first], rest))


@cache
def own_arguments() -> set[str]:
    """Arguments of the classes that the pages define."""
    code = [block.text for page in PAGES for block in blocks(page) if block.file.endswith(".py")]
    functions = [node for text in code for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    made = [function.args for function in functions if function.name == "__init__"]
    return {argument.arg for args in made for argument in (*args.args, *args.kwonlyargs)} - {"self"}


def _below(tree: OptionTree, listed: Mapping[str, Option], name: str) -> bool:
    first, _, rest = name.removeprefix("init_args.").partition(".")
    if first in ("help", "class_path"):
        return True
    if first not in listed:
        return False
    option = listed[first]
    chosen = [path for paths in tree.families.get(option.family, {}).values() for path in paths]
    kinds = [option.group] if option.group else chosen
    return not rest or any(_below(tree, tree.kinds[kind].options, rest) for kind in kinds)


def test_every_option_that_is_named_is_there(tree: OptionTree) -> None:
    named = list(options())
    assert len(named) > 200
    unknown = [f"{where}: {option}" for where, option in named if not known(tree, option)]
    assert unknown == []
    assert not known(tree, "--model.rollout.group_sise")
    assert not known(tree, "--trainer.callbacks.celing")


def headings(file: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def links(file: Path) -> Iterator[str]:
    """The relative links of a page or a notebook."""
    if file.suffix == ".ipynb":
        cells = nbformat.read(file, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        text = file.read_text(encoding="utf-8")
    yield from (link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:", link))


@pytest.mark.parametrize("file", [*TEXTS, *NOTEBOOKS], ids=lambda file: file.name)
def test_every_link_leads_somewhere(file: Path) -> None:
    for link in links(file):
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{file.name}: {link}"
        assert not anchor or anchor in headings(target), f"{file.name}: {link}: no such heading"


def test_files_that_are_named_are_there() -> None:
    """Documents by all files of the project, other files by the documents."""
    tops = "docs|notebooks|configs|tests|benchmarks|tools|lit_posttrain|callbacks"
    missing = []
    for file in [*TEXTS, *CONFIGS, *NOTEBOOKS, *ROOT.glob("lit_posttrain/**/*.py"), *ROOT.glob("callbacks/*.py")]:
        form = rf"(?<![\w/.-])(?:{tops})/[\w/.-]+\.(?:md|py|yaml|ipynb|png)\b"
        form = form if file in TEXTS else r"(?<![\w/.-])docs/[\w/.-]+\.\w+\b"
        for name in re.findall(form, file.read_text(encoding="utf-8")):
            if file not in LOGS and not (ROOT / name).exists():
                missing.append(f"{file.relative_to(ROOT)}: {name}")
    assert missing == []


def test_the_examples_for_contributors_are_those_that_are_tested() -> None:
    """tests/outside/ trains, kills, resumes and exports each of them."""
    shown = {block.file: block.text for block in blocks(ROOT / "CONTRIBUTING.md") if block.language == "python"}
    shown.pop("")  # how rows and a model are made, which test_commands.py runs
    tested = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "tests/outside/mine").glob("my_*.py")}
    tested.pop("my_stop.py")  # how the test kills a run
    assert shown == tested


def test_the_table_of_a_rollout_has_all_that_one_holds() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \|", page.partition("| of a `Rollout` |")[2].partition("\n\n")[0], re.MULTILINE)
    held = {field.name for field in fields(Rollout)} | {name for name in vars(Rollout) if not name.startswith("_")}
    assert sorted(told) == sorted(held)


def test_the_readme_is_skimmed_in_a_minute() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


def test_the_readmes_figures_are_those_of_the_measurements() -> None:
    spec = importlib.util.spec_from_file_location("overview_figure", ROOT / "tools/overview_figure.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = README.read_text(encoding="utf-8")
    for method, value in tool.figures().items():
        assert f"{method} {value['times']} times" in text, "say in README.md what docs/benchmarks.md says"
    assert f"for [{len(PROVEN)} architectures]" in text
    with Image.open(tool.FIGURE) as figure:
        assert figure.info["Description"] == tool.content(), "run python tools/overview_figure.py"
