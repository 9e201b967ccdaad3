"""The service's end of a connection: HTTP by h11, and answers that meet their fates."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import h11

from ucaptcha_async.testing.wire import ABORT

if TYPE_CHECKING:
    from .network import Connection, Network, Request

FIRST_REQUEST = 60.0
"""Seconds that the service gives a new connection for its first request."""

EXTRA_DELAYS = {"extra_later": (0.0, 0.3), "extra_idle": (0.5, 20.0)}
"""Bounds of the time in seconds after which an answer comes again."""


class Dialogue:
    """The service's end of one connection: HTTP/1.1 by h11."""

    def __init__(self, network: Network, connection: Connection) -> None:
        self._network = network
        self._connection = connection
        self._parser = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        """Answer one request after the other."""
        for number in itertools.count():
            head = None
            with anyio.move_on_after(self._network.idle_timeout if number else FIRST_REQUEST):
                head = await self._event()
            if head is None:
                self._network.fired["closed_idle"] += 1
                return
            if not isinstance(head, h11.Request):
                return
            body = b""
            while isinstance(part := await self._event(), h11.Data):
                body += part.data
            # A client that takes a second answer for its own may leave a request half written.
            request = self._connection.requests[min(number, len(self._connection.requests) - 1)]
            await self._answer(request, head, body)
            if self._parser.our_state is not h11.DONE:
                return
            self._parser.start_next_cycle()

    async def _event(self) -> Any:
        while (event := self._parser.next_event()) is h11.NEED_DATA:
            self._parser.receive_data(await self._connection.up.receive(65_536))
        return event

    async def _answer(self, request: Request, head: h11.Request, body: bytes) -> None:
        request.arrived_at = anyio.current_time()
        self._network.trace("arrives", request.number)
        self._cross(request)
        if request.fate == "duplicate":
            await self._ask(request, head, body, self._ignore)
        await self._ask(request, head, body, self._sender(request))

    def _cross(self, request: Request) -> None:
        """An earlier answer comes again before this request's own. Only a name in it tells them apart."""
        stale, self._connection.stale = self._connection.stale, b""
        if stale and request.path == "/getTaskResult":
            self._network.fired["extra_crossing_arrived"] += 1
            self._connection.down.send(stale)

    async def _extra(self, request: Request, data: bytes) -> None:
        """An answer comes again, unless the client has written its next request by then: that would be a crossing."""
        connection = self._connection
        await anyio.sleep(self._network.rng.uniform(*EXTRA_DELAYS[request.fate]))
        if connection.requests[-1] is request and not connection.closed:
            self._network.fired[f"{request.fate}_arrived"] += 1
            self._network.trace("again", request.number)
            connection.down.send(data, at_once=True)

    async def _ask(self, request: Request, head: h11.Request, body: bytes, send: Any) -> None:
        connection, given = self._connection, False

        async def receive() -> dict[str, Any]:
            nonlocal given
            if given:
                await connection.gone.wait()
                return {"type": "http.disconnect"}
            # The service carries a request out in the same step in which it has read it.
            given, self._network.serving = True, request
            return {"type": "http.request", "body": body}

        scope = {
            "type": "http",
            "method": head.method.decode(),
            "path": head.target.decode(),
            "query_string": b"",
            "headers": list(head.headers),
            "client": ("192.0.2.1", connection.number),
            "extensions": {ABORT: connection.reset},
        }
        await self._network.service(scope, receive, send)

    async def _ignore(self, message: Any) -> None:
        pass

    def _sender(self, request: Request) -> Callable[[Any], Any]:
        start: Any = None

        async def send(message: Any) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            data = b""
            if start is not None:
                request.status = start["status"]
                request.code, request.named = _said(message["body"])
                data += self._head(start, request)
                start = None
            if message["body"]:
                data += self._parser.send(h11.Data(data=message["body"])) or b""
            if not message.get("more_body"):
                data += self._parser.send(h11.EndOfMessage()) or b""
                request.answer_ends = self._connection.down.sent + len(data)
            await self._transmit(request, data)

        return send

    def _head(self, start: Any, request: Request) -> bytes:
        extra = [(b"connection", b"close")] if request.fate == "closing_answer" else []
        response = h11.Response(status_code=start["status"], headers=[*start["headers"], *extra])
        return self._parser.send(response) or b""

    def _lose(self, fate: str, size: int) -> None:
        connection, middle = self._connection, self._network.rng.randrange(size)
        if fate == "lost_answer":
            connection.reset()
        elif fate == "silent_answer":
            connection.down.lose_after(0, lambda: None)
        elif fate == "ended_answer":
            connection.hang_up()
        elif fate == "cut_answer":
            connection.down.lose_after(middle, connection.reset)
        elif fate == "short_answer":
            connection.down.lose_after(middle, connection.hang_up)

    async def _transmit(self, request: Request, data: bytes) -> None:
        """Send an answer, as its fate wants it."""
        self._network.trace("answers", request.number, request.status, len(data))
        self._lose(request.fate, len(data))
        rng, down = self._network.rng, self._connection.down
        if request.fate == "garbage":
            data = rng.randbytes(rng.randrange(1, 200))
            request.answer_ends = math.inf
        elif request.fate == "hints":
            hints = b"HTTP/1.1 103 Early Hints\r\n\r\n"
            data, request.answer_ends = hints + data, request.answer_ends + len(hints)
        elif request.fate == "late_answer":
            await anyio.sleep(rng.uniform(1, 60))
        elif request.fate == "slow_answer":
            while data:
                size = rng.randrange(1, 100)
                down.send(data[:size])
                data = data[size:]
                await anyio.sleep(rng.uniform(0, 3))
        elif request.fate == "extra_answer":
            data += data
        elif request.fate == "extra_crossing" and b'"taskId"' in data:
            self._connection.stale = data
        down.send(data)
        if request.fate in EXTRA_DELAYS:
            self._network.tasks.start_soon(self._extra, request, data)


def _said(body: bytes) -> tuple[str | None, bool]:
    """The error code of an answer, and whether it names a task."""
    try:
        value = json.loads(body.decode(json.detect_encoding(body), "replace"))
    except ValueError:
        return None, False
    if not isinstance(value, dict):
        return None, False
    code, task_id = value.get("errorCode"), value.get("taskId")
    return (code if isinstance(code, str) else None), task_id not in (None, "", 0, "0", False)
