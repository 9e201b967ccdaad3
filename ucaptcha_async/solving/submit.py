"""The submit: at most one task is paid for, and its fate is known or said to be unknown."""

from __future__ import annotations

import functools
from typing import Protocol

from ucaptcha_async.errors import (
    AccountError,
    APIConnectionError,
    NoProviderError,
    RateLimitedError,
    SubmitUncertainError,
    UCaptchaError,
    UnsolvableError,
)
from ucaptcha_async.events import Retried, Throttled
from ucaptcha_async.results import Status
from ucaptcha_async.secrecy import SecretMapping
from ucaptcha_async.tasks.names import Name
from ucaptcha_async.transport.api import Answer, Unreadable
from ucaptcha_async.transport.error_codes import CODES, is_internal
from ucaptcha_async.transport.exchange import Exchange

from .lease import Fate
from .session import Call, Session
from .type_search import Search


class Submission(Call, Protocol):
    """A call whose task is being submitted: `Job` is one.

    Attributes:
        session: What it shares with the others.
        exchange: The latest request.
        fate: What became of it, once that is judged.
        answer: What the service said, once it has accepted the task.
        trouble: What went wrong last.
    """

    session: Session
    exchange: Exchange | None
    fate: Fate | None
    answer: Answer | None
    trouble: UCaptchaError | None

    def wire(self, name: Name | None) -> tuple[SecretMapping, dict[str, str], tuple[str, ...]]:
        """The task as it is sent, the other fields of `createTask`, and what no error may show."""
        ...


FIRST_DELAY = 0.5
LONGEST_DELAY = 15.0


def fate_of(error: UCaptchaError, exchange: Exchange) -> Fate:
    """Judge a failed submit. What is not proved to be refused is uncertain.

    The proof is the protocol's own error body: JSON with an error code, which names no task. Too many requests is a
    refusal, whoever sends it.
    """
    if isinstance(error, APIConnectionError):
        return Fate.UNCERTAIN if exchange.sent else Fate.UNSENT
    # An answer that refuses and names a task contradicts itself.
    if exchange.named is not None or isinstance(error, Unreadable):
        return Fate.UNCERTAIN
    if exchange.status == 429:
        return Fate.REFUSED
    if not exchange.in_protocol:
        return Fate.UNCERTAIN
    status, for_now = exchange.status or 0, isinstance(error, NoProviderError | RateLimitedError)
    if is_internal(exchange.code) or (status >= 500 and not (for_now and exchange.code in CODES)):
        return Fate.UNCERTAIN
    return Fate.FAILED_BY_CODE if isinstance(error, UnsolvableError) else Fate.REFUSED


def may_pass(error: UCaptchaError, fate: Fate | None) -> bool:
    """Whether a submit that cost nothing is to be made again within the same solve."""
    if fate is Fate.UNSENT:
        return error.retryable
    return fate is Fate.REFUSED and isinstance(error, NoProviderError | RateLimitedError)


async def submit(job: Submission, search: Search) -> Answer:
    """Submit a task until the service has accepted or refused it, under one type name after another if need be.

    Raises:
        SubmitUncertainError: The fate of the request is unknown.
        UnsupportedTaskError: The service knows none of the names.
        ClientStateError: The client drains, and does not submit again.
        UCaptchaError: The service refused the task for good, or it was never sent.
    """
    session, tries = job.session, 0
    while True:
        await _admitted(job, search)
        try:
            return await _answer(job, search)
        except UCaptchaError as error:
            exchange = job.exchange
            if exchange is None:
                raise
            if exchange.recalled:
                continue
            job.trouble = error
            if job.fate is Fate.UNCERTAIN:
                raise _uncertain(error, exchange) from error
            if job.fate is Fate.REFUSED and await search.refused(error):
                continue
            if not may_pass(error, job.fate):
                raise
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(tries, 30)) * session.rng.uniform(0.5, 1.0)
            _tell(job, error, delay)
        tries += 1
        await session.loop.sleep(delay)


async def _answer(job: Submission, search: Search) -> Answer:
    """Send one request, in turn, and read its answer."""
    session = job.session
    await session.submitting.acquire()
    exchange = None
    try:
        session.check_submits()
        exchange = session.api.create_task(*job.wire(search.name))
        exchange.on_departure = session.submitting.release
        job.exchange, job.fate = exchange, None
        patience = functools.partial(_patience, exchange, session.cancel_grace)
        await session.loop.uninterrupted(_answered(job, exchange), patience)
    finally:
        if exchange is None:
            session.submitting.release()
        else:
            exchange.let_next_go()
    assert job.answer is not None
    return job.answer


def _patience(exchange: Exchange, grace: float) -> float:
    """The caller is cancelled: for how long the answer is still waited for. What was sent may have been paid for."""
    exchange.withdrawn = True  # it may still wait in the pool of an injected client
    return grace if exchange.sent else 0.0


async def _admitted(job: Submission, search: Search) -> None:
    """Wait while submits are held. Whoever waits does not search, for the one that goes may wait for the search."""
    breaker = job.session.breaker
    if breaker.admits(job):
        return
    search.end()
    await breaker.check(job, job.session.api.get_balance)
    await search.choose()


async def _answered(job: Submission, exchange: Exchange) -> None:
    """Send once, and note what came, even if nobody waits for it any more."""
    session = job.session
    exchange.admitted = functools.partial(session.breaker.admits, job)
    try:
        with session.telling(job, exchange):
            answer = await session.api.ask(exchange)
        if answer.task_id is None and answer.status not in (Status.READY, Status.FAILED):
            raise Unreadable("createTask answered without a taskId")
    except UCaptchaError as error:
        job.fate = fate_of(error, exchange)
        if session.on_uncertain == "resubmit" and exchange.partial is not None:
            exchange.named = None  # an answer that broke off: as was asked for, the task is submitted again
        if exchange.in_protocol:
            session.answered()
        _tell_breaker(job, exchange, error)
        raise
    except BaseException:
        if (refusal := session.api.refusal(exchange)) is not None:
            job.fate = fate_of(refusal, exchange)
        raise
    finally:
        exchange.admitted = None  # what keeps the request must not keep a forgotten job
    session.reached()
    session.breaker.accepted()
    session.breaker.stand_down(job)
    job.answer, job.task_id, job.trouble = answer, answer.task_id, None
    if answer.task_id is not None:
        session.accepted(answer.task_id, job)


def _tell_breaker(job: Submission, exchange: Exchange, error: UCaptchaError) -> None:
    breaker = job.session.breaker
    if exchange.in_protocol:
        refusal = error if isinstance(error, AccountError) and job.fate is Fate.REFUSED else None
        breaker.answered(refusal, certain=exchange.code in CODES)
    elif exchange.status is not None and not isinstance(error, RateLimitedError):
        breaker.foreign()
    breaker.stand_down(job)


def _tell(job: Submission, error: UCaptchaError, delay: float) -> None:
    session = job.session
    if isinstance(error, APIConnectionError):
        session.unreachable(error, f"submits are tried again until their own deadlines, next in {delay:.1f} s")
    if isinstance(error, RateLimitedError):
        session.emit(Throttled, job, endpoint="createTask")
    reason = type(error).__name__
    session.emit(Retried, job, endpoint="createTask", reason=reason, error_code=error.error_code, delay=delay)


def _uncertain(error: UCaptchaError, exchange: Exchange) -> SubmitUncertainError:
    message = f"the task was sent and may have been accepted and charged; no readable answer came: {error.message}"
    return SubmitUncertainError(message, error_code=error.error_code, task_id=exchange.named)
