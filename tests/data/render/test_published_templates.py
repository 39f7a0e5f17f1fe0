"""Published chat templates with conversations of every kind, judged by transformers' own rendering."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.published import fitting_tokenizer, made_of, outcome, outcomes, published, published_tokenizer
from helpers.shapes import SHAPES
from helpers.talks import TALKS, Talk

from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.render.masks import TokenMask
from lit_posttrain.data.render.templates import ConversationTemplate
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.types import Tree

ROOT = Path(__file__).parents[3]
PLAIN = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "four"},
]


@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_nothing_is_trained_wrong(path: Path) -> None:
    found = outcomes(path)
    assert {name: one.said for name, one in found.items() if one.kind == "wrong"} == {}
    # templates without tool calls cannot train on seven of these, and qwen3_5_nothink closes every thought
    assert Counter(one.kind for one in found.values())["refused"] <= 7
    plain = {"one turn", "long answer", "two turns", "other scripts", "white space", "code", "unanswered end"}
    assert plain <= {name for name, one in found.items() if one.kind in ("right", "as generated")}


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_is_trained_wrong_in_other_families(name: str) -> None:
    tokenizer = fitting_tokenizer(SHAPES[name])
    found = {talk.name: outcome(tokenizer, talk) for talk in TALKS}
    assert {name: one.said for name, one in found.items() if one.kind == "wrong"} == {}
    refused = {name for name, one in found.items() if one.kind == "refused"}
    calling = {talk.name for talk in TALKS if any("tool_calls" in m for m in talk.messages)}
    assert refused == (calling if "tool_calls" not in SHAPES[name] else set())


@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_no_row_chooses_the_text_of_another(path: Path) -> None:
    tokenizer = published_tokenizer(path)
    mask = TokenMask(tokenizer)

    def texts(talks: list[Talk]) -> dict[str, list[tuple[str, str]] | str]:
        template = ConversationTemplate(tokenizer)
        made: dict[str, list[tuple[str, str]] | str] = {}
        for talk in talks:
            try:
                made[talk.name] = [seen(tree) for tree in made_of(template, mask, talk)]
            except BadRow as error:
                made[talk.name] = error.reason
        return made

    def seen(tree: Tree) -> tuple[str, str]:
        (response,) = tree.responses
        return tokenizer.decode(tree.prompt), tokenizer.decode(response.tokens[response.loss_mask])

    alone = {name: said for talk in TALKS for name, said in texts([talk]).items()}
    assert texts(TALKS) == alone
    assert texts(TALKS[::-1]) == alone


@pytest.mark.parametrize("path", published("*_training.jinja"), ids=lambda path: path.stem)
def test_behind_the_prompt_masks_equal_those_of_hugging_face(path: Path) -> None:
    tokenizer = published_tokenizer(path)
    try:
        oracle = tokenizer.apply_chat_template(
            PLAIN, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception as error:  # whatever a template raises
        pytest.skip(f"wants more than text: {error}")
    given = tokenizer.apply_chat_template(PLAIN[:-1], add_generation_prompt=True, return_dict=False)
    size = len(given)
    if oracle["input_ids"][:size] != list(given):
        pytest.skip("renders another prompt than generation is given: see test_nothing_is_trained_wrong")
    if "four" not in tokenizer.decode(oracle["input_ids"]):
        pytest.skip("leaves out content that is no list of parts")
    mask = TokenMask(tokenizer)
    (rendered,) = ConversationTemplate(tokenizer, "last").render(Example(PLAIN, 1))
    (tree,) = mask.trees(rendered, mask.encode([rendered.text], False)[0])
    assert tree.prompt.tolist() == list(given)
    ours, theirs = tree.responses[0], np.array(oracle["assistant_masks"][size:], bool)
    length = len(ours.tokens)
    assert ours.tokens.tolist() == oracle["input_ids"][size : size + length]
    # what generation has to write to get to the marked words is trained too, and so is the end behind them
    inside = np.flatnonzero(theirs)
    assert ours.loss_mask[inside[inside < length]].all()
    assert ours.loss_mask[: inside[0]].all()
    assert not theirs[length:].any()


def test_the_table_in_the_docs_is_that_of_this_version() -> None:
    import trl
    from templates_table import page

    text = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")
    if f"TRL {trl.__version__} " not in text:
        pytest.skip(f"the table is of another version of TRL than {trl.__version__}")
    assert page() == text, "docs/templates.md is out of date: python tools/templates_table.py"
