"""Constitution files: both forms, what is drawn, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.constitution import read_constitution


def test_the_projects_own() -> None:
    own = read_constitution()
    assert [one.name for one in own.principles] == ["helpful", "honest", "harmless", "unbiased", "careful"]
    assert all(one.prefer and one.critique and one.revision for one in own.principles)
    assert not any("\n" in one.prefer or "  " in one.prefer for one in own.principles)


def test_the_common_form(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    entry = {"critic": "Is it kind?", "revision": "Make it kind."}
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"constitutions": [entry, {**entry, "critic": "Is it true?"}], "system_chat": [talk]}))
    read = read_constitution(str(file))
    assert [(one.critique, one.revision) for one in read.principles] == [
        ("Is it kind?", "Make it kind."),
        ("Is it true?", "Make it kind."),
    ]
    assert "Is it kind?" in read.principles[0].prefer
    assert [dict(message) for message in read.examples[0]] == talk


def test_a_list_of_texts(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("- Answer in rhymes.\n- Be brief.\n")
    read = read_constitution(str(file))
    assert [one.prefer for one in read.principles] == [
        "follows this principle better: Answer in rhymes",
        "follows this principle better: Be brief",
    ]


def test_draws_depend_on_the_key_alone() -> None:
    own = read_constitution()
    names = [[one.name for one in own.drawn(2, 0, f"prompt {n}")] for n in range(50)]
    assert names == [[one.name for one in own.drawn(2, 0, f"prompt {n}")] for n in range(50)]
    assert all(len(set(two)) == 2 for two in names)
    assert {name for two in names for name in two} == {one.name for one in own.principles}
    assert len(own.drawn(9, "k")) == 5


def test_the_hash_changes_with_a_word(tmp_path: Path) -> None:
    hashes = set()
    for text in ("- Be brief.", "- Be long.", "- Be brief.\n- Be long."):
        (tmp_path / "c.yaml").write_text(text)
        hashes.add(read_constitution(str(tmp_path / "c.yaml")).hash)
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "a constitution has a list `principles`"),
        ("[]", "with one entry at least"),
        ("[3]", "principle 1 is neither a text nor an object of texts"),
        ("principles: [{name: a, prefer: b}]", "principle 1 lacks critique, revision"),
        ("[{critic: a, revision: b, weight: c}]", "principle 1 has weight, which is not known"),
        ("[{name: a, critic: a, revision: b}, {name: a, critic: a, revision: b}]", "two principles are called a"),
        ("{constitutions: [{critic: a, revision: b}], system_chat: [[3]]}", "system_chat"),
        ("a: [", "neither YAML nor JSON"),
    ],
)
def test_what_is_no_constitution(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(PostTrainError, match=r"c\.yaml") as refused:
        read_constitution(str(file))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_file() -> None:
    with pytest.raises(PostTrainError, match=r"no\.yaml: the constitution cannot be read"):
        read_constitution("no.yaml")
