"""`ucaptcha demo`: many CAPTCHAs at once against the local service in a second process, and what it cost."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, cast

import anyio
import attrs
from cyclopts import Parameter
from rich.table import Table

from ucaptcha_async.client import AsyncClient
from ucaptcha_async.polling import Polling
from ucaptcha_async.results import Outcome
from ucaptcha_async.tasks import HCaptcha, ImageToText, RecaptchaV2, RecaptchaV3, Solution, Task, Turnstile
from ucaptcha_async.testing.process import RunningService, running_service

from .connection import JsonFlag, QuietFlag
from .exits import CommandError, Exit
from .output import duration, money, note, result_console, say, say_json
from .progress import Meter, choose_mode, showing

SPEED = 12.0
"""Solve times are divided by this, so that a median of 12 s becomes 1 s."""

INTERVAL = 5.0 / SPEED
"""Seconds between polls of one task: the documented 5 s, scaled like the solve times."""

PATIENCE = 20.0
"""Seconds for one solve: a tenth of that is usual."""

_PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")


def demo(
    *,
    count: Annotated[int, Parameter(help="How many CAPTCHAs to solve.")] = 60,
    failing: Annotated[
        int | None, Parameter(help="How many of them the service gives up, and refunds. Default: 4, or fewer of few.")
    ] = None,
    seed: Annotated[int, Parameter(help="Seed of the service's random numbers.")] = 1,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Solve a mixed batch against a local uCaptcha, at once, and show its records. Needs no key, no money, no network.

    Starts the local service on a free port in a second process, with solve times scaled down, solves reCAPTCHA v2 and
    v3, hCaptcha, Turnstile and images over real sockets, and asks the service what it charged. Exits 0 if every solved
    task was charged exactly once.
    """
    failing = min(4, count // 3) if failing is None else failing
    if count < 1 or not 0 <= failing < count:
        raise CommandError("--count must be at least 1, and --failing from 0 to less than --count")
    with running_service(speed=SPEED, seed=seed, idle_for=1.0) as service:
        if failing:
            service.fail_next(times=failing, type=HCaptcha.type_names.bare[0].type)
        if not json and not quiet:
            note(f"local service in process {service.pid} on {service.url}, solve times divided by {SPEED:g}")
            note(f"polling each task every {INTERVAL:.2f} s at most (the service documents 5 s)")
        run = anyio.run(_solve_all, service.url, count, quiet or json)
        audit = Audit.of(run, service)
    if json:
        say_json(run.as_json() | audit.as_json())
    else:
        _print(run, audit)
    return Exit.DONE if audit.kept else Exit.DEFECT


def tasks(count: int) -> Iterator[Task[Any]]:
    """A mixed batch; each task has a page of its own, by which the books can be read."""
    for number in range(count):
        page = f"https://example.com/{number}"
        yield (
            RecaptchaV2(website_url=page, website_key="6Le-wvkSAAAAAPBMRTvw0Q4Muexq9bi0DJwx_mJ-"),
            HCaptcha(website_url=page, website_key="10000000-ffff-ffff-ffff-000000000001"),
            RecaptchaV3(website_url=page, website_key="6LdyC2cUAAAAACGuDKpXeDorzUDWXmdqeg-xy696", min_score=0.7),
            Turnstile(website_url=page, website_key="0x4AAAAAAADnPIDROrmt1Wwj"),
            ImageToText(image=_PIXEL, website_url=page),
        )[number % 5]


@attrs.frozen(kw_only=True)
class Run:
    """What the client saw.

    Attributes:
        outcomes: One for each task.
        elapsed: Seconds for all of them.
        requests: HTTP requests made.
        peak: The most tasks in flight at once.
    """

    outcomes: Sequence[Outcome[Solution]]
    elapsed: float
    requests: int
    peak: int

    def by_type(self) -> Iterator[tuple[str, list[Outcome[Solution]]]]:
        """The outcomes of each type of task."""
        names = sorted({outcome.task.type for outcome in self.outcomes})
        for name in names:
            yield name, [outcome for outcome in self.outcomes if outcome.task.type == name]

    def as_json(self) -> dict[str, object]:
        """As plain values; money is text."""
        return {
            "elapsed": round(self.elapsed, 3),
            "requests": self.requests,
            "peak_in_flight": self.peak,
            "interval": round(INTERVAL, 3),
            "types": {name: _sums(outcomes) for name, outcomes in self.by_type()},
        }


async def _solve_all(url: str, count: int, quiet: bool) -> Run:
    meter = Meter(total=count)
    done: list[Outcome[Solution]] = []
    peak = 0
    client = AsyncClient("ucap_demo", base_url=url, timeout=PATIENCE, polling=Polling(interval=INTERVAL))
    meter.begin()
    async with client, showing(lambda: meter.snapshot(client.statistics()), *choose_mode(quiet=quiet, every=1.0)):
        async with client.solve_many(tasks(count)) as outcomes:
            async for outcome in outcomes:
                peak = max(peak, client.statistics().in_flight + 1)
                meter.count(outcome.task.kind, ok=outcome.ok)
                done.append(outcome)
        requests = client.statistics().requests
    return Run(outcomes=done, elapsed=meter.elapsed, requests=requests, peak=peak)


@attrs.frozen(kw_only=True)
class Audit:
    """What the service's records say.

    Attributes:
        charges: Charges in all.
        refunds: Refunds in all.
        charged: Their sum, USD.
        refunded: Their sum, USD.
        solved: Tasks that the client has a solution for.
        once: Those of them that were charged exactly once and not refunded.
        twice: Jobs for which more than one charge stands.
        wasted: Jobs that are paid for, though the client has no solution.
        polls: Polls of all tasks.
    """

    charges: int
    refunds: int
    charged: Decimal
    refunded: Decimal
    solved: int
    once: int
    twice: int
    wasted: int
    polls: int

    @classmethod
    def of(cls, run: Run, service: RunningService) -> Audit:
        """Compare the books with what the client has."""
        books = cast("dict[str, Any]", service.books(full=True))
        refunded = {entry["task_id"] for entry in books["refund_list"]}
        page_of = {task["id"]: task["website_url"] for task in books["task_list"]}
        standing = [page_of[e["task_id"]] for e in books["charge_list"] if e["task_id"] not in refunded]
        solved = {f"https://example.com/{outcome.index}" for outcome in run.outcomes if outcome.ok}
        return cls(
            charges=len(books["charge_list"]),
            refunds=len(books["refund_list"]),
            charged=Decimal(books["charged"]),
            refunded=Decimal(books["refunded"]),
            solved=len(solved),
            once=sum(standing.count(page) == 1 for page in solved),
            twice=sum(standing.count(page) > 1 for page in set(standing)),
            wasted=len(set(standing) - solved),
            polls=books["polls"],
        )

    @property
    def spent(self) -> Decimal:
        """Charges less refunds, USD."""
        return self.charged - self.refunded

    @property
    def kept(self) -> bool:
        """Whether something was solved, each solved task was charged once, and nothing else was paid for."""
        return 0 < self.solved == self.once and not self.twice and not self.wasted

    def as_json(self) -> dict[str, object]:
        """As plain values; money is text."""
        return {
            "books": {
                "charges": self.charges,
                "charged": str(self.charged),
                "refunds": self.refunds,
                "refunded": str(self.refunded),
                "spent": str(self.spent),
                "polls": self.polls,
            },
            "charged_once_per_solved_task": self.kept,
        }


def _sums(outcomes: Sequence[Outcome[Solution]]) -> dict[str, object]:
    solutions = [outcome.solution for outcome in outcomes if outcome.ok]
    times = [solution.solve_time for solution in solutions if solution.solve_time is not None]
    costs = [solution.cost for solution in solutions if solution.cost is not None]
    return {
        "solved": len(solutions),
        "failed": len(outcomes) - len(solutions),
        "median_solve_time": round(statistics.median(times), 3) if times else None,
        "polls_per_solve": round(statistics.fmean(s.polls for s in solutions), 2) if solutions else None,
        "cost": str(sum(costs, Decimal(0))),
    }


def _print(run: Run, audit: Audit) -> None:
    console = result_console()
    table = Table(title=None, header_style="bold")
    table.add_column("task type")
    for name in ("solved", "failed", "median", "polls", "USD"):
        table.add_column(name, justify="right")
    for name, outcomes in run.by_type():
        table.add_row(name, *_cells(_sums(outcomes)))
    table.add_section()
    table.add_row("all", *_cells(_sums(run.outcomes)))
    console.print(table)
    say(f"{len(run.outcomes)} CAPTCHAs in {duration(run.elapsed)}, {run.peak} at once, {run.requests} requests")
    say("")
    say("The service's own records:")
    say(f"  charges  {audit.charges:>4}   USD {money(audit.charged, 5)}")
    say(f"  refunds  {audit.refunds:>4}   USD {money(audit.refunded, 5)}   (given up by the service)")
    say(f"  spent           USD {money(audit.spent, 5)}   for {audit.solved} solved tasks")
    verdict = "yes" if audit.kept else f"NO: {audit.once} of {audit.solved} once, {audit.twice} more than once"
    say(f"  charged once per solved task: {verdict}")
    if audit.wasted:
        say(f"  paid for, and no solution received: {audit.wasted}")


def _cells(sums: Mapping[str, Any]) -> Iterator[str]:
    yield str(sums["solved"])
    yield str(sums["failed"])
    yield "" if sums["median_solve_time"] is None else f"{sums['median_solve_time']:.2f} s"
    yield "" if sums["polls_per_solve"] is None else f"{sums['polls_per_solve']:.2f}"
    yield money(Decimal(sums["cost"]), 5)
