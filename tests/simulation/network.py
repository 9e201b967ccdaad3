"""The network of a world: bytes under way between clients and the local service, and what happens to them."""

from __future__ import annotations

import errno
import json
import math
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel
import attrs
import h11

from ucaptcha_async.testing import LocalService

from .pipes import Pipe
from .server import Dialogue

CONNECT_FATES = ("refused", "unreachable", "no_name", "reset_on_accept", "slow_connect")
REQUEST_FATES = (
    "cut_request",  # reset after some of its bytes arrived
    "silent_request",  # some of its bytes arrive, and nobody is told of the loss
    "stalled_request",  # a part leaves, the rest after a while
    "late_request",  # arrives when the client may have given up
    "hung_up",  # closed by the service, unread
    "unsolicited_408",  # closed by the service as idle, with an answer, while the request was under way
    "lost_answer",  # carried out; reset before the answer
    "silent_answer",  # carried out; the answer never arrives
    "ended_answer",  # carried out; closed before the answer
    "cut_answer",  # reset in the middle of the answer
    "short_answer",  # closed in the middle of the answer
    "slow_answer",  # in small pieces
    "late_answer",
    "garbage",  # bytes that are not HTTP
    "hints",  # an interim answer before the real one
    "closing_answer",  # `Connection: close`
    "duplicate",  # something on the way sends the request twice, and gives the second answer
    "extra_answer",  # the answer comes twice, in one packet
    "extra_later",  # the answer comes again a little later, unless the next request is on its way
    "extra_idle",  # the answer comes again when the connection has been idle for a while
    "extra_crossing",  # the answer comes again in front of the answer to the next request, a poll
)


class Owner(Protocol):
    """The client's process, as the network knows it."""

    number: int
    dead: bool

    def step(self, name: str) -> str | None:
        """Something happens in a call of the process; returns the work that the call is about."""
        ...

    def call(self) -> object:
        """The call that runs now."""
        ...

    def paused_until(self) -> float | None:
        """When the limiter's pause ends."""
        ...


@attrs.define(eq=False)
class Request:
    """One request as it left the client, and what became of it.

    Attributes:
        number: Its place in the order of departure.
        process: The process that sent it.
        work: The work that it was sent for, if the sender said so.
        call: The call that it was sent in.
        at: When its first byte left.
        fate: What the network did to it; empty for nothing.
        paused_until: When the limiter's pause ended, as it was known at departure.
        path: For example `/createTask`.
        task_id: The task that it asks for, as it stands in JSON.
        arrived_at: When the service had all of it.
        accepted: The task that was made for it.
        twin: The task that was made for its duplicate, which no client can know of.
        status: The HTTP status of the answer.
        code: The error code of the answer.
        named: Whether the answer names a task.
        answered: Whether the whole answer was read by the client.
        heard_at: When.
    """

    number: int
    process: int
    work: str | None
    call: object
    at: float
    fate: str
    paused_until: float | None
    path: str = ""
    task_id: object = None
    arrived_at: float | None = None
    accepted: str | None = None
    twin: str | None = None
    status: int | None = None
    code: str | None = None
    named: bool = False
    answered: bool = False
    heard_at: float | None = None
    answer_ends: float = math.inf
    text: bytes = b""
    whole: bool = False

    def add(self, data: bytes) -> None:
        """Take in what was written; learn what is asked once all of it is there."""
        self.text += data
        head, end, body = self.text.partition(b"\r\n\r\n")
        if not end:
            return
        self.path = head.split(b" ", 2)[1].decode()
        size = next(int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
        if len(body) == size:
            asked = json.loads(body)
            self.whole, self.text, self.task_id = True, b"", asked.get("taskId")


@attrs.define(eq=False)
class Connection:
    """One connection between a process and the service."""

    network: Network
    owner: Owner
    number: int
    up: Pipe
    down: Pipe
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    gone: anyio.Event = attrs.field(factory=anyio.Event)
    requests: list[Request] = attrs.field(factory=list)
    closed: bool = False
    stale: bytes = b""  # an answer that will come again before the next one

    def reset(self) -> None:
        """Break it off, for both ends."""
        self.up.break_off()
        self.down.break_off()
        self.gone.set()

    def wrote(self, data: bytes) -> Request:
        """Note bytes as they leave the client."""
        request = self.requests[-1] if self.requests else None
        if request is None or request.whole:
            request = self._begin(len(data))
        request.add(data)
        return request

    def _begin(self, size: int) -> Request:
        request = self.network.departs(self.owner)
        self.requests.append(request)
        rng = self.network.rng
        if request.fate == "cut_request":
            self.up.lose_after(rng.randrange(size + 100), self.reset)
        elif request.fate == "silent_request":
            self.up.lose_after(rng.randrange(size + 100), _do_nothing)
        elif request.fate == "hung_up":
            self.up.lose_after(0, self.hang_up)
        elif request.fate == "unsolicited_408":
            self.up.lose_after(0, self._send_408)
        return request

    def hang_up(self) -> None:
        """The service closes its end."""
        self.down.end()
        self.gone.set()

    def _send_408(self) -> None:
        self.down.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.hang_up()

    def close(self) -> None:
        """The client closes its end."""
        if not self.closed:
            self.closed = True
            self.up.end()


def _do_nothing() -> None:
    pass


@attrs.define(eq=False)
class Network:
    """What lies between the processes of a world and its service.

    Attributes:
        service: The ASGI app at the other end.
        rng: Decides everything here.
        delays: Bounds of the time that bytes take one way, in seconds.
        rates: How often each fate meets a connection or a request; the empty mapping for a healthy network.
        idle_timeout: Seconds after which the service closes an idle connection.
        fired: How often each fate was met.
        requests: All requests in the order of their departure.
        trace: Takes a line of the world's trace.
        refused_writes: How often a work was to be written to a connection that was closed.
        tasks: Where the service's side runs.
    """

    service: LocalService
    rng: Random
    delays: tuple[float, float]
    rates: Mapping[str, float]
    idle_timeout: float
    fired: Counter[str]
    trace: Callable[..., None]
    tasks: anyio.abc.TaskGroup = attrs.field(init=False)
    requests: list[Request] = attrs.field(factory=list)
    connections: list[Connection] = attrs.field(factory=list)
    serving: Request | None = None
    refused_writes: Counter[str] = attrs.field(factory=Counter)
    down: bool = False

    def latency(self) -> float:
        """How long bytes take one way."""
        return self.rng.uniform(*self.delays)

    def draw(self, fates: tuple[str, ...]) -> str:
        """One of the fates, or none."""
        point = self.rng.random()
        for fate in fates:
            point -= self.rates.get(fate, 0.0)
            if point < 0:
                self.fired[fate] += 1
                return fate
        return ""

    def departs(self, owner: Owner) -> Request:
        """A request begins to leave a process."""
        request = Request(
            number=len(self.requests),
            process=owner.number,
            work=owner.step("departs"),
            call=owner.call(),
            at=anyio.current_time(),
            fate=self.draw(REQUEST_FATES),
            paused_until=owner.paused_until(),
        )
        self.requests.append(request)
        self.trace("departs", request.number, request.process, request.work, request.fate)
        return request

    async def connect(self, owner: Owner) -> Connection:
        """Open a connection to the service, or fail with an `OSError`."""
        if owner.dead:
            await anyio.sleep_forever()
        owner.step("connects")
        fate = self.draw(CONNECT_FATES)
        if fate == "no_name":
            await anyio.lowlevel.checkpoint()
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        await anyio.sleep(self.latency() + self.latency())
        if fate == "slow_connect":
            await anyio.sleep(self.rng.uniform(1, 20))
        if fate == "unreachable":
            await anyio.sleep_forever()
        if fate == "refused" or self.down:
            self.fired["refused_while_down"] += self.down
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connection refused")
        if owner.dead:
            await anyio.sleep_forever()
        connection = self.open(owner)
        if fate == "reset_on_accept":
            connection.reset()
        return connection

    def open(self, owner: Owner) -> Connection:
        """A connection is made."""
        up, down = Pipe(self.latency), Pipe(self.latency)
        connection = Connection(self, owner, len(self.connections), up, down)
        self.connections.append(connection)
        self.tasks.start_soon(self._serve, connection)
        return connection

    def restart(self) -> None:
        """The service dies with all its connections; what it has written down stays."""
        self.down = True
        self.fired["restart"] += 1
        cut = (c.requests[-1] for c in self.connections if c.requests and not c.closed)
        self.fired["restart_while_busy"] += any(request.arrived_at and not request.status for request in cut)
        for connection in self.connections:
            connection.scope.cancel()
            connection.reset()

    def cut(self, owner: Owner) -> None:
        """A process has died: what it has written may still arrive, then the service hears that it is gone."""
        for connection in self.connections:
            if connection.owner is owner and not connection.closed:
                connection.closed = True
                connection.up.break_off()
                connection.gone.set()

    def observe(self, endpoint: str) -> float:
        """The service has carried out a request (its `latency` option): learn what for. Returns how long it takes."""
        request, task_id = self.serving, self.service.books.requests[-1].task_id
        if request is not None and request.path == "/createTask":
            request.twin, request.accepted = request.accepted, task_id
        return self.latency()

    async def _serve(self, connection: Connection) -> None:
        try:
            with connection.scope:
                await Dialogue(self, connection).run()
        except (ConnectionResetError, h11.ProtocolError):
            pass
        connection.hang_up()
