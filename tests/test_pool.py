"""The pool: its numbers after every kind of end, its queue, and the last look before a request is written."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import anyio
import attrs
import pytest

from tests.transport_kit import MemoryWire, answered, exchange, response, unanswered
from ucaptcha_async.errors import ClientStateError
from ucaptcha_async.pacing import RateLimiter
from ucaptcha_async.pacing.event_loop import current
from ucaptcha_async.transport.exchange import UnansweredError
from ucaptcha_async.transport.network import Origin
from ucaptcha_async.transport.pool import DISTRUST, POLL_IDLE, SUBMIT_IDLE, Heads, Pool
from ucaptcha_async.transport.wires import Waiting

pytestmark = pytest.mark.virtual_time

GOOD = response(b'{"balance":1}')
ORIGIN = Origin.of("https://api.example.com")


@attrs.define(eq=False)
class Network:
    """Makes wires, each as the next of `plans` says.

    Attributes:
        plans: For each connection its answers, or an exception, or what is awaited before it is there.
        wires: Those that were opened.
    """

    plans: list[Any] = attrs.field(factory=list)
    wires: list[MemoryWire] = attrs.field(factory=list)

    async def connect(self) -> MemoryWire:
        await anyio.lowlevel.checkpoint()
        plan = self.plans.pop(0) if self.plans else [[GOOD]] * 1_000
        if isinstance(plan, Exception):
            raise plan
        if callable(plan):
            plan = await plan()
        wire = plan if isinstance(plan, MemoryWire) else MemoryWire(list(plan))
        self.wires.append(wire)
        return wire

    def open(self) -> list[MemoryWire]:
        return [wire for wire in self.wires if not wire.closed]


def made(*plans: Any, max_connections: int = 2, **options: Any) -> tuple[Pool, Network]:
    network = Network(list(plans))
    options.setdefault("connect_timeout", 5.0)
    pool = Pool(network.connect, Heads(ORIGIN), max_connections=max_connections, clock=current().time, **options)
    return pool, network


def numbers(pool: Pool) -> tuple[int, int, int]:
    now = pool.statistics()
    return now.busy, now.idle, now.waiting


async def still_whole(pool: Pool, network: Network) -> None:
    """As many requests as ever go at once, and nothing is open that is not idle."""
    assert pool.statistics().busy == pool.statistics().waiting == 0
    assert len(network.open()) == pool.statistics().idle
    limit = pool.statistics().limit
    together = 0

    async def plan() -> MemoryWire:
        return MemoryWire([[GOOD]] * 9, sending=meet)

    async def meet() -> None:
        nonlocal together
        together += 1
        while together < limit:
            await anyio.sleep(0.01)

    await anyio.sleep(DISTRUST + 1)  # so that each request opens a connection, and keeps it
    network.plans = [plan] * limit
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(limit):
                tasks.start_soon(answered, pool, exchange())
    assert limit == together
    assert (0, limit, 0) == numbers(pool)
    await pool.aclose()
    assert not network.open()


# --- every kind of end ------------------------------------------------------------------------------------------------

# What the connection does; whether it is kept; what the request ends with; whether it counts as sent.
ENDS: dict[str, tuple[Any, bool, str | None, bool]] = {
    "answered": ([[GOOD]], True, None, True),
    "in pieces": ([[GOOD[:9], GOOD[9:40], GOOD[40:]]], True, None, True),
    "closed by the service": ([[response(b"{}", b"Connection: close")]], False, None, True),
    "to its end": ([[b"HTTP/1.1 200 OK\r\n\r\n{}", b""]], False, None, True),
    "refused": (ConnectionRefusedError(111, "Connection refused"), False, "connection refused", False),
    "no connection": (anyio.sleep_forever, False, "no connection within 5 s", False),
    "a failed write": ([[ConnectionResetError("reset")]], False, "the connection broke: reset", True),
    "no answer at all": ([[b""]], False, "the service closed the connection without an answer", True),
    "cut off": ([[GOOD[:-1], b""]], False, "the answer was cut off", True),
    "malformed": ([[b"SSH-2.0\r\n\r\n"]], False, "the answer is not HTTP/1.1", True),
    "too large": ([[response(b" " * 2_000_000)]], False, "an answer of more than 1048576 bytes", True),
    "too late": ([[GOOD[:-1]]], False, "no answer within 10 s", True),
    "extra bytes": ([[GOOD + b"x"]], False, None, True),
    "spoken to first": (MemoryWire(left=Waiting.BYTES), False, "the service spoke before it was asked", False),
    "closed at once": (MemoryWire(left=Waiting.CLOSED), False, "the service closed the connection at once", False),
}


@pytest.mark.parametrize("name", ENDS)
async def test_every_end(name: str) -> None:
    """The pool has its size back, the connection is kept or closed, and what was sent is known."""
    plan, kept, failure, sent = ENDS[name]
    pool, network = made(attrs.evolve(plan) if isinstance(plan, MemoryWire) else plan)
    request, limiter = exchange(), RateLimiter(10**6)
    request.limiter = limiter

    if failure is None:
        reply = await answered(pool, request)
        assert (200, True) == (reply.status, reply.first)
    else:
        error = await unanswered(pool, request)
        assert (failure, False) == (error.reason, error.permanent)

    assert (sent, sent) == (request.sent, request.sent_at is not None)
    assert 0 == limiter.statistics().in_transit
    assert int(kept) == pool.statistics().idle == len(network.open())
    await still_whole(pool, network)


async def cancelled_while(pool: Pool, busy: Callable[[], bool], **options: Any) -> Any:
    """Start a request, cancel it once `busy()` is true, and return it."""
    request = exchange(**options)

    async def send() -> None:
        try:
            await pool.send(request)
        finally:
            if request.permitted:
                request.limiter.lost()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        while not busy():
            await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    return request


async def test_cancelled_while_connecting() -> None:
    """Nothing was sent, nothing stays."""
    pool, network = made(anyio.sleep_forever)

    request = await cancelled_while(pool, lambda: pool.statistics().busy == 1)

    assert not request.sent
    assert not request.permitted
    await still_whole(pool, network)


async def test_cancelled_while_waiting_for_the_permit() -> None:
    """The connection that was opened for it is closed."""
    pool, network = made()
    limiter = RateLimiter(1, 100.0)
    await limiter.acquire()

    request = await cancelled_while(pool, lambda: limiter.statistics().waiting == 1, limiter=limiter)

    assert not request.sent
    assert 1 == len(network.wires)
    assert not network.open()
    await still_whole(pool, network)


async def test_cancelled_while_an_idle_connection_waits_for_the_permit() -> None:
    """The connection was not taken yet, and stays."""
    pool, network = made()
    limiter = RateLimiter(1, 10.0)
    await answered(pool, exchange(limiter))

    request = await cancelled_while(pool, lambda: limiter.statistics().waiting == 1, limiter=limiter)

    assert not request.sent
    assert (0, 1, 0) == numbers(pool)
    await still_whole(pool, network)


async def test_cancelled_during_the_answer() -> None:
    """The connection is closed: its answer would be taken for the next request's."""
    pool, network = made([[GOOD[:-1]]])

    request = await cancelled_while(pool, lambda: bool(network.wires and network.wires[0].sent))

    assert request.sent
    assert not network.open()
    await still_whole(pool, network)


async def test_cancelled_in_the_queue() -> None:
    """It leaves the queue, and the others stay in order."""
    pool, network = made([[GOOD[:-1]]], max_connections=1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(unanswered, pool, exchange())
        while not network.wires or not network.wires[0].sent:
            await anyio.sleep(0.01)
        request = await cancelled_while(pool, lambda: pool.statistics().waiting == 1)

    assert not request.sent
    await still_whole(pool, network)


async def test_a_storm() -> None:
    """Requests that end in every way at random, many at once, leave the pool as it was."""
    rng = random.Random(5)
    plans = [plan for plan, *_ in ENDS.values() if not isinstance(plan, MemoryWire)]

    async def plan() -> Any:
        await anyio.sleep(rng.uniform(0, 0.1))
        chosen = rng.choice(plans)
        if isinstance(chosen, Exception):
            raise chosen
        if callable(chosen):
            return await chosen()
        wire = MemoryWire(list(chosen), left=rng.choice([Waiting.NOTHING] * 8 + [Waiting.BYTES, Waiting.CLOSED]))
        wire.sending = lambda: anyio.sleep(rng.uniform(0, 0.2))
        return wire

    pool, network = made(*[plan] * 3_000, max_connections=7)
    limiter = RateLimiter(50, 1.0)

    async def one() -> None:
        request = exchange(limiter, submit=rng.random() < 0.3, timeout=rng.uniform(0.05, 2))
        with anyio.move_on_after(rng.uniform(0, 10)):
            with contextlib.suppress(UnansweredError):
                await answered(pool, request)

    async with anyio.create_task_group() as tasks:
        for _ in range(600):
            tasks.start_soon(one)
            await anyio.sleep(rng.uniform(0, 0.05))

    assert 0 == limiter.statistics().in_transit
    await still_whole(pool, network)


# --- the queue and the order of connections ---------------------------------------------------------------------------


async def test_first_come_first_served() -> None:
    """With one connection, requests are written in the order in which they came, however many wait."""
    pool, network = made(max_connections=1)

    async with anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(answered, pool, exchange(body=b"%d" % number))
            await anyio.lowlevel.checkpoint()

    written = [int(data.rpartition(b"\r\n")[2]) for data in network.wires[0].sent]
    assert list(range(300)) == written
    assert 1 == pool.statistics().opened


async def test_last_in_first_out() -> None:
    """The connection that was used last is used next."""
    pool, network = made(max_connections=5)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(answered, pool, exchange())
    before = [len(wire.sent) for wire in network.wires]

    for _ in range(20):
        await answered(pool, exchange())

    assert [1] * 5 == before
    assert [1, 1, 1, 1, 21] == sorted(len(wire.sent) for wire in network.wires)


@pytest.mark.parametrize(("submit", "limit"), [(True, SUBMIT_IDLE), (False, POLL_IDLE)])
async def test_old_connections_are_not_used(submit: bool, limit: float) -> None:
    """A submit goes over a new connection, or one that was used just now; a poll over one that is not too old."""
    pool, network = made()
    await answered(pool, exchange())

    await anyio.sleep(limit - 0.01)
    assert not (await answered(pool, exchange(submit=submit))).first
    await anyio.sleep(limit + 0.01)
    assert (await answered(pool, exchange(submit=submit))).first

    assert 2 == len(network.wires)
    assert (0, 2 if submit else 1, 0) == numbers(pool)


async def test_a_long_wait_for_the_permit_makes_no_connection_too_old() -> None:
    """Submits that wait for the limiter for seconds still get through, each over a connection that is fit."""
    pool, network = made(max_connections=50)
    limiter = RateLimiter(1, 2.0)

    with anyio.fail_after(200):
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(answered, pool, exchange(limiter, submit=True))

    assert 50 == sum(len(wire.sent) for wire in network.wires)
    assert 0 == limiter.statistics().in_transit


# --- the last look ----------------------------------------------------------------------------------------------------


async def test_a_closed_connection_costs_nothing() -> None:
    """What the service closed while it was idle is replaced, before anything is sent; nobody is distrusted."""
    pool, network = made()
    await answered(pool, exchange())
    network.wires[0].left = Waiting.CLOSED

    reply = await answered(pool, exchange(submit=True))

    assert reply.first
    assert [1, 1] == [len(wire.sent) for wire in network.wires]
    assert not (await answered(pool, exchange())).first


async def test_slow_connects_do_not_bunch() -> None:
    """The permit is taken with the connection in hand: no window has more departures than the limit."""
    departures: list[float] = []
    rng = random.Random(3)

    async def slow() -> MemoryWire:
        await anyio.sleep(rng.uniform(0, 3))

        async def note() -> None:
            departures.append(anyio.current_time())

        return MemoryWire([[GOOD]] * 300, sending=note)

    pool, _ = made(*[slow] * 300, max_connections=100)
    limiter = RateLimiter(20, 1.0)
    async with anyio.create_task_group() as tasks:
        for _ in range(300):
            tasks.start_soon(answered, pool, exchange(limiter))

    departures.sort()
    assert 300 == len(departures)
    assert 0.99 < min(later - earlier for earlier, later in zip(departures, departures[20:], strict=False))
    assert 0 == limiter.statistics().in_transit


async def test_a_stale_permit_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What blocks the loop between permit and write makes no departure late: the permit is given up, told so, and
    taken again."""
    pool, network = made()
    limiter = RateLimiter(10**6)
    request = exchange(limiter)
    blocked = 3
    now = request.clock

    def clock() -> float:
        return now() + offset

    offset = 0.0
    request.clock = clock
    fits = MemoryWire.waiting

    def waiting(wire: MemoryWire) -> Waiting:
        nonlocal blocked, offset
        if blocked:
            blocked -= 1
            offset += 0.1
        return fits(wire)

    monkeypatch.setattr(MemoryWire, "waiting", waiting)
    await answered(pool, request)

    assert (4, 0) == (limiter.statistics().departed, limiter.statistics().in_transit)
    assert 1 == sum(len(wire.sent) for wire in network.wires)


async def test_what_is_withdrawn_is_not_written() -> None:
    """Nobody waits for it any more: it leaves neither queue nor limiter as a request."""
    pool, network = made()
    limiter = RateLimiter(1, 5.0)
    await limiter.acquire()
    request = exchange(limiter)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(unanswered, pool, request)
        await anyio.sleep(1)
        request.withdrawn = True

    assert not request.sent
    assert not any(wire.sent for wire in network.wires)
    await still_whole(pool, network)


async def test_what_is_recalled_is_not_written() -> None:
    """Neither from the queue, where no connection is opened for it, nor from the limiter's line."""
    pool, network = made(max_connections=2)
    limiter = RateLimiter(1, 5.0)
    await limiter.acquire()
    admitted = True
    requests = [exchange(limiter) for _ in range(10)]
    async with anyio.create_task_group() as tasks:
        for request in requests:
            request.admitted = lambda: admitted
            tasks.start_soon(unanswered, pool, request)
        await anyio.sleep(1)
        admitted = False

    assert all(request.recalled and not request.sent for request in requests)
    assert len(network.wires) == 2
    assert not any(wire.sent for wire in network.wires)
    await still_whole(pool, network)


# --- the end ----------------------------------------------------------------------------------------------------------


async def refused(pool: Pool, request: Any) -> None:
    with pytest.raises(ClientStateError):
        await answered(pool, request)


async def test_nothing_is_sent_after_the_end() -> None:
    """Whatever a request waits for when the pool is closed: the queue, a connection, a permit, the limiter."""

    async def late() -> MemoryWire:
        await anyio.sleep(2)
        return MemoryWire([[GOOD]])

    pool, network = made([[GOOD[:-1]]], late, max_connections=3)
    limiter = RateLimiter(1, 3.0)
    await limiter.acquire()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(refused, pool, exchange())
        await anyio.sleep(0.1)
        tasks.start_soon(refused, pool, exchange())
        await anyio.sleep(0.1)
        tasks.start_soon(refused, pool, exchange(limiter))
        await anyio.sleep(0.1)
        tasks.start_soon(refused, pool, exchange())
        await anyio.sleep(0.1)
        assert (3, 0, 1) == numbers(pool)
        await pool.aclose()
        network.wires[0].answers.clear()
        tasks.start_soon(refused, pool, exchange())
        await anyio.sleep(20)

    assert 1 == sum(len(wire.sent) for wire in network.wires)
    assert (0, 0, 0) == numbers(pool)
    assert not network.open()


# --- whose answer is it? ----------------------------------------------------------------------------------------------


async def distrusted(pool: Pool) -> bool:
    """Whether connections carry one request each."""
    opened = pool.statistics().opened
    for _ in range(2):
        assert (await answered(pool, exchange())).first
    return pool.statistics().opened == opened + 2


async def test_a_second_answer_in_the_same_packet() -> None:
    """The first is the request's own; the connection is closed, and for a minute each carries one request."""
    told: list[str] = []
    pool, network = made([[GOOD + GOOD]], on_extra_bytes=lambda: told.append("extra"))
    await answered(pool, exchange())

    assert await distrusted(pool)
    assert ["extra"] == told
    await anyio.sleep(DISTRUST)
    await answered(pool, exchange())
    assert not (await answered(pool, exchange())).first
    await still_whole(pool, network)


async def test_a_second_answer_on_an_idle_connection() -> None:
    """Nothing was sent on it since: the request goes over another one, and all idle ones are closed."""
    pool, network = made(max_connections=5)
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(answered, pool, exchange())
    for wire in network.wires:
        wire.says(GOOD)

    reply = await answered(pool, exchange(submit=True))

    assert reply.first
    assert 5 == len(network.wires)
    assert not network.open()
    assert await distrusted(pool)


async def test_distrusted_connections_count_until_they_are_closed() -> None:
    """However many idle ones are given up at once: never more than allowed are open, slow as the answers may be."""
    most = 0

    async def count() -> None:
        nonlocal most
        most = max(most, len(network.open()))
        await anyio.sleep(1)

    pool, network = made(max_connections=3)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(answered, pool, exchange())
    for wire in network.wires:
        wire.says(GOOD)
    network.plans = [MemoryWire([[GOOD]], sending=count) for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(answered, pool, exchange())
            await anyio.sleep(0.1)

    assert most == 3
    await still_whole(pool, network)


@pytest.mark.parametrize(
    ("said", "trusted"),
    [
        (b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n", True),
        (b"HTTP/1.0 408 Request Timeout\r\n\r\n", False),
        (GOOD, False),
        (response(b"{}", b"Connection: close"), False),
    ],
)
async def test_a_timeout_notice_is_no_answer(said: bytes, trusted: bool) -> None:
    """A service that closes an idle connection with a 408 sends nobody else's answer."""
    pool, network = made()
    await answered(pool, exchange())

    network.wires[0].says(said)

    assert (await answered(pool, exchange())).first
    assert trusted is not (await answered(pool, exchange())).first
    await still_whole(pool, network)


async def test_one_warning_for_each_time(caplog: pytest.LogCaptureFixture) -> None:
    """A service that goes on sending extra bytes is warned of once, until it has been quiet for a minute."""
    plans = [[[GOOD + b"x"]]] * 10
    pool, _ = made(*plans)
    for _ in range(5):
        await answered(pool, exchange())
        await anyio.sleep(DISTRUST - 1)
    assert 1 == len(caplog.records)

    await anyio.sleep(2)
    await answered(pool, exchange())
    assert 2 == len(caplog.records)
    assert {"ucaptcha_async"} == {record.name for record in caplog.records}


async def test_a_discarded_connection_is_closed() -> None:
    """Who finds that an answer is another request's says so: no request goes over that connection again."""
    pool, network = made()
    await answered(pool, exchange())
    reply = await answered(pool, exchange())
    assert not reply.first

    reply.discard()

    assert (0, 0, 0) == numbers(pool)
    assert await distrusted(pool)
    assert not network.open()


async def test_a_discarded_connection_gives_no_answer_to_the_next() -> None:
    """If it carries a request already, that request's answer is the wrong one too, and not believed."""
    pool, network = made(MemoryWire([[GOOD], [GOOD]]))
    reply = await answered(pool, exchange())

    async def slowly() -> None:
        await anyio.sleep(1)

    network.wires[0].sending = slowly
    request = exchange()
    errors: list[UnansweredError] = []

    async def second() -> None:
        errors.append(await unanswered(pool, request))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(second)
        await anyio.sleep(0.5)
        reply.discard()

    assert ["the connection gave another request's answer"] == [error.reason for error in errors]
    assert request.sent
    await still_whole(pool, network)


def test_the_head_is_made_once() -> None:
    """It says what it must and no more."""
    heads = Heads(ORIGIN)

    first, second = heads.request("/getBalance", b"{}"), heads.request("/getBalance", b'{"a":1}')

    assert (
        b"POST /getBalance HTTP/1.1\r\nHost: api.example.com\r\nContent-Type: application/json\r\n"
        b"User-Agent: ucaptcha_async\r\nContent-Length: 2\r\n\r\n{}"
    ) == bytes(first)
    assert bytes(second).endswith(b'Content-Length: 7\r\n\r\n{"a":1}')
    assert f"<{len(first)} bytes>" == repr(first)
