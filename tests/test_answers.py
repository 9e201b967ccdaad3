"""Answers as real services, gateways and proxies send them: envelopes, ids, codes, words, encodings."""

from __future__ import annotations

import codecs
import contextlib
import json
from random import Random
from typing import Any

import anyio
import attrs
import httpx
import pytest

from tests.helpers import KEY, TURNSTILE, V2, at_rest
from tests.own_service import PENDING, TOKEN, OwnService, Said, accepted, at, page, ready, refused
from ucaptcha_async import (
    AccountError,
    AddressRefusedError,
    AuthenticationError,
    InsufficientBalanceError,
    InvalidTaskError,
    MemoryJournal,
    NoProviderError,
    Polling,
    ProtocolError,
    Proxy,
    ProxyError,
    RateLimitedError,
    RateLimiter,
    RecaptchaV2,
    ServiceError,
    SolveTimeoutError,
    SubmitUncertainError,
    Task,
    TaskNotFoundError,
    TokenSolution,
    UCaptchaError,
    UnsolvableError,
    UnsupportedTaskError,
)
from ucaptcha_async.events import (
    Event,
    PollRefused,
    Retried,
    Solved,
    SubmitsHeld,
    SubmitsResumed,
    Submitted,
    Throttled,
)
from ucaptcha_async.journal import State
from ucaptcha_async.testing import LocalService
from ucaptcha_async.transport.error_codes import CODES, SOURCES, class_for, is_pending

pytestmark = pytest.mark.virtual_time


# --- an answer that refuses and names a task --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 402, 429, 500])
@pytest.mark.parametrize(
    "body",
    [
        {"errorId": 1, "errorCode": "ERROR_NEW_WORD"},
        {"errorId": 1, "errorCode": "ERROR_ZERO_BALANCE"},
        {"errorId": 1, "errorCode": "ERROR_NO_SLOT_AVAILABLE"},
        {"errorId": 1, "errorCode": "ERROR_CAPTCHA_UNSOLVABLE"},
        {"errorId": 12},
        {"errorId": "ERROR"},
        {"errorId": True, "errorCode": ""},
    ],
)
async def test_a_refusal_that_names_a_task(body: dict[str, Any], status: int) -> None:
    """It contradicts itself: nobody knows whether it was charged; the id is in the error, and it opens no breaker."""
    service = OwnService().says("createTask", Said({**body, "taskId": "t-1"}, status))
    async with at(service) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(TURNSTILE, attempts=3)
        at_rest(client)
        assert (await client.solve(TURNSTILE)).token == TOKEN

    assert (caught.value.task_id, caught.value.charged) == ("t-1", None)
    assert len(service.submits) == 2


@pytest.mark.parametrize("field", ["task_id", "taskid", "TaskId", "taskID", "captchaId"])
async def test_another_spelling_of_the_field(field: str) -> None:
    """It names a task as well as the usual one: in a refusal, and in an answer that accepts it."""
    service = OwnService().says("createTask", refused("ERROR_NEW_WORD", **{field: "t-1"}))
    service.says("createTask", Said({"errorId": 0, "taskId": None, field: "t-2"}))
    async with at(service) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(TURNSTILE)
        solution = await client.solve(TURNSTILE)

    assert (caught.value.task_id, caught.value.charged) == ("t-1", None)
    assert solution.task_id == "t-2"


@pytest.mark.parametrize("task_id", [True, ["t-1"], {"id": 1}])
async def test_a_refusal_that_names_a_task_in_an_unknown_form(task_id: Any) -> None:
    """It contradicts itself, too."""
    service = OwnService().says("createTask", refused("ERROR_NEW_WORD", taskId=task_id))
    async with at(service) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(TURNSTILE)

    assert caught.value.charged is None


@pytest.mark.parametrize("task_id", [0, "0", "", " ", False, None, [], {}, 0.0])
async def test_a_refusal_that_names_no_task(task_id: Any) -> None:
    """These are no ids: the refusal is a plain one."""
    journal = MemoryJournal()
    service = OwnService().says("createTask", refused("ERROR_NEW_WORD", taskId=task_id))
    async with at(service, journal=journal) as client:
        with pytest.raises(ServiceError) as caught:
            await client.solve(TURNSTILE, key="work")
        (row,) = [entry async for entry in journal.entries()]

    assert (caught.value.task_id, caught.value.charged) == (None, False)
    assert (row.state, row.task_id) == (State.REFUSED, None)


@pytest.mark.parametrize(
    "error_id", ["0", "", None, False, "SUCCESS", "success", " 0 ", 0.0, "ok", "none", "null", "false", "0.0"]
)
async def test_loose_error_ids_mean_no_error(error_id: Any) -> None:
    """On a submit, a poll, a balance and feedback."""
    service = OwnService().says("createTask", Said({"errorId": error_id, "taskId": "t-1"}))
    service.says("getTaskResult", Said({"errorId": error_id, "status": "processing"}))
    service.says("getTaskResult", ready(errorId=error_id, errorCode="", errorDescription=""))
    service.says("getBalance", Said({"errorId": error_id, "balance": "1.50"}))
    service.says("feedbackTask", Said({"errorId": error_id, "message": "thanks"}))
    async with at(service) as client:
        solution = await client.solve(TURNSTILE)
        balance = await client.get_balance()
        told = await client.feedback("t-1", accepted=True, message="fine")

    assert (solution.task_id, solution.polls, str(balance), told) == ("t-1", 2, "1.50", "thanks")
    assert len(service.submits) == 1


@pytest.mark.parametrize("error_id", ["1", 1, -1, 21, "ERROR", "FAILED", True])
async def test_an_error_id_without_a_code_proves_nothing(error_id: Any) -> None:
    """Neither on a submit nor on a poll."""
    service = OwnService().says("createTask", Said({"errorId": error_id}), accepted("t-2"))
    service.says("getTaskResult", Said({"errorId": error_id, "errorCode": ""}))
    async with at(service) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(TURNSTILE)
        solution = await client.solve(TURNSTILE)

    assert caught.value.charged is None
    assert (solution.task_id, solution.polls) == ("t-2", 2)


# --- no body of the protocol, no proof --------------------------------------------------------------------------------

FOREIGN = [
    *(page(status) for status in (200, 301, 302, 307, 400, 401, 403, 404, 405, 407, 410, 413, 422, 451, 500, 503, 511)),
    *(Said({"message": "no"}, status) for status in (200, 400, 401, 404, 500)),
    Said({"detail": "Not Found"}, 404),
    Said({"detail": [{"msg": "field required"}]}, 422),
    Said({"error": {"code": 403, "message": "forbidden"}}, 403),
    Said({"errorCode": ""}, 400),
    Said({"errorCode": 17}, 400),
    Said({"errorCode": "ERROR_NEW_WORD"}),
    Said([], 400),
    Said("ERROR_ZERO_BALANCE", 400),
    Said(b"ERROR_ZERO_BALANCE", 400),
    Said(b"", 204),
    Said(b"null"),
]


@pytest.mark.parametrize("said", FOREIGN, ids=lambda said: f"{said.status}")
async def test_no_body_of_the_protocol_is_no_refusal(said: Said) -> None:
    """A submit that is answered by something else is of unknown fate, and is not made again."""
    journal = MemoryJournal()
    service = OwnService().says("createTask", said)
    async with at(service, journal=journal) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(TURNSTILE, attempts=3, key="work")
        with pytest.raises(SubmitUncertainError):
            await client.solve(TURNSTILE, key="work")
        at_rest(client)
        (row,) = [entry async for entry in journal.entries()]

    assert (caught.value.charged, row.state, len(service.submits)) == (None, State.UNCERTAIN, 1)


@pytest.mark.parametrize("said", FOREIGN, ids=lambda said: f"{said.status}")
async def test_no_body_of_the_protocol_ends_no_wait(said: Said) -> None:
    """A poll that is answered by something else is a late poll."""
    events: list[Event] = []
    service = OwnService().says("getTaskResult", said, said, ready())
    async with at(service, on_event=events.append) as client:
        solution = await client.solve(TURNSTILE)
        at_rest(client)

    assert solution.polls == 3
    assert [event.reason for event in events if isinstance(event, Retried)] != []


@pytest.mark.parametrize(
    "said",
    [
        page(429),
        Said({"message": "slow down"}, 429),
        Said({"errorId": 1}, 429),
        Said({"errorId": 1, "taskId": 0}, 429),
        Said(b"", 429),
        refused("ERROR_NEW_WORD", 429),
        refused("INTERNAL_ERROR", 429),
        refused("ERROR_TOO_MUCH_REQUESTS", 429),
        Said({"errorCode": "ERROR_NEW_WORD"}, 429),
    ],
)
async def test_429_is_a_refusal_whoever_sends_it(said: Said) -> None:
    """If it names no task: it is waited out, on a submit and on a poll."""
    events: list[Event] = []
    service = OwnService().says("createTask", said, said).says("getTaskResult", said)
    async with at(service, on_event=events.append) as client:
        solution = await client.solve(TURNSTILE)

    assert (solution.task_id, len(service.submits)) == ("task-3", 3)
    assert [event.endpoint for event in events if isinstance(event, Throttled)] == [
        "createTask",
        "createTask",
        "getTaskResult",
    ]


@pytest.mark.parametrize(
    ("said", "uncertain"),
    [
        (refused("ERROR_BAD_PARAMETERS", 400), False),
        (refused("ERROR_BAD_PARAMETERS", 200), False),
        (Said({"errorCode": "ERROR_BAD_PARAMETERS"}, 400), False),
        (Said({"errorId": 0, "errorCode": "ERROR_BAD_PARAMETERS"}, 400), False),
        (refused("ERROR_NEW_WORD", 404), False),
        (refused(" ", 400), True),
        (refused("ERROR_BAD_PARAMETERS", 500), True),
        (refused("ERROR_NEW_WORD", 502), True),
        (refused("ERROR_NEW_BUSY", 503), True),
        (refused("INTERNAL_ERROR", 200), True),
        (refused("INTERNAL_ERROR", 400), True),
        (refused("ERROR_INTERNAL_SERVER_ERROR", 200), True),
        (refused("ERROR_SETTLEMENT_FAILED", 402), True),
        (refused("internal_error", 400), True),
        (refused("INTERNAL_SERVER_ERROR", 200), True),
        (refused("SERVER_ERROR", 400), True),
        (refused("ERROR_DATABASE", 200), True),
        (refused("UNHANDLED_EXCEPTION", 400), True),
        (refused("ERROR_SERVER_ADDRESS", 400), False),
        (refused("ERROR_UNKNOWN", 400), False),
    ],
)
async def test_what_proves_a_refusal(said: Said, uncertain: bool) -> None:
    """A code in the protocol's own error body; not one that says that the service failed, nor one with HTTP 5xx."""
    service = OwnService().says("createTask", said)
    async with at(service) as client:
        with pytest.raises(UCaptchaError) as caught:
            await client.solve(TURNSTILE)

    assert isinstance(caught.value, SubmitUncertainError) == uncertain
    assert (caught.value.charged, len(service.submits)) == (None if uncertain else False, 1)


@pytest.mark.parametrize("status", [200, 400, 500, 503])
@pytest.mark.parametrize(
    "code",
    [
        "ERROR_NO_SLOT_AVAILABLE",
        "NO_PROVIDERS_AVAILABLE",
        "ERROR_SERVICE_UNAVALIABLE",
        "ERROR_NO_NODES_AVAILABLE",
        "ERROR_ALL_WORKERS_FILTERED",
        "MAX_USER_TURN",
        "ERROR_RATE_LIMIT",
    ],
)
async def test_refused_for_now(code: str, status: int) -> None:
    """A listed code of this kind is a refusal at any HTTP status, and the task is submitted again."""
    service = OwnService().says("createTask", refused(code, status), refused(code, status))
    async with at(service) as client:
        solution = await client.solve(TURNSTILE)

    assert (solution.task_id, len(service.submits)) == ("task-3", 3)


# --- a portal in between ----------------------------------------------------------------------------------------------


@attrs.define
class Portal:
    """Takes each submit while it is not `shut`, and then says something else; it counts both.

    Attributes:
        after: Seconds until it says something else.
        most: The most submits that it had at once while it was shut.
    """

    after: float = 0.2
    open: Said | None = None
    shut: bool = False
    pages: int = 0
    most: int = 0
    _now: int = 0
    _taken: int = 0

    async def __call__(self, body: dict[str, Any]) -> Said:
        if not self.shut:
            self._taken += 1
            return self.open or accepted(f"t-{self._taken}")
        self.pages += 1
        self._now += 1
        self.most = max(self.most, self._now)
        await anyio.sleep(self.after)
        self._now -= 1
        return page(200)


async def test_submits_that_wait_for_their_turn_are_held_as_well() -> None:
    """Passed before the portal came, and not sent yet: they do not leave."""
    portal = Portal()
    service = OwnService().says("createTask", always=portal)
    async with at(service, rate_limit=RateLimiter(20, 1.0), timeout=60) as client:
        await client.solve(TURNSTILE)
        portal.shut = True
        outcomes = await client.gather([TURNSTILE] * 300)
        at_rest(client)

    assert portal.pages <= 12
    assert sum(isinstance(outcome.error, SolveTimeoutError) for outcome in outcomes) == 300 - portal.pages
    assert all(outcome.error.charged is False for outcome in outcomes if isinstance(outcome.error, SolveTimeoutError))


async def test_submits_that_are_tried_again_are_held_as_well() -> None:
    """A portal comes while a crowd is refused for now: those that it meets at once are the last."""
    portal = Portal()
    service = OwnService().says("createTask", always=portal)
    async with at(service, timeout=60) as client:
        client._session.rng = Random(1)  # how many are on their way at a moment is a matter of chance
        await client.solve(TURNSTILE)
        portal.open = refused("ERROR_NO_SLOT_AVAILABLE")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.gather, [TURNSTILE, Task("AnyType", field="value")] * 150)
            await anyio.sleep(5)
            portal.shut = True
        at_rest(client)

    assert portal.most <= 40
    assert portal.pages - portal.most <= 6


async def test_who_gives_up_lets_no_other_go() -> None:
    """A submit that is cancelled in the line says nothing of the one that is out."""
    portal = Portal(after=10, shut=True)
    service = OwnService().says("createTask", always=portal)
    async with at(service) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.gather, [TURNSTILE] * 10)
        await anyio.sleep(0.1)
        for _ in range(90):
            with anyio.move_on_after(1):
                await client.solve(TURNSTILE)
            await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()

    assert portal.pages > 3
    assert portal.most == 1


async def test_a_slow_service_holds_nobody_up_for_longer() -> None:
    """The first answer lets all go."""
    service = OwnService().says("createTask", Said({"errorId": 0, "taskId": "first"}, after=3.0))
    async with at(service, polling=Polling(first=1)) as client:
        start = anyio.current_time()
        outcomes = await client.gather([TURNSTILE] * 100)
        took = anyio.current_time() - start

    assert all(outcome.ok for outcome in outcomes)
    assert took < 5


async def test_a_refused_account_recalls_what_has_not_left() -> None:
    """The balance runs out while a crowd waits for its turn: few of them meet the refusal."""
    portal = Portal()
    service = OwnService().says("createTask", always=portal)
    async with at(service, rate_limit=RateLimiter(20, 1.0)) as client:
        await client.solve(TURNSTILE)
        portal.open = refused("ERROR_ZERO_BALANCE", 402)
        outcomes = await client.gather([TURNSTILE] * 300)

    assert {type(outcome.error) for outcome in outcomes} == {InsufficientBalanceError}
    assert {outcome.error.charged for outcome in outcomes if outcome.error} == {False}
    assert len(service.submits) < 10


@pytest.mark.parametrize("after", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("status", [200, 302, 401, 511])
async def test_a_portal_does_not_take_all_submits(status: int, after: float, caplog: pytest.LogCaptureFixture) -> None:
    """Until the service has spoken, one submit at a time goes out; the others wait, and go once it has."""
    events: list[Event] = []
    most = now = taken = 0

    async def portal(body: dict[str, Any]) -> Said:
        nonlocal most, now, taken
        if anyio.current_time() >= gone:
            taken += 1
            return accepted(f"t-{taken}")
        now += 1
        most = max(most, now)
        await anyio.sleep(after)
        now -= 1
        return page(status)

    service = OwnService().says("createTask", always=portal)
    async with at(service, on_event=events.append) as client:
        start = anyio.current_time()
        gone = start + 90
        outcomes = await client.gather([TURNSTILE] * 500)
        at_rest(client)

    uncertain = [outcome for outcome in outcomes if not outcome.ok]
    assert 1 <= len(uncertain) <= 12
    assert most == 1
    assert {type(outcome.error) for outcome in uncertain} == {SubmitUncertainError}
    assert len(service.submits) == 500
    assert [type(event) for event in events if isinstance(event, SubmitsHeld | SubmitsResumed)] == [
        SubmitsHeld,
        SubmitsResumed,
    ]
    assert sum("one submit at a time" in record.message for record in caplog.records) == 1


async def test_submits_are_held_again_after_three_foreign_answers() -> None:
    """One or two pages do not slow anybody down; the third in a row does."""
    events: list[Event] = []
    service = OwnService().says("createTask", accepted("a"), page(502), page(502), accepted("b"), page(502), page(502))
    service.says("createTask", always=page(502))

    def held() -> int:
        return sum(isinstance(event, SubmitsHeld) for event in events)

    async with at(service, on_event=events.append) as client:
        for solved in (True, False, False, True, False, False):
            with contextlib.nullcontext() if solved else pytest.raises(SubmitUncertainError):
                await client.solve(TURNSTILE)
        assert held() == 0
        with pytest.raises(SubmitUncertainError):
            await client.solve(TURNSTILE)
        assert held() == 1
        with anyio.move_on_after(30):
            await client.gather([TURNSTILE] * 200)
        assert held() == 1

    assert 3 <= len(service.submits) - 7 <= 6


async def test_a_foreign_429_is_not_the_service_speaking() -> None:
    """A portal that says 429 between its pages lets no crowd of submits through."""
    service = OwnService().says("createTask", *[page(200), page(429)] * 50)
    async with at(service, timeout=60) as client:
        await client.gather([TURNSTILE] * 100)

    assert len(service.submits) < 40


# --- nothing but its own end ends a wait ------------------------------------------------------------------------------

ON_A_POLL = [
    ("ERROR_KEY_DOES_NOT_EXIST", 401),
    ("ERROR_ZERO_BALANCE", 402),
    ("ERROR_IP_BANNED", 200),
    ("ERROR_NEW_WORD", 400),
    ("ERROR_NEW_KEY_BLOCKED", 200),
    ("ERROR_BAD_PARAMETERS", 400),
    ("ERROR_PROXY_FORMAT", 200),
    ("TASK_NOT_SUPPORTED", 400),
]


@pytest.mark.parametrize(("code", "status"), ON_A_POLL)
async def test_a_code_that_is_not_about_this_task_ends_no_wait(
    code: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a late poll, told once by event and WARNING, and does not stop other submits."""
    events: list[Event] = []
    service = OwnService().says("getTaskResult", *[refused(code, status)] * 6)
    async with at(service, on_event=events.append) as client:
        first = await client.solve(TURNSTILE)
        second = await client.solve(TURNSTILE)

    assert (first.token, second.token, len(service.submits)) == (TOKEN, TOKEN, 2)
    told = [event for event in events if isinstance(event, PollRefused)]
    assert [event.error.error_code for event in told] == [code]
    assert sum("a poll was refused" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(("code", "status"), ON_A_POLL)
async def test_it_is_the_cause_of_the_final_timeout(code: str, status: int) -> None:
    """What was said last is shown where the time ran out, and the task counts as charged."""
    service = OwnService().says("getTaskResult", always=refused(code, status, errorDescription="so it is"))
    async with at(service) as client:
        with pytest.raises(SolveTimeoutError, match="so it is") as caught:
            await client.solve(TURNSTILE, timeout=60)
        assert client.abandoned == ("task-1",)

    assert (caught.value.task_id, caught.value.charged) == ("task-1", True)
    assert isinstance(caught.value.__cause__, UCaptchaError)
    assert caught.value.__cause__.error_code == code


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    "code", ["ERROR_CAPTCHA_SOLVE_FAILED", "ERROR_CAPTCHA_UNSOLVABLE", "ERROR_ZERO_BALANCE", "ERROR_NEW", ""]
)
async def test_status_failed_decides_first(code: str, status: int) -> None:
    """On a poll, whatever the envelope: refunded, and the next attempt is made."""
    failed = Said({"errorId": 1, "errorCode": code, "status": "failed", "taskId": "task-1"}, status)
    service = OwnService().says("getTaskResult", failed)
    async with at(service) as client:
        solution = await client.solve(TURNSTILE, attempts=2)
        service.says("getTaskResult", Said({**failed.body, "taskId": "task-3"}, status))
        with pytest.raises(UnsolvableError) as caught:
            await client.solve(TURNSTILE)

    assert (solution.task_id, len(service.submits)) == ("task-2", 3)
    assert (caught.value.charged, caught.value.error_code) == (False, code or "ERROR_CAPTCHA_UNSOLVABLE")


@pytest.mark.parametrize("word", ["failed", "FAILED", "Failed", " failed "])
async def test_failed_in_any_case(word: str) -> None:
    """The word counts, not its spelling."""
    service = OwnService().says("getTaskResult", Said({"errorId": 0, "status": word}))
    async with at(service) as client:
        with pytest.raises(UnsolvableError) as caught:
            await client.solve(TURNSTILE)

    assert caught.value.charged is False


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("code", ["", "ERROR_NEW_WORD", "CAPCHA_NOT_READY", "ERROR_WRONG_CAPTCHA_ID"])
async def test_a_solution_decides_first(code: str, status: int) -> None:
    """It is in hand: an envelope that speaks of an error does not let the task be waited for any longer."""
    body = {"errorId": 1, "errorCode": code, "status": "ready", "solution": {"token": TOKEN}}
    service = OwnService().says("getTaskResult", always=Said(body, status))
    async with at(service) as client:
        assert (await client.solve(TURNSTILE)).token == TOKEN

    assert len(service.polls) == 1


SOLVE_FAILED = [
    "ERROR_CAPTCHA_UNSOLVABLE",
    "ERROR_CAPTCHA_SOLVE_FAILED",
    "ERROR_PROXY_CONNECT_REFUSED",
    "ERROR_PROXY_CONNECT_TIMEOUT",
    "ERROR_RECAPTCHA_TIMEOUT",
    "ERROR_TASK_TIMEOUT",
    "ERROR_MAXIMUM_TIME_EXCEED",
    "CAPTCHA_UNSOLVABLE",
    "TASK_FAILED",
    "ERROR_SOLVE_TIMEOUT",
    "error_captcha_unsolvable",
]


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("code", SOLVE_FAILED)
async def test_a_code_that_says_that_this_solve_failed(code: str, status: int) -> None:
    """On a poll and on a submit: the solve has failed, a further attempt is made, and of the charge nobody knows."""
    service = OwnService().says("getTaskResult", refused(code, status)).says("createTask", accepted("a"))
    service.says("createTask", refused(code, status), accepted("c"))
    async with at(service) as client:
        solution = await client.solve(TURNSTILE, attempts=3)
        service.says("createTask", refused(code, status))
        with pytest.raises(UnsolvableError) as caught:
            await client.solve(TURNSTILE)
        at_rest(client)

    assert (solution.task_id, len(service.submits)) == ("c", 4)
    assert (caught.value.charged, caught.value.error_code) == (None, code)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ERROR_WRONG_CAPTCHA_ID", 404),
        ("ERROR_WRONG_CAPTCHA_ID", 200),
        ("ERROR_TASK_NOT_FOUND", 200),
        ("ERROR_NO_SUCH_CAPCHA_ID", 200),
        ("WRONG_CAPTCHA_ID", 200),
        ("TASKID_NOT_FOUND", 200),
    ],
)
async def test_not_found_ends_the_wait(code: str, status: int) -> None:
    """In the protocol's own body, and nowhere else."""
    service = OwnService().says("getTaskResult", refused(code, status))
    async with at(service) as client:
        with pytest.raises(TaskNotFoundError) as caught:
            await client.solve(TURNSTILE, attempts=3)

    assert (caught.value.task_id, caught.value.charged, len(service.submits)) == ("task-1", True, 1)


@pytest.mark.parametrize(
    "said",
    [
        Said({"errorId": 0, "status": "failed", "errorCode": "ERROR_CAPTCHA_UNSOLVABLE", "taskId": "other"}),
        refused("ERROR_CAPTCHA_UNSOLVABLE", taskId="other"),
        refused("ERROR_WRONG_CAPTCHA_ID", 404, taskId="other"),
    ],
)
async def test_the_end_of_another_task(said: Said) -> None:
    """What an answer says that names another task is nothing to the one that was asked for: the poll is late."""
    service = OwnService().says("getTaskResult", said)
    async with at(service) as client:
        solution = await client.solve(TURNSTILE)

    assert (solution.token, len(service.submits), len(service.polls)) == (TOKEN, 1, 2)


# --- words for the state of a task ------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["ready", "READY", "Ready", " ready", "completed", "Completed", "success", "SUCCESS"])
async def test_ready_in_other_words(word: str) -> None:
    """On a poll, and in the answer of `createTask`."""
    service = OwnService().says("createTask", accepted("t-1"), Said({**ready(status=word).body, "taskId": "t-2"}))
    service.says("getTaskResult", Said({"status": "Idle"}), ready(status=word))
    async with at(service) as client:
        polled = await client.solve(TURNSTILE)
        at_once = await client.solve(TURNSTILE)

    assert (polled.token, at_once.token) == (TOKEN, TOKEN)
    assert (at_once.task_id, at_once.polls, len(service.submits)) == ("t-2", 0, 2)


@pytest.mark.parametrize("word", ["completed", "success", "SUCCESS", "solving", "PROCESSING", "queued", "error"])
async def test_a_word_without_a_solution_is_no_end(word: str) -> None:
    """`success` says only that the question was understood, as long as there is no solution."""
    service = OwnService().says("createTask", accepted("t-1", status=word))
    service.says("getTaskResult", Said({"errorId": 0, "status": word}), Said({"status": word, "solution": {}}))
    async with at(service) as client:
        solution = await client.solve(TURNSTILE)

    assert (solution.task_id, solution.polls) == ("t-1", 3)


@pytest.mark.parametrize(
    "code", ["CAPCHA_NOT_READY", "CAPTCHA_NOT_READY", "ERROR_CAPTCHA_NOT_READY", "TASK_NOT_READY", "not_ready_yet"]
)
@pytest.mark.parametrize("status", [200, 400])
async def test_not_yet(code: str, status: int) -> None:
    """A code that means "not yet" is pending, and no fault."""
    events: list[Event] = []
    service = OwnService().says("getTaskResult", refused(code, status))
    async with at(service, on_event=events.append) as client:
        solution = await client.solve(TURNSTILE)

    assert is_pending(code)
    assert solution.polls == 2
    assert not any(isinstance(event, Retried | PollRefused) for event in events)


@pytest.mark.parametrize(
    "solution",
    [
        {"token": "", "gRecaptchaResponse": TOKEN},
        {"gRecaptchaResponse": "", "token": TOKEN},
        {"gRecaptchaResponse": None, "token": TOKEN},
        {"gRecaptchaResponse": "   ", "token": TOKEN},
    ],
)
async def test_an_empty_token_beside_a_filled_one(solution: dict[str, Any]) -> None:
    """The filled one counts."""
    service = OwnService().says("getTaskResult", ready(solution=solution))
    async with at(service) as client:
        solved = await client.solve(V2)

    assert isinstance(solved, TokenSolution)
    assert solved.token == TOKEN


# --- ids --------------------------------------------------------------------------------------------------------------

IDS = [
    "0012",
    "12",
    12,
    1234567890123456789,
    12345678901234567890123,
    "1234567890123456789",
    -7,
    "a b/ü",
    "00",
    "1e5",
    123.0,
    7.6e19,
    12.5,
]


@pytest.mark.parametrize("task_id", IDS, ids=repr)
async def test_an_id_goes_back_as_it_came(task_id: Any) -> None:
    """Type and digits, in polls, in feedback, from the journal and in errors; elsewhere it is text."""
    events: list[Event] = []
    journal = MemoryJournal()
    service = OwnService().says("createTask", always=accepted(task_id)).says("getTaskResult", PENDING)
    async with at(service, journal=journal, on_event=events.append) as client:
        solution = await client.solve(TURNSTILE, key="one")
        await solution.accepted()
        await client.feedback(solution.task_id or "", accepted=True, message="fine")
        service.says("getTaskResult", *[page(502)] * 20)
        with pytest.raises(SolveTimeoutError) as caught:
            await client.solve(TURNSTILE, key="two", timeout=40)
        left = client.abandoned
    async with at(service, journal=journal) as client:
        async with client.recover() as outcomes:
            (outcome,) = [outcome async for outcome in outcomes]
        assert (await client.job(caught.value.task_id or "").wait()).token == TOKEN

    sent = [wire for _, wire in service.polls] + service.feedbacks
    assert {(type(wire), wire) for wire in sent} == {(type(task_id), task_id)}
    assert solution.task_id == caught.value.task_id == outcome.solution.task_id == left[0]
    named = {event.task_id for event in events if isinstance(event, Submitted | Solved)}
    assert named == {left[0]}
    assert left[0].upper() == str(task_id).upper()


async def test_bare_digits_given_to_job() -> None:
    """They go as text, then once as a number if that is not found; with a leading zero they are text only."""
    by_number = OwnService()

    async def numbers_only(body: dict[str, Any]) -> Said:
        return ready() if isinstance(body["taskId"], int) else refused("ERROR_WRONG_CAPTCHA_ID", 404)

    by_number.says("getTaskResult", always=numbers_only)
    async with at(by_number) as client:
        solution = await client.job("7000000001").wait()
        await solution.accepted()
        with pytest.raises(TaskNotFoundError):
            await client.job("0012").wait()

    assert [wire for _, wire in by_number.polls] == ["7000000001", 7000000001, "0012"]
    assert by_number.feedbacks == [7000000001]


async def test_digits_that_nobody_knows_are_asked_for_twice() -> None:
    """Once as text, once as a number; the second comes no sooner than the interval allows."""
    service = OwnService().says("getTaskResult", always=refused("ERROR_TASK_NOT_FOUND"))
    async with at(service) as client:
        with pytest.raises(TaskNotFoundError) as caught:
            await client.job("42").wait()

    assert [wire for _, wire in service.polls] == ["42", 42]
    assert service.polls[1][0] - service.polls[0][0] >= 5 - 1e-9
    assert (caught.value.task_id, caught.value.charged) == ("42", None)


async def test_a_page_says_nothing_of_an_id() -> None:
    """A gateway's 404 does not make the client spell an id otherwise."""
    service = OwnService().says("getTaskResult", page(404), Said({"detail": "Not Found"}, 404))
    async with at(service) as client:
        await client.job("42").wait()

    assert [wire for _, wire in service.polls] == ["42", "42", "42"]


@pytest.mark.parametrize("field", ["cost", "solveTime", "errorDescription", "other"])
async def test_a_number_of_thousands_of_digits(field: str) -> None:
    """Python reads none of them; the id beside it is not lost."""
    said = Said(b'{"errorId":0,"%b":%b,"taskId":"t-1"}' % (field.encode(), b"9" * 5000))
    service = OwnService().says("createTask", said)
    async with at(service) as client:
        assert (await client.solve(TURNSTILE)).task_id == "t-1"


@pytest.mark.parametrize("digits", [b"9" * 5000, b"1e400", b"-1.5E-200"])
async def test_an_id_of_absurd_size(digits: bytes) -> None:
    """Nobody can spell it back, and nothing breaks over it: it is text, or none."""
    service = OwnService().says("createTask", Said(b'{"errorId":0,"taskId":%b}' % digits))
    async with at(service) as client:
        with contextlib.suppress(SubmitUncertainError):
            await client.solve(TURNSTILE)

    assert {wire for _, wire in service.polls} <= {digits.decode()}


# --- encodings --------------------------------------------------------------------------------------------------------

ENCODINGS = {
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16 with a mark": lambda text: text.encode("utf-16"),
    "UTF-16 little": lambda text: text.encode("utf-16-le"),
    "UTF-16 big": lambda text: text.encode("utf-16-be"),
    "UTF-16 big with a mark": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "white space around": lambda text: f"\r\n  {text}\n\n".encode(),
    "broken UTF-8": lambda text: text.replace("MARK", "\udce9\udcff").encode("utf-8", "surrogateescape"),
    "Latin-1": lambda text: text.replace("MARK", "é").encode("latin-1"),
    "control characters": lambda text: text.replace("MARK", "a\nb\tc\x01").encode(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_encodings_lose_neither_id_nor_code(encoding: str) -> None:
    """A mark, UTF-16, or a description that is no UTF-8."""

    def said(value: dict[str, Any], status: int = 200) -> Said:
        return Said(ENCODINGS[encoding](json.dumps({"errorDescription": "MARK", **value})), status)

    service = OwnService().says("createTask", said({"errorId": 0, "taskId": "t-1"}))
    service.says("createTask", said({"errorId": 1, "errorCode": "ERROR_ZERO_BALANCE"}, 402))
    service.says("getTaskResult", said({"errorId": 0, "status": "processing"}), said(ready().body))
    service.says("getTaskResult", said({"errorId": 1, "errorCode": "ERROR_CAPTCHA_UNSOLVABLE"}))
    async with at(service) as client:
        solution = await client.solve(TURNSTILE)
        with pytest.raises(UnsolvableError):
            await client.job("t-1").wait()
        with pytest.raises(InsufficientBalanceError):
            await client.solve(TURNSTILE)

    assert (solution.task_id, solution.token, solution.polls) == ("t-1", TOKEN, 2)


# --- codes ------------------------------------------------------------------------------------------------------------


def test_every_code_has_a_source() -> None:
    """One table, each code in it once."""
    assert SOURCES.keys() == CODES.keys()
    assert all(source.startswith(("U: ", "family: ")) for source in SOURCES.values())


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        ("ERROR_KEY_BANNED", AuthenticationError),
        ("ERROR_INVALID_KEY", AuthenticationError),
        ("ERROR_KEY_DENIED_ACCESS", AuthenticationError),
        ("IP_BANNED", AddressRefusedError),
        ("ERROR_SERVICE_UNAVALIABLE", NoProviderError),
        ("ERROR_NO_NODES_AVAILABLE", NoProviderError),
        ("MAX_USER_TURN", RateLimitedError),
        ("ERROR_TASK_NOT_FOUND", TaskNotFoundError),
        # Words of codes that nobody has seen.
        ("ERROR_CLIENT_KEY_UNKNOWN", AuthenticationError),
        ("API_KEY_BANNED", AuthenticationError),
        ("USER_SUSPENDED", AuthenticationError),
        ("ACCOUNT_BLOCKED", AuthenticationError),
        ("ERROR_NOT_ENOUGH_FUNDS", InsufficientBalanceError),
        ("NO_CREDITS", InsufficientBalanceError),
        ("ERROR_YOUR_IP_BLOCKED", AddressRefusedError),
        ("SERVER_BUSY", NoProviderError),
        ("ERROR_SERVER_OVERLOADED", NoProviderError),
        ("TOO_MANY_REQUESTS", RateLimitedError),
        ("ERROR_INVALID_SITEKEY", InvalidTaskError),
        ("ERROR_SITE_KEY_INVALID", InvalidTaskError),
        ("WRONG_GOOGLE_KEY", InvalidTaskError),
        ("ERROR_WEBSITE_KEY", InvalidTaskError),
        ("ERROR_DOMAIN_BLOCKED", InvalidTaskError),
        ("PAGE_BANNED", InvalidTaskError),
        ("IMAGE_BLOCKED", InvalidTaskError),
        ("ERROR_TASK_KEY_MISSING", InvalidTaskError),
        ("ERROR_INVALID_USER_AGENT", InvalidTaskError),
        ("COOKIES_BLOCKED", InvalidTaskError),
        ("ERROR_INVALID_RECAPTCHA_KEY", InvalidTaskError),
        ("CAPTCHA_TYPE_DISABLED", InvalidTaskError),
        ("ENTERPRISE_KEY_MISSING", InvalidTaskError),
        ("ERROR_PROVIDER_DISABLED", ServiceError),
        ("SERVICE_BLOCKED", ServiceError),
        ("ERROR_PROXY_BLOCKED", ProxyError),
        ("PROXY_USER_WRONG", ProxyError),
        ("PROXY_IP_BANNED", ProxyError),
        ("TASK_TYPE_NOT_SUPPORTED", UnsupportedTaskError),
        ("invalid_api_key", AuthenticationError),
        ("Key-Banned", AuthenticationError),
        ("error_zero_balance", InsufficientBalanceError),
        ("ERROR_NO_MONEY", InsufficientBalanceError),
        ("IP_NOT_WHITELISTED", AddressRefusedError),
        ("NO_SOLVERS_AVAILABLE", NoProviderError),
        ("ERROR_MAINTENANCE", NoProviderError),
        ("ERROR_NO_SUCH_TASK", TaskNotFoundError),
        ("WRONG_TASK_ID", TaskNotFoundError),
        ("ERROR_TASK_EXPIRED", TaskNotFoundError),
        ("TASK_FAILED", UnsolvableError),
        ("ERROR_RECAPTCHA_FAILED", UnsolvableError),
        ("SOLVE_FAILURE", UnsolvableError),
        ("CAPTCHA_TIMEOUT", UnsolvableError),
        # Whole words only.
        ("ERROR_MONKEY", ServiceError),
        ("ERROR_KEYBOARD_MISSING", ServiceError),
        ("ERROR_UNBLOCKED", ServiceError),
        ("BUSYBODY", ServiceError),
    ],
)
def test_what_a_code_means(code: str, cls: type[UCaptchaError]) -> None:
    """By the table, else by its words; those of proxy, page and task decide before those of key and account."""
    assert class_for(code, 200) is cls


@pytest.mark.parametrize(
    "code",
    ["ERROR_KEY_BANNED", "ERROR_INVALID_KEY", "IP_BANNED", "ERROR_KEY_DENIED_ACCESS", "ERROR_ACCOUNT_SUSPENDED"],
)
async def test_a_known_account_error_is_met_once(code: str) -> None:
    """Over HTTP 200, too: two hundred solves at once make one submit."""
    service = OwnService().says("createTask", always=Said(refused(code).body, 200, after=0.2))
    async with at(service) as client:
        outcomes = await client.gather([TURNSTILE] * 200)

    assert len(service.submits) == 1
    assert all(isinstance(outcome.error, AccountError) and outcome.error.charged is False for outcome in outcomes)


@pytest.mark.parametrize("code", ["ERROR_NEW_KEY_BANNED", "USER_SUSPENDED", "YOUR_IP_BLOCKED"])
async def test_a_guessed_account_error_must_repeat(code: str) -> None:
    """Once it is one task's own error; twice with no accepted submit between, it is the account's."""
    service = OwnService().says("createTask", refused(code), accepted("a"), refused(code), accepted("b"))
    service.says("createTask", always=refused(code))
    async with at(service) as client:
        for solved in (False, True, False, True, False, False, False):
            if solved:
                await client.solve(TURNSTILE)
            else:
                with pytest.raises(AccountError):
                    await client.solve(TURNSTILE)

    assert len(service.submits) == 6


@pytest.mark.parametrize("code", ["ERROR_NEW_KEY_BANNED", "USER_SUSPENDED", "YOUR_IP_BLOCKED"])
async def test_a_guessed_account_error_is_met_twice(code: str) -> None:
    """By two hundred solves at once of a new client."""
    service = OwnService().says("createTask", always=Said(refused(code).body, 200, after=0.2))
    async with at(service) as client:
        outcomes = await client.gather([TURNSTILE] * 200)

    assert len(service.submits) == 2
    assert all(isinstance(outcome.error, AccountError) for outcome in outcomes)


async def test_an_account_error_by_the_http_status_is_a_guess() -> None:
    """A new code with HTTP 401 in the protocol's own body."""
    service = OwnService().says("createTask", refused("ERROR_NEW", 401))
    async with at(service) as client:
        with pytest.raises(AuthenticationError):
            await client.solve(TURNSTILE)
        assert (await client.solve(TURNSTILE)).token == TOKEN


# --- words for people -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason",
    [
        {"errorDescription": "the site key is wrong"},
        {"detail": "the site key is wrong"},
        {"message": "the site key is wrong"},
        {"error": "the site key is wrong"},
        {"errorDescription": "", "message": "the site key is wrong"},
        {"errorDescription": None, "detail": None, "error": "the site key is wrong"},
        {"error": {"code": 17, "message": "the site key is wrong"}},
        {"detail": [{"loc": ["body"], "msg": "the site key is wrong"}]},
        {"errors": ["the site key is wrong"]},
    ],
)
async def test_the_reason_is_shown(reason: dict[str, Any]) -> None:
    """`detail`, `message` and `error` as well as `errorDescription`: by the protocol, a gateway, and a failed task."""
    service = OwnService().says("createTask", refused("ERROR_BAD_PARAMETERS", 400, **reason), Said(reason, 403))
    service.says("getTaskResult", Said({"status": "failed", **reason}), Said({"status": "failed", **reason}))
    service.says("getBalance", Said(reason, 403))
    errors: list[UCaptchaError] = []
    async with at(service) as client:
        for call in (client.solve(TURNSTILE), client.solve(TURNSTILE), client.solve(TURNSTILE), client.get_balance()):
            with pytest.raises(UCaptchaError) as caught:
                await call
            errors.append(caught.value)
        result = await client.get_task_result("t")

    assert [type(error) for error in errors] == [InvalidTaskError, SubmitUncertainError, UnsolvableError, ServiceError]
    assert all("the site key is wrong" in str(error) for error in errors), errors
    assert result.error_description == "the site key is wrong"


@pytest.mark.parametrize("name", ["errorDescription", "detail", "message", "error"])
async def test_a_reason_shows_no_password(name: str) -> None:
    """Whatever field repeats it."""
    proxy = Proxy.parse("http://user:hunter2hunter2@198.51.100.7:8080")
    task = RecaptchaV2(website_url="https://example.com/", website_key="6Le", proxy=proxy)
    body = {name: "no way through user:hunter2hunter2@198.51.100.7"}
    for said in (refused("ERROR_BAD_PROXY", 400, **body), Said(body, 403), Said({"status": "failed", **body})):
        service = OwnService().says("createTask", said)
        async with at(service) as client:
            with pytest.raises(UCaptchaError) as caught:
                await client.solve(task)

        assert "no way through" in str(caught.value)
        assert "hunter2hunter2" not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize("status", [405, 413, 451])
@pytest.mark.parametrize("body", [b"<html>no</html>", {"message": "no"}, {"errorId": 1, "errorCode": "ERROR_NEW"}])
async def test_statuses_that_the_same_request_meets_again(status: int, body: Any) -> None:
    """They are not retryable; a gateway's 403, 502 and 503 may pass."""
    service = OwnService().says("getBalance", Said(body, status), page(502), page(503))
    async with at(service) as client:
        with pytest.raises(ServiceError) as caught:
            await client.get_balance()
        for _ in range(2):
            with pytest.raises(ServiceError) as other:
                await client.get_balance()
            assert other.value.retryable is True

    assert caught.value.retryable is False


@pytest.mark.parametrize("said", [Said({"balance": None}), Said({"errorId": 0}), Said({"balance": "NaN"})])
async def test_no_balance_is_no_number(said: Said) -> None:
    """An answer without a balance is not taken for one."""
    service = OwnService().says("getBalance", said)
    async with at(service) as client:
        with pytest.raises(ProtocolError):
            await client.get_balance()


# --- the local service ------------------------------------------------------------------------------------------------


async def test_empty_optional_fields_are_absent() -> None:
    """Real clients send `"callbackUrl": ""` and the like; the local service takes them as real ones do."""
    service = LocalService()
    empty = {"callbackUrl": "", "selectionMode": "", "provider": "", "softId": "", "languagePool": ""}
    body = {"clientKey": KEY, "task": {**V2.to_wire(), "pageAction": "", "proxy": ""}, **empty}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=service), base_url="http://service") as http:
        said = (await http.post("/createTask", json=body)).json()

    assert said["errorId"] == 0, said
    assert service.books.accepted == (said["taskId"],)


# --- the same answer again --------------------------------------------------------------------------------------------


async def test_a_poll_is_understood_as_if_it_were_the_first() -> None:
    """Most polls meet the answer of the one before, byte for byte. It decides nothing about an answer that differs."""
    named = Said({"errorId": 0, "status": "processing", "taskId": "t-2"})
    idle = Said({"errorId": 0, "status": "idle"})
    service = OwnService().says("getTaskResult", PENDING, PENDING, idle, PENDING, idle, idle, named, named, PENDING)
    async with at(service) as client:
        results = [await client.get_task_result("t-2") for _ in range(9)]
        solution = await client.solve(TURNSTILE)

    words = ["processing", "processing", "idle", "processing", "idle", "idle", "processing", "processing", "processing"]
    assert words == [result.status for result in results]
    assert all(result.raw["status"] == word for result, word in zip(results, words, strict=True))
    assert solution.token == TOKEN


async def test_what_a_caller_does_with_an_answer_changes_no_later_one() -> None:
    service = OwnService().says("getTaskResult", always=PENDING)
    async with at(service) as client:
        first = await client.get_task_result("t-1")
        first.raw["status"] = "ready"
        second = await client.get_task_result("t-1")

    assert ("processing", "processing") == (second.status, second.raw["status"])


@pytest.mark.parametrize("status", [201, 400, 403, 429, 503])
async def test_the_same_text_with_another_http_status(status: int) -> None:
    """It is another answer, as it is before any poll."""

    async def told(*before: Said) -> tuple[str, str]:
        service = OwnService().says("getTaskResult", *before, Said(PENDING.body, status))
        async with at(service) as client:
            for _ in before:
                await client.get_task_result("t-1")
            try:
                return "answer", (await client.get_task_result("t-1")).status
            except UCaptchaError as error:
                return type(error).__name__, error.message

    assert await told() == await told(PENDING) == await told(PENDING, PENDING)


async def test_the_text_of_a_poll_in_answer_to_a_submit() -> None:
    """It takes no task: nobody knows what became of that."""
    service = OwnService().says("getTaskResult", PENDING).says("createTask", PENDING)
    async with at(service) as client:
        await client.get_task_result("t-1")
        with pytest.raises(SubmitUncertainError):
            await client.solve(TURNSTILE)
