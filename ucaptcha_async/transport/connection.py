"""HTTP/1.1 on one wire: one write for a request, then its answer, read whole."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable

import anyio

from ucaptcha_async.secrecy import SecretBytes

from .parser import NO_ANSWER, Parser
from .wires import Wire, expirer

REMEMBERED = 8
"""Answers of a connection that are known again when they come once more."""

LARGE = 65_536
"""Bytes of a request that a peer may not take in one piece: its answer may come before the end of it."""

LATE = "no answer in time"
_NO_SCOPE = contextlib.nullcontext()
_ANY_FAULT = contextlib.suppress(OSError)


def best_parser() -> type[Parser]:
    """The best parser that is installed. Asked once for all connections: to look for what is not there takes long."""
    try:
        from .with_httptools import HttptoolsParser
    except ImportError:
        from .with_h11 import H11Parser

        return H11Parser
    return HttptoolsParser


class Connection:
    """One wire and what is known of it.

    Attributes:
        wire: The wire.
        answer: The answer that was read last.
        requests: How many requests it has carried.
        used_at: When the last answer was complete, or when it was opened.
        doomed: Whether its answers cannot be trusted any more.
        repeated: Whether the last answer is, byte for byte, one of those before it.
        written: Whether the last request was written to its end. If not, a next one would be taken for the rest of it.
    """

    __slots__ = ("_answers", "_expire_at", "answer", "doomed", "repeated", "requests", "used_at", "wire", "written")

    def __init__(self, wire: Wire, now: float, parser: Callable[[], Parser]) -> None:
        self.wire = wire
        self.answer = parser()
        self.requests = 0
        self.used_at = now
        self.doomed = self.repeated = self.written = False
        self._answers: deque[int] = deque(maxlen=REMEMBERED)
        self._expire_at = expirer(wire)

    async def ask(self, request: SecretBytes, deadline: float) -> str | None:
        """Write a request in one piece, and read its answer. Returns why there is none, if there is none."""
        if self.requests:
            self.answer.begin()
        self.requests += 1
        self.written = False
        with self._limit(deadline):
            if len(request) > LARGE:
                return await self._ask_at_length(request)
            # A service that closed early may have answered before: what came, the reading tells.
            with _ANY_FAULT:
                await self.wire.send(request)
                self.written = True
            return await self._read()
        return LATE

    def _limit(self, deadline: float) -> contextlib.AbstractContextManager[object]:
        if self._expire_at is None:
            return anyio.CancelScope(deadline=deadline)
        self._expire_at(deadline)
        return _NO_SCOPE

    async def _ask_at_length(self, request: SecretBytes) -> str | None:
        failure: str | None = NO_ANSWER
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write, request)
            failure = await self._read()
            tasks.cancel_scope.cancel()
        return failure

    async def _write(self, request: SecretBytes) -> None:
        with _ANY_FAULT:
            await self.wire.send(request)
            self.written = True

    async def _read(self) -> str | None:
        answer = self.answer
        try:
            while not answer.feed(await self.wire.receive()):
                pass
        except TimeoutError:
            return LATE
        except OSError as error:
            return f"the connection broke: {error.strerror or error}"
        if answer.failure is None:
            answer.finish()
            known = hash(answer.content)
            self.repeated = known in self._answers
            self._answers.append(known)
        return answer.failure
