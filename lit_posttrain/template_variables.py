"""The variables of a chat template, such as `enable_thinking`: which ones it takes, and giving them values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lit_posttrain.errors import PostTrainError

# what transformers gives to every template
_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})
# and what else transformers takes beside a template's variables
RESERVED = frozenset(
    {"messages", "conversation", "conversations", "tools", "chat_template", "add_generation_prompt", "tokenize"}
    | {"continue_final_message", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenizer_kwargs"}
    | {"padding", "truncation", "max_length", "strftime_now", "raise_exception"}
)
SWITCHES = ("enable_thinking",)  # variables that are true or false
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}  # by what is written
_DEFAULT = ("default", "d")
# tests that ask of a variable whether it is given and true, some of them by an argument that is true or false
_ASKS = ("defined", "undefined", "none", "true", "false", "boolean", "sameas", "eq", "equalto")
_JINJA = frozenset({"range", "dict", "lipsum", "cycler", "joiner", "namespace"})


def truth_of(name: str, value: Any) -> Any:
    """The value of one of `SWITCHES`, where text or a number that says true or false means that: templates take any
    text for true, and only false itself for false. Of other variables the value as it is.

    Raises:
        ValueError: a switch has another value.
    """
    if name not in SWITCHES or value is None or isinstance(value, bool):
        return value
    said = str(value).strip().lower()
    if said not in _TRUTH:
        raise ValueError(f"{name} is {value!r}; it must be true or false")
    return _TRUTH[said]


def meant(template: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables as a template is to get them: text that says true or false, or 1 or 0, is that where the template only
    asks whether the variable is true. Text that it prints or compares is text.

    Raises:
        ValueError: as `truth_of`.
    """
    found = {name: truth_of(name, value) for name, value in variables.items()}
    for name, value in found.items():
        if isinstance(value, str) and value.strip().lower() in _TRUTH and name in only_asked(template):
            found[name] = _TRUTH[value.strip().lower()]
    return found


@lru_cache(maxsize=64)
def taken(template: str) -> tuple[str, ...]:
    """Names of the variables that a template reads and a user may set, in alphabetical order; empty where it is no
    valid Jinja, which rendering says."""
    from jinja2 import TemplateError, meta, nodes

    try:
        tree = parsed(template)
    except TemplateError:
        return ()
    undeclared = meta.find_undeclared_variables(tree) - _GIVEN - _JINJA
    stored = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    # what a template assigns in one branch and reads in another is its own affair, unless it asks whether it was given
    asked = {
        node.node.name
        for node in tree.find_all((nodes.Test, nodes.Filter))
        if node.name in ("defined", "undefined", *_DEFAULT) and isinstance(node.node, nodes.Name)
    }
    found = {name for name in undeclared if name not in stored or name in asked | _defaulted(tree)}
    return tuple(sorted(name for name in found if not name.endswith("_token")))


def _defaulted(tree: Any) -> set[str]:
    """Names that the first assignment to them reads, as `{% set effort = effort or 'low' %}`."""
    from jinja2 import nodes

    first: dict[str, Any] = {}
    for node in tree.find_all(nodes.Assign):
        if isinstance(node.target, nodes.Name):
            first.setdefault(node.target.name, node.node)
    return {
        name
        for name, value in first.items()
        if any(read.name == name for read in (value, *value.find_all(nodes.Name)) if isinstance(read, nodes.Name))
    }


def parsed(template: str) -> Any:
    """The syntax tree of a template, with the extensions that transformers knows.

    Raises:
        jinja2.TemplateError: it is not valid Jinja.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template).environment.parse(template)


def with_variables(template: Any, variables: Mapping[str, Any]) -> Any:
    """A chat template, or a dict of them, in which variables have these values unless a caller gives others.

    They are written at the top of the template itself, so that whatever renders it, with our code or another's, sees
    them.

    Raises:
        PostTrainError: a template does not use one of them, or its value is not text, a number, a truth value, null,
            or lists and objects of these.
    """
    if not variables:
        return template
    if template is None:
        raise PostTrainError("--model.policy.template_variables: the model has no chat template that could use them")
    texts = template if isinstance(template, Mapping) else {"default": template}
    known = sorted({name for text in texts.values() for name in taken(text)})
    for name in variables:
        if name in RESERVED:
            raise PostTrainError(
                f"--model.policy.template_variables: {name} is no variable of a template: "
                "it is set when a conversation is rendered; remove it"
            )
        if name not in known:
            uses = f"it uses: {', '.join(known)}" if known else "it uses none"
            raise PostTrainError(f"--model.policy.template_variables: the chat template does not use {name}; {uses}")
    try:
        given = {key: meant(text, variables) for key, text in texts.items()}
    except ValueError as problem:
        raise PostTrainError(f"--model.policy.template_variables: {problem}") from problem
    made = {key: "".join(_set(*one) for one in given[key].items()) + text for key, text in texts.items()}
    return made if isinstance(template, Mapping) else made["default"]


def _set(name: str, value: Any) -> str:
    """The line of a template that sets a variable, unless a caller does. Rendering removes the line break behind each
    line, whatever the template begins with."""
    return f"{{% set {name} = {name} if {name} is defined else {_literal(name, value)} %}}\n"


def _literal(name: str, value: Any) -> str:
    """A value as Jinja writes it."""
    if value is None:
        return "none"
    if isinstance(value, (bool, int, float, str)):
        # Jinja reads a string's escapes, and no numbers such as NaN
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError:
            pass
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(name, item) for item in value) + "]"
    if isinstance(value, Mapping):
        pairs = (f"{_literal(name, str(key))}: {_literal(name, item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    raise PostTrainError(
        f"--model.policy.template_variables: {name} is {value!r}; a template takes text, numbers, true, false, null, "
        "and lists and objects of these"
    )


@lru_cache(maxsize=64)
def only_asked(template: str) -> frozenset[str]:
    """The names of which a template only asks whether they are given, and true: `{% if thinking %}`, `x is false`."""
    from jinja2 import TemplateError, nodes

    try:
        tree = parsed(template)
    except TemplateError:
        return frozenset()
    valued: set[str] = set()  # what is printed, compared, added, handed on, ...
    copies: set[tuple[str, str]] = set()  # a variable, and another that is set to its value

    def look(node: Any, into: str | None, asked: bool) -> None:
        """asked: only whether it is true counts. into: the variable that it is the value of, if any."""
        if isinstance(node, nodes.Name):
            if node.ctx != "load" or asked:
                return
            if into:
                copies.add((node.name, into))
            else:
                valued.add(node.name)
        elif isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
            look(node.node, node.target.name, False)
        elif isinstance(node, (nodes.And, nodes.Or)) or (isinstance(node, nodes.Filter) and node.name in _DEFAULT):
            for part in node.iter_child_nodes():
                look(part, into, asked)
        elif isinstance(node, nodes.Compare) and all(_is_truth(side.expr) for side in node.ops):
            look(node.expr, None, True)
        elif isinstance(node, nodes.Not) or (isinstance(node, nodes.Test) and _asks(node)):
            look(node.node, None, True)
        elif isinstance(node, (nodes.If, nodes.CondExpr)):
            look(node.test, None, True)
            for part in node.iter_child_nodes(exclude=["test"]):
                look(part, into, asked)
        else:
            for part in node.iter_child_nodes():
                look(part, None, False)

    look(tree, None, False)
    while more := {name for name, copy in copies if copy in valued} - valued:
        valued |= more
    read = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    return frozenset(read - valued)


def _asks(test: Any) -> bool:
    return test.name in _ASKS and all(map(_is_truth, test.args))


def _is_truth(node: Any) -> bool:
    return isinstance(getattr(node, "value", None), bool)


@lru_cache(maxsize=64)
def mentioned(template: str) -> frozenset[str]:
    """Every attribute and every text that a template names, and so every key of a message that it may read."""
    from jinja2 import TemplateError, nodes

    try:
        tree = parsed(template)
    except TemplateError:
        return frozenset()
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    return frozenset(attributes | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)})


@lru_cache(maxsize=256)
def compared_with(template: str, name: str) -> tuple[str, ...]:
    """The texts that a template compares one of its variables with, such as the levels of reasoning_effort."""
    from jinja2 import nodes

    found: dict[str, None] = {}
    for compare in parsed(template).find_all(nodes.Compare):
        sides = [compare.expr, *(operand.expr for operand in compare.ops)]
        if any(isinstance(side, nodes.Name) and side.name == name for side in sides):
            constants = [node for side in sides for node in (side, *side.find_all(nodes.Const))]
            found |= {node.value: None for node in constants if isinstance(getattr(node, "value", None), str)}
    return tuple(found)
