# ruff: noqa: F811 - fixtures come from redis_kit, and are named again where they are used
"""One bound on what is in flight for many processes, against a real Redis server."""

from __future__ import annotations

import asyncio
import pickle
import signal
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
import sniffio

from ucaptcha_async.errors import ClientStateError, ConfigurationError

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

coredis = pytest.importorskip("coredis")

from ucaptcha_async.redis import RedisAway, RedisBack, RedisInFlight, RedisStateLost, RedisUnavailableError  # noqa: E402

pytestmark = redis_marks


@pytest.fixture
def old_server(own_server: Server, name: str) -> Server:
    """A server that the test may stop, and that counts as one that has not just been started."""
    own_server.is_old(f"ucaptcha:{{in-flight:{name}}}")
    return own_server


def bound(server: Server, name: str, **options: Any) -> RedisInFlight:
    return RedisInFlight(server.url, **{"name": name, "limit": 3, "lease": 2.0, **options})


async def processes_in_redis(server: Server, name: str) -> list[str]:
    async with coredis.Redis.from_url(server.url, decode_responses=True) as client:
        state = await client.hgetall(f"ucaptcha:{{in-flight:{name}}}")
    return [value for key, value in state.items() if key.startswith("p:")]


async def held_in_redis(server: Server, name: str) -> int:
    return sum(int(value.split()[0]) for value in await processes_in_redis(server, name))


async def blocked(places: RedisInFlight, seconds: float = 0.4) -> bool:
    """Whether no place is to be had."""
    with anyio.move_on_after(seconds) as scope:
        await places.acquire()
        places.release()
    return scope.cancelled_caught


async def test_whoever_leaves_during_a_visit_is_forgotten(server: Server, name: str) -> None:
    """A visit that reaches Redis after the farewell would be a new life, that waits until its lease ends."""
    if sniffio.current_async_library() != "asyncio":
        return
    places = bound(server, name, lease=60)
    script = places._script

    async def late(*, keys: list[str], args: list[Any]) -> Any:
        if not args[-1]:  # no farewell
            await anyio.sleep(0.2)
        return await script(keys=keys, args=args)

    async def live() -> None:
        async with places:
            await places.acquire()

    places._script = late
    life = asyncio.create_task(live())
    await asyncio.sleep(0.1)
    life.cancel()
    await asyncio.wait([life])

    assert await processes_in_redis(server, name) == []


async def test_processes_share_the_places(server: Server, name: str) -> None:
    """What one process holds another cannot have, and a place that is given back goes to whoever waits."""
    async with bound(server, name) as one, bound(server, name) as two:
        for places in (one, one, two):
            with anyio.fail_after(5):
                await places.acquire()
        assert await blocked(two)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(two.acquire)
            await until(lambda: two.statistics().waiting == 1)
            one.release()
        statistics = [places.statistics() for places in (one, two)]

    assert [(s.limit, s.in_flight, s.waiting) for s in statistics] == [(3, 1, 0), (3, 2, 0)]


@on_asyncio
async def test_never_more_than_the_limit_and_fair(server: Server, name: str) -> None:
    """Three processes that want more than there is: never above the bound, each within 20 % of its fair share."""
    limit, busy, most = 7, 0, 0
    done: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(bound(server, name, limit=limit)) for _ in range(3)]

        async def worker(number: int) -> None:
            nonlocal busy, most
            while True:
                await fleet[number].acquire()
                busy += 1
                most = max(most, busy)
                try:
                    await anyio.sleep(0.05)
                finally:
                    busy -= 1
                    fleet[number].release()
                done[number] += 1

        with anyio.move_on_after(3):
            async with anyio.create_task_group() as tasks:
                for number in (0, 1, 2):
                    for _ in range(10 * (number + 1)):
                        tasks.start_soon(worker, number)
        assert most == limit
    share = done.total() / 3

    assert all(0.8 * share <= done[number] <= 1.2 * share for number in range(3)), done


@on_trio
async def test_the_strictest_limit_holds_for_all(server: Server, name: str) -> None:
    """Processes that disagree on the limit keep the strictest, until whoever wants it has left."""
    async with bound(server, name, limit=4) as loose:
        async with bound(server, name, limit=2) as strict:
            await strict.acquire()
            strict.release()
            await loose.acquire()
            await loose.acquire()
            assert await blocked(loose)
        with anyio.fail_after(5):
            await loose.acquire()


async def test_what_one_does_not_want_the_others_have(server: Server, name: str) -> None:
    """An idle process keeps nothing."""
    async with bound(server, name) as one, bound(server, name) as two:
        await one.acquire()
        one.release()
        with anyio.fail_after(5):
            for _ in range(3):
                await two.acquire()

        assert two.statistics().in_flight == 3


@on_trio
async def test_fewer_places_than_processes(server: Server, name: str) -> None:
    """One place goes round."""
    turns: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(bound(server, name, limit=1)) for _ in range(3)]

        async def worker(number: int) -> None:
            while True:
                await fleet[number].acquire()
                turns[number] += 1
                await anyio.sleep(0.02)
                fleet[number].release()

        with anyio.move_on_after(3.3):
            async with anyio.create_task_group() as tasks:
                for number in (0, 1, 2) * 2:
                    tasks.start_soon(worker, number)

    assert len(turns) == 3
    assert min(turns.values()) >= 3


async def test_first_come_first_served(server: Server, name: str) -> None:
    """Within a process places go in the order of arrival, and a cancelled waiter's goes to the next."""
    order: list[int] = []
    async with bound(server, name, limit=1) as places:
        await places.acquire()

        async def wait(number: int, patience: float) -> None:
            with anyio.move_on_after(patience):
                await places.acquire()
                order.append(number)
                places.release()

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(wait, number, 0.2 if number == 2 else 10)
                await until(lambda number=number: places.statistics().waiting == number + 1)
            await until(lambda: places.statistics().waiting == 5)
            places.release()

    assert order == [0, 1, 3, 4, 5]


@on_trio
async def test_a_dead_process_loses_its_places(server: Server, name: str) -> None:
    """Places of a process that says no more are free after its lease; those of a living one stay."""
    dead, alive = bound(server, name, lease=1.0), bound(server, name, lease=1.0)
    async with bound(server, name, lease=1.0) as other, alive:
        async with dead:
            await dead.acquire()
            await alive.acquire()
            await other.acquire()
            # It dies: no farewell, no renewal.
            dead._tasks.cancel_scope.cancel()
            dead._leave = anyio.lowlevel.checkpoint  # type: ignore[method-assign]
        assert await blocked(other, 0.2)
        with anyio.fail_after(5):
            await other.acquire()
        assert await blocked(other, 1.2)
    assert other.statistics().in_flight == 2


async def test_leaving_gives_everything_back(server: Server, name: str) -> None:
    """A process that leaves in order keeps no place, and the state expires."""
    async with bound(server, name, limit=2) as places:
        await places.acquire()
        assert await held_in_redis(server, name) == 1
        places.release()
    async with coredis.Redis.from_url(server.url) as client:
        life = await client.pttl(f"ucaptcha:{{in-flight:{name}}}")

    assert await held_in_redis(server, name) == 0
    assert 0 < life <= 10_000


async def test_errors_pass_unchanged(server: Server, name: str) -> None:
    """An error inside `async with` comes out as it is, and not wrapped in a group."""
    with pytest.raises(LookupError):
        async with bound(server, name):
            raise LookupError


# --- when Redis is away ---


async def test_without_redis_waiters_wait(old_server: Server, name: str) -> None:
    """While Redis is away a process uses the places that it holds; others wait until it is back, and hear of it."""
    events: list[Any] = []
    async with bound(old_server, name, limit=2, lease=2.0, timeout=0.3, on_event=events.append) as places:
        await places.acquire()
        old_server.stop()
        places.release()
        await places.acquire()  # its own place, without asking
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(places.acquire)
            await until(lambda: places.is_away)
            assert places.statistics().waiting == 1
            old_server.start()
        assert places.statistics().in_flight == 2
        assert await held_in_redis(old_server, name) == 2

    assert [type(event) for event in events] == [RedisAway, RedisBack, RedisStateLost]
    assert (events[0].what, events[0].name) == ("in-flight", name)


async def test_refusing_while_redis_is_away(name: str) -> None:
    """With `when_away="refuse"` those who would wait get an error, and get it at once."""
    async with RedisInFlight(f"redis://u:secret@127.0.0.1:{free_port()}", limit=1, when_away="refuse") as places:
        for _ in range(3):
            with anyio.fail_after(5), pytest.raises(RedisUnavailableError) as caught:
                await places.acquire()
            assert "secret" not in str(caught.value) + repr(caught.value.__cause__)

    assert places.statistics().waiting == 0


@on_asyncio
async def test_local_places_while_redis_is_away(old_server: Server, name: str) -> None:
    """With `when_away="local"` a process has places of its own, which it gives up when Redis is back."""
    options = {"lease": 1.0, "timeout": 0.3, "when_away": "local", "local_limit": 2}
    async with bound(old_server, name, limit=1, **options) as places:
        await places.acquire()
        old_server.stop()
        with anyio.fail_after(5):
            await places.acquire()
            await places.acquire()
        assert await blocked(places)
        old_server.start()
        await until(lambda: not places.is_away)
        places.release()
        places.release()
        assert await blocked(places)
        assert await held_in_redis(old_server, name) == 1
        places.release()
        with anyio.fail_after(5):
            await places.acquire()


@on_trio
async def test_the_lease_ends_by_the_own_clock(old_server: Server, name: str) -> None:
    """A process that cannot renew its lease takes no more of the places that it held."""
    async with bound(old_server, name, lease=1.0, timeout=0.2) as places:
        await places.acquire()
        old_server.stop()
        places.release()
        await anyio.sleep(1.0)

        assert await blocked(places)


@on_asyncio
async def test_a_redis_that_forgot(old_server: Server, name: str) -> None:
    """After a restart without data the places in use count again, and new ones are given after half a lease."""
    async with bound(old_server, name, timeout=0.3) as one, bound(old_server, name, timeout=0.3) as two:
        await one.acquire()
        await two.acquire()
        old_server.stop()
        old_server.start()
        async with bound(old_server, name, timeout=0.3) as new:
            assert await blocked(new, 0.6)
            with anyio.fail_after(5):
                await new.acquire()
            assert await blocked(new)
            assert await held_in_redis(old_server, name) == 3


@on_trio
async def test_a_flushed_redis(old_server: Server, name: str) -> None:
    """A server that runs on, but has lost the state, is found out by those who knew it."""
    events: list[Any] = []
    async with bound(old_server, name, limit=2, on_event=events.append) as places:
        await places.acquire()
        async with coredis.Redis.from_url(old_server.url) as client:
            await client.flushall()
        assert await blocked(places, 0.6)
        with anyio.fail_after(5):
            await places.acquire()

    assert [type(event) for event in events] == [RedisStateLost]


@on_asyncio
async def test_a_hanging_redis(old_server: Server, name: str) -> None:
    """Redis stands still for a while: visits that were given up and are carried out late do no harm."""
    assert old_server.process is not None
    async with bound(old_server, name, timeout=0.2, lease=4.0) as one, bound(old_server, name, lease=4.0) as two:
        await one.acquire()
        old_server.process.send_signal(signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.acquire)
            await until(lambda: one.is_away)
            await anyio.sleep(0.3)
            old_server.process.send_signal(signal.SIGCONT)
        with anyio.fail_after(5):
            await two.acquire()

        assert await blocked(one)
        assert await held_in_redis(old_server, name) == 3


async def test_a_full_redis(old_server: Server, name: str) -> None:
    """A Redis whose memory is full refuses; when there is room again, all is well."""
    events: list[Any] = []
    async with (
        coredis.Redis.from_url(old_server.url) as client,
        bound(old_server, name, timeout=0.3, on_event=events.append) as places,
    ):
        await places.acquire()
        await client.config_set({"maxmemory": "1"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(places.acquire)
            await until(lambda: events)
            await client.config_set({"maxmemory": "0"})

    assert "OOM" in str(events[0].error)
    assert [type(event) for event in events] == [RedisAway, RedisBack]


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"lease": 0.1}, "lease"),
        ({"name": "a{b"}, "name"),
        ({"when_away": "hope"}, "when_away"),
        ({"when_away": "local"}, "local_limit"),
        ({"local_limit": 3}, "local_limit"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], field: str) -> None:
    """What makes no sense is refused when the object is made."""
    with pytest.raises(ConfigurationError, match=field):
        RedisInFlight("redis://localhost", **{"limit": 1, **options})


async def test_misuse(server: Server, name: str) -> None:
    """It must be open, is opened once at a time, is not pickled, and gives back only what was taken."""
    places = bound(server, name)
    with pytest.raises(ClientStateError, match="async with"):
        await places.acquire()
    with pytest.raises(RuntimeError, match="released"):
        places.release()
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(places)
    async with places:
        with pytest.raises(ClientStateError, match="open already"):
            await places.__aenter__()
    async with places:
        await places.acquire()
