"""Runs the page on a port of this machine, alone on its file of decisions, until it is interrupted."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import uvicorn

from lit_posttrain.data.feedback.log import FeedbackLog, read_decisions
from lit_posttrain.errors import PostTrainError
from lit_posttrain.feedback.annotate.answers import Question, answers_to
from lit_posttrain.feedback.annotate.board import Board
from lit_posttrain.feedback.annotate.guard import ORGANISER, Tokens
from lit_posttrain.feedback.annotate.routes import application
from lit_posttrain.feedback.annotate.tasks import Task
from lit_posttrain.runs.folder import lock
from lit_posttrain.runs.signals import terminable

SECRET = "LIT_POSTTRAIN_ANNOTATE_SECRET"  # makes the same links again; of the environment alone
_SHORTEST_SECRET = 16
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    tasks: Sequence[Task], question: Question, out: str, annotators: Sequence[str], overlap: float, seed: int,
    host: str, port: int,
) -> None:  # fmt: skip
    """Serve until a signal. Prints the links, one for each annotator and one for the statistics.

    Raises:
        PostTrainError: another server has the file, the file is no file of decisions or has answers to another
            question, or the port is taken.
    """
    secret = os.environ.get(SECRET)
    if secret and len(secret) < _SHORTEST_SECRET:
        raise PostTrainError(f"{SECRET} can be guessed; give it {_SHORTEST_SECRET} random characters or more")
    with alone(Path(out)), FeedbackLog(out) as log, closing(listening(host, port)) as listener:
        decisions, notes = read_decisions(out) if Path(out).stat().st_size else ([], [])
        for note in notes:
            print(note)
        items = {task.id for task in tasks}
        if any(d.item in items and d.judge is None and not answers_to(d, question) for d in decisions):
            raise PostTrainError(
                f"{out}: has decisions on these items in another --mode, or on other --criteria; choose another --out"
            )
        board = Board(tasks, decisions, overlap, seed)
        tokens = Tokens(annotators, secret)
        base = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        if host not in _LOOPBACK:
            print(f"--host {host}: other machines reach this page, and links and decisions travel unencrypted")
        print(f"items: {len(tasks)}, decided so far: {len(board.decisions())}, kept in {out}")
        width = max(len(name) for name in (*annotators, "statistics"))
        for name in annotators:
            print(f"  {name:<{width}}  {tokens.link(base, name)}")
        print(f"  {'statistics':<{width}}  {tokens.link(base, ORGANISER)}")
        print("Ctrl-C ends; the same command goes on from there.", flush=True)
        options = uvicorn.Config(
            application(board, log, question, tokens),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
        )
        try:
            with terminable():
                uvicorn.Server(options).run(sockets=[listener])
        except KeyboardInterrupt:  # which uvicorn raises once all requests are answered
            print(f"\ndecisions in {out}: {len(board.decisions())}")


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold `OUT.lock`, which one server has at a time. The system releases it when the process ends, however it ends.

    Raises:
        PostTrainError: another server holds it, or it cannot be made.
    """
    file = out.with_name(f"{out.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("a")
        lock(handle)
        if not file.exists() or not os.path.samestat(os.fstat(handle.fileno()), file.stat()):
            raise BlockingIOError  # the one that held it has just removed it
    except BlockingIOError:
        raise PostTrainError(
            f"{out}: another server keeps its decisions there; open its page, stop it, or choose another --out"
        ) from None
    except OSError as problem:
        raise PostTrainError(f"{file}: cannot be written ({problem.strerror}); choose another --out") from problem
    with handle:
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. port: 0 takes any that is free.

    Raises:
        PostTrainError: the port is taken, or the host is not this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise PostTrainError(f"--host {host} --port {port}: {reason}; choose another --port") from problem
