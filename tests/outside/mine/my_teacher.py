"""Selective training (Rho-1, Lin et al. 2024): only the tokens that another model finds likelier."""

from lit_posttrain import ModelSpec, Optim, PostTrainingModule, Term, TreeBatch
from lit_posttrain.core.frozen import FrozenPart


class Selective(PostTrainingModule):
    """The mean over all tokens of -log pi, 0 for those that the teacher finds no likelier than the policy does."""

    def __init__(self, policy: ModelSpec, teacher: ModelSpec, optim: Optim = Optim(lr=2e-5)) -> None:
        super().__init__(policy, optim)
        self.teacher = FrozenPart(self, teacher, "teacher")

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        logprobs = self.token_logprobs(batch).logprobs
        behind = self.teacher.model.logprobs(batch) > logprobs
        self.track("behind", behind.sum(), batch.local_count("tokens"))  # logged as a share of the step's tokens
        return {"nll": Term(-logprobs[behind].sum(), "tokens")}
