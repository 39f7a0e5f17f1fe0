"""A scripted server that speaks OpenAI's chat completions, and faults in front of it or of a real one.

It speaks HTTP itself, because frameworks do not let one cut a connection in the middle of a reply.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

Request = dict[str, Any]
Answer = tuple[int, Any]  # HTTP status, and what becomes JSON, or bytes as they are
Faults = Callable[[int, Request], str | None]  # of the number of a request, and the request

FAULTS = ("500", "429", "429 date", "hang", "cut", "cut inside", "garbage", "truncated", "drip", "stream", "empty")
RETRY_AFTER_S = 0.2  # that a 429 asks for


@dataclass
class Asked:
    """A request as the server has seen it."""

    request: Request
    fault: str | None
    time_s: float
    authorization: str
    headers: Mapping[str, str]
    answered: bool = False


@dataclass
class ModelServer:
    """What is asked of a running server. url: its base, to which clients append /chat/completions. most_at_once: the
    most requests under way at the same time."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0

    def count(self, fault: str | None = None) -> int:
        """Number of requests that met this fault, or none."""
        return sum(one.fault == fault for one in self.asked)


def completion(text: str, likely: Mapping[str, float] | None = None, finish_reason: str = "stop") -> dict[str, Any]:
    """A chat completion. likely: probabilities of its first token."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    if likely is not None:
        top = [{"token": token, "logprob": math.log(p)} for token, p in likely.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]}
    usage = {"prompt_tokens": 20, "completion_tokens": max(1, len(text.split()))}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def error(status: int, message: str, **more: Any) -> Answer:
    """An error as OpenAI's servers tell it."""
    return status, {"error": {"message": message, "type": "error", **more}}


@contextmanager
def serving(answer: Callable[[Request], Answer] | str, faults: Faults | None = None) -> Iterator[ModelServer]:
    """A server on the loopback, in a thread. answer: of a request's JSON; or the base URL of the server that answers
    in truth. faults: what befalls a request instead of its answer, or after it."""
    server = ModelServer()
    started, loops = threading.Event(), list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await _respond(server, answer, faults, reader, writer)
        writer.close()

    async def main() -> None:
        stop = asyncio.Event()
        listening = await asyncio.start_server(respond, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        loops.append((asyncio.get_running_loop(), stop))
        started.set()
        await stop.wait()
        listening.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


def planned(seed: int, rate: float, kinds: tuple[str, ...] = FAULTS) -> Faults:
    """Faults at random, of every kind equally often."""
    chance = random.Random(seed)
    return lambda number, request: chance.choice(kinds) if chance.random() < rate else None


async def _respond(
    server: ModelServer,
    answer: Callable[[Request], Answer] | str,
    faults: Faults | None,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    _, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    raw = await reader.readexactly(int(headers.get("content-length", 0)))
    request = json.loads(raw or b"{}")
    fault = faults(len(server.asked), request) if faults is not None else None
    asked = Asked(request, fault, time.monotonic(), headers.get("authorization", ""), headers)
    server.asked.append(asked)
    server._at_once += 1
    server.most_at_once = max(server.most_at_once, server._at_once)
    try:
        if fault in _BEFORE:
            await _BEFORE[fault](writer)
            return
        status, said = await _forwarded(answer, head, raw) if isinstance(answer, str) else answer(request)
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        if fault is not None:
            await _AFTER[fault](writer, body)
            return
        await _send(writer, status, body)
        asked.answered = True
    finally:
        server._at_once -= 1


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes, *headers: str, of: int | None = None) -> None:
    """of: the length that is told, where it is another one."""
    told = [
        f"HTTP/1.1 {status} X",
        "content-type: application/json",
        f"content-length: {len(body) if of is None else of}",
    ]
    writer.write("\r\n".join([*told, "connection: close", *headers, "", ""]).encode() + body)
    await writer.drain()


async def _overload(writer: asyncio.StreamWriter, wait: str) -> None:
    await _send(writer, 429, b'{"error": {"message": "slow down"}}', f"retry-after: {wait}")


async def _fails(writer: asyncio.StreamWriter) -> None:
    await _send(writer, 500, b"<html>Internal Server Error</html>")


async def _hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(600)


async def _cut(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _cut_inside(writer: asyncio.StreamWriter, body: bytes) -> None:
    await _send(writer, 200, body[: len(body) // 2], of=len(body))
    writer.transport.abort()


async def _garbage(writer: asyncio.StreamWriter, body: bytes) -> None:
    await _send(writer, 200, bytes(range(256)))


async def _truncated(writer: asyncio.StreamWriter, body: bytes) -> None:
    await _send(writer, 200, body[: len(body) // 2])


async def _drip(writer: asyncio.StreamWriter, body: bytes) -> None:
    """A byte now and then: no pause is long, and the whole takes longer than any deadline."""
    await _send(writer, 200, b"", of=len(body))
    for place in range(len(body)):
        writer.write(body[place : place + 1])
        await writer.drain()
        await asyncio.sleep(0.3)


async def _stream(writer: asyncio.StreamWriter, body: bytes) -> None:
    await _send(writer, 200, b'data: {"choices": [{"delta": {"content": "A"}}]}\n\ndata: \xff\xfe garb\n\n')


async def _empty(writer: asyncio.StreamWriter, body: bytes) -> None:
    await _send(writer, 200, b"")


_BEFORE: dict[str | None, Callable[[asyncio.StreamWriter], Awaitable[None]]] = {
    "500": _fails,
    "429": lambda writer: _overload(writer, str(RETRY_AFTER_S)),
    "429 date": lambda writer: _overload(writer, formatdate(time.time() + 1, usegmt=True)),
    "hang": _hang,
    "cut": _cut,
}
_AFTER: dict[str, Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]] = {
    "cut inside": _cut_inside,
    "garbage": _garbage,
    "truncated": _truncated,
    "drip": _drip,
    "stream": _stream,
    "empty": _empty,
}


async def _forwarded(base: str, head: str, raw: bytes) -> Answer:
    """What the real server answers."""
    url = urlsplit(base)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    first, *lines = head.rstrip("\r\n").split("\r\n")
    kept = [line for line in lines if line.partition(":")[0].lower() not in ("connection", "host", "accept-encoding")]
    writer.write("\r\n".join([first, f"host: {url.netloc}", "connection: close", *kept, "", ""]).encode() + raw)
    await writer.drain()
    try:
        answer = await reader.read()
    finally:
        writer.close()
    told, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in told.lower():
        body = _unchunked(body)
    return int(told.split(b" ", 2)[1]), body


def _unchunked(body: bytes) -> bytes:
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(body[:length])
        body = body[length + 2 :]
        if not length:
            break
    return b"".join(pieces)
