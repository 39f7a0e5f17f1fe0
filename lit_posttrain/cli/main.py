"""The `lit-posttrain` command.

`fit`, `validate`, `test` and `predict` are LightningCLI (cli/training.py); the other subcommands are plain functions in
cli/commands. This file only finds the right one, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from lit_posttrain import __version__
from lit_posttrain.cli.failures import BEFORE_STEPS, buried, of_system
from lit_posttrain.cli.parsing.early import check_run
from lit_posttrain.cli.parsing.paths import at_home
from lit_posttrain.cli.parsing.spelling import close_name
from lit_posttrain.errors import PostTrainError, is_on_all_ranks
from lit_posttrain.runtime import share_cores

TRAINER_COMMANDS = {
    "fit": "Train: lit-posttrain fit --config configs/sft.yaml --data.path my.jsonl",
    "validate": "Compute the metrics of a checkpoint on the validation data.",
    "test": "Compute the metrics of a checkpoint on the test data.",
    "predict": "Write the log-probability of every response of a file; of a reward model its score.",
}
OTHER_COMMANDS = {
    "audit": "Read, tokenise and report on the data of a config, without training.",
    "export": "Turn a checkpoint into a Hugging Face folder.",
    "generate": "Answer prompts from a file or the command line, as JSON lines.",
    "score": "Score the responses of a file with a reward model, as JSON lines.",
    "annotate": "Open a page on which people rank, compare, rate or write responses.",
    "judge": "Let a model judge the responses of a file: preference data, as JSON lines.",
    "agree": "Measure how far people and judges agree, and what biases them.",
    "revise": "Criticise and revise responses by principles: data for SFT and DPO.",
    "feedback": "Convert votes from and to Argilla and Label Studio.",
    "chat": "Talk to a model folder or a checkpoint in the terminal.",
    "configs": "List the ready-made configs, or copy one to edit.",
}
# the page of a command says what the last two, which jsonargparse makes, would say
HELP = ("-h", "--help", "--data.columns.help", "--model.policy.lora.help")
_ERROR_EXIT, _INTERRUPT_EXIT, _BROKEN_PIPE_EXIT = 2, 130, 141


def usage() -> str:
    """The overview that `--help` prints."""
    width = max(len(name) for name in (*TRAINER_COMMANDS, *OTHER_COMMANDS))
    lines = ["usage: lit-posttrain COMMAND [OPTIONS]", "", "Post-training of language models.", "", "commands:"]
    lines += [f"  {name:<{width}}  {text}" for name, text in (TRAINER_COMMANDS | OTHER_COMMANDS).items()]
    lines += [
        "",
        "options:",
        "  --traceback  Show where in the code an error came from.",
        "  --version    Show the version.",
        "",
        "`lit-posttrain COMMAND --help` explains every option of a command.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status: 0 done, 2 a mistake in input or setup, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in args or os.environ.get("LIT_POSTTRAIN_TRACEBACK") == "1"
    args = [_at_home(word) for word in args if word != "--traceback"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(f"lit-posttrain {__version__}")
        return 0
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for classes of one's own; at the end, so that it shadows nothing
    share_cores()
    try:
        asks_help = bool(set(HELP) & set(args))
        if args[0] in (*TRAINER_COMMANDS, "audit") and not asks_help:
            check_run(args)
        status = _command(args[0], asks_help)(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return _BROKEN_PIPE_EXIT
    except Exception as failure:
        problem = buried(failure) or of_system(failure)
        if problem is None:
            raise
        _give_up_a_full_output()
        if show_traceback:
            traceback.print_exc()
        if not is_on_all_ranks(problem) or _is_first_process():
            print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
        return _ERROR_EXIT
    except KeyboardInterrupt as stop:
        loads = args[0] == "fit" and "lit_posttrain.cli.training" not in sys.modules
        told = [BEFORE_STEPS] if loads else stop.args
        print(" ".join(["interrupted", *map(str, told)]), file=sys.stderr)
        return _INTERRUPT_EXIT


def _at_home(word: str) -> str:
    """`--out=~/x` as `--out ~/x`, where shells put the home folder themselves."""
    option, _, value = word.partition("=")
    return f"{option}={at_home(value)}" if word.startswith("--") and value else word


def _is_first_process() -> bool:
    """True in the process of rank 0; only it tells of what all of them fail at."""
    if "lightning" not in sys.modules:  # it would take seconds only to tell of a mistake
        known = (os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ)
        return int(next(known, "0")) == 0
    from lit_posttrain.cli.run_place import is_main_process

    return is_main_process()


def _give_up_a_full_output() -> None:
    """Discard further output if standard output cannot be written, such as a file on a full disk."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _output_is_closed() -> bool:
    """True if the reader of our output, such as `head`, has closed it; further output is then discarded."""
    asked = select.poll()
    asked.register(sys.stdout.fileno(), select.POLLOUT)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def _command(name: str, asks_help: bool) -> Callable[[list[str]], int]:
    if name in TRAINER_COMMANDS or (name == "audit" and asks_help):
        home = "lit_posttrain.cli.help" if asks_help else "lit_posttrain.cli.training"
        run: Callable[[list[str]], int] = import_module(home).run
        return run
    if name in OTHER_COMMANDS:
        command: Callable[[list[str]], int] = import_module(f"lit_posttrain.cli.commands.{name}").run
        return command
    if name.startswith("-"):
        raise PostTrainError(f"{name} stands before a command: say first what to do, as lit-posttrain fit {name} ...")
    close = close_name(name, [*TRAINER_COMMANDS, *OTHER_COMMANDS])
    hint = f"did you mean {close}?" if close else "see lit-posttrain --help"
    raise PostTrainError(f"unknown command {name}: {hint}")


if __name__ == "__main__":
    sys.exit(main())
