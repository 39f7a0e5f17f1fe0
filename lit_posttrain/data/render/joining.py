"""The responses of a row, each rendered with its prompt, as one tree."""

from __future__ import annotations

import numpy as np

from lit_posttrain.data.render.rendered import Rendered
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.types import Response, Tree


def by_tree(texts: list[list[Rendered]]) -> list[list[Rendered]]:
    """The texts of each tree: one tree of all examples, or one per turn of a single example that is trained turn by
    turn."""
    if len(texts) == 1:
        return [[rendered] for rendered in texts[0]]
    if any(len(rendered) != 1 for rendered in texts):
        raise BadRow(
            "rewritten turns",
            "the chat template rewrites earlier turns, so that a response of several turns is not one text; cut the "
            "response to one turn",
        )
    return [[rendered[0] for rendered in texts]]


def joined(trees: list[Tree], labels: list[dict[str, float]], marked: bool) -> Tree:
    """One tree from trees with one response each. marked: a response may begin with turns that are not trained on.

    Raises:
        BadRow: the tokens of their prompts differ.
    """
    first = trees[0]
    if not labels:
        return first
    prompt = first.prompt
    if any(not np.array_equal(tree.prompt, prompt) for tree in trees[1:]):
        if not marked:
            raise BadRow("token boundary", "the prompt has different tokens before different responses; mend it")
        # a tree's prompt ends where training begins, which is later where a response begins with an untrained turn
        shortest = min(len(tree.prompt) for tree in trees)
        alike = np.all([tree.prompt[:shortest] == prompt[:shortest] for tree in trees], axis=0)
        prompt = prompt[: shortest if alike.all() else int(np.argmin(alike))]
    said = [_after(tree, len(prompt)) for tree in trees]
    if any(labels) and len(said) > 1 and all(np.array_equal(r.tokens, said[0].tokens) for r in said):
        raise NothingToLearn("equal responses", "all responses have the same tokens: no preference; remove the row")
    responses = [Response(r.tokens, r.loss_mask, dict(known)) for r, known in zip(said, labels, strict=True)]
    return Tree(prompt, responses, first.prompt_loss_mask)


def _after(tree: Tree, start: int) -> Response:
    """The response of a tree, preceded by the end of its prompt from token `start` on."""
    rest, response = tree.prompt[start:], tree.responses[0]
    tokens = np.concatenate([rest, response.tokens])
    return Response(tokens, np.concatenate([np.zeros(len(rest), np.bool_), response.loss_mask]))
