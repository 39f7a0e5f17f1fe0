"""The engine of an on-policy method: begun when it is first needed, and given the policy's weights before it draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from lit_posttrain.core.frozen import FrozenModel
from lit_posttrain.core.generation import policy_engine
from lit_posttrain.core.model_module import ModelModule
from lit_posttrain.data.store.packing import collate
from lit_posttrain.distributed import together
from lit_posttrain.rollout.engine import Completion, Engine, EngineSpec, Sampling
from lit_posttrain.rollout.vllm_engine import PROBE, VLLMEngine, check_installed
from lit_posttrain.rollout.weights import check_transferable
from lit_posttrain.trainer_state import fitting
from lit_posttrain.types import Response, Tree


class Sampler:
    """Draws responses of a module's policy with the engine of a spec. With several processes every rank must call it
    alike. show: called as the hf engine draws tokens."""

    def __init__(self, module: ModelModule, spec: EngineSpec, show: Callable[..., None]) -> None:
        self.module, self.spec, self._show = module, spec, show
        self._engine: Engine | None = None
        self._other: FrozenModel | None = None
        self._room = 0  # tokens of the longest prompt with its response

    def check(self) -> None:
        """Refuse an engine that is not there, or a policy that it cannot have.

        Raises:
            PostTrainError: saying so.
        """
        if self.spec.name == "vllm":
            check_installed()
            check_transferable(self.module.model_spec)

    def answers(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int]
    ) -> list[list[Completion]]:
        """n responses of the policy as it is to each prompt (token ids); `numbers` as in `Engine.generate`."""
        if self._other is not None:
            module = self.module
            # it may have a head that is padded to more entries, of which the policy has no embeddings, or more tokens
            known = len(module.language_model.transformer.get_input_embeddings().weight)
            known = len(module.tokenizer) if self._other.more_tokens else known
            engine = policy_engine(module, self._other.ready(), module.eos_ids, self.spec.batch_size, entries=known)
            engine.progress = self._show
            return engine.generate(prompts, n, sampling, numbers)
        if self._engine is None:
            # fails on all ranks or on none: sharded ones compute together to hand over the weights
            self._engine = together(self.module.trainer, lambda: self._begun(sampling.max_new_tokens))
        self._engine.update_weights(self.module.trainer.global_step)
        return self._engine.generate(prompts, n, sampling, numbers)

    @contextmanager
    def drawing_from(self, other: FrozenModel | None) -> Iterator[None]:
        """Within it another model draws, by the hf engine, tokens that the policy's tokenizer has too; None leaves it
        to the policy."""
        self._other = other
        try:
            yield
        finally:
            self._other = None

    def make_room(self, tokens: int) -> None:
        """Prompt and response may be this long. vLLM, which has room for so many as it was begun for, begins anew if
        they are more. All ranks must ask alike."""
        if tokens > self._room:
            self._room = tokens
            if self.spec.name == "vllm":
                self.end()

    def rest(self) -> None:
        """It is not needed for a while."""
        if self._engine is not None:
            self._engine.sleep()

    def end(self) -> None:
        """It is not needed any more, or its weights may be others when it is needed again."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _begun(self, new_tokens: int) -> Engine:
        module, spec = self.module, self.spec
        own = module.engine(spec.batch_size)
        if spec.name == "hf":
            own.progress = self._show
            return own
        trainer: Any = module.trainer
        data = trainer.datamodule
        stores = [*data.val_stores.values(), *data.test_stores.values()]
        stores += [data.train_store] if fitting(trainer) else []
        self._room = max(self._room, *(int(store.prompt_lengths.max()) + new_tokens for store in stores))
        dtype = spec.dtype or {"bf": "bfloat16", "16": "float16"}.get(str(trainer.precision)[:2], "float32")
        return VLLMEngine(
            own.policy,
            own.eos_ids.tolist(),
            spec,
            dtype=dtype,
            longest=self._room,
            probe=module.tokenizer(PROBE)["input_ids"],
            score=self._scores,
            device=module.device,
            any_rank=own.any_rank,
        )

    def _scores(self, tokens: Sequence[int]) -> Tensor:
        """Log-probs of all tokens but the first under the policy as it is."""
        module = self.module
        said = Response(np.array(tokens[1:], np.int32), np.ones(len(tokens) - 1, np.bool_))
        batch = collate([Tree(np.array(tokens[:1], np.int32), [said])], module.layout, {}, [0]).to(module.device)
        with module.trainer.precision_plugin.forward_context(), module.eval_no_grad() as policy:
            found: Tensor = policy(batch).logprobs
        return found
