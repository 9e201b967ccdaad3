"""What a world will be like: everything that is drawn from its seed before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from random import Random
from typing import Any, Literal

import attrs

from ucaptcha_async import Polling
from ucaptcha_async.testing import (
    DIALECTS,
    Amend,
    Delay,
    Dialect,
    Drop,
    Encoded,
    Error,
    Fault,
    Html,
    Huge,
    Json,
    RateLimit,
    Reply,
    Reword,
    Truncated,
)

from .network import CONNECT_FATES, REQUEST_FATES

KINDS = ("RecaptchaV2TaskProxyless", "TurnstileTaskProxyless", "HCaptchaTaskProxyless", "ImageToTextTask")
PRICES = {kind: Decimal(price) for kind, price in zip(KINDS, ("0.00299", "0.00145", "0.00307", "0.00051"), strict=True)}

STEPS = ("begin", "accepted", "finished", "uncertain", "refused", "released", "abandoned", "take_up")
"""What is written into a journal."""

SPELLINGS = ("any", "own", "anticaptcha", "capsolver", "anysolver")
"""Whose names of types a service may take."""

How = Literal["solve", "submit", "many", "prefetch"]


@attrs.frozen(kw_only=True)
class Work:
    """One thing to solve, and how its user behaves.

    Attributes:
        name: Its name: in `websiteURL`, so that the service's books tell it, and its key, if it has one.
        kind: The task's type.
        at: When its user asks for it, in seconds after the world began.
        how: By `solve`, by `submit` and `wait`, as a part of `solve_many`, or out of a stock of its own.
        keyed: Whether the journal knows it by name; then users may ask more than once.
        calls: How many users ask for it, one second apart; out of a stock, `patience` seconds apart.
        timeout: Seconds that each user has.
        attempts: How many tasks each may use.
        patience: Seconds that `Job.wait` is given at a time.
        cancel_after: Seconds after which the user gives up; None for never.
        cancel_step: Or the number of the step, of all that happens on the way, at which the user gives up.
        retries: How often a user who has given up asks again at once, for the same work by its name; the last time
            with patience.
        program: Which of the programs it belongs to; keyed work of program 0 is asked for by both.
        ready: How many tokens its stock holds.
    """

    name: str
    kind: str
    at: float
    how: How = "solve"
    keyed: bool = False
    calls: int = 1
    timeout: float
    attempts: int = 1
    patience: float = 30.0
    cancel_after: float | None = None
    cancel_step: int | None = None
    retries: int = 0
    program: int = 0
    ready: int = 0

    @property
    def shared(self) -> bool:
        """Whether its tasks are one user's only by chance: they go to whoever comes."""
        return self.how == "prefetch"


@attrs.frozen(kw_only=True)
class Life:
    """How one process of a program ends, if not by running out of work.

    Attributes:
        crash_step: It is killed at a step of the journal of this name.
        crash_count: At the how-manieth of that name, from 1.
        crash_after: Whether that step is still written.
        crash_at: It is killed so many seconds after its start.
        stop_at: It is stopped in an orderly way so many seconds after its start.
    """

    crash_step: str | None = None
    crash_count: int = 1
    crash_after: bool = False
    crash_at: float | None = None
    stop_at: float | None = None


@attrs.frozen(kw_only=True)
class Plan:
    """A world.

    Attributes:
        seed: What it was drawn from.
        library: What carries the requests: one of the twins over the client's own connections, or these alone.
        injected: Whether they go through the stock pool of an injected client instead.
        shares_limiter: Whether the programs are one process with two clients and one limiter.
        works: What is to be solved.
        lives: How the processes of each program end, one after the other; the last runs out of work.
        journal: Whether the programs share a journal.
        stores_solutions: Whether it keeps solutions.
        journal_vanishes_at: When its file is taken away until the calm, in seconds after the world began.
        calm_at: When the faults stop, in seconds after the world began.
        connections: The client's `max_connections`.
        request_timeout: The client's.
        limit: Requests per window of the client.
        window: Seconds.
        in_flight: The client's `max_in_flight`.
        polling: The client's.
        on_uncertain: The client's.
        cancel_grace: The client's.
        budget: USD for each process; None for no budget.
        breaker_reset: The client's.
        leave_after: How many outcomes of `solve_many` a program reads before it leaves; None for all.
        service_limit: Requests per window before the service refuses.
        solve_median: Seconds.
        failure_rate: The share of tasks that the service cannot solve.
        failure_code: The code that it gives for them.
        dialect: How the service writes ids and ends.
        retention: Seconds for which the service remembers finished tasks; None for ever.
        lightning: Solved tokens that the service has in stock.
        balance: USD on the account until the calm.
        skew: Seconds that the service's clock is ahead.
        faults: Faults of the service, and their rates.
        delays: Bounds of the time that bytes take one way, in seconds.
        rates: Rates of the network's fates.
        idle_timeout: Seconds after which the service closes an idle connection.
        restarts: When the service restarts, and for how long it is away.
        typed: Whether users ask with the classes of tasks, so that the client looks for the service's names of types.
        types: Whose names the service takes.
        renamed: When it begins to take another one's, in seconds after the world began, and whose; None for never.
    """

    seed: int
    library: Literal["httpx", "httpx2", "fast"]
    injected: bool
    shares_limiter: bool
    works: tuple[Work, ...]
    lives: tuple[tuple[Life, ...], ...]
    journal: bool
    stores_solutions: bool
    journal_vanishes_at: float | None
    calm_at: float
    connections: int
    request_timeout: float
    limit: int
    window: float
    in_flight: int
    polling: Polling
    on_uncertain: Literal["raise", "resubmit"]
    cancel_grace: float
    budget: Decimal | None
    breaker_reset: float | None
    leave_after: int | None
    service_limit: int
    solve_median: float
    failure_rate: float
    failure_code: str
    dialect: Dialect
    retention: float | None
    lightning: int
    balance: Decimal
    skew: float
    faults: tuple[tuple[Fault, float], ...]
    delays: tuple[float, float]
    rates: Mapping[str, float]
    idle_timeout: float
    restarts: tuple[tuple[float, float], ...]
    typed: bool = False
    types: str = "any"
    renamed: tuple[float, str] | None = None

    @property
    def bound(self) -> float:
        """Seconds after the calm within which all must be done.

        A last poll may be lost for `request_timeout` and the next be `max_spacing` late; then every place in flight is
        used again and again, at the pace that the limit allows. Users of a stock come for a while yet.
        """
        tasks = 3 + sum((work.calls + 2 * work.ready) * work.attempts for work in self.works)
        stocks = max((w.at + w.calls * w.patience + w.timeout for w in self.works if w.shared), default=0.0)
        turns = -(-tasks // self.in_flight)
        spacing = self.polling.max_spacing or 4 * self.polling.interval
        slowest = 8 * self.solve_median + 4 * self.polling.interval + 4 * self.request_timeout
        requests = tasks * (4 + slowest / self.polling.interval)
        return (
            300
            + stocks
            + self.request_timeout
            + 2 * spacing
            + turns * slowest
            + (3 * self.window * requests / min(self.limit, self.service_limit))
        )


FAULTS: tuple[Fault, ...] = (
    Reply(status=503),
    Reply(status=500, processed=True),
    Reply(status=504, processed=True, body=b"<html>gateway timeout</html>", content_type="text/html"),
    Reply(status=404, body=b"nothing here"),
    Reply(status=302, headers=(("location", "https://example.org/"),), body=b""),
    Html(502),
    Html(403),
    Html(200, processed=True),
    Json([1, 2]),
    Json("busy"),
    Json({"errorId": 0}),
    Json({"errorId": 1, "errorCode": "INTERNAL_ERROR", "errorDescription": "oops"}, status=500),
    Json({"errorId": 0, "taskId": None, "status": "processing"}, processed=True),
    Amend({"extra": {"nested": [1, None]}}),
    Amend(without=("taskId",)),
    Amend({"status": "pondering"}, without=("solution",)),
    Truncated(),
    Huge(2_000_000),
    Delay(2.5),
    Delay(45),
    RateLimit(),
    RateLimit(headers=False),
    RateLimit(headers=False, retry_after=7),
    RateLimit(headers=False, retry_after="soon"),
    RateLimit(reset_in=3),
    RateLimit(reset_in=-100),
    RateLimit(reset_in=100_000),
    Drop(before=True),
    Drop(after=True),
    Drop(during=True),
    Error("ERROR_NO_SLOT_AVAILABLE"),
    Error("NO_PROVIDERS_AVAILABLE"),
    Error("SOMETHING_NEW", status=200),
    Error("SOMETHING_NEW", status=500),
)

ENVELOPES: tuple[Fault, ...] = (
    # a refusal that names a task, whose fate is open, and some that name none
    Error("ERROR_NEW_WORD", names_task=True),
    Error("ERROR_NEW_WORD", names_task=True, status=200),
    *(Error("ERROR_NEW_WORD", fields={"taskId": nothing}) for nothing in (0, "0", "", False, None)),
    *(Amend({"errorId": loose}) for loose in ("0", "", None, False, "SUCCESS")),
    Reword({"ready": "READY", "processing": "Processing", "idle": "IDLE"}),
    Reword({"ready": "completed"}),
    Reword({"ready": "Success"}),
    Encoded("utf-8-sig"),
    Encoded("utf-16"),
    Encoded("broken"),
    Amend({"taskId": "00000000-0000-4000-8000-000000000000"}, only=("getTaskResult",)),
)
"""Answers of the service itself that are not as documented."""

PAGES: tuple[Fault, ...] = (
    *(Html(status) for status in (200, 302, 403, 404)),
    *(Html(status, processed=True) for status in (302, 401, 403, 404)),
    Json({"message": "Unauthorized"}, status=401),
    Json({"message": "Unauthorized"}, status=401, processed=True),
    Json({"detail": "Not Found"}, status=404),
    Json({"detail": "Not Found"}, status=404, processed=True),
    Json({"error": "payment required"}, status=402),
    Json({"detail": [{"msg": "field required"}]}, status=422, processed=True),
    Reply(status=400, body=b"bad request", processed=True),
)
"""Answers of something in front of the service, which may or may not have reached it."""

ACCOUNT_FAULTS: tuple[Fault, ...] = (
    Error("ERROR_ZERO_BALANCE"),
    Error("ERROR_KEY_DOES_NOT_EXIST"),
    Error("ERROR_IP_BLOCKED"),
)


def draw(seed: int) -> Plan:
    """Draw a world."""
    return _Draw(seed).plan()


class _Draw:
    """Draws one world. Rates are drawn before what they decide, so that worlds differ in kind (swarm)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(f"{seed}:plan")

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def spread(self, low: float, high: float) -> float:
        """A number that is as often small as large, in orders of magnitude."""
        return float(low * (high / low) ** self.rng.random())

    def plan(self) -> Plan:
        rng = self.rng
        journal = self.chance(0.6)
        programs = 2 if journal and self.chance(0.35) else 1
        calm_at = self.spread(20, 300)
        median = self.spread(1.5, 40)
        delays = self.delays()
        limit, window = rng.choice(((10_000, 10.0), (10_000, 10.0), (200, 10.0), (20, 10.0), (5, 2.0), (30, 5.0)))
        shares = programs == 2 and self.chance(0.4)
        injected = self.chance(0.12)
        vanishes = self.spread(1, calm_at) if journal and self.chance(0.12) else None
        dialect = self.dialect()
        typed, types, renamed = self.names(calm_at)
        return Plan(
            seed=self.seed,
            # The pool of httpx itself loses connections under cancellation; that of httpx2 does not.
            library="httpx2" if injected else rng.choice(("httpx", "httpx2", "fast")),
            injected=injected,
            shares_limiter=shares,
            works=(
                *self.works(calm_at, slowest=12 * delays[1], journal=journal, programs=programs),
                *self.stocks(calm_at, programs),
            ),
            lives=tuple(self.lives(crashes=journal and not shares and vanishes is None) for _ in range(programs)),
            journal=journal,
            stores_solutions=self.chance(0.5),
            journal_vanishes_at=vanishes,
            calm_at=calm_at,
            connections=rng.choice((1, 1, 2, 3, 4, 6, 8, 64)),
            request_timeout=max(rng.choice((2.0, 5.0, 10.0, 30.0)), 4 * delays[1]),
            limit=limit,
            window=window,
            in_flight=rng.choice((1, 2, 3, 5, 8, 20, 100, 5000)),
            polling=self.polling(),
            on_uncertain="resubmit" if self.chance(0.3) else "raise",
            cancel_grace=rng.choice((0.0, 0.5, 5.0, 5.0)),
            budget=Decimal(rng.randrange(20, 300)) / 1000 if self.chance(0.2) else None,
            breaker_reset=rng.choice((None, 5.0, 30.0)),
            leave_after=rng.randrange(0, 8) if self.chance(0.3) else None,
            service_limit=limit if self.chance(0.7) else max(3, limit // rng.choice((2, 4))),
            solve_median=median,
            failure_rate=rng.choice((0.0, 0.0, 0.1, 0.5)),
            failure_code="ERROR_CAPTCHA_SOLVE_FAILED" if dialect.names_failed else "ERROR_CAPTCHA_UNSOLVABLE",
            dialect=dialect,
            retention=self.spread(10, 200) if self.chance(0.3) else None,
            lightning=rng.choice((0, 0, 0, 3)),
            balance=Decimal("0.03") if self.chance(0.1) else Decimal(100),
            skew=rng.choice((0.0, 0.0, 0.7, -3.0, 900.0, -86_400.0)),
            faults=self.faults(),
            delays=delays,
            rates=self.rates(injected=injected, named="taskId" in dialect.extras),
            # A connection that was used half a second ago is fit for a submit, unless the network is slower than that.
            idle_timeout=max(rng.choice((1.0, 2.0, 5.0, 15.0, 60.0, 600.0)), 0.6 + 4 * delays[1]),
            restarts=self.restarts(calm_at),
            typed=typed,
            types=types,
            renamed=renamed,
        )

    def names(self, calm_at: float) -> tuple[bool, str, tuple[float, str] | None]:
        """Whether users ask with classes, whose names of types the service takes, and whether that changes."""
        rng = Random(f"{self.seed}:names")
        if rng.random() < 0.4:
            return False, "any", None
        types, other = rng.sample(SPELLINGS, 2)
        return True, types, (rng.uniform(1, calm_at), other) if rng.random() < 0.3 else None

    def stocks(self, calm_at: float, programs: int) -> tuple[Work, ...]:
        """Stocks of tokens, and how their users come."""
        rng = Random(f"{self.seed}:stocks")
        return tuple(
            Work(
                name=f"s{number}",
                kind=rng.choice(KINDS[:3]),
                at=rng.uniform(0, calm_at / 2),
                how="prefetch",
                calls=rng.choice((3, 10, 25)),
                patience=rng.choice((0.2, 2.0, 10.0, 50.0)),
                timeout=rng.choice((5.0, 60.0, 400.0)),
                attempts=rng.choice((1, 1, 2)),
                cancel_after=rng.choice((None, None, rng.uniform(0, 30))),
                cancel_step=rng.choice((None, None, rng.randrange(1, 20))),
                program=rng.randrange(programs),
                ready=rng.choice((1, 3, 8)),
            )
            for number in range(rng.choice((0, 0, 0, 1, 2)))
        )

    def polling(self) -> Polling:
        rng = self.rng
        kind = rng.randrange(6)
        if kind == 0:
            return Polling(first=self.spread(0.5, 30))
        if kind == 1:
            return Polling(schedule=(1.0, 6.5, 20.0), max_spacing=20)
        return Polling(jitter=rng.choice((0.0, 0.1, 1.0)), poll_price=rng.choice((0.1, 0.5, 3.0)))

    def delays(self) -> tuple[float, float]:
        low = self.spread(0.001, 0.3)
        return low, low * self.rng.choice((1.0, 1.5, 5.0))

    def subset(self, names: tuple[object, ...], most: float) -> list[tuple[object, float]]:
        """Some of the names with rates that add up to at most `most`."""
        chosen = [name for name in names if self.chance(0.35)]
        rates = [self.spread(0.003, 0.15) for _ in chosen]
        scale = min(1.0, most / sum(rates)) if rates else 1.0
        return [(name, rate * scale) for name, rate in zip(chosen, rates, strict=True)]

    def dialect(self) -> Dialect:
        """How ids are written, how failed solves are told of, and whether answers name their tasks."""
        forms: tuple[dict[str, Any], ...] = (
            {"id_digits": 6},
            {"id_digits": 19, "integer_ids": True},
            {"unsolvable_is_error": True, "names_failed": True},
        )
        form = self.rng.choice((*forms, {}, {}, {}, {}))
        extras = ("taskId",) if self.chance(0.4) else ()
        return attrs.evolve(DIALECTS["ucaptcha"], extras=extras, **form)

    def rates(self, *, injected: bool, named: bool) -> dict[str, float]:
        if self.chance(0.2):
            return {}
        both = self.subset(CONNECT_FATES, 0.4) + self.subset(REQUEST_FATES, 0.5)
        # Nobody can tell another request's answer from the own one in somebody else's pool, or without a name in it.
        unfair = ("extra_",) if injected else ("extra_crossing",) if not named else ()
        return {str(name): rate for name, rate in both if not str(name).startswith(unfair)}

    def faults(self) -> tuple[tuple[Fault, float], ...]:
        if self.chance(0.25):
            return ()
        chosen = self.subset(FAULTS, 0.4)
        if self.chance(0.3):
            chosen += self.subset(ENVELOPES, 0.25)
        if self.chance(0.3):
            chosen += self.subset(PAGES, 0.2)
        if self.chance(0.15):
            chosen += self.subset(ACCOUNT_FAULTS, 0.1)
        return tuple((fault, rate) for fault, rate in chosen if isinstance(fault, Fault))

    def restarts(self, calm_at: float) -> tuple[tuple[float, float], ...]:
        if self.chance(0.6):
            return ()
        times = sorted(self.rng.uniform(1, calm_at) for _ in range(self.rng.randrange(1, 4)))
        return tuple((at, self.spread(0.1, 40)) for at in times)

    def lives(self, *, crashes: bool) -> tuple[Life, ...]:
        ends: list[Life] = []
        while crashes and len(ends) < 6 and self.chance(0.85):
            ends.append(self.life(first=not ends))
        return (*ends, Life())

    def life(self, *, first: bool) -> Life:
        kind = self.rng.randrange(5)
        if kind == 0:
            return Life(crash_at=self.spread(0.2, 120))
        if kind == 1:
            return Life(stop_at=self.spread(0.2, 120))
        # Only who recovers takes anything up; rare steps are chosen more often.
        step = self.rng.choices(STEPS, weights=(4, 5, 4, 5, 10, 6, 5, 0 if first else 6))[0]
        often = step in ("begin", "accepted", "finished")
        return Life(crash_step=step, crash_count=int(self.spread(1, 8)) if often else 1, crash_after=self.chance(0.5))

    def works(self, calm_at: float, *, slowest: float, journal: bool, programs: int) -> tuple[Work, ...]:
        count = int(self.spread(5, 20) if self.chance(0.8) else self.spread(20, 60))
        rng = self.rng
        busy = rng.choice((0.0, 0.2, 1.0)) * calm_at
        patient = self.chance(0.5)
        cancels = rng.choice((0.0, 0.1, 0.5, 0.9))
        keys = rng.choice((0.0, 0.5, 1.0)) if journal else 0.0
        hows: tuple[How, ...] = rng.choice((("solve",), ("submit",), ("many",), ("solve", "submit", "many")))
        attempts = rng.choice((1, 1, 2, 3))
        return tuple(
            self.work(
                f"w{number}",
                at=rng.uniform(0, busy),
                # Who waits for less than a round trip never gets an answer.
                patience=slowest + self.spread(1, 100),
                how=rng.choice(hows),
                keyed=self.chance(keys),
                timeout=100_000.0 if patient else self.spread(3, 400),
                attempts=attempts,
                cancelled=self.chance(cancels),
                program=rng.randrange(programs),
            )
            for number in range(count)
        )

    def work(
        self,
        name: str,
        *,
        at: float,
        patience: float,
        how: How,
        keyed: bool,
        timeout: float,
        attempts: int,
        cancelled: bool,
        program: int,
    ) -> Work:
        by_step = self.chance(0.6)
        hasty = keyed and cancelled and how != "many" and self.chance(0.5)
        return Work(
            name=name,
            kind=self.rng.choice(KINDS[: self.rng.choice((1, 3, 4))]),
            at=at,
            how=how,
            keyed=keyed,
            calls=self.rng.choice((1, 1, 2, 3)) if keyed and how != "many" else 1,
            timeout=timeout,
            attempts=1 if how == "submit" else attempts,
            patience=patience,
            cancel_after=self.spread(0.01, 100) if cancelled and not by_step else None,
            cancel_step=int(self.spread(1, 30)) if cancelled and by_step else None,
            retries=self.rng.choice((1, 3, 6)) if hasty else 0,
            program=program,
        )
