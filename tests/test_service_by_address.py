"""Each class of tasks against each spelling and dialect, over real sockets, with `base_url` alone.

The services take the types, fields and proxies of one service of the family each, and refuse those of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ucaptcha_async
from tests.helpers import KEY, at_rest
from ucaptcha_async import (
    AsyncClient,
    ClickCoordinates,
    FriendlyCaptcha,
    FunCaptcha,
    GeeTestV3,
    GeeTestV4,
    HCaptcha,
    ImageToText,
    MTCaptcha,
    Polling,
    Proxy,
    RecaptchaV2,
    RecaptchaV2Enterprise,
    RecaptchaV3,
    Rotate,
    Task,
    Tencent,
    Turnstile,
    UnsupportedTaskError,
    YandexSmartCaptcha,
)
from ucaptcha_async.tasks.base import Widget
from ucaptcha_async.testing import DIALECTS, LocalService, Server, running_service
from ucaptcha_async.testing.spellings import SPELLINGS

PNG = bytes.fromhex("89504e470d0a1a0a") + bytes(120)
PAGE: dict[str, Any] = {"website_url": "https://example.com/"}
KEYED: dict[str, Any] = {**PAGE, "website_key": "k"}
PROXY = Proxy.parse("http://user:password@198.51.100.7:8080")
QUICK = Polling(interval=0.1, first=0.12)

WIDGETS: dict[str, tuple[Callable[..., Task[Any]], dict[str, Any]]] = {
    "v2": (RecaptchaV2, {**KEYED, "is_invisible": True}),
    "v2 enterprise": (RecaptchaV2Enterprise, KEYED),
    "v3": (RecaptchaV3, {**KEYED, "min_score": 0.7, "page_action": "login"}),
    "v3 enterprise": (RecaptchaV3, {**KEYED, "is_enterprise": True}),
    "hcaptcha": (HCaptcha, KEYED),
    "hcaptcha rqdata": (HCaptcha, {**KEYED, "enterprise_payload": {"rqdata": "r"}, "is_invisible": True}),
    "turnstile": (Turnstile, KEYED),
    "turnstile action": (Turnstile, {**KEYED, "action": "login", "c_data": "c"}),
    "turnstile page": (Turnstile, {**KEYED, "chl_page_data": "p"}),
    "geetest v3": (GeeTestV3, {**PAGE, "gt": "022397c9", "challenge": "12345678abc"}),
    "geetest v4": (GeeTestV4, {**PAGE, "gt": "e392e1d7"}),
    "funcaptcha": (FunCaptcha, {**PAGE, "website_public_key": "69A21A01"}),
    "mtcaptcha": (MTCaptcha, KEYED),
    "friendly": (FriendlyCaptcha, KEYED),
    "yandex": (YandexSmartCaptcha, KEYED),
    "tencent": (Tencent, {**PAGE, "app_id": "190014885"}),
}
TASKS: dict[str, Task[Any]] = {
    **{name: widget(**fields) for name, (widget, fields) in WIDGETS.items()},
    **{f"{name}, proxy": widget(**fields, proxy=PROXY) for name, (widget, fields) in WIDGETS.items()},
    "text": ImageToText(image=PNG),
    "clicks": ClickCoordinates(image=PNG, comment="all cats"),
    "rotate": Rotate(image=PNG),
}


def both(*names: str) -> set[str]:
    return {name + way for name in names for way in ("", ", proxy")}


NOT_SOLD: dict[str, set[str]] = {
    "any": set(),
    # Nobody knows whether the service's own names carry these fields.
    "own": {*both("turnstile page", "hcaptcha rqdata"), "clicks", "rotate"},
    "anticaptcha": {"v3, proxy", "v3 enterprise, proxy"},
    "capsolver": {
        *both("turnstile page", "friendly", "tencent"),
        *("turnstile, proxy", "turnstile action, proxy", "yandex, proxy", "clicks", "rotate"),
    },
    "anysolver": both("turnstile page", *("geetest v3", "geetest v4", "funcaptcha", "mtcaptcha"))
    | both("friendly", "yandex", "tencent"),
}
"""What each service has no type for, or none that carries the fields that are set."""


def test_every_class_is_here() -> None:
    """No class of tasks is left out."""
    classes = (getattr(ucaptcha_async, name) for name in ucaptcha_async.__all__)
    assert {type(task) for task in TASKS.values()} == {
        cls for cls in classes if isinstance(cls, type) and issubclass(cls, Widget)
    }


async def each_is_solved_or_not_sold(server: Server, spelling: str) -> None:
    """What the service sells is solved under a name of its own; for the rest, all names were tried."""
    books = server.service.books
    accepted, requests = len(books.accepted), books.request_counts["createTask"]
    async with AsyncClient(KEY, base_url=server.url, polling=QUICK, timeout=20) as client:
        outcomes = dict(zip(TASKS, await client.gather(TASKS.values()), strict=True))
        at_rest(client)
    refusals = books.request_counts["createTask"] - requests - (len(books.accepted) - accepted)

    assert {name for name, outcome in outcomes.items() if not outcome.ok} == NOT_SOLD[spelling]
    for name, outcome in outcomes.items():
        names = [candidate.type for candidate in TASKS[name].names()]
        if outcome.ok:
            sold = books.tasks[outcome.task_id or ""]
            assert sold.type in names
            assert SPELLINGS[spelling].takes(sold.type)
            assert type(outcome.solution) is type(TASKS[name]).solution_class
            assert next(iter(sold.solution.values())) in outcome.solution.raw.values()
        else:
            assert isinstance(outcome.error, UnsupportedTaskError)
            assert all(tried in outcome.error.message for tried in names)
    assert len(books.accepted) - accepted == len(TASKS) - len(NOT_SOLD[spelling])
    assert refusals <= 8 * len({(task.kind, "proxy" in name) for name, task in TASKS.items()})


@pytest.fixture(scope="module", params=SPELLINGS)
def spelled(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(LocalService(types=request.param, solve_time=0.1, idle_for=0)) as server:
        yield server


@pytest.fixture(scope="module", params=DIALECTS)
def spoken(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(LocalService(dialect=request.param, types="dialect", solve_time=0.1, idle_for=0)) as server:
        yield server


async def test_each_class_at_each_spelling(spelled: Server) -> None:
    """Types, fields and proxies of one service, in uCaptcha's own way of answering."""
    await each_is_solved_or_not_sold(spelled, spelled.service.types)


async def test_each_class_at_each_dialect(spoken: Server) -> None:
    """The same in the way in which that service answers."""
    await each_is_solved_or_not_sold(spoken, spoken.service.dialect.spelling)


async def test_the_command() -> None:
    """A service in a process of its own, and two clients: the second asks for nothing that the first has found out."""
    tasks = [TASKS[name] for name in ("v2", "turnstile action", "hcaptcha", "v3, proxy")]
    counts = []
    with running_service(types="capsolver", solve_time=0.1) as service:
        for _ in range(2):
            async with AsyncClient(KEY, base_url=service.url, polling=QUICK, timeout=20) as client:
                outcomes = await client.gather(tasks)
                assert all(outcome.ok for outcome in outcomes)
            books: Any = service.books()
            counts.append(books["request_counts"]["createTask"])

    assert counts[0] > len(tasks)
    assert counts[1] - counts[0] == len(tasks)


async def test_names_that_change_while_hundreds_are_solved() -> None:
    """Each is paid for once, whatever the service takes; a search costs a few refusals."""
    with Server(LocalService(types="capsolver", solve_time=0.3, idle_for=0)) as server:
        books = server.service.books
        async with AsyncClient(KEY, base_url=server.url, polling=QUICK, timeout=30, max_in_flight=50) as client:
            async with client.solve_many([TASKS["turnstile"]] * 300) as outcomes:
                ends = []
                async for outcome in outcomes:
                    ends.append(outcome)
                    if len(ends) in (100, 200):
                        server.service.types = {100: "own", 200: "anticaptcha"}[len(ends)]
            at_rest(client)

    assert [outcome.error for outcome in ends if not outcome.ok] == []
    assert len(books.accepted) == len({outcome.task_id for outcome in ends}) == 300
    assert {books.tasks[task_id].type for task_id in books.accepted} >= {"TurnstileTokenProxyLess"}
    assert books.request_counts["createTask"] - 300 <= 2 * 50 + 8
