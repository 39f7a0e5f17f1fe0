"""Seconds and memory of distillation's divergence, forward and backward: 4,096 tokens, the head of SmolLM2-135M on both
sides, one thread.

    python benchmarks/divergence.py

Beside it the same on whole logits by autograd, and TRL's own operator. Memory is what lives at a time beyond the inputs
and their gradients, counted exactly (live_bytes.py). Seconds are the processor's, which other jobs change little:
medians of rounds in which the sides take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from live_bytes import LiveBytes
from torch import Tensor, nn
from torch.nn.functional import kl_div, linear, log_softmax
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from lit_posttrain.ops.divergence import divergence
from lit_posttrain.ops.head import HeadInputs

BETAS = {"forward KL": 0.0, "JSD, beta 0.5": 0.5, "reverse KL": 1.0}
Side = Callable[[HeadInputs, HeadInputs, float], Tensor]


def ours(student: HeadInputs, teacher: HeadInputs, beta: float) -> Tensor:
    """This project's operator."""
    return divergence(student, teacher, beta=beta).loss


def whole(side: HeadInputs) -> Tensor:
    """The matrix of a head."""
    assert side.weight is not None
    return side.weight


def whole_logits(student: HeadInputs, teacher: HeadInputs, beta: float) -> Tensor:
    """The definition, on matrices of logits."""
    p, q = (log_softmax(linear(side.hidden, whole(side)).float(), -1) for side in (student, teacher))
    if beta in (0.0, 1.0):
        return kl_div(*((p, q) if beta == 0 else (q, p)), reduction="sum", log_target=True)
    m = torch.lerp(p.exp(), q.exp(), beta).log()
    to_teacher, to_student = (kl_div(m, x, reduction="sum", log_target=True) for x in (q, p))
    return beta * to_teacher + (1 - beta) * to_student


def trl(student: HeadInputs, teacher: HeadInputs, beta: float) -> Tensor:
    """The operator of TRL's DistillationTrainer."""
    found: tuple[Tensor, ...] = ChunkedDivergenceFunction.apply(
        student.hidden, student.weight, None, teacher.hidden, teacher.weight, None, beta
    )
    return found[0].sum()


SIDES: dict[str, Side] = {"lit_posttrain": ours, "whole logits": whole_logits, "TRL": trl}


def measure(side: Side, beta: float, mixed: bool, tokens: int, vocabulary: int, frozen: bool) -> tuple[float, float]:
    """Seconds and MB of one forward and backward."""
    torch.manual_seed(0)
    hidden = [nn.Parameter(torch.randn(tokens, 576)) for _ in range(2)]
    heads = [nn.Parameter(0.05 * torch.randn(vocabulary, 576)) for _ in range(2)]
    for tensor in (hidden[1], heads[1], *heads[:frozen]):
        tensor.requires_grad_(False)
    live = LiveBytes([*hidden, *heads])
    live.backward = True  # gradients are made in the forward too
    start = time.process_time()
    with live:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            loss = side(HeadInputs(hidden[0], heads[0]), HeadInputs(hidden[1], heads[1]), beta)
        loss.backward()
    return time.process_time() - start, live.peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frozen", action="store_true", help="the student's head is not trained, as with LoRA")
    parser.add_argument("--side", action="append", choices=SIDES, help="only this one; may be given several times")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| precision | divergence | side | s | memory, MB |\n|---|---|---|---|---|")
    for mixed in (False, True):
        for name, beta in BETAS.items():
            runs: dict[str, list[tuple[float, float]]] = {side: [] for side in args.side or SIDES}
            for _ in range(args.rounds):
                for side, found in runs.items():
                    found.append(measure(SIDES[side], beta, mixed, args.tokens, args.vocabulary, args.frozen))
            for side, found in runs.items():
                seconds, memory = (statistics.median(values) for values in zip(*found, strict=True))
                precision = "bf16-mixed" if mixed else "float32"
                print(f"| {precision} | {name} | {side} | {seconds:.1f} | {memory:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
