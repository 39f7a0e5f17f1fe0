"""The embedded engine: batched generation with the policy that is being trained.

Prompts are sorted by length so that a batch has little padding, each is computed once for its n samples, finished
sequences leave the batch, and every sampled token's log-probability is kept. transformers' own `generate` does none
of the last three, which is why the loop is written out here; model, cache and masks are transformers'. Architectures
that are not proven (models/architectures.py) may keep recurrent states: their prompts are batched by equal length and
computed once per sample, and nothing leaves a batch before its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.model_config import max_positions
from lit_posttrain.models.policy import Policy
from lit_posttrain.rollout.engine import Completion, Sampling, SamplingProgress, prompt_seed

# Sequences that ended leave the batch once they are this share of it: a smaller batch saves time, and moving the
# cache costs some.
_COMPACT_AT = 0.25


class HFEngine:
    """Generation with a `Policy` in this process.

    Args:
        policy: The model; its weights are used as they are, so there is nothing to update.
        eos_ids: Every id that ends a response.
        batch_size: How many sequences are decoded together.
        context: Opened once around a whole call: autocast keeps its casts of the weights for that long.
        any_rank: True if its argument is True on any rank. Sharded policies need every rank in every forward, so
            ranks that have finished keep taking part until none has work left.
        entries: How many entries of the vocabulary may be drawn, the first ones; all of them by default.
    """

    def __init__(
        self,
        policy: Policy,
        eos_ids: Sequence[int],
        *,
        batch_size: int = 32,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        any_rank: Callable[[bool], bool] | None = None,
        entries: int | None = None,
    ) -> None:
        self.policy, self.batch_size, self.context = policy, batch_size, context
        self.eos_ids = torch.tensor(sorted(eos_ids), dtype=torch.long)
        self.any_rank, self.entries = any_rank, entries
        # The caches of other models may hold recurrent states, which transformers neither copies nor selects, and which
        # padding may enter.
        self._shares = policy.architecture is not None
        self.version = 0
        self.progress: SamplingProgress = lambda *place: None

    def update_weights(self, version: int) -> None:
        """The weights are the policy's own; their version is noted."""
        self.version = version

    def sleep(self) -> None:
        """It holds nothing."""

    def close(self) -> None:
        """It holds nothing."""

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """n responses to each prompt (token ids), in the prompts' order. The policy's train/eval mode is restored.
        numbers: of each prompt its number among all that are answered with this seed; 0, 1, ... by default.

        Raises:
            PostTrainError: for n below 1, and a prompt that is empty or leaves no room in the model's length.
        """
        if n < 1:
            raise PostTrainError(f"n is {n}; it must be at least 1")
        self._refuse_together(prompts)
        training = self.policy.training
        self.policy.eval()
        try:
            with self.context():
                return self._generate(prompts, n, sampling, range(len(prompts)) if numbers is None else numbers)
        finally:
            self.policy.train(training)

    def _generate(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int]
    ) -> list[list[Completion]]:
        device = next(self.policy.parameters()).device
        self.eos_ids = self.eos_ids.to(device)
        batches = self._batches(prompts, n)
        total = len(batches)
        results: list[list[Completion]] = [[] for _ in prompts]
        while self._go_on(bool(batches)):
            members, done, samples = batches.pop(0) if batches else ([], 0, n)
            seeds = [prompt_seed(sampling.seed, numbers[i]) + done + k for i in members for k in range(samples)]
            shown = partial(self.progress, total - len(batches), total)
            drawn = self._decode_batch([prompts[i] for i in members], samples, sampling, seeds, device, shown)
            for place, index in enumerate(members):
                results[index] += drawn[place * samples : (place + 1) * samples]
        return results

    def batches(self, lengths: Sequence[int], size: int) -> list[list[int]]:
        """Indices of sequences with these lengths, at most `size` at a time, that can be computed together: neighbours
        in length, or of one length where padding is not safe."""
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        runs = [order]
        if not self._shares:
            runs = [list(same) for _, same in groupby(order, key=lambda i: lengths[i])]
        return [run[i : i + size] for run in runs for i in range(0, len(run), size)]

    def _batches(self, prompts: Sequence[Sequence[int]], n: int) -> list[tuple[list[int], int, int]]:
        """Which prompts are decoded together, and which samples of each (behind how many, and how many); of one prompt
        some of its samples, where all are more than a batch."""
        lengths = [len(prompt) for prompt in prompts]
        if n > self.batch_size:
            parts = [(done, min(self.batch_size, n - done)) for done in range(0, n, self.batch_size)]
            return [([i], done, samples) for (i,) in self.batches(lengths, 1) for done, samples in parts]
        return [(members, 0, n) for members in self.batches(lengths, self.batch_size // n)]

    def visible(self, mask: Tensor) -> Tensor | None:
        """The attention mask to hand to the model. Prompts of one length have no padding and need none, and recurrent
        models (Mamba) apply the mask of a whole sequence to a single token wrongly."""
        return mask if self._shares else None

    def _go_on(self, work_left: bool) -> bool:
        return work_left if self.any_rank is None else self.any_rank(work_left)

    def _decode_batch(
        self,
        prompts: list[Sequence[int]],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        device: torch.device,
        progress: Callable[[int, int], None],
    ) -> list[Completion]:
        """Prefill each prompt once, copy its cache n times, then one token a step for all that are unfinished."""
        count = len(prompts) * n
        copies = n if self._shares else 1
        limits = torch.tensor(
            [self._room(p, sampling) for p in prompts], dtype=torch.long, device=device
        ).repeat_interleave(n)
        ids, mask = left_pad([p for p in prompts for _ in range(n // copies)] or [[0]], device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.policy.decode(ids, self.visible(mask), positions, None)
        logits, cache = out.logits.repeat_interleave(copies, 0)[:count], out.cache
        if copies > 1 and count:
            cache.batch_repeat_interleave(copies)
        mask = mask.repeat_interleave(copies, 0)
        position = positions[:, -1:].repeat_interleave(copies, 0)
        longest = int(limits.max()) if count else 0
        chances = random_numbers(seeds, longest).to(device)
        alive = torch.arange(count, device=device)  # which sequence each row of the batch is
        tokens = torch.zeros(count, longest, dtype=torch.long, device=device)
        logprobs = torch.zeros(count, longest, dtype=torch.float32, device=device)  # in bf16-true too
        lengths = torch.zeros(count, dtype=torch.long, device=device)
        stopped = torch.zeros(count, dtype=torch.bool, device=device)
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        step = 0
        while True:
            if len(alive):
                drawn, logps = sample(logits[:, : self.entries], sampling, chances[alive, step])
                fresh = ~ended[alive]
                now = alive[fresh]
                tokens[now, step], logprobs[now, step] = drawn[fresh], logps[fresh]
                lengths[now] = step + 1
                stopped[now] = torch.isin(drawn[fresh], self.eos_ids)
                ended[now] = stopped[now] | (step + 1 >= limits[now])
                finished = ended[alive]
                done = int(finished.sum())
                if done == len(alive):
                    alive = alive[:0]
                elif self._shares and done >= _COMPACT_AT * len(alive):
                    keep = (~finished).nonzero()[:, 0]
                    alive, mask, position, drawn = alive[keep], mask[keep], position[keep], drawn[keep]
                    cache.batch_select_indices(keep)
            # asked once a step on every rank, so that all leave the loop together
            if not self._go_on(len(alive) > 0):
                break
            step += 1
            progress(step, longest)
            if len(alive) == 0:  # another rank is not done: take part in its forward
                self.policy.decode(ids[:1, -1:], self.visible(mask[:1, -1:]), positions[:1, :1], None)
                continue
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
            position = position + 1
            if cache is None:
                ids = torch.cat([ids, drawn[:, None]], 1)
                logits = self.policy.decode(ids, self.visible(mask), mask.cumsum(1) - 1, None).logits
            else:
                logits = self.policy.decode(drawn[:, None], self.visible(mask), position, cache).logits
        if self._go_on(bool(logprobs.isnan().any())):
            raise PostTrainError(
                "the policy's logits are not finite, so nothing can be drawn: its weights hold NaN, or overflow in "
                "this precision; go back to an earlier checkpoint, or take --trainer.precision bf16-mixed"
            )
        return [
            Completion(
                tokens[i, :size].tolist(), logprobs[i, :size].tolist(), "stop" if stop else "length", self.version
            )
            for i, (size, stop) in enumerate(zip(lengths.tolist(), stopped.tolist(), strict=True))
        ]

    def _refuse_together(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise on every rank if a prompt of any cannot be continued: a rank alone would leave the others waiting."""
        limit = max_positions(self.policy.config)
        problem = ""
        for prompt in prompts:
            if len(prompt) == 0:
                problem = "an empty prompt: there is nothing to continue; give it at least one token"
            elif limit is not None and len(prompt) >= limit:
                problem = f"a prompt of {len(prompt)} tokens, and the model takes {limit}: shorten it"
        if self._go_on(bool(problem)):
            raise PostTrainError(problem or "another process has a prompt that cannot be continued; see its message")

    def _room(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """How many tokens may follow a prompt: as many as asked for, and as the model has positions for."""
        limit = max_positions(self.policy.config)
        return sampling.max_new_tokens if limit is None else min(sampling.max_new_tokens, limit - len(prompt))


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """ids and mask (B, S) with the prompts at the right; what stands in the padding is never looked at."""
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(list(prompt), dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def random_numbers(seeds: Sequence[int], count: int) -> Tensor:
    """(len(seeds), count) float64, uniform in [0, 1). Every sequence has a seed of its own, so that what is drawn does
    not depend on what else is, on how many processes share the work, or on the device."""
    made = [torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(made) if made else torch.zeros(0, count, dtype=torch.float64)


def sample(logits: Tensor, sampling: Sampling, chances: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row of logits (B, V): ids (B,) and their log-probs (B,) under the distribution drawn from.
    chances: (B,) float64, uniform in [0, 1), which decide.

    Greedy decoding (temperature 0) reports the log-prob under the unscaled distribution.
    """
    scores = logits.float()
    if sampling.temperature == 0:
        ids = scores.argmax(-1)
        return ids, scores.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    scores = scores / sampling.temperature
    if sampling.top_k:
        floor = scores.topk(min(sampling.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < floor, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = scores.sort(-1, descending=True)
        weights = _fixed_point(ordered.softmax(-1))
        cumulative = weights.cumsum(-1)
        drop = cumulative - weights >= sampling.top_p * cumulative[:, -1:]
        scores = scores.masked_fill(drop.scatter(1, index, drop), -torch.inf)
    logps = scores.log_softmax(-1)
    # one number a row, looked up in the cumulative distribution: torch.multinomial draws one for every token of the
    # vocabulary, which took a sixth of a step of decoding on a CPU
    cumulative = _fixed_point(logps.exp()).cumsum(-1)
    place = (chances[:, None] * cumulative[:, -1:]).long()
    ids = torch.searchsorted(cumulative, place, right=True).clamp(max=scores.shape[-1] - 1)
    return ids[:, 0], logps.gather(1, ids)[:, 0]


def _fixed_point(probabilities: Tensor) -> Tensor:
    """Probabilities as integers, in units of 2^-48: on a GPU sums of integers come out the same in any order, and
    torch's deterministic mode refuses cumulative sums of floats."""
    return (probabilities * 2.0**48).long()  # exact: a power of two
