"""The classes that a command line and its configs have chosen so far, with their options.

Only these options are known and suggested: SFT has no `--model.beta`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lit_posttrain.cli.parsing.chosen import Chosen
from lit_posttrain.cli.parsing.option_tree import Kind, Option, OptionTree
from lit_posttrain.cli.parsing.place import Place
from lit_posttrain.cli.parsing.spelling import a, close_name, in_words
from lit_posttrain.cli.parsing.suggestions import Suggestions
from lit_posttrain.core.supported import CALLBACKS, LOGGERS, PLUGINS, PROFILERS, STRATEGIES
from lit_posttrain.errors import PostTrainError

_FILES = (".yaml", ".yml", ".json")  # with the class and its options: the parser reads them itself
_SUPPORT = {"callback": CALLBACKS, "logger": LOGGERS, "strategy": STRATEGIES, "profiler": PROFILERS, "plugin": PLUGINS}
Load = Callable[[str, str], Kind | None]


def unknown(family: str, path: str) -> Kind | None:
    """Loads no class from outside the package: its options stay unknown."""
    return None


@dataclass
class Found:
    """The result of a search for a dotted name.

    keys: the path to the option in a config. option: the option; None below a class whose options are not known. owner:
    the class that has it. dotted: its name in the owner. rest: further names, into a mapping. last: number of `keys`
    that lead to a list whose last member is meant; None without a list.
    """

    keys: list[str]
    option: Option | None
    owner: Chosen
    dotted: str = ""
    rest: Sequence[str] = ()
    last: int | None = None


class ChosenClasses:
    """The choices of one command."""

    def __init__(self, tree: OptionTree, command: str, load: Load = unknown) -> None:
        """
        Args:
            tree: All options.
            command: The command, whose options are the first level.
            load: Imports a class from outside the package, by its family and path, and returns its options; None if
                they are not known.
        """
        self.tree, self._load = tree, load
        self.root = Chosen(command, "", Kind(tree.commands[command]), Place(command))
        self._suggest = Suggestions(tree, self.root)

    def choose(self, owner: Chosen, dotted: str, chosen: Chosen, append: bool) -> None:
        """Replace the class that was chosen for an option before, or append to a list of them."""
        listed = owner.below.setdefault(dotted, [])
        if not append:
            if listed and chosen.kind is not None:  # the parser keeps what both classes take
                both = chosen.kind.options
                chosen.below |= {n: found for n, found in listed[-1].below.items() if n.partition(".")[0] in both}
                chosen.given = {n: found for n, found in listed[-1].given.items() if n.partition(".")[0] in both}
            listed.clear()
        listed.append(chosen)

    def class_of(self, option: Option, name: str, place: Place) -> Chosen:
        """The class with a name, for an option.

        Raises:
            PostTrainError: if there is no such class, or the option takes another kind of class.
        """
        path, short = self.tree.resolve(option.family, name), name.rpartition(".")[2]
        support = _SUPPORT.get(option.family, {}).get(short)
        of_lightning = name == short or (path or name).startswith("lightning.")
        if support is not None and not support.works and of_lightning:
            raise PostTrainError(f"{place.said} {name}: {support.says}")
        kind = self.tree.kinds[path] if path is not None else self._own(option.family, name, place)
        if kind is not None:
            return Chosen(short, option.family, kind, place)
        known = self.tree.families[option.family]
        if "." in name or name in known or "str" in option.hint:
            return Chosen(name, option.family, None, place)
        other = next((family for family, names in self.tree.families.items() if name in names), None)
        said = f"{place.said} {name}"
        choice = f"one of {_ours(known)}, or its import path (a.b.Name)" if known else "its import path (a.b.Name)"
        if other is not None:
            raise PostTrainError(f"{said}: that is {a(other)}, and {a(option.family)} is wanted; give {choice}")
        near = name.replace(":", ".") if ":" in name else close_name(name, list(known))
        hint = f"did you mean {near}?" if near else f"give {choice}"
        raise PostTrainError(f"{said}: there is no such {option.family}; {hint}")

    def _own(self, family: str, name: str, place: Place) -> Kind | None:
        if "." not in name or name.endswith(_FILES):
            return None
        try:
            return self._load(family, name)
        except PostTrainError as problem:
            raise PostTrainError(f"{place.said} {problem}") from problem

    def find(self, owner: Chosen, names: Sequence[str], place: Place) -> Found:
        """Follow a dotted name from `owner`.

        Raises:
            PostTrainError: if there is no such option, or the class that would have it is not chosen.
        """
        return self._find(owner, [name for name in names if name], place, [], None)

    def refuse_missing(self) -> None:
        """To be called when everything is read.

        Raises:
            PostTrainError: if a chosen class was not given an option that has no default.
        """
        for chosen in self._all_chosen(self.root):
            missing = self._missing(chosen, chosen.kind.options, "") if chosen.kind is not None else []
            if missing and chosen is self.root:
                named = in_words([f"--{name}" for name in missing])
                raise PostTrainError(f"{chosen.name} needs {named}; --help says what it means")
            if missing:
                raise PostTrainError(f"{chosen.place.said}: {chosen.name} needs {in_words(missing)}; see --help")

    def _all_chosen(self, owner: Chosen) -> Iterator[Chosen]:
        yield owner
        for listed in owner.below.values():
            for chosen in listed:
                yield from self._all_chosen(chosen)

    def _missing(self, owner: Chosen, options: dict[str, Option], way: str) -> list[str]:
        found = []
        for name, option in options.items():
            dotted = f"{way}{name}"
            begun = any(given.startswith(f"{dotted}.") for given in owner.given)
            if option.group and (begun or (option.required and "None" not in option.hint)):
                found += self._missing(owner, self.tree.kinds[option.group].options, f"{dotted}.")
            elif option.required and not option.group and dotted not in owner.given:
                found.append(dotted)
        return found

    # Following names -------------------------------------------------------------------------------------------

    def _find(self, owner: Chosen, names: Sequence[str], place: Place, keys: list[str], last: int | None) -> Found:
        if owner.kind is None or (owner.kind.more and names[0] not in owner.kind.options):
            return Found([*keys, *names], None, owner, last=last)
        options = owner.kind.options
        for number, name in enumerate(names):
            option, dotted, rest = options.get(name), ".".join(names[: number + 1]), names[number + 1 :]
            if option is None:
                raise PostTrainError(
                    f"{place.said}: {self._suggest.unknown_option(owner, names[:number], name, place)}"
                )
            keys = [*keys, name]
            if rest and option.family:
                return self._below(owner, dotted, option, rest, place, keys)
            if not rest or not option.group:
                if rest and option.hint and "dict[" not in option.hint:
                    raise PostTrainError(f"{place.said}: no such option; {dotted} has none below it")
                return Found(keys, option, owner, dotted, rest, last)
            options = self.tree.kinds[option.group].options
        raise PostTrainError(f"{place.said}: no such option; --help lists the options")

    def _below(
        self, owner: Chosen, dotted: str, option: Option, names: Sequence[str], place: Place, keys: list[str]
    ) -> Found:
        """Follow a name below an option that takes a class."""
        known = owner.below.get(dotted, [])
        if names == ["class_path"]:
            return Found(keys, option, owner, dotted)
        if names[0] == "dict_kwargs" or names == ["init_args"]:  # as the parser itself has it
            return Found([*keys, *names], None, owner)
        names = names[1:] if names[0] == "init_args" else names
        if not known:
            raise PostTrainError(f"{place.said}: {self._suggest.nothing_chosen(option, dotted, names[0], place)}")
        target = known[-1]
        holders = [one.name for one in known if one.kind is not None and names[0] in one.kind.options]
        if target.kind is not None and holders and target.name not in holders:
            raise PostTrainError(
                f"{place.said}: an option of {in_words(holders)}, and would go to {target.name}, the last "
                f"{option.family}; give it right after {holders[-1]}"
            )
        last = len(keys) if option.many else None
        return self._find(target, names, place, keys if option.many else [*keys, "init_args"], last)


def _ours(known: dict[str, list[str]]) -> str:
    """The names of this project's classes; of all classes if it has none of the kind."""
    return ", ".join(sorted(n for n, paths in known.items() if paths[0].startswith("lit_posttrain")) or sorted(known))
