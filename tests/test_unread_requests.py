"""Requests that are not read to their end: no call waits for ever, and no later request is taken for the rest."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

from tests.helpers import KEY
from tests.transport_kit import always, response, server, socket_wire
from ucaptcha_async import AsyncClient, ImageToText, UCaptchaError
from ucaptcha_async.secrecy import SecretBytes
from ucaptcha_async.transport.connection import LATE, Connection, best_parser
from ucaptcha_async.transport.wires import AsyncioWire, Waiting

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.parametrize("transport", ["fast", "httpx"])
async def test_a_call_ends_although_the_service_reads_nothing(transport: Any) -> None:
    """It refuses a large request by its head alone, and keeps the connection, on which the rest still waits."""

    async def handle(stream: ByteStream) -> None:
        await stream.receive(1024)
        await stream.send(response(b'{"errorId":1,"errorCode":"ERROR_KEY_DOES_NOT_EXIST"}'))
        await anyio.sleep_forever()

    picture = b"\x89PNG\r\n\x1a\n" + b"\0" * 12_000_000
    async with server(handle) as port:
        url = f"http://127.0.0.1:{port}"
        async with AsyncClient(KEY, base_url=url, request_timeout=1, transport=transport) as client:
            with pytest.raises(UCaptchaError):
                await client.solve(ImageToText(image=picture), timeout=5)
            with anyio.fail_after(6), pytest.raises(UCaptchaError):
                await client.get_balance()


@pytest.mark.parametrize("transport", ["fast", "httpx"])
async def test_no_request_is_taken_for_the_rest_of_another(transport: Any) -> None:
    """The service refuses a large request by its head alone, and reads the rest of it later, before the next one."""

    async def handle(stream: ByteStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive(1024)
        head, _, body = head.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if length > 1_000:
            await stream.send(response(b'{"errorId":1,"errorCode":"ERROR_KEY_DOES_NOT_EXIST"}'))
            await anyio.sleep(0.2)
        left = length - len(body)
        while left > 0:
            left -= len(await stream.receive(min(left, 65_536)))
        if length > 1_000:
            await always(b'{"errorId":0,"balance":1}')(stream)
        await stream.send(response(b'{"errorId":0,"balance":1}'))
        await anyio.sleep_forever()

    picture = b"\x89PNG\r\n\x1a\n" + b"\0" * 12_000_000
    async with server(handle) as port:
        url = f"http://127.0.0.1:{port}"
        async with AsyncClient(KEY, base_url=url, request_timeout=2, transport=transport) as client:
            with pytest.raises(UCaptchaError):
                await client.solve(ImageToText(image=picture), timeout=5)
            with anyio.fail_after(6):
                assert await client.get_balance() == 1


async def unread_wire() -> tuple[AsyncioWire, socket.socket]:
    """A wire whose peer reads nothing: what is written waits in it."""
    wire, there = await socket_wire()
    while wire._transport.get_write_buffer_size() < 60_000:
        wire._transport.write(b"x" * 10_000)
    return wire, there


@on_asyncio
async def test_a_wire_whose_time_was_over_carries_nothing_more() -> None:
    """The writing took until the deadline, and an answer was there by then: it is taken, and the wire is closed."""
    wire, there = await unread_wire()
    loop = asyncio.get_running_loop()
    connection = Connection(wire, loop.time(), best_parser())
    with there:
        loop.call_later(0.05, there.send, response(b"{}"))
        failure = await connection.ask(SecretBytes(b"x" * 60_000), loop.time() + 0.2)

    assert (None, Waiting.CLOSED) == (failure, wire.waiting())


@on_asyncio
async def test_a_request_that_is_never_read_ends_at_its_deadline() -> None:
    """The writing took until the deadline, and no answer came."""
    wire, there = await unread_wire()
    loop = asyncio.get_running_loop()
    connection = Connection(wire, loop.time(), best_parser())
    with there:
        with anyio.fail_after(2):
            assert await connection.ask(SecretBytes(b"x" * 60_000), loop.time() + 0.2) == LATE
