"""`lit-posttrain generate`: answer prompts, as JSON lines."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lit_posttrain.cli.arguments import take_options
from lit_posttrain.cli.commands import LateType, call
from lit_posttrain.cli.commands.rows import prepare, refuse_existing, write
from lit_posttrain.cli.parsing.early import check_data, check_model
from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.signals import terminable

_TOGETHER = 16  # prompts that are answered at once, at least
# columns of the output, by what is kept
_NAMES = {
    None: ("prompt", "responses"),
    "best": ("messages", "reward"),
    "all": ("prompt", "responses"),
    "pairs": ("prompt", "chosen", "rejected", "reward"),
}


def generate(
    model: str,
    prompt: list[str] | None = None,
    prompts: str | None = None,
    format: str | None = None,
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
    reward_timeout: float | None = None,
    cut_off: bool = False,
    min_reward: float | None = None,
    template_variables: dict[str, Any] | None = None,
) -> int:
    """Answer prompts with a model folder, hub name, run folder or checkpoint; one JSON object per prompt.

    Args:
        model: What answers: a hub name, a model folder, a .gguf file, a run's folder or a .ckpt file.
        prompt: A prompt, as plain text. May be given several times.
        prompts: Prompts as `fit` takes them for GRPO and PPO: a file, folder or data set with prompt, question,
            instruction, messages, ...; or a .txt file with one prompt per line. Other columns are kept in the output.
        format: A function of your own that makes each row of --prompts one with recognised columns, by its import path,
            as in --data.format of fit.
        out: File for the answers. Default: the console. Until all are there they are kept in OUT.part, and the same
            command goes on from it.
        n: Answers per prompt.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 takes the most likely token every time, 1 samples from the model's own distribution.
        top_p: Sample from the smallest set of tokens with this much probability.
        top_k: Sample from this many most likely tokens; 0 is all.
        seed: The same seed gives the same answers.
        system: System prompt for prompts that bring none.
        batch_size: Number of answers that are generated together.
        overwrite: Replace an existing file, and answers in OUT.part that other options gave.
        trust_remote_code: Run Python code that comes with a hub model. Off unless you read that code.
        keep: Of the n answers to a prompt keep the best as a conversation for SFT, all with their ranks for a reward
            model, or the best and the worst as pairs for DPO. Needs --rewards.
        rewards: Rewards that score the answers, such as --rewards+=MathAnswer. They see all columns of --prompts.
        reward_timeout: Seconds that a reward may take for the answers to 16 prompts. Default: 60.
        cut_off: Keep answers of max_new_tokens too, which were cut off: what learns from them learns to end anywhere.
        min_reward: Keep nothing of prompts whose best answer has less: 1, say, for right ones alone.
        template_variables: Values for variables of the chat template, such as '{enable_thinking: false}'. A checkpoint
            and an exported folder keep those of the training.
    """
    if (keep is None) != (not rewards):
        raise PostTrainError("--keep and --rewards go together: what is kept is what the rewards say")
    if keep is not None and (prompts is None or prompt or n < 2 or temperature == 0):
        raise PostTrainError(
            "--keep chooses among different answers to --prompts FILE: pass --n 8, say, and --temperature 1"
        )
    asked_for = {"--reward_timeout": reward_timeout, "--cut_off": cut_off or None, "--min_reward": min_reward}
    if keep is None and (unused := [name for name, value in asked_for.items() if value is not None]):
        raise PostTrainError(
            f"{unused[0]} says what --keep keeps, and --keep is not given: pass it too, or leave both out"
        )
    if format is not None and not prompts:
        raise PostTrainError(
            f"--format {format} reads the rows of --prompts, which is not given: pass it, or leave both out"
        )
    if not prompt and not prompts:
        raise PostTrainError("nothing to answer: give --prompt TEXT or --prompts FILE")
    if n < 1 or batch_size < 1:
        raise PostTrainError(f"--n is {n} and --batch_size is {batch_size}; both must be at least 1")
    refuse_existing(out, overwrite, [prompts] if prompts else [])
    check_model(model)
    if prompts and not Path(prompts).exists():
        check_data([prompts])
    if n > 1 and temperature == 0:
        raise PostTrainError(f"--n {n} at temperature 0 gives the same answer {n} times; pass --temperature 1, say")
    # after what is refused without them: they load torch
    from lit_posttrain.cli.commands.answers import Answers, answered, row_of
    from lit_posttrain.cli.commands.part import Part, model_state
    from lit_posttrain.data.modules.prompt_files import first_of_each_file, read_prompts, refuse_columns, user_prompt
    from lit_posttrain.inference.best_of import chosen
    from lit_posttrain.inference.chat import ChatModel
    from lit_posttrain.rewards.total import RewardSum
    from lit_posttrain.rollout.engine import Sampling
    from lit_posttrain.runtime import quiet_libraries, tune_allocator

    conversations = [user_prompt(text, system, f"--prompt:{n}") for n, text in enumerate(prompt or [], 1)]
    conversations += read_prompts(prompts, system, format) if prompts else []
    refuse_columns(conversations, _NAMES[keep])
    if keep is not None:
        judge = RewardSum(rewards or [], 60.0 if reward_timeout is None else reward_timeout)
        if not judge.weighted:
            raise PostTrainError(
                "--rewards: all have the weight 0, which measures and ranks nothing; give one another weight, such as 1"
            )
        for first in first_of_each_file(conversations):
            judge.check(list(first.columns), first.source)
        judge.check_rows(((one.source, one.columns) for one in conversations), skip=True)
    prepare(out, overwrite)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    quiet_libraries()
    tune_allocator()
    chat = ChatModel(model, batch_size, trust_remote_code, template_variables)
    for line in chat.check(conversations):
        print(line, file=sys.stderr)
    made_by = {
        "model": model_state(model, trust_remote_code),
        "template_variables": template_variables,
        "n": n,
        "sampling": asdict(sampling),
        "asked": [asdict(one) for one in conversations],
    }
    part = Part(out, len(conversations), "prompt", "answered", made_by, overwrite)
    answers = Answers(lambda some, first: chat.answer(some, n, sampling, first), part)
    with terminable(), part.until_written():
        if keep is None:
            together = max(_TOGETHER, 4 * batch_size // n)
            origin = {"model": model, "sampling": asdict(sampling)}
            write((row_of(one, said, origin) for one, said in answered(conversations, answers, together)), out)
            return 0
        judge.prepare(chat.device)
        found = chosen(conversations, answers, judge, keep, cut_off, min_reward)
        told = found.left_out(n * len(conversations), len(conversations), max_new_tokens, min_reward)
        if not found.rows:
            again = f"; to answer anew, with more tokens, say, pass --overwrite true: {part.file} keeps these answers"
            raise PostTrainError(f"nothing is left to keep: {told}{again if part.file is not None else ''}")
        write(found.rows, out)
        print(told or "nothing is left out", file=sys.stderr)
    return 0


def _rewards() -> LateType:
    from lit_posttrain.rewards import Reward

    return LateType(list[Reward] | None, {"reward": Reward})


def run(args: list[str]) -> int:
    """Entry point."""
    prompts, rest = take_options(args, "--prompt")
    if "--prompt+" in (word.partition("=")[0] for word in rest):
        raise PostTrainError("--prompt+: give --prompt TEXT once for each prompt")
    return call(generate, rest, {"rewards": _rewards}, prompt=prompts)
