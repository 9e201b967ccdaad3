"""From one process to a thousand machines: what binds, by the formulae, and a simulation that confirms them.

    python -m benchmarks.scale                  # the tables, from benchmarks/scale.json
    python -m benchmarks.scale plan 100000      # what so many tasks in flight take
    python -m benchmarks.scale measure          # measure what the formulae need: about 3 minutes, and a redis-server
    python -m benchmarks.scale simulate         # 100,000 solves in flight over 100 processes, in virtual time
    python -m benchmarks.scale page             # write the tables into docs/explanation/scale.md

`measure` and `simulate` write what they find into `benchmarks/scale.json`, and the page as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable
from random import Random
from statistics import mean
from typing import Any

import attrs

from .capacity import Costs, Fleet, Work, binding, bounds, calls, needs, rate, visits
from .harness import KEY, ROOT, facts, make_bench, note
from .report import table
from .virtual_fleet import Found, Scenario, simulate

RESULTS = ROOT / "benchmarks" / "scale.json"
PAGE = ROOT / "docs" / "explanation" / "scale.md"

STEPS = (
    Fleet(name="1 process"),
    Fleet(name="1 machine, 8 processes", processes=8, places=40_000),
    Fleet(name="10 machines, 1 address", machines=10, processes=8, places=100_000),
    Fleet(name="10 machines, 10 addresses", machines=10, processes=8, addresses=10, places=100_000),
    Fleet(name="25 machines, 25 addresses", machines=25, processes=4, addresses=25, places=100_000),
    Fleet(name="… limiters on 5 Redis", machines=25, processes=4, addresses=25, places=100_000, limiter_servers=5),
    Fleet(name="100 machines, 100 addresses", machines=100, processes=4, addresses=100, places=500_000),
    Fleet(name="… limiters on 10 Redis", machines=100, processes=4, addresses=100, places=500_000, limiter_servers=10),
    Fleet(name="… 1 process each", machines=100, processes=1, addresses=100, places=500_000, limiter_servers=10),
    Fleet(
        name="1,000 machines, 250 addresses",
        machines=1_000,
        addresses=250,
        places=1_250_000,
        limiter_servers=50,
    ),
    Fleet(
        name="… each with its own share",
        machines=1_000,
        addresses=250,
        places=1_250_000,
        limiter_servers=50,
        common=False,
    ),
)

SCENARIOS = {
    "100,000 in flight, 100 processes, 25 addresses": Scenario(processes=100, addresses=25, places=100_000),
    "20,000 in flight, 20 processes, 2 addresses": Scenario(processes=20, addresses=2, places=20_000),
}
"""The first is held up by its places, the second by its addresses."""

# --- what the formulae need -------------------------------------------------------------------------------------------


def expected(median: float, sigma: float, *, seed: int = 1, memories: int = 100) -> Work:
    """A solve whose time is drawn from a lognormal distribution, with polls as learned from 200 others.

    By the library's own clock of polls (as in `benchmarks.polling`), without a service and without a client; the mean
    of so many memories, since each learns from others.
    """
    from ucaptcha_async.polling import Polling, SolveTimes

    from .polling import Distribution, Group, learn, measured

    distribution, polling, rng = Distribution("", (Group(1.0, median, sigma),)), Polling(), Random(seed)
    results = []
    for _ in range(memories):
        times = SolveTimes(polling.memory)
        learn(times, [distribution.draw(rng) for _ in range(200)], polling, True, rng)
        results += measured(times, [distribution.draw(rng) for _ in range(100)], polling, rng)
    polls, delay = mean(polls for polls, _ in results), mean(delay for _, delay in results)
    return Work(solve_time=median * math.exp(sigma**2 / 2), delay=delay, polls=polls)


def client_costs() -> tuple[dict[str, float], dict[str, Any]]:
    """CPU and memory of real clients against a real local service."""
    from . import job

    bench = make_bench(quick=True, runs=1, peers={})
    note("scale: 2,000 solves of a real client")
    solved = job.one(bench, "ours, fast", 2_000, "12~0.5", 1, 150.0)
    note("scale: memory of 10,000 waiting solves")
    with bench.service(solve_time="36000", rate_limit=10_000_000) as service:
        url = service.url
        waiting = bench.measure(
            "memory:measure", within=120, way="solve", backend="asyncio", url=url, key=KEY, count=10_000
        )
        idle = bench.measure("scale:idle", url=url, key=KEY)
    if solved is None or waiting is None or idle is None:
        raise SystemExit("a measurement did not end")
    found = {"cpu_ms": solved["cpu_ms"], "solve_kb": waiting["bytes"] / 1e3, "process_mb": idle["bytes"] / 1e6}
    return found, facts(bench)


async def idle(url: str, key: str) -> dict[str, int]:
    """Memory of a process with an open client."""
    from ucaptcha_async import AsyncClient

    from .meter import memory

    async with AsyncClient(key, base_url=url, transport="fast") as client:
        await client.get_balance()
        return {"bytes": memory()}


# --- Redis ------------------------------------------------------------------------------------------------------------


class RedisMeter:
    """CPU of a real Redis for what the library asks of it."""

    def __init__(self, url: str, repeats: int) -> None:
        self.url, self.repeats = url, repeats

    async def all(self) -> dict[str, Any]:
        """The figures of `Costs`."""
        import coredis

        self.client: Any = coredis.Redis.from_url(self.url)
        async with self.client:
            return {
                "limiter_us": await self.limiter(),
                "places_us": await self.places(),
                "journal_us": await self.journal(),
                "budget_us": await self.budget(),
            }

    async def microseconds(self, work: Awaitable[object]) -> tuple[float, int]:
        """Redis' CPU and the scripts that it ran, of something."""
        before, scripts = await self._spent()
        await work
        after, more = await self._spent()
        return 1e6 * (after - before), more - scripts

    async def _spent(self) -> tuple[float, int]:
        cpu, commands = await self.client.info("cpu"), await self.client.info("commandstats")
        run = [stats["calls"] for name, stats in commands.items() if name.startswith("cmdstat_evalsha")]
        return cpu["used_cpu_user"] + cpu["used_cpu_sys"], sum(run)

    async def limiter(self) -> float:
        """A visit for one turn."""
        from ucaptcha_async.redis import RedisRateLimiter

        limiter = RedisRateLimiter(self.client, name="scale", limit=10_000_000)

        async def turns() -> None:
            for _ in range(self.repeats):
                await limiter.acquire()
                limiter.lost()

        spent, visited = await self.microseconds(turns())
        return spent / visited

    async def places(self) -> tuple[float, float]:
        """A visit of one process among few, and what each further one adds."""
        from ucaptcha_async.redis import RedisInFlight

        found = []
        async with RedisInFlight(self.client, name="scale", limit=10_000_000, lease=600) as places:
            for count in (1, 401):
                for number in range(count):
                    places._token = f"process-{number}"
                    await places._ask((1, 0))

                async def ask() -> None:
                    for _ in range(self.repeats // 4):
                        await places._ask((1, 0))

                spent, visited = await self.microseconds(ask())
                found.append(spent / visited)
        return found[0], max(0.0, (found[1] - found[0]) / 400)

    async def journal(self) -> tuple[float, float]:
        """A visit with rows, and each row of it."""
        from ucaptcha_async.journal import Intent, State
        from ucaptcha_async.redis import RedisJournal

        async with RedisJournal(self.client, name="scale", linger=0.0) as journal:

            async def solve() -> None:
                claim = await journal.begin(Intent(account="a" * 32, host="h", type="Turnstile"))
                await journal.accepted(claim.submit_id, "task-1")
                await journal.finished(claim.submit_id, State.SOLVED, task_id="task-1")

            return await self._visit_and_each(solve, 3)

    async def budget(self) -> tuple[float, float]:
        """A visit with reservations, and each of them."""
        from ucaptcha_async.redis import RedisBudget

        async with RedisBudget(self.client, "1000000", name="scale", estimate="0.003", linger=0.0) as budget:

            async def spend() -> None:
                reservation = await budget.reserve("Turnstile")
                await budget.settle(reservation, None)

            return await self._visit_and_each(spend, 2)

    async def _visit_and_each(self, one: Callable[[], Awaitable[object]], orders: int) -> tuple[float, float]:
        """From single orders, and from many at once: what a visit costs, and what each order in it adds."""
        points = []
        for at_once in (1, 32):

            async def rounds(at_once: int = at_once) -> None:
                for _ in range(self.repeats // (4 * at_once)):
                    await asyncio.gather(*(one() for _ in range(at_once)))

            spent, visited = await self.microseconds(rounds())
            done = self.repeats // (4 * at_once) * at_once * orders
            points.append((spent / visited, done / visited))
        (alone, few), (together, many) = points
        each = max(0.0, (together - alone) / (many - few))
        return alone - few * each, each


def redis_costs(repeats: int = 8_000) -> dict[str, Any]:
    """What Redis' own CPU was for each kind of visit."""
    from .fleet import redis_server

    note("scale: a real Redis")
    with redis_server() as (url, _):
        return asyncio.run(RedisMeter(url, repeats).all())


# --- the tables -------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """All tables of the page, by the names of their places."""
    work, costs = Work(**results["work"]), costs_of(results)
    return {
        "costs": cost_table(work, costs, results["facts"]),
        "steps": step_table(work, costs),
        "needs": need_table(work, costs),
        "simulation": simulation_table(results),
    }


def costs_of(results: dict[str, Any]) -> Costs:
    """What was measured."""
    return Costs(**results["costs"])


def cost_table(work: Work, costs: Costs, machine: dict[str, Any]) -> str:
    """What goes into the formulae."""
    rows = [
        ("S", "solve time, mean", f"{work.solve_time:.1f} s"),
        ("D", "from ready to the poll that finds it, mean", f"{work.delay:.2f} s"),
        ("L", "one request, there and back", f"{work.latency:g} s"),
        ("p", "polls a solve", f"{work.polls:.2f}"),
        ("R", "requests a second of an address, limiter of one process", f"{rate(shared=False):.1f}"),
        ("R", "requests a second of an address, limiter in Redis", f"{rate(shared=True):.1f}"),
        ("c", 'CPU a solve, `transport="fast"`', f"{costs.cpu_ms:.2f} ms"),
        ("m", "memory of a waiting solve", f"{costs.solve_kb:.1f} KB"),
        ("", "memory of a process with nothing to do", f"{costs.process_mb:.0f} MB"),
        ("", "Redis' CPU: a visit of the limiter for one turn", f"{costs.limiter_us:.0f} µs"),
        ("", "Redis' CPU: a visit to the places, and for each process", _two(costs.places_us)),
        ("", "Redis' CPU: a visit of the journal, and for each row", _two(costs.journal_us)),
        ("", "Redis' CPU: a visit of the budget, and for each reservation", _two(costs.budget_us)),
    ]
    lines = [f"| {sign} | {what} | {value} |" for sign, what, value in rows]
    busy = f"load average at the start {machine['load']}"
    place = f"{machine['date']}: Python {machine['python']}, {machine['system']}, {machine['processor']}, {busy}."
    return "\n".join(["| | | |", "|---|---|---:|", *lines, "", place])


def _two(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.0f} + {pair[1]:.2f} µs"


NAMES = ("address", "in flight", "CPU", "memory", "Redis, limiters", "Redis, account")


def step_table(work: Work, costs: Costs) -> str:
    """Solves per second that each thing allows, and which binds."""
    rows = []
    for fleet in STEPS:
        allowed = bounds(fleet, work, costs)
        name, solves = binding(allowed)
        cells = [f"**{allowed[each]:,.0f}**" if each == name else _number(allowed.get(each)) for each in NAMES]
        rows.append([fleet.name, *cells, f"{solves * work.held:,.0f}"])
    return table(["solves a second by", *NAMES, "so in flight"], rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def need_table(work: Work, costs: Costs) -> str:
    """What a number of tasks in flight takes."""
    rows = []
    for in_flight in (1_000, 10_000, 100_000, 1_000_000):
        need = needs(in_flight, work, costs)
        cells = [need.solves, need.requests, need.addresses, need.cores]
        redis = need.calls.limiter_cores + need.calls.account_cores
        asked = need.calls.limiter + need.calls.places + need.calls.journal + need.calls.budget
        more = [f"{need.memory_gb:,.2f}", f"{asked:,.0f}", f"{redis:,.2f}", f"{need.usd_an_hour:,.0f}"]
        rows.append([f"{in_flight:,}", *(f"{math.ceil(cell):,}" for cell in cells), *more])
    header = ["in flight", "solves/s", "requests/s", "addresses", "cores", "memory, GB", "calls to Redis/s"]
    return table([*header, "cores of Redis", "USD/hour"], rows)


def simulation_table(results: dict[str, Any]) -> str:
    """What the formulae say, beside what was found."""
    parts = []
    for name, one in results["simulation"].items():
        scenario, found = Scenario(**one["scenario"]), Found(**one["found"])
        rows = [[what, said, seen] for what, said, seen in compared(scenario, found, Work(**results["work"]))]
        parts.append(f"{table([name, 'formulae', 'simulation'], rows)}\n")
    return "\n".join(parts).rstrip()


def predicted(scenario: Scenario, work: Work) -> dict[str, float]:
    """What the formulae say of a scenario, of which nothing but its settings is known."""
    carried = scenario.addresses * rate(shared=False, limit=scenario.limit, window=scenario.window)
    solves = min(scenario.places / work.held, carried / work.requests)
    each = solves / scenario.processes
    return {
        "solves": solves,
        "in_flight": scenario.places,
        "requests": min(carried, scenario.places / work.held * work.requests),
        "journal_calls": scenario.processes * visits(3 * each),
        "budget_calls": scenario.processes * visits(2 * each),
    }


def compared(scenario: Scenario, found: Found, work: Work) -> list[tuple[str, str, str]]:
    """What was predicted, and what was found. Where an address binds, polls are late, and late polls are fewer."""
    said = predicted(scenario, work)
    late = said["solves"] < 0.99 * scenario.places / work.held
    least, most = ("≥ ", "≤ ") if late else ("", "")
    return [
        ("solves a second", f"{least}{said['solves']:,.0f}", f"{found.solves:,.0f}"),
        ("tasks with a place, mean", f"{said['in_flight']:,.0f}", f"{found.in_flight:,.0f}"),
        ("most at the service at once", f"≤ {scenario.places:,}", f"{found.most_in_flight:,}"),
        ("requests a second", f"{said['requests']:,.0f}", f"{found.requests:,.0f}"),
        ("most in any window of an address", f"≤ {scenario.limit:,}", f"{found.most_in_window:,}"),
        ("polls a solve", f"{most}{work.polls:.2f}", f"{found.polls:.2f}"),
        ("from ready to found, s", f"{least}{work.delay:.2f}", f"{found.delay:.2f}"),
        ("closest two polls of a task, s", "≥ 5", f"{found.closest_polls:.2f}"),
        ("calls of a journal in Redis a second", f"{said['journal_calls']:,.0f}", f"{found.journal_calls:,.0f}"),
        ("calls of a budget in Redis a second", f"{said['budget_calls']:,.0f}", f"{found.budget_calls:,.0f}"),
        ("solved in all", "", f"{found.ended:,}"),
        ("paid, and not delivered", "0", f"{found.undelivered:,}"),
        ("the simulation's own CPU, s", "", f"{found.cpu_seconds:,.0f}"),
        ("its memory, MB", "", f"{found.memory_mb:,.0f}"),
    ]


def written(text: str, results: dict[str, Any]) -> str:
    """The page with its tables between the markers `<!-- name -->` and `<!-- /name -->`."""
    for name, body in tables(results).items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise SystemExit(f"the page has no place for {name}")
        text = text[: found.start()] + f"{found[1]}\n{body}\n\n{found[2]}" + text[found.end() :]
    return text


# --- the command ------------------------------------------------------------------------------------------------------


def load() -> dict[str, Any]:
    """What was measured and simulated last."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def keep(**parts: Any) -> None:
    """Write results down, and into the page."""
    results = {**load(), **parts}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if {"costs", "simulation"} <= results.keys():
        PAGE.write_text(written(PAGE.read_text(), results))


def measure() -> None:
    """Measure what the formulae need."""
    scenario = Scenario(processes=1, addresses=1, places=1)
    client, machine = client_costs()
    redis = redis_costs()
    work = attrs.asdict(expected(scenario.median, scenario.sigma))
    kept = {name: machine[name] for name in ("date", "python", "system", "processor", "load")}
    keep(facts=kept, work=work, costs={**client, **redis})


def simulate_all() -> None:
    """Run the scenarios, the smallest first: memory is the process's most so far."""
    done = {}
    for name, scenario in reversed(SCENARIOS.items()):
        note(f"scale: {name}")
        found = simulate(scenario)
        done[name] = {"scenario": attrs.asdict(scenario), "found": attrs.asdict(found)}
        note(f"scale: {found.cpu_seconds:.0f} s of CPU, {found.memory_mb:.0f} MB")
    keep(simulation={name: done[name] for name in SCENARIOS})


def plan(in_flight: int) -> None:
    """Say what so many tasks in flight take."""
    results = load()
    work, costs = Work(**results["work"]), costs_of(results)
    need = needs(in_flight, work, costs)
    asked = calls(need.solves, max(1, math.ceil(need.cores)), work, costs)
    print(json.dumps({**attrs.asdict(need), "calls": attrs.asdict(asked)}, indent=2))


def main() -> None:
    """Do one part, or print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("part", nargs="?", choices=["measure", "simulate", "page", "plan", "tables"], default="tables")
    parser.add_argument("in_flight", nargs="?", type=int, default=100_000)
    options = parser.parse_args()
    if options.part == "plan":
        plan(options.in_flight)
    elif options.part == "tables":
        print("\n\n".join(tables(load()).values()))
    else:
        {"measure": measure, "simulate": simulate_all, "page": keep}[options.part]()


if __name__ == "__main__":
    main()
