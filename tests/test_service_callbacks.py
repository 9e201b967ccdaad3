"""Callbacks: sent when a task is finished, and lost, late or repeated on request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest

from ucaptcha_async.testing import CallbackPlan, LocalService

from .service_helpers import V2, calling

pytestmark = pytest.mark.virtual_time

URL = "http://127.0.0.1:9/secret/path?mine=1"


class Receiver:
    """Notes when it was called, and with what."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.calls: list[tuple[float, str]] = []

    async def __call__(self, url: str) -> int:
        self.calls.append((anyio.current_time(), url))
        return self.status

    def queries(self) -> list[dict[str, list[str]]]:
        return [parse_qs(urlsplit(url).query) for _, url in self.calls]


def make(receiver: Callable[[str], Awaitable[int]], **plan: float) -> LocalService:
    return LocalService(
        callback_sender=receiver,
        callback_plan=CallbackPlan(**plan) if plan else None,  # type: ignore[arg-type]
        allow_private_callbacks=True,
        solve_time=10,
    )


async def test_a_solved_task_calls_back_once() -> None:
    """The callback comes when the task is ready, with id, status and code, beside what the URL had."""
    receiver = Receiver()
    service = make(receiver)
    async with service, calling(service) as call:
        begin = anyio.current_time()
        task_id = await call.create(callbackUrl=URL)
        await anyio.sleep(60)

    code = service.books.tasks[task_id].code
    assert receiver.queries() == [{"mine": ["1"], "captcha_id": [task_id], "status": ["1"], "code": [code]}]
    assert receiver.calls[0][0] - begin == pytest.approx(10)
    assert [(record.task_id, record.outcome) for record in service.books.callbacks] == [(task_id, "delivered")]
    assert service.books.delivered == ()


async def test_a_failed_task_calls_back_without_a_code() -> None:
    """A failure is status 0 and nothing else."""
    receiver = Receiver()
    service = make(receiver)
    service.fail_next()
    async with service, calling(service) as call:
        task_id = await call.create(callbackUrl="http://127.0.0.1/x")
        await anyio.sleep(60)

    assert receiver.queries() == [{"captcha_id": [task_id], "status": ["0"]}]


async def test_callbacks_may_be_late_and_repeated() -> None:
    """A delay comes on top of the solve time; repetitions are the same."""
    receiver = Receiver()
    service = make(receiver, delay=2, repeat=3)
    async with service, calling(service) as call:
        begin = anyio.current_time()
        await call.create(callbackUrl=URL)
        await anyio.sleep(60)

    assert [at - begin for at, _ in receiver.calls] == [pytest.approx(12)] * 3
    assert len({url for _, url in receiver.calls}) == 1


async def test_callbacks_may_be_lost() -> None:
    """The share that is lost comes from a seed and is on record."""
    receiver = Receiver()
    service = make(receiver, loss=0.5, seed=3)
    async with service, calling(service) as call:
        for _ in range(100):
            await call.create(callbackUrl=URL)
        await anyio.sleep(60)

    outcomes = [record.outcome for record in service.books.callbacks]
    assert 30 < outcomes.count("lost") < 70
    assert outcomes.count("delivered") == len(receiver.calls) == 100 - outcomes.count("lost")


async def test_callbacks_come_in_the_order_of_their_tasks_ends() -> None:
    """A later task that is solved earlier calls back earlier."""
    receiver = Receiver()
    service = make(receiver)
    async with service, calling(service) as call:
        slow = await call.create(callbackUrl=URL)
        service.solve_next(after=2)
        quick = await call.create(callbackUrl=URL)
        await anyio.sleep(60)

    assert [query["captcha_id"] for query in receiver.queries()] == [[quick], [slow]]


@pytest.mark.parametrize("status", [302, 500])
async def test_a_callback_that_is_not_taken_is_on_record(status: int) -> None:
    """Any answer but 2xx is a failure; it is not sent again."""
    receiver = Receiver(status)
    service = make(receiver)
    async with service, calling(service) as call:
        await call.create(callbackUrl=URL)
        await anyio.sleep(60)

    assert [record.outcome for record in service.books.callbacks] == ["failed"]
    assert len(receiver.calls) == 1


async def test_a_sender_that_breaks_breaks_nothing_else() -> None:
    """The other callbacks are sent all the same."""

    async def broken(url: str) -> int:
        raise OSError("no route")

    service = make(broken)
    async with service, calling(service) as call:
        for _ in range(3):
            await call.create(callbackUrl=URL)
        await anyio.sleep(60)

    assert [record.outcome for record in service.books.callbacks] == ["failed"] * 3


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "app.localhost",
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.1.1",
        "[::1]",
        "[fc00::1]",
    ],
)
async def test_private_addresses_are_refused(host: str) -> None:
    """The filter refuses what does not lead to a public address, and charges nothing."""
    service = LocalService()
    async with service, calling(service) as call:
        heard = await call("createTask", task=V2, callbackUrl=f"http://{host}/cb")

    assert (heard.status, heard.json["errorCode"]) == (400, "ERROR_BAD_PARAMETERS")
    assert service.books.accepted == ()


@pytest.mark.parametrize("url", ["ftp://93.184.216.34/", "93.184.216.34/cb", "http://[::1", "http://a:99999/"])
async def test_wrong_callback_addresses_are_refused(url: str) -> None:
    """A callback URL is a fully qualified URL for the web."""
    async with LocalService() as service, calling(service) as call:
        heard = await call("createTask", task=V2, callbackUrl=url)

    assert (heard.status, heard.json["errorCode"]) == (400, "ERROR_BAD_PARAMETERS")


async def test_public_addresses_are_accepted() -> None:
    """The filter lets a public address through."""
    receiver = Receiver()
    service = LocalService(callback_sender=receiver, solve_time=1)
    async with service, calling(service) as call:
        await call.create(callbackUrl="https://93.184.216.34/cb")
        await anyio.sleep(5)

    assert len(receiver.calls) == 1


async def test_callbacks_need_a_running_service() -> None:
    """Without `async with service:` nobody would send them; that is said instead of losing them."""
    service = LocalService(allow_private_callbacks=True)
    async with calling(service) as call:
        with pytest.raises(RuntimeError, match="async with service"):
            await call("createTask", task=V2, callbackUrl=URL)

    assert service.books.accepted == ()
