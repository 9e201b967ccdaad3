"""A submit that is finished although its caller was cancelled; and a client that is closed meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import anyio
import pytest

from tests.helpers import KEY, V2, opened
from ucaptcha_async import AsyncClient, ClientStateError, Polling, Proxy, RecaptchaV2, SubmitUncertainError
from ucaptcha_async.pacing.event_loop import current
from ucaptcha_async.testing import Json, LocalService, running_service
from ucaptcha_async.transport.senders import TransportName

TEARDOWN = """
import asyncio
from ucaptcha_async.pacing.event_loop import current

def grace():
    return 5.0

async def main():
    # The caller begins in the last turn of the loop: the call's task exists then, and does not begin.
    return asyncio.ensure_future(current().uninterrupted(asyncio.sleep(3600), grace))

assert asyncio.run(main()).cancelled()
"""

OTHERS = """
import asyncio, sys
from ucaptcha_async.pacing.event_loop import current

def grace():
    return 5.0

async def main(turns):
    caller = asyncio.ensure_future(current().uninterrupted(asyncio.sleep(3600), grace))
    for _ in range(turns):
        await asyncio.sleep(0)
    (call,) = asyncio.all_tasks() - {caller, asyncio.current_task()}
    call.cancel()
    await asyncio.wait([caller], timeout=5)
    return caller.cancelled()

assert asyncio.run(main(int(sys.argv[1])))
"""


INTERRUPTED = """
import asyncio, sys
from ucaptcha_async.pacing.event_loop import current

def grace():
    return 5.0

async def call():
    await asyncio.sleep(0.2)
    raise KeyboardInterrupt

async def main():
    caller = asyncio.ensure_future(current().uninterrupted(call(), grace))
    await asyncio.sleep(0.05)
    caller.cancel()
    await asyncio.sleep(1)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    sys.exit(7)
"""


def run(script: str, *words: str) -> tuple[int, str]:
    """A script's exit code and errors. In a process of its own: a loop that never ends would take the tests with it."""
    ended = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=30)
    return ended.returncode, ended.stderr


def test_a_loop_may_end_before_the_call_has_begun() -> None:
    """`asyncio.run` cancels all tasks at its end, those included that never ran: it comes back all the same."""
    assert (0, "") == run(TEARDOWN)


@pytest.mark.parametrize("turns", ["1", "2"])
def test_a_call_that_others_cancel_is_cancelled(turns: str) -> None:
    """Whoever cancels the call's own task cancels the caller, who does not go on without an answer."""
    assert (0, "") == run(OTHERS, turns)


def test_an_interrupt_of_the_call_is_not_lost() -> None:
    """Ctrl-C while the answer is read for a caller who was cancelled ends the program all the same."""
    assert 7 == run(INTERRUPTED)[0]


async def test_work_is_not_interrupted_and_the_cancellation_comes_after_it() -> None:
    done: list[str] = []

    async def work() -> None:
        await anyio.sleep(0.1)
        done.append("work")

    with anyio.move_on_after(0.02) as scope:
        await current().uninterrupted(work())
    assert scope.cancelled_caught
    assert done == ["work"]


def test_asyncios_own_cancellation_does_not_interrupt_it_either() -> None:
    """Not even when it comes twice, as when a program ends while a time-out has just struck."""
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.1)
        done.append("work")

    async def main() -> bool:
        caller = asyncio.ensure_future(current().uninterrupted(work()))
        for _ in range(2):
            await asyncio.sleep(0.02)
            caller.cancel()
        await asyncio.wait([caller])
        return caller.cancelled()

    assert asyncio.run(main())
    assert done == ["work"]


@pytest.mark.parametrize("transport", ["httpx", "fast"])
async def test_a_closed_client_submits_nothing(transport: TransportName) -> None:
    """A solve that still waits for its place when the client is closed ends at once, and is not paid for; a job that is
    open then is kept.
    """
    options: dict[str, Any] = {"transport": transport, "max_in_flight": 1, "polling": Polling(interval=0.2)}
    errors: list[ClientStateError] = []
    with running_service(solve_time=60) as service:
        async with anyio.create_task_group() as tasks:
            async with AsyncClient(KEY, base_url=service.url, **options) as client:
                job = await client.submit(V2)

                async def second() -> None:
                    try:
                        await client.solve(V2, timeout=None)
                    except ClientStateError as error:
                        errors.append(error)

                tasks.start_soon(second)
                await anyio.sleep(0.2)
            with pytest.raises(ClientStateError, match="closed"):
                await job.wait()
            assert client.abandoned == (job.task_id,)
        books = service.books()

    assert 1 == books["accepted"]
    assert [False] == [error.charged for error in errors]


async def test_a_path_beyond_ascii() -> None:
    """A base URL means the same to all transports."""
    with running_service(lightning={KEY: 10}) as service:
        async with AsyncClient(KEY, base_url=f"{service.url}/ä/..", transport="fast") as client:
            assert (await client.solve(V2, timeout=10)).token


@pytest.mark.virtual_time
@pytest.mark.parametrize("password", ["INTERNAL", "ERROR"])
async def test_a_password_does_not_change_what_a_code_means(password: str) -> None:
    """Secrets are taken out of what is shown, not out of what is judged."""
    service = LocalService()
    service.script("createTask", Json({"errorId": 1, "errorCode": "INTERNAL_ERROR"}))
    task = RecaptchaV2(
        website_url="https://example.com/", website_key="key", proxy=Proxy.parse(f"http://u:{password}@h:1")
    )
    async with opened(service) as client:
        with pytest.raises(SubmitUncertainError):
            await client.solve(task)
