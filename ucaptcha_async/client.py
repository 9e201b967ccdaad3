"""The client: what a program calls."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import ssl
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload
from urllib.parse import urlsplit

import anyio
import attrs

from .budget import Budget, LocalBudget, Money, SharedBudget
from .checks import DEFAULT, ClientDefault, Seconds, bare_url, near, seconds, time_limit, whole, wrong
from .errors import BudgetExceededError, ClientStateError, ConfigurationError, UCaptchaError
from .events import Hook
from .journal import Entry, Journal, fingerprint
from .pacing import Breaker, InFlight, InFlightBound, Limiter, RateLimiter
from .pacing.event_loop import current
from .polling import Polling, SolveTimes
from .results import Outcome, SelectionMode, TaskResult
from .secrecy import SecretStr
from .solving import type_search
from .solving.job import Job, Options, State, feedback
from .solving.session import SUBMITS_AHEAD, OnUncertain, Session
from .solving.statistics import ClientStatistics, gather_statistics
from .solving.stream import Outcomes, outcome_of, recover
from .tasks import Solution, Task
from .transport.api import Answer, Api, plain
from .transport.exchange import Sender
from .transport.proxies import is_loopback
from .transport.senders import TransportName, check_settings, open_sender
from .transport.through_httpx import HTTPClient, Injected

if TYPE_CHECKING:
    from .callbacks import CallbackReceiver
    from .solving.prefetch import Prefetch

S = TypeVar("S", bound=Solution)
T = TypeVar("T")

logger = logging.getLogger("ucaptcha_async")

BASE_URL = "https://api.ucaptcha.net"
"""Source: docs/api/overview."""

MAX_IN_FLIGHT = 5_000
"""The default bound on tasks at the service; the signature says it as a number, for those who read it."""


@attrs.frozen(kw_only=True)
class Drained:
    """What `AsyncClient.drain` returns: outcomes that came, and ids that are left.

    Attributes:
        outcomes: How the calls ended that were under way when it began.
        task_ids: The ids of paid tasks that did not end in time. They are in `client.abandoned` and the journal, too.
    """

    outcomes: tuple[Outcome[Any], ...]
    task_ids: tuple[str, ...]


class AsyncClient:
    """A client of the uCaptcha API, for asyncio and trio, used inside `async with`.

    One client serves a whole program: it may run thousands of solves at once, keeps them within the service's limits
    and within `max_in_flight`, and shares its connections. It keeps no background task: whatever runs ends with the
    call or the block that asked for it.

    Begin with `solve` for one task, `gather` for a list, `solve_many` for a stream. `submit` and `job` split a solve
    into two steps, `recover` resumes what an earlier process left, `with_options` gives a view with other defaults.

    Args:
        api_key: The API key (`"ucap_…"`). Default: the environment variable `UCAPTCHA_API_KEY`.
        base_url: Where the service is. Default: `UCAPTCHA_BASE_URL`, or `https://api.ucaptcha.net`. Plain `http` is
            accepted for this machine only.
        timeout: Seconds for one solve, queueing and submit included (`float` or `timedelta`); `None` for no limit. The
            service advises about 5 min.
        http_client: An `httpx.AsyncClient` or `httpx2.AsyncClient` of your own, used as it is and not closed.
        transport: `"httpx"` (default) or `"httpx2"`: which of the twins stands over the client's own connections.
            `"fast"`: neither, at less CPU a request. The extra `fast` brings a faster parser for all of them.
        proxy: A proxy for the requests to the service itself (`http://`, `https://` or `socks5://`). Default: as the
            environment says.
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
        allow_insecure: Let plain `http` reach a host of your own, as in a private network; never the service itself.
            Default: as `UCAPTCHA_ALLOW_INSECURE=1` says.
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
        timeout: Seconds | None = 300.0,
        http_client: HTTPClient | None = None,
        transport: TransportName = "httpx",
        proxy: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 256,
        request_timeout: Seconds = 30.0,
        rate_limit: Limiter | None = None,
        max_in_flight: int | InFlightBound | None = 5_000,
        polling: Polling | None = None,
        selection_mode: SelectionMode | str | None = None,
        provider: str | None = None,
        attempts: int = 1,
        retry_selection_mode: SelectionMode | str | None = None,
        on_uncertain: OnUncertain = "raise",
        cancel_grace: Seconds = 5.0,
        journal: Journal | str | os.PathLike[str] | None = None,
        budget: Budget | SharedBudget | Money | None = None,
        callbacks: CallbackReceiver | None = None,
        breaker_reset: Seconds | None = None,
        allow_insecure: bool = False,
        on_event: Hook | None = None,
    ) -> None:
        self._state, self._host = _State(), ""
        # First of all: nothing that fails below may show them.
        api_key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        proxy = SecretStr(proxy) if isinstance(proxy, str) else proxy
        base_url = SecretStr(base_url) if isinstance(base_url, str) else base_url
        key = _api_key(api_key)
        url = _base_url(base_url, _insecure(allow_insecure))
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
        per_request = seconds("request_timeout", request_timeout, minimum=0.001)
        if proxy is not None and not isinstance(proxy, str):
            raise wrong("proxy", proxy, "a URL as text, for example 'http://host:8080'", ConfigurationError)
        self._open_sender: Callable[..., Sender]
        if http_client is None:
            check_settings(url, proxy)
            self._open_sender = functools.partial(
                open_sender,
                url,
                transport=transport,
                max_connections=max_connections,
                ssl_context=ssl_context,
                proxy=proxy,
                connect_timeout=per_request,
            )
        else:
            own = Injected(_http_client(http_client), url)
            self._open_sender = lambda **_: own
        polling = Polling() if polling is None else _is_a("polling", polling, Polling)
        host = self._host = urlsplit(url).netloc
        breaker = Breaker(None if breaker_reset is None else seconds("breaker_reset", breaker_reset))
        self._budget, account = _budget(budget), fingerprint(key, host)
        self._session = Session(
            submitting=InFlight(max_connections),
            api=Api(_limiter(rate_limit), per_request, key),
            account=account,
            host=host,
            polling=polling,
            times=SolveTimes(polling.memory),
            in_flight=_in_flight(max_in_flight),
            breaker=breaker,
            journal=_journal(journal),
            budget=None,
            callbacks=_callbacks(callbacks),
            on_uncertain=on_uncertain,
            cancel_grace=seconds("cancel_grace", cancel_grace),
            type_names=type_search.shared(host, account),
            on_event=_callable("on_event", on_event),
        )
        breaker.held, self._session.api.is_known = self._session.held, self._session.is_known

    def __repr__(self) -> str:
        return f"<AsyncClient {self._host} {self._state.word}>"

    def __reduce__(self) -> Any:
        raise TypeError("an AsyncClient belongs to one event loop and holds an API key: it cannot be pickled")

    # --- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def open(self) -> Self:
        """Enter without `async with`; `aclose` is the end. Returns the client itself.

        Raises:
            ClientStateError: It was entered before.
            ConfigurationError: A setting, or one of the environment, cannot work.
            JournalError: The journal cannot be used.
        """
        self._state.enter()
        session = self._session
        try:
            session.loop = loop = current()
            session.api.clock, session.breaker.loop = loop.time, loop
            session.budget = LocalBudget(self._budget, loop) if isinstance(self._budget, Budget) else self._budget
            session.api.sender = sender = self._open_sender(clock=loop.time, on_extra_bytes=session.distrusted)
            if (own := sender.statistics()) is not None:  # a client of the caller's may not tell when a request departs
                session.submitting = InFlight(min(own.limit, SUBMITS_AHEAD))
            if session.journal is not None:
                await session.journal.open()
        except BaseException:
            self._state.word = "not entered"
            raise
        return self

    async def aclose(self) -> None:
        """Close the client. Submits that are under way are still answered (`cancel_grace` seconds at the most), waits
        end at once with `ClientStateError`, and each writes its last line into the journal; then connections and
        journal are closed. The ids of paid tasks are in `abandoned`.
        """
        session, was_open = self._session, self._state.word == "open"
        self._state.word, session.closed = "closed", True
        if not was_open:
            return
        try:
            await session.end()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    # There are many connections to wait for, and no shield keeps out asyncio's own `Task.cancel()`.
                    await current().uninterrupted(session.api.sender.aclose())
                finally:
                    if session.journal is not None:
                        await session.journal.aclose()

    async def drain(self, timeout: Seconds | None = None) -> Drained:
        """Stop cleanly: submit nothing any more, and wait for what is paid.

        Calls that have sent no task yet end with `ClientStateError`, and so does every later one. Those that wait for
        a task, or for the answer to a submit, go on; what has not ended after `timeout` ends with `ClientStateError`,
        too.

        Args:
            timeout: Seconds (`float` or `timedelta`); `None` for no limit but the calls' own.

        Returns:
            How the calls ended, and the ids of paid tasks that are left.

        Raises:
            ClientStateError: The client is not entered, or closed.
            ConfigurationError: `timeout` is out of its range.
        """
        session = self._ready()
        allowed = time_limit(timeout)
        before = len(session.abandoned)
        ended = await session.drain(allowed)
        outcomes = tuple(outcome_of(job, result, index) for index, (job, result) in enumerate(ended))
        left = dict.fromkeys([*list(session.abandoned)[before:], *session.open])
        return Drained(outcomes=outcomes, task_ids=tuple(left))

    def with_options(
        self,
        *,
        timeout: Seconds | ClientDefault | None = DEFAULT,
        selection_mode: SelectionMode | str | ClientDefault | None = DEFAULT,
        provider: str | ClientDefault | None = DEFAULT,
        attempts: int | ClientDefault = DEFAULT,
        retry_selection_mode: SelectionMode | str | ClientDefault | None = DEFAULT,
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
        timeout: Seconds | ClientDefault | None = DEFAULT,
        selection_mode: SelectionMode | str | ClientDefault | None = DEFAULT,
        provider: str | ClientDefault | None = DEFAULT,
        attempts: int | ClientDefault = DEFAULT,
        key: str | None = None,
    ) -> S:
        """Submit a task, wait for it, and return its solution.

        Args:
            task: What to solve.
            timeout: Seconds for all of it (`float` or `timedelta`).
            selection_mode: How the service chooses a provider; `None` leaves it to the key's settings.
            provider: The one provider to use; `None` leaves it to the service.
            attempts: How many tasks may be used until one is solved.
            key: Your name for this job. With a journal, work of the same name is never submitted twice, and
                finished work is answered from the journal.

        Raises:
            SolveTimeoutError: No solution in time. `phase` says where the time went; with a `task_id` you can
                resume it.
            UnsolvableError: The service gave up. Refunded.
            SubmitUncertainError: Sent, and no answer: perhaps charged.
            AccountError: The key, the balance or the address is refused.
            InvalidTaskError: The service refuses the task.
            UCaptchaError: Any other cause; see the list of errors.
        """
        job = self._job(task, key, self._with(timeout, selection_mode, provider, attempts))
        way = job.solve() if key is None else job.alone(job.solve())
        return await job.run(way, job.options.timeout)

    async def submit(
        self,
        task: Task[S],
        *,
        timeout: Seconds | ClientDefault | None = DEFAULT,
        selection_mode: SelectionMode | str | ClientDefault | None = DEFAULT,
        provider: str | ClientDefault | None = DEFAULT,
        key: str | None = None,
    ) -> Job[S]:
        """Submit a task, and return it as soon as the service has accepted it.

        The job holds its place in flight until it is waited for, or forgotten. Arguments and errors as for `solve`.
        """
        job = self._job(task, key, self._with(timeout, selection_mode, provider, DEFAULT))
        job.handed_out = True
        await job.run(job.submit(), job.options.timeout)
        return job

    @overload
    def job(self, task_id: str) -> Job[Solution]: ...

    @overload
    def job(self, task_id: str, kind: type[Task[S]]) -> Job[S]: ...

    def job(self, task_id: str, kind: type[Task[Any]] = Task) -> Job[Any]:
        """Resume a task that was submitted earlier, here or elsewhere.

        Args:
            task_id: The service's id.
            kind: The task's class, for a typed solution: `client.job(id, RecaptchaV2)`.
        """
        _known_id(task_id)
        if not (isinstance(kind, type) and issubclass(kind, Task)):
            raise wrong("kind", kind, "a class of tasks, for example RecaptchaV2")
        session, task = self._ready(), kind.known_by_id()
        secrets = session.secrets_of(task_id)
        return Job(session, task, self._options, None, task_id, State.WAITING, respell=True, secrets=secrets)

    def solve_many(
        self,
        tasks: Iterable[Task[S] | UCaptchaError] | AsyncIterable[Task[S] | UCaptchaError],
        *,
        timeout: Seconds | ClientDefault | None = DEFAULT,
        selection_mode: SelectionMode | str | ClientDefault | None = DEFAULT,
        provider: str | ClientDefault | None = DEFAULT,
        attempts: int | ClientDefault = DEFAULT,
        key: Callable[[Task[S]], str | None] | None = None,
        max_pending: int | None = None,
    ) -> Outcomes[Task[S], S]:
        """Solve a stream of tasks; the outcomes come as they complete.

        The input is read lazily, so that an endless or very long one uses bounded memory. A failure is an outcome
        like any other. When the account as a whole is refused or the budget is used up, no more input is read and the
        iteration ends with that error. Leaving the block early cancels what runs.

        Args:
            tasks: Any iterable or async iterable of tasks. In place of a task that could not be made it may hold the
                error, which comes out as that input's outcome.
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
        session = self._ready()

        def job(task: Task[S]) -> Job[S]:
            return self._job(task, None if key is None else key(task), options)

        def solve(job: Job[S]) -> Coroutine[Any, Any, S]:
            way = job.solve() if session.budget is None else _through_budget(session.budget, job)
            return job.run(way if job.key is None else job.alone(way), options.timeout)

        return Outcomes(session, _several(tasks), job, solve, self._width(max_pending))

    async def gather(
        self,
        tasks: Iterable[Task[S] | UCaptchaError] | AsyncIterable[Task[S] | UCaptchaError],
        *,
        timeout: Seconds | ClientDefault | None = DEFAULT,
        selection_mode: SelectionMode | str | ClientDefault | None = DEFAULT,
        provider: str | ClientDefault | None = DEFAULT,
        attempts: int | ClientDefault = DEFAULT,
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
        timeout: Seconds | ClientDefault | None = DEFAULT,
        selection_mode: SelectionMode | str | ClientDefault | None = DEFAULT,
        provider: str | ClientDefault | None = DEFAULT,
        attempts: int | ClientDefault = DEFAULT,
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
            lifetime: Seconds that a token is accepted. Default: the task's own; required where it is not known.
            max_under_way: The most solves under way. Default: none but this client's own bounds.
            idle_after: Seconds without a `get` after which nothing is renewed until the next. Default: one lifetime.
            timeout: Seconds for one solve, and the default for one `get`.
            selection_mode: As for `solve`.
            provider: As for `solve`.
            attempts: As for `solve`.

        Raises:
            InvalidTaskError: The task shows a picture, which is not known in advance.
            ConfigurationError: A setting is out of its range.
        """
        from .solving.prefetch import Prefetch, PrefetchSettings

        options = self._with(timeout, selection_mode, provider, attempts)
        session = self._ready()
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
            task.kind,
            settings,
            solve=functools.partial(self._solve_dated, task, options),
            solve_time=lambda: self.statistics().solve_times.get(task.kind, {}).get(0.5),
            emit=session.emit,
        )

    def recover(
        self, *, timeout: Seconds | ClientDefault | None = DEFAULT, max_pending: int | None = None
    ) -> Outcomes[Entry, Solution]:
        """Resume what an earlier process left in the journal: wait for accepted tasks, report the uncertain ones.

        An outcome's `task` has the type and no fields: the journal does not keep them. The error of an uncertain one is
        `SubmitUncertainError`.

        Args:
            timeout: Seconds for each, from when it is resumed. Default: the client's own.
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
        return recover(self._ready(), self._with(timeout, DEFAULT, DEFAULT, DEFAULT), self._width(max_pending))

    # --- the other endpoints ------------------------------------------------------------------------------------------

    async def get_task_result(self, task_id: str) -> TaskResult:
        """Ask once for the state of a task. Source: docs/api/ucaptcha/get-task-result."""
        session = self._ready()
        _known_id(task_id)
        question = session.api.get_task_result(task_id, session.secrets_of(task_id))
        with _perhaps_charged():
            return _task_result(await session.api.ask(question), task_id)

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
        session = self._ready()
        _known_id(task_id)
        with _perhaps_charged():
            return await feedback(session, task_id, session.secrets_of(task_id), accepted, message, code)

    # --- what has happened --------------------------------------------------------------------------------------------

    def statistics(self) -> ClientStatistics:
        """What this client and its views have done so far."""
        self._state.check_entered()
        return gather_statistics(self._session)

    @property
    def spent(self) -> Mapping[str, Decimal]:
        """USD by task type: the cost of all solved tasks, as far as the service said. Failed ones are refunded."""
        return dict(self._session.tally.spent)

    @property
    def abandoned(self) -> tuple[str, ...]:
        """The ids of paid tasks whose wait was given up (cancelled, timed out, open at the end), or whose
        outcomes were not read: resume them with `job`.
        """
        self._session.sweep()
        return tuple(dict.fromkeys(self._session.abandoned))

    def reset_breaker(self) -> None:
        """Let submits pass again after the account was refused."""
        self._session.breaker.reset()

    # --- details ------------------------------------------------------------------------------------------------------

    def _ready(self) -> Session:
        if not self._session.closed:
            self._state.check_entered()
        self._session.check_open()
        return self._session

    def _job(self, task: Task[S], key: str | None, options: Options) -> Job[S]:
        session = self._ready()
        if not isinstance(task, Task):
            raise wrong("task", task, "a Task, for example RecaptchaV2(…) or Task('AnyType', …)")
        if key is not None and (not isinstance(key, str) or not key):
            raise wrong("key", key, "a non-empty str, or None")
        return Job(session, task, options, key)

    async def _solve_dated(self, task: Task[S], options: Options) -> tuple[S, float]:
        """A solution, and since when it may exist, in seconds on the event loop's clock."""
        job = self._job(task, None, options)
        solution = await job.run(job.solve(), options.timeout)
        return solution, self._session.loop.time() if job.unsolved_at is None else job.unsolved_at

    def _with(self, timeout: Any, selection_mode: Any, provider: Any, attempts: Any) -> Options:
        if timeout is DEFAULT and selection_mode is DEFAULT and provider is DEFAULT and attempts is DEFAULT:
            return self._options
        return _options(
            self._options, timeout=timeout, selection_mode=selection_mode, provider=provider, attempts=attempts
        )

    def _width(self, max_pending: int | None) -> int:
        limit = self._session.in_flight.limit
        return whole("max_pending", max_pending) if max_pending is not None else limit or MAX_IN_FLIGHT


@attrs.define(eq=False)
class _State:
    """Shared by a client and its views."""

    word: str = "not entered"

    def enter(self) -> None:
        if self.word != "not entered":
            raise ClientStateError(f"the client is {self.word}: it can be entered once")
        self.word = "open"

    def check_entered(self) -> None:
        if self.word == "not entered":
            raise ClientStateError("the client is not entered: use it inside 'async with', or await its open() first")


def _known_id(task_id: str) -> None:
    if not isinstance(task_id, str) or not task_id:
        raise wrong("task_id", task_id, "the id of a task (non-empty str)")


@contextlib.contextmanager
def _perhaps_charged() -> Iterator[None]:
    """Nobody here knows whether a task was charged that is known by its id alone."""
    try:
        yield
    except UCaptchaError as error:
        error.charged = None
        raise


async def _through_budget(budget: SharedBudget, job: Job[S]) -> S:
    """Solve; wait for room in the budget while running solves may still give some back."""
    while True:
        try:
            return await job.solve()
        except BudgetExceededError:
            if not await budget.room():
                raise


def _several(tasks: Any) -> Any:
    """Catch the list that was forgotten."""
    if isinstance(tasks, Task) or not isinstance(tasks, Iterable | AsyncIterable) or isinstance(tasks, str | bytes):
        raise TypeError(f"tasks must be an iterable of tasks, for example a list; got {type(tasks).__name__}")
    return tasks


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
    if given is None and "UCAPTCHA_API_KEY" not in os.environ:
        raise ConfigurationError("no API key: pass api_key or set UCAPTCHA_API_KEY", field="api_key")
    field = "UCAPTCHA_API_KEY" if given is None else "api_key"
    given = SecretStr(os.environ["UCAPTCHA_API_KEY"]) if given is None else given
    key = SecretStr(given.removeprefix("\ufeff").strip()) if isinstance(given, str) else None
    if not key or not key.isprintable():
        raise wrong(field, given, "a non-empty str of printable characters", ConfigurationError)
    return key


def _base_url(given: str | None, insecure: bool) -> str:
    found = os.environ.get("UCAPTCHA_BASE_URL")
    given = None if given == "" else given
    field = "UCAPTCHA_BASE_URL" if found and given is None else "base_url"
    url = SecretStr(found or BASE_URL) if given is None else given
    scheme, host = bare_url(field, url)
    host = host.rstrip(".")
    if scheme == "http" and not is_loopback(host):
        own = host != "ucaptcha.net" and not host.endswith(".ucaptcha.net")
        if not insecure or not own:
            allow = "; for a host of your own in a private network, allow_insecure=True accepts it" if own else ""
            reason = f"plain http:// would show the API key to the network, and is for this machine only{allow}"
            shown = f"[{host}]" if ":" in host else host
            raise ConfigurationError(f"{field} must be https:// ({reason}); got 'http://{shown}'", field=field)
        _warn_insecure(host)
    return str(url).rstrip("/")


@functools.cache  # once for each host
def _warn_insecure(host: str) -> None:
    logger.warning("requests to %s go over plain http: the API key can be read on the way", host)


def _insecure(given: bool) -> bool:
    if not isinstance(given, bool):
        raise wrong("allow_insecure", given, "True or False", ConfigurationError)
    word = os.environ.get("UCAPTCHA_ALLOW_INSECURE", "")
    if word not in ("", "0", "1"):
        raise ConfigurationError("UCAPTCHA_ALLOW_INSECURE must be 1, 0 or empty", field="allow_insecure")
    return given or word == "1"


def _is_a(field: str, value: T, cls: type[T]) -> T:
    if not isinstance(value, cls):
        article = "an" if cls.__name__[0] in "AEIOU" else "a"
        raise wrong(field, value, f"{article} {cls.__name__}, or None", ConfigurationError)
    return value


def _limiter(value: Limiter | None) -> Limiter:
    if value is None:
        return RateLimiter()
    methods = ("acquire", "observe", "lost", "statistics")
    if isinstance(value, type) or not all(callable(getattr(value, name, None)) for name in methods):
        allowed = "a RateLimiter, for example RateLimiter(100, window=10), or an object with its methods"
        raise wrong("rate_limit", value, allowed, ConfigurationError)
    return value


def _in_flight(value: int | InFlightBound | None) -> InFlightBound:
    if value is None:
        return InFlight(None)
    return value if isinstance(value, InFlightBound) else InFlight(whole("max_in_flight", value))


def _journal(value: Journal | str | os.PathLike[str] | None) -> Journal | None:
    if isinstance(value, str | os.PathLike):
        from .journal import SQLiteJournal

        return SQLiteJournal(value)
    if value is not None and (isinstance(value, type) or not isinstance(value, Journal)):
        raise wrong("journal", value, "a journal, for example SQLiteJournal(path), or a path", ConfigurationError)
    return value


def _budget(value: Budget | SharedBudget | Money | None) -> Budget | SharedBudget | None:
    if value is None or isinstance(value, Budget):
        return value
    if isinstance(value, str | int | float | Decimal):
        return Budget(value)  # it refuses a float, and says why
    if isinstance(value, type) or not isinstance(value, SharedBudget):
        raise wrong("budget", value, "a Budget, or an amount of USD as Decimal, int or str", ConfigurationError)
    return value


def _callbacks(value: CallbackReceiver | None) -> CallbackReceiver | None:
    if value is None:
        return None
    from .callbacks import CallbackReceiver

    return _is_a("callbacks", value, CallbackReceiver)


def _callable(field: str, value: Hook | None) -> Hook | None:
    if value is not None and (not callable(value) or _is_async(value)):
        allowed = "a function that takes an event (not an async one: nobody would await it), or None"
        raise wrong(field, value, allowed, ConfigurationError)
    return value


def _is_async(value: object) -> bool:
    call = getattr(type(value), "__call__", None)  # noqa: B004 - it is looked at, and not called
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(call)


def _http_client(value: HTTPClient) -> HTTPClient:
    send = getattr(value, "send", None)
    built = callable(getattr(value, "build_request", None))
    if isinstance(value, type) or not built or not inspect.iscoroutinefunction(send):
        allowed = "an httpx.AsyncClient or httpx2.AsyncClient (not a synchronous one)"
        raise wrong("http_client", value, allowed, ConfigurationError)
    return value


def _verifies(context: ssl.SSLContext | None) -> None:
    if context is None:
        return
    is_context = isinstance(context, ssl.SSLContext)
    if not is_context or context.verify_mode is not ssl.CERT_REQUIRED or not context.check_hostname:
        raise wrong(
            "ssl_context", context, "an SSLContext that verifies certificates and host names", ConfigurationError
        )


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = near(value, allowed) if isinstance(value, str) else ""
        raise ConfigurationError(f"{field} must be one of {', '.join(map(repr, allowed))}{hint}", field=field)


def _options(base: Options, **changes: Any) -> Options:
    given = {name: value for name, value in changes.items() if value is not DEFAULT}
    if "timeout" in given:
        given["timeout"] = time_limit(given["timeout"])
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
