"""A judge from its spec and the backend that answers for its model."""

from __future__ import annotations

from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.backend import Backend
from lit_posttrain.judges.constitution import read_constitution
from lit_posttrain.judges.judge import Judge
from lit_posttrain.judges.kinds.comparing import ComparingJudge, Comparison
from lit_posttrain.judges.kinds.criteria import read_criteria
from lit_posttrain.judges.kinds.listwise import Listwise
from lit_posttrain.judges.kinds.marking import Marking, MarkingJudge
from lit_posttrain.judges.kinds.pairwise import Pairwise
from lit_posttrain.judges.kinds.rubric import Rubric
from lit_posttrain.judges.kinds.score import Score
from lit_posttrain.judges.kinds.verdict import Verdict
from lit_posttrain.judges.spec import JudgeSpec


def check_judge(spec: JudgeSpec) -> None:
    """Check a spec and the files that it names, before its model is loaded.

    Raises:
        PostTrainError: the constitution or the criteria cannot be read, or criteria are given to another kind.
    """
    if spec.criteria is not None and spec.kind != "rubric":
        raise PostTrainError(f"criteria are for the kind rubric, and the kind is {spec.kind}; pass --judge.kind rubric")
    if spec.criteria is not None and (spec.constitution is not None or spec.principles):
        raise PostTrainError(
            "a rubric marks by its criteria, or without any by the principles of a constitution; leave out either "
            "criteria or constitution and principles"
        )
    read_constitution(spec.constitution)
    read_criteria(spec.criteria)


def judge_of(spec: JudgeSpec, backend: Backend) -> Judge:
    """The judge of a spec, with the backend that answers for its model.

    Raises:
        PostTrainError: as `check_judge`.
    """
    check_judge(spec)
    constitution = read_constitution(spec.constitution)
    comparisons: dict[str, Comparison] = {"pairwise": Pairwise(), "verdict": Verdict(), "listwise": Listwise()}
    if spec.kind in comparisons:
        return ComparingJudge(backend, spec, constitution, comparisons[spec.kind])
    way: Marking = Score() if spec.kind == "score" else Rubric(read_criteria(spec.criteria))
    return MarkingJudge(backend, spec, constitution, way)
