"""The reference policy: what the policy was at the start of training, never a reload by name.

Its log-probs come from the policy with its adapter off, from a frozen copy, or from a file that one pass before
training fills: in the run's own precision, continued where it was interrupted, and shared by later runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.reference_cache import cached_logprobs
from lit_posttrain.core.schedules import Schedule
from lit_posttrain.data.store.logprob_cache import TargetTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.identity import difference, fingerprint, identity_of
from lit_posttrain.models.policy import WrappedModel
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.weights import require_state
from lit_posttrain.ops.kl import k3
from lit_posttrain.rollout.engine import Sampling
from lit_posttrain.trainer_state import dry_run
from lit_posttrain.types import Response, Tree, TreeBatch

Reference = Literal["auto", "adapter_off", "copy", "cached"]

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


class ReferencedModule(PostTrainingModule):
    """Base class of the methods that compare the policy with what it was at the start of training."""

    def __init__(
        self,
        policy: ModelSpec,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        warmup: float,
        reference: Reference,
    ) -> None:
        """
        Args:
            policy: The model to train.
            optimizer: Any torch optimizer, such as torch.optim.AdamW with its learning rate.
            schedule: How the learning rate falls after warm-up, per optimizer step.
            warmup: Share of all optimizer steps over which the learning rate rises from zero.
            reference: Where the reference's log-probs come from: adapter_off, copy, cached (on disk, by one pass before
                training), or auto: adapter_off where there are adapters, else copy.
        """
        super().__init__(policy, optimizer, schedule, warmup)
        adapter = policy.lora is not None
        if policy.random_init:
            raise PostTrainError(
                "--model.policy.random_init: a reference must be the same after a resume; start from a saved model"
            )
        if reference == "adapter_off" and not adapter:
            raise PostTrainError("--model.reference adapter_off: there is no adapter; add --model.policy.lora.r 16")
        self.reference = ("adapter_off" if adapter else "copy") if reference == "auto" else reference
        self.referenced = True  # a method may do without
        self._frozen: list[WrappedModel] = []  # in a list, so that it is no submodule: neither trained nor saved
        self._synced = False

    @property
    def method_options(self) -> dict[str, Any]:
        """As the base class has them, without where the reference comes from: it is the same, and checked by its
        hash."""
        return {name: value for name, value in super().method_options.items() if name != "reference"}

    # Building ----------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the policy, and the reference before anything is restored into it.

        Raises:
            PostTrainError: if the tokenizer brings tokens that the model lacks: their embeddings are drawn each time.
        """
        known = self.model_config.get_text_config(decoder=True).vocab_size
        if self.reference != "adapter_off" and len(self.tokenizer) > known:
            raise PostTrainError(
                f"the tokenizer has {len(self.tokenizer)} tokens and the model {known}: a reference with embeddings "
                "drawn anew would differ after a resume; fine-tune the new tokens first (SFT), start from that model"
            )
        fresh = self.policy is None
        super().configure_model()
        if not fresh or not self.referenced:
            return
        assert self.policy is not None
        if "policy" not in self.frozen:
            self.frozen["policy"] = identity_of(self.policy)
        # a checkpoint that is only measured has moved away from what a cache would be made with
        if self.reference == "copy" or (self.reference == "cached" and not self._caching):
            self._freeze()

    def _freeze(self) -> None:
        assert self.policy is not None
        # sharded parameters cannot be copied as they are; built from the same spec they are the same
        frozen = copy.deepcopy(self.policy) if self.device_mesh is None else self.build_policy()
        self._frozen = [frozen.requires_grad_(False).eval()]

    @property
    def _caching(self) -> bool:
        trainer = self._attached_trainer()
        return trainer is not None and trainer.state.fn == TrainerFn.FITTING and not dry_run(trainer)

    # Using -------------------------------------------------------------------------------------------------------

    def reference_logprobs(self, batch: TreeBatch, **options: Any) -> Tensor:
        """(N,) log-probs of the batch's targets under the reference, without a graph; options of `Policy.forward`."""
        if self._frozen:
            return self._frozen_logprobs(batch, **options)
        if self.reference == "adapter_off":
            return self.base_model_logprobs(batch, **options)
        found = batch.per_target.get("reference")
        if found is None and batch.target_ids.numel():
            return self._rebuilt_logprobs(batch)  # of a data set that was not cached, such as one to test on
        return torch.zeros(0, device=batch.target_ids.device) if found is None else found

    def _frozen_logprobs(self, batch: TreeBatch, **options: Any) -> Tensor:
        assert self.policy is not None
        # in the policy's type: under bf16-true Lightning casts only what it knows of
        frozen = self._frozen[0].to(self.device)
        if frozen.transformer.dtype != self.policy.transformer.dtype:
            frozen.to(self.policy.transformer.dtype)
        with torch.no_grad():
            copied: Tensor = frozen(batch, **options).logprobs
        return copied

    def base_model_logprobs(self, batch: TreeBatch, **options: Any) -> Tensor:
        assert self.policy is not None
        model: Any = self.policy.model
        with self.eval_no_grad() as policy, model.disable_adapter() if self.spec.lora else nullcontext():
            bare: Tensor = policy(batch, **options).logprobs
        return bare

    def _rebuilt_logprobs(self, batch: TreeBatch) -> Tensor:
        if not self._frozen:
            rebuilt = self.build_policy().requires_grad_(False).eval()
            if told := difference(self.frozen["policy"], identity_of(rebuilt)):
                raise self.changed("policy", told)
            self._frozen = [rebuilt]
        return self._frozen_logprobs(batch)

    @property
    def frozen_weights(self) -> dict[str, list[Tensor]]:
        """By what they are the parameters of frozen models in memory: of the reference where it is a copy."""
        return {"reference": [value for model in self._frozen for value in model.parameters()]} if self._frozen else {}

    def track_distance(self, log_ratios_N: Tensor, batch: TreeBatch) -> None:
        """The metric kl/batch: the mean of k3 over the trained tokens of the batch's responses (nats a token). It is a
        distance on given responses; a KL would be a mean over the policy's own, see `sampled_log_ratios`."""
        found = k3(log_ratios_N.detach()[batch.target_response >= 0])
        self.track("kl/batch", found.sum(), float(len(found)))

    @property
    def scores_fresh_text(self) -> bool:
        """Whether the reference is at hand for text that is not in the data; a cache without adapters is not."""
        return self.reference != "cached" or self.spec.lora is not None

    def sampled_log_ratios(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int) -> list[Tensor]:
        """(tokens,) log pi - log pi_ref (nats, on the device) of every token of one fresh response to each prompt
        (token ids), drawn at temperature 1 and scored as training scores. With several processes, call it on all."""
        drawn = [found[0].tokens for found in self.generate(prompts, Sampling(max_new_tokens, seed=seed))]
        trees = [
            Tree(np.array(prompt, np.int32), [Response(np.array(said, np.int32), np.ones(len(said), np.bool_))])
            for prompt, said in zip(prompts, drawn, strict=True)
        ]
        ratios: list[Tensor] = []
        for start in range(0, len(trees), _SCORED_TOGETHER):
            batch = collate(trees[start : start + _SCORED_TOGETHER], self.layout, {}).to(self.device)
            with self.trainer.precision_plugin.forward_context(), self.eval_no_grad() as policy:
                reference = self.base_model_logprobs if self.reference == "cached" else self.reference_logprobs
                found = policy(batch).logprobs - reference(batch)
            ratios += found.split(batch.target_response.bincount(minlength=batch.num_responses).tolist())
        return ratios

    @contextmanager
    def eval_no_grad(self) -> Iterator[WrappedModel]:
        """The policy without a graph and without dropout: what is measured with is no game of chance."""
        assert self.policy is not None
        training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad():
                yield self.policy
        finally:
            self.policy.train(training)

    # The cache ---------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Check the data, and fill what the cache lacks.

        Raises:
            PostTrainError: for a data module that keeps no rows.
        """
        super().on_fit_start()
        if self.reference != "cached" or not self._caching:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, KeepsTargets):
            raise PostTrainError(
                f"--model.reference cached needs PreferenceData, not {type(data).__name__}; use --model.reference copy"
            )
        assert self.policy is not None
        # a policy that is resumed or trained once more has moved on: what the cache lacks takes the weights anew
        still = not difference(self.frozen["policy"], identity_of(self.policy))
        about = {"weights": fingerprint(self.frozen["policy"]), "precision": str(self.trainer.precision)}
        for trees in data.target_trees:
            trees.reference = cached_logprobs(
                trees,
                data.reference_folder,
                about,
                self.base_model_logprobs if still else self._rebuilt_logprobs,
                self.trainer,
                self.layout,
                data.eval_batch_size,
            )
        self._frozen = []

    # Resuming and syncing ----------------------------------------------------------------------------------------

    def check_sync(self, mix: float) -> None:
        """Refuse what `sync_reference` cannot do.

        Raises:
            PostTrainError: for no reference, one that is no copy, sharded weights, and a soft update of adapters, whose
                mixture is not that of the weights which they stand for.
        """
        if not self.referenced:
            raise PostTrainError("ReferenceSync: there is no reference to move; --model.beta above 0 makes one")
        if self.reference != "copy":
            raise PostTrainError(
                f"a reference that is {self.reference} cannot follow the policy; --model.reference copy"
            )
        if self.device_mesh is not None:
            raise PostTrainError("ReferenceSync does not work with FSDP2 yet; use --trainer.strategy ddp")
        if mix < 1 and self.spec.lora is not None:
            raise PostTrainError(f"ReferenceSync: mix {mix} of adapters is no mix of weights; take mix 1, or no lora")

    def sync_reference(self, mix: float) -> None:
        """Move the frozen copy towards the policy: reference <- mix * policy + (1 - mix) * reference (TR-DPO,
        Gorbatovski et al. 2024)."""
        assert self.policy is not None
        with torch.no_grad():
            theirs = dict(self._frozen[0].named_parameters())
            for name, parameter in self.policy.named_parameters():
                if parameter.requires_grad:
                    theirs[name].lerp_(parameter.detach().to(theirs[name]), mix)
        self._synced = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add a reference that has followed the policy."""
        super().on_save_checkpoint(checkpoint)
        if self._synced:
            trained = {name for name, p in self.policy.named_parameters() if p.requires_grad} if self.policy else set()
            state = self._frozen[0].state_dict()
            checkpoint["reference"] = {name: state[name] for name in sorted(trained)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore a reference that has followed the policy.

        Raises:
            PostTrainError: if the model at the path has changed meanwhile, or the reference cannot follow.
        """
        super().on_load_checkpoint(checkpoint)
        if "reference" in checkpoint and self.reference != "copy":
            raise PostTrainError(
                f"the checkpoint's reference has followed the policy, and one that is {self.reference} cannot; resume "
                "with --model.reference copy"
            )
        if "reference" in checkpoint and self._frozen:  # beta 0, which may be measured, has none
            assert self.policy is not None
            require_state(self.policy, checkpoint["reference"], "--ckpt_path: the reference in the checkpoint")
            self._frozen[0].load_state_dict(checkpoint["reference"], strict=False)
            self._synced = True

    def changed(self, name: str, told: str) -> PostTrainError:
        """As the base class has it; without adapters it is the reference alone that is frozen."""
        if self.spec.lora is not None or name != "policy":
            return super().changed(name, told)
        return PostTrainError(
            f"--model.policy.path {self.spec.path}: another model than when the run began ({told}), and it is the "
            "reference; pass the same --model.policy, bring its old files back, or start anew"
        )
