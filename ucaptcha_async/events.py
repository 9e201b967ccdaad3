"""What happened: small frozen records that feed logs, progress displays and telemetry.

`AsyncClient(on_event=hook)` calls `hook(event)` for each of them, in the task of the solve that it concerns. No event
holds a secret. A hook should return at once; one that raises is reported to the logger `ucaptcha_async` and does not
break the solve.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import attrs

from .errors import ConfigurationError, UCaptchaError

LONGEST_CONTEXT = 512
"""Characters of the longest `Context`."""


class Context(str):
    """What a hook may return for a `Started`: kept with the solve, and in its row of the journal.

    A later call or process that takes the task up gets it back in its `TakenUp`. It is text of the hook's own, for
    example a `traceparent`, and must hold no secret.

    Raises:
        ConfigurationError: It is empty, not printable, or longer than 512 characters.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Context:
        """Check the text."""
        if not text or not text.isprintable() or len(text) > LONGEST_CONTEXT:
            raise ConfigurationError("a Context must be printable text of 1 to 512 characters", field="context")
        return super().__new__(cls, text)


@attrs.frozen(kw_only=True)
class Event:
    """What all events have in common.

    Attributes:
        at: When it happened, in seconds of the event loop's clock.
        task_type: The kind of task (`"Turnstile"`), or its type where the kind is not known; empty where the event
            concerns the client as a whole.
        task_id: The id of the task, once the service has given one.
        key: Your name for the job, if you gave one.
        solve_id: The same number for all events of one solve, and for no other solve of this process. 0 where the event
            concerns none.
    """

    at: float
    task_type: str = ""
    task_id: str | None = None
    key: str | None = None
    solve_id: int = 0


@attrs.frozen(kw_only=True)
class Started(Event):
    """A solve has its place in flight, or a task that was submitted earlier is waited for.

    A hook may return a `Context` for it.

    Attributes:
        queued: Seconds from the call to the place in flight.
    """

    queued: float = 0.0


@attrs.frozen(kw_only=True)
class TakenUp(Event):
    """An earlier call, perhaps of another process, submitted the task that this solve is about.

    Attributes:
        context: What its hook returned for its `Started`, where this is known.
    """

    context: str | None = None


@attrs.frozen(kw_only=True)
class Requested(Event):
    """A request has ended, with an answer or without.

    Attributes:
        endpoint: `createTask` or `getTaskResult`.
        host: The service's host, with its port if the base URL has one.
        seconds: From its departure to its end; 0 if it never left.
        http_status: The status of the answer, if one came.
        status: The service's word for the status of the task, if the answer was understood.
        reason: The name of the error class, if it was not.
        error_code: The service's code, if it gave one.
    """

    endpoint: str
    host: str
    seconds: float
    http_status: int | None = None
    status: str | None = None
    reason: str | None = None
    error_code: str | None = None


@attrs.frozen(kw_only=True)
class Submitted(Event):
    """The service accepted a task: it is paid for now.

    Attributes:
        attempt: 1 for the first task of a solve, 2 for the next after an unsolvable one, and so on.
    """

    attempt: int = 1


@attrs.frozen(kw_only=True)
class TypeNameChosen(Event):
    """The service takes a kind of task under another name than the first, or under one that is only inferred.

    All further tasks of the kind are sent under it. Refusals of a type cost nothing.

    Attributes:
        name: The type that the service took.
        refused: The types that it did not know, in the order in which this solve tried them.
        inferred: Whether no page says that the name, or the spelling of its fields, means this kind.
    """

    name: str
    refused: tuple[str, ...] = ()
    inferred: bool = False


@attrs.frozen(kw_only=True)
class Polled(Event):
    """The service said that a task is not finished.

    Attributes:
        status: The service's own word: `idle`, `processing`, or an unknown one.
        polls: Polls of this task so far.
    """

    status: str
    polls: int


@attrs.frozen(kw_only=True)
class Throttled(Event):
    """The service refused a request because there were too many from this address (HTTP 429).

    Attributes:
        endpoint: `createTask` or `getTaskResult`.
    """

    endpoint: str


@attrs.frozen(kw_only=True)
class Retried(Event):
    """A request failed in a way that cost nothing and will be made again.

    Attributes:
        endpoint: `createTask` or `getTaskResult`.
        reason: The name of the error class.
        error_code: The service's code, if it gave one.
        delay: Seconds until the next request.
    """

    endpoint: str
    reason: str
    error_code: str | None = None
    delay: float


@attrs.frozen(kw_only=True)
class Solved(Event):
    """A solution arrived.

    Attributes:
        cost: USD, if the service said.
        solve_time: Seconds, as the service reports it.
        elapsed: Seconds from the acceptance of the task to the solution in hand.
        polls: Polls that it took.
        from_journal: Whether the journal knew that the work was done: then `cost` was paid for earlier.
    """

    cost: Decimal | None
    solve_time: float | None
    elapsed: float
    polls: int
    from_journal: bool = False


@attrs.frozen(kw_only=True)
class Failed(Event):
    """A solve ended with an error.

    Attributes:
        error: The error, which says whether money was spent.
    """

    error: UCaptchaError


@attrs.frozen(kw_only=True)
class Cancelled(Event):
    """The caller gave up a solve. With a `task_id`, the task is paid for and can be resumed with
    `client.job(task_id)`.
    """


@attrs.frozen(kw_only=True)
class Uncertain(Event):
    """A submit was sent and no readable answer came: the task may exist, and may have been charged. Or a solution came
    at once, without a task id, after the caller had given up.

    A caller that still waits gets a `SubmitUncertainError` as well; if the wait was given up, or the task is submitted
    again, only this event tells of it.
    """


@attrs.frozen(kw_only=True)
class JournalFailed(Event):
    """The journal could not be written. The solve goes on; the entry is written with the next one that succeeds.

    Attributes:
        error: What the journal said.
    """

    error: UCaptchaError


@attrs.frozen(kw_only=True)
class PollRefused(Event):
    """The service refused a poll with an account error or an unknown code. The wait goes on. Once for each code.

    Attributes:
        error: What the service said.
    """

    error: UCaptchaError


@attrs.frozen(kw_only=True)
class ServiceUnreachable(Event):
    """Requests do not reach the service: emitted at the first failure, once for the client.

    Attributes:
        reason: What happened.
    """

    reason: str


@attrs.frozen(kw_only=True)
class ServiceReached(Event):
    """A request was answered again.

    Attributes:
        seconds: How long none was.
    """

    seconds: float


@attrs.frozen(kw_only=True)
class SubmitsHeld(Event):
    """Answers to `createTask` are not the service's own: one submit at a time goes out, and the others wait."""


@attrs.frozen(kw_only=True)
class SubmitsResumed(Event):
    """The service answers in its own protocol again: submits go out as usual."""


@attrs.frozen(kw_only=True)
class ConnectionsDistrusted(Event):
    """The service sent unexpected bytes: for a while each connection carries one request."""


@attrs.frozen(kw_only=True)
class TokenReady(Event):
    """A prefetched token is in stock.

    Attributes:
        lead_time: Seconds from the start of its solve to the stock.
    """

    lead_time: float


@attrs.frozen(kw_only=True)
class TokenTaken(Event):
    """A prefetched token was handed out.

    Attributes:
        waited: Seconds that the `get` waited for it.
        remaining: Seconds that it is still good for.
    """

    waited: float
    remaining: float


@attrs.frozen(kw_only=True)
class TokenExpired(Event):
    """A prefetched token got too old before anybody asked for it.

    Attributes:
        cost: What it cost, USD, if the service said.
    """

    cost: Decimal | None


@attrs.frozen(kw_only=True)
class TokenDelayed(Event):
    """A solve of a prefetch brought no token, and is tried again after a pause.

    Attributes:
        reason: The name of the error class.
        delay: Seconds until the next attempt, or less if another solve succeeds before.
    """

    reason: str
    delay: float


Hook = Callable[[Event], object]
"""What `on_event` takes. What it returns means nothing, but for a `Context`."""
