"""What an on-policy method has written into the labels of its responses survives a resume within a rollout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from helpers.runs import quiet_trainer

from lit_posttrain import GRPO, ModelSpec, PromptData, RolloutConfig, Term, TreeBatch
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.on_policy.rollouts import Rollout, Stats
from lit_posttrain.ops.preferences import logistic
from lit_posttrain.rewards import FunctionReward


def letters(completions: list[str]) -> list[float]:
    return [float(len(said)) for said in completions]


class Pairwise(GRPO):
    """Learns from the pairs of a prompt's responses, by the ranks and margins that it gives them."""

    def __init__(self, spec: ModelSpec) -> None:
        rollout = RolloutConfig(group_size=4, max_new_tokens=8, inner_epochs=2, minibatches=2)
        super().__init__(spec, [FunctionReward(letters)], rollout=rollout)
        self.pairs_seen: list[int] = []

    def prepare(self, rollouts: list[Rollout]) -> Stats:
        for one in rollouts:
            totals = one.total.tolist()
            rewards = sorted(set(totals), reverse=True)
            for response, total in zip(one.tree.responses, totals, strict=True):
                response.labels |= {"rank": float(rewards.index(total)), "margin": 0.1}
        return super().prepare(rollouts)

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        pairs, logprob = batch.pairs, batch.sum(self.token_logprobs(batch).logprobs)
        self.pairs_seen.append(len(pairs.chosen))
        losses = pairs.expected_loss(lambda w, r: logistic(w - r), logprob) * pairs.margin
        return {"preference": Term(losses.sum(), "pairs")}


def fit(model: Path, folder: Path, steps: int, resume: Path | None = None) -> Pairwise:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"tell me about {i}"}) + "\n" for i in range(12)))
    data = PromptData(str(file), batch_size=4, cache_dir=str(folder / "cache"))
    module = Pairwise(ModelSpec(str(model)))
    trainer = quiet_trainer(LastCheckpoint(every_n_steps=1), max_steps=steps, default_root_dir=folder)
    trainer.fit(module, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True)
    return module


def test_a_pairwise_method_goes_on_with_its_pairs(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = fit(tiny_model, tmp_path, 6)
    assert min(whole.pairs_seen) > 0
    fit(tiny_model, tmp_path, 5)  # four steps a rollout: the second one has three left
    resumed = fit(tiny_model, tmp_path, 6, tmp_path / "last.ckpt")
    assert resumed.pairs_seen == whole.pairs_seen[5:]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
