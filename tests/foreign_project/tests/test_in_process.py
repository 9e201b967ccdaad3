"""What the program makes of the service, in virtual time on asyncio and trio."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest
from form_probe import probe, probe_all, token_for

from ucaptcha_async import AsyncClient, RecaptchaV2
from ucaptcha_async.testing import (
    Error,
    LocalService,
    Reply,
    assert_nothing_lost,
    assert_paid_once,
    assert_polite,
)

PAGES = [f"https://example.com/form/{number}" for number in range(20)]


@pytest.fixture
def ucaptcha_options() -> dict[str, Any]:
    return {"solve_time": 120}


async def test_minutes_take_milliseconds(ucaptcha_client: AsyncClient, ucaptcha_service: LocalService) -> None:
    """The options of the fixture hold, and nobody waits for two minutes."""
    started, virtually = time.monotonic(), anyio.current_time()
    assert await token_for(ucaptcha_client, PAGES[0])

    assert anyio.current_time() - virtually >= 120
    assert time.monotonic() - started < 60
    assert ucaptcha_service.books.spent == sum(ucaptcha_client.spent.values())


@pytest.mark.ucaptcha(solve_time=30, seed=3)
async def test_the_marker_goes_before_the_fixture(ucaptcha_client: AsyncClient) -> None:
    """The nearest option wins."""
    task = RecaptchaV2(website_url=PAGES[0], website_key="6Le-key")

    assert (await ucaptcha_client.solve(task)).solve_time == 30


async def test_three_polls_answer_503(ucaptcha_client: AsyncClient, ucaptcha_service: LocalService) -> None:
    """A scripted fault meets the next requests, and the program gets its token all the same."""
    ucaptcha_service.script("getTaskResult", Reply(status=503, times=3))

    assert await token_for(ucaptcha_client, PAGES[0])
    assert ucaptcha_service.faults.waiting == 0
    assert ucaptcha_service.books.status_counts[503] == 3
    assert_paid_once(ucaptcha_service.books)
    assert_nothing_lost(ucaptcha_service.books, ucaptcha_client)


async def test_an_empty_account(ucaptcha_client: AsyncClient, ucaptcha_service: LocalService) -> None:
    """The program says that there is no token."""
    ucaptcha_service.script("createTask", Error("ERROR_ZERO_BALANCE"))

    assert await token_for(ucaptcha_client, PAGES[0]) is None
    assert ucaptcha_service.books.spent == 0


async def test_giving_up_loses_nothing(ucaptcha_client: AsyncClient, ucaptcha_service: LocalService) -> None:
    """A token that nobody waits for any more is still known to the client."""
    with anyio.move_on_after(10):
        await token_for(ucaptcha_client, PAGES[0])

    assert_nothing_lost(ucaptcha_service.books, ucaptcha_client)
    with pytest.raises(AssertionError, match=r"1 task was paid for and lost:\n  task "):
        assert_nothing_lost(ucaptcha_service.books)


@pytest.mark.usefixtures("ucaptcha_in_process")
@pytest.mark.ucaptcha(solve_time=None)
async def test_a_client_of_its_own(ucaptcha_service: LocalService) -> None:
    """A program that makes its client itself finds the service too."""
    ucaptcha_service.fail_next(times=2)

    assert await probe_all(PAGES) == dict.fromkeys(PAGES, True)
    assert len(ucaptcha_service.books.accepted) == len(PAGES) + 2
    assert_paid_once(ucaptcha_service.books, solves=len(PAGES))
    assert_polite(ucaptcha_service.books)


class TestMarkers:
    pytestmark = pytest.mark.ucaptcha(failure_rate=1.0, solve_time=9)

    @pytest.mark.ucaptcha(solve_time=10)
    async def test_of_class_and_function(self, ucaptcha_client: AsyncClient, ucaptcha_service: LocalService) -> None:
        """Options of both add up."""
        assert await probe(ucaptcha_client, PAGES) == dict.fromkeys(PAGES, False)
        assert (ucaptcha_service.solve_time, ucaptcha_service.books.spent) == (10, 0)
