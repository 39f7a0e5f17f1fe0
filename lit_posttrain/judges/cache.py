"""Replies on the disk, so that no question is asked twice: not by a rerun, a resumed run or another process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.backend import Backend, Call, Reply
from lit_posttrain.judges.usage import Usage

_VERSION = 1  # of what a key is made of, and of what is kept
_WAIT_S = 60.0  # for another process that writes


class Cached:
    """Calls of another backend, whose replies are kept in `replies.sqlite` of a folder, by a hash of the call and the
    backend's identity; questions themselves are not kept. Several processes may use one folder, and one that is killed
    loses at most the reply that it was about to write. A question that is under way is not sent again but waited for.
    """

    def __init__(self, inner: Backend, folder: Path, usage: Usage) -> None:
        """
        Raises:
            PostTrainError: the folder cannot be written, or the file in it is no cache.
        """
        self._inner, self._usage = inner, usage
        self._file = folder / "replies.sqlite"
        self._under_way: dict[str, asyncio.Future[Reply]] = {}
        with self._named():
            folder.mkdir(parents=True, exist_ok=True)
            # a reward's event loop is in another thread than the one that opens the file
            self._base = sqlite3.connect(self._file, _WAIT_S, isolation_level=None, check_same_thread=False)
            # a log that is written ahead keeps the file whole under SIGKILL without a wait for the disk at every reply
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT) WITHOUT ROWID")

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the inner backend."""
        return self._inner.identity

    async def ask(self, call: Call) -> Reply:
        """The reply to one call.

        Raises:
            CallFailed: as the inner backend. Failures are not kept.
            PostTrainError: the cache cannot be read or written.
        """
        key = key_of(call, self._inner.identity)
        while key in self._under_way:
            await asyncio.wait([self._under_way[key]])
        if (known := self._known(key)) is not None:
            self._usage.cached += 1
            return known
        coming = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._inner.ask(call)
            with self._named():
                kept = (key, json.dumps(asdict(reply)))
                self._base.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", kept)
            return reply
        finally:
            del self._under_way[key]
            coming.cancel()  # who waits looks into the cache, and asks if this call has failed

    async def close(self) -> None:
        """Close the file and the inner backend."""
        self._base.close()
        await self._inner.close()

    def _known(self, key: str) -> Reply | None:
        with self._named():
            row = self._base.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else Reply(**json.loads(row[0]))

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as problem:
            raise PostTrainError(
                f"{self._file}: the cache of replies cannot be used ({problem}); make room, remove the file, or name "
                "another folder with cache_dir"
            ) from problem


def key_of(call: Call, identity: Mapping[str, Any]) -> str:
    """A hash of everything that a reply depends on."""
    told = json.dumps([_VERSION, asdict(call), dict(identity)], sort_keys=True, default=str)
    return hashlib.blake2b(told.encode(), digest_size=20).hexdigest()
