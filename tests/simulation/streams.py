"""The client's end: a network backend for httpcore, and the streams that it opens."""

from __future__ import annotations

import importlib
from typing import Any

import anyio
import anyio.lowlevel
import attrs

from .network import CONNECT_FATES, Connection, Network, Owner


class Backend:
    """The network backend that httpcore gets: one for each process.

    Args:
        network: The network.
        owner: The process.
        core: The name of the package whose errors are expected: `httpcore` or `httpcore2`.
    """

    def __init__(self, network: Network, owner: Owner, core: str) -> None:
        self._network = network
        self._owner = owner
        self._core = importlib.import_module(core)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> Stream:
        """Open a connection to the service."""
        network = self._network
        if self._owner.dead:
            await anyio.sleep_forever()
        self._owner.step("connects")
        fate = network.draw(CONNECT_FATES)
        if fate == "no_name":
            await anyio.lowlevel.checkpoint()
            raise self._core.ConnectError("the name cannot be resolved")
        await anyio.sleep(network.latency() + network.latency())
        if fate == "slow_connect":
            await anyio.sleep(network.rng.uniform(1, 20))
        if fate == "unreachable":
            await anyio.sleep_forever()
        if fate == "refused" or network.down:
            network.fired["refused_while_down"] += network.down
            raise self._core.ConnectError("connection refused")
        if self._owner.dead:
            await anyio.sleep_forever()
        connection = network.open(self._owner)
        if fate == "reset_on_accept":
            connection.reset()
        return Stream(connection, self._core)

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Any = None) -> Stream:
        """There are none in this world."""
        raise self._core.ConnectError("no such file")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await anyio.sleep(seconds)


@attrs.define(eq=False)
class Stream:
    """The client's end of one connection."""

    _connection: Connection
    _core: Any

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send."""
        try:
            await anyio.lowlevel.checkpoint()
        except BaseException:
            self._refused()
            raise
        await self._usable()
        if not buffer:  # a stock connection "sends" the end of a message
            return
        request = self._connection.wrote(buffer)
        owner, network = self._connection.owner, self._connection.network
        if request.fate == "stalled_request":
            size = network.rng.randrange(len(buffer))
            self._connection.up.send(buffer[:size])
            await anyio.sleep(network.rng.uniform(0.1, 8))
            await self._usable()
            buffer = buffer[size:]
        delay = network.rng.uniform(1, 60) if request.fate == "late_request" else 0.0
        self._connection.up.send(buffer, delay)
        if request.whole and self._connection.up.lose_nothing():
            # It was to be lost behind its last byte: then the answer is.
            silent = request.fate == "silent_request"
            self._connection.down.lose_after(0, (lambda: None) if silent else self._connection.reset)
        owner.step("sent")

    async def _usable(self) -> None:
        if self._connection.owner.dead:
            await anyio.sleep_forever()
        if self._connection.closed or self._connection.down.broken():
            self._refused()
            raise self._core.WriteError("the connection is closed")

    def _refused(self) -> None:
        work = self._connection.owner.step("cannot_send")
        self._connection.network.refused_writes[work or ""] += 1

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Receive."""
        connection = self._connection
        if connection.closed:
            await anyio.lowlevel.checkpoint()
            raise self._core.ReadError("the connection is closed")
        try:
            data = await connection.down.receive(max_bytes)
        except ConnectionResetError:
            raise self._core.ReadError("connection reset by peer") from None
        if connection.owner.dead:
            await anyio.sleep_forever()
        request = connection.requests[-1] if connection.requests else None
        if request is not None and data:
            request.answered = connection.down.read >= request.answer_ends
            request.heard_at = anyio.current_time()
            connection.owner.step("reads")
        return data

    async def aclose(self) -> None:
        """Close."""
        self._connection.close()
        await anyio.lowlevel.checkpoint()

    async def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> Any:
        """There is no TLS in this world: it would hide what is written behind random bytes."""
        raise NotImplementedError

    def get_extra_info(self, info: str) -> Any:
        """Whether there is something to read."""
        return self._connection.down.readable() if info == "is_readable" else None
