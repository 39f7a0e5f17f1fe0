"""How two sides are measured alike: in turn, each run a process of its own, in the same arithmetic, by the same clock.

Every script of one side reads its clock with `now` and its memory with `peak_mb`; every script that compares sides adds
`add_arithmetic`'s options and starts each run with `run`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_posttrain.runtime import OPENMP_WAITING, SHORT_SPINS

if TYPE_CHECKING:
    from lit_posttrain.models.spec import DType

HERE = Path(__file__).parent
# freed memory stays in the process, on both sides (see lit_posttrain.runtime.tune_allocator)
ALLOCATOR = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
WEIGHTS: dict[str, DType] = {"bf16-mixed": "bfloat16", "32-true": "float32"}
_CPU_SECONDS = "LIT_POSTTRAIN_BENCHMARK_CPU_SECONDS"


def add_arithmetic(parser: argparse.ArgumentParser) -> None:
    """Options of precision and clock that both sides are run with."""
    parser.add_argument(
        "--precision",
        default="bf16-mixed",
        choices=list(WEIGHTS),
        help="bf16-mixed: bfloat16 weights and arithmetic. 32-true: float32, for processors without fast bfloat16",
    )
    parser.add_argument(
        "--cpu-seconds",
        action="store_true",
        help="one thread, and CPU seconds instead of seconds: comparable beside other jobs",
    )
    parser.add_argument("--busy", type=int, default=0, help="so many processes that keep a core busy run beside it")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set for both sides")


def with_other(sides: dict[str, list[str]], options: argparse.Namespace) -> dict[str, list[str]]:
    """The sides and, after ours, that of the checkout named by `--other`."""
    if not options.other:
        return sides
    script, *extra = sides["lit_posttrain"]
    other = [str(Path(options.other).resolve() / HERE.name / script), *extra]
    return {"lit_posttrain": sides["lit_posttrain"], "other checkout": other, **sides}


def run(command: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The figures that a script prints as its last line; the package is that of the script's own checkout."""
    script = HERE / command[0]
    environment = {**os.environ, "GLIBC_TUNABLES": ALLOCATOR, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = str(script.parent.parent)
    if script.name.endswith("_ours.py") and not OPENMP_WAITING & environment.keys():
        environment |= SHORT_SPINS  # which `lit-posttrain` sets before it imports torch
    environment |= dict(pair.split("=", 1) for pair in options.env)
    if options.cpu_seconds:
        environment |= {_CPU_SECONDS: "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(script), *command[1:]]
    with busy(options.busy):
        done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=script.parent)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    others = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()


def _compute() -> None:
    while True:
        sum(range(10_000))


def now() -> float:
    """Seconds, once the device has done what it was asked; CPU seconds of this process with `--cpu-seconds`."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if os.environ.get(_CPU_SECONDS) else time.perf_counter()


def peak_mb() -> float:
    """Most memory that this process has used: of the GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def model_folder(path: str, folder: Path) -> str:
    """A dense folder of the model that both sides load."""
    from lit_posttrain.models.loading import build_policy
    from lit_posttrain.models.spec import ModelSpec
    from lit_posttrain.models.tokenizers import load_tokenizer
    from lit_posttrain.runtime import quiet_libraries

    if Path(path).is_dir():
        return path
    quiet_libraries()
    tokenizer = load_tokenizer(ModelSpec(path))
    build_policy(ModelSpec(path), len(tokenizer)).transformer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
