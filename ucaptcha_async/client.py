"""The client: what a program calls."""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload
from urllib.parse import urlsplit

import attrs

from .budget import Budget
from .checks import Seconds, near, seconds, split_url, whole, wrong
from .errors import BudgetExceededError, ClientStateError, ConfigurationError
from .events import Hook
from .journal import Entry, Journal, fingerprint
from .json_values import checked
from .pacing import InFlight, Limiter, RateLimiter
from .pacing.breaker import Breaker
from .polling import Polling, SolveTimes
from .results import Outcome, SelectionMode, Solution, TaskResult
from .secrecy import SecretStr
from .solving.job import Job, Options, feedback, solve, submit, within
from .solving.prefetch import Prefetch, PrefetchSettings
from .solving.session import Engine, OnUncertain, Walk
from .solving.statistics import ClientStatistics, gather_statistics
from .solving.stream import Outcomes
from .tasks import Task
from .transport.api import Answer, Api, plain
from .transport.channels import HTTPClient, TransportName, injected, is_loopback, own

if TYPE_CHECKING:
    from .callbacks import CallbackReceiver

S = TypeVar("S", bound=Solution)

BASE_URL = "https://api.ucaptcha.net"
"""Source: docs/api/overview."""

MAX_CONNECTIONS = 256
MAX_IN_FLIGHT = 5_000


class _Unset:
    def __repr__(self) -> str:
        return "<the client's own>"


UNSET = _Unset()
"""Stands for "as the client is set", where `None` means something else."""


@checked
class AsyncClient:
    """A client of the uCaptcha API, for asyncio and trio, used inside `async with`.

    One client serves a whole program: it may run thousands of solves at once, keeps them within the service's limits
    and within `max_in_flight`, and shares its connections. It starts no background task: whatever it does, it does in
    the tasks of its callers.

    Begin with `solve` for one task, `gather` for a list, `solve_many` for a stream. `submit` and `job` take a solve
    apart, `recover` takes up what an earlier process left, `with_options` gives a view with other defaults.

    Args:
        api_key: The API key (`"ucap_…"`). Default: the environment variable `UCAPTCHA_API_KEY`.
        base_url: Where the service is. Default: `UCAPTCHA_BASE_URL`, or `https://api.ucaptcha.net`. Plain `http` is
            accepted for this machine only.
        timeout: Seconds for one solve, queueing and submit included (`float` or `timedelta`). The service advises
            about 5 min.
        http_client: An `httpx.AsyncClient` or `httpx2.AsyncClient` of your own, used as it is and not closed.
        transport: `"httpx"` (default) or `"httpx2"`: which of the twins carries the client's own connections. `"fast"`:
            polls go through aiohttp, submits past httpx's client, at less CPU each (asyncio only; extra `fast`).
        proxy: A proxy for the requests to the service itself (`http://` or `socks5://`). Default: as the environment
            says.
        ssl_context: For a certificate authority of your own. It must verify certificates.
        max_connections: The most connections to the service. Default: 256.
        request_timeout: Seconds for one HTTP request.
        rate_limit: The pace of requests. Share one `RateLimiter` between the clients of a program. Default: one of its
            own, for the documented 10,000 requests in 10 s.
        max_in_flight: The most tasks at the service at once; `None` for no bound. Default: 5,000.
        polling: When tasks are asked for.
        selection_mode: How the service chooses providers. Default: not sent, so the key's own settings apply.
        provider: The one provider to use. Default: not sent.
        attempts: How many tasks one solve may use: a failed one is refunded, then a new one is submitted.
        retry_selection_mode: Another `selection_mode` from the second attempt on.
        on_uncertain: What to do when a submit was sent and no answer came: `"raise"` `SubmitUncertainError`, or
            `"resubmit"` up to two times, which may pay more than once.
        cancel_grace: Seconds that a cancelled submit still waits for the id of the task that it may have paid for.
        journal: Keeps paid tasks across a crash, for example `SQLiteJournal(path)`.
        budget: What may be spent.
        callbacks: A receiver to which the service pushes results.
        breaker_reset: Seconds after which a refused account is probed again (`getBalance`). Default: only
            `reset_breaker()` lets submits pass again.
        on_event: Called with every event; see `ucaptcha_async.events`.

    Raises:
        ConfigurationError: A setting is missing or wrong; the message names it.

    Example:
        ```python
        import asyncio
        from ucaptcha_async import AsyncClient, Turnstile

        async def main():
            async with AsyncClient() as client:
                task = Turnstile(website_url="https://example.com", website_key="0x4AAAAAAADnPIDROrmt1Wwj")
                solution = await client.solve(task)
                print(len(solution.token), solution.cost)

        asyncio.run(main())
        ```
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        timeout: Seconds = 300.0,
        http_client: HTTPClient | None = None,
        transport: TransportName = "httpx",
        proxy: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
        request_timeout: Seconds = 30.0,
        rate_limit: Limiter | None = None,
        max_in_flight: int | None = MAX_IN_FLIGHT,
        polling: Polling | None = None,
        selection_mode: SelectionMode | str | None = None,
        provider: str | None = None,
        attempts: int = 1,
        retry_selection_mode: SelectionMode | str | None = None,
        on_uncertain: OnUncertain = "raise",
        cancel_grace: Seconds = 5.0,
        journal: Journal | None = None,
        budget: Budget | None = None,
        callbacks: CallbackReceiver | None = None,
        breaker_reset: Seconds | None = None,
        on_event: Hook | None = None,
    ) -> None:
        key = _api_key(api_key)
        url = _base_url(base_url)
        self._options = _options(
            Options(timeout=0, selection_mode=None, provider=None, attempts=1, retry_selection_mode=None),
            timeout=timeout,
            selection_mode=selection_mode,
            provider=provider,
            attempts=attempts,
            retry_selection_mode=retry_selection_mode,
        )
        _one_of("transport", transport, ("httpx", "httpx2", "fast"))
        _one_of("on_uncertain", on_uncertain, ("raise", "resubmit"))
        whole("max_connections", max_connections)
        _verifies(ssl_context)
        if proxy is not None:
            split_url("proxy", proxy, ConfigurationError, ("http", "https", "socks5", "socks5h"))
        per_request = seconds("request_timeout", request_timeout, minimum=0.001)
        self._open_http = (
            functools.partial(
                own,
                url,
                per_request,
                transport=transport,
                max_connections=max_connections,
                ssl_context=ssl_context,
                proxy=None if proxy is None else SecretStr(proxy),
            )
            if http_client is None
            else functools.partial(injected, http_client, url, per_request)
        )
        polling = polling or Polling()
        host = urlsplit(url).netloc
        self._state = _State()
        self._engine = Engine(
            api=Api(rate_limit or RateLimiter(), key),
            account=fingerprint(key, host),
            host=host,
            polling=polling,
            times=SolveTimes(polling.memory),
            in_flight=InFlight(max_in_flight),
            breaker=Breaker(None if breaker_reset is None else seconds("breaker_reset", breaker_reset)),
            journal=journal,
            budget=budget,
            callbacks=callbacks,
            on_uncertain=on_uncertain,
            cancel_grace=seconds("cancel_grace", cancel_grace),
            on_event=on_event,
        )

    def __repr__(self) -> str:
        return f"<AsyncClient {self._engine.host} {self._state.word}>"

    def __reduce__(self) -> Any:
        raise TypeError("an AsyncClient belongs to one event loop and holds an API key: it cannot be pickled")

    # --- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._state.enter()
        if self._engine.journal is not None:
            await self._engine.journal.open()
        self._engine.api.http = self._open_http()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections and the journal. Solves that still run fail; leave them first."""
        if not self._state.leave():
            return
        try:
            if self._engine.api.http is not None:
                await self._engine.api.http.aclose()
        finally:
            if self._engine.journal is not None:
                await self._engine.journal.aclose()

    def with_options(
        self,
        *,
        timeout: Seconds | None = None,
        selection_mode: SelectionMode | str | _Unset | None = UNSET,
        provider: str | _Unset | None = UNSET,
        attempts: int | None = None,
        retry_selection_mode: SelectionMode | str | _Unset | None = UNSET,
    ) -> AsyncClient:
        """A view of this client with other defaults. It shares limits, connections, budget, journal and life."""
        view = object.__new__(AsyncClient)
        view.__dict__.update(self.__dict__)
        view._options = _options(
            self._options,
            timeout=timeout,
            selection_mode=selection_mode,
            provider=provider,
            attempts=attempts,
            retry_selection_mode=retry_selection_mode,
        )
        return view

    # --- solving ------------------------------------------------------------------------------------------------------

    async def solve(
        self,
        task: Task[S],
        *,
        timeout: Seconds | None = None,
        selection_mode: SelectionMode | str | _Unset | None = UNSET,
        provider: str | _Unset | None = UNSET,
        attempts: int | None = None,
        key: str | None = None,
    ) -> S:
        """Submit a task, wait for it, and return its solution.

        Args:
            task: What to solve.
            timeout: Seconds for all of it (`float` or `timedelta`).
            selection_mode: How the service chooses a provider; `None` leaves it to the key's settings.
            provider: The one provider to use; `None` leaves it to the service.
            attempts: How many tasks may be used until one is solved.
            key: Your name for this piece of work. With a journal, work of the same name is never submitted twice, and
                finished work is answered from the journal.

        Raises:
            SolveTimeoutError: No solution in time. `phase` says where the time went; with a `task_id` it can be taken
                up again.
            UnsolvableError: The service gave up. Refunded.
            SubmitUncertainError: Sent, and no answer: perhaps charged.
            AccountError: The key, the balance or the address is refused.
            InvalidTaskError: The service refuses the task.
            UCaptchaError: Any other cause; see the list of errors.
        """
        options = self._with(timeout, selection_mode, provider, attempts)
        engine, walk = self._ready(), _walk(task, key)
        call = functools.partial(solve, engine, task, options, walk)
        return await within(engine, walk, options.timeout, call)

    async def submit(
        self,
        task: Task[S],
        *,
        timeout: Seconds | None = None,
        selection_mode: SelectionMode | str | _Unset | None = UNSET,
        provider: str | _Unset | None = UNSET,
        key: str | None = None,
    ) -> Job[S]:
        """Submit a task, and return it as soon as the service has accepted it.

        The job holds its place in flight until it is waited for, or forgotten. Arguments and errors as for `solve`.
        """
        options = self._with(timeout, selection_mode, provider, None)
        engine, walk = self._ready(), _walk(task, key)
        call = functools.partial(submit, engine, task, options, walk)
        return await within(engine, walk, options.timeout, call)

    @overload
    def job(self, task_id: str) -> Job[Solution]: ...

    @overload
    def job(self, task_id: str, kind: type[Task[S]]) -> Job[S]: ...

    def job(self, task_id: str, kind: type[Task[Any]] = Task) -> Job[Any]:
        """Take up a task that was submitted earlier, here or elsewhere.

        Args:
            task_id: The service's id.
            kind: The task's class, for a typed solution: `client.job(id, RecaptchaV2)`.
        """
        if not isinstance(task_id, str) or not task_id:
            raise wrong("task_id", task_id, "the id of a task (non-empty str)")
        engine = self._ready()
        walk = Walk(kind.__name__, phase="wait", task_id=task_id)
        return Job(engine, walk, kind, getattr(kind, "usual_lifetime", None), self._options.timeout)

    def solve_many(
        self,
        tasks: Iterable[Task[S]] | AsyncIterable[Task[S]],
        *,
        timeout: Seconds | None = None,
        selection_mode: SelectionMode | str | _Unset | None = UNSET,
        provider: str | _Unset | None = UNSET,
        attempts: int | None = None,
        key: Callable[[Task[S]], str | None] | None = None,
        max_pending: int | None = None,
    ) -> Outcomes[Task[S], S]:
        """Solve a stream of tasks; the outcomes come as they complete.

        The input is read lazily, so that an endless or very long one uses bounded memory. A failure is an outcome
        like any other. When the account as a whole is refused or the budget is used up, no more input is read and the
        iteration ends with that error. Leaving the block early cancels what runs.

        Args:
            tasks: Any iterable or async iterable.
            timeout: Seconds for each solve, from when its input is read.
            selection_mode: As for `solve`.
            provider: As for `solve`.
            attempts: As for `solve`.
            key: Names the work of each task; see `solve`.
            max_pending: The most inputs between the iterable and you. Default: `max_in_flight`, or 5,000.

        Example:
            ```python
            import asyncio
            from ucaptcha_async import AsyncClient, Turnstile

            pages = ["https://example.com/1", "https://example.com/2"]
            tasks = (Turnstile(website_url=page, website_key="0x4AAAAAAADnPIDROrmt1Wwj") for page in pages)

            async def main():
                async with AsyncClient() as client, client.solve_many(tasks) as outcomes:
                    async for outcome in outcomes:
                        print(outcome.index, outcome.solution.task_id if outcome.ok else outcome.error)

            asyncio.run(main())
            ```
        """
        options = self._with(timeout, selection_mode, provider, attempts)
        engine = self._ready()

        def one(task: Task[S], walk: Walk) -> Awaitable[S]:
            call: Callable[[], Awaitable[S]]
            if engine.budget is None:
                call = functools.partial(solve, engine, task, options, walk)
            else:
                call = functools.partial(_through_budget, engine, engine.budget, task, options, walk)
            return within(engine, walk, options.timeout, call)

        def walk(task: Task[S]) -> Walk:
            return _walk(task, None if key is None else key(task))

        return Outcomes(tasks, one, walk, lambda task: task, self._width(max_pending), engine.unread)

    async def gather(
        self,
        tasks: Iterable[Task[S]] | AsyncIterable[Task[S]],
        *,
        timeout: Seconds | None = None,
        selection_mode: SelectionMode | str | _Unset | None = UNSET,
        provider: str | _Unset | None = UNSET,
        attempts: int | None = None,
        key: Callable[[Task[S]], str | None] | None = None,
        max_pending: int | None = None,
    ) -> list[Outcome[S]]:
        """Solve all tasks, and return one outcome for each, in input order. Arguments as for `solve_many`.

        Nothing that is paid for is lost to the failure of another: each `outcome.solution` returns or raises for
        itself. When the account is refused or the budget is used up, the tasks that are left get that error, without
        a request. If this call itself ends early, cancelled or by an error of your own iterable, the ids of what was
        paid for are in `client.abandoned`.
        """
        outcomes = self.solve_many(
            tasks,
            timeout=timeout,
            selection_mode=selection_mode,
            provider=provider,
            attempts=attempts,
            key=key,
            max_pending=max_pending,
        )
        return await outcomes.in_order()

    def prefetch(
        self,
        task: Task[S],
        *,
        ready: int = 10,
        service_level: float = 0.95,
        min_remaining: Seconds | None = None,
        lifetime: Seconds | None = None,
        max_under_way: int | None = None,
        idle_after: Seconds | None = None,
        timeout: Seconds | None = None,
        selection_mode: SelectionMode | str | _Unset | None = UNSET,
        provider: str | _Unset | None = UNSET,
        attempts: int | None = None,
    ) -> Prefetch[S]:
        """Keep tokens ready before they are needed, inside one `async with` block.

        The stock follows demand: how many are in stock and under way together follows from the rate of `get` calls and
        from how long solves take. Without demand nothing is renewed. All solves stay within the limits and the budget
        of this client.

        Args:
            task: What to solve, again and again.
            ready: The most tokens in stock, on average. So many are begun on entry, once.
            service_level: The share of `get` calls to serve at once.
            min_remaining: Seconds that a token must still be good for when it is handed out. Default: a third of the
                lifetime.
            lifetime: Seconds that a token is accepted. Default: the task's own; required where nobody knows.
            max_under_way: The most solves under way. Default: none but this client's own bounds.
            idle_after: Seconds without a `get` after which nothing is renewed until the next. Default: one lifetime.
            timeout: Seconds for one solve, and the default for one `get`.
            selection_mode: As for `solve`.
            provider: As for `solve`.
            attempts: As for `solve`.

        Raises:
            InvalidTaskError: The task shows a picture, which nobody knows beforehand.
            ConfigurationError: A setting is out of its range.
        """
        options = self._with(timeout, selection_mode, provider, attempts)
        engine = self._ready()
        settings = PrefetchSettings.check(
            task,
            ready=ready,
            service_level=service_level,
            min_remaining=min_remaining,
            lifetime=lifetime,
            max_under_way=max_under_way,
            idle_after=idle_after,
            timeout=options.timeout,
        )
        return Prefetch(
            task.type,
            settings,
            solve=functools.partial(
                self.solve,
                task,
                timeout=timeout,
                selection_mode=selection_mode,
                provider=provider,
                attempts=attempts,
            ),
            solve_time=lambda: self.statistics().solve_times.get(task.type, {}).get(0.5),
            on_event=engine.on_event,
        )

    def recover(self, *, timeout: Seconds | None = None, max_pending: int | None = None) -> Outcomes[Entry, Solution]:
        """Take up what an earlier process left in the journal: wait for accepted tasks, report the uncertain ones.

        An outcome's `task` has the type and no fields: the journal does not keep them. The error of an uncertain one is
        `SubmitUncertainError`.

        Args:
            timeout: Seconds for each, from when it is taken up. Default: the client's own.
            max_pending: As for `solve_many`.

        Raises:
            ConfigurationError: The client has no journal.

        Example:
            ```python
            import asyncio
            from ucaptcha_async import AsyncClient, SQLiteJournal

            async def main():
                async with AsyncClient(journal=SQLiteJournal("paid.sqlite")) as client, client.recover() as outcomes:
                    async for outcome in outcomes:
                        print(outcome.key, outcome.solution.task_id if outcome.ok else outcome.error)

            asyncio.run(main())
            ```
        """
        from .solving.recovery import recover

        return recover(self._ready(), self._with(timeout, UNSET, UNSET, None), self._width(max_pending))

    # --- the other endpoints ------------------------------------------------------------------------------------------

    async def get_task_result(self, task_id: str) -> TaskResult:
        """Ask once for the state of a task. Source: docs/api/ucaptcha/get-task-result."""
        answer = await self._ready().api.get_task_result(task_id)
        return _task_result(answer, task_id)

    async def get_balance(self) -> Decimal:
        """The balance in USD. Source: docs/api/ucaptcha/get-balance."""
        return await self._ready().api.get_balance()

    async def feedback(self, task_id: str, *, accepted: bool, message: str, code: str | None = None) -> str:
        """Tell the service whether a solution worked. Source: docs/api/ucaptcha/feedback-task.

        Args:
            task_id: The task.
            accepted: Whether the site accepted the solution.
            message: Free text; the service requires one.
            code: Your own category.

        Returns:
            The service's confirmation.
        """
        if not isinstance(message, str) or not message:
            raise wrong("message", message, "a non-empty str: the service requires one")
        return await feedback(self._ready(), task_id, accepted, message, code)

    # --- what has happened --------------------------------------------------------------------------------------------

    def statistics(self) -> ClientStatistics:
        """What this client and its views have done so far."""
        return gather_statistics(self._ready())

    @property
    def spent(self) -> Mapping[str, Decimal]:
        """USD by task type: the cost of all solved tasks, as far as the service told it. Failed ones are refunded."""
        return dict(self._engine.tally.spent)

    @property
    def abandoned(self) -> tuple[str, ...]:
        """The ids of paid tasks that were cancelled, or whose outcomes were not read: take them up with `job`."""
        return tuple(self._engine.abandoned)

    def reset_breaker(self) -> None:
        """Let submits pass again after the account was refused."""
        self._engine.breaker.reset()

    # --- details ------------------------------------------------------------------------------------------------------

    def _ready(self) -> Engine:
        self._state.check()
        return self._engine

    def _with(self, timeout: Seconds | None, selection_mode: Any, provider: Any, attempts: int | None) -> Options:
        if timeout is None and selection_mode is UNSET and provider is UNSET and attempts is None:
            return self._options
        return _options(
            self._options, timeout=timeout, selection_mode=selection_mode, provider=provider, attempts=attempts
        )

    def _width(self, max_pending: int | None) -> int:
        limit = self._engine.in_flight.limit
        return whole("max_pending", max_pending) if max_pending is not None else limit or MAX_IN_FLIGHT


@attrs.define(eq=False)
class _State:
    """Shared by a client and its views."""

    word: str = "not entered"

    def enter(self) -> None:
        if self.word != "not entered":
            raise ClientStateError(f"the client is {self.word}: it can be entered once")
        self.word = "open"

    def leave(self) -> bool:
        was_open, self.word = self.word == "open", "closed"
        return was_open

    def check(self) -> None:
        if self.word != "open":
            advice = "use it inside 'async with'" if self.word == "not entered" else "make a new one"
            raise ClientStateError(f"the client is {self.word}: {advice}")


async def _through_budget(engine: Engine, budget: Budget, task: Task[S], options: Options, walk: Walk) -> S:
    """Solve; wait for room in the budget while running solves may still give some back."""
    while True:
        try:
            return await solve(engine, task, options, walk)
        except BudgetExceededError:
            if not await budget.room():
                raise
            walk.attempts.pop()  # that one was never made


def _walk(task: object, key: str | None) -> Walk:
    if not isinstance(task, Task):
        raise wrong("task", task, "a Task, for example RecaptchaV2(…) or Task('AnyType', …)")
    if key is not None and (not isinstance(key, str) or not key):
        raise wrong("key", key, "a non-empty str, or None")
    return Walk(task.type, key)


def _task_result(answer: Answer, task_id: str) -> TaskResult:
    solution = None
    if answer.status == "ready":
        solution = Solution.parse(
            answer.solution, task_id=task_id, cost=answer.cost, solve_time=answer.solve_time, polls=1
        )
    return TaskResult(
        status=answer.status,
        task_id=task_id,
        solution=solution,
        cost=answer.cost,
        solve_time=answer.solve_time,
        error_code=answer.error_code,
        error_description=answer.error_description,
        raw=plain(answer.raw),
    )


# --- checks of settings -----------------------------------------------------------------------------------------------


def _api_key(given: str | None) -> SecretStr:
    key = os.environ.get("UCAPTCHA_API_KEY") if given is None else given
    if key is None:
        raise ConfigurationError("no API key: pass api_key or set UCAPTCHA_API_KEY", field="api_key")
    if not isinstance(key, str) or not key.strip() or not key.isprintable():
        raise wrong("api_key", key, "a non-empty str of printable characters", ConfigurationError)
    return SecretStr(key.strip())


def _base_url(given: str | None) -> str:
    url = given or os.environ.get("UCAPTCHA_BASE_URL") or BASE_URL
    parts = split_url("base_url", url, ConfigurationError)
    if parts.username is not None or parts.query or parts.fragment:
        raise wrong("base_url", url, "without credentials, query and fragment", ConfigurationError)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        allowed = "https:// (plain http:// would show the API key to the network, and is for this machine only)"
        raise wrong("base_url", url, allowed, ConfigurationError)
    return url.rstrip("/")


def _verifies(context: ssl.SSLContext | None) -> None:
    if context is not None and (context.verify_mode is not ssl.CERT_REQUIRED or not context.check_hostname):
        raise wrong(
            "ssl_context", context, "an SSLContext that verifies certificates and host names", ConfigurationError
        )


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = near(value, allowed) if isinstance(value, str) else ""
        raise ConfigurationError(f"{field} must be one of {', '.join(map(repr, allowed))}{hint}", field=field)


def _options(base: Options, **changes: Any) -> Options:
    given = {name: value for name, value in changes.items() if value is not UNSET}
    for name in ("timeout", "attempts"):
        if given.get(name, 0) is None:
            del given[name]
    if "timeout" in given:
        given["timeout"] = seconds("timeout", given["timeout"], minimum=0.0, allow_inf=True)
    if "attempts" in given:
        whole("attempts", given["attempts"])
    for name in ("selection_mode", "retry_selection_mode"):
        if given.get(name) is not None:
            _one_of(name, given[name], tuple(mode.value for mode in SelectionMode))
            given[name] = str(given[name])
    provider = given.get("provider")
    if provider is not None and (not isinstance(provider, str) or not provider):
        raise wrong(
            "provider", provider, "the name of a provider (non-empty str), for example 'capsolver'", ConfigurationError
        )
    return attrs.evolve(base, **given)
