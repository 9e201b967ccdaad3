"""What the display of a batch guesses: how long it will still take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import anyio
import attrs
import pytest

pytest.importorskip("cyclopts")

from ucaptcha_async.cli.progress import Meter
from ucaptcha_async.events import ServiceReached, ServiceUnreachable
from ucaptcha_async.solving.statistics import ClientStatistics

pytestmark = pytest.mark.virtual_time


@attrs.define
class Limit:
    limit: int = 10_000
    window: float = 10.0


@attrs.define
class Statistics:
    """As much of a client's statistics as the display reads."""

    in_flight: int = 0
    requests: int = 0
    spent: Mapping[str, Any] = attrs.field(factory=dict)
    solve_times: Mapping[str, Mapping[float, float]] = attrs.field(factory=dict)
    rate_limit: Limit = attrs.field(factory=Limit)


def left(meter: Meter, statistics: Statistics) -> float | None:
    return meter.snapshot(cast(ClientStatistics, statistics)).left


async def later(meter: Meter, statistics: Statistics) -> float | None:
    await anyio.sleep(1)
    return left(meter, statistics)


SLOW = {"T": {0.5: 10.0, 0.95: 40.0}}


async def test_nothing_is_guessed_before_anything_is_known() -> None:
    """No total, or nothing solved yet."""
    meter, total = Meter(), Meter(total=100)
    meter.begin()
    total.begin()
    await anyio.sleep(1)

    assert left(meter, Statistics(in_flight=5)) is None
    assert left(total, Statistics(in_flight=5)) is None


async def test_while_there_is_more_to_submit_the_rate_tells_and_the_slowest_comes_last() -> None:
    """2 a second, 60 wait to be submitted: 30 s, and then as long as nearly all solves take."""
    meter = Meter(total=100)
    meter.begin()
    for _ in range(20):
        await anyio.sleep(0.5)
        meter.count("T", ok=True)

    assert left(meter, Statistics(in_flight=20, solve_times=SLOW)) == pytest.approx(30 + 40)


async def test_at_the_tail_the_solve_times_tell() -> None:
    """The last few are waited for as long as solves take, whatever the rate was; when late, nothing is made up."""
    meter = Meter(total=100)
    meter.begin()
    for _ in range(90):
        await anyio.sleep(0.1)
        meter.count("T", ok=True)
    last = Statistics(in_flight=10, solve_times=SLOW)

    assert left(meter, last) == pytest.approx(40)
    guesses = [await later(meter, last) for _ in range(45)]
    assert guesses[:39] == pytest.approx(range(39, 0, -1))
    assert guesses[40:] == [None] * 5
    meter.count("T", ok=True)
    assert left(meter, Statistics(in_flight=9, solve_times=SLOW)) == pytest.approx(9 * 10)


async def test_while_draining_only_what_is_in_flight_counts() -> None:
    """A million lines that are not submitted any more take no time, and the end of the drain is the end."""
    meter = Meter(total=1_000_000)
    meter.begin()
    for _ in range(100):
        await anyio.sleep(0.1)
        meter.count("T", ok=True)
    busy = Statistics(in_flight=50, solve_times=SLOW)
    assert (left(meter, busy) or 0) > 50_000

    meter.stops_at = anyio.current_time() + 30
    assert left(meter, busy) == pytest.approx(30)
    await anyio.sleep(20)
    assert left(meter, busy) == pytest.approx(10)
    assert left(meter, Statistics(in_flight=0, solve_times=SLOW)) == 0
    assert left(Meter(stops_at=meter.stops_at), busy) == pytest.approx(10)


async def test_an_outage_is_remarked_while_it_lasts() -> None:
    """In the plain lines as well as on a terminal, beside what else there is to remark."""
    meter, now = Meter(remarks=("stopping",)), anyio.current_time()
    meter.outage.hear(ServiceUnreachable(at=now, reason="createTask: the name cannot be resolved: unknown"))
    await anyio.sleep(12)
    snapshot = meter.snapshot(cast(ClientStatistics, Statistics()))
    assert snapshot.remarks == ("waiting for the service: the name cannot be resolved: unknown, 12 s", "stopping")
    assert snapshot.remarks[0] in snapshot.line()

    meter.outage.hear(ServiceReached(at=now + 12, seconds=12))
    assert meter.snapshot(cast(ClientStatistics, Statistics())).remarks == ("stopping",)
