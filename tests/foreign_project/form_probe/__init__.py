"""Probes the forms of our own sites: can the CAPTCHA in front of each still be passed?"""

from __future__ import annotations

from collections.abc import Iterable

from ucaptcha_async import AsyncClient, RecaptchaV2, UCaptchaError

SITE_KEY = "6Le-wvkSAAAAAPBMRTvw0Q4Muexq9bi0DJwx_mJ-"


async def probe_all(pages: Iterable[str]) -> dict[str, bool]:
    """Probe all pages with a client of our own; key and address come from the environment."""
    async with AsyncClient(attempts=2) as client:
        return await probe(client, pages)


async def probe(client: AsyncClient, pages: Iterable[str]) -> dict[str, bool]:
    """Tell for each page whether its CAPTCHA was solved."""
    pages = list(pages)
    report: dict[str, bool] = {}
    tasks = [RecaptchaV2(website_url=page, website_key=SITE_KEY) for page in pages]
    async with client.solve_many(tasks) as outcomes:
        async for outcome in outcomes:
            report[pages[outcome.index]] = outcome.ok
    return report


async def token_for(client: AsyncClient, page: str) -> str | None:
    """Return a token for one page, or None if there is none to be had."""
    try:
        return (await client.solve(RecaptchaV2(website_url=page, website_key=SITE_KEY))).token
    except UCaptchaError:
        return None
