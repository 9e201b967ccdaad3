"""The client's end of a connection: as a wire of its own, and as what httpcore gets for an injected client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import attrs

from ucaptcha_async.transport.wires import Waiting

from .network import Connection, Network, Owner

MOST = 65_536
"""Bytes of one read."""


@attrs.define(eq=False)
class SimulatedWire:
    """The client's end of one connection, as the client's own pool asks for it. Whatever breaks is an `OSError`."""

    _connection: Connection

    async def send(self, data: bytes) -> None:
        """Write all of it. The first byte leaves before anything else can happen, as on a real socket."""
        connection = self._connection
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self._refused()
            raise
        await self._usable()
        request = connection.wrote(data)
        owner, network = connection.owner, connection.network
        if request.fate == "stalled_request":
            size = network.rng.randrange(len(data))
            connection.up.send(data[:size])
            await anyio.sleep(network.rng.uniform(0.1, 8))
            await self._usable()
            data = data[size:]
        delay = network.rng.uniform(1, 60) if request.fate == "late_request" else 0.0
        connection.up.send(data, delay)
        if request.whole and connection.up.lose_nothing():
            # It was to be lost behind its last byte: then the answer is.
            silent = request.fate == "silent_request"
            connection.down.lose_after(0, (lambda: None) if silent else connection.reset)
        owner.step("sent")

    async def _usable(self) -> None:
        if self._connection.owner.dead:
            await anyio.sleep_forever()
        if self._connection.closed or self._connection.down.broken():
            self._refused()
            raise ConnectionResetError("the connection is closed")

    def _refused(self) -> None:
        work = self._connection.owner.step("cannot_send")
        self._connection.network.refused_writes[work or ""] += 1

    async def receive(self, most: int = MOST) -> bytes:
        """What has come, as soon as something has; empty at the end."""
        connection = self._connection
        if connection.closed:
            await anyio.lowlevel.checkpoint()
            raise ConnectionResetError("the connection is closed")
        data = await connection.down.receive(most)
        if connection.owner.dead:
            await anyio.sleep_forever()
        request = connection.requests[-1] if connection.requests else None
        if request is not None and data:
            request.answered = connection.down.read >= request.answer_ends
            request.heard_at = anyio.current_time()
            connection.owner.step("reads")
        return data

    def waiting(self) -> Waiting:
        """Whether something is there that nobody has asked for."""
        if self._connection.closed:
            return Waiting.CLOSED
        return Waiting[self._connection.down.waiting()]

    async def aclose(self) -> None:
        """Close. The user may give up just now: asyncio's own cancellation reaches through the shield of a real one."""
        self._connection.close()
        self._connection.owner.step("closes")
        await anyio.lowlevel.checkpoint()


def connector(network: Network, owner: Owner) -> Callable[[], Awaitable[SimulatedWire]]:
    """What opens a process's connections in this world."""

    async def connect() -> SimulatedWire:
        return SimulatedWire(await network.connect(owner))

    return connect


class Backend:
    """The network backend that httpcore gets: one for each process.

    Args:
        network: The network.
        owner: The process.
        core: The package whose errors are expected: `httpcore` or `httpcore2`.
    """

    def __init__(self, network: Network, owner: Owner, core: Any) -> None:
        self._network = network
        self._owner = owner
        self._core = core

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> Stream:
        """Open a connection to the service."""
        try:
            connection = await self._network.connect(self._owner)
        except OSError as error:
            raise self._core.ConnectError(str(error)) from None
        return Stream(connection, self._core)

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Any = None) -> Stream:
        """There are none in this world."""
        raise self._core.ConnectError("no such file")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await anyio.sleep(seconds)


class Stream:
    """The client's end of one connection, in httpcore's words."""

    def __init__(self, connection: Connection, core: Any) -> None:
        self._connection = connection
        self._wire = SimulatedWire(connection)
        self._core = core

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send."""
        if not buffer:  # a stock connection "sends" the end of a message
            return await anyio.lowlevel.checkpoint()
        try:
            return await self._wire.send(buffer)
        except OSError as error:
            raise self._core.WriteError(str(error)) from None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Receive."""
        try:
            return await self._wire.receive(max_bytes)
        except OSError as error:
            raise self._core.ReadError(str(error) or "connection reset by peer") from None

    async def aclose(self) -> None:
        """Close."""
        await self._wire.aclose()
        await anyio.lowlevel.checkpoint()

    async def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> Any:
        """There is no TLS in this world: it would hide what is written behind random bytes."""
        raise NotImplementedError

    def get_extra_info(self, info: str) -> Any:
        """Whether there is something to read."""
        return self._connection.down.readable() if info == "is_readable" else None
