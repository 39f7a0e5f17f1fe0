"""`lit-posttrain revise`: responses, their critiques and their revisions by principles, as data for SFT and DPO."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lit_posttrain.cli.commands import call
from lit_posttrain.cli.commands.rows import prepare, refuse_existing, write
from lit_posttrain.cli.parsing.early import check_data, check_model
from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.spec import JudgeBudget, JudgeLimits, JudgeSpec
from lit_posttrain.runs.signals import run_terminable, terminable

if TYPE_CHECKING:
    from lit_posttrain.cli.commands.part import Part
    from lit_posttrain.data.modules.prompt_files import SourcedPrompt
    from lit_posttrain.feedback.revise import Chain, Reviser

_TOGETHER = 32  # prompts between two times that the chains are kept, at least


def revise(
    model: str,
    prompts: str,
    out: str,
    pairs: str | None = None,
    endpoint: str | None = None,
    api_key_env: str | None = None,
    constitution: str | None = None,
    rounds: int = 1,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    seed: int = 0,
    system: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
    timeout_s: float | None = None,
    retries: int = 6,
    limits: JudgeLimits | None = None,
    budget: JudgeBudget | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Let a model answer prompts, criticise its answers by principles, and revise them; conversations for SFT.

    Args:
        model: What answers, criticises and revises: a hub name, a model folder, a run's folder or a .ckpt file; with
            `endpoint`, the name of the model there.
        prompts: Prompts as `generate` takes them: a data file, or a .txt file with one prompt per line.
        out: File for the conversations, which end with the last revision; the column `chain` has the response, and the
            principle, critique and revision of every round. Until all are there they are kept in OUT.part, and the same
            command goes on from it.
        pairs: File for pairs too: the last revision is chosen, the first response rejected.
        endpoint: URL of an OpenAI-compatible server, such as http://localhost:8000/v1 (needs the extra `feedback`).
        api_key_env: Environment variable with the endpoint's key. Default: OPENAI_API_KEY for api.openai.com; other
            endpoints get no key.
        constitution: File with the principles (YAML or JSON). Default: principles that come with lit-posttrain.
        rounds: Critiques and revisions of every response, each by another principle that is drawn.
        max_new_tokens: Longest response, critique and revision, in tokens. What is cut off there is left out.
        temperature: 0 takes the most likely token every time, 1 samples from the model's own distribution.
        seed: The same seed draws the same principles and samples the same replies.
        system: System prompt for prompts that bring none.
        format: A function of your own that makes each row of --prompts one with recognised columns, by its import path,
            as in --data.format of fit.
        overwrite: Replace existing files, and chains in OUT.part that other options gave.
        timeout_s: Seconds that one call to an endpoint may take in all. Default: 30, and 1 more for every 10 tokens of
            `max_new_tokens`.
        retries: How often a failed call is repeated, with growing pauses, or those that the server asks for.
        limits: How fast the endpoint is asked.
        budget: What may be spent on the endpoint.
        cache_dir: Folder of the replies so far: the same question is never asked twice. Default: `judges` in
            $LIT_POSTTRAIN_CACHE, or ~/.cache/lit_posttrain/judges.
        trust_remote_code: Run Python code that comes with a hub model. Off unless you read that code.
    """
    if rounds < 1:
        raise PostTrainError(f"--rounds is {rounds}; it must be at least 1")
    spec = JudgeSpec(
        model,
        endpoint,
        api_key_env,
        max_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        timeout_s=timeout_s,
        retries=retries,
        limits=limits or JudgeLimits(),
        budget=budget or JudgeBudget(),
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
    )
    for file in (out, pairs):
        refuse_existing(file, overwrite, [prompts])
    if pairs is not None and Path(pairs).resolve() == Path(out).resolve():
        raise PostTrainError(f"--pairs {pairs}: --out is the same file; name another")
    if endpoint is None:
        check_model(model)
    if not Path(prompts).exists():
        check_data([prompts])
    # after what is refused without them: they load torch
    from lit_posttrain.cli.commands.part import Part, model_state
    from lit_posttrain.data.modules.prompt_files import read_prompts, refuse_columns
    from lit_posttrain.feedback.revise import Reviser, conversation_row, left_out, pair_row, refuse_unusable
    from lit_posttrain.judges.constitution import read_constitution
    from lit_posttrain.judges.transport import open_backend
    from lit_posttrain.judges.usage import Usage
    from lit_posttrain.runtime import quiet_libraries, tune_allocator

    principles = read_constitution(constitution)
    asked = read_prompts(prompts, system, format)
    refuse_columns(asked, ("messages", "prompt", "chosen", "rejected", "chain"))
    refuse_unusable(asked)
    for file in (out, pairs):
        prepare(file, overwrite, [prompts])
    quiet_libraries()
    tune_allocator()
    usage = Usage()
    backend = open_backend(spec, usage)
    reviser = Reviser(backend, principles, rounds, max_new_tokens, temperature, seed)
    made_by = {
        "model": model_state(model, trust_remote_code) if endpoint is None else [endpoint, model],
        "constitution": principles.hash,
        "options": [rounds, max_new_tokens, temperature, seed],
        "asked": [asdict(one) for one in asked],
    }
    part = Part(out, len(asked), "prompt", "revised", made_by, overwrite)
    with terminable(), part.until_written():
        try:
            chains = run_terminable(_chains(reviser, asked, part))
        finally:
            print(usage.told(), file=sys.stderr)
        kept = [(one, chain) for one, chain in zip(asked, chains, strict=True) if not chain.left_out]
        told = left_out(chains)
        if not kept:
            anew = f"remove {part.file} if it is calls that failed, else pass other options and --overwrite true"
            raise PostTrainError(f"nothing is left to keep: {told}; to begin anew, {anew}")
        if pairs is not None:
            write((pair_row(*one) for one in kept), pairs)
        write((conversation_row(*one) for one in kept), out)
    print(told or "nothing is left out", file=sys.stderr)
    return 0


async def _chains(reviser: Reviser, asked: list[SourcedPrompt], part: Part) -> list[Chain]:
    """All chains, of which those in the part are not made again."""
    from lit_posttrain.feedback.revise import Chain

    try:
        for first in range(len(part.known), len(asked), _TOGETHER):
            part.keep([asdict(chain) for chain in await reviser.chains(asked[first : first + _TOGETHER], first)])
    finally:
        await reviser.backend.close()
    return [Chain.of(kept) for kept in part.known]


def run(args: list[str]) -> int:
    """Entry point."""
    return call(revise, args)
