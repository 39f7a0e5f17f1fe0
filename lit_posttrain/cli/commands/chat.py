"""`lit-posttrain chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import Any

from lit_posttrain.cli.commands import call
from lit_posttrain.cli.parsing.early import check_model

_COMMANDS = "/reset starts anew, /exit or Ctrl-D ends."


def chat(
    model: str,
    system: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    seed: int = 0,
    trust_remote_code: bool = False,
    template_variables: dict[str, Any] | None = None,
) -> int:
    """Talk to a model folder, hub name, run folder or checkpoint. /reset starts anew, /exit or Ctrl-D ends.

    Args:
        model: What answers: a hub name, a model folder, a .gguf file, a run's folder or a .ckpt file.
        system: System prompt.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 takes the most likely token every time, 1 samples from the model's own distribution.
        seed: The same seed and the same words give the same conversation.
        trust_remote_code: Run Python code that comes with a hub model. Off unless you read that code.
        template_variables: Values for variables of the chat template, such as '{enable_thinking: false}'. A checkpoint
            and an exported folder keep those of the training.
    """
    check_model(model)
    from lit_posttrain.inference.chat import ChatModel
    from lit_posttrain.rollout.engine import Sampling
    from lit_posttrain.runtime import quiet_libraries, tune_allocator

    sampling = Sampling(max_new_tokens, temperature, seed=seed)
    quiet_libraries()
    tune_allocator()
    talker = ChatModel(model, trust_remote_code=trust_remote_code, template_variables=template_variables)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    print(_COMMANDS)
    while True:
        try:
            said = input("\nyou> ").strip()
        except EOFError:
            print()
            return 0
        if said in ("/exit", "/quit"):
            return 0
        if said == "/reset":
            messages = list(opening)
            continue
        if said.startswith("/"):
            print(f"{said.split()[0]}: not a command; {_COMMANDS}")
            continue
        if not said:
            continue
        messages.append({"role": "user", "content": said})
        answer = talker.answer([messages], 1, sampling)[0][0]
        messages.append(answer.message)
        cut = "" if answer.finish_reason == "stop" else f"  [cut at {max_new_tokens} tokens]"
        if answer.thought.strip():
            print(f"\nthought> {answer.thought.strip()}")
        print(f"\nmodel> {answer.text.strip()}{cut}")


def run(args: list[str]) -> int:
    """Entry point."""
    return call(chat, args)
