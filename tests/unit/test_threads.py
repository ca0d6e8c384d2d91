"""Blocking work beside the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from clamproxy.threads import Writer, in_thread

LIMIT = 10


async def test_a_result() -> None:
    assert await in_thread("test", lambda: 5) == 5


async def test_work_is_done_in_a_daemon_thread_with_the_given_name() -> None:
    thread = await in_thread("clamproxy-fetch-x", threading.current_thread)
    assert thread is not threading.current_thread()
    assert (thread.daemon, thread.name) == (True, "clamproxy-fetch-x")


@pytest.mark.parametrize("error", [ValueError("why"), SystemExit(3)])
async def test_an_exception(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await in_thread("test", fail)
    assert caught.value is error


@pytest.mark.parametrize("fails", [False, True])
async def test_what_comes_after_a_cancellation_is_dropped(fails: bool) -> None:
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(LIMIT)
        done.set()
        if fails:
            raise ValueError("nobody cares")

    future = in_thread("test", work)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    go.set()
    await asyncio.to_thread(done.wait, LIMIT)
    await asyncio.sleep(0.01)
    assert future.cancelled()


def test_the_loop_may_be_gone_when_the_thread_ends() -> None:
    go, threads = threading.Event(), list[threading.Thread]()

    def work() -> None:
        threads.append(threading.current_thread())
        go.wait(LIMIT)

    async def start() -> None:
        _ = in_thread("test", work)

    asyncio.run(start())
    go.set()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()


async def test_the_loop_goes_on_meanwhile() -> None:
    go = threading.Event()
    future = in_thread("test", lambda: go.wait(LIMIT))
    await asyncio.sleep(0.01)
    assert not future.done()
    go.set()
    assert await future


async def test_the_writer_works_in_order_in_one_thread() -> None:
    writer = Writer()
    order: list[int] = []
    names: set[str] = set()

    def note(number: int) -> None:
        order.append(number)
        names.add(threading.current_thread().name)

    for number in range(50):
        writer.submit(lambda number=number: note(number))  # type: ignore[misc]
    assert await writer.run(lambda: len(order)) == 50
    assert order == list(range(50))
    assert len(names) == 1
    writer.close()


async def test_the_writer_gives_exceptions_to_who_waits() -> None:
    writer = Writer()
    with pytest.raises(ZeroDivisionError):
        await writer.run(lambda: 1 // 0)
    assert await writer.run(lambda: "goes on") == "goes on"
    writer.close()


async def test_the_writer_logs_exceptions_where_nobody_waits(caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer()
    with caplog.at_level(logging.ERROR):
        writer.submit(lambda: 1 // 0)
        assert await writer.run(lambda: "goes on") == "goes on"
    assert "ZeroDivisionError" in caplog.text
    writer.close()


def test_closing_finishes_what_was_handed_in() -> None:
    writer = Writer()
    done: list[int] = []
    for number in range(20):
        writer.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    writer.close()
    assert len(done) == 20
    writer.submit(lambda: done.append(99))  # too late, and harmless
    assert len(done) == 20
