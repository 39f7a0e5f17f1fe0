"""The divergence of a trained model from a frozen one on a batch's targets, for any method that has a teacher."""

from __future__ import annotations

from lit_posttrain.core.frozen import FrozenModel
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.terms import Term
from lit_posttrain.ops.divergence import Divergence, divergence
from lit_posttrain.ops.head import HeadInputs
from lit_posttrain.types import TreeBatch


def divergence_term(
    module: PostTrainingModule, teacher: FrozenModel, batch: TreeBatch, beta: float, temperature: float = 1.0
) -> Term:
    """The divergence of a module's policy from a teacher over the whole vocabulary, a mean over tokens; see
    ops/divergence.py for beta. A teacher with more tokens, or a head that is padded to another size, is compared over
    the tokens of the policy's tokenizer. Tracks the metric entropy (of the policy, nats a token)."""
    vocabulary = len(module.tokenizer)

    def between(student: HeadInputs, other: HeadInputs) -> Divergence:
        shared = None if student.entries == other.entries and not teacher.more_tokens else vocabulary
        return divergence(student, other, beta=beta, temperature=temperature, entropy=True, vocabulary=shared)

    def with_teacher(student: HeadInputs) -> Divergence:
        return teacher.with_head(batch, lambda other: between(student, other))

    found: Divergence = module.language_model(batch, use=with_teacher)
    assert found.entropy is not None
    module.track("entropy", found.entropy.sum(), batch.local_count("tokens"))
    return Term(found.loss, "tokens")
