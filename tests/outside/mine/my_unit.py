"""Imitate the best responses of comparisons, each with the same weight: a mean over a unit that the package lacks."""

from lit_posttrain import PostTrainingModule, Term, TreeBatch
from lit_posttrain.data.store.units import UNITS

UNITS["best"] = lambda tree: sum(response.label("rank") == 0 for response in tree.responses)


class BestOnly(PostTrainingModule):
    """The mean over the best responses of -avg, avg the mean log-prob per token."""

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        mean = batch.mean(self.token_logprobs(batch).logprobs)
        return {"nll": Term(-mean[batch.ranks == 0].sum(), "best")}
