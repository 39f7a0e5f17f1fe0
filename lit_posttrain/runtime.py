"""What the command line sets up in its process: memory allocator, waiting of threads, precision by processor, quiet
libraries."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import warnings
from pathlib import Path

# mallopt parameters of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEEP = 2**31 - 1  # mallopt takes an int; 2 GiB
OPENMP_WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
SHORT_SPINS = {"GOMP_SPINCOUNT": "1000"}  # of GNU's OpenMP, which torch uses on Linux; some 20 microseconds


def tune_allocator() -> bool:
    """Let glibc keep freed memory in the process instead of giving it back and faulting it in again at every step.

    Large tensors are otherwise mapped and unmapped each time: up to half of a CPU training step. True if it was done
    (Linux with glibc only).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEEP), (_M_TOP_PAD, 2**28))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)


def share_cores() -> None:
    """Let OpenMP's threads sleep soon when they wait for one another, unless the environment says how they wait.

    Must come before torch is imported, which reads it once. By default a thread that has done its part computes on for
    milliseconds while it waits: on cores shared with other jobs it takes the time of the thread that it waits for.
    """
    if not OPENMP_WAITING & os.environ.keys():
        os.environ |= SHORT_SPINS


def fast_bfloat16_cpu() -> bool:
    """Whether the processor multiplies bfloat16 matrices faster than float32: with AMX, or AMD's AVX512-BF16.

    On an Intel processor with AVX512-BF16 and without AMX it was half as fast, on an AMD one twice as fast
    (docs/decisions.md).
    """
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in about or ("AuthenticAMD" in about and "avx512_bf16" in about)


def quiet_libraries() -> None:
    """Leave the console to the run: no device lines, tips and progress bars of loading."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("callbacks", "profilers"):  # what somebody asked to be told, such as a profile
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it recommends a package at every import
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")  # no validation data
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*Couldn't infer the batch indices.*")  # rows are named by their source
    warnings.filterwarnings("ignore", message=".*have no logger configured.*")  # `validate` prints its figures
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that overrides.*")
    # metrics of methods are reduced over the processes before they are logged
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\('(val|test)/.*sync_dist=True")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
