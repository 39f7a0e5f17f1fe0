"""Decisions of people and judges are preference data as they are: ties, partial ranks, soft labels, rejections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.comparisons import said, shown
from helpers.runs import write
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparison import Comparison
from lit_posttrain.data.formats.comparisons import recognise_comparison
from lit_posttrain.data.formats.conversations import recognise
from lit_posttrain.data.formats.prompts import prompt_reader
from lit_posttrain.data.modules.method import LearnsFromSingles
from lit_posttrain.data.modules.preference import PreferenceData, PreferenceOptions
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.store.build import TokenizeOptions, build_store
from lit_posttrain.methods.dpo import DPO
from lit_posttrain.methods.kto import KTO
from lit_posttrain.models.spec import ModelSpec

ASKED = [{"role": "user", "content": "Q"}]


def decision(*texts: str, **more: Any) -> dict[str, Any]:
    """A row as the file of decisions is read, with what is no data about it."""
    responses = [{"text": text, "model": "m", "sampling": {"temperature": 1}} for text in texts or "AB"]
    noise: dict[str, Any] = {"order": [*range(len(responses))], "seconds": 3.5, "source": "s:1", "strength": 2.0}
    row = Decision("d", "i", "ann", ASKED, responses, reason="so", **noise).row()
    return {**row, **more}


def read(row: dict[str, Any], **options: Any) -> Comparison:
    return recognise_comparison(Record(row, "votes.jsonl", 1), **options).read(Row(row))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (decision(ranks=[1, 0]), [("A", {"rank": 1}), ("B", {"rank": 0})]),
        (decision(*"ABC", ranks=[2, 2, 0]), [("A", {"rank": 1}), ("B", {"rank": 1}), ("C", {"rank": 0})]),
        (decision(*"ABC", ranks=[3, None, 1]), [("A", {"rank": 1}), ("C", {"rank": 0})]),
        (decision(probability=0.75), [("A", {"rank": 0}), ("B", {"rank": 1, "flip_prob": 0.25})]),
        (decision(probability=0.25, ranks=[1, 0]), [("B", {"rank": 0}), ("A", {"rank": 1, "flip_prob": 0.25})]),
        (decision(probability=0.5), [("A", {"rank": 0}), ("B", {"rank": 1, "flip_prob": 0.5})]),
        (decision(ranks=[1, 1]), [("A", {"rank": 0}), ("B", {"rank": 1, "flip_prob": 0.5})]),
        (
            decision(rejected=[True, True]),
            [("A", {"good": 0, "rank": 0}), ("B", {"good": 0, "rank": 1, "flip_prob": 0.5})],
        ),
        (decision(probability=1), [("A", {"rank": 0}), ("B", {"rank": 1})]),
        (decision(rejected=[True, False]), [("A", {"good": 0, "rank": 1}), ("B", {"good": 1, "rank": 0})]),
        (  # one is ranked, and the other not acceptable
            decision(ranks=[0, None], rejected=[False, True]),
            [("A", {"good": 1, "rank": 0}), ("B", {"good": 0, "rank": 1})],
        ),
        (
            decision(ranks=[0, 1], rejected=[True, True]),
            [("A", {"good": 0, "rank": 0}), ("B", {"good": 0, "rank": 1})],
        ),
    ],
)
def test_what_was_decided(row: dict[str, Any], found: list[tuple[str, dict[str, float]]]) -> None:
    made = read(row)
    assert (made.prompt, shown(made)) == (ASKED, found)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (decision(outcome="skipped"), "skipped by the annotator"),
        (decision(outcome="unparsable"), "an unparsable answer of the judge"),
        (decision(outcome="failed", error="timed out"), "a failed call of the judge"),
        (decision(*"ABC", ranks=[0, 0, None]), "all tied"),
        (decision(ranks=[0, None]), "fewer than two ranked"),
        (decision(*"ABC", rejected=[True, True, True]), "all tied"),
        (decision(), "fewer than two ranked"),
        (decision("A", "A ", ranks=[0, 1]), "equal responses"),
        (decision("A", "", ranks=[0, 1]), "empty response"),
        ({**decision(messages=[*ASKED, said("A")]), "responses": [], "order": []}, "nothing to compare"),
    ],
)
def test_what_decides_nothing_is_counted(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(NothingToLearn) as told:
        read(row)
    assert told.value.reason == reason


def test_a_majority_is_certain() -> None:
    made = read(decision(probability=0.25), annotators="majority")
    assert shown(made) == [("B", {"rank": 0}), ("A", {"rank": 1})]
    with pytest.raises(NothingToLearn, match="as likely"):
        read(decision(probability=0.5), annotators="majority")


def test_responses_to_be_judged_again_keep_their_order() -> None:
    for row in (decision(probability=0.25), decision(ranks=[1, None]), decision(outcome="failed")):
        assert shown(read(row, labelled=False)) == [("A", {}), ("B", {})]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"judge": "gpt-4"}, "`judge` is 'gpt-4', and not an object"),
        ({"criteria": "clear"}, "`criteria` is 'clear', and not an object"),
        ({"criteria": {"clear": ["good", 1]}}, "`criteria.clear` has 'good'; scores are numbers, or null"),
        ({"prompt": 7}, "`prompt` is neither a text nor a list of messages"),
        ({"prompt": ["Why?"]}, "`prompt` is neither a text nor a list of messages"),
        ({"columns": ["a"]}, r"`columns` is \['a'\], and not an object"),
    ],
)
def test_a_field_of_another_type_is_a_bad_row(damage: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRow, match=told):
        read(decision(ranks=[0, 1]) | damage)


def test_a_damaged_decision_is_a_bad_row() -> None:
    for row in (decision(ranks=[0]), decision(probability=2), decision(rejected=[True]), decision(ranks=[0, 1.5])):
        with pytest.raises(BadRow):
            read(row)


def test_files_of_decisions(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    wrote = {
        **decision(messages=[*ASKED, said("A"), {"role": "user", "content": "More"}, said("B")]),
        "responses": [],
        "order": [],
    }
    beside = {"columns": {"topic": "tea", "id": 3, "system": "Be brief."}}
    rows = [decision(ranks=[0, 1], **beside), decision(outcome="skipped"), wrote, decision(rejected=[True, False])]
    rows = [{**row, "id": str(n)} for n, row in enumerate(rows)]
    path, cache = write(tmp_path / "votes.jsonl", rows), str(tmp_path / "cache")
    store, audit = build_store([path], tokenizer, PreferenceOptions(), cache)
    (file,) = audit.files
    assert (file.format, len(store)) == ("decisions", 2)
    assert [r.labels for r in store[0].responses] == [{"rank": 0}, {"rank": 1}]
    assert {reason: tally.lines for reason, tally in file.dropped.items()} == {
        "skipped by the annotator": [2],
        "nothing to compare": [3],
    }
    assert set(file.unread) == {"topic", "columns.id"}  # the rest of the record is no data
    assert "Be brief." in tokenizer.decode(store[0].prompt)
    assert audit.compared is not None
    assert "2 good, 2 bad" in audit.compared.lines()[0]  # of the ranked ones, and of the rejected one
    store, audit = build_store([path], tokenizer, TokenizeOptions(train_on="completion"), cache)
    assert (len(store), audit.files[0].dropped["nothing written"].lines) == (1, [1, 4])
    assert audit.files[0].dropped["skipped by the annotator"].lines == [2]
    trained = store[0].responses[0]
    assert tokenizer.decode(trained.tokens[trained.loss_mask]).count("A") == 1


def test_methods_on_single_responses_learn_what_was_rejected(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Also of items all of whose responses are bad, which compare nothing."""
    rows = [
        decision(*"ABC", rejected=[True] * 3),
        decision(*"ABC", ranks=[0, 1, None], rejected=[False, False, True], id="e"),
        decision(*"ABC", ranks=[0, 1, 2], id="f"),
        decision("A", rejected=[False], id="g"),
    ]
    path, cache = write(tmp_path / "votes.jsonl", rows), str(tmp_path / "cache")
    kto, dpo = (PreferenceData(path, cache_dir=cache) for _ in range(2))
    kto.build(tokenizer, singles=True)
    dpo.build(tokenizer)
    assert [[r.labels for r in tree.responses] for tree in map(kto.train_store.__getitem__, range(4))] == [
        [{"good": 0}] * 3,
        [{"good": 1}, {"good": 1}, {"good": 0}],
        [{"rank": 0}, {"rank": 1}, {"rank": 2}],
        [{"good": 1}],
    ]
    assert kto.train_store.units["labelled"].tolist() == [3, 3, 2, 1]
    assert kto.audit.compared is not None
    assert "4 good, 5 bad" in kto.audit.compared.lines()[0]
    assert dpo.train_store.units["pairs"].tolist() == [1, 3]
    dropped = {reason: tally.lines for reason, tally in dpo.audit.files[0].dropped.items()}
    assert dropped == {"all tied": [1], "fewer than two ranked": [4]}
    assert isinstance(KTO(ModelSpec("none")), LearnsFromSingles)
    assert not isinstance(DPO(ModelSpec("none")), LearnsFromSingles)


def test_the_rest_of_a_written_conversation_is_the_response() -> None:
    asked = [*ASKED, said("A"), {"role": "user", "content": "More"}]
    row = {**decision(prompt=asked, messages=[*asked, said("B")]), "responses": [], "order": []}
    made = recognise(Record(row, "votes.jsonl", 1)).example(Row(row))
    assert (made.prompt_turns, made.messages) == (3, [*asked, said("B")])
    row["messages"] = [*ASKED, said("other")]
    assert recognise(Record(row, "votes.jsonl", 1)).example(Row(row)).prompt_turns == 1


def test_prompts_of_decisions() -> None:
    data = decision(outcome="failed", topic="tea")
    row = Row(data)
    made = prompt_reader(Record(data, "votes.jsonl", 1)).example(row)
    assert made.messages == ASKED
    assert row.rest() == {"topic": "tea"}
