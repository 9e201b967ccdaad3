"""The search for the name that a service takes: what is tried, who waits, what is remembered."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import pytest

from ucaptcha_async import (
    HCaptcha,
    InvalidTaskError,
    Proxy,
    Task,
    Turnstile,
    UCaptchaError,
    UnsupportedTaskError,
    YandexSmartCaptcha,
)
from ucaptcha_async.solving import type_search
from ucaptcha_async.solving.type_search import REMEMBER_REFUSAL, UNKNOWN_TYPE, Known, Search, TypeNames, shared
from ucaptcha_async.transport.error_codes import class_for

pytestmark = pytest.mark.virtual_time

KEYED = {"website_url": "https://example.com/", "website_key": "k"}
TASK = Turnstile(**KEYED)
FIRST, SECOND, THIRD = (name.type for name in TASK.names())
PROXY = Proxy.parse("http://198.51.100.7:1")
WITH_PROXY = Turnstile(**KEYED, proxy=PROXY)


class Service:
    """Takes some types, and refuses the others as uCaptcha does; each answer takes a second."""

    def __init__(self, *takes: str) -> None:
        self.takes = set(takes)
        self.names = TypeNames()
        self.requests: list[str] = []
        self.chosen: list[str] = []
        self.error: UCaptchaError | None = None
        self.seconds = 1.0

    async def submit(self, task: Task[Any] = TASK, provider: str | None = None) -> str:
        """What a submit does with a search."""
        search = await self.names.begin(task, provider)
        try:
            while True:
                try:
                    sent = await self._request(task, search)
                except UCaptchaError as error:
                    if not await search.refused(error):
                        raise
                else:
                    if search.accepted():
                        self.chosen.append(sent)
                    return sent
        finally:
            search.end()

    async def _request(self, task: Task[Any], search: Search) -> str:
        sent = str(task.to_wire(search.name)["type"])
        self.requests.append(sent)
        await anyio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        if sent not in self.takes:
            raise UnsupportedTaskError("not supported", error_code="TASK_NOT_SUPPORTED")
        return sent


async def many(service: Service, number: int, task: Task[Any] = TASK) -> list[str]:
    """Submit at once; what each came to, in order of the ends."""
    ends: list[str] = []

    async def one() -> None:
        try:
            ends.append(await service.submit(task))
        except UnsupportedTaskError:
            ends.append("refused")

    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(one)
    return ends


# --- what is known ----------------------------------------------------------------------------------------------------


class TestKnown:
    """The memory, without a loop."""

    def test_names_are_tried_in_order(self) -> None:
        """The first that was not refused."""
        known = Known()
        for expected in (FIRST, SECOND, THIRD):
            name = known.first(TASK.names())
            assert name is not None
            assert name.type == expected
            known.refuse(expected)
        assert known.first(TASK.names()) is None

    def test_a_good_name_that_is_refused_starts_anew(self) -> None:
        """Everything else that was refused may be tried again."""
        known = Known()
        known.refuse(FIRST)
        assert known.accept(SECOND)
        assert not known.accept(SECOND)

        known.refuse(SECOND)

        assert (known.accepted, known.refused) == (set(), {SECOND})

    def test_forgetting(self) -> None:
        """Only the names that are asked for."""
        known = Known(refused={FIRST, "Other"})
        known.forget(TASK.names())

        assert known.refused == {"Other"}


def test_only_codes_that_name_the_type_count() -> None:
    """Nothing vaguer: those may be about a field, and another name would not help."""
    assert {"TASK_NOT_SUPPORTED", "ERROR_TASK_NOT_SUPPORTED", "ERROR_NO_SUCH_METHOD"} <= UNKNOWN_TYPE
    assert not UNKNOWN_TYPE & {
        "ERROR_BAD_PARAMETERS",
        "ERROR_INVALID_TASK_DATA",
        "ERROR_TASK_ABSENT",
        "INVALID_TASK_DATA",
    }
    assert class_for("TASK_NOT_SUPPORTED", 400) is UnsupportedTaskError


# --- one submit -------------------------------------------------------------------------------------------------------


async def test_the_first_name_is_good() -> None:
    """No search, nothing to tell."""
    service = Service(FIRST)

    assert await service.submit() == FIRST
    assert (service.requests, service.chosen) == ([FIRST], [])


async def test_the_next_name_is_tried_and_remembered() -> None:
    """Within one submit; the next submit sends it at once."""
    service = Service(THIRD)

    assert await service.submit() == await service.submit() == THIRD
    assert service.requests == [FIRST, SECOND, THIRD, THIRD]
    assert service.chosen == [THIRD]


async def test_a_given_type_is_never_changed() -> None:
    """Nor is that of a raw task: its refusal is the end of it."""
    service = Service(SECOND)
    for task in (Turnstile(**KEYED, type=FIRST), Task(FIRST)):
        with pytest.raises(UnsupportedTaskError, match=r"^not supported"):
            await service.submit(task)

    assert service.requests == [FIRST, FIRST]


@pytest.mark.parametrize(
    "error",
    [
        InvalidTaskError("bad", error_code="ERROR_BAD_PARAMETERS"),
        UnsupportedTaskError("an unknown code", error_code="ERROR_METHOD_NOT_SUPPORTED_HERE"),
        UnsupportedTaskError("names a task", error_code="TASK_NOT_SUPPORTED", task_id="1"),
    ],
)
async def test_another_refusal_ends_the_search(error: UCaptchaError) -> None:
    """It says nothing of the name, and nothing is remembered."""
    service = Service(FIRST)
    service.error = error
    with pytest.raises(type(error)) as caught:
        await service.submit()
    service.error = None

    assert caught.value is error
    assert await service.submit() == FIRST
    assert service.requests == [FIRST, FIRST]


async def test_all_names_are_refused() -> None:
    """The error lists them; for a minute there is no further request, and then the search begins again."""
    service = Service()
    with pytest.raises(UnsupportedTaskError, match=f"{FIRST}, {SECOND}, {THIRD}") as caught:
        await service.submit()
    assert (caught.value.error_code, caught.value.charged, caught.value.field) == ("TASK_NOT_SUPPORTED", False, "type")

    await anyio.sleep(REMEMBER_REFUSAL - 0.1)
    with pytest.raises(UnsupportedTaskError, match=FIRST):
        await service.submit()
    assert service.requests == [FIRST, SECOND, THIRD]

    service.takes = {FIRST}
    await anyio.sleep(0.1)
    assert await service.submit() == FIRST


async def test_case_of_a_code_does_not_matter() -> None:
    """As it does not for the class of its error."""
    service = Service(SECOND)
    search = await service.names.begin(TASK, None)
    assert await search.refused(UnsupportedTaskError("no", error_code="task_not_supported"))
    assert search.name is not None
    assert search.name.type == SECOND
    search.end()


async def test_a_name_that_is_refused_one_day() -> None:
    """The search begins anew, within the same submit, and what was refused before is tried again."""
    service = Service(SECOND)
    await service.submit()
    service.takes = {FIRST}

    assert await service.submit() == FIRST
    assert service.requests == [FIRST, SECOND, SECOND, FIRST]
    assert service.chosen == [SECOND, FIRST]


async def test_a_service_that_contradicts_itself() -> None:
    """A name that is taken from one and refused to another is sent once in a submit."""
    service = Service(FIRST)
    await service.submit()
    one, other = await service.names.begin(TASK, None), await service.names.begin(TASK, None)
    refusal = UnsupportedTaskError("no", error_code="TASK_NOT_SUPPORTED")
    assert await one.refused(refusal)
    other.accepted()
    assert await one.refused(refusal)
    with pytest.raises(UnsupportedTaskError):
        await one.refused(refusal)

    assert one.tried == [FIRST, SECOND, THIRD]
    assert await service.submit() == FIRST


async def test_what_is_apart() -> None:
    """With and without a proxy, other providers and other kinds know nothing of each other."""
    service = Service(SECOND)
    await service.submit()
    service.takes |= {"TurnstileTask", "HCaptchaTaskProxyless"}

    await service.submit(WITH_PROXY)
    await service.submit(HCaptcha(**KEYED))
    await service.submit(TASK, "capsolver")

    assert service.requests[2:] == ["TurnstileToken", "TurnstileTask", "HCaptchaTaskProxyless", FIRST, SECOND]


async def test_a_task_that_the_known_name_cannot_carry() -> None:
    """It has a search of its own, with its own fields' names."""
    service = Service(FIRST, SECOND)
    await service.submit()

    assert await service.submit(Turnstile(**KEYED, chl_page_data="p")) == SECOND
    assert await service.submit() == FIRST


async def test_a_task_all_of_whose_names_another_search_refused() -> None:
    """They are tried once more, and then not again for a minute."""
    service = Service(THIRD)
    await service.submit()
    only_second = Turnstile(**KEYED, chl_page_data="p")
    for _ in range(3):
        with pytest.raises(UnsupportedTaskError, match=f": {SECOND} "):
            await service.submit(only_second)

    assert service.requests == [FIRST, SECOND, THIRD, SECOND]
    assert await service.submit() == THIRD


# --- many at once -----------------------------------------------------------------------------------------------------


async def test_one_scouts_and_the_others_wait() -> None:
    """A thousand submits at once cost two refusals."""
    service = Service(THIRD)

    assert await many(service, 1_000) == [THIRD] * 1_000
    assert service.requests == [FIRST, SECOND] + [THIRD] * 1_000
    assert service.chosen == [THIRD]


async def test_all_refused_for_many() -> None:
    """A thousand submits at once fail by the requests of one."""
    service = Service()

    assert await many(service, 1_000) == ["refused"] * 1_000
    assert service.requests == [FIRST, SECOND, THIRD]


async def test_nobody_waits_for_a_known_name() -> None:
    """All go out at once."""
    service = Service(FIRST)
    await service.submit()
    began = anyio.current_time()
    await many(service, 100)

    assert anyio.current_time() - began == pytest.approx(1)


async def test_a_good_name_that_is_refused_to_many() -> None:
    """What was under way is refused; then one searches for all."""
    service = Service(SECOND)
    await service.submit()
    service.takes = {THIRD}
    service.requests.clear()

    assert await many(service, 100) == [THIRD] * 100
    assert service.requests == [SECOND] * 100 + [FIRST] + [THIRD] * 100


async def test_a_scout_that_fails_gives_way() -> None:
    """By another refusal: the next in line searches, and the rest go on waiting."""
    service = Service(SECOND)
    failed = 0

    async def one() -> None:
        nonlocal failed
        try:
            await service.submit()
        except InvalidTaskError:
            service.error = None
            failed += 1

    service.error = InvalidTaskError("bad", error_code="ERROR_BAD_PARAMETERS")
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(one)

    assert failed == 1
    assert service.requests == [FIRST, FIRST] + [SECOND] * 9


async def test_a_scout_that_is_cancelled_gives_way() -> None:
    """And a waiter that is cancelled leaves the line, even when it was just called."""
    service = Service(SECOND)
    scopes = [anyio.CancelScope() for _ in range(3)]
    ends: list[int] = []

    async def one(number: int) -> None:
        with scopes[number] if number < 3 else anyio.CancelScope():
            await service.submit()
            ends.append(number)

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(one, number)
            await anyio.sleep(0.01)  # in this order
        scopes[1].cancel()
        await anyio.sleep(0.1)
        scopes[0].cancel()  # the scout: it calls the third,
        scopes[2].cancel()  # who does not come any more

    assert sorted(ends) == [3, 4]
    assert service.requests == [FIRST, FIRST, SECOND, SECOND]


async def test_a_name_that_another_thread_finds() -> None:
    """Whoever is called to search next, and need not, calls all the others."""
    service, known = Service(SECOND), 0
    scout = await service.names.begin(TASK, None)

    async def wait() -> None:
        nonlocal known
        search = await service.names.begin(TASK, None)
        known += search.name is not None and search.name.type == SECOND

    def elsewhere() -> None:
        anyio.run(service.submit)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait)
        await anyio.sleep(1)
        scout.end()
        thread = threading.Thread(target=elsewhere)  # before the one who was called can look
        thread.start()
        thread.join()

    assert known == 3


async def test_waiting_ends_with_the_deadline_of_the_one_who_waits() -> None:
    """The search itself goes on."""
    service = Service(SECOND)
    async with anyio.create_task_group() as group:
        group.start_soon(service.submit)
        await anyio.sleep(0.1)
        with anyio.move_on_after(0.5) as scope:
            await service.submit()
    assert scope.cancelled_caught
    assert service.requests == [FIRST, SECOND]


async def test_an_end_is_an_end() -> None:
    """Ending twice, or without having searched, wakes nobody and ends nobody else's search."""
    service = Service(SECOND)
    scout = await service.names.begin(TASK, None)
    scout.end()
    other = await service.names.begin(TASK, None)
    scout.end()
    waited = False

    async def wait() -> None:
        nonlocal waited
        (await service.names.begin(TASK, None)).end()
        waited = True

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(1)
        assert not waited
        other.end()
    assert waited


# --- what is told -----------------------------------------------------------------------------------------------------


async def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line, however many submits."""
    service = Service(SECOND)
    with caplog.at_level(logging.INFO, "ucaptcha_async"):
        await many(service, 10)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", f"the service takes Turnstile tasks as {SECOND} after it refused {FIRST}")
    ]


async def test_an_inferred_name_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody knows whether its tokens work."""
    service = Service("HardCaptchaTokenProxyLess")
    with caplog.at_level(logging.INFO, "ucaptcha_async"):
        assert await service.submit(HCaptcha(**KEYED)) == "HardCaptchaTokenProxyLess"

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "only inferred" in caplog.text
    assert service.chosen == ["HardCaptchaTokenProxyLess"]


async def test_an_inferred_name_is_a_warning_without_a_search(caplog: pytest.LogCaptureFixture) -> None:
    """Also when it is the first, and none was refused."""
    task = YandexSmartCaptcha(**KEYED, proxy=PROXY)
    service = Service(task.type)
    with caplog.at_level(logging.INFO, "ucaptcha_async"):
        await many(service, 3, task)

    assert service.chosen == [task.type]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


# --- who shares it ----------------------------------------------------------------------------------------------------


async def test_it_is_shared_in_the_process() -> None:
    """By host and account; other accounts and hosts learn for themselves."""
    type_search.forget_all()
    assert shared("host", "account") is shared("host", "account")
    assert shared("host", "account") is not shared("host", "other")
    assert shared("host", "account") is not shared("elsewhere", "account")

    before = shared("host", "account")
    type_search.forget_all()
    assert shared("host", "account") is not before


async def test_accounts_that_are_shared_are_bounded() -> None:
    """A process that meets ever new accounts does not grow for ever."""
    type_search.forget_all()
    first = shared("host", "0")
    for number in range(1_000):
        shared("host", str(number + 1))

    assert shared("host", "0") is not first
    type_search.forget_all()


def test_what_is_known_outlives_a_loop() -> None:
    """A second `run` does not search again, and a search that its loop's end broke off holds up nobody."""
    service = Service(SECOND)
    service.seconds = 0

    async def broken_off() -> None:
        await service.names.begin(TASK, None)

    anyio.run(broken_off)
    anyio.run(service.submit, backend="trio")
    anyio.run(service.submit)

    assert service.requests == [FIRST, SECOND, SECOND]


def test_a_refusal_of_all_names_outlives_a_loop() -> None:
    """A program that runs a loop for each task asks once in a minute, too."""
    service = Service()
    service.seconds = 0
    for _ in range(3):
        with pytest.raises(UnsupportedTaskError, match=FIRST):
            anyio.run(service.submit)

    assert service.requests == [FIRST, SECOND, THIRD]
