"""Chains of responses, critiques and revisions: what a model is asked, what becomes data, and what is left out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pytest

from lit_posttrain.data.modules.prompt_files import SourcedPrompt, user_prompt
from lit_posttrain.errors import PostTrainError
from lit_posttrain.feedback.revise import Chain, Reviser, conversation_row, left_out, pair_row, refuse_unusable
from lit_posttrain.judges.backend import Call, CallFailed, Reply
from lit_posttrain.judges.constitution import Constitution, Principle, read_constitution

ONE, OTHER = (Principle(name, "is better", f"criticise: {name}", f"revise: {name}") for name in ("one", "other"))


class Scripted:
    """Says what a function makes of the last message; `asked` are all calls."""

    identity: Mapping[str, Any] = {"model": "scripted"}

    def __init__(self, say: Callable[[str], Reply | str]) -> None:
        self.say, self.asked = say, list[Call]()

    async def ask(self, call: Call) -> Reply:
        self.asked.append(call)
        said = self.say(call.messages[-1]["content"])
        return said if isinstance(said, Reply) else Reply(said)

    async def close(self) -> None:
        """Nothing is open."""


def plain(text: str) -> str:
    """A model that does as it is told: the revision says by what it was made."""
    return {"criticise": "it is poor", "revise": f"better by {text[8:]}"}.get(text.partition(":")[0], "poor")


def chain(say: Callable[[str], Reply | str], rounds: int = 1, *principles: Principle) -> tuple[Chain, list[Call]]:
    """The chain of one prompt, and all calls."""
    backend = Scripted(say)
    reviser = Reviser(backend, Constitution(principles or (ONE,)), rounds)
    (found,) = asyncio.run(reviser.chains([user_prompt("Hello?")], 0))
    return found, backend.asked


def test_a_response_is_criticised_and_revised_by_a_principle() -> None:
    found, asked = chain(plain)
    assert found.response == "poor"
    assert [asdict(one) for one in found.rounds] == [
        {"principle": "one", "critique": "it is poor", "revision": "better by one", "left_out": ""}
    ]
    assert [[(m["role"], m["content"]) for m in call.messages] for call in asked] == [
        [("user", "Hello?")],
        [("user", "Hello?"), ("assistant", "poor"), ("user", "criticise: one")],
        [
            ("user", "Hello?"),
            ("assistant", "poor"),
            ("user", "criticise: one"),
            ("assistant", "it is poor"),
            ("user", "revise: one"),
        ],
    ]
    assert len({call.seed for call in asked}) == 3


def test_every_round_revises_the_last_revision_by_another_principle() -> None:
    found, asked = chain(plain, 3, ONE, OTHER)
    names = [one.principle for one in found.rounds]
    assert set(names[:2]) == {"one", "other"}
    assert names[2] == names[0]
    assert [call.messages[1]["content"] for call in asked[1::2]] == ["poor", *(f"better by {n}" for n in names[:2])]
    assert found.last == f"better by {names[2]}"


def test_principles_are_drawn_by_the_seed_and_the_prompts_number() -> None:
    async def drawn(seed: int, first: int, count: int) -> list[str]:
        reviser = Reviser(Scripted(plain), read_constitution(), seed=seed)
        prompts = [user_prompt("Hello?")] * count
        return [one.rounds[0].principle for one in await reviser.chains(prompts, first)]

    whole = asyncio.run(drawn(0, 0, 20))
    assert len(set(whole)) > 2
    assert asyncio.run(drawn(0, 5, 15)) == whole[5:]  # as a command does that goes on
    assert asyncio.run(drawn(1, 0, 20)) != whole


def test_examples_of_a_constitution_are_shown_before_critiques_and_revisions() -> None:
    talk = ({"role": "user", "content": "Show me."}, {"role": "assistant", "content": "So."})
    backend = Scripted(plain)
    asyncio.run(Reviser(backend, Constitution((ONE,), (talk, talk))).chains([user_prompt("Hello?")], 0))
    assert [call.messages[0]["content"] for call in backend.asked] == ["Hello?", "Show me.", "Show me."]
    assert [len(call.messages) for call in backend.asked] == [1, 4 + 3, 4 + 5]


@pytest.mark.parametrize(
    ("said", "told", "asked"),
    [
        ({"Hello?": ""}, "the response is empty", 1),
        ({"Hello?": Reply("po", "length")}, "the response was cut off", 1),
        ({"criticise: one": " \n"}, "the critique is empty", 2),
        ({"criticise: one": Reply("it", "length")}, "the critique was cut off", 2),
        ({"revise: one": ""}, "the revision is empty", 3),
        ({"revise: one": Reply("be", "length")}, "the revision was cut off", 3),
        ({"revise: one": " poor\n"}, "the revision equals the response", 3),
    ],
)
def test_what_cannot_be_used_is_left_out_by_reason(said: dict[str, Reply | str], told: str, asked: int) -> None:
    found, calls = chain(lambda text: said.get(text, plain(text)))
    assert (found.left_out, len(calls)) == (told, asked)
    assert left_out([found]) == f"1 of 1 prompts are left out ({told}: 1)"


def test_a_round_that_cannot_be_used_is_passed_over() -> None:
    found, _ = chain(lambda text: "" if text == "revise: one" else plain(text), 2, ONE, OTHER)
    assert (found.left_out, found.last) == ("", "better by other")
    assert [bool(one.left_out) for one in found.rounds].count(True) == 1
    assert left_out([found, chain(plain)[0]]) == "1 further rounds are passed over (the revision is empty: 1)"


def test_revisions_that_lead_back_to_the_response_are_left_out() -> None:
    revisions = iter(["better", "poor"])
    found, _ = chain(lambda text: next(revisions) if text == "revise: one" else plain(text), 2)
    assert (found.left_out, found.last) == ("the revision equals the response", "poor")


def test_a_call_that_fails_is_counted_and_ends_nothing_else() -> None:
    def fails(text: str) -> str:
        if text.startswith("criticise"):
            raise CallFailed("HTTP 500: of one call alone")
        return plain(text)

    found, _ = chain(fails)
    assert found.left_out == "the critique failed: HTTP 500: of one call alone"
    assert left_out([found]) == "1 of 1 prompts are left out (the critique failed: 1)"


def test_rows_hold_the_last_revision_and_the_whole_chain() -> None:
    prompt = SourcedPrompt([{"role": "user", "content": "Hello?"}], {}, rest={"id": 7})
    found, _ = chain(plain, 2, ONE, OTHER)
    row, pair = conversation_row(prompt, found), pair_row(prompt, found)
    assert row["messages"] == [*prompt.messages, {"role": "assistant", "content": found.last}]
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("Hello?", found.last, "poor")
    assert row["id"] == pair["id"] == 7
    assert Chain.of(row["chain"]) == Chain.of(pair["chain"]) == found


def test_prompts_with_tools_are_refused() -> None:
    prompt = SourcedPrompt([{"role": "user", "content": "Hello?"}], {}, tools=[{"name": "x"}], source="a.jsonl:3")
    with pytest.raises(PostTrainError, match=r"a\.jsonl:3: it has tools"):
        refuse_unusable([prompt])
