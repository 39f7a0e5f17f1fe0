"""Distillation on the student's own responses (Agarwal et al. 2024), on the teacher's, or on given ones."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from lit_posttrain.core.component import KLWeight
from lit_posttrain.core.divergence import divergence_term
from lit_posttrain.core.frozen import FrozenPart
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.on_policy.columns import attach, joined
from lit_posttrain.on_policy.experience import Experience
from lit_posttrain.on_policy.module import OnPolicyModule
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.on_policy.policy_gradient import Clip, PolicyGradient, Surrogate
from lit_posttrain.on_policy.rollouts import Rollout, Stats
from lit_posttrain.rewards.base import Reward
from lit_posttrain.types import TreeBatch


class Distillation(OnPolicyModule):
    """A student learns a teacher's next-token distributions.

    The loss is the divergence from the teacher, a mean over trained tokens, or a policy gradient with the reward
    log pi_teacher - log pi_student per sampled token. PromptData is answered by the student or the teacher;
    ConversationData has answers. Metrics: loss, entropy and for sampled -reward as teacher_kl (nats per token)."""

    trains_unscored: ClassVar[bool] = True
    monitored: ClassVar[str] = "val/loss"
    in_bar: ClassVar[tuple[str, ...]] = ("loss",)

    def __init__(
        self,
        policy: ModelSpec,
        teacher: ModelSpec,
        rewards: list[Reward] | None = None,
        optim: Optim = Optim(lr=1e-5),
        rollout: RolloutConfig = RolloutConfig(group_size=1),
        objective: Literal["full", "sampled"] = "full",
        beta: float = 1.0,
        student_share: float = 1.0,
        clip: Clip = Clip(),
    ) -> None:
        """
        Args:
            policy: The student, the model to train.
            teacher: A model with the same tokenizer. It is not trained.
            rewards: What responses are measured by; they have no part in the loss.
            optim: The optimizer and the schedule of its learning rate.
            rollout: How responses are sampled, and how a rollout becomes optimizer steps.
            objective: full compares whole distributions; sampled is a policy gradient of the reverse KL.
            beta: 0 is the forward KL, 1 the reverse KL, between them generalised Jensen-Shannon, as in TRL. With
                sampled, which trains with the reverse KL, for the validation only.
            student_share: Share of the rollouts that the student samples, 0 to 1; the others the teacher does.
            clip: For sampled: how far a step may follow the ratio of the student to the one that sampled.
        """
        super().__init__(policy, optim, rewards or [], rollout)
        if not 0 <= beta <= 1:
            raise PostTrainError(f"--model.beta is {beta}; it must be between 0 (forward KL) and 1 (reverse KL)")
        if not 0 <= student_share <= 1 or (objective == "sampled" and student_share < 1):
            raise PostTrainError(f"--model.student_share is {student_share}; it is a share, 0 to 1, for sampled 1")
        if objective == "full" and clip != Clip():
            raise PostTrainError("--model.clip is for --model.objective sampled, and full clips nothing; leave it out")
        if policy.same_weights(teacher):
            raise PostTrainError(f"--model.teacher.path {teacher.path}: this is the student itself; name another model")
        self.objective, self.beta, self.student_share, self.clip = objective, beta, student_share, clip
        self.teacher = FrozenPart(self, teacher, "teacher")
        self.gradient_terms = PolicyGradient(self, Surrogate(clip=clip), KLWeight(0.0))

    @property
    def must_sample(self) -> str:
        """Options without which it learns from given answers too."""
        share = f"--model.student_share {self.student_share:g}" if self.student_share < 1 else ""
        return "--model.objective sampled" if self.objective == "sampled" else share

    @property
    def wanted_columns(self) -> set[str]:
        """For sampled the student's log-probs as it sampled, and the teacher's."""
        return {"old_logprobs", "teacher_logprobs"} if self.objective == "sampled" else set()

    def collect(self, number: int) -> Experience:
        """The experience of rollout `number`, which the student or the teacher samples."""
        drawn = np.random.default_rng((self.rollout.seed, number)).random()
        with self.collector.sampler.drawing_from(None if drawn < self.student_share else self.teacher.model):
            return super().collect(number)

    def prepare(self, rollouts: list[Rollout]) -> Stats:
        """For sampled, `advantage` of every token: log pi_teacher - log pi_student."""
        if self.objective == "full":
            return {}
        self.attach_columns(rollouts)
        trees = [one.tree for one in rollouts]
        reward = joined(trees, "teacher_logprobs") - joined(trees, "old_logprobs")
        attach(trees, "advantage", reward)
        return {"teacher_kl": (-float(reward.sum()), float(len(reward)))}

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The divergence, or its policy gradient; in a validation the divergence."""
        if self.objective == "full" or self.evaluating:
            return {"divergence": divergence_term(self, self.teacher.model, batch, self.beta, self.rollout.temperature)}
        out = self.token_logprobs(batch, temperature=self.rollout.temperature, entropy=True)
        return self.gradient_terms.terms(batch, out)
