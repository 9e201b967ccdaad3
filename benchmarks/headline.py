"""The headline: 5,000 solves in flight, 1,000 requests a second, 100 ms of latency, one core.

Every task takes the same time and is asked for every 5 s, by ours (without its jitter) as by the hand-written loop, so
that all do the same work: 5,000 submits in the first 5 s, then 1,000 polls a second until the end. A task is ready 0.2
s before a poll is due, so that nobody is late by a whole interval for a millisecond. The ideal is that of `job`. A
machine that cannot send so much gets a share of it: fewer solves and a lower limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import job, request_cost

if TYPE_CHECKING:
    from .harness import Bench

COUNT = 5_000
CONTESTANTS = ("ours", "ours, fast", "aiohttp by hand")


def run(bench: Bench) -> dict[str, Any]:
    """Measure ours and the hand-written loop."""
    from .harness import note

    share = request_cost.share_of(bench, job.RATE)
    if share < 1:
        note(f"headline: this machine is too slow or too busy; {share:.0%} of the load")
    names = [name for name in CONTESTANTS if name in job.contestants(bench)]
    runs = dict.fromkeys(names, bench.runs)
    seconds, count, rate = 4.8 if bench.quick else 14.8, int(share * COUNT), int(share * job.RATE)
    rows = job.compare(bench, names, count, str(seconds), runs=runs, cap=90.0, every=5.0, rate=rate)
    return {"rows": rows, "seconds": seconds, "rate": rate}
