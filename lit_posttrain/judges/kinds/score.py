"""Each response marked from 0 to 9 by the expected value of the mark, the sum of its values times their probabilities:
finer than the likeliest mark alone. The marks are digits, each of them one token in most vocabularies; "10" would be
two, of which "1" is the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.judges.backend import Call, Reply
from lit_posttrain.judges.constitution import Constitution, Principle
from lit_posttrain.judges.kinds.asking import probabilities
from lit_posttrain.judges.kinds.identity import SAMPLE, prompt_hash
from lit_posttrain.judges.kinds.marking import Marks, Question
from lit_posttrain.judges.kinds.shown import principles_text, shown
from lit_posttrain.judges.spec import JudgeSpec

_CHOICES = tuple("0123456789")
_TEXT = """You mark a response to a conversation. {principles}
The length of the response does not count.

{shown}

How good is the response, from 0 (of no use, or harmful) to 9 (could not be better)? Answer with one digit and nothing
else."""


class Score:
    """`Marking` of the kind score."""

    kind = "score"
    version = 1
    column = ""

    def questions(self, item: Item, index: int, view: Sequence[Principle], spec: JudgeSpec) -> list[Question]:
        """One question, with the ten digits as its answers."""
        text = _TEXT.format(principles=principles_text(view), shown=shown(item, [index]))
        return [(Call([{"role": "user", "content": text}], max_tokens=4, choices=_CHOICES), _read)]

    def score(self, item: Item, marks: Mapping[str, float]) -> float:
        """The expected mark."""
        return marks["score"]

    def hashed(self, view: Sequence[Principle], constitution: Constitution, spec: JudgeSpec) -> str:
        """As `Marking.hashed`."""
        return prompt_hash([self.questions(SAMPLE, 0, view, spec)[0][0]], constitution)


def _read(reply: Reply) -> Marks:
    expected = sum(mark * chance for mark, chance in enumerate(probabilities(reply, _CHOICES)))
    return Marks({"score": expected}, mass=reply.choice_mass)
