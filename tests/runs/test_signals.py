"""Signals while something is awaited."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from lit_posttrain.runs.signals import Terminated, run_terminable, terminable


async def interrupted(number: int, ended: list[str]) -> str:
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), number)
    try:
        await asyncio.sleep(30)
    finally:
        await asyncio.sleep(0)  # the loop still runs, so that what is open can be closed
        ended.append("closed")
    return "not interrupted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_work_and_leaves_the_handlers_as_they_were(number: signal.Signals) -> None:
    ended = list[str]()
    with terminable():
        before = signal.getsignal(number)
        with pytest.raises(Terminated) as stop:
            run_terminable(interrupted(number, ended))
        assert signal.getsignal(number) is before
    assert (stop.value.code, ended) == (128 + number, ["closed"])


def test_work_that_ends_has_a_result_in_every_thread() -> None:
    async def made() -> int:
        await asyncio.sleep(0)
        return 7

    results = [run_terminable(made())]
    thread = threading.Thread(target=lambda: results.append(run_terminable(made())))
    thread.start()
    thread.join()
    assert results == [7, 7]
