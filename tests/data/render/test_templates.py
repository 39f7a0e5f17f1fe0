"""Which tokens are trained on, against Hugging Face's own masks and against templates that play tricks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import tiny
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.render.masks import TokenMask
from lit_posttrain.data.render.rendered import TrainOn
from lit_posttrain.data.render.templates import ConversationTemplate
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError
from lit_posttrain.rollout.text import prompt_ids
from lit_posttrain.types import Tree

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# like the templates of reasoning models: what stands before </think> is kept in the last turn alone
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALKS = [
    [("user", "what is it"), ("assistant", "a fox")],
    [("system", "be brief"), ("user", "one\n"), ("assistant", "two  "), ("user", "three?"), ("assistant", "né 4 🙂")],
    [("user", "a"), ("user", "b"), ("assistant", "c <|im_end|> d"), ("assistant", "e")],
]


def messages(talk: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in talk]


def trees(tokenizer: PreTrainedTokenizerFast, example: Example, train_on: TrainOn = "assistant") -> list[Tree]:
    mask = TokenMask(tokenizer)
    rendered = ConversationTemplate(tokenizer, train_on).render(example)
    return [mask.tree(r, mask.encode([r.text], r.plain)[0]) for r in rendered]


def talk_example(talk: list[tuple[str, str]], prompt_turns: int = 1) -> Example:
    return Example(messages(talk), prompt_turns=prompt_turns)


def counted_text(tokenizer: PreTrainedTokenizerFast, tree: Tree) -> str:
    response = tree.responses[0]
    return str(tokenizer.decode(response.tokens[response.loss_mask]))


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("template", [tiny.CHATML, MARKED], ids=["compared", "marked"])
def test_masks_equal_those_of_hugging_face(talk: list[tuple[str, str]], template: str) -> None:
    tokenizer = tiny.tokenizer(template)
    oracle = tiny.tokenizer(MARKED).apply_chat_template(
        messages(talk), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    (tree,) = trees(tokenizer, talk_example(talk))
    response = tree.responses[0]
    tokens = np.concatenate([tree.prompt, response.tokens])
    counted = np.concatenate([np.zeros(len(tree.prompt), bool), response.loss_mask])
    # what follows the last trained token is left out
    assert tokens.tolist() == oracle["input_ids"][: len(tokens)]
    assert counted.tolist() == [bool(m) for m in oracle["assistant_masks"][: len(tokens)]]
    assert not any(oracle["assistant_masks"][len(tokens) :])
    assert response.loss_mask[0]
    assert response.loss_mask[-1]
    assert tree.prompt_loss_mask is None


@pytest.mark.parametrize("template", [tiny.CHATML, MARKED], ids=["compared", "marked"])
def test_what_is_trained_on(template: str) -> None:
    tokenizer = tiny.tokenizer(template)
    talk = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")]
    made = talk_example(talk, prompt_turns=3)
    texts = {}
    for train_on in ("assistant", "last", "completion", "all"):
        (tree,) = trees(tokenizer, made, train_on)
        texts[train_on] = counted_text(tokenizer, tree)
        whole = tokenizer.decode(np.concatenate([tree.prompt, tree.responses[0].tokens]))
        assert (tree.prompt_loss_mask is not None and tree.prompt_loss_mask.all()) == (train_on == "all")
        if train_on == "all":
            assert whole == tokenizer.apply_chat_template(made.messages, tokenize=False)
    assert texts["assistant"] == "b<|im_end|>d<|im_end|>f<|im_end|>"
    assert texts["completion"] == "d<|im_end|>f<|im_end|>"
    assert texts["last"] == "f<|im_end|>"
    assert texts["all"].startswith("b<|im_end|>\n<|im_start|>user")


def test_the_prompt_is_what_generation_is_given(tokenizer: PreTrainedTokenizerFast) -> None:
    (tree,) = trees(tokenizer, talk_example(TALKS[1]), "last")
    given = tokenizer.apply_chat_template(messages(TALKS[1])[:-1], add_generation_prompt=True, return_dict=False)
    assert tree.prompt.tolist() == list(given)


def test_unanswered_turns_are_left_out_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ConversationTemplate(tokenizer)
    talk = [("user", "a"), ("assistant", "b"), ("user", "unanswered")]
    (rendered,) = template.render(talk_example(talk))
    assert "unanswered" not in rendered.text
    assert template.unanswered == 1


def test_a_template_that_rewrites_earlier_turns_is_trained_turn_by_turn() -> None:
    tokenizer = tiny.tokenizer(FORGETS)
    talk = [("user", "a"), ("assistant", "why</think>b"), ("user", "c"), ("assistant", "so</think>d")]
    template, mask = ConversationTemplate(tokenizer), TokenMask(tokenizer)
    made = [mask.tree(r, mask.encode([r.text], False)[0]) for r in template.render(talk_example(talk))]
    assert template.rewritten == 1
    assert [counted_text(tokenizer, tree) for tree in made] == ["why</think>b<|im_end|>", "so</think>d<|im_end|>"]
    for tree, turns in zip(made, (1, 3), strict=True):
        given = tokenizer.apply_chat_template(messages(talk)[:turns], add_generation_prompt=True, return_dict=False)
        assert tree.prompt.tolist() == list(given)
    assert len(trees(tokenizer, talk_example(talk), "last")) == 1


def test_a_generation_prompt_that_is_not_in_the_conversation_is_trained_behind() -> None:
    opened = tiny.CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    tokenizer = tiny.tokenizer(opened)
    template, mask = ConversationTemplate(tokenizer), TokenMask(tokenizer)
    talk = TALKS[1]
    made = [mask.trees(r, mask.encode([r.text], False)[0]) for r in template.render(talk_example(talk))]
    assert [counted_text(tokenizer, tree) for (tree,) in made] == [
        "\n</think>\n\ntwo  <|im_end|>",
        "\n</think>\n\nné 4 🙂<|im_end|>",
    ]
    assert (template.generated, template.rewritten) == (2, 1)
    for (tree,), turns in zip(made, (2, 4), strict=True):
        given = tokenizer.apply_chat_template(messages(talk)[:turns], add_generation_prompt=True, return_dict=False)
        assert tree.prompt.tolist() == list(given)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", "turns cannot be told apart"),
        ("{% for m in messages %}{{ m['content'] }", "not valid Jinja"),
    ],
)
def test_templates_that_cannot_be_trained_on(template: str, message: str) -> None:
    with pytest.raises(PostTrainError, match=message):
        trees(tiny.tokenizer(template), talk_example(TALKS[0]))


def test_a_template_without_generation_prompt_trains_its_header(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = tiny.tokenizer("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>\n' }}{% endfor %}")
    (tree,) = trees(bare, talk_example(TALKS[0]))
    assert counted_text(bare, tree) == "assistant: a fox<|im_end|>"


def test_a_prompt_that_is_no_token_prefix_is_shown(tokenizer: PreTrainedTokenizerFast) -> None:
    # without the end of a special token between them, prompt and answer share the token " quick"
    spaced = tiny.tokenizer(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    spaced.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[' + m['content'] + ' qu' }}{% else %}"
        "{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    with pytest.raises(
        BadRow, match=r"the prompt alone ends in the tokens \[.*\] and the conversation has \[.*\] there"
    ) as e:
        trees(spaced, talk_example([("user", "the"), ("assistant", "ick")]))
    assert e.value.reason == "token boundary"
    assert "' quick'" in str(e.value) or "'ick'" in str(e.value)


def test_a_boundary_just_behind_a_special_token_is_proven_too() -> None:
    open_header = tiny.CHATML.replace("assistant\n", "assistant qu").replace(
        "message['role'] + '\n'", "message['role'] + (' qu' if message['role'] == 'assistant' else '\n')"
    )
    assert open_header.count(" qu") == 2
    with pytest.raises(BadRow, match=r"\[.*' qu'?.*\] and the conversation has \[.*' quick', .*\] there"):
        trees(tiny.tokenizer(open_header), talk_example([("user", "a"), ("assistant", "ick")]))


def test_boundaries_are_proven_with_and_without_special_tokens() -> None:
    """A template without any special token before the answer takes the slow proof and gives the same kind of tree."""
    plain = tiny.tokenizer(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    (tree,) = trees(plain, talk_example([("user", "word " * 40), ("assistant", "fox")]))
    assert counted_text(plain, tree) == " fox\n"


def test_end_tokens_are_counted_per_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    for template, ends in ((tiny.CHATML, {"<|im_end|>": 2}), (tiny.CHATML.replace("<|im_end|>", ""), {"": 2})):
        made, mask = tiny.tokenizer(template), TokenMask(tokenizer)
        (rendered,) = ConversationTemplate(made).render(talk_example(TALKS[1]))
        mask.tree(rendered, mask.encode([rendered.text], False)[0])
        assert dict(mask.ends) == ends


def test_text_without_a_template() -> None:
    base = tiny.tokenizer(None)
    (tree,) = trees(base, Example([], text=("", "the fox")))
    assert len(tree.prompt) == 1
    assert base.decode(np.concatenate([tree.prompt, tree.responses[0].tokens])) == "the fox<|im_end|>"
    assert tree.responses[0].loss_mask.all()
    (tree,) = trees(base, Example([], text=("what is the", " fox")))
    assert base.decode(tree.prompt) == "what is the"
    assert counted_text(base, tree) == " fox<|im_end|>"
    (tree,) = trees(base, Example([], text=("what is the", " fox")), "all")
    assert base.decode(tree.prompt) == "what is the"
    assert tree.prompt_loss_mask is not None
    assert tree.prompt_loss_mask.all()
    with pytest.raises(BadRow, match="the prompt alone ends in the tokens"):
        trees(base, Example([], text=("the qu", "ick fox")))
    with pytest.raises(PostTrainError, match="the tokenizer has no chat template, which messages"):
        trees(base, talk_example(TALKS[0]))


def test_special_tokens_of_the_tokenizer_are_added_once() -> None:
    from tokenizers.processors import TemplateProcessing

    base = tiny.tokenizer(None)
    base.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    (tree,) = trees(base, Example([], text=("", "the fox")))
    assert base.decode(tree.prompt) == "<|im_start|>"
    assert counted_text(base, tree) == "the fox<|im_end|>"
    (tree,) = trees(base, Example([], text=("what is the", " fox")))
    assert base.decode(tree.prompt) == "<|im_start|>what is the"
    base.chat_template = tiny.CHATML
    (tree,) = trees(base, talk_example(TALKS[0]))
    assert base.decode(tree.prompt).count("<|im_start|>") == 2


@pytest.mark.parametrize("adds_end", [False, True])
@pytest.mark.parametrize("opened", ["", "<|im_start|>"])
@pytest.mark.parametrize("ended", ["", "<|im_end|>", "<|im_end|>\n", " <|im_end|><|im_end|>  "])
def test_text_that_brings_its_own_special_tokens_gets_no_second(adds_end: bool, opened: str, ended: str) -> None:
    from tokenizers.processors import TemplateProcessing

    base = tiny.tokenizer(None)
    base.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A" + " <|im_end|>" * adds_end, special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    for text in (("", f"{opened}the fox{ended}"), (f"{opened}the", f" fox{ended}")):
        (tree,) = trees(base, Example([], text=text))
        whole = base.decode(np.concatenate([tree.prompt, tree.responses[0].tokens]))
        space = " " if ended.startswith(" ") else ""
        assert whole == f"<|im_start|>the fox{space}<|im_end|>"
    (alone,) = trees(base, Example([], text=(f"{opened}the fox", "")), "nothing")
    assert base.decode(alone.prompt) == "<|im_start|>the fox"
    assert prompt_ids(base, [{"role": "user", "content": f"{opened}the fox"}]) == alone.prompt.tolist()


def test_text_keeps_tokens_that_are_not_added() -> None:
    base = tiny.tokenizer(None)  # writes nothing before a text
    (tree,) = trees(base, Example([], text=("", "<|im_start|>the fox")))
    assert base.decode(np.concatenate([tree.prompt, tree.responses[0].tokens])) == "<|im_start|>the fox<|im_end|>"
    (tree,) = trees(base, Example([], text=("a", "<|im_end|>")))
    assert counted_text(base, tree) == "<|im_end|>"


def test_truncation_set_elsewhere_does_not_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    made = tiny.tokenizer()
    made(["a"], truncation=True, max_length=2, padding="max_length")
    (tree,) = trees(made, talk_example(TALKS[1]))
    assert len(tree.prompt) > 2


def test_a_template_that_refuses_says_so() -> None:
    strict = tiny.tokenizer(
        tiny.CHATML + "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    with pytest.raises(BadRow, match=r"the chat template refuses the conversation \(no system\)"):
        trees(strict, talk_example(TALKS[1]))


def test_slow_tokenizers_are_refused() -> None:
    slow = type("Slow", (PreTrainedTokenizerFast,), {"is_fast": False})
    with pytest.raises(PostTrainError, match=r"Slow is not a fast tokenizer"):
        ConversationTemplate(slow(tokenizer_object=tiny.tokenizer().backend_tokenizer))


def test_tools_reach_the_template() -> None:
    template = (
        "{% if tools %}{{ '<|im_start|>tools\n' + tools[0]['function']['name'] + '<|im_end|>\n' }}{% endif %}"
        + tiny.CHATML
    )
    made = Example(messages(TALKS[0]), 1, tools=[{"type": "function", "function": {"name": "fox_finder"}}])
    (rendered,) = ConversationTemplate(tiny.tokenizer(template)).render(made)
    assert "fox_finder" in rendered.text


def test_a_template_that_leaves_out_tool_calls_is_not_trained_on(tokenizer: PreTrainedTokenizerFast) -> None:
    call = {"type": "function", "function": {"name": "fox_finder", "arguments": {"x": 1}}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "tool_calls": [call]},
    ]
    with pytest.raises(BadRow, match="the chat template leaves out the tool calls") as error:
        ConversationTemplate(tokenizer).render(Example(turns, 1))
    assert error.value.reason == "not rendered"
    # arguments as text, as a few templates want them
    joined = tiny.CHATML.replace(
        "message['content'] +",
        "message['content'] + (message.tool_calls[0].function.name + message.tool_calls[0].function.arguments "
        "if message.tool_calls else '') +",
    )
    (rendered,) = ConversationTemplate(tiny.tokenizer(joined)).render(Example(turns, 1))
    assert 'bfox_finder{"x": 1}<|im_end|>' in rendered.text


def test_words_that_the_template_does_not_write_are_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    upper = ConversationTemplate(
        tiny.tokenizer(tiny.CHATML.replace("message['content']", "message['content'] | upper"))
    )
    upper.render(talk_example(TALKS[0]))
    silent = ConversationTemplate(tiny.tokenizer(tiny.CHATML.replace("message['content']", "''")))
    with pytest.raises(BadRow, match="writes none of the assistant's words"):
        silent.render(talk_example([("user", "a"), ("assistant", "b")]))
    plain = ConversationTemplate(tokenizer)
    plain.render(talk_example(TALKS[1]))
    assert (upper.altered, plain.altered) == (1, 0)
