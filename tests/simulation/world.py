"""One world from its beginning to its end, and the record that the checks read."""

from __future__ import annotations

import hashlib
import traceback
from collections import Counter
from decimal import Decimal
from random import Random
from typing import Any

import anyio
import attrs

from ucaptcha_async import RateLimiter, UCaptchaError
from ucaptcha_async.events import Solved
from ucaptcha_async.journal import Entry, MemoryJournal
from ucaptcha_async.solving import type_search
from ucaptcha_async.testing import FaultRates, LocalService, LogNormal
from ucaptcha_async.testing.books import TaskRecord

from .backends import Backend, run, tasks_alive
from .calls import Call, Heard
from .network import Network
from .plan import KINDS, PRICES, Life, Plan, Work, draw
from .process import KEY, Process

EPOCH = 1_790_000_000.0
"""Unix time at which every world begins."""


@attrs.define(eq=False)
class World:
    """A world, and what happened in it.

    Attributes:
        plan: What was drawn.
        backend: The event loop's library.
        fired: What happened how often: faults, and moments that tests should have seen.
        complaints: What must not have happened.
        lines: The trace.
        heard: The events of all clients.
        rows: Which work each row of the journal is for.
        processes: All processes in order.
        entries: The rows of the journal, at the end.
        taken_up: What waiting for the ids came to that earlier calls had left.
        limiter: What all processes share, if they do.
        fresh: What is solved after the calm, to show that everything works.
        calm: Set when the faults have stopped.
    """

    plan: Plan
    backend: Backend
    fired: Counter[str] = attrs.field(factory=Counter)
    complaints: list[str] = attrs.field(factory=list)
    lines: list[str] = attrs.field(factory=list)
    heard: list[Heard] = attrs.field(factory=list)
    rows: dict[str, str] = attrs.field(factory=dict)
    processes: list[Process] = attrs.field(factory=list)
    entries: list[Entry] = attrs.field(factory=list)
    taken_up: dict[str, UCaptchaError | None] = attrs.field(factory=dict)
    began_at: float = 0.0
    calm_at: float = 0.0
    ended_at: float = 0.0
    left_alive: int = 0
    service: LocalService = attrs.field(init=False)
    network: Network = attrs.field(init=False)
    fresh: list[Work] = attrs.field(factory=list)
    calm: anyio.Event = attrs.field(factory=anyio.Event)
    limiter: RateLimiter | None = None
    _journal: MemoryJournal | None = None

    def __attrs_post_init__(self) -> None:
        plan = self.plan
        self.service = LocalService(
            balance=plan.balance,
            seed=plan.seed,
            rate_limit=plan.service_limit,
            rate_window=plan.window,
            solve_time=LogNormal(plan.solve_median, 0.5),
            prices=dict(PRICES),
            failure_rate=plan.failure_rate,
            failure_code=plan.failure_code,
            dialect=plan.dialect,
            lightning={KEY: plan.lightning},
            retention=plan.retention,
            fault_rates=FaultRates(rates=plan.faults, seed=plan.seed),
            epoch=EPOCH,
            clock_skew=plan.skew,
            types=plan.types,
        )
        self.network = Network(
            service=self.service,
            rng=Random(f"{plan.seed}:network"),
            delays=plan.delays,
            rates=plan.rates,
            idle_timeout=plan.idle_timeout,
            fired=self.fired,
            trace=self.trace,
        )
        self.service.latency = self.network.observe
        self.fired[f"world_{plan.library}{'_injected' if plan.injected else ''}"] += 1
        if plan.shares_limiter:
            self.fired["world_shares_limiter"] += 1
            self.limiter = RateLimiter(plan.limit, plan.window)

    def fresh_work(self, process: int) -> list[Work]:
        """Something to do for a process that has survived."""
        names = (f"fresh{process}.{number}" for number in range(3))
        works = [
            Work(name=name, kind=kind, at=0.0, timeout=self.plan.bound)
            for name, kind in zip(names, KINDS, strict=False)
        ]
        self.fresh += works
        return works

    @property
    def calls(self) -> list[Call]:
        """The calls of all processes."""
        return [call for process in self.processes for call in process.calls]

    @property
    def tasks(self) -> dict[str, TaskRecord]:
        """What the service accepted."""
        return self.service.books.tasks

    @property
    def hash(self) -> str:
        """A number that two worlds share only if everything happened alike."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()[:16]

    def trace(self, *words: object) -> None:
        """Add a line to the trace."""
        self.lines.append(f"{anyio.current_time():.9f} {' '.join(map(str, words))}")

    def hear(self, heard: Heard) -> None:
        """Note an event of a client."""
        self.heard.append(heard)
        self.fired[f"event_{type(heard.event).__name__}"] += 1
        self.trace("hears", heard.process, heard.work, type(heard.event).__name__, heard.event.task_id)

    def complain(self, rule: str, text: str, error: BaseException | None = None) -> None:
        """Note that something must not have happened."""
        where = "".join(traceback.format_exception(error)) if error is not None else ""
        self.complaints.append(f"[{rule}] {text}\n{where}".rstrip())

    # Its course

    async def run(self) -> None:
        """Live from the beginning to the end."""
        self.began_at = anyio.current_time()
        alive = tasks_alive()
        if self.plan.journal:
            self._journal = MemoryJournal(store_solutions=self.plan.stores_solutions, clock=self._wall)
        async with anyio.create_task_group() as town:
            self.network.tasks = town
            town.start_soon(self._weather)
            town.start_soon(self._calm)
            town.start_soon(self._rename)
            await self._course()
            town.cancel_scope.cancel()
        self.left_alive = tasks_alive() - alive

    async def _course(self) -> None:
        calm = self.plan.calm_at
        with anyio.move_on_after(calm + self.plan.bound) as limit:
            async with anyio.create_task_group() as programs:
                for number, lives in enumerate(self.plan.lives):
                    programs.start_soon(self._program, number, lives)
        if limit.cancelled_caught:
            self.complain("liveness", f"not all was done {self.plan.bound:.0f} s after the faults had stopped")
            return
        await self.calm.wait()
        with anyio.move_on_after(2 * self.plan.bound) as limit:
            await self._epilogue()
        if limit.cancelled_caught:
            self.complain("liveness", f"the epilogue was not done after {2 * self.plan.bound:.0f} s")
            return
        # Whatever nobody waited for ends as well, so that the books are closed.
        await anyio.sleep(self.plan.solve_median * 20)
        self.fired.update({f"service_{name}": count for name, count in self.service.faults.fired.items()})
        self.ended_at = anyio.current_time()
        if self._journal is not None:
            self.entries = [entry async for entry in self._journal.entries()]

    def journal_is_gone(self) -> bool:
        """Whether somebody has taken the journal's file away."""
        at = self.plan.journal_vanishes_at
        return at is not None and not self.calm_at and anyio.current_time() >= self.began_at + at

    def _wall(self) -> float:
        return EPOCH + anyio.current_time()

    async def _weather(self) -> None:
        for at, away in self.plan.restarts:
            await anyio.sleep_until(max(anyio.current_time(), self.began_at + at))
            if self.calm_at:
                return
            self.network.restart()
            self.trace("restart", away)
            await anyio.sleep(away)
            self.network.down = False

    async def _rename(self) -> None:
        if self.plan.renamed is not None:
            at, types = self.plan.renamed
            await anyio.sleep(at)
            self.service.types = types
            self.fired["renamed"] += 1
            self.trace("takes the types of", types)

    async def _calm(self) -> None:
        """The faults stop."""
        await anyio.sleep(self.plan.calm_at)
        self.calm_at = anyio.current_time()
        self.trace("calm")
        self.network.rates, self.network.down = {}, False
        self.service.faults.clear()
        self.service.set_balance(KEY, Decimal(100))
        for process in self.processes:
            process.reset_breaker()
        self.calm.set()

    def _process(self, end: Life) -> Process:
        journal = None if self._journal is None else self._journal.another()
        process = Process(self, len(self.processes), end, journal)
        self.processes.append(process)
        return process

    async def _program(self, number: int, lives: tuple[Life, ...]) -> None:
        """One process after the other, until the work is done."""
        todo = [work for work in self.plan.works if work.program == number or (work.keyed and work.program == 0)]
        zombies: Any
        async with anyio.create_task_group() as zombies:
            for count, end in enumerate(lives):
                process = self._process(end)
                await self._outlive(process, zombies, todo, recover=count > 0)
                todo = _left(todo, process)

    async def _outlive(self, process: Process, zombies: Any, todo: list[Work], *, recover: bool) -> None:
        """Wait for the end of a process. The tasks of one that crashed may take a while to notice."""
        ended = anyio.Event()

        async def live() -> None:
            try:
                await process.live([(work, work.calls) for work in todo], recover=recover)
            finally:
                ended.set()

        process.on_crash = ended.set
        zombies.start_soon(live)
        await ended.wait()

    async def _epilogue(self) -> None:
        """In good weather: what was left is taken up."""
        process = self._process(Life())
        await process.take_up(self._left_behind() if self._journal is None else [])

    def _left_behind(self) -> list[str]:
        """The tasks that the clients said were paid for and not finished."""
        told = {str(task_id) for process in self.processes for task_id in process.abandoned}
        for call in self.calls:
            told |= call.ids
        done = {str(heard.event.task_id) for heard in self.heard if isinstance(heard.event, Solved)}
        return sorted(told - done)


def _left(todo: list[Work], process: Process) -> list[Work]:
    """What the next process has to do: what was not begun, and what has a name that the journal knows."""
    begun = {call.work.name: call for call in process.calls}
    return [work for work in todo if work.name not in begun or (work.keyed and begun[work.name].ending == "crashed")]


def run_world(plan: Plan | int, backend: Backend) -> World:
    """Run a world to its end, and check it."""
    from .checks import check

    type_search.forget_all()  # what another world's service takes is nothing to this one
    world = World(draw(plan) if isinstance(plan, int) else plan, backend)
    try:
        run(world.run, backend, world.plan.seed)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        world.complain("world", f"the world ended with {error!r}", error)
    else:
        check(world)
    return world
