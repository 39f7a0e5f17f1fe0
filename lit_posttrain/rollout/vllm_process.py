"""The process in which vLLM lives, from the trainer's side: requests to it, and what it answers."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lit_posttrain.errors import PostTrainError

# what says that a process is one of several
_DISTRIBUTED = {
    *("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "TORCHELASTIC_USE_AGENT_STORE",
}


class VLLMProcess:
    """The other process. Once it has failed or was not waited for it is ended, and every further request says so."""

    def __init__(self, folder: Path, environment: dict[str, str], timeout: float) -> None:
        self.timeout, self.log = timeout, folder / "vllm.log"
        read, write = os.pipe()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lit_posttrain.rollout.vllm_worker", str(write)],
                stdin=subprocess.PIPE,
                bufsize=0,
                stdout=log,
                stderr=log,
                pass_fds=[write],
                env=environment,
                start_new_session=True,  # Ctrl-C is the trainer's to handle
            )
        os.close(write)
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)  # a pipe takes 64 kB, then waits for its reader
        self._pipe: int | None = read
        self._buffer, self.failed = b"", False

    @property
    def ended(self) -> bool:
        """True if it answers no more."""
        return self._pipe is None

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
        rest = memoryview(json.dumps(told).encode() + b"\n")
        end = time.monotonic() + self.timeout
        try:
            while rest:
                _, ready, _ = select.select([], [self.process.stdin], [], max(end - time.monotonic(), 0))
                if not ready:
                    self.end()  # it holds half of a request
                    raise self.problem(
                        f"vLLM has read no request for {self.timeout:g} s (--model.rollout.engine.timeout)"
                    )
                rest = rest[os.write(self.process.stdin.fileno(), rest) :]
        except (BrokenPipeError, ValueError):
            raise self._died() from None

    def expect(self, kind: str) -> Any:
        """The next answer. Whoever stops waiting for it ends the process: it would answer the next request.

        Raises:
            PostTrainError: for an error, a process that died, and one that says nothing.
        """
        try:
            return self._next()[kind]
        except BaseException:
            self.end()
            raise

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + self.timeout
        while b"\n" not in self._buffer:
            if self._pipe is None:
                raise self._died()
            ready, _, _ = select.select([self._pipe], [], [], max(end - time.monotonic(), 0))
            if not ready:
                raise self.problem(f"vLLM has not answered for {self.timeout:g} s (--model.rollout.engine.timeout)")
            more = os.read(self._pipe, 1 << 20)
            if not more:
                raise self._died()
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)  # it is about to end, and to write down why
            raise self.problem(f"vLLM: {found['error']}")
        return found

    def _died(self) -> PostTrainError:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)  # or it hangs as it ends
        self.end()
        return self.problem(f"vLLM's process ended with status {self.process.returncode}")

    def end(self) -> None:
        """Kill it: it holds nothing worth keeping."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def environment(device: torch.device) -> dict[str, str]:
    """Of the child: it is no rank of the trainer's, calls nobody, and computes where the policy does."""
    found = {name: value for name, value in os.environ.items() if name not in _DISTRIBUTED}
    found |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        found["CUDA_VISIBLE_DEVICES"] = visible[device.index or 0] if visible != [""] else str(device.index or 0)
    else:
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return found
