"""Where the CPU goes.

    python -m benchmarks.profile                          # polls, 100 at once, on httpx
    python -m benchmarks.profile --transport fast --concurrency 1000
    python -m benchmarks.profile job --count 2000         # whole solves: submits, waits, polls
    python -m benchmarks.profile layers                   # the same poll at each layer, from a bare socket upwards
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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from . import hand, job, request_cost
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


# --- layers -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def bare_socket(url: str, body: bytes) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """An asyncio protocol that writes a ready request and waits for any bytes: the floor."""
    address = url.removeprefix("http://")
    host, _, port = address.rpartition(":")
    head = f"POST /getTaskResult HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    free: list[tuple[Any, _Bare]] = []

    async def call() -> None:
        pair = free.pop() if free else await loop.create_connection(_Bare, host, int(port))
        pair[1].answer = loop.create_future()
        pair[0].write(head + body)
        await pair[1].answer
        free.append(pair)

    yield call
    for transport, _ in free:
        transport.close()


class _Bare(asyncio.Protocol):
    answer: asyncio.Future[None]

    def data_received(self, data: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(None)


@asynccontextmanager
async def codec_only(url: str, body: bytes) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """h11 alone: one request written and one answer read, no network."""
    import h11

    text = b'{"errorId":0,"status":"processing"}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
    answer += b"x-ratelimit-limit: 10000\r\nx-ratelimit-remaining: 9999\r\nx-ratelimit-reset: 1700000000\r\n"
    answer += b"content-length: %d\r\n\r\n" % len(text) + text
    headers = [("Host", "127.0.0.1:1"), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]

    async def call() -> None:
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method="POST", target="/getTaskResult", headers=headers))
        connection.send(h11.Data(body))
        connection.send(h11.EndOfMessage())
        connection.receive_data(answer)
        while type(connection.next_event()) is not h11.EndOfMessage:
            pass
        await asyncio.sleep(0)

    yield call


@asynccontextmanager
async def inside(url: str, layer: str, transport: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Our own client, entered at one of its layers. It reaches into private parts, which may move."""
    from ucaptcha_async.transport.old_exchange import Departure, Sending

    from ucaptcha_async import AsyncClient, ImageToText, RateLimiter, RecaptchaV2
    from ucaptcha_async.secrecy import SecretBytes

    options: dict[str, Any] = {"transport": transport, "rate_limit": RateLimiter(request_cost.UNLIMITED)}
    async with AsyncClient(KEY, base_url=url, **options) as client:
        task = RecaptchaV2(website_url=hand.PAGE, website_key="key")
        picture = ImageToText(image=b"\x89PNG\r\n\x1a\n" + bytes(200))
        task_id = (await client.submit(task)).task_id or ""
        api = client._engine.api
        http: Any = api.http
        body = SecretBytes(f'{{"clientKey":"{KEY}","taskId":"{task_id}"}}'.encode())
        place = url + "/getTaskResult"

        def request() -> Any:
            return http.polls.build(place, body)

        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "one connection (the transport alone)": lambda: http.polls.client._transport.handle_async_request(
                request()
            ),
            "httpx client.send over it": lambda: http.polls.client.send(request()),
            "Http.post (deadline, reply)": lambda: http.post("/getTaskResult", body, Departure(api.limiter)),
            "Api (limiter, JSON, errors)": lambda: api.get_task_result(task_id),
            "client.get_task_result": lambda: client.get_task_result(task_id),
            FIRST_SUBMIT: lambda: api.create_task(task.to_wire(), sending=Sending()),
            "submit: client.submit": lambda: client.submit(task),
            "submit: client.solve, solved at once": lambda: client.solve(picture),
        }
        yield calls[layer]


FIRST_SUBMIT = "submit: Api (limiter, JSON, errors)"
LAYERS = (
    "one connection (the transport alone)",
    "httpx client.send over it",
    "Http.post (deadline, reply)",
    "Api (limiter, JSON, errors)",
    "client.get_task_result",
    FIRST_SUBMIT,
    "submit: client.submit",
    "submit: client.solve, solved at once",
)


async def cost(call: Callable[[], Awaitable[object]], concurrency: int, seconds: float) -> float:
    """CPU microseconds of one call."""
    done = 0

    async def worker() -> None:
        nonlocal done
        while True:
            await call()
            done += 1

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(worker()) for _ in range(concurrency)]
        await asyncio.sleep(0.3)
        first, cpu = done, time.process_time()
        await asyncio.sleep(seconds)
        result = 1e6 * (time.process_time() - cpu) / max(done - first, 1)
        for task in workers:
            task.cancel()
    return result


async def layers(url: str, transport: str, concurrency: int, seconds: float, rounds: int = 5) -> str:
    """The least of some rounds at each layer, and what each adds."""
    from .harness import installed

    body = f'{{"clientKey":"{KEY}","taskId":"unknown"}}'.encode()
    opened: dict[str, Callable[[], Any]] = {
        "h11 alone, no network": lambda: codec_only(url, body),
        "bare asyncio protocol": lambda: bare_socket(url, body),
    }
    for layer in LAYERS if transport != "fast" else LAYERS[2:]:
        opened[layer] = functools.partial(inside, url, layer, transport)
    others = [name for name in (*request_cost.STOCK, "aiohttp") if installed(request_cost.NEEDS.get(name, "httpx"))]
    for name in others:
        opened[name] = functools.partial(request_cost.caller, name, url, KEY)
    found: dict[str, list[float]] = {name: [] for name in opened}
    for _ in range(rounds):
        for name, open_ in opened.items():
            async with open_() as call:
                found[name].append(await cost(call, concurrency, seconds))
    rows, before = [], 0.0
    for name, times in found.items():
        least = min(times)
        adds = f"{least - before:+.0f}" if name in LAYERS and name != FIRST_SUBMIT else ""
        rows.append([name, f"{least:.0f}", adds])
        before = least
    return table([f"µs of CPU, {concurrency} at once, {transport}", "in all", "more than the line above"], rows)


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
    parser.add_argument("what", nargs="?", choices=("requests", "job", "layers", "connections"), default="requests")
    parser.add_argument("--transport", choices=("httpx", "httpx2", "fast"), default="httpx")
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
    contestant = f"ours, {options.transport}"
    if options.what == "layers":
        return await layers(service.url, options.transport, options.concurrency, options.seconds / 5)
    if options.what == "job":
        name = "ours" if options.transport == "httpx" else contestant
        sampler, cpu, _ = await solves(service.url, name, options.count)
        requests_sent = int(str(service.books()["requests"]))
    else:
        sampler, cpu, requests_sent = await requests(service.url, contestant, options.concurrency, options.seconds)
    return sampler.show(cpu, requests_sent, options.functions)


if __name__ == "__main__":
    main()
