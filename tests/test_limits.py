"""The rate limiter and the bound on what is in flight, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections import Counter
from email.utils import formatdate

import anyio
import anyio.to_thread
import attrs
import pytest
import sniffio
import trio
from anyio.lowlevel import checkpoint

from tests.helpers import count_looks
from ucaptcha_async.errors import ClientStateError, ConfigurationError
from ucaptcha_async.pacing import InFlight, RateLimiter
from ucaptcha_async.pacing.quota import Reading

pytestmark = pytest.mark.virtual_time

UNIX = 1_700_000_003.3
"""What the simulated service's clock shows when the test's clock shows zero."""


def most_in_a_window(times: list[float], window: float) -> int:
    """The most departures in any half-open window: one of the fullest windows starts at a departure."""
    most, end = 0, 0
    for start, opened in enumerate(times):
        while end < len(times) and times[end] < opened + window:
            end += 1
        most = max(most, end - start)
    return most


async def departures(limiter: RateLimiter, count: int) -> list[float]:
    """Let `count` tasks ask at once; when each was let go."""
    times: list[float] = []

    async def request() -> None:
        await limiter.acquire()
        times.append(anyio.current_time())

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(request)
    return times


def stall(seconds: float) -> None:
    """Let time pass as if the event loop were busy."""
    if sniffio.current_async_library() == "asyncio":
        asyncio.get_running_loop()._jumping.skipped += seconds  # type: ignore[attr-defined]
    else:
        trio.lowlevel.current_clock().jump(seconds)  # type: ignore[attr-defined]


def answer(limiter: RateLimiter, status: int = 200, *, age: float = 0.0, **headers: object) -> None:
    """Let the limiter hear an answer that comes now, to a request that was sent `age` seconds ago."""
    now = anyio.current_time()
    spelled = {name.replace("_", "-"): str(value) for name, value in headers.items()}
    limiter.observe(status, spelled, sent_at=now - age, received_at=now)


def date(ahead: float = 0.0) -> str:
    return formatdate(UNIX + anyio.current_time() + ahead, usegmt=True)


async def wait_for(limiter: RateLimiter) -> float:
    """How long one more request has to wait."""
    start = anyio.current_time()
    await limiter.acquire()
    return anyio.current_time() - start


# --- our own limit ---


@pytest.mark.parametrize("limit", [1, 2, 3, 50, 99, 100, 250, 1_000])
async def test_no_window_holds_more_than_the_limit(limit: int) -> None:
    """Under saturation every window holds at most the limit, and at least 98 % of it are used."""
    times = await departures(RateLimiter(limit, window=10), 3 * limit)

    assert 0.98 * limit <= most_in_a_window(times, 10) <= limit
    assert (len(times) - 1) * 10 / (times[-1] - times[0]) >= 0.98 * limit


async def test_no_window_holds_more_than_the_default_limit() -> None:
    """The documented limit of 10,000 in 10 s is kept, and used, by 12,000 requests at once."""
    times = await departures(RateLimiter(), 12_000)

    assert 9_800 <= most_in_a_window(times, 10) <= 10_000
    assert (len(times) - 1) / (times[-1] - times[0]) >= 980


@pytest.mark.parametrize("limit", [1, 60, 1_000])
async def test_a_busy_event_loop_neither_breaks_nor_wastes_the_limit(limit: int) -> None:
    """When the loop wakes late, up to a hundredth of a window, windows stay within the limit and 98 % are used."""
    rng = random.Random(limit)
    limiter = RateLimiter(limit, window=10)
    times: list[float] = []

    async def request() -> None:
        await limiter.acquire()
        times.append(anyio.current_time())
        if rng.random() < 0.05:
            stall(rng.uniform(0, 0.05))

    async with anyio.create_task_group() as tasks:
        for _ in range(4 * limit):
            tasks.start_soon(request)

    assert most_in_a_window(sorted(times), 10) <= limit
    assert (len(times) - 1) * 10 / (times[-1] - times[0]) >= 0.98 * limit


async def test_who_may_go_after_a_stall_goes_in_one_batch() -> None:
    """After a stall those whose time has come go at once, not one per turn of the event loop."""
    limiter = RateLimiter(1_000, window=10)
    await departures(limiter, 10)
    times: list[float] = []

    async def request() -> None:
        await limiter.acquire()
        times.append(anyio.current_time())

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(request)
        await checkpoint()
        for _ in range(12):
            await anyio.sleep(0.02)
            went = len(times)
            stall(0.06)
            for _ in range(4):
                await checkpoint()

            assert len(times) - went >= 5


async def test_a_free_slot_costs_no_turn_of_the_loop() -> None:
    """When nobody waits and a slot is free, acquire does not suspend."""
    limiter = RateLimiter(10)
    with pytest.raises(StopIteration):
        limiter.acquire().__await__().send(None)

    assert limiter.statistics().departed == 1


async def test_first_come_first_served() -> None:
    """Waiters go in the order of their arrival, and whoever comes later cannot overtake them."""
    limiter = RateLimiter(20, window=10)
    order: list[int] = []

    async def request(number: int) -> None:
        await anyio.sleep(number * 0.11)
        await limiter.acquire()
        order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(request, number)

    assert order == sorted(order)


async def test_nobody_overtakes_the_line() -> None:
    """Whoever comes at the very moment at which a slot is free goes behind those who wait for it."""
    limiter = RateLimiter(1, window=10)
    await limiter.acquire()
    order: list[str] = []

    async def request(name: str) -> None:
        await limiter.acquire()
        order.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(request, "waiting")
        await anyio.sleep(1)
        stall(20)
        await request("late")

    assert order == ["waiting", "late"]


async def test_a_cancelled_waiter_gives_its_slot_back() -> None:
    """Of four waiters the first and the third are cancelled: the others move up, and no time is lost."""
    limiter = RateLimiter(1, window=10)
    await limiter.acquire()
    start = anyio.current_time()
    went: dict[int, float] = {}

    async def request(number: int, patience: float) -> None:
        with anyio.move_on_after(patience):
            await limiter.acquire()
            went[number] = anyio.current_time() - start

    async with anyio.create_task_group() as tasks:
        for number, patience in enumerate([3, math.inf, 9.9, math.inf]):
            tasks.start_soon(request, number, patience)
            await checkpoint()

    assert went == {1: pytest.approx(10, abs=0.02), 3: pytest.approx(20, abs=0.04)}
    assert limiter.statistics().waiting == 0


async def test_all_waiters_cancelled_at_once() -> None:
    """After ten thousand waiters were cancelled at once nobody waits, and the next one loses nothing."""
    limiter = RateLimiter(10, window=10)
    with anyio.move_on_after(0.5):
        await departures(limiter, 10_000)
    left = limiter.statistics()

    assert left.waiting == 0
    assert left.departed == 2
    assert await wait_for(limiter) <= 1


async def test_one_waiter_wakes_per_departure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand waiters cause a few looks at the clock per departure, not a thousand."""
    limiter = RateLimiter(1_000, window=10)
    looks = count_looks(limiter, monkeypatch)
    await departures(limiter, 1_000)

    assert len(looks) <= 3_000


async def test_clients_that_share_a_limiter_share_the_limit() -> None:
    """Four users of one limiter stay within one limit, and each gets a fair part."""
    limiter = RateLimiter(100, window=10)
    times: list[tuple[float, int]] = []

    async def client(number: int) -> None:
        for _ in range(100):
            await limiter.acquire()
            times.append((anyio.current_time(), number))

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(client, number)

    assert most_in_a_window([time for time, _ in times], 10) <= 100
    assert all(45 <= part <= 55 for part in Counter(number for _, number in times[:200]).values())


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "10"])
def test_limits_are_positive_whole_numbers(wrong: int) -> None:
    """A limit that is no positive whole number is refused at once."""
    with pytest.raises(ConfigurationError, match="limit must be a whole number from 1 to 1000000000"):
        RateLimiter(10**400)
    with pytest.raises(ConfigurationError, match="limit"):
        RateLimiter(wrong)
    with pytest.raises(ConfigurationError, match="limit"):
        InFlight(wrong)


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, "10", None])
def test_windows_are_durations(wrong: float) -> None:
    """A window that is no duration of at least 10 ms is refused at once."""
    with pytest.raises(ConfigurationError, match="window"):
        RateLimiter(10, wrong)


def test_a_limiter_outlives_its_event_loop() -> None:
    """A limiter made outside any loop works in one loop after another, whatever their clocks show, and keeps count."""
    limiter = RateLimiter(1, window=0.2)
    departed: list[float] = []

    async def use() -> None:
        with anyio.fail_after(5):
            await limiter.acquire()
        departed.append(time.monotonic())
        answer(limiter)

    for backend in ("trio", "asyncio", "trio"):
        anyio.run(use, backend=backend)

    assert limiter.statistics().departed == 3
    assert min(later - earlier for earlier, later in itertools.pairwise(departed)) >= 0.2


def test_a_limiter_belongs_to_one_running_event_loop() -> None:
    """Used from a second loop while the first still runs, it says so instead of waiting for ever."""
    limiter = RateLimiter(1, window=10)

    def elsewhere() -> None:
        with pytest.raises(ClientStateError, match="another event loop"):
            anyio.run(limiter.acquire)

    async def use() -> None:
        await limiter.acquire()
        await anyio.to_thread.run_sync(elsewhere)

    for backend in ("asyncio", "trio"):
        anyio.run(use, backend=backend)
        limiter = RateLimiter(1, window=10)


# --- what the service says ---


@attrs.define
class Service:
    """A service that counts in windows of its own, and tells what is left."""

    limit: int
    window: float = 10.0
    date_lags: float = 0.0
    admitted: dict[int, Counter[str]] = attrs.field(factory=dict)
    refused: Counter[str] = attrs.field(factory=Counter)

    def request(self, who: str) -> tuple[int, dict[str, str]]:
        now = UNIX + anyio.current_time()
        number = int(now // self.window)
        admitted = self.admitted.setdefault(number, Counter())
        status = 200 if admitted.total() < self.limit else 429
        (admitted if status == 200 else self.refused)[who] += 1
        return status, {
            "date": formatdate(math.floor(now - self.date_lags) + self.date_lags, usegmt=True),
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(self.limit - admitted.total()),
            "x-ratelimit-reset": str(int((number + 1) * self.window)),
        }

    def shares(self, who: str) -> list[float]:
        """In each full window: what one used of what the others left."""
        full = [self.admitted[number] for number in sorted(self.admitted)][1:-1]
        return [window[who] / (self.limit - (window.total() - window[who])) for window in full]


async def saturate(service: Service, limiters: list[RateLimiter], *, until: float, others: float = 0.0) -> list[float]:
    """Send as much as the limiters allow, through a network that reorders; others send `others` requests a second."""
    rng = random.Random(1)
    times: list[float] = []

    async def request(limiter: RateLimiter, who: str) -> None:
        sent_at = anyio.current_time()
        times.append(sent_at)
        await anyio.sleep(rng.uniform(0.03, 0.07))
        status, headers = service.request(who)
        await anyio.sleep(rng.uniform(0.03, 0.07))
        limiter.observe(status, headers, sent_at=sent_at, received_at=anyio.current_time())

    async def client(number: int, limiter: RateLimiter) -> None:
        while True:
            await limiter.acquire()
            tasks.start_soon(request, limiter, f"client {number}")

    async def stranger() -> None:
        while True:
            service.request("stranger")
            await anyio.sleep(rng.uniform(0.8, 1.2) / others)

    with anyio.move_on_after(until):
        async with anyio.create_task_group() as tasks:
            for number, limiter in enumerate(limiters):
                tasks.start_soon(client, number, limiter)
            if others:
                tasks.start_soon(stranger)
    return times


@pytest.mark.parametrize("date_lags", [0.0, 0.6])
async def test_alone_the_limit_is_used(date_lags: float) -> None:
    """Alone at a service that counts in fixed windows, at least 98 % of each are used, and nothing is refused."""
    service = Service(500, date_lags=date_lags)
    times = await saturate(service, [RateLimiter(500)], until=45)

    assert min(service.shares("client 0")) >= 0.98
    assert not service.refused
    assert most_in_a_window(times, 10) <= 500


@pytest.mark.parametrize("date_lags", [0.0, 0.6])
async def test_others_who_share_the_address_are_accommodated(date_lags: float) -> None:
    """Beside a stranger who takes 30 %, at least 95 % of what is left are used, and nobody is refused."""
    service = Service(500, date_lags=date_lags)
    limiter = RateLimiter(500)
    await saturate(service, [limiter], until=45, others=15)

    assert min(service.shares("client 0")) >= 0.95
    assert not service.refused
    assert limiter.statistics().others == pytest.approx(15, rel=0.2)


async def test_two_limiters_behind_one_address_do_not_fight() -> None:
    """Two programs, each with the whole limit as its own, share what the service grants without refusals."""
    service = Service(500)
    await saturate(service, [RateLimiter(500), RateLimiter(500)], until=45)
    windows = [service.admitted[number] for number in sorted(service.admitted)][1:-1]

    assert not service.refused
    assert all(window.total() >= 475 for window in windows)
    assert all(min(window.values()) >= 150 for window in windows)


async def test_a_smaller_limit_of_the_service_is_honoured() -> None:
    """Where the service grants half of what was set here, half is used."""
    service = Service(250)
    await saturate(service, [RateLimiter(500)], until=45)

    assert min(service.shares("client 0")) >= 0.95
    assert not service.refused


async def test_a_window_shorter_than_the_services() -> None:
    """A limiter with a window of one second understands a service that counts in windows of ten."""
    service = Service(500)
    await saturate(service, [RateLimiter(50, window=1)], until=45, others=15)

    assert min(service.shares("client 0")) >= 0.95
    assert not service.refused


async def test_others_who_leave_nothing_cannot_starve_us() -> None:
    """Beside a stranger who takes all there is and more, we still get a part."""
    service = Service(500)
    await saturate(service, [RateLimiter(500)], until=45, others=60)
    windows = [service.admitted[number] for number in sorted(service.admitted)][1:-1]

    assert all(window["client 0"] >= 50 for window in windows)
    assert service.refused["client 0"] <= 25


async def test_pause_until_the_reset() -> None:
    """A refusal with nothing left holds everything until the window's end; nobody asks before."""
    limiter = RateLimiter(1_000)
    reset = math.ceil(UNIX + anyio.current_time()) + 4
    answer(limiter, 429, date=date(), x_ratelimit_remaining=0, x_ratelimit_limit=1_000, x_ratelimit_reset=reset)
    ends = reset - (UNIX + anyio.current_time())

    assert ends - 0.001 <= await wait_for(limiter) <= ends + 1


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [("3", 3), ("0.5", 0.5), ("600", 10), ("0", 1), ("-5", 1), ("nan", 1), ("soon", 1), ("1e999", 1)],
)
async def test_pause_for_retry_after(retry_after: str, pause: float) -> None:
    """Without a reset `Retry-After` counts, at most a window; without either, or with nonsense, one second."""
    limiter = RateLimiter(1_000)
    answer(limiter, 429, retry_after=retry_after)

    assert await wait_for(limiter) == pytest.approx(pause)


async def test_pause_until_a_date() -> None:
    """`Retry-After` may be a date on the service's clock."""
    limiter = RateLimiter(1_000)
    answer(limiter, 429, date=date(), retry_after=date(ahead=5))

    assert await wait_for(limiter) == pytest.approx(5)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
        ("Sun Nov  6 08:49:37 1994", 784_111_777),
        ("Sun, 06 Nov 1994 09:49:37 +0100", 784_111_777),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_800),  # a leap second
        ("Sun, 06 Non 1994 08:49:37 GMT", None),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_dates(text: str | None, found: float | None) -> None:
    """A date is read in each form that a server may send; nonsense is none."""
    headers = {} if text is None else {"date": text}

    assert Reading.of(headers).date == found


async def test_refusals_for_other_reasons_do_not_wait_for_the_reset() -> None:
    """A refusal although requests are left has another cause: the window's end says nothing."""
    limiter = RateLimiter(1_000)
    answer(limiter, 429, date=date(), x_ratelimit_remaining=900, x_ratelimit_reset=int(UNIX + anyio.current_time() + 9))

    assert await wait_for(limiter) == pytest.approx(1)


async def test_pauses_double() -> None:
    """Refusals of what was sent after a pause double the next one, up to a window; a success starts anew."""
    limiter = RateLimiter(1_000)
    pauses = []
    for _ in range(6):
        answer(limiter, 429)
        pauses.append(round(await wait_for(limiter), 3))
    answer(limiter, 200)
    answer(limiter, 429)
    pauses.append(round(await wait_for(limiter), 3))

    assert pauses == [1, 2, 4, 8, 10, 10, 1]


async def test_all_pause_once() -> None:
    """A thousand refusals of what was sent before the pause ended are one pause, neither longer nor doubled."""
    limiter = RateLimiter(1_000)
    start = anyio.current_time()
    answer(limiter, 429, retry_after=2)
    for _ in range(100):
        await anyio.sleep(0.01)
        answer(limiter, 429, age=0.5, retry_after=2)
    waited = await wait_for(limiter)
    answer(limiter, 429, age=0.1)
    statistics = limiter.statistics()

    assert waited == pytest.approx(1)
    assert await wait_for(limiter) < 0.02
    assert statistics.throttled == 102
    assert statistics.paused_until == pytest.approx(start + 2)


async def test_no_stampede_after_a_pause() -> None:
    """After a pause one request goes, and the others follow at their pace."""
    limiter = RateLimiter(1_000, window=10)
    answer(limiter, 429, retry_after=2)
    start = anyio.current_time()
    times = [time - start for time in await departures(limiter, 50)]

    assert times[0] == pytest.approx(2)
    assert 0.98 * 0.01 <= min(after - before for before, after in itertools.pairwise(times))
    assert times[-1] == pytest.approx(2 + 49 * 0.0101, abs=0.01)


async def test_a_pause_holds_those_who_already_wait() -> None:
    """A refusal that comes while others wait for their turn makes them wait for the end of the pause."""
    limiter = RateLimiter(10, window=10)
    await departures(limiter, 2)
    waited: list[float] = []

    async def request() -> None:
        waited.append(await wait_for(limiter))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(request)
        await anyio.sleep(0.1)
        answer(limiter, 429, retry_after=5)

    assert waited == [pytest.approx(5.1)]


async def test_a_pause_holds_those_who_were_just_called() -> None:
    """A refusal that is heard between the call of a batch and its departure sends the batch back to its places."""
    limiter = RateLimiter(1_000, window=10)
    await departures(limiter, 10)
    start = anyio.current_time()
    went: list[tuple[int, float]] = []

    async def request(number: int) -> None:
        await limiter.acquire()
        went.append((number, anyio.current_time() - start))
        if number == 0:
            answer(limiter, 429, retry_after=2)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(request, number)
            await checkpoint()
        stall(0.06)

    assert [number for number, _ in went] == list(range(20))
    assert went[1][1] == pytest.approx(2.06, abs=0.01)


def sane() -> dict[str, object]:
    return {
        "date": date(),
        "x_ratelimit_limit": 1_000,
        "x_ratelimit_remaining": 0,
        "x_ratelimit_reset": int(UNIX + anyio.current_time()) + 5,
    }


async def test_what_is_left_is_spread_over_the_rest_of_the_window() -> None:
    """With nothing left nobody goes before the window ends, even without a refusal."""
    limiter = RateLimiter(1_000)
    answer(limiter, 200, **sane())

    assert await wait_for(limiter) >= 4


async def test_the_next_window_is_expected_to_be_like_the_last() -> None:
    """After the window's end, until the service is heard again, no more is sent than it granted before."""
    limiter = RateLimiter(1_000)
    answer(limiter, 200, **(sane() | {"x_ratelimit_limit": 5}))
    with anyio.move_on_after(13):
        await departures(limiter, 1_000)

    assert 2 <= limiter.statistics().departed <= 5


@pytest.mark.parametrize(
    "absurd",
    [
        {"x_ratelimit_remaining": -5},
        {"x_ratelimit_remaining": "nan"},
        {"x_ratelimit_remaining": "1e3"},
        {"x_ratelimit_remaining": "9" * 5_000},
        {"x_ratelimit_remaining": 1_001},
        {"x_ratelimit_remaining": ""},
        {"x_ratelimit_reset": 1_600_000_000},
        {"x_ratelimit_reset": UNIX + 3_600},
        {"x_ratelimit_reset": UNIX * 1_000},
        {"x_ratelimit_reset": 7},
        {"x_ratelimit_reset": "inf"},
        {"x_ratelimit_reset": "tomorrow"},
        {"date": "yesterday"},
        {"date": ""},
        {"date": "Tue, 14 Nov 99999 22:13:23 GMT"},
    ],
)
async def test_absurd_values_are_ignored(absurd: dict[str, object]) -> None:
    """A value that makes no sense holds nobody back."""
    limiter = RateLimiter(1_000)
    answer(limiter, 200, **(sane() | absurd))

    assert await wait_for(limiter) == 0


async def test_a_service_whose_clock_is_set() -> None:
    """When the service's clock jumps by an hour either way, its new times are understood."""
    limiter = RateLimiter(1_000)
    for hour in (0, 3_600, -3_600):
        headers = sane() | {"date": date(hour), "x_ratelimit_reset": int(UNIX + anyio.current_time() + hour) + 5}
        answer(limiter, 200, **headers)
        waited = await wait_for(limiter)

        assert 4 <= waited <= 6
        await anyio.sleep(30)


async def test_a_service_whose_windows_slide() -> None:
    """Where the reset moves along with the time, it is not taken for the end of a window that has passed."""
    limiter = RateLimiter(1_000)
    for _ in range(5):
        await anyio.sleep(2)
        reset = UNIX + anyio.current_time() + 4.9
        answer(limiter, 200, date=date(), x_ratelimit_remaining=900, x_ratelimit_reset=reset)
    answer(limiter, 429, **sane())

    assert 4 <= await wait_for(limiter) <= 6


async def test_an_overtaken_answer_says_nothing_new() -> None:
    """The answer to an earlier request that comes after the answer to a later one is not believed."""
    limiter = RateLimiter(1_000)
    await anyio.sleep(1)
    answer(limiter, 200, **(sane() | {"x_ratelimit_remaining": 900}))
    answer(limiter, 200, age=0.5, **sane())

    assert await wait_for(limiter) == 0


async def test_statistics() -> None:
    """Each request let go is in transit until it is answered or lost."""
    limiter = RateLimiter(10, window=2)
    before = limiter.statistics()
    await departures(limiter, 3)
    answer(limiter)
    limiter.lost()
    after = limiter.statistics()

    assert (before.departed, before.in_transit, before.throttled, before.paused_until) == (0, 0, 0, None)
    assert (after.limit, after.window, after.departed, after.waiting, after.in_transit) == (10, 2.0, 3, 0, 1)


# --- the bound on what is in flight ---


async def test_in_flight_bound() -> None:
    """No more than the limit hold a place, and all get one in the end."""
    bound = InFlight(3)
    most = 0

    async def hold() -> None:
        nonlocal most
        await bound.acquire()
        most = max(most, bound.statistics().in_flight)
        await anyio.sleep(1)
        bound.release()

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(hold)

    assert most == 3
    assert (bound.statistics().in_flight, bound.statistics().waiting) == (0, 0)


async def test_places_are_handed_over_in_order() -> None:
    """A freed place goes to the one who waited longest; whoever asks at that very moment queues behind."""
    bound = InFlight(1)
    order: list[str] = []
    await bound.acquire()

    async def hold(name: str) -> None:
        await bound.acquire()
        order.append(name)
        bound.release()

    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(hold, name)
            await anyio.sleep(0.1)
        bound.release()
        await hold("late")

    assert "".join(order) == "abclate"


@pytest.mark.parametrize("handed_over", [False, True])
async def test_a_cancelled_waiter_keeps_no_place(handed_over: bool) -> None:
    """A waiter that is cancelled, even in the moment in which it was given the place, passes it on."""
    bound = InFlight(1)
    await bound.acquire()
    scope = anyio.CancelScope()
    got: list[str] = []

    async def hold(name: str, cancelled: anyio.CancelScope) -> None:
        with cancelled:
            await bound.acquire()
            got.append(name)
            bound.release()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, "cancelled", scope)
        await anyio.sleep(1)
        tasks.start_soon(hold, "next", anyio.CancelScope())
        await anyio.sleep(1)
        if handed_over:
            bound.release()
            scope.cancel()
        else:
            scope.cancel()
            await anyio.sleep(1)
            bound.release()

    assert got in (["next"], ["cancelled", "next"] if handed_over else ["next"])
    assert (bound.statistics().in_flight, bound.statistics().waiting) == (0, 0)


async def test_no_bound() -> None:
    """Without a limit everybody gets a place at once, and is still counted."""
    bound = InFlight(None)
    for _ in range(1_000):
        await bound.acquire()

    assert (bound.statistics().limit, bound.statistics().in_flight) == (None, 1_000)


async def test_a_place_is_given_back_once() -> None:
    """Giving back what nobody holds is a mistake of the caller, and said to be one."""
    with pytest.raises(RuntimeError, match="more often"):
        InFlight(1).release()
