"""The server's routes: the page, the item to look at, and the decisions that come back."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from lit_posttrain.data.feedback.log import FeedbackLog
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError
from lit_posttrain.feedback.annotate.answers import SCALE, Question, decision_of, undo_of
from lit_posttrain.feedback.annotate.board import Board, Conflict
from lit_posttrain.feedback.annotate.guard import Guard, Tokens
from lit_posttrain.feedback.annotate.keeper import Keeper
from lit_posttrain.feedback.annotate.stats import Figures
from lit_posttrain.feedback.annotate.views import decided, view

PAGE = Path(__file__).parent / "page"
_PAUSE = 20  # between two counts of the statistics, in times that one takes: annotators come first
LARGEST_BODY = 1 << 20
_DISK_FULL, _TOO_LARGE, _UNPROCESSABLE, _CONFLICT = 507, 413, 422, 409


def application(board: Board, log: FeedbackLog, question: Question, tokens: Tokens) -> Guard:
    """The server as an ASGI application."""
    api = Api(board, log, question)
    routes = [
        Route("/", _file("index.html")),
        Route("/stats", _file("stats.html")),
        Route("/api/item", api.item),
        Route("/api/decision", api.decide, methods=["POST"]),
        Route("/api/undo", api.undo, methods=["POST"]),
        Route("/api/stats", api.stats),
        Mount("/page", StaticFiles(directory=PAGE)),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={Refused: _refused}), tokens)


class Refused(Exception):
    """A request that is answered with an error. The message is shown to the annotator."""

    def __init__(self, status: int, told: str, **more: str) -> None:
        super().__init__(told)
        self.status, self.answer = status, {"error": told, **more}


class Api:
    """What the page asks for and sends, as JSON."""

    def __init__(self, board: Board, log: FeedbackLog, question: Question) -> None:
        self.board, self.question = board, question
        self.keeper = Keeper(board, log)
        self._figures: dict[str, Any] = {}
        self._counting = asyncio.Lock()
        self._counted, self._counted_at, self._counted_s = -1, 0.0, 0.0  # changes of the board; when; how long it took
        self.place = hashlib.blake2b(str(log.path.resolve()).encode(), digest_size=8).hexdigest()

    async def item(self, request: Request) -> Response:
        """The item to look at, what is asked, and how far the annotator is."""
        return JSONResponse(await self._next(request.scope["annotator"]))

    async def decide(self, request: Request) -> Response:
        """Keep a decision, and answer with the next item. The same decision again is acknowledged again."""
        said, who = await _object(request)
        task = self.board.tasks.get(str(said.get("item")))
        if task is None:
            raise Refused(_UNPROCESSABLE, "the item is not among those of this server")
        await self._keep(lambda: decision_of(said, task, who, self.question))
        return JSONResponse(await self._next(who))

    async def undo(self, request: Request) -> Response:
        """Take back a decision, and answer with its item and what was decided."""
        said, who = await _object(request)
        await self._keep(lambda: undo_of(said, who))
        undone = self.board.taken_back(who)
        return JSONResponse(await self._next(who, undone if undone and undone.id == said["undoes"] else None))

    async def stats(self, request: Request) -> Response:
        """How the annotators get on and agree."""
        async with self._counting:  # once for all that ask
            changed = self.board.changes != self._counted
            if changed and time.monotonic() - self._counted_at >= _PAUSE * self._counted_s:
                start, self._counted = time.monotonic(), self.board.changes
                figures = Figures(self.board.decisions(), list(self.board.tasks.values()), self.board.missing())
                self._figures = await run_in_threadpool(figures.all)
                self._counted_at = time.monotonic()
                self._counted_s = self._counted_at - start
            return JSONResponse(self._figures)

    async def _keep(self, read: Callable[[], Decision]) -> None:
        try:
            decision = read()
        except BadRow as problem:
            raise Refused(_UNPROCESSABLE, str(problem)) from problem
        try:
            await self.keeper.keep(decision)
        except Conflict as problem:
            raise Refused(_CONFLICT, str(problem)) from problem
        except PostTrainError as problem:
            raise Refused(_DISK_FULL, str(problem)) from problem

    async def _next(self, who: str, before: Decision | None = None) -> dict[str, Any]:
        """before: what the annotator has taken back, which they begin with."""
        task, progress = self.board.next(who), self.board.progress(who)
        shown = await run_in_threadpool(view, task, self.board.order(who, task)) if task is not None else None
        last = self.board.last(who)
        return {
            "item": shown,
            "before": decided(before) if before is not None and task is not None and before.item == task.id else None,
            "annotator": who,
            "place": self.place,  # the browser keeps what is unsent for the file to which it belongs
            "mode": self.question.mode,
            "criteria": list(self.question.criteria),
            "scale": list(SCALE),
            "guidelines": self.question.guidelines,
            "progress": {"done": progress.done, "left": progress.left, "pace_s": progress.pace_s},
            "last": {"id": last.id, "item": last.item} if last is not None else None,
        }


async def _object(request: Request) -> tuple[dict[str, Any], str]:
    """The JSON object that a request brings, and the annotator, who is the one for whom the page was opened."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > LARGEST_BODY:
            raise Refused(_TOO_LARGE, f"the decision has more than {LARGEST_BODY >> 20} MiB; shorten it")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as problem:
        raise Refused(_UNPROCESSABLE, "the request is not valid JSON") from problem
    if not isinstance(value, dict):
        raise Refused(_UNPROCESSABLE, "the request is no JSON object")
    who = str(request.scope["annotator"])
    if value.pop("annotator", who) != who:  # a browser has one cookie, and may show the pages of two
        raise Refused(_CONFLICT, f"this browser now belongs to {who}", belongs_to=who)
    return value, who


def _file(name: str) -> Any:
    async def answer(request: Request) -> Response:
        return FileResponse(PAGE / name)

    return answer


async def _refused(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Refused)
    return JSONResponse(problem.answer, problem.status)
