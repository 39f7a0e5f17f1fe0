"""The reference policy: what the policy was at the start of training, never a reload by name.

Its log-probs come from the policy with its adapter off, from a frozen copy, or from a file that one pass before
training fills: in the run's own precision, continued where it was interrupted, and shared by later runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lit_posttrain.core.component import Component
from lit_posttrain.core.frozen import AdapterOff, FrozenModel
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.reference_cache import cached_logprobs
from lit_posttrain.core.resume import another_model
from lit_posttrain.data.store.logprob_cache import TargetTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.identity import difference, fingerprint, identity_of
from lit_posttrain.models.weights import require_state
from lit_posttrain.ops.kl import k3
from lit_posttrain.rollout.engine import Sampling
from lit_posttrain.trainer_state import attached_trainer, dry_run, fitting
from lit_posttrain.types import Response, Tree, TreeBatch

ReferenceKind = Literal["auto", "adapter_off", "copy", "cached"]

_SCORED_TOGETHER = 32  # fresh responses; more only cost memory


@runtime_checkable
class KeepsTargets(Protocol):
    """A data module whose rows can be given cached log-probs.

    eval_batch_size: rows a batch of the caching pass, over all ranks.
    """

    eval_batch_size: int

    @property
    def target_trees(self) -> list[TargetTrees]: ...
    @property
    def reference_folder(self) -> Path: ...


class Reference(Component):
    """The reference of a method, as the method's attribute and component `reference`.

    kind: where its log-probs come from: adapter_off, copy, or cached. used: False if the method does without. sampled:
    True if the method samples its responses, which no cache can know.
    """

    def __init__(
        self, module: PostTrainingModule, kind: ReferenceKind, used: bool = True, sampled: bool = False
    ) -> None:
        """
        Raises:
            PostTrainError: for a kind that the policy cannot have.
        """
        adapter = module.model_spec.lora is not None
        if sampled and kind == "cached":
            raise PostTrainError("--model.reference cached: responses are new every time; take copy or adapter_off")
        if module.model_spec.random_init and used:
            raise PostTrainError(
                "--model.policy.random_init: a reference must be the same after a resume; start from a saved model"
            )
        if kind == "adapter_off" and not adapter:
            raise PostTrainError("--model.reference adapter_off: there is no adapter; add --model.policy.lora.r 16")
        self.module, self.used = module, used
        self.kind = ("adapter_off" if adapter else "copy") if kind == "auto" else kind
        self._frozen: FrozenModel | None = None
        self._synced = False
        module.add("reference", self)

    # Building ----------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the reference before anything is restored into the policy.

        Raises:
            PostTrainError: if the tokenizer brings tokens that the model lacks: their embeddings are drawn each time.
        """
        module = self.module
        if not self.used:
            return
        known, tokens = module.model_config.get_text_config(decoder=True).vocab_size, len(module.tokenizer)
        if self.kind != "adapter_off" and tokens > known:
            raise PostTrainError(
                f"the tokenizer has {tokens} tokens and the model {known}: a reference with embeddings drawn anew "
                "would differ after a resume; fine-tune the new tokens first (SFT), start from that model"
            )
        assert module.policy is not None
        if "policy" not in module.frozen:
            module.frozen["policy"] = identity_of(module.policy)
        # a checkpoint that is only measured has moved away from what a cache would be made with
        if self.kind == "copy" or (self.kind == "cached" and not self._caching):
            self._frozen = FrozenModel.copy_of(module)

    @property
    def _caching(self) -> bool:
        trainer = attached_trainer(self.module)
        return trainer is not None and fitting(trainer) and not dry_run(trainer)

    @property
    def frozen_weights(self) -> dict[str, list[Tensor]]:
        """Those of the copy, where there is one."""
        return {} if self._frozen is None else {"reference": self._frozen.weights}

    # Using -------------------------------------------------------------------------------------------------------

    def logprobs(self, batch: TreeBatch, temperature: float = 1.0) -> Tensor:
        """(N,) log-probs of the batch's targets under the reference, without a graph: those that the batch brings along
        (computed once for a rollout, or cached), else computed."""
        found = batch.per_target.get("ref_logprobs")
        if found is not None:
            return found
        # a batch without trees brings nothing along; where models are sharded it must run them if the others do
        if not batch.target_ids.numel() and self._brought_along:
            return torch.zeros(0, device=batch.target_ids.device)
        return self.compute(batch, temperature)

    @property
    def _brought_along(self) -> bool:
        """True if batches with trees bring the log-probs along."""
        cached = self.kind == "cached" and self._frozen is None
        return cached or "ref_logprobs" in getattr(self.module, "wanted_columns", ())

    def compute(self, batch: TreeBatch, temperature: float = 1.0) -> Tensor:
        """(N,) log-probs of the batch's targets under the reference, whatever the batch brings along."""
        if self._frozen is None and self.kind == "cached" and self.module.model_spec.lora is None:
            self._rebuild()  # for data that was not cached, such as a set to test on
        return (self._frozen or AdapterOff(self.module)).logprobs(batch, temperature)

    def _rebuild(self) -> None:
        self._frozen = FrozenModel.rebuilt(self.module)
        if told := difference(self.module.frozen["policy"], self._frozen.identity()):
            raise another_model("policy", self.module.model_spec, told)

    def columns(self, batch: TreeBatch, wanted: set[str], temperature: float) -> dict[str, Tensor]:
        """`ref_logprobs` (N,), if it is wanted."""
        return {"ref_logprobs": self.compute(batch, temperature)} if "ref_logprobs" in wanted else {}

    def track_distance(self, log_ratios_N: Tensor, batch: TreeBatch) -> None:
        """The metric kl/batch: the mean of k3 over the trained tokens of the batch's responses (nats a token). It is a
        distance on given responses; a KL would be a mean over the policy's own, see `sampled_log_ratios`."""
        found = k3(log_ratios_N.detach()[batch.target_response >= 0])
        self.module.track("kl/batch", found.sum(), float(len(found)))

    @property
    def scores_fresh_text(self) -> bool:
        """True if it can score text that is not in the data; a cache without adapters cannot."""
        return self.used and (self.kind != "cached" or self.module.model_spec.lora is not None)

    def sampled_log_ratios(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int) -> list[Tensor]:
        """(tokens,) log pi - log pi_ref (nats, on the device) of every token of one fresh response to each prompt
        (token ids), drawn at temperature 1 and scored as training scores. Collective."""
        module = self.module
        drawn = [found[0].tokens for found in module.generate(prompts, Sampling(max_new_tokens, seed=seed))]
        trees = [
            Tree(np.array(prompt, np.int32), [Response(np.array(said, np.int32), np.ones(len(said), np.bool_))])
            for prompt, said in zip(prompts, drawn, strict=True)
        ]
        ratios: list[Tensor] = []
        for start in range(0, len(trees), _SCORED_TOGETHER):
            batch = collate(trees[start : start + _SCORED_TOGETHER], module.layout, {}).to(module.device)
            with module.trainer.precision_plugin.forward_context(), module.eval_no_grad() as policy:
                found = policy(batch).logprobs - self.compute(batch)
            ratios += found.split(batch.target_response.bincount(minlength=batch.num_responses).tolist())
        return ratios

    # The cache ---------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Fill what the cache lacks.

        Raises:
            PostTrainError: for a data module that keeps no rows.
        """
        module = self.module
        if self.kind != "cached" or not self._caching:
            return
        data = getattr(module.trainer, "datamodule", None)
        if not isinstance(data, KeepsTargets):
            raise PostTrainError(
                f"--model.reference cached needs PreferenceData, not {type(data).__name__}; use --model.reference copy"
            )
        assert module.policy is not None
        # a policy that is resumed or trained once more has moved on: what the cache lacks takes the weights anew
        still = not difference(module.frozen["policy"], identity_of(module.policy))
        about = {"weights": fingerprint(module.frozen["policy"]), "precision": str(module.trainer.precision)}
        for trees in data.target_trees:
            trees.reference = cached_logprobs(
                trees,
                data.reference_folder,
                about,
                AdapterOff(module).logprobs if still else self.compute,
                module.trainer,
                module.layout,
                data.eval_batch_size,
            )
        self._frozen = None

    # Following the policy ----------------------------------------------------------------------------------------

    def check_sync(self, mix: float) -> None:
        """Refuse what `sync` cannot do.

        Raises:
            PostTrainError: for no reference, one that is no copy, sharded weights, and a soft update of adapters, whose
                mixture is not that of the weights which they stand for.
        """
        if not self.used:
            raise PostTrainError("ReferenceSync: there is no reference to move; --model.beta above 0 makes one")
        if self.kind != "copy":
            raise PostTrainError(f"a reference that is {self.kind} cannot follow the policy; --model.reference copy")
        if self.module.device_mesh is not None:
            raise PostTrainError("ReferenceSync does not work with FSDP2 yet; use --trainer.strategy ddp")
        if mix < 1 and self.module.model_spec.lora is not None:
            raise PostTrainError(f"ReferenceSync: mix {mix} of adapters is no mix of weights; take mix 1, or no lora")

    def sync(self, mix: float) -> None:
        """Move the frozen copy towards the policy: reference <- mix * policy + (1 - mix) * reference (TR-DPO,
        Gorbatovski et al. 2024)."""
        assert self._frozen is not None
        assert self.module.policy is not None
        with torch.no_grad():
            theirs = dict(self._frozen.model.named_parameters())
            for name, parameter in self.module.policy.named_parameters():
                if parameter.requires_grad:
                    theirs[name].lerp_(parameter.detach().to(theirs[name]), mix)
        self._synced = True

    def state(self, snapshot: Any) -> dict[str, Any]:
        """The weights of a reference that has followed the policy."""
        if not self._synced or self._frozen is None or self.module.policy is None:
            return {}
        trained = {name for name, p in self.module.policy.named_parameters() if p.requires_grad}
        held = self._frozen.model.state_dict()
        return {name: held[name] for name in sorted(trained)}

    def load_state(self, state: Mapping[str, Any], fitting: bool) -> None:
        """Restore a reference that has followed the policy.

        Raises:
            PostTrainError: if this run's reference cannot follow.
        """
        if self.kind != "copy":
            raise PostTrainError(
                f"the checkpoint's reference has followed the policy, and one that is {self.kind} cannot; resume "
                "with --model.reference copy"
            )
        if self._frozen is not None:  # beta 0, which may be measured, has none
            assert self.module.policy is not None
            require_state(self.module.policy, state, "--ckpt_path: the reference in the checkpoint")
            self._frozen.model.load_state_dict(state, strict=False)
            self._synced = True
