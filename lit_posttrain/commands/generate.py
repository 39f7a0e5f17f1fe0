"""`lit-posttrain generate`: answer prompts, as JSON lines."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lit_posttrain.arguments import take_options
from lit_posttrain.command_line.early import check_data, check_model
from lit_posttrain.commands import call
from lit_posttrain.commands.rows import prepare, refuse_existing, write
from lit_posttrain.errors import PostTrainError

_TOGETHER = 16  # prompts that are answered at once, at least


def generate(
    model: str,
    prompt: list[str] | None = None,
    prompts: str | None = None,
    out: str | None = None,
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    system: str | None = None,
    batch_size: int = 16,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    keep: Literal["best", "all", "pairs"] | None = None,
    rewards: list[Any] | None = None,
    reward_timeout: float = 60.0,
    cut_off: bool = False,
    min_reward: float | None = None,
) -> int:
    """Answer prompts with a model folder, hub name, run folder or checkpoint; one JSON object per prompt.

    Args:
        model: What answers: a hub name, a model folder, a .gguf file, a run's folder or a .ckpt file.
        prompt: A prompt, as plain text. May be given several times.
        prompts: Prompts as `fit` takes them for GRPO and PPO: a file, folder or data set with prompt, question,
            instruction, messages, ...; or a text file with one prompt a line. Other columns are kept in the output.
        out: File for the answers. Default: the console. Until all are there they are kept in OUT.part, and the same
            command goes on from it.
        n: Answers per prompt.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 takes the most likely token every time, 1 samples from the model's own distribution.
        top_p: Sample from the smallest set of tokens with this much probability.
        top_k: Sample from this many most likely tokens; 0 is all.
        seed: The same seed gives the same answers.
        system: System prompt for prompts that bring none.
        batch_size: How many answers are generated together.
        overwrite: Replace an existing file.
        trust_remote_code: Run Python code that comes with a hub model. Off unless you read that code.
        keep: Of the n answers to a prompt keep the best as a conversation for SFT, all with their ranks for a reward
            model, or the best and the worst as pairs for DPO. Needs --rewards.
        rewards: What the answers are judged by, such as --rewards+=MathAnswer. They see all columns of --prompts.
        reward_timeout: Seconds that a reward may take for the answers to 16 prompts.
        cut_off: Keep answers of max_new_tokens too, which were cut off: what learns from them learns to end anywhere.
        min_reward: Keep nothing of prompts whose best answer has less: 1, say, for right ones alone.
    """
    if (keep is None) != (not rewards):
        raise PostTrainError("--keep and --rewards go together: what is kept is what the rewards say")
    if keep is not None and (prompts is None or prompt or n < 2 or temperature == 0):
        raise PostTrainError(
            "--keep chooses among different answers to --prompts FILE: pass --n 8, say, and --temperature 1"
        )
    if not prompt and not prompts:
        raise PostTrainError("nothing to answer: give --prompt TEXT or --prompts FILE")
    if n < 1 or batch_size < 1:
        raise PostTrainError(f"--n is {n} and --batch_size is {batch_size}; both must be at least 1")
    refuse_existing(out, overwrite)
    check_model(model)
    if prompts and not Path(prompts).exists():
        check_data([prompts])
    # after what is refused without them: they load torch
    from lit_posttrain.best_of import chosen
    from lit_posttrain.chat import ChatModel
    from lit_posttrain.commands.answers import Answers, answered, row_of
    from lit_posttrain.data.asked import asked, read_prompts
    from lit_posttrain.rewards.total import RewardSum
    from lit_posttrain.rollout.engine import Sampling
    from lit_posttrain.runtime import quiet_libraries, tune_allocator

    conversations = [asked(text, system, "--prompt") for text in prompt or []]
    conversations += read_prompts(prompts, system) if prompts else []
    if keep is not None:
        judge = RewardSum(rewards or [], reward_timeout)
        judge.check(list(conversations[0].columns), conversations[0].source)
    prepare(out, overwrite)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    quiet_libraries()
    tune_allocator()
    chat = ChatModel(model, batch_size, trust_remote_code)
    made_by = {"model": model, "n": n, "sampling": asdict(sampling), "asked": [asdict(one) for one in conversations]}
    answers = Answers(
        lambda some, first: chat.answer(some, n, sampling, first), len(conversations), out, made_by, overwrite
    )
    if keep is None:
        rows = (
            row_of(one, said) for one, said in answered(conversations, answers, max(_TOGETHER, 4 * batch_size // n))
        )
        write(rows, out)
    else:
        judge.prepare(chat.device)
        found = chosen(conversations, answers, judge, keep, cut_off, min_reward)
        told = found.left_out(n * len(conversations), len(conversations), max_new_tokens, min_reward)
        if not found.rows:
            left = f"; the answers are kept in {answers.part}" if answers.part else ""
            raise PostTrainError(f"nothing is left to keep: {told}{left}")
        write(found.rows, out)
        print(told or "nothing is left out", file=sys.stderr)
    answers.close()
    return 0


def _rewards() -> Any:
    from lit_posttrain.rewards import Reward

    return list[Reward] | None


def run(args: list[str]) -> int:
    """Entry point."""
    prompts, rest = take_options(args, "--prompt")
    return call(generate, rest, {"rewards": _rewards}, prompt=prompts)
