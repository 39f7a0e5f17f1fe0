"""Reads a command line and its configs, and reports names that do not exist and values of the wrong type by option, or
by file and line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_posttrain.cli.parsing.chosen import Chosen
from lit_posttrain.cli.parsing.chosen_classes import ChosenClasses, Found, Load, unknown
from lit_posttrain.cli.parsing.config_file import read_config
from lit_posttrain.cli.parsing.option_tree import Option, OptionTree
from lit_posttrain.cli.parsing.paths import at_home, each_takes_paths, takes_paths
from lit_posttrain.cli.parsing.place import Place
from lit_posttrain.cli.parsing.replaced import given_so_far, refuse_replaced
from lit_posttrain.cli.parsing.spelling import a
from lit_posttrain.cli.parsing.values import accepts, as_json, as_typed, describe, mismatch, protected
from lit_posttrain.errors import PostTrainError

_SPEC = ("class_path", "init_args", "dict_kwargs")
_WITHOUT_VALUE = ("--help", "-h", "--print_config")


class CommandLine:
    """Reads the options of a command in order."""

    def __init__(self, tree: OptionTree, command: str, load: Load = unknown) -> None:
        """
        Args:
            tree: All options.
            command: The command, whose options are the first level.
            load: Imports a class from outside the package and returns its options. Default: they are not known.
        """
        self.chosen = ChosenClasses(tree, command, load)
        self._lists: dict[str, str] = {}  # what was given for options that take a list
        self.notes: list[str] = []  # what people should be told though it is no mistake
        self._passed: list[str] = []
        self._pending: dict[str, Any] = {}  # options that were read and go on as one config

    def read(self, args: Sequence[str]) -> list[str]:
        """Check the options, and return them as configs, in which the parser reads every value as it was meant.

        Of typed options it would read nested values as Python prints them, a null as the text None and a list as its
        repr, and quoted texts, such as "null", once more (`values.plain` removes what protects these).

        Raises:
            PostTrainError: for a name that does not exist, a value that is missing or of another type, an option that
                a config after it replaces, and a mistake in a config file.
        """
        words = iter(args)
        for word in args:
            if any("\ud800" <= letter <= "\udfff" for letter in word):
                raise PostTrainError(f"{word!a}: not UTF-8 text")
        for word in words:
            if not word.startswith("--") and word not in ("-c", "-h"):
                raise PostTrainError(
                    f"{word}: every value needs its option's name before it; several values of one option are written "
                    "as a list: '[a, b]'"
                )
            name, joined, text = word.partition("=")
            if name in _WITHOUT_VALUE:
                self._hand_over(word)
                continue
            following = text if joined else next(words, None)
            if following is None or (not joined and following.startswith("--")):
                raise PostTrainError(f"{name} needs a value; --help says which")
            self._option("--config" if name == "-c" else name, following)
        self._hand_over()
        if not any(word in _WITHOUT_VALUE or ".help" in word for word in self._passed):
            self.chosen.refuse_missing()
        return self._passed

    def _option(self, name: str, text: str) -> None:
        assert self.chosen.root.kind is not None
        if name == "--config" and "config" in self.chosen.root.kind.options:
            before = given_so_far(self.chosen.root)
            self._hand_over("--config", as_json(self._config(text)))
            refuse_replaced(before, given_so_far(self.chosen.root), text)
            return
        if name.endswith(".help"):
            self._hand_over(f"{name}={text}")
            return
        append, typed = name.endswith("+"), name.removesuffix("+")
        place = Place(typed)
        found = self.chosen.find(self.chosen.root, typed.removeprefix("--").split("."), place)
        option = found.option
        found.owner.given[found.dotted] = (place, text)
        if option is None or not (option.hint or option.group or option.family):
            self._hand_over(f"{name}={text}")  # its type is not known here
            return
        if found.rest:  # a member of a mapping; the parser takes the text None for null
            self._hand_over(f"{name}={as_json(text) if text == 'None' else text}")
            return
        value = as_typed(text, option)
        if option.family and isinstance(value, str):
            chosen = self.chosen.class_of(option, value, place)
            self.chosen.choose(found.owner, found.dotted, chosen, option.many and append)
            if "str" in option.hint and chosen.kind is not None:  # else the parser takes the name for a text
                self._pass(found, {"class_path": value}, append)
            elif option.many and not append:
                self._hand_over(f"{name}={as_json([value])}")  # one of a list that takes no single one
            else:
                self._hand_over(f"{name}={value}")
            return
        self._note_second_list(typed, text, option, append)
        value = self._value(found.owner, found.dotted, option, value, place, append)
        found.owner.given[found.dotted] = (place, value)
        self._pass(found, value, append)

    def _pass(self, found: Found, value: Any, append: bool) -> None:
        keys = [*found.keys[:-1], f"{found.keys[-1]}+"] if append else found.keys
        if found.last is None:
            if not _put(self._pending, keys, value):
                self._hand_over()
                _put(self._pending, keys, value)
            return
        for key in reversed(keys[found.last :]):
            value = {key: value}
        way = ".".join(key for key in keys[: found.last] if key not in _SPEC)
        self._hand_over(f"--{way}.init_args={as_json(value)}")  # of the last one in the list

    def _hand_over(self, *words: str) -> None:
        """Pass on the pending options as one config, and then the words."""
        if self._pending:
            self._passed += ["--config", as_json(self._pending)]
        self._passed += words
        self._pending = {}

    def _note_second_list(self, name: str, text: str, option: Option, append: bool) -> None:
        earlier = self._lists.get(name)
        if "list[" not in option.hint or append:
            return
        self._lists[name] = text
        if earlier is not None and earlier != text:
            both = ", ".join(part.strip("[]") for part in (earlier, text))
            self.notes.append(f"{name} is given twice, and the last one holds; for both write {name} '[{both}]'")

    # Configs: each of these checks options, and returns them as the parser is to read them -----------------------

    def read_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """As `read`, for options in a mapping and a parser's `parse_object`.

        Raises:
            PostTrainError: as `read`.
        """
        checked = self._mapping(self.chosen.root, options, Place("args"))
        self.chosen.refuse_missing()
        return checked

    def _config(self, text: str) -> dict[str, Any]:
        file = read_config(text)
        return self._mapping(self.chosen.root, file.options, Place("", file))

    def _mapping(self, owner: Chosen, options: Any, place: Place, prefix: str = "") -> dict[str, Any]:
        """Check a mapping of options; `prefix` leads to it from `owner`."""
        if not isinstance(options, dict):
            raise PostTrainError(f"{place.said}: expected options, each a name and a value, got {describe(options)}")
        checked = {}
        for key, value in options.items():
            name, here = str(key), place.at(key)
            found = self.chosen.find(owner, [*prefix.split("."), *name.removesuffix("+").split(".")], here)
            checked[key] = value
            if found.option is not None and not found.rest:
                checked[key] = self._value(found.owner, found.dotted, found.option, value, here, name.endswith("+"))
            found.owner.given[found.dotted] = (here, checked[key])
        return checked

    def _value(self, owner: Chosen, dotted: str, option: Option, value: Any, place: Place, append: bool) -> Any:
        if option.family:
            return self._classes(owner, dotted, option, value, place, append)
        if option.group and isinstance(value, dict):
            return self._mapping(owner, value, place, dotted)
        if "str" in option.hint and not accepts(value, option):
            value = place.texts(value)
        if problem := mismatch(value, option, place.file is not None):
            names = self.chosen.tree.kinds[option.group].options if option.group else ()
            below = f"; it has options of its own, such as --{place.dotted}.{next(iter(names))}" if names else ""
            raise PostTrainError(f"{place.said}: {problem}{below}")
        name = dotted.rpartition(".")[2]
        if each_takes_paths(name) if isinstance(value, list) else takes_paths(name):
            value = at_home(value)
        return protected(value, option)

    def _classes(self, owner: Chosen, dotted: str, option: Option, value: Any, place: Place, append: bool) -> Any:
        if option.many and not append:
            owner.below[dotted] = []
        if isinstance(value, list) and option.many:
            return [self._class(owner, dotted, option, item, place.at(number)) for number, item in enumerate(value)]
        return self._class(owner, dotted, option, value, place)

    def _class(self, owner: Chosen, dotted: str, option: Option, item: Any, place: Place) -> Any:
        if isinstance(item, str):
            chosen = self.chosen.class_of(option, item, place)
            self.chosen.choose(owner, dotted, chosen, option.many)
            return {"class_path": item} if "str" in option.hint and chosen.kind is not None else item
        if isinstance(item, dict):
            return self._spec(owner, dotted, option, item, place)
        if option.hint and accepts(item, option):
            return item
        each = f"a list of {option.family}s, each" if option.many else f"{a(option.family)}:"
        raise PostTrainError(f"{place.said}: expected {each} a name, or class_path and init_args; got {describe(item)}")

    def _spec(self, owner: Chosen, dotted: str, option: Option, spec: dict[str, Any], place: Place) -> dict[str, Any]:
        """A class with its options: class_path and init_args; the options alone of a class that is chosen already."""
        known = owner.below.get(dotted, [])
        if "class_path" in spec:
            here = place.at("class_path")
            if not isinstance(spec["class_path"], str):
                raise PostTrainError(f"{here.said}: expected the name of {a(option.family)}")
            chosen = self.chosen.class_of(option, spec["class_path"], here)
            self.chosen.choose(owner, dotted, chosen, option.many)
        elif known and not option.many:
            chosen = known[-1]
        else:
            raise PostTrainError(
                f"{place.said}: of which {option.family}? Give class_path here, or a config that chooses one before"
            )
        beside = [key for key in spec if key not in _SPEC]
        if beside and len(beside) < len(spec):
            raise PostTrainError(
                f"{place.at(beside[0]).said}: stands beside class_path; options of {chosen.name} go below init_args"
            )
        if beside:
            return self._mapping(chosen, spec, place)
        if spec.get("init_args") is None:
            return spec
        return {**spec, "init_args": self._mapping(chosen, spec["init_args"], place.at("init_args"))}


def _put(options: dict[str, Any], keys: Sequence[str], value: Any) -> bool:
    """Put a value where `keys` lead. False if the parser would not simply replace the value that is there."""
    for key in keys[:-1]:
        options = options.setdefault(key, {})
        if not isinstance(options, dict):
            return False
    if keys[-1] in options and (isinstance(options[keys[-1]], (dict, list)) or isinstance(value, (dict, list))):
        return False
    options[keys[-1]] = value
    return True
