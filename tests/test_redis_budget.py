# ruff: noqa: F811 - fixtures come from redis_kit, and are named again where they are used
"""One budget for many processes, against a real Redis server."""

from __future__ import annotations

import random
import signal
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ucaptcha_async.budget import Budget
from ucaptcha_async.errors import BudgetExceededError, ClientStateError, ConfigurationError

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

from ucaptcha_async.redis import RedisBudget, RedisStateLost, RedisStateLostError, RedisUnavailableError  # noqa: E402

pytestmark = redis_marks
V2 = "RecaptchaV2TaskProxyless"


def budget(server: Server, name: str, *limits: Any, **options: Any) -> RedisBudget:
    return RedisBudget(server.url, *limits, **{"name": name, "lease": 2.0, "linger": 0.01, **options})


async def settled(*budgets: RedisBudget) -> None:
    """Wait until Redis has everything, and everybody knows."""
    for each in budgets:
        while each._queue or each._batch:
            await anyio.sleep(0.01)
    for each in budgets:
        before = each._number
        with anyio.fail_after(20):
            while each._number < before + 2:  # the second begins when the first is answered
                each._visited_at = float("-inf")
                each._wake()
                await anyio.sleep(0.005)


async def test_an_estimate_by_any_spelling(server: Server, name: str) -> None:
    """A type's spelling stands for its kind, as it does in a `Budget`; of several the highest counts."""
    given = {V2: "0.003", "ReCaptchaV2TokenProxyLess": "0.002", "AnyType": "0.004"}
    local = Budget(estimate=given)
    async with budget(server, name, "1", estimate=given) as shared:
        for kind in ("RecaptchaV2", V2, "AnyType"):
            assert (await shared.reserve(kind)).estimate == local.estimate(kind)


async def test_processes_share_the_money(server: Server, name: str) -> None:
    """What one has reserved or spent the others cannot; what is given back they can."""
    async with budget(server, name, "0.03") as one, budget(server, name, "0.03") as two:
        held = [await one.reserve(V2), await one.reserve(V2), await two.reserve(V2)]
        with pytest.raises(BudgetExceededError) as caught:
            await two.reserve(V2)
        assert await one.release(held[0])
        assert await one.settle(held[1], Decimal("0.003"))
        await settled(one)
        await two.reserve(V2)
        await settled(one, two)
        numbers = one.statistics()

    error = caught.value
    assert (error.retryable, error.charged) == (True, False)
    assert (error.limit, error.spent, error.reserved, error.estimate) == (  # type: ignore[attr-defined]
        Decimal("0.03"),
        0,
        Decimal("0.03"),
        Decimal("0.01"),
    )
    # Nobody gave an estimate: it is the highest cost seen for the type.
    assert (numbers.spent, numbers.reserved) == (Decimal("0.003"), Decimal("0.013"))
    assert (numbers.reservations, numbers.spent_last_hour) == (2, Decimal("0.003"))
    assert numbers.highest_by_type == {V2: Decimal("0.003")}


@on_asyncio
async def test_it_decides_as_a_local_budget(server: Server, name: str) -> None:
    """The same orders in the same order come to the same, to the last digit."""
    rng = random.Random(4)
    options: dict[str, Any] = {"estimate": {"A": "0.002", "B": "0.000000000001"}}
    local = Budget("1.5", "1.2", **options)
    async with budget(server, name, "1.5", "1.2", **options) as shared:
        open_ones: list[tuple[Any, Any]] = []
        for _ in range(300):
            kind, cost = rng.choice("ABC"), Decimal(rng.randrange(10**11)) / 10**12
            now = anyio.current_time()
            move = rng.choice(["reserve", "reserve", "settle", "keep", "release", "unknown"])
            if move == "reserve":
                try:
                    ours = local.reserve(kind, now)
                except BudgetExceededError as error:
                    with pytest.raises(BudgetExceededError, match=str(error).split(" has ")[0]):
                        await shared.reserve(kind)
                else:
                    theirs = await shared.reserve(kind)
                    assert theirs.estimate == ours.estimate
                    open_ones.append((ours, theirs))
            elif open_ones:
                ours, theirs = rng.choice(open_ones)
                if move in ("settle", "unknown"):
                    price = cost if move == "settle" else None
                    assert local.settle(ours, price, now) == await shared.settle(theirs, price)
                elif move == "keep":
                    assert local.keep(ours, now) == await shared.keep(theirs)
                else:
                    assert local.release(ours) == await shared.release(theirs)
        await settled(shared)
        mine, theirs = local.statistics(), shared.statistics()

    assert mine.refusals > 0
    assert (mine.spent, mine.reserved, mine.reservations, mine.spent_last_hour) == (
        theirs.spent,
        theirs.reserved,
        theirs.reservations,
        theirs.spent_last_hour,
    )
    assert mine.highest_by_type == theirs.highest_by_type
    assert {k: v for k, v in mine.spent_by_type.items() if v} == {k: v for k, v in theirs.spent_by_type.items() if v}


async def test_never_above_the_budget(server: Server, name: str) -> None:
    """Three processes that reserve at once as fast as they can never come above it."""
    spent = Decimal(0)
    async with AsyncExitStack() as stack:
        fleet = [
            await stack.enter_async_context(budget(server, name, "0.5", estimate="0.003", lease=30.0)) for _ in range(3)
        ]

        async def worker(each: RedisBudget) -> None:
            nonlocal spent
            while True:
                try:
                    reservation = await each.reserve(V2)
                except BudgetExceededError:
                    if not await each.room():
                        return
                else:
                    await anyio.sleep(0.01)
                    spent += Decimal("0.0029")
                    await each.settle(reservation, Decimal("0.0029"))

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for each in fleet * 20:
                    tasks.start_soon(worker, each)
        await settled(*fleet)

        assert Decimal("0.497") - Decimal("0.003") <= spent <= Decimal("0.5")
        assert {each.statistics().spent for each in fleet} == {spent}
        assert fleet[0].statistics().reserved == 0


@on_asyncio
async def test_the_strictest_limit_holds_for_all(server: Server, name: str) -> None:
    """Processes that disagree on the limit keep the strictest, until whoever wants it is dead."""
    async with budget(server, name, "0.04", lease=1.0) as loose:
        async with budget(server, name, "0.02", "0.5", lease=1.0) as strict:
            await strict.reserve(V2)
            await loose.reserve(V2)
            with pytest.raises(BudgetExceededError) as caught:
                await loose.reserve(V2)
        assert caught.value.limit == Decimal("0.02")  # type: ignore[attr-defined]
        with anyio.fail_after(5):
            while True:
                try:
                    await loose.reserve(V2)
                except BudgetExceededError:
                    await anyio.sleep(0.1)
                else:
                    break


@pytest.mark.parametrize("gone", range(4))
async def test_a_key_that_is_gone_alone(server: Server, name: str, gone: int) -> None:
    """Also who is new here finds that something is gone."""
    async with budget(server, name, "1") as one:
        await one.settle(await one.reserve(V2), Decimal("0.01"))
        await one.reserve(V2)
        await settled(one)
        async with coredis.Redis.from_url(server.url) as client:
            await client.delete([one._keys[gone]])
        async with budget(server, name, "1") as new:
            with pytest.raises(RedisStateLostError):
                await new.reserve(V2)


async def test_large_and_small_amounts(server: Server, name: str) -> None:
    """A picodollar is not lost beside a hundred million."""
    async with budget(server, name, "900000000000", estimate="100000000.000000000001") as shared:
        first = await shared.reserve("A")
        second = await shared.reserve("A")
        await shared.settle(first, Decimal("99999999.999999999999"))
        await settled(shared)
        assert shared.statistics().spent == Decimal("99999999.999999999999")
        assert shared.statistics().reserved == Decimal("100000000.000000000001")
        await shared.keep(second)
        await settled(shared)

        assert shared.statistics().spent == Decimal(200_000_000)


async def test_the_hour(server: Server, name: str) -> None:
    """Money of more than an hour ago does not count against the hour."""
    async with coredis.Redis.from_url(server.url, decode_responses=True) as client:
        async with budget(server, name, None, "0.01", estimate="0.01") as shared:
            await shared.settle(await shared.reserve(V2), Decimal("0.01"))
            with pytest.raises(BudgetExceededError) as caught:
                await shared.reserve(V2)
            assert caught.value.retryable
            # An hour passes: the entry becomes older.
            key = shared._keys[2]
            ((member, score),) = await client.zrange(key, 0, -1, withscores=True)
            await client.zrem(key, [member])
            await client.zadd(key, {f"{score - 3602:.0f} {member.split()[1]}": score - 3602})
            await shared.reserve(V2)
            await settled(shared)

            assert (shared.statistics().spent, shared.statistics().spent_last_hour) == (Decimal("0.01"), 0)


@on_trio
async def test_what_a_dead_process_reserved_counts_as_spent(server: Server, name: str) -> None:
    """After the lease; and whoever takes the task up puts the real cost in its place."""
    dead = budget(server, name, "0.02", estimate="0.01", lease=1.0)
    async with budget(server, name, "0.02", estimate="0.01", lease=1.0) as alive:
        async with dead:
            await dead.reserve(V2, submit_id="abc")
            await alive.reserve(V2)
            dead._leave = anyio.lowlevel.checkpoint  # type: ignore[method-assign]
        with anyio.fail_after(10):
            while alive.statistics().spent != Decimal("0.01"):
                await settled(alive)
        assert (alive.statistics().reserved, alive.statistics().reservations) == (Decimal("0.01"), 1)
        await alive.spend(V2, Decimal("0.004"), submit_id="abc")
        await settled(alive)

        assert alive.statistics().spent == Decimal("0.004")


@on_asyncio
async def test_a_cancelled_reservation_is_given_back(own_server: Server, name: str) -> None:
    """Whoever is cancelled while Redis decides leaves nothing reserved."""
    assert own_server.process is not None
    async with budget(own_server, name, "0.01", lease=30.0, timeout=0.3) as shared:
        own_server.process.send_signal(signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shared.reserve, V2)
            await until(lambda: bool(shared._batch))
            tasks.cancel_scope.cancel()
        own_server.process.send_signal(signal.SIGCONT)
        await settled(shared)
        await shared.reserve(V2)


async def test_room(server: Server, name: str) -> None:
    """Who waits for room is called when another process gives some back, or when none will come."""
    async with budget(server, name, "0.01") as one, budget(server, name, "0.01") as two:
        assert not await two.room()
        held = await one.reserve(V2)
        with pytest.raises(BudgetExceededError):
            await two.reserve(V2)
        calls: list[bool] = []
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                calls.append(await two.room())

            tasks.start_soon(wait)
            await one.release(held)
        assert calls == [True]
        with anyio.fail_after(5):
            while await two.room():
                pass


# --- when Redis is away ---


@on_trio
async def test_orders_wait_for_redis(own_server: Server, name: str) -> None:
    """While Redis is away nothing is reserved; what was settled meanwhile is told when it is back."""
    async with budget(own_server, name, "0.02", timeout=0.3) as shared:
        held = await shared.reserve(V2)
        assert own_server.process is not None
        own_server.process.send_signal(signal.SIGSTOP)
        await shared.settle(held, Decimal("0.003"))
        with anyio.move_on_after(1.1) as scope:
            await shared.reserve(V2)
        assert scope.cancelled_caught
        own_server.process.send_signal(signal.SIGCONT)
        await settled(shared)

        assert (shared.statistics().spent, shared.statistics().reserved) == (Decimal("0.003"), 0)


async def test_refusing_while_redis_is_away(name: str) -> None:
    """With `when_away="refuse"` the answer is an error."""
    async with RedisBudget(f"redis://127.0.0.1:{free_port()}", "1", when_away="refuse") as shared:
        for _ in range(2):
            with anyio.fail_after(5), pytest.raises(RedisUnavailableError):
                await shared.reserve(V2)


async def test_a_full_redis(own_server: Server, name: str) -> None:
    """A Redis whose memory is full takes nothing, and has not lost anything when there is room."""
    async with coredis.Redis.from_url(own_server.url) as client, budget(own_server, name, "0.02") as shared:
        held = await shared.reserve(V2)
        await client.config_set({"maxmemory": "1"})
        await shared.settle(held, Decimal("0.003"))
        with anyio.move_on_after(0.5) as scope:
            await shared.reserve(V2)
        await client.config_set({"maxmemory": "0"})
        await settled(shared)

        assert scope.cancelled_caught
        assert (shared.statistics().spent, shared.statistics().reserved) == (Decimal("0.003"), 0)


@pytest.mark.parametrize("how", ["restart", "flush", "evict"])
async def test_a_redis_that_forgot(own_server: Server, name: str, how: str) -> None:
    """Nothing is reserved by anybody until the loss is accepted; then what is open counts again."""
    events: list[Any] = []
    async with budget(own_server, name, "0.03", on_event=events.append, timeout=0.3) as one:
        await one.settle(await one.reserve(V2), Decimal("0.01"))
        held = await one.reserve(V2)
        await settled(one)
        if how == "restart":
            own_server.stop()
            own_server.start()
        else:
            async with coredis.Redis.from_url(own_server.url) as client:
                await client.delete(one._keys[1:3] if how == "evict" else one._keys)
        async with budget(own_server, name, "0.03") as new:
            for each in (one, new):
                with anyio.fail_after(10), pytest.raises(RedisStateLostError, match="accept_loss") as caught:
                    await each.reserve(V2)
                assert not caught.value.retryable
            await new.accept_loss(spent="0.01")
            await settled(one, new)
            await new.reserve(V2)
            with pytest.raises(BudgetExceededError):
                await new.reserve(V2)
            await one.settle(held, Decimal("0.002"))
            await settled(one, new)

            assert new.statistics().spent == Decimal("0.012")
    assert sum(isinstance(event, RedisStateLost) for event in events) >= 1


async def test_data_that_survived(own_server: Server, name: str) -> None:
    """A restart that kept everything is no loss; one that lost the last changes is."""
    async with coredis.Redis.from_url(own_server.url) as client, budget(own_server, name, "1", timeout=0.3) as one:
        await one.reserve(V2)
        await client.save()
        own_server.kill_and_start("--save", "3600 1")
        await one.reserve(V2)
        await settled(one)
        assert one.statistics().reserved == Decimal("0.02")
        own_server.kill_and_start("--save", "3600 1")  # the second reservation is not in the dump
        with pytest.raises(RedisStateLostError):
            await one.reserve(V2)


async def test_never_the_first(server: Server, name: str) -> None:
    """With `create=False` a budget that Redis does not know is a lost one."""
    async with budget(server, name, "1", create=False) as worker:
        with pytest.raises(RedisStateLostError):
            await worker.reserve(V2)
        await worker.accept_loss()
        await worker.reserve(V2)
    async with budget(server, name, "1", create=False) as worker:
        await worker.reserve(V2)


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_spend": 0.1}, "max_spend"),
        ({"max_spend": "1e13"}, "max_spend"),
        ({"estimate": "1e-13"}, "estimate"),
        ({"estimate": {"A": -1}}, "estimate"),
        ({"lease": 0}, "lease"),
        ({"when_away": "local"}, "when_away"),
        ({"expires": 3}, "expires"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], field: str) -> None:
    """What makes no sense is refused when the object is made."""
    with pytest.raises(ConfigurationError, match=field):
        RedisBudget("redis://localhost", **options)


async def test_it_must_be_open(server: Server, name: str) -> None:
    """Nothing is reserved outside `async with`."""
    with pytest.raises(ClientStateError):
        await budget(server, name).reserve(V2)
