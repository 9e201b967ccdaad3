"""The fast way for polls: aiohttp, which takes about half of httpx's CPU time for a request. asyncio only.

Not for submits: aiohttp does not tell whether a request that failed was sent.
"""

from __future__ import annotations

import importlib
import ssl
from typing import Any

import anyio
import attrs

from ucaptcha_async.errors import ConfigurationError
from ucaptcha_async.pacing import InFlight
from ucaptcha_async.secrecy import SecretBytes
from ucaptcha_async.solving.shelter import under_trio

from .lanes import read_bounded
from .old_exchange import Departure, Reply, relevant


def open_fast(max_connections: int, context: ssl.SSLContext, proxy: str | None) -> FastChannel:
    """Open an aiohttp session for polls.

    Raises:
        ConfigurationError: Under trio, with a SOCKS proxy, or without aiohttp (extra `fast`).
    """
    if under_trio():
        raise ConfigurationError(
            "transport='fast' is for asyncio only: aiohttp does not run on trio", field="transport"
        )
    if proxy is not None and not proxy.startswith("http"):
        raise ConfigurationError("transport='fast' knows HTTP proxies only", field="proxy")
    try:
        aiohttp = importlib.import_module("aiohttp")
    except ImportError:
        advice = "aiohttp is not installed: pip install 'ucaptcha_async[fast]'"
        raise ConfigurationError(advice, field="transport") from None
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=context),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"Content-Type": "application/json", "User-Agent": "ucaptcha_async"},
        skip_auto_headers=("Accept", "Accept-Encoding"),
    )
    return FastChannel(session, InFlight(max_connections), proxy)


@attrs.define(eq=False)
class FastChannel:
    """Sends polls over an aiohttp session."""

    session: Any
    gate: InFlight
    proxy: str | None = attrs.field(repr=False)

    async def post(self, url: str, body: SecretBytes, departure: Departure) -> Reply:
        """Send one request; see `Http.post`."""
        await self.gate.acquire()
        try:
            await departure.leave()
            async with self.session.post(url, data=body, allow_redirects=False, proxy=self.proxy) as response:
                content = await read_bounded(response.content.iter_any(), _closer(response))
        finally:
            self.gate.release()
        now = anyio.current_time()
        # aiohttp may have connected first, so that only the end is certain not to be earlier than the sending.
        return Reply(
            status=response.status,
            headers=relevant(response.raw_headers),
            content=SecretBytes(content),
            sent_at=now,
            received_at=now,
        )

    async def aclose(self) -> None:
        """Close the session."""
        await self.session.close()


def _closer(response: Any) -> Any:
    async def close() -> None:
        response.close()

    return close
