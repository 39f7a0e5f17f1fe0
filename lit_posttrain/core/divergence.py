"""The divergence of a trained model from a frozen one on a batch's targets, for any method that has a teacher."""

from __future__ import annotations

from lit_posttrain.core.frozen import FrozenModel
from lit_posttrain.ops.divergence import Divergence, divergence
from lit_posttrain.ops.head import HeadInputs
from lit_posttrain.types import TreeBatch


def divergence_from(teacher: FrozenModel, batch: TreeBatch, *, beta: float, temperature: float) -> Divergence:
    """The divergence of the teacher's module's policy from the teacher over the whole vocabulary, summed over the
    batch's N targets, with the policy's entropy; see ops/divergence.py. Heads that are padded to different sizes are
    compared over the tokens of the tokenizer."""
    vocabulary = len(teacher.module.tokenizer)

    def between(student: HeadInputs, other: HeadInputs) -> Divergence:
        shared = None if student.entries == other.entries else vocabulary
        return divergence(student, other, beta=beta, temperature=temperature, entropy=True, vocabulary=shared)

    def with_teacher(student: HeadInputs) -> Divergence:
        return teacher.with_head(batch, lambda other: between(student, other))

    found: Divergence = teacher.module.language_model(batch, use=with_teacher)
    return found
