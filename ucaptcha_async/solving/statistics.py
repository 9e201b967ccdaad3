"""What a client has done so far, as one frozen record."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import attrs

from ucaptcha_async.pacing import RateLimiterStatistics
from ucaptcha_async.transport.exchange import ConnectionStatistics

from .session import Session

QUANTILES = (0.1, 0.5, 0.9, 0.95)


@attrs.frozen(kw_only=True)
class ClientStatistics:
    """What a client and its views have done so far.

    Attributes:
        in_flight: Places taken: tasks at the service, or on their way there.
        max_in_flight: The most places; `None` for no bound.
        queued: Solves that wait for a place.
        waiting: Jobs that are being waited for.
        submitted: Tasks that the service accepted.
        solved: Solves that ended with a solution.
        failed: Solves that ended with an error.
        cancelled: Solves that the caller gave up.
        requests: HTTP requests made.
        throttled: Requests answered with HTTP 429.
        polls: `getTaskResult` requests made by waiting jobs.
        polls_per_solve: Polls per solved task; `None` before the first.
        spent: USD by task type, as far as the service said.
        solve_times: By task type: quantiles of the solve time in seconds, by quantile (0.1, 0.5, 0.9, 0.95).
        rate_limit: The rate limiter, which may be shared with other clients.
        connections: The connections; `None` with an injected `http_client`.
    """

    in_flight: int
    max_in_flight: int | None
    queued: int
    waiting: int
    submitted: int
    solved: int
    failed: int
    cancelled: int
    requests: int
    throttled: int
    polls: int
    polls_per_solve: float | None
    spent: Mapping[str, Decimal]
    solve_times: Mapping[str, Mapping[float, float]]
    rate_limit: RateLimiterStatistics
    connections: ConnectionStatistics | None


def gather_statistics(session: Session) -> ClientStatistics:
    """Read the counters."""
    tally, places = session.tally, session.in_flight.statistics()
    return ClientStatistics(
        in_flight=places.in_flight,
        max_in_flight=places.limit,
        queued=places.waiting,
        waiting=tally.waiting,
        submitted=tally.submitted,
        solved=tally.solved,
        failed=tally.failed,
        cancelled=tally.cancelled,
        requests=session.api.requests,
        throttled=session.api.throttled,
        polls=tally.polls,
        polls_per_solve=tally.polls / tally.solved if tally.solved else None,
        spent=dict(tally.spent),
        solve_times={kind: _quantiles(session, kind) for kind in session.times.types()},
        rate_limit=session.api.limiter.statistics(),
        connections=session.api.sender.statistics(),
    )


def _quantiles(session: Session, task_type: str) -> dict[float, float]:
    values = ((q, session.times.quantile(task_type, q)) for q in QUANTILES)
    return {q: value for q, value in values if value is not None}
