"""Real Redis servers of our own on the loopback interface, for the tests of what is kept in Redis."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import attrs
import pytest

coredis = pytest.importorskip("coredis")
SERVER = shutil.which("redis-server")
redis_marks = [
    pytest.mark.skipif(SERVER is None and "CI" not in os.environ, reason="redis-server is not installed"),
    # coredis leaves the streams of a connection that could not be made to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]
# For what takes seconds and is decided in Redis: half of it is run on one backend, half on the other.
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
on_trio = pytest.mark.parametrize("anyio_backend", ["trio"])


@pytest.fixture(autouse=True, scope="module")
def collect() -> Iterator[None]:
    """What coredis leaves behind is collected here, and not in the middle of another module's test."""
    yield
    gc.collect()


@attrs.define
class Server:
    """A Redis server, and a connection for what the tests themselves ask it."""

    port: int
    process: subprocess.Popen[bytes] | None = None
    folder: str = attrs.field(factory=tempfile.mkdtemp)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self, *options: str) -> None:
        arguments = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            self.folder,
            "--repl-diskless-sync-delay",
            "0",
        ]
        arguments += options
        self.process = subprocess.Popen([SERVER or "redis-server", *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def is_old(self, *keys: str) -> None:
        """Let what waits after a restart (limit, places in flight) find marks from before, as if none had been."""

        async def mark() -> None:
            async with coredis.Redis.from_url(self.url, decode_responses=True) as client:
                run = (await client.info("server"))["run_id"]
                for key in keys:
                    await client.hset(key, {"generation": "old", "run": run, "settled": "0", "first": "1"})

        anyio.run(mark)

    def end(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_and_start(self, *options: str) -> None:
        self.stop()
        self.start(*options)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@functools.cache
def _common_server() -> Server:
    server = Server(free_port())
    server.start()
    atexit.register(server.end)
    return server


@pytest.fixture(scope="session")
def server() -> Server:
    """One for all tests that leave it as it is; the longer it has been up, the less they wait."""
    return _common_server()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that the test may stop."""
    server = Server(free_port())
    server.start()
    yield server
    server.end()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.nodeid


async def until_async(condition: Callable[[], Awaitable[Any]], seconds: float = 10) -> None:
    with anyio.fail_after(seconds):
        while not await condition():
            await anyio.sleep(0.01)


@attrs.define(eq=False)
class Relay:
    """A TCP line to a server, which can be cut, and turned to another."""

    target: int
    listener: socket.socket = attrs.field(factory=lambda: socket.create_server(("127.0.0.1", 0)))
    lines: set[socket.socket] = attrs.field(factory=set)
    cuts: int = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.listener.getsockname()[1]}"

    def turn_to(self, port: int) -> None:
        self.target = port
        self.cut()

    def cut(self) -> None:
        """End all connections, in the middle of whatever they carry."""
        self.cuts += 1
        for line in list(self.lines):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self.pump, args=ends, daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        self.lines.add(source)
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for line in (source, sink):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self.lines.discard(source)
        source.close()


@contextmanager
def relay(port: int) -> Iterator[Relay]:
    made = Relay(port)
    thread = threading.Thread(target=made.serve, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        with suppress(OSError):
            made.listener.shutdown(socket.SHUT_RDWR)
        made.listener.close()
        made.cut()
        thread.join(5)
