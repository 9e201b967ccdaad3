# ruff: noqa: F811, F402 - fixtures come from redis_kit, and are named again where they are used
"""One limit for many processes, against a real Redis server of our own on the loopback interface."""

from __future__ import annotations

import importlib
import json
import math
import random
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from heapq import heapify, heappop, heappush
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ucaptcha_async.errors import ClientStateError, ConfigurationError
from ucaptcha_async.pacing import RateLimiter
from ucaptcha_async.pacing.quota import Quota, Reading

from .helpers import count_looks
from .redis_kit import (  # noqa: F401
    Server,
    collect,
    free_port,
    name,
    on_asyncio,
    on_trio,
    own_server,
    redis_marks,
    server,
    until,
)
from .test_limits import UNIX, most_in_a_window

coredis = pytest.importorskip("coredis")

from ucaptcha_async.redis.limiter import SCRIPT, RedisRateLimiter, RedisUnavailableError, SharedPace, _Numbered  # noqa: E402

pytestmark = redis_marks

PROCESS = """
import json, sys, time
import anyio
from ucaptcha_async.redis.limiter import RedisRateLimiter, _Numbered

url, name, seconds = sys.argv[1:4]

async def main():
    # What counts is when a departure was decided; the scheduler may hold us up before we look at the clock.
    departures, note = [], _Numbered.add
    to_monotonic = time.monotonic() - anyio.current_time()

    def add(self, now, number):
        departures.append(now + to_monotonic)
        note(self, now, number)

    _Numbered.add = add
    async with RedisRateLimiter(url, name=name, limit=200, window=2.0) as limiter:

        async def worker(patience):
            while True:
                with anyio.move_on_after(patience):
                    await limiter.acquire()

        with anyio.move_on_after(float(seconds)):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(worker, 0.05 if number % 4 == 0 else 60)
    json.dump(departures, sys.stdout)

anyio.run(main, backend=sys.argv[4])
"""


def test_processes_share_one_limit(server: Server, name: str) -> None:
    """Four processes, two on each backend, some of whose waiters give up: no window exceeds the limit."""
    command = [sys.executable, "-c", PROCESS, server.url, name, "3"]
    processes = [subprocess.Popen([*command, backend], stdout=subprocess.PIPE) for backend in ("asyncio", "trio") * 2]
    parts = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    times = sorted(moment for part in parts for moment in part)

    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert most_in_a_window(times, 2.0) <= 200
    assert all(parts)
    assert len(times) >= 110  # of about 300; a busy machine lets turns lapse


@on_asyncio
async def test_one_process_uses_the_limit(server: Server, name: str) -> None:
    """Whoever is alone gets the whole limit, and no window exceeds it."""
    times: list[float] = []
    async with RedisRateLimiter(server.url, name=name, limit=300, window=2.0) as limiter:

        async def worker() -> None:
            while True:
                await limiter.acquire()
                times.append(anyio.current_time())

        with anyio.move_on_after(2.5):
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(worker)
        decided = list(limiter._shared._numbered._times)
    statistics = limiter.statistics()

    assert most_in_a_window(decided, 2.0) <= 300
    assert len(times) >= 150
    assert (statistics.limit, statistics.window, statistics.departed) == (300, 2.0, len(times))
    assert statistics.waiting == 0


async def test_first_come_first_served(server: Server, name: str) -> None:
    """Within a process waiters go in the order of their arrival."""
    order: list[int] = []
    async with RedisRateLimiter(server.url, name=name, limit=20, window=1.0) as limiter:

        async def request(number: int) -> None:
            await limiter.acquire()
            order.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(request, number)
                await anyio.sleep(0.01)

    assert order == list(range(12))


@on_trio
async def test_a_cancelled_waiters_turn_is_given_back(server: Server, name: str) -> None:
    """A turn that was taken from the schedule and not used costs nothing if nobody took one behind it."""
    async with RedisRateLimiter(server.url, name=name, limit=1, window=1.0) as limiter:
        start = anyio.current_time()
        await limiter.acquire()
        with anyio.move_on_after(0.98):  # its turn is taken by now
            await limiter.acquire()
        await anyio.sleep_until(start + 1.05)
        with anyio.fail_after(0.8):  # and not a second, for the turn of the one who gave up
            await limiter.acquire()


@on_trio
async def test_a_turn_in_hand_goes_to_the_next(server: Server, name: str) -> None:
    """When the first waiter gives up, the next one takes over its turn."""
    async with RedisRateLimiter(server.url, name=name, limit=1, window=1.0) as limiter:
        start = anyio.current_time()
        await limiter.acquire()

        async def give_up() -> None:
            with anyio.move_on_after(0.3):
                await limiter.acquire()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(give_up)
            await anyio.sleep(0.1)
            await limiter.acquire()

        assert 1.0 <= anyio.current_time() - start <= 1.9


async def test_a_refusal_pauses_all(server: Server, name: str) -> None:
    """A refusal that one process hears holds the others as well, and nobody is let go before the pause ends."""
    first = RedisRateLimiter(server.url, name=name)
    second = RedisRateLimiter(server.url, name=name)
    async with first, second:
        await first.acquire()
        await second.acquire()
        await anyio.sleep(0.05)  # well behind the pause that an empty server begins with when it has just started
        now = anyio.current_time()
        first.observe(429, {"retry-after": "1"}, sent_at=now, received_at=now)
        waited: list[float] = []

        async def request(limiter: RedisRateLimiter) -> None:
            await limiter.acquire()
            waited.append(anyio.current_time() - now)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(request, first)
            await anyio.sleep(0.2)
            tasks.start_soon(request, second)

    assert min(waited) >= 0.99
    assert second.statistics().throttled == 0
    assert second.statistics().paused_until == pytest.approx(now + 1, abs=0.5)


@on_asyncio
async def test_a_pause_voids_the_turns_in_hand(server: Server, name: str) -> None:
    """Turns that were taken before a refusal are not used in the pause."""
    async with (
        RedisRateLimiter(server.url, name=name, limit=100, window=10.0) as limiter,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(4):
            tasks.start_soon(limiter.acquire)
        while limiter.statistics().departed < 2:
            await anyio.sleep(0.01)
        now, departed = anyio.current_time(), limiter.statistics().departed
        limiter.observe(429, {"retry-after": "1"}, sent_at=now, received_at=now)
        await anyio.sleep(0.9)

        assert limiter.statistics().departed == departed


async def test_a_known_pause_is_not_prolonged(server: Server, name: str) -> None:
    """A refusal of what was sent before the end of a pause that another process began changes nothing."""
    first = RedisRateLimiter(server.url, name=name)
    second = RedisRateLimiter(server.url, name=name)
    async with first, second, anyio.create_task_group() as tasks:
        now = anyio.current_time()
        first.observe(429, {"retry-after": "1"}, sent_at=now, received_at=now)
        tasks.start_soon(first.acquire)
        await anyio.sleep(0.2)
        tasks.start_soon(second.acquire)
        await until(lambda: second.statistics().paused_until is not None)
        second.observe(429, {"retry-after": "60"}, sent_at=now, received_at=anyio.current_time())
        with anyio.fail_after(30):
            await second.acquire()

    assert second.statistics().throttled == 1


async def test_the_services_headers_are_heard(server: Server, name: str) -> None:
    """With nothing left in the service's window, nobody goes before it ends."""
    async with RedisRateLimiter(server.url, name=name, limit=100, window=1.0) as limiter:
        await limiter.acquire()
        now, unix = anyio.current_time(), int(time.time())
        headers = {
            "date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(unix)),
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": str(unix + 1),
        }
        limiter.observe(200, headers, sent_at=now, received_at=now)
        await limiter.acquire()

        assert anyio.current_time() - now >= 0.99


def test_a_later_event_loop_waits_for_the_services_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing left in the service's window it sleeps, also in a later event loop, whatever its clock shows."""
    limiter = RedisRateLimiter(f"redis://127.0.0.1:{free_port()}", limit=1_000)
    looks = count_looks(limiter, monkeypatch)

    headers = {
        "date": formatdate(UNIX, usegmt=True),
        "x-ratelimit-limit": "1000",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": str(int(UNIX) + 8),
    }

    async def wait() -> None:
        now = anyio.current_time()
        if not looks:
            limiter.observe(200, headers, sent_at=now, received_at=now)
        with anyio.move_on_after(0.7):
            await limiter.acquire()

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(wait, backend=backend)

    assert limiter.statistics().departed == 0
    assert len(looks) <= 3 * 3


async def test_a_client_of_ones_own(server: Server, name: str) -> None:
    """An open coredis client is used as it is, and stays open."""
    async with coredis.Redis.from_url(server.url, decode_responses=True) as client:
        limiter = RedisRateLimiter(client, name=name, limit=10, window=1.0)
        for _ in range(3):
            await limiter.acquire()
            limiter.lost()
        async with limiter:
            await limiter.acquire()

        assert await client.ping()
    assert limiter.statistics().departed == 4


async def test_nothing_is_left_in_redis(server: Server, name: str) -> None:
    """What the limiter keeps in Redis is one key, which expires."""
    async with RedisRateLimiter(server.url, name=name) as limiter, coredis.Redis.from_url(server.url) as client:
        await limiter.acquire()
        keys = [
            key async for key in client.scan_iter(match="ucaptcha:{limit:*" + name.split("::")[-1].split("[")[0] + "*")
        ]
        lives = [await client.pttl(key) for key in keys]

    assert len(lives) >= 1
    assert all(0 < life <= 3_600_000 for life in lives)


# --- when Redis is away ---


async def test_without_redis_there_is_a_clear_error() -> None:
    """Where no Redis answers, acquire says so at once, and nothing leaves."""
    async with RedisRateLimiter(f"redis://user:secret@127.0.0.1:{free_port()}") as limiter:
        for _ in range(3):
            with pytest.raises(RedisUnavailableError, match="Redis") as caught:
                await limiter.acquire()
            assert caught.value.retryable
            assert caught.value.charged is False
            assert "secret" not in repr(caught.value) + str(caught.value.__cause__)
    statistics = limiter.statistics()

    assert (statistics.departed, statistics.waiting, statistics.in_transit) == (0, 0, 0)


async def test_all_who_wait_learn_that_redis_is_away() -> None:
    """A thousand waiters do not each wait for Redis in turn."""
    async with RedisRateLimiter(f"redis://127.0.0.1:{free_port()}") as limiter:
        errors = 0

        async def request() -> None:
            nonlocal errors
            try:
                await limiter.acquire()
            except RedisUnavailableError:
                errors += 1

        with anyio.fail_after(15):
            async with anyio.create_task_group() as tasks:
                for _ in range(1_000):
                    tasks.start_soon(request)

    assert errors == 1_000


async def test_a_fallback_paces_while_redis_is_away() -> None:
    """With a fallback, requests leave at its pace."""
    fallback = RateLimiter(2, window=10)
    async with RedisRateLimiter(f"redis://127.0.0.1:{free_port()}", fallback=fallback) as limiter:
        await limiter.acquire()
        await limiter.acquire()
        with anyio.move_on_after(0.2) as scope:
            await limiter.acquire()
    statistics = limiter.statistics()

    assert scope.cancelled_caught
    assert (statistics.departed, statistics.in_transit) == (2, 2)
    assert (fallback.statistics().departed, fallback.statistics().in_transit) == (2, 0)


@on_trio
async def test_a_hanging_redis_is_given_up(own_server: Server, name: str) -> None:
    """A Redis that accepts and never answers is an error after the timeout; when it answers again, all is well."""
    assert own_server.process is not None
    async with RedisRateLimiter(own_server.url, name=name, window=1.0, timeout=0.2) as limiter:
        await limiter.acquire()
        own_server.process.send_signal(signal.SIGSTOP)
        with anyio.fail_after(10), pytest.raises(RedisUnavailableError):
            await limiter.acquire()
        own_server.process.send_signal(signal.SIGCONT)
        await anyio.sleep(1.1)
        await limiter.acquire()


@on_asyncio
async def test_a_restarted_redis_is_used_again(own_server: Server, name: str) -> None:
    """After a restart of Redis the schedule starts anew, and the headers that were heard are not misread."""
    async with RedisRateLimiter(own_server.url, name=name, window=1.0) as limiter:
        for _ in range(50):
            await limiter.acquire()
        own_server.stop()
        with pytest.raises(RedisUnavailableError):
            await limiter.acquire()
        own_server.start()
        await anyio.sleep(1.1)
        for _ in range(3):
            await limiter.acquire()

        assert limiter._pace.departures.total == 53


@contextmanager
def far_away(server: Server, delay: float) -> Iterator[str]:
    """The address of a Redis whose answers take their time, whatever this machine is doing."""
    line = socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler, bind_and_activate=True)

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", server.port)) as redis:
                while data := self.request.recv(65536):
                    redis.sendall(data)
                    answer = redis.recv(65536)
                    time.sleep(delay)
                    self.request.sendall(answer)

    line.RequestHandlerClass = Relay
    line.daemon_threads = True
    thread = threading.Thread(target=line.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"redis://127.0.0.1:{line.server_address[1]}"
    finally:
        line.shutdown()
        thread.join()
        line.server_close()


async def test_a_redis_too_far_away_is_said_to_be(server: Server, name: str) -> None:
    """If Redis is so far away that its clock cannot be known well enough, the error says so."""
    with far_away(server, 0.02) as url:
        async with RedisRateLimiter(url, name=name, limit=10, window=1.0) as limiter:
            with pytest.raises(RedisUnavailableError, match="allows"):
                await limiter.acquire()


async def test_a_slow_redis_still_gives_turns(server: Server, name: str) -> None:
    """If the way to Redis takes long, but less than the window allows, later turns are asked for."""
    with far_away(server, 0.03) as url:
        async with RedisRateLimiter(url, name=name, limit=100, window=10.0) as limiter:
            with anyio.fail_after(10):
                for _ in range(5):
                    await limiter.acquire()


# --- mistakes ---


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", ""])
def test_urls_are_checked(url: str) -> None:
    """What is no Redis URL is refused when the limiter is made."""
    with pytest.raises(ConfigurationError, match="redis"):
        RedisRateLimiter(url)


def test_the_password_is_not_shown() -> None:
    """A password in the URL appears in no repr."""
    assert "secret" not in repr(RedisRateLimiter("redis://user:secret@localhost"))


async def test_a_limiter_with_a_url_must_be_open(server: Server, name: str) -> None:
    """A limiter that opens its own connection is used inside `async with`, which may be entered again."""
    limiter = RedisRateLimiter(server.url, name=name)
    for _ in range(2):
        with pytest.raises(ClientStateError, match="async with"):
            await limiter.acquire()
        async with limiter:
            await limiter.acquire()


def test_without_coredis_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed, the import says what to install."""
    monkeypatch.setitem(sys.modules, "coredis", None)
    for name in [name for name in sys.modules if name.startswith("ucaptcha_async.redis")]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(ImportError, match=r"ucaptcha_async\[redis\]"):
        importlib.import_module("ucaptcha_async.redis")


# --- the arithmetic, on a clock of our own ---


@attrs.define
class Wire:
    """The few lines of Redis' protocol that a test needs."""

    stream: Any

    @classmethod
    @contextmanager
    def to(cls, server: Server) -> Iterator[Wire]:
        with socket.create_connection(("127.0.0.1", server.port)) as line, line.makefile("rwb") as stream:
            yield cls(stream)

    def call(self, *arguments: object) -> Any:
        texts = [str(argument).encode() for argument in arguments]
        parts = [b"*%d\r\n" % len(texts), *(b"$%d\r\n%s\r\n" % (len(text), text) for text in texts)]
        self.stream.write(b"".join(parts))
        self.stream.flush()
        return self.read()

    def read(self) -> Any:
        line = self.stream.readline()
        kind, value = line[:1], line[1:-2]
        if kind == b"*":
            return [self.read() for _ in range(int(value))]
        if kind == b"$":
            return self.stream.read(int(value) + 2)[:-2]
        assert kind != b"-", value
        return int(value) if kind == b":" else value


def test_departures_of_all_are_known_by_our_own() -> None:
    """How many had left of all processes is told by the numbers of our own departures, the latest of them."""
    departures = SharedPace(3, 1.0).departures
    assert isinstance(departures, _Numbered)
    for moment in range(10):
        departures.add(float(moment), 5 * moment)

    assert [departures.until(time) for time in (8.5, 9.0, 0.0)] == [40, 45, departures.until(5.0)]
    departures.forget()
    assert departures.until(3.0) == departures.total == 45


def test_turns_with_others_behind_are_not_given_back(server: Server) -> None:
    """A turn that was not used is given back only as long as no other process has taken one behind it."""
    first, second = SharedPace(30, 1.0), SharedPace(30, 1.0)
    with Stage.on(server) as stage:
        for now, pace in [(0.0, first), (0.01, second), (0.03, first)]:
            assert pace.ready_at(now) == math.inf
            stage.visit(pace, now)

    assert second.ready_at(0.03) == pytest.approx(first.interval, abs=1e-5)
    assert first.ready_at(0.03) == pytest.approx(2 * first.interval, abs=1e-5)


@pytest.mark.parametrize("limit", [1, 3])
def test_more_processes_than_turns(server: Server, limit: int) -> None:
    """However many processes wait, and however long the next turn is away: the limit is kept, and used."""
    paces = [SharedPace(limit, 1.0) for _ in range(40)]
    due, times = dict.fromkeys(paces, 0.0), []
    with Stage.on(server) as stage:
        for tick in range(20_000):
            now = tick / 1_000
            for pace in paces:
                if (ready := pace.ready_at(now)) <= now:
                    pace.depart(now)
                    times.append(now)
                elif ready == math.inf and due[pace] <= now:
                    stage.visit(pace, now)
                    due[pace] = now + pace.retry_in

    assert most_in_a_window(times, 1.0) <= limit
    assert len(times) >= 0.95 * 20 * limit
    assert stage.visits < 25 * len(paces) * len(times)


def test_the_strictest_limit_holds_for_all(server: Server) -> None:
    """Processes that disagree on the limit keep the strictest, also while nobody uses that."""
    loose, strict = SharedPace(1_000, 1.0), SharedPace(50, 1.0)
    times: list[float] = []
    with Stage.on(server) as stage:
        for tick in range(4_000):
            now = tick / 1_000
            for pace in (strict, loose) if tick < 1_000 else (loose,):
                while pace.ready_at(now) <= now:
                    pace.depart(now)
                    times.append(now)
                if pace.ready_at(now) == math.inf:
                    stage.visit(pace, now)

    assert most_in_a_window(times, 1.0) <= 50
    assert len(times) >= 0.9 * 4 * 50


@pytest.mark.parametrize(("idle", "lost"), [(10.0, True), (4_000.0, False)])
def test_a_schedule_that_is_gone(server: Server, idle: float, lost: bool) -> None:
    """If the schedule is gone that was there a moment ago, all wait a window; not if it had time to expire."""
    pace = SharedPace(100, 1.0)
    with Stage.on(server) as stage:
        stage.visit(pace, 0.0)
        pace.depart(0.0)
        stage.wire.call("DEL", stage.key)
        stage.visit(pace, idle)

    assert pace.forgot is lost
    assert (pace.ready_at(idle) == math.inf) is lost
    assert (pace.retry_in > 1.0) is lost


def test_a_clock_that_was_set_back(server: Server) -> None:
    """If Redis' clock is found to be set back by much, all wait a window."""
    pace = SharedPace(100, 1.0)
    with Stage.on(server) as stage:
        stage.visit(pace, 0.0)
        pace.depart(0.0)
        stage.unix -= 3_600
        stage.visit(pace, 0.1)

    assert pace.ready_at(0.1) == math.inf
    assert pace.retry_in > 1.0


def test_a_pause_that_begins_during_a_visit(server: Server) -> None:
    """Turns that are on their way when a refusal is heard are void, and the next visit tells the others of it."""
    first, second = SharedPace(1_000, 10.0), SharedPace(1_000, 10.0)
    with Stage.on(server) as stage:
        question = first.ask(1, first.interval, 0.0)
        first.pause(0.4)
        first.take(stage.answer(question, 0.0), first.interval, 0.0, 0.0)
        assert first.ready_at(0.0) == math.inf
        assert first.retry_in == 0
        stage.visit(first, 0.1)
        stage.visit(second, 0.2)

    assert 0.4 <= first.ready_at(0.1) < second.ready_at(0.2)


STAGED = SCRIPT.replace("redis.call('TIME')", "{ARGV[17], ARGV[18]}").replace("redis.pcall('INFO', 'server')", "false")


@attrs.define
class Stage:
    """A schedule in a real Redis, on a clock of our own."""

    wire: Wire
    key: str = attrs.field(factory=lambda: f"staged:{time.monotonic_ns()}")
    unix: int = 1_700_000_000
    visits: int = 0

    @classmethod
    @contextmanager
    def on(cls, server: Server) -> Iterator[Stage]:
        with Wire.to(server) as wire:
            yield cls(wire)

    def answer(self, question: list[str | int], now: float) -> Any:
        self.visits += 1
        clock = divmod(round((self.unix + now) * 1e6), 1_000_000)
        return self.wire.call("EVAL", STAGED, 1, self.key, *question, *clock)

    def visit(self, pace: SharedPace, now: float, wanted: int = 1) -> None:
        pace.take(self.answer(pace.ask(wanted, pace.interval, now), now), pace.interval, now, now)


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.004, 0.0055, 0.02, 0.3]),
        st.sampled_from([0.0, 0.001, 0.003, 0.01]),
        st.sampled_from([0.0, 0.001, 0.003, 0.01]),
        st.integers(1, 40),
        st.sampled_from([0.0] * 15 + [0.2, 1.0]),
    ),
    min_size=50,
    max_size=250,
)


@given(limit=st.sampled_from([1, 2, 5, 50, 200, 450]), steps=steps)
@settings(deadline=None, max_examples=60)
def test_no_window_exceeds_the_limit_whatever_happens(server: Server, limit: int, steps: list[Any]) -> None:
    """Late processes, slow trips, unused turns and pauses: the departures of all together keep the limit."""
    assert STAGED != SCRIPT
    paces = [SharedPace(limit, 1.0) for _ in range(3)]
    busy, now, redis_now = [0.0] * 3, 0.0, 0.0
    times: list[float] = []
    with Stage.on(server) as stage:
        for number, gap, there, back, wanted, pause in steps:
            pace = paces[number]
            now += gap
            moment = max(now, busy[number])
            if pause:
                pace.pause(moment + pause)
            while pace.ready_at(moment) <= moment:
                pace.depart(moment)
                times.append(moment)
            if pace.ready_at(moment) == math.inf:
                arguments = pace.ask(wanted, pace.interval, moment)
                redis_now = max(redis_now, moment + there)
                busy[number] = redis_now + back
                reply = stage.answer(arguments, redis_now)
                pace.take(reply, pace.interval, moment, busy[number])

    event(f"departures: {min(len(times) // 20, 5) * 20} or more")
    assert most_in_a_window(sorted(times), 1.0) <= limit


def test_processes_accommodate_others(server: Server) -> None:
    """Three processes beside a stranger who takes 30 %: what is left is used, by all three, and nobody is refused."""
    limit, rng = 500, random.Random(1)
    admitted: dict[int, Counter[int]] = {}
    refused = 0
    paces = [SharedPace(limit, 10.0) for _ in range(3)]
    quotas = [Quota(pace) for pace in paces]
    arrivals: list[tuple[float, int, float]] = [(moment / 15, -1, 0.0) for moment in range(15 * 45)]
    answers: list[tuple[float, int, float, dict[str, str]]] = []
    heapify(arrivals)
    with Stage.on(server) as stage:
        stage.unix = UNIX
        for tick in range(45_000):
            now = tick / 1_000
            while arrivals and arrivals[0][0] <= now:
                _, who, sent_at = heappop(arrivals)
                window = admitted.setdefault(int((UNIX + now) // 10), Counter())
                window[who] += window.total() < limit
                refused += window.total() >= limit
                headers = {
                    "date": formatdate(UNIX + now, usegmt=True),
                    "x-ratelimit-limit": str(limit),
                    "x-ratelimit-remaining": str(limit - window.total()),
                    "x-ratelimit-reset": str(int((UNIX + now) // 10 * 10 + 10)),
                }
                if who >= 0:
                    heappush(answers, (now + rng.uniform(0.03, 0.07), who, sent_at, headers))
            while answers and answers[0][0] <= now:
                _, who, sent_at, headers = heappop(answers)
                quotas[who].hear(Reading.of(headers), sent_at, now)
            for who, (pace, quota) in enumerate(zip(paces, quotas, strict=True)):
                while pace.ready_at(now) <= now:
                    pace.depart(now)
                    heappush(arrivals, (now + rng.uniform(0.03, 0.07), who, now))
                spacing = quota.spacing(now)
                if pace.ready_at(now) == math.inf and spacing < math.inf:
                    spacing = max(spacing, pace.interval)
                    pace.take(stage.answer(pace.ask(20, spacing, now), now), spacing, now, now)
    windows = [admitted[number] for number in sorted(admitted)][1:-1]

    assert refused == 0
    assert all(window.total() - window[-1] >= 0.93 * (limit - window[-1]) for window in windows)
    assert all(window[who] >= 50 for window in windows for who in range(3))
