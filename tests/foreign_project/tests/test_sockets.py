"""The program as a process of its own, against a real socket. No event loop, so no backends."""

from __future__ import annotations

import subprocess
import sys

import pytest
from form_probe import probe_all

from ucaptcha_async.testing import LocalService, assert_polite

PAGES = ("https://example.com/a", "https://example.com/b")

pytestmark = pytest.mark.ucaptcha(immediate_types=["RecaptchaV2TaskProxyless"])


def test_another_process(ucaptcha_url: str, ucaptcha_service: LocalService) -> None:
    """It finds the service through its environment; the books are those of the object here."""
    done = subprocess.run(
        [sys.executable, "-m", "form_probe", *PAGES], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.split() == [PAGES[0], "passed", PAGES[1], "passed"]
    assert ucaptcha_url.startswith("http://127.0.0.1:")
    assert ucaptcha_service.books.request_counts == {"createTask": 2}
    assert_polite(ucaptcha_service.books)


@pytest.mark.usefixtures("ucaptcha_server")
class TestRealTime:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    async def test_real_sockets(self, ucaptcha_service: LocalService) -> None:
        """On both backends, in this process."""
        assert await probe_all(PAGES) == dict.fromkeys(PAGES, True)
        assert len(ucaptcha_service.books.accepted) == 2
