"""Measures the process that it runs in. Standard library only: it runs in the environments of the peers as well."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

TICK = 0.005
MARK = "RESULT "


def memory(field: str = "VmRSS") -> int:
    """A line of `/proc/self/status` in bytes: `VmRSS` (now) or `VmHWM` (peak); 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return _peak_elsewhere() if field == "VmHWM" else 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def _peak_elsewhere() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Meter:
    """CPU, memory, threads, connections and stalls of this process from `start` on.

    `stall` is wall time, and so grows when other programs take the core away; `stall_cpu` is the most CPU time that the
    loop's own thread used between two ticks, and `collection` the longest garbage collection, which is a part of it.

    Args:
        port: The port of the service: only connections to it are counted.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.stall = self.stall_cpu = self.stall_at_first = 0.0
        self._first_connection: float | None = None
        self.collection = self._collecting_since = 0.0
        self.threads = 1
        self.started_at = self._cpu = 0.0
        self._memory = 0
        self._due = 0.0

    def start(self) -> None:
        """Begin. Imports before this do not count."""
        sys.addaudithook(self._hear)
        gc.callbacks.append(self._collect)
        self._memory = memory()
        self._cpu = time.process_time()
        self.started_at = time.monotonic()

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][1] == self.port:
            self.connections += 1
            if self._first_connection is None:
                self._first_connection = time.monotonic()

    def _collect(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.thread_time()
        else:
            self.collection = max(self.collection, time.thread_time() - self._collecting_since)

    async def tick(self) -> None:
        """Watch the event loop until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due, cpu = clock() + TICK, time.thread_time()
            self._due = due
            await asyncio.sleep(TICK)
            self._late(due, clock())
            if self._first_connection is not None and self._first_connection < due - TICK:
                self.stall_cpu = max(self.stall_cpu, time.thread_time() - cpu)
            self.threads = max(self.threads, threading.active_count())

    def _late(self, due: float, now: float) -> None:
        """Split at the first connection: before it, a client imports modules and reads certificates, once."""
        first = self._first_connection
        if first is None:
            self.stall_at_first = max(self.stall_at_first, now - due)
            return
        self.stall_at_first = max(self.stall_at_first, min(first, now) - due)
        self.stall = max(self.stall, now - max(first, due))

    def cpu(self) -> float:
        """CPU seconds since the start."""
        return time.process_time() - self._cpu

    def report(self) -> dict[str, Any]:
        """The figures so far. A loop that hangs now has not told of it yet."""
        if self._due:
            self._late(self._due, max(time.monotonic(), self._due))
        return {
            "started_at": self.started_at,
            "ended_at": time.monotonic(),
            "cpu": self.cpu(),
            "stall": self.stall,
            "stall_cpu": self.stall_cpu,
            "collection": self.collection,
            "stall_at_first": self.stall_at_first,
            "threads": self.threads,
            "connections": self.connections,
            "peak_memory": memory("VmHWM"),
            "memory_at_start": self._memory,
        }


class Ledger:
    """What a program has got for its tasks: when each solution was in its hands, and what went wrong.

    Attributes:
        known: By the number of the task, the monotonic time at which its solution was known.
        errors: How often each class of error came.
    """

    def __init__(self) -> None:
        self.known: dict[int, float] = {}
        self.errors: Counter[str] = Counter()

    def solved(self, number: int) -> None:
        """A solution is there."""
        self.known[number] = time.monotonic()

    def failed(self, error: BaseException | str) -> None:
        """A solve ended without one."""
        self.errors[error if isinstance(error, str) else type(error).__name__] += 1

    def report(self) -> dict[str, Any]:
        """The ledger as plain values."""
        return {"known": {str(number): at for number, at in self.known.items()}, "errors": dict(self.errors)}


def say(result: dict[str, Any]) -> None:
    """Give a result to the process that waits for it."""
    sys.stdout.write("\n" + MARK + json.dumps(result) + "\n")
    sys.stdout.flush()


def limit(seconds: float, report: Callable[[], dict[str, Any]]) -> None:
    """After `seconds`, say how far this process came and end it, whatever it is doing."""

    def end() -> None:
        say({**report(), "ended": False})
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
