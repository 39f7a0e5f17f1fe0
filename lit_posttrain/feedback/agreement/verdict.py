"""In words: may one train on these votes? The rules stand in `RULES`, which the documentation shows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from lit_posttrain.feedback.agreement.bias import Bias
from lit_posttrain.feedback.agreement.intervals import FEW, Estimate
from lit_posttrain.feedback.agreement.report import Report
from lit_posttrain.feedback.agreement.votes import Annotator

Advice = Literal["train", "careful", "do not", "unknown"]
_WORDS: dict[Advice, str] = {
    "train": "train on it",
    "careful": "train on it with care",
    "do not": "do not train on it",
    "unknown": "not enough to say",
}
# what is looked at -> below (or above) which value it calls for care, and for no training at all
RULES = {
    "lost": (0.1, 0.5),  # share of decisions without a verdict, above
    "ties": (0.5, 0.8),  # share of a judge's verdicts, above
    "flips": (0.1, 0.4),  # verdicts that change with the order of the responses, above
    "first": (0.55, 0.75),  # wins of what was shown first, or 1 - wins, above
    "longer": (0.05, 0.25),  # wins of the longer response beyond people's, above
    "longer_alone": (0.7, 0.9),  # the same where no people voted, above
    "own": (0.05, 0.25),  # wins of its own model's responses beyond people's, above
    "calibration": (0.1, 0.3),  # expected calibration error, above, unless a calibrated judge may have it
    "alpha": (0.4, 0.1),  # Krippendorff's alpha among people, below
}


@dataclass(frozen=True)
class Finding:
    """One reason. weight: what it advises alone."""

    weight: Advice
    text: str


@dataclass(frozen=True)
class Verdict:
    """On a judge, or on the people together. name: whose votes. findings: reasons, the weightiest first."""

    name: str
    advice: Advice
    findings: list[Finding]

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {_WORDS[self.advice]}: " + "; ".join(one.text for one in self.findings)


def verdicts_of(report: Report) -> list[Verdict]:
    """The verdict on the people together, if there are several, and on each judge."""
    found = []
    if report.people is not None:
        found.append(_weighed("people", list(_on_people(report))))
    for one in report.votes.annotators:
        if one.judge:
            found.append(_weighed(one.name, list(_on_judge(report, one))))
    return found


def _weighed(name: str, findings: list[Finding]) -> Verdict:
    order: list[Advice] = ["do not", "unknown", "careful", "train"]
    findings = sorted(findings, key=lambda one: order.index(one.weight))
    return Verdict(name, findings[0].weight, findings)


def _on_people(report: Report) -> Iterator[Finding]:
    group = report.people
    assert group is not None
    if group.alpha.prompts < FEW:
        yield Finding("unknown", f"pairs of {_prompts(group.alpha)} have two votes; {FEW} are needed")
        return
    if math.isnan(group.alpha.low) or group.decided.prompts < FEW:
        text = f"two people see no tie on pairs of {_prompts(group.decided)}; {FEW} are needed"
        yield Finding("unknown", text)
        return
    care, stop = RULES["alpha"]
    alpha = f"Krippendorff's alpha is {group.alpha.value:.2f} ({group.alpha.low:.2f} to {group.alpha.high:.2f})"
    if group.alpha.low <= stop:
        yield Finding("do not", f"{alpha}: people hardly agree more than by chance; mend guidelines or items")
    elif group.alpha.value < care:
        yield Finding("careful", f"{alpha}: people often disagree; soft labels (--labels) keep their doubt")
    else:
        yield Finding("train", f"{alpha}; two people agree on {_interval(group.decided)}, ties left out")
    for two in report.between:
        names = {one.name for one in report.votes.annotators if not one.judge}
        if {two.one, two.other} <= names and two.decided.prompts >= FEW and two.decided.low <= 0.5:
            yield Finding("careful", f"{two.one} and {two.other} agree no more than by chance")


def _on_judge(report: Report, judge: Annotator) -> Iterator[Finding]:
    bias, total = report.bias[judge.name], sum(judge.outcomes.values())
    lost = sum(judge.outcomes[name] for name in ("unparsable", "failed")) / max(total, 1)
    if total >= FEW:
        yield from _above("lost", lost, f"{_share(lost)} of its answers are unparsable or failed")
    if judge.outcomes["verdict"] == 0:
        yield Finding("do not", "it has given no verdict")
        return
    said = report.votes.verdicts[report.votes.annotators.index(judge)]
    voted = ~np.isnan(said)
    if len(np.unique(report.votes.prompt[voted])) >= FEW:
        ties = float((said == 0).sum() / voted.sum())
        yield from _above("ties", ties, f"it sees a tie on {_share(ties)} of pairs")
    yield from _on_position(bias)
    yield from _on_length(bias)
    if bias.own_excess.prompts >= FEW and bias.own_excess.low > 0:
        text = f"responses of its own model win {_percent(bias.own)}, with people {_percent(bias.own_people)}"
        yield from _above("own", bias.own_excess.value, text)
    calibration = report.calibration.get(judge.name)
    if calibration is not None and calibration.brier.prompts >= FEW and calibration.error > calibration.by_chance:
        text = f"its probabilities are off by {calibration.error:.2f} on average (expected calibration error)"
        yield from _above("calibration", calibration.error, text)
    yield from _on_agreement(report, judge)


def _on_position(bias: Bias) -> Iterator[Finding]:
    swap, first = bias.swap_consistency, bias.first_position
    if swap.prompts >= FEW:
        flips = 1 - swap.value
        text = f"it changes its verdict on {_share(flips)} of pairs when their order is swapped"
        yield from _above("flips", flips, text)
    if first.prompts >= FEW and not first.low <= 0.5 <= first.high:
        place = "first" if first.value > 0.5 else "second"
        share = max(first.value, 1 - first.value)
        yield from _above("first", share, f"it prefers what it is shown {place}, in {_share(share)} of its verdicts")


def _on_length(bias: Bias) -> Iterator[Finding]:
    if bias.longer_excess.prompts >= FEW:
        if bias.longer_excess.low > 0:
            text = f"the longer response wins {_percent(bias.longer)}, with people {_percent(bias.longer_people)}"
            yield from _above("longer", bias.longer_excess.value, text)
    elif bias.longer.prompts >= FEW:
        yield from _above("longer_alone", bias.longer.value, f"the longer response wins {_percent(bias.longer)}")


def _on_agreement(report: Report, judge: Annotator) -> Iterator[Finding]:
    if judge.name not in report.with_people:
        yield Finding("unknown", "without people's votes only its consistency can be told")
        return
    with_people, decided = report.with_people[judge.name]
    if with_people.prompts < FEW:
        yield Finding("unknown", f"pairs of {_prompts(with_people)} were judged by people too; {FEW} are needed")
    elif decided.prompts < FEW:
        text = f"neither it nor people see a tie on pairs of {_prompts(decided)}; {FEW} are needed"
        yield Finding("unknown", text)
    elif decided.low <= 0.5:
        yield Finding("do not", f"it agrees with people no more than by chance: on {_interval(decided)}, ties left out")
    elif (
        report.people is not None and report.people.decided.prompts >= FEW and decided.high < report.people.decided.low
    ):
        theirs = _interval(report.people.decided)
        yield Finding("careful", f"it agrees with people on {_interval(decided)}, less than two people do ({theirs})")
    else:
        yield Finding("train", f"it agrees with people on {_interval(decided)}, ties left out")


def _above(rule: str, value: float, text: str) -> Iterator[Finding]:
    care, stop = RULES[rule]
    if value > care:
        yield Finding("do not" if value > stop else "careful", text)


def _prompts(one: Estimate) -> str:
    return f"{one.prompts} prompt{'s' * (one.prompts != 1)}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _percent(one: Estimate) -> str:
    return _share(one.value)


def _interval(one: Estimate) -> str:
    return f"{_share(one.value)} ({100 * one.low:.1f} to {100 * one.high:.1f})"
