"""Errors for options that do not exist: with the one that was meant, or the class that has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lit_posttrain.cli.parsing.chosen import OUR_CLASSES, Chosen
from lit_posttrain.cli.parsing.option_tree import Option, OptionTree
from lit_posttrain.cli.parsing.place import Place
from lit_posttrain.cli.parsing.spelling import close_name, in_words, likely


class Suggestions:
    """Searches the options of the chosen classes. root: the command."""

    def __init__(self, tree: OptionTree, root: Chosen) -> None:
        self.tree, self.root = tree, root

    def nothing_chosen(self, option: Option, dotted: str, name: str, place: Place) -> str:
        """The error for a name below an option for which no class is chosen."""
        typed = place.dotted.rpartition(f".{name}")[0] or dotted
        if option.family in OUR_CLASSES:
            return f"of which {option.family}? Give it after the --config, or --{typed} NAME, that chooses one"
        holders = self._holders(option.family, name)
        what = f"an option of {in_words(holders)}, which is" if holders else f"no {option.family} is"
        chosen = f"--{typed}{'+' if option.many else ''}={holders[0] if holders else 'NAME'}"
        return f"{what}{' not' if holders else ''} chosen; put {chosen} before it"

    def unknown_option(self, owner: Chosen, before: Sequence[str], name: str, place: Place) -> str:
        """The error for a name that a class does not have. before: the names that lead to it."""
        here = self._names(owner, before)
        near = close_name(name, here)
        holders = [holder for holder in self._holders(owner.family, name) if holder != owner.name] if not before else []
        if holders:
            return f"{owner.name} has no such option; {in_words(holders)} {'has' if len(holders) == 1 else 'have'} it"
        if near is not None:
            return f"no such option; did you mean {place.with_name(name, near)}?"
        far = likely(place.dotted, list(self._all_names()))
        if far is not None:
            return f"no such option; did you mean --{far}?"
        if owner is self.root and not before:
            return "no such option; --help lists the options"
        return f"no such option; {'.'.join(before) or owner.name} has {', '.join(sorted(here)) or 'none'}"

    def _holders(self, family: str, name: str) -> list[str]:
        known = self.tree.families.get(family, {})
        return sorted(n for n, paths in known.items() if any(name in self.tree.kinds[p].options for p in paths))

    def _names(self, owner: Chosen, before: Sequence[str]) -> list[str]:
        assert owner.kind is not None
        options = owner.kind.options
        for name in before:
            options = self.tree.kinds[options[name].group].options
        return list(options)

    def _all_names(self) -> Iterator[str]:
        """All options of the command and its chosen classes, those that people mean most often first."""
        assert self.root.kind is not None
        options = self.root.kind.options
        large = [name for name in ("model", "trainer", "data", "wandb", "throughput") if name in options]
        yield from self._names_below(self.root, [*(n for n in options if n not in large), *large], options, "", "")

    def _names_below(
        self, owner: Chosen, names: Sequence[str], options: dict[str, Option], way: str, dotted: str
    ) -> Iterator[str]:
        for name in names:
            option, here, own = options[name], f"{way}{name}", f"{dotted}{name}"
            yield here
            if option.group:
                inner = self.tree.kinds[option.group].options
                yield from self._names_below(owner, list(inner), inner, f"{here}.", f"{own}.")
            for chosen in owner.below.get(own, []):
                if chosen.kind is not None:
                    step = "" if option.many or option.family in OUR_CLASSES else "init_args."
                    inner = chosen.kind.options
                    usual = sorted(inner, key=lambda name: name != "optim")  # --model.lr is not a critic's
                    yield from self._names_below(chosen, usual, inner, f"{here}.{step}", "")
