"""Over real sockets: the service is a second process, and each way carries the requests."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
from anyio.abc import ByteStream

import ucaptcha_async
from tests.helpers import KEY, V2, at_rest
from tests.transport_kit import request, response, server
from ucaptcha_async import AsyncClient, Job, Polling, SubmitUncertainError
from ucaptcha_async.testing import Drop, Error, RunningService, running_service
from ucaptcha_async.transport import wires
from ucaptcha_async.transport.exchange import Exchange
from ucaptcha_async.transport.senders import TransportName

QUICK = Polling(interval=0.2, first=0.3)


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningService]:
    with running_service(seed=1, solve_time=0.5) as service:
        yield service


@pytest.fixture
def service() -> Iterator[RunningService]:
    with running_service(seed=1, solve_time=0.5) as service:
        yield service


def number(books: dict[str, Any], *path: str) -> Any:
    value: Any = books
    for name in path:
        value = value[name]
    return value


@pytest.mark.parametrize("transport", ["httpx", "httpx2", "fast"])
async def test_hundred_solves(transport: TransportName) -> None:
    """A hundred solves at once end well, each charged once, over few connections."""
    with running_service(seed=3, solve_time=0.5) as service:
        async with AsyncClient(KEY, base_url=service.url, polling=QUICK, transport=transport) as client:
            outcomes = await client.gather([V2] * 100)
            at_rest(client)
        books = service.books()

    assert 100 == len({outcome.solution.token for outcome in outcomes})
    assert 100 == number(books, "accepted") == number(books, "delivered")


async def test_a_lost_answer_is_told(service: RunningService) -> None:
    """The connection is cut after the task was accepted: unknown fate, one charge, no second submit."""
    service.script("createTask", Drop(after=True))
    async with AsyncClient(KEY, base_url=service.url, polling=QUICK) as client:
        with pytest.raises(SubmitUncertainError):
            await client.solve(V2)
        at_rest(client)

    assert 1 == number(service.books(), "accepted")


async def test_polls_survive_cut_connections(service: RunningService) -> None:
    """Connections cut before, after and during the answer are late polls."""
    service.script("getTaskResult", Drop(before=True), Drop(during=True), Drop(after=True))
    async with AsyncClient(KEY, base_url=service.url, polling=QUICK) as client:
        solution = await client.solve(V2, timeout=30)

    assert solution.polls > 3


async def test_cancelled_requests_leave_the_client_whole(shared: RunningService) -> None:
    """After a storm of cancellations the client is as complete as before."""
    async with AsyncClient(KEY, base_url=shared.url, polling=QUICK, max_connections=8) as client:

        async def one(number: int) -> None:
            with anyio.move_on_after(0.002 * (number % 10)):
                await client.get_balance()

        async with anyio.create_task_group() as tasks:
            for index in range(500):
                tasks.start_soon(one, index)
        at_rest(client)
        assert (await client.solve(V2, timeout=30)).token


async def test_no_connection_is_left_by_a_client_whose_end_is_cancelled() -> None:
    """No shield keeps out asyncio's own cancellation, and there are many connections to close."""
    if sniffio.current_async_library() != "asyncio":
        return
    count, arrived, left = 20, 0, 0

    async def handle(stream: ByteStream) -> None:
        nonlocal arrived, left
        left += 1
        try:
            await request(stream)
            arrived += 1
            while arrived < count:
                await anyio.sleep(0.001)
            await stream.send(response(b'{"errorId": 0, "balance": 1}'))
            await stream.receive()
        finally:
            left -= 1

    async with server(handle) as port:
        client = await AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}").open()
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(client.get_balance)
        closing = asyncio.create_task(client.aclose())
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with anyio.move_on_after(5):
            while left:
                await anyio.sleep(0.01)
        assert (count, 0) == (arrived, left)


async def test_nothing_listens() -> None:
    """A refused connection is proved unsent: tried again until the deadline, and never charged."""
    from ucaptcha_async import SolveTimeoutError

    async with AsyncClient(KEY, base_url="http://127.0.0.1:9") as client:
        with pytest.raises(SolveTimeoutError) as caught:
            await client.solve(V2, timeout=1)
        at_rest(client)

    assert (False, "submit") == (caught.value.charged, caught.value.phase)


@pytest.mark.parametrize("transport", ["fast", "httpx"])
async def test_few_functions_are_between_the_caller_and_the_bytes(
    shared: RunningService, monkeypatch: pytest.MonkeyPatch, transport: TransportName
) -> None:
    """From `client.solve` to the stream's `send`: eight of the library, whether or not httpx is between."""
    package = str(Path(ucaptcha_async.__file__).parent)
    ways: list[list[str]] = []

    def watched(wire: Any) -> None:
        send = wire.send

        async def counted(self: Any, data: bytes) -> None:
            frame, own = sys._getframe(1), []
            while frame is not None:
                if frame.f_code.co_filename.startswith(package):
                    own.append(frame.f_code.co_qualname)
                frame = frame.f_back if frame.f_code.co_qualname != "AsyncClient.solve" else None
            ways.append(own)
            await send(self, data)

        monkeypatch.setattr(wire, "send", counted)

    watched(wires.AsyncioWire)
    watched(wires.StreamWire)
    async with AsyncClient(KEY, base_url=shared.url, polling=QUICK, transport=transport) as client:
        await client.solve(V2)

    polls = [own for own in ways if own[-1] == "AsyncClient.solve"]
    assert polls
    assert all(len(own) <= 8 for own in ways), ways


async def test_requests_that_fail_leave_no_circles(shared: RunningService) -> None:
    """A refused submit, a lost poll and a submit that is withdrawn: what they held is freed without the collector."""
    gc.collect()
    earlier = [found for found in gc.get_objects() if isinstance(found, Job | Exchange)]  # other tests' own
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        async with AsyncClient(KEY, base_url=shared.url, polling=QUICK, transport="fast") as client:
            shared.script("createTask", Error("ERROR_NO_SLOT_AVAILABLE"))
            shared.script("getTaskResult", Drop(after=True))
            await client.solve(V2)
            for step in range(10):
                with anyio.move_on_after(step / 2_000):
                    await client.solve(V2)
        gc.collect()
        kept = [found for found in gc.garbage if isinstance(found, Job | Exchange) and found not in earlier]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()

    assert kept == []
