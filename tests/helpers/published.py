"""Published chat templates, tokenizers that fit them, and an oracle of what is to be trained, by transformers alone."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from helpers import tiny
from helpers.talks import TALKS, Message, Talk
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.render.masks import TokenMask
from lit_posttrain.data.render.templates import ConversationTemplate
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.types import Tree

_CONTROL = re.compile(
    r"<\|[^<>|\s'{}]+\|>|<｜[^<>\s'{}]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|</?s>|<(?:start|end)_of_(?:turn|utterance)>|<bos>|<sop>"
    r"|<(?:sep|SPECIAL_\d+|seed:[a-z_]+|end_of_sentence|beginning_of_sentence)>|</(?:assistant|user|system)>|\[gMASK\]|\[/?[A-Z]+(?:_[A-Z]+)+\]|\[/?INST\]|\[e~\[|\]~b\]"
)
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_TAGS = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
_WORD = re.compile(r"\w+")


def published(pattern: str = "*.jinja") -> list[Path]:
    """Chat templates of well-known models, which TRL carries."""
    spec = find_spec("trl")
    found = Path(spec.origin).parent.glob(f"chat_templates/{pattern}") if spec and spec.origin else []
    return sorted(found)


def published_tokenizer(path: Path, special: bool = True) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a published template, see `fitting_tokenizer`."""
    return fitting_tokenizer(path.read_text(encoding="utf-8"), special)


def fitting_tokenizer(text: str, special: bool = True) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a template and, if `special`, what the template writes between its angle brackets as
    special tokens."""
    made = tiny.tokenizer(text)
    if "eos_token" in text:
        made.add_special_tokens({"eos_token": "</s>"})
    if special:
        made.add_special_tokens({"additional_special_tokens": sorted(set(_CONTROL.findall(text)))})
    return made


def spellings(messages: list[Message]) -> Iterator[list[Message]]:
    """The ways in which published templates want the same messages."""
    for thought in _THOUGHTS:
        for content in ("as it is", "none beside calls", "parts"):
            for arguments in ("object", "text"):
                made = copy.deepcopy(messages)
                for m in made:
                    if "reasoning_content" in m:
                        m[thought] = m.pop("reasoning_content")
                    for call in m.get("tool_calls", ()) if arguments == "text" else ():
                        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
                    if content == "parts":
                        m["content"] = [{"type": "text", "text": m["content"]}]
                    elif content != "as it is" and "tool_calls" in m and not m["content"]:
                        m["content"] = None
                yield made


def rendered(tokenizer: Any, talk: Talk, messages: list[Message], prompt: bool) -> list[str]:
    """What transformers makes of the messages, however they may be spelled; empty where it refuses them all."""
    found = []
    how = {"tools": talk.tools, "add_generation_prompt": prompt, **talk.variables}
    for spelled in spellings(messages):
        try:
            if any(m.get("content", "") is None for m in spelled):  # which transformers 5.24 leaves out of messages
                template = tokenizer.get_chat_template(tools=talk.tools)
                names = tokenizer.special_tokens_map
                (text,), _ = render_jinja_template([spelled], chat_template=template, **names, **how)
            else:
                text = tokenizer.apply_chat_template(spelled, tokenize=False, **how)
        except Exception:  # templates fail in every way
            continue
        if text not in found:
            found.append(text)
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of a conversation. kind: "right"; "as generated", right behind a prompt that the template renders
    otherwise; "left out", right, and the product says what the template leaves out; "refused"; "impossible", which
    transformers refuses too; "wrong". said: in words."""

    kind: str
    said: str = ""


@cache
def outcomes(path: Path) -> dict[str, Outcome]:
    """What becomes of all conversations, by their names, under a published template."""
    tokenizer = published_tokenizer(path)
    return {talk.name: outcome(tokenizer, talk) for talk in TALKS}


def made_of(template: ConversationTemplate, mask: TokenMask, talk: Talk) -> list[Tree]:
    """The trees of a conversation of which all assistant turns are trained on."""
    example = Example(copy.deepcopy(talk.messages), 1, tools=talk.tools, variables=dict(talk.variables))
    texts = template.render(example)
    return [tree for text in texts for tree in mask.trees(text, mask.encode([text.text], text.plain)[0])]


def outcome(tokenizer: Any, talk: Talk) -> Outcome:
    """Train on all assistant turns of a conversation, and judge the tokens."""
    template, mask = ConversationTemplate(tokenizer), TokenMask(tokenizer)
    try:
        trees = made_of(template, mask, talk)
    except BadRow as error:
        possible = rendered(tokenizer, talk, talk.messages, prompt=False)
        return Outcome("refused" if possible else "impossible", str(error))
    missed = [*(what for what in template.missed if "`" not in what), *(["words"] if template.altered else [])]
    if wrong := problems(tokenizer, talk, trees, missed):
        return Outcome("wrong", "; ".join(wrong))
    if missed:
        return Outcome("left out", ", ".join(missed))
    return Outcome("as generated" if template.generated else "right")


def problems(tokenizer: Any, talk: Talk, trees: list[Tree], said: list[str]) -> list[str]:
    """What is wrong with the trees that a conversation was made into; nothing where all is right. said: what the
    product says that the template leaves out."""
    turns = [k for k, m in enumerate(talk.messages) if m["role"] == "assistant"]
    trained = [(tree, run) for tree in trees for run in _runs(tree)]
    if len(trained) < len(turns):  # nothing stands between two of them
        trained = [(tree, part) for tree, run in trained for part in _parts(_ids(tree), run, _special(tokenizer))]
    if len(trained) != len(turns):
        return [f"{len(trained)} trained turns of {len(turns)}"]
    found = []
    for k, (tree, (start, end)) in zip(turns, trained, strict=True):
        ids = _ids(tree)
        given = rendered(tokenizer, talk, talk.messages[:k], prompt=True)
        prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in given]
        if ids[:start] not in prompts:
            found.append(
                f"turn {k + 1}: the prompt ends {tokenizer.decode(ids[:start])[-60:]!r}, not {given[0][-60:]!r}"
            )
        following = talk.messages[k + 1] if k + 1 < len(talk.messages) else {"role": "user", "content": "?"}
        whole = rendered(tokenizer, talk, talk.messages[: k + 1], prompt=False)
        whole += rendered(tokenizer, talk, [*talk.messages[: k + 1], following], prompt=False)
        found += [f"turn {k + 1}: {wrong}" for wrong in _turn(tokenizer, talk.messages[k], ids[start:end], whole, said)]
        if (
            talk.tools
            and "tools" not in said
            and not any("Look up" in text or "ferry" in text for text in [*given, *whole])
        ):
            found.append(f"turn {k + 1}: nobody says that the tools are left out")
    return found


def _ids(tree: Tree) -> list[int]:
    return list(np.concatenate([tree.prompt, tree.responses[0].tokens]).tolist())


def _special(tokenizer: Any) -> set[int]:
    return set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}


def _runs(tree: Tree) -> list[tuple[int, int]]:
    """(first, past-the-last) of every run of trained tokens."""
    counted = np.concatenate([np.zeros(len(tree.prompt), bool), tree.responses[0].loss_mask, [False]])
    edges = (np.flatnonzero(np.diff(counted.astype(int))) + 1).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _parts(ids: list[int], run: tuple[int, int], special: set[int]) -> list[tuple[int, int]]:
    """The pieces of a run that end with the token, or the two tokens, that it ends with."""
    start, end = run
    last = next((i for i in range(end - 1, start, -1) if ids[i] in special), end - 1)
    cuts = [start, *(i + 1 for i in range(start, last) if ids[i] == ids[last]), end]
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]


def _turn(tokenizer: Any, message: Message, ids: list[int], whole: list[str], said: list[str]) -> Iterator[str]:
    special = _special(tokenizer)
    text = tokenizer.decode(ids)
    kept = len(ids)
    while kept and (ids[kept - 1] in special or not tokenizer.decode(ids[kept - 1]).strip()):
        kept -= 1
    ended = any(i in special for i in ids[kept:])
    if not ended and special & set(tokenizer(whole[0] + " ".join(whole), add_special_tokens=False)["input_ids"]):
        closes = re.escape(text.strip()) + r"\s*(" + "|".join(map(re.escape, _CONTROL.findall(" ".join(whole)))) + ")"
        if re.search(closes, " ".join(whole)):
            yield f"no end: {text[-40:]!r}"
    body = tokenizer.decode(ids[:kept]).strip()
    content = message["content"].strip()
    thought = message.get("reasoning_content", "")
    if "</think>" in content and content not in body:
        thought, content = (side.strip() for side in content.split("</think>"))
        thought = thought.removeprefix("<think>").strip()
    if content not in body:
        if any(content in one for one in whole) or "words" not in said:
            yield f"without its words: {text!r}"
        return
    if thought and thought not in body and (any(thought in one for one in whole) or "thoughts" not in said):
        yield f"without its thought: {text!r}"
    calls = [call["function"] for call in message.get("tool_calls", ())]
    at = 0
    for call in calls:
        for part in (call["name"], *call["arguments"].values()):
            at = body.find(str(part), at) + 1
            if not at:
                yield f"without the call of {part}: {text!r}"
                return
    if not calls:
        lead, _, rest = body.rpartition(content)
        if _TAGS.sub("", rest).strip():
            yield f"more behind the words: {rest!r}"
        words = _WORD.findall(_TAGS.sub("", lead.replace(thought, "") if thought else lead))
        if len(words) > 6 or (words and not any(lead.lstrip() + content in one for one in whole)):
            yield f"more before the words: {lead!r} in {text!r}"
