"""The headline: 5,000 and 1,000 solves in flight, 1,000 requests a second, 100 ms of latency, one core.

Every task takes the same time and is asked for every 5 s, by ours (without its jitter) as by the hand-written loop, so
that all do the same work: submits first, then polls until the end. A task is ready 0.2 s before a poll is due, so that
nobody is late by a whole interval for a millisecond. The ideal is that of `job`. All take turns, over plain HTTP and
over TLS; the ratios are those of each round to aiohttp by hand in the same round. A machine that cannot send so much
gets a share of it: fewer solves and a lower limit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import job, request_cost, ways

if TYPE_CHECKING:
    from .harness import Bench

CONTESTANTS = ("aiohttp by hand", "ours, h11", "ours, httptools", "ours, fast")


def run(bench: Bench) -> dict[str, Any]:
    """Measure ours and the hand-written loop."""
    from .harness import note

    share = request_cost.share_of(bench, job.RATE)
    if share < 1:
        note(f"headline: this machine is too slow or too busy; {share:.0%} of the load")
    seconds, rate = 4.8 if bench.quick else 14.8, int(share * job.RATE)
    names = ways.here(CONTESTANTS)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        certificates = {"http": None, "https": ways.certificate(Path(folder))}
        for count, scheme in ((5000, "http"), (1000, "http"), (5000, "https"), (1000, "https")):
            runs = 1 if bench.quick else bench.runs
            how: dict[str, Any] = {"cap": 90.0, "every": 5.0, "rate": rate, "certificate": certificates[scheme]}
            found = job.compare(bench, names, int(share * count), str(seconds), runs=dict.fromkeys(names, runs), **how)
            rows += [{**row, "scheme": scheme} for row in found]
    return {"rows": rows, "seconds": seconds, "rate": rate}
