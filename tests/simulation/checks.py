"""What must hold after every world: the service's books, the network's and the clients', compared.

Three parties kept books: the service (tasks, charges, refunds), the network (each request at the moment when its first
byte left a client), and the users (what they were told). No check asks the client about itself where another knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from itertools import pairwise

from ucaptcha_async import (
    AccountError,
    APIConnectionError,
    BudgetExceededError,
    InvalidTaskError,
    JournalError,
    NoProviderError,
    ProtocolError,
    RateLimitedError,
    ServiceError,
    SolveTimeoutError,
    SubmitUncertainError,
    TaskNotFoundError,
    UCaptchaError,
    UnsolvableError,
    UnsupportedTaskError,
)
from ucaptcha_async.events import Cancelled, Solved, Uncertain
from ucaptcha_async.journal import State
from ucaptcha_async.testing import Amend, Json, Reword
from ucaptcha_async.testing.books import most_in_window

from .books import Books, work_of
from .calls import Call
from .network import Request
from .plan import PRICES
from .process import LIFETIME, Process
from .world import World

EPSILON = 1e-6
"""Seconds that sums of floating-point times may be off."""

CLOSING = 1.0
"""Seconds that closing a connection may take under a shield."""

REFUSED_FOR_NOW = {"ERROR_NO_SLOT_AVAILABLE", "NO_PROVIDERS_AVAILABLE", "ERROR_TOO_MUCH_REQUESTS"}
NEXT_NAME = "TASK_NOT_SUPPORTED"

REFUSED_NAMES = 60.0
"""Seconds for which a client believes that a service takes none of the names that it knows."""

Complaints = Iterator[str]


def check(world: World) -> None:
    """Compare the books, and complain about what does not agree."""
    if not world.ended_at:
        return
    books = Books(world)
    for rule in RULES:
        for text in rule(books):
            world.complain(rule.__name__, text)


# --- what was paid for ------------------------------------------------------------------------------------------------


def nothing_lost(books: Books) -> Complaints:
    """Every accepted task is known to somebody, or reported as uncertain, or its refund was told."""
    for work, ids in books.accepted.items():
        unknown = [
            task_id
            for task_id in ids
            if task_id not in books.known and not (books.tasks[task_id].refunded and books.tasks[task_id].polls)
        ]
        if len(unknown) > books.uncertain(work) + books.nameless(work):
            ends = [f"{call.ending} {call.error!r}" for call in books.calls[work]]
            yield f"{work}: {unknown} known to nobody, {books.uncertain(work)} reported as uncertain; calls: {ends}"


def nothing_twice(books: Books) -> Complaints:
    """No work is paid for twice, unless it was asked for, and said."""
    for work in books.accepted:
        calls = books.calls[work]
        if calls and calls[0].work.shared:
            continue  # see `stocks_agree`
        keyed = calls[0].work.keyed
        allowed = 1 if keyed else len(calls)
        if books.plan.on_uncertain == "resubmit":
            allowed += books.uncertain(work) + books.gone(work)
        paid = books.unrefunded(work)
        if len(paid) > allowed:
            yield f"{work}: {len(paid)} tasks were paid for and not refunded, {allowed} allowed: {paid}"
        most = allowed - 1 + sum(call.work.attempts for call in calls)
        if len(books.accepted[work]) > most:
            yield f"{work}: {len(books.accepted[work])} tasks were accepted, {most} allowed"


def nothing_sent_again(books: Books) -> Complaints:
    """A submit is sent again only if the service has refused the last one, or its task was refunded."""
    if books.plan.on_uncertain == "resubmit":
        return
    for work, submits in books.submits.items():
        if any(call.work.shared for call in books.calls[work][:1]):
            continue  # many solves side by side
        keyed = books.calls[work][0].work.keyed
        for last, again in pairwise(submits):
            if not _may_follow(books, last) and (keyed or last.process == again.process):
                what = f"request {last.number} (fate {last.fate!r}, HTTP {last.status})"
                yield f"{work}: {what} was sent again as {again.number}"


def _may_follow(books: Books, last: Request) -> bool:
    if last.accepted is not None:
        return last.answered and books.tasks[last.accepted].refunded
    refused = last.status == 429 or last.code in {*REFUSED_FOR_NOW, NEXT_NAME}
    # Another user of the same work may try what was refused to the first. Only the service's own words refuse.
    users = len(books.calls[last.work or ""])
    final = users > 1 and (last.fate == "unsolicited_408" or (last.code is not None and (last.status or 500) < 500))
    return (last.answered or last.fate == "unsolicited_408") and (refused or final)


def no_false_alarms(books: Books) -> Complaints:
    """A submit that the service has refused, or that was never written, is not called uncertain."""
    if books.plan.injected:
        return  # whether a request still waits in somebody else's pool, nobody says
    for work, calls in books.calls.items():
        heard = sum(isinstance(h.event, Uncertain) and h.work == work for h in books.world.heard)
        clear = sum(_is_clear(r) for r in books.submits[work])
        unclear = len(books.submits[work]) - clear + books.world.network.refused_writes[work]
        if heard > unclear and calls:
            yield f"{work}: {heard} submits are called uncertain, and {unclear} were"


def _is_clear(request: Request) -> bool:
    """Whether the answer to a submit was read, and says what became of it."""
    call = request.call
    given_up = isinstance(call, Call) and (call.work.shared or call.ending not in ("solved", "error"))
    accepted = request.named and request.code is None and not given_up
    return request.answered and (request.status == 429 or request.code in {*REFUSED_FOR_NOW, NEXT_NAME} or accepted)


def money_agrees(books: Books) -> Complaints:
    """What the clients say they spent is what the service charged for the tasks that they solved, each once."""
    doubtful = {task_id for task_id in books.tasks if _doubtful(books, task_id)}
    high = Decimal(0)
    for process in books.world.processes:
        told = {task_id for number, _, task_id in books.solved if number == process.number}
        most = _cost(books, told | doubtful) + _counted_at_death(process) + _counted_blindly(books, process)
        high += most
        if process.spent > most:
            yield f"process {process.number} says it spent {process.spent}; the books say at most {most}"
    told = {task_id for _, _, task_id in books.solved}
    if books.plan.journal_vanishes_at is not None:
        # Without its file, the journal cannot tell one process what another has counted.
        doubtful |= {task_id for _, at, task_id in books.solved if at < books.world.calm_at and task_id is not None}
    low = _cost(books, told - doubtful)
    if books.plan.journal_vanishes_at is None:
        dead = sum(map(_counted_at_death, books.world.processes), Decimal(0))
        high = _cost(books, told | doubtful) + dead
    spent = sum((process.spent for process in books.world.processes), Decimal(0))
    if not low <= spent <= high:
        yield f"all processes say they spent {spent}; the books say {low} to {high}"


def _counted_at_death(process: Process) -> Decimal:
    """What a process had counted and not written down as it died: its next life counts it again."""
    return sum(process.unwritten, Decimal(0)) if process.dead else Decimal(0)


def _counted_blindly(books: Books, process: Process) -> Decimal:
    """What several users of the same work may each have counted while the journal's file was away."""
    if books.plan.journal_vanishes_at is None:
        return Decimal(0)
    here = [i for n, at, i in books.solved if n == process.number and at < books.world.calm_at]
    return sum((_cost(books, [task_id]) for task_id in here), Decimal(0))


def _doubtful(books: Books, task_id: str) -> bool:
    """Whether a task was solved just as its user gave up or its process died: then it may not be counted."""
    delivered = books.tasks[task_id].first_delivered_at
    if delivered is None:
        return False
    if task_id in books.nameless_answers:
        return True
    first = min((at for _, at, solved in books.solved if solved == task_id), default=math.inf)
    died = any(delivered <= death <= first + EPSILON for death in books.deaths)
    return died or (first == math.inf and any(task_id in process.abandoned for process in books.world.processes))


def money_is_explained(books: Books) -> Complaints:
    """Charges minus refunds are what is counted as solved and what is known to be open, and nothing else."""
    solved = {task_id for _, _, task_id in books.solved}
    counted = _cost(books, solved)
    rest = [i for i, task in books.tasks.items() if i not in solved and not task.refunded]
    unexplained = [i for i in rest if i not in books.known and i not in books.twins]
    uncertain = sum(books.uncertain(work) + books.nameless(work) for work in books.accepted)
    if len(unexplained) > uncertain:
        yield f"{len(unexplained)} charges are explained by nothing, {uncertain} submits are reported as uncertain"
    open_ends = _cost(books, rest)
    if counted + open_ends != books.world.service.books.spent:
        yield f"the service has earned {books.world.service.books.spent}; {counted} is counted and {open_ends} is open"


def _cost(books: Books, ids: Iterable[str | None]) -> Decimal:
    tasks = [books.tasks[task_id] for task_id in ids if task_id in books.tasks]
    return sum((task.cost for task in tasks if not task.refunded), Decimal(0))


def solved_is_solved(books: Books) -> Complaints:
    """What a user holds as solved is a task of his work that the service solved, at its price."""
    for call in books.world.calls:
        solution = call.solution
        if solution is None:
            continue
        owner = books.owner(solution.raw)
        if owner is None or work_of(owner.website_url) != call.work.name:
            yield f"{call.work.name}: holds an answer for another task, {owner and owner.id}"
        if solution.task_id is None:
            continue
        task = books.tasks.get(str(solution.task_id))
        if task is None or work_of(task.website_url) != call.work.name:
            yield f"{call.work.name}: got the solution of another task, {solution.task_id}"
        elif task.error_code is not None:
            yield f"{call.work.name}: {task.id} is solved for the user and failed for the service"
        elif dict(solution.raw) != task.solution:
            yield f"{call.work.name}: the solution of {task.id} is another task's"
        elif solution.cost not in (None, PRICES[call.work.kind]):
            yield f"{call.work.name}: {task.id} cost {solution.cost} for the user, {task.cost} for the service"


def claims_hold(books: Books) -> Complaints:
    """What an error says of the charge is true."""
    for call in books.world.calls:
        error = call.error
        if error is None or call.ended is None or call.work.shared:
            continue
        mine = [r.accepted for r in books.submits[call.work.name] if r.accepted is not None and r.call is call]
        mine += [str(error.task_id)] if error.task_id is not None else []
        paid = [i for i in mine if i in books.tasks and not books.tasks[i].refunded]
        if error.charged is False and paid:
            yield f"{call.work.name}: {error!r} says 'not charged', but {paid} is paid for"
        if error.charged is True and str(error.task_id) not in books.tasks:
            yield f"{call.work.name}: {error!r} says 'charged', but the service has no such task"


def _of(request: Request, call: Call) -> bool:
    assert call.ended is not None
    return request.process == call.process and call.started - EPSILON <= request.at <= call.ended + EPSILON


def budgets_hold(books: Books) -> Complaints:
    """No process buys for more than its budget. (The estimate of a task is above every price here.)"""
    for process in books.world.processes:
        if process.budget is None or process.budget.max_spend is None:
            continue
        bought = [i for i, buyer in books.buyers.items() if buyer == process.number]
        paid = _cost(books, bought)
        if paid > process.budget.max_spend:
            yield f"process {process.number} bought for {paid} with a budget of {process.budget.max_spend}"
        if process.budget.spent > process.budget.max_spend:
            yield f"process {process.number} counts {process.budget.spent} on a budget of {process.budget.max_spend}"


# --- tokens that are ready before they are needed ---------------------------------------------------------------------


def stocks_agree(books: Books) -> Complaints:
    """Each token that was solved for a stock was taken once, got too old, or is left; and nobody took an old one."""
    for process in books.world.processes:
        for stock in process.stocks:
            name, now = stock.work.name, stock.statistics
            solved = sum(
                heard.process == process.number and heard.work == name and isinstance(heard.event, Solved)
                for heard in books.world.heard
            )
            takers = [call for call in books.calls[name] if call.process == process.number]
            taken = [call.solution for call in takers if call.solution is not None]
            if solved != now.handed_out + now.expired + len(stock.unused):
                ends = f"{now.handed_out} taken, {now.expired} too old, {len(stock.unused)} left"
                yield f"{name}: {solved} solved; {ends}"
            if len(taken) != now.handed_out or len({solution.token for solution in taken}) != len(taken):
                yield f"{name}: {now.handed_out} handed out, {len(taken)} taken, not all different"
            if now.under_way or now.waiting:
                yield f"{name}: {now.under_way} under way and {now.waiting} waiting after the end"
            yield from _too_old(books, takers)


def _too_old(books: Books, takers: list[Call]) -> Complaints:
    if any(isinstance(fault, Amend | Json | Reword) for fault, _ in books.plan.faults):
        return  # a service that says "pending" of a task that is solved
    for call in takers:
        owner = None if call.solution is None else books.owner(call.solution.raw)
        if owner is not None and call.ended is not None and call.ended - owner.ready_at > LIFETIME * 2 / 3 + EPSILON:
            yield f"{call.work.name}: took a token of {call.ended - owner.ready_at:.3f} s"


# --- how requests leave -----------------------------------------------------------------------------------------------


def windows_hold(books: Books) -> Complaints:
    """In no window do more requests leave than the limit, from one client, or from all that share a limiter."""
    for number, requests in books.by_limiter.items():
        worst = most_in_window([request.at for request in requests], books.plan.window)
        if worst > books.plan.limit:
            yield f"limiter {number}: {worst} requests left within {books.plan.window} s, of {books.plan.limit} allowed"


def polls_are_spaced(books: Books) -> Complaints:
    """No process asks for a task more often than every `interval` seconds."""
    for number, requests in books.by_process.items():
        latest: dict[str, Request] = {}
        for request in requests:
            if request.path != "/getTaskResult" or request.task_id is None:
                continue
            asked = repr(request.task_id)  # 12 and "12" are two tasks for the service
            last = latest.get(asked)
            latest[asked] = request
            if last is not None and request.at - last.at < books.plan.polling.interval - EPSILON:
                gap = f"{request.at - last.at:.3f} s (requests {last.number}, {request.number})"
                yield f"process {number} asked for {request.task_id} after {gap}"


def pauses_hold(books: Books) -> Complaints:
    """After a refusal nothing leaves before the pause is over."""
    for number, requests in books.by_limiter.items():
        refusals = [r.heard_at for r in requests if r.status == 429 and r.heard_at is not None]
        for request in requests:
            early = request.paused_until is not None and request.at < request.paused_until - EPSILON
            # What had left already, in the very moment in which the refusal was read, could not be stopped.
            if early and not any(abs(at - request.at) < EPSILON for at in refusals):
                yield f"limiter {number}: request {request.number} left before the end of a pause"


# --- how calls end ----------------------------------------------------------------------------------------------------


def everything_ends(books: Books) -> Complaints:
    """Every call has an end, in time."""
    for call in books.world.calls:
        if call.ended is None:
            yield f"{call.work.name}: has no end"
            continue
        took = call.ended - call.started
        most = call.work.timeout + books.plan.cancel_grace + CLOSING + EPSILON
        if took > most and call.work.how != "many":
            yield f"{call.work.name}: took {took:.3f} s with a timeout of {call.work.timeout:.3f} s ({call.ending})"


def giving_up_is_quick(books: Books) -> Complaints:
    """A user who gives up is free at once, or after the grace if a submit was under way; nothing is sent any more."""
    for call in books.world.calls:
        if call.cancelled_at is None or call.ended is None or call.ending not in ("cancelled", "dropped"):
            continue
        submits = [r for r in books.submits[call.work.name] if _of(r, call)]
        under_way = books.plan.injected or any(r.at <= call.cancelled_at + EPSILON for r in submits)
        most = EPSILON + (books.plan.cancel_grace + CLOSING if under_way else 0.0)
        took = call.ended - call.cancelled_at
        if took > most and call.work.how != "many":
            yield f"{call.work.name}: went on for {took:.3f} s after the user had given up"
        late = [r.number for r in submits if r.call is call and r.at > call.cancelled_at + EPSILON]
        if late and call.work.how not in ("many", "prefetch"):
            yield f"{call.work.name}: sent {late} after the user had given up"


def faults_end_no_wait(books: Books) -> Complaints:
    """A paid task is waited for through whatever faults, until the deadline, and errors say what is the matter."""
    ends = (UnsolvableError, SolveTimeoutError, TaskNotFoundError, SubmitUncertainError)
    early = (*ends, AccountError, NoProviderError, ServiceError, BudgetExceededError, InvalidTaskError)
    for call in books.world.calls:
        error = call.error
        if isinstance(error, JournalError) and "keeps neither" in str(error):
            continue  # an answer that came at once and without an id, which the journal was not to store
        if isinstance(error, JournalError) and books.plan.journal_vanishes_at is not None:
            sent = [r.number for r in books.submits[call.work.name] if r.call is call]
            if sent and call.work.attempts == 1 and books.plan.on_uncertain == "raise":
                yield f"{call.work.name}: {sent} left though the journal could not be written: {error!r}"
        elif isinstance(error, APIConnectionError | ProtocolError | RateLimitedError | JournalError):
            yield f"{call.work.name}: ended with {error!r}"
        elif (
            isinstance(error, TaskNotFoundError) and books.plan.retention is None and str(error.task_id) in books.tasks
        ):
            yield f"{call.work.name}: {error!r}, but the service knows it"
        elif error is not None and not isinstance(error, ends if _waited(books, error) else early):
            yield f"{call.work.name}: ended with {error!r}"


def _waited(books: Books, error: UCaptchaError) -> bool:
    """Whether an error ended the wait for a task that the service had."""
    return str(error.task_id) in books.tasks


def fresh_work_is_done(books: Books) -> Complaints:
    """After the calm everything works again."""
    for work in books.world.fresh:
        for call in books.calls[work.name]:
            failed = isinstance(call.error, UnsolvableError) and books.plan.failure_rate > 0
            gone = isinstance(call.error, TaskNotFoundError) and books.plan.retention is not None
            # The pool of an injected client does not say how old a connection is.
            stale = isinstance(call.error, SubmitUncertainError) and books.plan.injected
            poor = isinstance(call.error, BudgetExceededError) or _refused_late(books, call)
            poor = poor or (isinstance(call.error, UnsupportedTaskError) and _lately_renamed(books, call))
            if call.ending != "solved" and not failed and not gone and not poor and not stale:
                yield f"{work.name}: {call.ending} {call.error!r}"
        if not books.calls[work.name]:
            yield f"{work.name}: was never begun"


def _refused_late(books: Books, call: Call) -> bool:
    """Whether the account was refused by an answer that was still on its way when the bill was paid."""
    late = (r for r in books.by_process[call.process] if (r.heard_at or 0.0) >= books.world.calm_at)
    return isinstance(call.error, AccountError) and any(r.status in (401, 402, 403) for r in late)


def _lately_renamed(books: Books, call: Call) -> bool:
    """Whether the service has changed its names in the middle of a search, so that it refused all."""
    at = math.inf if books.plan.renamed is None else books.plan.renamed[0] + books.world.began_at
    return at <= call.started and any(
        r.code == NEXT_NAME and at <= (r.heard_at or 0.0) and (r.heard_at or 0.0) > call.started - REFUSED_NAMES
        for r in books.requests
    )


def what_was_left_is_taken_up(books: Books) -> Complaints:
    """A task that was left behind can be waited for again, by its id or through the journal."""
    for task_id, error in books.world.taken_up.items():
        task = books.tasks.get(task_id)
        forgotten = isinstance(error, TaskNotFoundError) and books.plan.retention is not None
        failed = isinstance(error, UnsolvableError) and task is not None and task.error_code is not None
        if error is not None and not forgotten and not failed:
            yield f"{task_id}: could not be taken up: {error!r}"
    for entry in books.world.entries:
        if entry.state in (State.INTENT, State.ACCEPTED):
            work = books.world.rows.get(entry.submit_id)
            yield f"{work}: the journal's row {entry.submit_id[:6]} is still {entry.state}"


# --- what is left over ------------------------------------------------------------------------------------------------


def nothing_held(books: Books) -> Complaints:
    """At the end of a process all its counters are zero and all its connections closed."""
    for process in books.world.processes:
        if process.statistics is not None:
            yield from (f"process {process.number} still holds: {text}" for text in _held(process))
    for connection in books.world.network.connections:
        # The pool of an injected client now and then forgets one of its own.
        if not connection.closed and not books.plan.injected:
            yield f"connection {connection.number} of process {connection.owner.number} was left open"
    if books.world.left_alive > 0:
        yield f"{books.world.left_alive} tasks of the event loop were left alive"


def _held(process: Process) -> Iterator[str]:
    now = process.statistics
    assert now is not None
    counters = {
        "in flight": now.in_flight,
        "queued": now.queued,
        "waiting": now.waiting,
    }
    if process.world.limiter is None or process is process.world.processes[-1]:
        counters |= {"limiter waiting": now.rate_limit.waiting, "limiter in transit": now.rate_limit.in_transit}
    if now.connections is not None:
        counters |= {"connections busy": now.connections.busy, "connections waiting": now.connections.waiting}
    if process.budget is not None:
        counters["reserved"] = int(process.budget.reserved * 1_000_000)
    yield from (f"{name} {count}" for name, count in counters.items() if count)


def counters_agree(books: Books) -> Complaints:
    """The client's own counts are those of the network and of its events."""
    for process in books.world.processes:
        now = process.statistics
        if now is None:
            continue
        solved = sum(number == process.number for number, _, _ in books.solved)
        given_up = sum(isinstance(h.event, Cancelled) and h.process == process.number for h in books.world.heard)
        if (now.solved, now.cancelled) != (solved, given_up):
            yield f"process {process.number} counts {now.solved}, {now.cancelled}; told {solved}, {given_up}"


RULES: tuple[Callable[[Books], Complaints], ...] = (
    nothing_lost,
    nothing_twice,
    nothing_sent_again,
    no_false_alarms,
    money_agrees,
    money_is_explained,
    solved_is_solved,
    claims_hold,
    budgets_hold,
    stocks_agree,
    windows_hold,
    polls_are_spaced,
    pauses_hold,
    everything_ends,
    giving_up_is_quick,
    faults_end_no_wait,
    fresh_work_is_done,
    what_was_left_is_taken_up,
    nothing_held,
    counters_agree,
)
