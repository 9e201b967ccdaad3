"""A fleet: real processes that share limit, places, money and journal over a real Redis, against one local service.

    python -m benchmarks.fleet saturate     how much of the limits is used, how fairly, and what the sharing costs
    python -m benchmarks.fleet kill         processes killed at random; nothing lost, nothing paid twice
    python -m benchmarks.fleet money        a budget that is too small for all; never exceeded

Everything is read from the service's own books. The wall clocks of the processes are set apart by up to an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio

from ucaptcha_async.testing.books import most_in_window

ROOT = Path(__file__).parent.parent
PRICE = "0.00145"

# --- a process of the fleet -------------------------------------------------------------------------------------------


def say(*words: object) -> None:
    """Tell the parent: a line of JSON."""
    print(json.dumps(words), flush=True)


class Worker:
    """One process: its share of the jobs, within the limits of all."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        skew = random.Random(options["number"]).uniform(-3600, 3600)
        now = time.time
        time.time = lambda: now() + skew  # type: ignore[method-assign]

    async def run(self) -> None:
        """Open what is shared, and work."""
        from ucaptcha_async import AsyncClient, Polling

        o = self.options
        async with AsyncExitStack() as stack:
            limiter, places, self.budget, journal = [
                await stack.enter_async_context(each) if hasattr(each, "__aenter__") else each for each in self.shared()
            ]
            polling = Polling(interval=o["interval"], first=o["solve_time"])
            shared: dict[str, Any] = {"rate_limit": limiter, "max_in_flight": places, "budget": self.budget}
            client = AsyncClient(
                "ucap_fleet", base_url=o["url"], timeout=60, journal=journal, polling=polling, **shared
            )
            self.client = await stack.enter_async_context(client)
            say("started", o["number"])
            await {"saturate": self.saturate, "kill": self.finish, "money": self.saturate}[o["mode"]]()

    def shared(self) -> tuple[Any, Any, Any, Any]:
        """Limiter, places, budget and journal: in Redis, or of this process alone, to compare."""
        from ucaptcha_async import MemoryJournal, RateLimiter
        from ucaptcha_async.pacing import InFlight
        from ucaptcha_async.redis import RedisBudget, RedisInFlight, RedisJournal, RedisRateLimiter

        o = self.options
        redis, name, lease, share = o["redis"], o["name"], o["lease"], o["processes"]
        common = o["shared"] if redis else ()
        return (
            RedisRateLimiter(redis, name=name, limit=o["limit"], window=o["window"], when_away="wait")
            if "limit" in common
            else RateLimiter(o["limit"] // share, window=o["window"]),
            RedisInFlight(redis, name=name, limit=o["places"], lease=max(lease, 4 * o["solve_time"]))
            if "places" in common
            else InFlight(max(1, o["places"] // share)),
            RedisBudget(redis, o["money"], name=name, estimate=PRICE, lease=lease) if "money" in common else None,
            RedisJournal(redis, name=name, lease=lease, patience=60) if "journal" in common else MemoryJournal(),
        )

    async def solve(self, key: str) -> Any:
        """One job, within all limits."""
        from ucaptcha_async import Turnstile

        task = Turnstile(website_url=f"https://example.com/{key}", website_key="0x4AAA")
        return await self.client.solve(task, key=key)

    async def saturate(self) -> None:
        """As much as there is to be had, for a while, or until the money is gone."""
        from ucaptcha_async import BudgetExceededError

        done = 0
        o = self.options

        async def worker(lane: int) -> None:
            nonlocal done
            for count in range(10**9):
                try:
                    await self.solve(f"{o['number']}.{lane}.{count}")
                except BudgetExceededError:
                    if not await self.budget.room():
                        return
                else:
                    done += 1

        await anyio.to_thread.run_sync(sys.stdin.readline)
        begun = _cpu()
        with anyio.move_on_after(o["seconds"]):
            async with anyio.create_task_group() as tasks:
                for lane in range(o["lanes"]):
                    tasks.start_soon(worker, lane)
        say("done", o["number"], done, _cpu() - begun)

    async def finish(self) -> None:
        """Every job of this process's share; first what dead processes left, then until nothing is left open."""
        from ucaptcha_async import JournalError, SubmitUncertainError

        o = self.options
        mine = list(range(o["number"], o["jobs"], o["processes"]))
        limiter = anyio.CapacityLimiter(o["lanes"])

        async def recover() -> None:
            async with self.client.recover() as outcomes:
                async for outcome in outcomes:
                    say("recovered", outcome.key, outcome.task_id, outcome.ok)

        async def job(key: str) -> None:
            async with limiter:
                while True:
                    try:
                        solved = await self.solve(key)
                    except SubmitUncertainError:
                        return say("uncertain", key)
                    except JournalError:
                        await anyio.sleep(0.2)
                    else:
                        return say("solved", key, solved.task_id)

        await recover()
        async with anyio.create_task_group() as tasks:
            for number in mine:
                tasks.start_soon(job, f"job-{number}")
        await recover()
        say("end", o["number"])


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# --- the parent -------------------------------------------------------------------------------------------------------


@contextmanager
def redis_server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis of our own, as durable as a journal needs it."""
    command = shutil.which("redis-server")
    if command is None:
        raise SystemExit("redis-server is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        settings += ["--appendonly", "yes", "--appendfsync", "everysec"]
        process = subprocess.Popen([command, *settings], stdout=subprocess.DEVNULL)
        try:
            for _ in range(400):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}", process
        finally:
            process.kill()
            process.wait()


def start(options: dict[str, Any]) -> subprocess.Popen[str]:
    """Start one process of the fleet."""
    command = [sys.executable, "-m", "benchmarks.fleet", "worker", json.dumps(options)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def saturate(options: dict[str, Any], url: str, redis: str | None) -> dict[str, Any]:
    """All processes at once; what each did, and what it cost."""
    fleet = [start({**options, "url": url, "redis": redis, "number": i}) for i in range(options["processes"])]
    for process in fleet:
        assert process.stdout is not None
        process.stdout.readline()
    for process in fleet:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [json.loads(process.communicate(timeout=options["seconds"] + 60)[0].splitlines()[-1]) for process in fleet]
    return {"solved": [line[2] for line in said], "cpu": sum(line[3] for line in said)}


class Heard:
    """A process, and what it has said so far."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.process = start(options)
        self.lines: list[list[Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # the last line of a killed process may be cut off
                self.lines.append(json.loads(line))

    def works(self) -> bool:
        """Whether it has begun, and not ended."""
        return bool(self.lines) and self.process.poll() is None

    def end(self, timeout: float | None = None) -> list[list[Any]]:
        """Wait for it; all that it said."""
        self.process.wait(timeout)
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return self.lines


def kill(options: dict[str, Any], url: str, redis: str) -> dict[str, Any]:
    """Kill working processes at random and start others in their place, then let all finish."""
    rng = random.Random(options["seed"])
    settings = {**options, "url": url, "redis": redis}
    fleet = [Heard({**settings, "number": number}) for number in range(options["processes"])]
    lines: list[list[Any]] = []
    kills = 0
    while kills < options["kills"]:
        time.sleep(rng.uniform(*options["pause"]))
        working = [number for number, each in enumerate(fleet) if each.works()]
        if all(each.process.poll() is not None for each in fleet):
            break  # all jobs are done
        if working:
            number = rng.choice(working)
            fleet[number].process.kill()
            lines += fleet[number].end()
            fleet[number] = Heard({**settings, "number": number})
            kills += 1
    for each in fleet:
        lines += each.end(options["seconds"])
    return {"kills": kills, "lines": lines, "codes": [each.process.returncode for each in fleet]}


def in_flight(tasks: list[dict[str, Any]]) -> int:
    """The most tasks that were at the service at once."""
    edges = sorted([(task["ready_at"], -1) for task in tasks] + [(task["created_at"], 1) for task in tasks])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def paid_twice(tasks: list[dict[str, Any]], lines: list[list[Any]]) -> dict[str, Any]:
    """What the service's books say of the jobs: each paid once at the most, and none that nobody knows of."""
    urls = Counter(task["website_url"] for task in tasks)
    solved = {line[1]: line[2] for line in lines if line[0] == "solved"}
    uncertain = {line[1] for line in lines if line[0] == "uncertain"} - solved.keys()
    known = set(solved.values())
    unknown = [task for task in tasks if task["id"] not in known]
    return {
        "twice": sum(count > 1 for count in urls.values()),
        "lost": sum(task["website_url"].rsplit("/")[-1] not in uncertain for task in unknown),
        "solved": len(solved),
        "uncertain": len(uncertain),
        "uncertain_and_paid": len(unknown),
    }


def share_used(times: list[float], limit: int, window: float, skip: float) -> tuple[int, float]:
    """The fullest window, and how much of the limit was used after the first seconds."""
    times = sorted(times)
    begin, end = times[0] + skip, times[-1] - window / 10
    inside = sum(begin <= moment <= end for moment in times)
    return most_in_window(times, window), inside / ((end - begin) * limit / window)


def main() -> None:
    """Measure one part, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("part", choices=["saturate", "kill", "money", "worker"])
    parser.add_argument("settings", nargs="?", default="{}", help="settings as JSON, in place of the usual ones")
    arguments = parser.parse_args()
    settings = json.loads(arguments.settings)
    if arguments.part == "worker":
        anyio.run(Worker(settings).run)
        return
    print(json.dumps(measure(arguments.part, settings), indent=2))


USUAL: dict[str, Any] = {
    "processes": 8,
    "limit": 4_000,
    "window": 10.0,
    "places": 450,
    "lanes": 100,
    "seconds": 40.0,
    "solve_time": 1.0,
    "interval": 0.5,
    "lease": 10.0,
    "money": "1000",
    "seed": 1,
    "jobs": 4_000,
    "kills": 200,
    "pause": (0.5, 1.5),
    "shared": ("limit", "places", "money", "journal"),
}


def measure(part: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one part with a service and a Redis of its own."""
    from ucaptcha_async.testing import running_service

    options = {**USUAL, "mode": part, "name": part, **settings}
    if part == "kill":
        options = {**options, "limit": 10_000, "lanes": 20, "lease": 2.0, "seconds": 600, **settings}
    if part == "money":
        options = {**options, "money": "0.75", "seconds": 60.0, **settings}
    service = {"solve_time": options["solve_time"], "seed": options["seed"], "rate_limit": 10**6, "balance": "1000"}
    with redis_server() as (redis, server), running_service(**service) as running:
        if part != "kill":
            time.sleep(options["window"] * 1.1)  # a server younger than a window may have forgotten one: nobody starts
        result = (kill if part == "kill" else saturate)(options, running.url, redis)
        books: Any = running.books(full=True)
        if part == "saturate":
            result["redis_cpu"] = _cpu_of(server.pid)
    tasks = books["task_list"]
    result |= {"most_in_flight": in_flight(tasks), "places": options["places"], "accepted": len(tasks)}
    result |= {"spent": books["spent"], "money": options["money"]}
    if part == "kill":
        return {**paid_twice(tasks, result.pop("lines")), **result}
    times = [record["at"] for record in books["request_list"]]
    if part == "money":
        return {**result, "fullest_window": most_in_window(times, options["window"])}
    result["fullest_window"], result["used"] = share_used(times, options["limit"], options["window"], 2.0)
    result["limit"] = options["limit"]
    fair = sum(result["solved"]) / options["processes"]
    result["farthest_from_fair"] = max(abs(each - fair) for each in result["solved"]) / fair
    return {**result, **_compared(options, service, result)}


def _compared(options: dict[str, Any], service: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """The same with limits of each process's own: what a solve costs without sharing."""
    from ucaptcha_async.testing import running_service

    with running_service(**service) as running:
        alone = saturate(options, running.url, None)
    with_redis, without = (1_000 * each["cpu"] / sum(each["solved"]) for each in (shared, alone))
    return {
        "cpu_ms_per_solve": with_redis,
        "cpu_ms_per_solve_alone": without,
        "sharing_costs": with_redis / without - 1,
        "solved_alone": sum(alone["solved"]),
    }


def _cpu_of(pid: int) -> float:
    """CPU seconds of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def spent_within(result: dict[str, Any]) -> bool:
    """Whether the service was paid no more than the budget."""
    return Decimal(result["spent"]) <= Decimal(result["money"])


if __name__ == "__main__":
    main()
