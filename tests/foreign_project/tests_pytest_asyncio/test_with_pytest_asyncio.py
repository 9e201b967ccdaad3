"""The same fixtures in a project that uses pytest-asyncio (`asyncio_mode = "auto"`)."""

from __future__ import annotations

import pytest
from form_probe import probe_all, token_for

from ucaptcha_async import AsyncClient
from ucaptcha_async.testing import LocalService, assert_paid_once

pytestmark = pytest.mark.ucaptcha(immediate_types=["RecaptchaV2TaskProxyless"])


async def test_the_client(ucaptcha_client: AsyncClient, ucaptcha_service: LocalService) -> None:
    """An entered client, on the loop of the test."""
    assert await token_for(ucaptcha_client, "https://example.com/")
    assert_paid_once(ucaptcha_service.books, solves=1)


@pytest.mark.usefixtures("ucaptcha_in_process")
async def test_a_client_of_its_own() -> None:
    """A client that the program makes."""
    assert await probe_all(["https://example.com/"]) == {"https://example.com/": True}


@pytest.mark.usefixtures("ucaptcha_server")
async def test_a_socket() -> None:
    """A real socket."""
    assert await probe_all(["https://example.com/"]) == {"https://example.com/": True}
