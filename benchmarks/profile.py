"""Where the CPU goes.

    python -m benchmarks.profile                          # polls, 100 at once
    python -m benchmarks.profile --client 'ours, h11' --concurrency 1000
    python -m benchmarks.profile job --count 2000         # whole solves: submits, waits, polls
    python -m benchmarks.profile connections              # what `max_connections` does at the documented pace
    python -m benchmarks.profile requests --calls 40      # cProfile's list as well (it distorts: many small calls)

Samples the running function every few milliseconds of CPU time (`SIGPROF`), so that little is distorted. "Self" is by
the module in which the time was spent, built-in functions counted to their caller; "under" is by every module that was
on the stack.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import functools
import gc
import os
import pstats
import signal
import sys
import sysconfig
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from . import hand, job, request_cost, ways
from .harness import KEY, Bench, make_bench
from .meter import TICK, Ledger
from .report import table

SITE = Path(sysconfig.get_paths()["purelib"])
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
PACKAGE = Path(__file__).resolve().parent.parent


class Sampler:
    """Counts where the interpreter is, every few milliseconds of CPU time."""

    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()
        self.under: Counter[str] = Counter()
        self.total = 0
        self.stall = 0.0
        self.during_stall: Counter[str] = Counter()
        self._latest: Counter[str] = Counter()

    async def tick(self) -> None:
        """Watch the event loop; remember what ran during the longest stall."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + TICK
            self._latest = Counter()
            await asyncio.sleep(TICK)
            if clock() - due > self.stall:
                self.stall, self.during_stall = clock() - due, self._latest

    def __enter__(self) -> Sampler:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.total += 1
        self.own[where(frame.f_code.co_filename)] += 1
        self.functions[f"{where(frame.f_code.co_filename)}: {frame.f_code.co_qualname}"] += 1
        self._latest[f"{where(frame.f_code.co_filename)}: {frame.f_code.co_qualname}"] += 1
        modules = set()
        at: FrameType | None = frame
        while at is not None:
            modules.add(where(at.f_code.co_filename))
            at = at.f_back
        self.under.update(modules)
        self._latest.update(f"under {name}" for name in modules)

    def show(self, cpu: float, requests: int, functions: int) -> str:
        """Tables of shares, and of microseconds per request."""
        each = 1e6 * cpu / max(requests, 1)

        def lines(counts: Counter[str], most: int) -> str:
            shares = ((name, times / max(self.total, 1)) for name, times in counts.most_common(most))
            return table(["", "%", "µs a request"], ((n, f"{100 * s:.1f}", f"{each * s:.0f}") for n, s in shares))

        head = f"{requests:,} requests, {cpu:.2f} s of CPU, {each:.0f} µs a request, {self.total:,} samples"
        parts = {"self, by module": lines(self.own, 24), "under, by module": lines(self.under, 30)}
        parts["self, by function"] = lines(self.functions, functions)
        if self.stall:
            samples = table(["", "samples"], ((n, str(times)) for n, times in self.during_stall.most_common(24)))
            parts[f"during the longest stall, {1000 * self.stall:.0f} ms"] = samples
        return head + "".join(f"\n\n{title}\n\n{text}" for title, text in parts.items())


@functools.cache
def where(file: str) -> str:
    """The module of a file: ours one by one, others by package."""
    path = Path(file)
    if path.is_relative_to(PACKAGE / "ucaptcha_async"):
        return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    if path.is_relative_to(SITE):
        parts = path.relative_to(SITE).with_suffix("").parts
        return ".".join(parts[:2]) if parts[0] == "anyio" else parts[0]
    if path.is_relative_to(LIBRARY):
        return path.relative_to(LIBRARY).with_suffix("").parts[0] + " (standard library)"
    return path.name


# --- what is profiled -------------------------------------------------------------------------------------------------


async def requests(url: str, contestant: str, concurrency: int, seconds: float) -> tuple[Sampler, float, int]:
    """Polls, as in `request_cost`."""
    done = 0

    async def worker(call: request_cost.Call) -> None:
        nonlocal done
        while True:
            await call()
            done += 1

    async with request_cost.caller(contestant, url, KEY) as call, asyncio.TaskGroup() as group:
        workers = [group.create_task(worker(call)) for _ in range(concurrency)]
        await asyncio.sleep(0.5)
        with Sampler() as sampler:
            first, cpu = done, time.process_time()
            await asyncio.sleep(seconds)
            result = sampler, time.process_time() - cpu, done - first
        for task in workers:
            task.cancel()
    return result


async def solves(url: str, contestant: str, count: int) -> tuple[Sampler, float, int]:
    """Whole solves, as in `job`; the requests are those that the service counted."""
    ledger = Ledger()
    site_keys = [f"site-key-{number}" for number in range(count)]
    work = await job.prepared(contestant, url, KEY, site_keys, ledger, job.RATE, 5.0)
    with Sampler() as sampler:
        ticker = asyncio.create_task(sampler.tick())
        cpu = time.process_time()
        await work()
        ticker.cancel()
        return sampler, time.process_time() - cpu, 0


# --- connections ------------------------------------------------------------------------------------------------------


async def connections(url: str, limit: int, seconds: float) -> dict[str, float]:
    """Requests per second, CPU microseconds of one, and the longest stall in ms, with always more to send."""
    from ucaptcha_async import AsyncClient, RecaptchaV2

    done, sampler = 0, Sampler()
    async with AsyncClient(KEY, base_url=url, max_connections=limit) as client, asyncio.TaskGroup() as group:
        task_id = (await client.submit(RecaptchaV2(website_url=hand.PAGE, website_key="key"))).task_id or ""

        async def worker() -> None:
            nonlocal done
            while True:
                await client.get_task_result(task_id)
                done += 1

        workers = [group.create_task(worker()) for _ in range(2_000)]
        await asyncio.sleep(1)
        workers.append(group.create_task(sampler.tick()))
        first, cpu = done, time.process_time()
        await asyncio.sleep(seconds)
        finished, cpu = done - first, time.process_time() - cpu
        for running in workers:
            running.cancel()
    return {"rate": finished / seconds, "cpu_us": 1e6 * cpu / max(finished, 1), "stall_ms": 1000 * sampler.stall}


def compare_connections(bench: Bench, seconds: float) -> str:
    """One line for each bound and latency of the service."""
    rows = []
    for latency in (0.05, 0.1, 0.2, 0.4):
        with bench.service(latency=latency, solve_time="36000", rate_limit=10_000) as service:
            for limit in (64, 128, 256, 512, 1024):
                found = bench.measure("profile:connections", url=service.url, limit=limit, seconds=seconds)
                numbers = (f"{number:.0f}" for number in (found or {}).values())
                rows.append([f"{limit}", f"{1000 * latency:.0f}", *numbers])
                time.sleep(10)  # so that the service's windows do not mix them
    return table(["max_connections", "latency, ms", "requests a second", "µs of CPU each", "longest stall, ms"], rows)


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Profile what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description="Where the CPU goes.")
    parser.add_argument("what", nargs="?", choices=("requests", "job", "connections"), default="requests")
    parser.add_argument("--client", choices=(*ways.OURS, "aiohttp", "aiohttp by hand"), default="ours, fast")
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--latency", type=float, default=0.0, help="of the service, in seconds")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--count", type=int, default=1000, help="solves, for `job`")
    parser.add_argument("--functions", type=int, default=30, help="how many functions to list")
    parser.add_argument("--no-gc", action="store_true", help="without Python's garbage collector, to see its share")
    parser.add_argument("--calls", type=int, default=0, help="list so many functions as cProfile sees them")
    options = parser.parse_args()
    bench = make_bench(quick=True, runs=1, peers={})
    if options.what == "connections":
        print(compare_connections(bench, options.seconds))
        return
    solve_time, limit = ("8", 10_000) if options.what == "job" else ("36000", request_cost.UNLIMITED)
    with bench.service(latency=options.latency, solve_time=solve_time, rate_limit=limit) as service:
        _move(bench)
        if options.no_gc:
            gc.disable()
        profiler = cProfile.Profile() if options.calls else None
        if profiler is not None:
            profiler.enable()
        with suppress(KeyboardInterrupt):
            print(asyncio.run(_report(options, service)))
        if profiler is not None:
            profiler.disable()
            pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(options.calls)


def _move(bench: Bench) -> None:
    """To the client's core; the service stays where it was started."""
    if bench.client_core is not None:
        os.sched_setaffinity(0, {bench.client_core})


async def _report(options: argparse.Namespace, service: Any) -> str:
    if options.what == "job":
        sampler, cpu, _ = await solves(service.url, options.client, options.count)
        requests_sent = int(str(service.books()["requests"]))
    else:
        sampler, cpu, requests_sent = await requests(service.url, options.client, options.concurrency, options.seconds)
    return sampler.show(cpu, requests_sent, options.functions)


if __name__ == "__main__":
    main()
