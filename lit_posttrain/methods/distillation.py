"""Distillation from a teacher with the same tokenizer, on the student's own responses (Agarwal et al. 2024), on the
teacher's, or on given ones."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_posttrain.core.component import KLWeight
from lit_posttrain.core.divergence import divergence_term
from lit_posttrain.core.frozen import FrozenPart
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.preference import refuse_comparisons
from lit_posttrain.core.terms import Term
from lit_posttrain.data.modules.prompts import PromptData
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

    The loss is the mean over the step's trained tokens of the divergence of its distribution from the teacher's, or
    its policy gradient with the reward log pi_teacher - log pi_student of every sampled token. With PromptData the
    student or the teacher answers; the answers of ConversationData are given. Metrics: loss, entropy (nats a token),
    for sampled teacher_kl (log pi_student - log pi_teacher, nats a token), and what rewards say where there are any."""

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
            objective: full compares whole distributions; sampled takes the log-probs of the sampled tokens alone, as a
                policy gradient of the reverse KL.
            beta: 0 is the forward KL, 1 the reverse KL, between them the generalised Jensen-Shannon divergence (TRL's
                convention). With sampled, which learns by the reverse KL, of the validation alone.
            student_share: Share of the rollouts that the student samples, 0 to 1; the others the teacher does.
            clip: For sampled: how far a step may follow the ratio of the student to the one that sampled.
        """
        super().__init__(policy, optim, rewards or [], rollout)
        if not 0 <= beta <= 1:
            raise PostTrainError(f"--model.beta is {beta}; it must be between 0 (forward KL) and 1 (reverse KL)")
        if not 0 <= student_share <= 1 or (objective == "sampled" and student_share < 1):
            told = "it is a share, 0 to 1, and 1 with --model.objective sampled"
            raise PostTrainError(f"--model.student_share is {student_share}; {told}")
        if objective == "full" and clip != Clip():
            raise PostTrainError("--model.clip is for --model.objective sampled, and full clips nothing; leave it out")
        if _same_model(policy, teacher):
            raise PostTrainError(
                f"--model.teacher.path {teacher.path}: the teacher is the model that is trained, which can learn "
                "nothing from itself; name another one"
            )
        self.objective, self.beta, self.student_share, self.clip = objective, beta, student_share, clip
        self.trains_on_given = objective == "full" and student_share == 1
        self.teacher = FrozenPart(self, teacher, "teacher")
        self.gradient_terms = PolicyGradient(self, Surrogate(clip=clip), KLWeight(0.0))

    @property
    def wanted_columns(self) -> set[str]:
        """For sampled the student's log-probs as it sampled, and the teacher's."""
        return {"old_logprobs", "teacher_logprobs"} if self.objective == "sampled" else set()

    def columns(self, batch: TreeBatch, wanted: set[str]) -> dict[str, Tensor]:
        """`old_logprobs` and `teacher_logprobs`."""
        teacher = self.teacher.model.logprobs(batch, self.rollout.temperature)
        return super().columns(batch, wanted) | {"teacher_logprobs": teacher}

    def check_data(self, data: LightningDataModule | None) -> None:
        """Check prompts as other methods do.

        Raises:
            PostTrainError: also for given answers of which some are rejected, and for what would measure sampled ones.
        """
        super().check_data(data)
        refuse_comparisons(self, data)
        names = self.collector.reward_names
        if names and not isinstance(data, PromptData):
            raise PostTrainError(
                f"--model.rewards ({', '.join(names)}) look at sampled answers, and those of this data are given: "
                "leave them out, or answer its prompts with --data PromptData"
            )

    def collect(self, number: int) -> Experience:
        """The experience of rollout `number`, which the student or the teacher samples."""
        drawn = np.random.default_rng((self.rollout.seed, number)).random()
        with self.collector.sampler.drawing_from(None if drawn < self.student_share else self.teacher.model.ready()):
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
        temperature = self.rollout.temperature
        if self.objective == "sampled" and not self.evaluating:
            return self.gradient_terms.terms(batch, self.token_logprobs(batch, temperature=temperature, entropy=True))
        return {"divergence": divergence_term(self, self.teacher.model, batch, self.beta, temperature)}


def _same_model(policy: ModelSpec, teacher: ModelSpec) -> bool:
    """True if both begin with the same weights."""
    pair = [spec.found_from_anywhere() for spec in (policy, teacher)]
    mine, theirs = [(spec.path, spec.revision, spec.quantization, spec.dtype) for spec in pair]
    return mine == theirs and not policy.random_init
