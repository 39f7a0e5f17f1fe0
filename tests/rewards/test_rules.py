"""Rules by hand."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from lit_posttrain import rewards
from lit_posttrain.errors import PostTrainError
from lit_posttrain.rewards import ExactMatch, JsonValid, LengthPenalty, MathAnswer, Regex, Repetition, Reward
from lit_posttrain.rewards.base import RewardBatch
from lit_posttrain.rewards.total import RewardSum


def batch(responses: Sequence[str], sizes: Sequence[int] = (), **columns: Any) -> RewardBatch:
    count = len(responses)
    tokens = [[0] * size for size in sizes or [len(said.split()) for said in responses]]
    prompt = [{"role": "user", "content": "go on"}]
    sources = [f"data.jsonl:{n + 1}" for n in range(count)]
    return RewardBatch([prompt] * count, responses, columns, tokens, [False] * count, sources)


def scores(reward: Reward, *args: Any, **columns: Any) -> list[float | Exception | None]:
    return list(reward.score(batch(*args, **columns)))  # type: ignore[arg-type]  # rules are not async


def test_exact_match() -> None:
    right = ["4", "four", None]
    assert scores(ExactMatch(), [" 4\n", "Four", "4"], answer=right) == [1.0, 0.0, None]
    assert scores(ExactMatch(ignore_case=True), [" 4\n", "Four", "4"], answer=right) == [1.0, 1.0, None]
    said = ["I say 3. The answer is 4", "4", "The answer is 4, no, the answer is 5"]
    assert scores(ExactMatch(pattern=r"answer is (\d+)"), said, answer=["4", "4", "5"]) == [1.0, 0.0, 1.0]
    assert scores(ExactMatch("key", pattern=r"\d+"), ["1, 2"], key=[2]) == [1.0]


def test_regex_and_json() -> None:
    assert scores(Regex("b.d"), ["a b\nd e", "bd"]) == [1.0, 0.0]
    assert scores(Regex("b.d", whole=True), ["a b d", "b d "]) == [0.0, 0.0]
    assert scores(Regex("b.d", whole=True), ["b\nd"]) == [1.0]
    said = ['{"a": 1}', '```json\n{"a": 1}\n```', '{"a": 1', "[1]", "[" * 100_000]
    assert scores(JsonValid(), said) == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert scores(JsonValid(["a"]), said) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_the_length_penalty_is_dapos() -> None:
    found = scores(LengthPenalty(limit=20, buffer=4), [""] * 5, sizes=[3, 16, 17, 20, 90])
    assert found == [0.0, 0.0, -0.25, -1.0, -1.0]


def test_repetition() -> None:
    assert scores(Repetition(2), ["a b c d", "a b a b a", "a", ""]) == pytest.approx([0.0, -0.5, 0.0, 0.0])


def test_math_answers_are_compared_as_mathematics() -> None:
    said = ["So it is $\\frac{1}{2}$.", "The answer is 0.5", "\\boxed{2/4}", "It is 2", "nothing"]
    assert scores(MathAnswer(), said, answer=["1/2"] * 5) == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert scores(MathAnswer(), ["6 + 6 = 12", "72"], answer=["He has 6 * 12 = 72\n#### 12"] * 2) == [1.0, 0.0]
    assert scores(MathAnswer(), ["1"], answer=[None]) == [None]
    asked = [
        "To work out 2 + 2 is easy",
        "It is 2 * 2, of course",
        "\\boxed{2+2}",
        "$2 \\times 2$",
        "$2+2=4$",
        "-4",
        "4",
    ]
    assert scores(MathAnswer(), asked, answer=["4"] * 7) == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    assert scores(MathAnswer(), ["$x^2 + 1$", "-4"], answer=["1 + x^2", "-4"]) == [1.0, 1.0]
    (found,) = scores(MathAnswer(), ["1"], answer=["nobody knows"])
    assert str(found) == f"`answer` is 'nobody knows', which is not {MathAnswer.wants}"


@pytest.mark.parametrize(
    ("right", "same", "other"),
    [
        (r"2\sqrt{3}", r"$\sqrt{12}$", "2"),
        (r"3\pi", r"\boxed{3\pi}", "3"),
        (r"5\frac{1}{2}", "5.5", "0.5"),
        (r"\frac{3}{4}", "0.75", "3"),
        ("x^2+1", r"$1 + x^2$", "1"),
        ("1e-3", "0.001", "1"),
        ("1,234", "1234", "234"),
        ("18 dollars", "18", "8"),
        ("$7$", "7", "17"),
    ],
)
def test_a_right_answer_in_bare_latex_is_read_as_a_whole(right: str, same: str, other: str) -> None:
    said = [f"The answer is {same}", f"The answer is {other}"]
    assert scores(MathAnswer(), said, answer=[right] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Regex("("), "pattern '\\(' is no regular expression"),
        (lambda: LengthPenalty(4, 5), "buffer is 5; it must be above 0 and at most limit, 4"),
        (lambda: Repetition(0), "n is 0; it must be at least 1"),
        (
            lambda: ExactMatch("right").check(["prompt", "answer"], "f:1"),
            "f:1: ExactMatch needs the column `right`, and there",
        ),
    ],
)
def test_mistakes(make: Any, said: str) -> None:
    with pytest.raises(PostTrainError, match=said):
        make()


@pytest.mark.parametrize("reward", [ExactMatch(), MathAnswer()])
def test_a_list_of_right_answers_accepts_any(reward: Reward) -> None:
    assert scores(reward, ["4", "5", "6"], answer=[["4", "5"], [4, 5], ["4", "5"]]) == [1.0, 1.0, 0.0]
    assert reward.unusable({"answer": [4, "5"]}) == ""


@pytest.mark.parametrize("value", [{"v": 8}, [], [{"v": 8}], ["4", None], " ", ""])
@pytest.mark.parametrize("reward", [ExactMatch(), MathAnswer()])
def test_what_cannot_be_a_right_answer(reward: Reward, value: Any) -> None:
    assert reward.unusable({"answer": value}).startswith("`answer` is ")
    (score,) = scores(reward, ["4"], answer=[value])
    assert isinstance(score, ValueError)


def test_right_answers_of_mathematics_are_looked_at_before_training() -> None:
    judge = RewardSum([MathAnswer()])
    for value in ("six", ["4", "four"], True):
        assert "not a number or a formula" in MathAnswer().unusable({"answer": value})
    for right in (6, "6", "-1,234.5", "so #### 6", "1/2", r"\frac{1}{2}", None):
        assert MathAnswer().unusable({"answer": right}) == ""
    rows: list[tuple[str, dict[str, Any]]] = [("a:1", {"answer": 1}), ("a:2", {"answer": "six"}), ("a:3", {})]
    with pytest.raises(PostTrainError, match=r"^a:2: MathAnswer: `answer` is 'six', .* \(1 of 3 rows\); mend .*skip$"):
        judge.check_rows(rows)
    judge.check_rows(rows, skip=True)
    with pytest.raises(PostTrainError, match=r"\(1 of 1 rows\); mend them, or name another column"):
        judge.check_rows(rows[1:2], skip=True)


def test_a_right_answer_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training, and not again for every response."""
    parse, verify = rewards.rules._math_verify()
    read: list[str] = []

    def counted(text: str, **options: Any) -> Any:
        read.append(text)
        return parse(text, **options)

    monkeypatch.setattr(rewards.rules, "_math_verify", lambda: (counted, verify))
    right = r"\frac{7}{991}"
    RewardSum([MathAnswer()]).check_rows([("a:1", {"answer": right}), ("a:2", {"answer": right})])
    said = ["$7/991$", "$7/992$"] * 4
    assert scores(MathAnswer(), said, answer=[right] * 8) == [1.0, 0.0] * 4
    assert len(read) == 1 + len(said)


def test_a_right_answer_that_takes_too_long_to_read_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parse, verify = rewards.rules._math_verify()

    def slow(text: str, **options: Any) -> Any:
        time.sleep(30 if "881" in text else 0)
        return parse(text, **options)

    monkeypatch.setattr(rewards.rules, "_math_verify", lambda: (slow, verify))
    monkeypatch.setattr(rewards.rules, "_LONGEST_S", 0.2)
    monkeypatch.setattr(rewards.total, "_PATIENCE_S", 0.1)
    judge, begun = RewardSum([MathAnswer()]), time.monotonic()
    rows = [("a:1", {"answer": "1/881"}), ("a:2", {"answer": "1/882"}), ("a:3", {"answer": "1/883"})]
    with pytest.raises(PostTrainError, match=r"a:1: MathAnswer: `answer` is '1/881', .* reads in .* \(1 of 3 rows\)"):
        judge.check_rows(rows)
    assert caplog.text.count("MathAnswer: checking every row takes a while (1 rows so far)") == 1
    with caplog.at_level(logging.WARNING):
        judge.check_rows(rows, skip=True)
    # known from before: it does not take the time of the others, nor end the run
    found = judge(batch(["1/881"] * 8 + ["1/882"], answer=["1/881"] * 8 + ["1/882"])).total
    assert found[:8].isnan().all()
    assert found[8] == 1.0
    assert time.monotonic() - begun < 10


def test_rows_are_not_read_for_rewards_that_look_at_none() -> None:
    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        raise AssertionError("every row would be decoded")
        yield

    RewardSum([Regex("a"), Repetition(), JsonValid()]).check_rows(rows())
    with pytest.raises(AssertionError):
        RewardSum([Regex("a"), ExactMatch()]).check_rows(rows())
