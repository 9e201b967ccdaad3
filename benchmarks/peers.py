"""The other libraries of the family, each pointed at the local service by its own settings.

The functions run in the peers' own environments. Each solves one task per site key, all at once, as the library's
documentation shows it, with its default timings.
"""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .hand import PAGE
from .meter import Ledger

DIALECTS = {
    "2captcha-python": "2captcha",
    "capmonstercloudclient": "capmonster",
    "python-anticaptcha": "anticaptcha",
    "python-rucaptcha": "2captcha",
}
"""The peers, and the dialect of the service that each needs."""

Solve = Callable[[str], Awaitable[object]]

# --- in the measured process ------------------------------------------------------------------------------------------


async def solve_all(peer: str, url: str, key: str, site_keys: list[str], ledger: Ledger) -> None:
    """Solve all at once."""
    solve = _SOLVERS[peer](url, key)

    async def one(number: int, site_key: str) -> None:
        try:
            await solve(site_key)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            ledger.failed(error)
        else:
            ledger.solved(number)

    await asyncio.gather(*(one(number, site_key) for number, site_key in enumerate(site_keys)))


def _twocaptcha(url: str, key: str) -> Solve:
    import httpx

    module = importlib.import_module("twocaptcha.async_api")

    class Plain(httpx.AsyncClient):
        # The scheme is fixed in its code, and the service speaks plain HTTP. All else happens as it would.
        async def request(self, method: str, url: Any, **options: Any) -> Any:
            return await super().request(method, str(url).replace("https://", "http://", 1), **options)

    module.httpx.AsyncClient = Plain
    solver = importlib.import_module("twocaptcha").AsyncTwoCaptcha(key, server=urlsplit(url).netloc)

    async def solve(site_key: str) -> object:
        return (await solver.recaptcha(sitekey=site_key, url=PAGE))["code"]

    return solve


def _capmonster(url: str, key: str) -> Solve:
    module = importlib.import_module("capmonstercloudclient")
    kind = importlib.import_module("capmonstercloudclient.requests").RecaptchaV2Request
    client = module.CapMonsterClient(options=module.ClientOptions(api_key=key, service_url=url))

    async def solve(site_key: str) -> object:
        return await client.solve_captcha(kind(websiteUrl=PAGE, websiteKey=site_key))

    return solve


def _anticaptcha(url: str, key: str) -> Solve:
    module = importlib.import_module("python_anticaptcha")
    client = module.AsyncAnticaptchaClient(key, host=urlsplit(url).netloc, use_ssl=False)

    async def solve(site_key: str) -> object:
        job = await client.create_task(module.NoCaptchaTaskProxylessTask(website_url=PAGE, website_key=site_key))
        await job.join()
        return job.get_solution_response()

    return solve


def _rucaptcha(url: str, key: str) -> Solve:
    kind = importlib.import_module("python_rucaptcha.re_captcha").ReCaptcha

    async def solve(site_key: str) -> object:
        captcha = kind(rucaptcha_key=key, websiteURL=PAGE, websiteKey=site_key)
        # It knows its services by name only.
        captcha.params.url_request = url + "/createTask"
        captcha.params.url_response = url + "/getTaskResult"
        result = await captcha.aio_captcha_handler()
        if result.get("status") != "ready" or not result.get("solution"):
            # It returns what others raise.
            raise RuntimeError(str(result))
        return result["solution"]

    return solve


_SOLVERS = {
    "2captcha-python": _twocaptcha,
    "capmonstercloudclient": _capmonster,
    "python-anticaptcha": _anticaptcha,
    "python-rucaptcha": _rucaptcha,
}


# --- in the command ---------------------------------------------------------------------------------------------------


def interpreters(folder: Path, note: Callable[[str], None]) -> dict[str, str]:
    """Make the peers' environments where they are missing, and return their interpreters; what fails is left out."""
    requirements = Path(__file__).with_name("peers.txt").read_text().splitlines()
    wanted = [line.strip() for line in requirements if line.strip() and not line.startswith("#")]
    found = {}
    for requirement in wanted:
        name = requirement.partition("=")[0].partition("[")[0]
        python = _environment(folder / name, requirement, note)
        if python is not None:
            found[name] = str(python)
    return found


def _environment(folder: Path, requirement: str, note: Callable[[str], None]) -> Path | None:
    # Not resolved: the link itself is what makes it that environment's interpreter.
    python = folder.absolute() / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = folder / "installed"
    if stamp.is_file() and stamp.read_text() == requirement:
        return python
    note(f"installing {requirement}")
    for command in ([sys.executable, "-m", "venv", "--clear", folder], [python, "-m", "pip", "install", requirement]):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode:
            note(f"{requirement} is left out: {done.stderr.strip()[-500:]}")
            return None
    stamp.write_text(requirement)
    return python
