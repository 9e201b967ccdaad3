"""Which names of task types, fields and proxies the local service takes, and the public table of prices."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.service_helpers import IMAGE, KEY, V2, calling
from ucaptcha_async.testing import DIALECTS, KINDS, LocalService, Server, running_service
from ucaptcha_async.testing.spellings import SPELLINGS

TURNSTILE = {"websiteURL": "https://example.com/", "websiteKey": "0x4AAAAAAA"}
PROXY_FIELDS = {"proxyType": "http", "proxyAddress": "198.51.100.7", "proxyPort": 8080}
PROXY_TEXT = {"proxy": "http://user:password@198.51.100.7:8080"}

TAKEN = {
    "own": ("RecaptchaV2TaskProxyless", "ReCaptchaV2TokenProxyLess", "TurnstileTokenProxyLess", "ImageToTextTask"),
    "anticaptcha": ("RecaptchaV2TaskProxyless", "TurnstileTaskProxyless", "HCaptchaTaskProxyless", "ImageToTextTask"),
    "capsolver": ("ReCaptchaV2TaskProxyLess", "AntiTurnstileTaskProxyLess", "HCaptchaTaskProxyLess", "ImageToTextTask"),
    "anysolver": ("ReCaptchaV2TokenProxyLess", "TurnstileTokenProxyLess", "PopularCaptchaTokenProxyLess"),
}
REFUSED = {
    "own": ("TurnstileTaskProxyless", "HCaptchaTaskProxyless", "PopularCaptchaTokenProxyLess", "Unheard"),
    "anticaptcha": ("TurnstileTokenProxyLess", "ReCaptchaV2TaskProxyLess", "HardCaptchaTokenProxyLess"),
    "capsolver": ("RecaptchaV2TaskProxyless", "TurnstileTaskProxyless", "ReCaptchaV2TokenProxyLess"),
    "anysolver": ("RecaptchaV2TaskProxyless", "TurnstileTaskProxyless", "HardCaptchaTokenProxyLess"),
}


def task(name: str, **fields: Any) -> dict[str, Any]:
    return IMAGE if name == "ImageToTextTask" else {"type": name, **TURNSTILE, **fields}


@pytest.mark.parametrize(("types", "name"), [(types, name) for types, names in TAKEN.items() for name in names])
async def test_names_that_are_taken(types: str, name: str) -> None:
    """A service takes the names on its own pages."""
    service = LocalService(types=types)
    async with calling(service) as call:
        assert await call.create(task(name))

    assert [each.type for each in service.books.tasks.values()] == [name]


@pytest.mark.parametrize(("types", "name"), [(types, name) for types, names in REFUSED.items() for name in names])
async def test_names_that_are_refused(types: str, name: str) -> None:
    """A name of another service is refused, and costs nothing."""
    service = LocalService(types=types)
    async with calling(service) as call:
        heard = await call("createTask", task=task(name))

    assert (heard.status, heard.json["errorCode"]) == (400, "TASK_NOT_SUPPORTED")
    assert service.books.accepted == ()
    assert service.books.charged == 0


def test_every_name_is_known() -> None:
    """What one service takes, `any` takes; no name means two kinds."""
    kinds = {name: kind.name for kind in KINDS for name in kind.types}

    assert sum(len(kind.types) for kind in KINDS) == len(kinds)
    for spelling in SPELLINGS.values():
        for kind, names in (spelling.types or {}).items():
            assert {kinds[name] for name in names} == {kind}
    assert {dialect.spelling for dialect in DIALECTS.values()} <= set(SPELLINGS)


async def test_types_of_the_dialect() -> None:
    """A service may take what the service takes whose dialect it speaks, and refuses in its words."""
    async with calling(LocalService(dialect="2captcha", types="dialect")) as call:  # type: ignore[arg-type]
        assert await call.create(task("TurnstileTaskProxyless"))
        heard = await call("createTask", task=task("TurnstileTokenProxyLess"))

    assert (heard.status, heard.json["errorCode"]) == (200, "ERROR_TASK_NOT_SUPPORTED")


async def test_extra_types_are_always_taken() -> None:
    """What is asked for by name is there, whatever the spelling."""
    async with calling(LocalService(types="own", extra_types=["OwnTask"])) as call:
        assert await call.create({"type": "OwnTask"})


def test_an_unknown_spelling() -> None:
    """The names of the spellings are in the error."""
    with pytest.raises(ValueError, match="anysolver"):
        LocalService(types="klingon")


@pytest.mark.parametrize(
    ("types", "name", "fields", "code"),
    [
        ("capsolver", "AntiTurnstileTaskProxyLess", {"metadata": {"cdata": "c"}}, None),
        ("capsolver", "AntiTurnstileTaskProxyLess", {"cData": "c"}, "ERROR_BAD_PARAMETERS"),
        ("anticaptcha", "TurnstileTaskProxyless", {"cData": "c"}, None),
        ("anticaptcha", "TurnstileTaskProxyless", {"metadata": {"cdata": "c"}}, "ERROR_BAD_PARAMETERS"),
        ("anysolver", "PopularCaptchaTokenProxyLess", {"enterprisePayload": {}}, "ERROR_BAD_PARAMETERS"),
        ("anticaptcha", "TurnstileTask", PROXY_FIELDS, None),
        ("anticaptcha", "TurnstileTask", PROXY_TEXT, "ERROR_BAD_PROXY"),
        ("anysolver", "TurnstileToken", PROXY_TEXT, None),
        ("anysolver", "TurnstileToken", PROXY_FIELDS, "ERROR_BAD_PROXY"),
        ("anysolver", "TurnstileToken", {}, "ERROR_BAD_PROXY"),
        ("capsolver", "ReCaptchaV2Task", {"proxy": "198.51.100.7:8080:user:password"}, None),
        ("own", "TurnstileToken", PROXY_TEXT, None),
        ("own", "TurnstileToken", {"proxy": "198.51.100.7:8080:user:password"}, "ERROR_PROXY_FORMAT"),
        ("own", "GeeTestV4TokenProxyLess", {"gt": "e392e1d7"}, None),
        ("own", "GeeTestV3TokenProxyLess", {"gt": "e392e1d7"}, "ERROR_BAD_PARAMETERS"),
    ],
)
async def test_fields_and_proxies(types: str, name: str, fields: dict[str, Any], code: str | None) -> None:
    """A name comes with its service's spelling of fields and proxy. The real ones would sell a useless token."""
    async with calling(LocalService(types=types)) as call:
        heard = await call("createTask", task=task(name, **fields))

    assert heard.json.get("errorCode") == code


@pytest.mark.parametrize("said", ["TurnstileTaskProxyless", "TurnstileTokenProxyLess", "Turnstile"])
async def test_options_go_by_kind(said: str) -> None:
    """A choice for a type holds whatever name of the kind a task is sent under, and for no other kind."""
    service = LocalService(prices={said: "0.5"}, solve_time={said: 7}, immediate_types=[])  # type: ignore[dict-item]
    service.fail_next(type=said)
    async with calling(service) as call:
        other = await call.create(V2)
        turnstile = await call.create(task("AntiTurnstileTaskProxyLess"))
        service.immediate_types = [said]
        at_once = await call("createTask", task=task("TurnstileTokenProxyLess"))
    other, turnstile = service.books.tasks[other], service.books.tasks[turnstile]

    assert (turnstile.cost, turnstile.ready_at - turnstile.created_at) == (Decimal("0.5"), pytest.approx(7))
    assert (turnstile.error_code, other.error_code) == ("ERROR_CAPTCHA_UNSOLVABLE", None)
    assert other.cost < turnstile.cost
    assert at_once.json["status"] == "ready"


async def test_the_very_name_goes_before_its_kind() -> None:
    """Where both are chosen."""
    service = LocalService(prices={"TurnstileTask": "0.5", "TurnstileTaskProxyless": "0.25"})  # type: ignore[dict-item]
    async with calling(service) as call:
        await call.create(task("TurnstileTaskProxyless"))
        await call.create(task("TurnstileTokenProxyLess"))

    assert [each.cost for each in service.books.tasks.values()] == [Decimal("0.25"), Decimal("0.5")]


async def test_the_table_of_prices() -> None:
    """`GET /x402/pricing` needs no key, lists what is taken, and counts as a request of its address."""
    service = LocalService(types="own", prices={"TurnstileTokenProxyLess": "0.002"}, keys=[KEY])  # type: ignore[dict-item]
    async with Server(service) as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            answer = await http.get("/x402/pricing")
            posted = await http.post("/x402/pricing")

    prices = answer.json()["pricesUsd"]
    assert answer.status_code == 200
    assert prices["TurnstileTokenProxyLess"] == 0.003
    assert prices["ReCaptchaV2TokenProxyLess"] == pytest.approx(0.0045, rel=0.01)
    assert set(prices) == set(SPELLINGS["own"].names())
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET")
    assert answer.headers["x-ratelimit-remaining"] == "9999"
    assert dict(service.books.request_counts) == {"x402/pricing": 2}
    assert service.books.requests[0].key is None


async def test_prices_are_limited_too() -> None:
    """One request too many is refused, whatever it asks for."""
    async with calling(LocalService(rate_limit=1)) as call:
        first, second = await call.http.get("/x402/pricing"), await call.http.get("/x402/pricing")

    assert (first.status_code, second.status_code) == (200, 429)


def test_types_at_the_command_line() -> None:
    """The command has the option as well."""
    with running_service(types="capsolver") as service, httpx.Client(base_url=service.url) as http:
        answers = [
            http.post("/createTask", json={"clientKey": KEY, "task": each}).json()
            for each in (V2, task("AntiTurnstileTaskProxyLess"))
        ]

    assert [answer.get("errorCode") for answer in answers] == ["TASK_NOT_SUPPORTED", None]
