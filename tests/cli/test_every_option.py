"""Every option takes every kind of value that its type allows, from a config and from the command line alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml

from lit_posttrain.cli.options import option_tree
from lit_posttrain.cli.parsing.option_tree import Option, OptionTree, kept_tree
from lit_posttrain.cli.parsing.reader import CommandLine
from lit_posttrain.cli.parsing.values import guarded, plain, type_of
from lit_posttrain.cli.training import PostTrainCLI
from lit_posttrain.core.supported import CALLBACKS

# what YAML or Python would take for something else, and what shells and paths make hard
TEXTS = [
    "no",
    "on",
    "1e3",
    "null",
    "None",
    "2024-01-01",
    "a b/c d.txt",
    "ü 文",
    "🙂 𝔘\u2028\x85\ufeff\uffff",
    "[abc]",
    "{a: 1}",
    "it's",
    '"q"',
    "~",
    "",
]
TEXTS += ["", "-x", "1_000", "a: b", "# c", "\\d+\\n", "x\ny"]
TREE = option_tree()
MODEL = "lit_posttrain.models.spec.ModelSpec"  # every method has one


def values(hint: str) -> list[Any]:
    """Some of every kind that a type allows."""
    found: list[Any] = []
    for part in hint.split(" | "):
        if part.startswith("Literal"):
            found += get_args(type_of(part))
        elif part.startswith("dict[str, Any"):
            found += [{"a": None, "b": "no", "c": 1e-5, "d": [None, "null", True], "e": {"f": "on"}}, {}]
    if "list[str]" in hint:
        found += [TEXTS, [], ["a"]]
    if "list[float]" in hint or "tuple[float" in hint:
        found += [[1e-5, 2.0]]
    if "list[int]" in hint:
        found += [[0, 1]]
    kinds = set(hint.split(" | "))
    if "str" in kinds:
        kinds -= {"int", "float", "bool"}  # which a command line could not tell from texts
    found += [None] if "None" in kinds else []
    found += [True, False] if "bool" in kinds else []
    found += [3, -1] if "int" in kinds else []
    found += [1e-5, 0.25, 2.0, 1e300, float("inf")] if "float" in kinds else []
    return found + (TEXTS if "str" in kinds else [])


def leaves(
    tree: OptionTree, options: dict[str, Option], way: str = "", but: Sequence[str] = ()
) -> Iterator[tuple[str, Option]]:
    for name, option in options.items():
        if option.group and option.group not in but:
            yield from leaves(tree, tree.kinds[option.group].options, f"{way}{name}.", but)
        elif option.hint and not option.family:
            yield f"{way}{name}", option


def typed(value: Any, hint: str) -> str:
    """A value as people would type it: texts as they are, or in quotes where the option would take them for more."""
    if isinstance(value, str):
        more = [*(["null", "~"] if "None" in hint else []), *(["[abc]"] if "list[" in hint else [])]
        return json.dumps(value) if value in more else value
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).replace("\n...\n", "").strip()


def nested(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for dotted, value in values.items():
        *way, last = dotted.split(".")
        here = found
        for word in way:
            here = here.setdefault(word, {})
        here[last] = value
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return bool(one == other) and (type(one) is type(other) or (numbers and bool not in (type(one), type(other))))


def rounds(tree: OptionTree, options: dict[str, Option], but: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Assignments to all leaves at once, in which together every leaf takes every value that it can.

    but: dataclasses that are left out.
    """
    every = {dotted: values(option.hint) for dotted, option in leaves(tree, options, but=but)}
    return [
        {dotted: choices[(number + place) % len(choices)] for place, (dotted, choices) in enumerate(every.items())}
        for number in range(max(map(len, every.values()), default=0))
    ]


class Recorder:
    """The parser of the command line; what a class would be built with is recorded in its place."""

    def __init__(self) -> None:
        cli: Any = PostTrainCLI(args=BASE, run=False, tracking=False)
        self.parser = cli.parser

    def parsed(self, args: list[str]) -> Any:
        return plain(self.parser.parse_args(CommandLine(TREE, "audit").read(args)))

    def saved(self, args: list[str], file: Path) -> None:
        file.write_text(self.parser.dump(self.parsed(args), skip_none=False), encoding="utf-8")

    def built(self, args: list[str]) -> Any:
        config = self.parsed(args)
        record = (lambda kind, /, **given: SimpleNamespace(**plain(given)), object, True)
        return self.parser.instantiate(guarded(config), instantiators=[record])


DATA = ["--data", "ConversationData", "--data.path", "x"]
BASE = ["--model", "SFT", "--model.policy.path", "x", *DATA]
WRITTEN = {  # the same as a config: what is typed would stand before the configs that replace it
    "model": {"class_path": "SFT", "init_args": {"policy": {"path": "x"}}},
    "data": {"class_path": "ConversationData", "init_args": {"path": "x"}},
}


LISTS = ("model.rewards", "trainer.callbacks")  # options that take several classes


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


def arrived(built: Any, dotted: str) -> Any:
    for word in dotted.split("."):
        built = built[word] if isinstance(built, dict) else getattr(built, word)
    return built


def classes(family: str) -> list[str]:
    """Those that can be named and have options."""
    paths = {name: TREE.resolve(family, name) for name in sorted(TREE.families[family])}
    named = [(name, TREE.kinds[path].options) for name, path in paths.items() if path]
    refused = {name for name, support in CALLBACKS.items() if not support.works}
    return [name for name, options in named if options and "Config" not in name and name not in refused]


CASES = [
    *(("model", "method", name) for name in classes("method")),
    *(("data", "data module", name) for name in classes("data module") if name != "TreeData"),
    *(("model.rewards", "reward", name) for name in classes("reward")),
    *(("trainer.callbacks", "callback", name) for name in classes("callback")),
]


def config_of(option: str, specs: list[dict[str, Any]], file: Path) -> list[str]:
    """Write the classes of an option, of which there is one where it takes no list, and give the arguments for it."""
    config: Any = specs if option in LISTS else specs[0]
    for word in reversed(option.split(".")):
        config = {word: config} if word != "rewards" else {"init_args": {word: config}}
    base: dict[str, Any] = {key: value for key, value in WRITTEN.items() if key != option}
    if option == "model.rewards":
        base["model"] = {"class_path": "GRPO", "init_args": {"policy": {"path": "x"}, "rewards": []}}
    return [*written(base, file.with_suffix(".base.yaml")), *written(config, file)]


def written(config: dict[str, Any], file: Path) -> list[str]:
    """Write a config, and give the arguments for it."""
    file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return ["--config", str(file)]


@pytest.mark.parametrize(("option", "family", "name"), CASES)
def test_options_of_classes(option: str, family: str, name: str, recorder: Recorder, tmp_path: Path) -> None:
    many = option in LISTS
    base = BASE[: -len(DATA)] if option == "data" else BASE
    base = [*BASE, "--model", "GRPO", "--model.rewards+=MathAnswer"] if option == "model.rewards" else base
    path = str(TREE.resolve(family, name))
    kind = TREE.kinds[path]
    elsewhere = [MODEL] if option == "model" and name != "SFT" else []
    every = rounds(TREE, kind.options, elsewhere)[: 6 if path.startswith("lightning") else None]
    hints = {dotted: leaf.hint for dotted, leaf in leaves(TREE, kind.options)}
    specs, commands = [], []
    for given in every:
        filled = dict(given) if many else {"policy.path": "x", "teacher.path": "x", "path": "x", **given}
        for required in (n for n, o in kind.options.items() if o.required and n not in filled and not o.group):
            filled[required] = [] if required == "rewards" else "x"  # of a type that cannot be told in words
        shown = {d: v for d, v in filled.items() if d in given or d.partition(".")[0] in kind.options}
        specs.append({"class_path": name, "init_args": nested(shown)})
        line = [f"--{option}{'+' if many else ''}={name}"]
        line += [f"--{option}.{dotted}={typed(value, hints.get(dotted, ''))}" for dotted, value in shown.items()]
        commands.append(([*base, *line], [given]))
    size = len(every) if many else 1  # a config has a class as often as its list may
    for first in range(0, len(every), size or 1):
        given_there = every[first : first + size]
        args = config_of(option, specs[first : first + size], tmp_path / f"{first}.yaml")
        commands.append((args, given_there))
        if first % 5 == 0:
            recorder.saved(args, saved := tmp_path / f"saved {first}.yaml")
            commands.append((["--config", str(saved)], given_there))
    for args, classes_given in commands:
        found = arrived(recorder.built(args), option)
        targets = found[-len(classes_given) :] if many else [getattr(found, "keywords", found)]
        for target, given in zip(targets, classes_given, strict=True):
            for dotted, value in given.items():
                got = arrived(target, dotted)
                assert same(got, value), (args[-1], dotted, value, got)


def test_options_of_the_run(recorder: Recorder, tmp_path: Path) -> None:
    options = {n: o for n, o in TREE.commands["audit"].items() if not o.family and n not in ("config", "print_config")}
    file = tmp_path / "config.yaml"
    hints = {dotted: leaf.hint for dotted, leaf in leaves(TREE, options)}
    for given in rounds(TREE, options):
        file.write_text(yaml.safe_dump(nested(given), allow_unicode=True), encoding="utf-8")
        line = [f"--{dotted}={typed(value, hints[dotted])}" for dotted, value in given.items()]
        recorder.saved([*BASE, *line], tmp_path / "saved.yaml")
        both = [*written(WRITTEN, tmp_path / "base.yaml"), "--config", str(file)]
        for args in (both, [*BASE, *line], ["--config", str(tmp_path / "saved.yaml")]):
            built = recorder.built(args)
            for dotted, value in given.items():
                got = arrived(built, dotted)
                alike = dotted == "trainer.precision" and str(got) == str(value)  # Lightning takes both for one
                assert alike or same(got, value), (args[-1], dotted, value, got)


@pytest.mark.parametrize("group", ["policy.lora", "critic.model"])
def test_a_group_of_options_is_switched_off(group: str, recorder: Recorder, tmp_path: Path) -> None:
    lora = [*BASE, "--model", "PPO", "--model.rewards+=MathAnswer", "--model.policy.lora.r", "8"]
    lora += ["--model.critic.model.path", "y", "--model.critic.model.lora.r", "4"]
    recorder.saved(lora, tmp_path / "lora.yaml")
    base = ["--config", str(tmp_path / "lora.yaml")]
    (tmp_path / "off.yaml").write_text(yaml.safe_dump({"model": {"init_args": nested({group: None})}}))
    for way in (["--config", str(tmp_path / "off.yaml")], [f"--model.{group}", "null"]):
        assert arrived(recorder.built(base).model, group) is not None
        assert arrived(recorder.built([*base, *way]).model, group) is None


def test_the_kept_tree_is_the_tree() -> None:
    """What is checked before torch is loaded is what is checked after."""
    kept = kept_tree()
    assert kept is not None
    assert kept.commands == TREE.commands
    assert {path: TREE.kinds[path] for path in kept.kinds} == kept.kinds


def test_a_mapping_reaches_a_method_as_it_was_written() -> None:
    given = {"a": None, "b": "no", "c": 1e-5, "d": [None, "null", True]}
    base = [
        *BASE,
        "--model",
        "GRPO",
        "--model.rewards+=MathAnswer",
        "--model.rollout.engine.options",
        json.dumps(given),
    ]
    cli: Any = PostTrainCLI(args=[*base, "--model.rollout.engine.options.e", "null"], run=False, tracking=False)
    assert cli.model.rollout.engine.options == {**given, "e": None}
    assert cli.option("model.init_args.rollout.engine.options") == {**given, "e": None}
