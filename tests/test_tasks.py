"""Tasks: what is sent, what is refused before any request, and what is never shown."""

from __future__ import annotations

import base64
import copy
import functools
import gc
import inspect
import io
import json
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucaptcha_async import tasks
from ucaptcha_async.errors import InvalidTaskError, ProxyError
from ucaptcha_async.tasks import (
    ClickCoordinates,
    FriendlyCaptcha,
    FunCaptcha,
    GeeTestV3,
    GeeTestV4,
    HCaptcha,
    ImageToText,
    MTCaptcha,
    Proxy,
    RecaptchaV2,
    RecaptchaV2Enterprise,
    RecaptchaV3,
    Rotate,
    Task,
    Tencent,
    Turnstile,
    YandexSmartCaptcha,
)

PAGE = "https://example.com/login"
GIF64 = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
GIF = base64.b64decode(GIF64)
URI = f"data:image/gif;base64,{GIF64}"
PROXY = Proxy(scheme="http", host="proxy.example.com", port=8080, username="user", password="s3cret")
PROXY_URL = "http://user:s3cret@proxy.example.com:8080"

FULL: list[tuple[Task[Any], dict[str, Any]]] = [
    (
        RecaptchaV2(
            website_url=PAGE,
            website_key="k",
            is_invisible=True,
            recaptcha_data_s_value="s",
            page_action="login",
            user_agent="Mozilla/5.0",
            cookies="a=b",
        ),
        {
            "type": "ReCaptchaV2TokenProxyLess",
            "websiteURL": PAGE,
            "websiteKey": "k",
            "isInvisible": True,
            "recaptchaDataSValue": "s",
            "pageAction": "login",
            "userAgent": "Mozilla/5.0",
            "cookies": "a=b",
        },
    ),
    (
        RecaptchaV2Enterprise(
            website_url=PAGE, website_key="k", enterprise_payload={"s": "x"}, api_domain="www.recaptcha.net"
        ),
        {
            "type": "RecaptchaV2EnterpriseTaskProxyless",
            "websiteURL": PAGE,
            "websiteKey": "k",
            "enterprisePayload": {"s": "x"},
            "apiDomain": "www.recaptcha.net",
        },
    ),
    (
        RecaptchaV3(
            website_url=PAGE,
            website_key="k",
            min_score=0.3,
            page_action="a",
            is_enterprise=True,
            api_domain="google.com",
            enterprise_payload={"s": "x"},
            is_session=False,
        ),
        {
            "type": "ReCaptchaV3EnterpriseTaskProxyLess",
            "websiteURL": PAGE,
            "websiteKey": "k",
            "minScore": 0.3,
            "pageAction": "a",
            "apiDomain": "google.com",
            "enterprisePayload": {"s": "x"},
            "isSession": False,
        },
    ),
    (
        HCaptcha(
            website_url=PAGE, website_key="k", is_invisible=False, enterprise_payload={"rqdata": "r"}, user_agent="u"
        ),
        {
            "type": "HCaptchaTaskProxyless",
            "websiteURL": PAGE,
            "websiteKey": "k",
            "isInvisible": False,
            "enterprisePayload": {"rqdata": "r"},
            "userAgent": "u",
        },
    ),
    (
        Turnstile(website_url=PAGE, website_key="k", action="a", c_data="c", chl_page_data="p"),
        {
            "type": "TurnstileTaskProxyless",
            "websiteURL": PAGE,
            "websiteKey": "k",
            "action": "a",
            "cData": "c",
            "data": "c",
            "chlPageData": "p",
            "pagedata": "p",
        },
    ),
    (
        ImageToText(
            image=GIF,
            phrase=False,
            case=True,
            numeric=4,
            math=False,
            min_length=1,
            max_length=9,
            comment="red letters",
            website_url=PAGE,
            language_pool="rn",
            module="common",
        ),
        {
            "type": "ImageToTextTask",
            "body": GIF64,
            "phrase": False,
            "case": True,
            "numeric": 4,
            "math": False,
            "minLength": 1,
            "maxLength": 9,
            "comment": "red letters",
            "websiteURL": PAGE,
            "languagePool": "rn",
            "module": "common",
        },
    ),
    (
        GeeTestV3(
            website_url=PAGE,
            gt="g",
            challenge="c",
            geetest_api_server_subdomain="api.example.com",
            geetest_get_lib="{}",
            user_agent="u",
        ),
        {
            "type": "GeeTestTaskProxyless",
            "websiteURL": PAGE,
            "gt": "g",
            "challenge": "c",
            "geetestApiServerSubdomain": "api.example.com",
            "geetestGetLib": "{}",
            "userAgent": "u",
        },
    ),
    (
        GeeTestV4(
            website_url=PAGE,
            gt="g",
            init_parameters={"captcha_id": "g"},
            geetest_api_server_subdomain="api.example.com",
            user_agent="u",
        ),
        {
            "type": "GeeTestTaskProxyless",
            "websiteURL": PAGE,
            "gt": "g",
            "version": 4,
            "initParameters": {"captcha_id": "g"},
            "geetestApiServerSubdomain": "api.example.com",
            "userAgent": "u",
        },
    ),
    (
        FunCaptcha(
            website_url=PAGE,
            website_public_key="k",
            funcaptcha_api_js_subdomain="x.arkoselabs.com",
            data={"blob": "b"},
        ),
        {
            "type": "FunCaptchaTaskProxyless",
            "websiteURL": PAGE,
            "websitePublicKey": "k",
            "funcaptchaApiJSSubdomain": "x.arkoselabs.com",
            "data": '{"blob": "b"}',
        },
    ),
    (
        MTCaptcha(website_url=PAGE, website_key="MTPublic-x", page_action="a", is_invisible=True, user_agent="u"),
        {
            "type": "MTCaptchaTask",
            "websiteURL": PAGE,
            "websiteKey": "MTPublic-x",
            "pageAction": "a",
            "isInvisible": True,
            "userAgent": "u",
        },
    ),
    (
        FriendlyCaptcha(website_url=PAGE, website_key="k"),
        {"type": "FriendlyCaptchaTaskProxyless", "websiteURL": PAGE, "websiteKey": "k"},
    ),
    (
        YandexSmartCaptcha(website_url=PAGE, website_key="ysc1_k"),
        {"type": "YandexCaptchaTaskProxyLess", "websiteURL": PAGE, "websiteKey": "ysc1_k"},
    ),
    (
        Tencent(website_url=PAGE, app_id="19", captcha_script="https://captcha.example.com/c.js"),
        {
            "type": "TencentTaskProxyless",
            "websiteURL": PAGE,
            "appId": "19",
            "captchaScript": "https://captcha.example.com/c.js",
        },
    ),
    (
        ClickCoordinates(image=GIF, comment="cats", img_instructions=GIF64, min_clicks=1, max_clicks=4),
        {
            "type": "CoordinatesRecognition",
            "imageBase64": URI,
            "comment": "cats",
            "imgInstructions": URI,
            "minClicks": 1,
            "maxClicks": 4,
        },
    ),
    (
        Rotate(image=GIF, angle=40, comment="upright", img_instructions=URI),
        {
            "type": "RotateRecognition",
            "imageBase64": URI,
            "angle": 40,
            "comment": "upright",
            "imgInstructions": URI,
        },
    ),
]

LEAST: list[Callable[..., Task[Any]]] = [
    lambda **more: RecaptchaV2(website_url=PAGE, website_key="k", **more),
    lambda **more: RecaptchaV2Enterprise(website_url=PAGE, website_key="k", **more),
    lambda **more: RecaptchaV3(website_url=PAGE, website_key="k", **more),
    lambda **more: HCaptcha(website_url=PAGE, website_key="k", **more),
    lambda **more: Turnstile(website_url=PAGE, website_key="k", **more),
    lambda **more: GeeTestV3(website_url=PAGE, gt="g", challenge="c", **more),
    lambda **more: GeeTestV4(website_url=PAGE, gt="g", **more),
    lambda **more: FunCaptcha(website_url=PAGE, website_public_key="k", **more),
    lambda **more: MTCaptcha(website_url=PAGE, website_key="k", **more),
    lambda **more: FriendlyCaptcha(website_url=PAGE, website_key="k", **more),
    lambda **more: YandexSmartCaptcha(website_url=PAGE, website_key="k", **more),
    lambda **more: Tencent(website_url=PAGE, app_id="a", **more),
    lambda **more: ImageToText(image=GIF, **more),
    lambda **more: ClickCoordinates(image=GIF, **more),
    lambda **more: Rotate(image=GIF, **more),
]
PROXIED = LEAST[:12]


def name_of(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(("task", "wire"), FULL, ids=name_of)
def test_every_field_is_sent_as_the_service_spells_it(task: Task[Any], wire: dict[str, Any]) -> None:
    """With all fields given, exactly these names and values go out."""
    assert wire == task.to_wire()
    assert wire["type"] == task.type


@pytest.mark.parametrize(("task", "wire"), FULL, ids=name_of)
def test_the_table_above_misses_no_field(task: Any, wire: dict[str, Any]) -> None:
    """The cases above give each field of each class, but for those that all classes share."""
    shared = {"proxy", "_type", "_life", "_extra"}
    unset = [f.name for f in attrs.fields(type(task)) if f.name not in shared and getattr(task, f.name) is None]

    assert unset == []


def test_each_class_is_tested_and_exported() -> None:
    """No class of a task is missing in the tables of this file."""
    exported = {getattr(tasks, name) for name in tasks.__all__}
    public = {cls for cls in exported if issubclass(cls, Task)} - {Task}

    assert public == {type(task) for task, _ in FULL} == {type(make()) for make in LEAST}


@pytest.mark.parametrize("make", LEAST)
def test_fields_that_are_not_given_are_not_sent(make: Callable[..., Task[Any]]) -> None:
    """`None` is left out of the task object, so that the service's own defaults apply."""
    wire = make().to_wire()

    assert None not in wire.values()
    assert len(wire) <= 4


@pytest.mark.parametrize("make", PROXIED)
def test_a_proxy_chooses_the_other_type_name(make: Callable[..., Task[Any]]) -> None:
    """With a proxy the type's name has no "Proxyless", and the proxy is sent as the type's own service wants it."""
    bare, proxied = make(), make(proxy=PROXY)

    assert bare.type.lower().endswith("proxyless")
    assert not proxied.type.lower().endswith("proxyless")
    assert proxied.to_wire().items() >= PROXY.to_wire("url" if proxied.type.endswith("Token") else "fields").items()
    assert not any(name.startswith("proxy") for name in bare.to_wire())


@pytest.mark.parametrize("make", LEAST)
def test_the_type_can_be_overridden(make: Callable[..., Task[Any]]) -> None:
    """`type` replaces the name on the wire and nothing else."""
    task = make(type="ReCaptchaV2TokenProxyLess")

    assert task.type == task.to_wire()["type"] == "ReCaptchaV2TokenProxyLess"
    assert {**make().to_wire(), "type": task.type} == task.to_wire()
    assert make(type=None) == make()


@pytest.mark.parametrize("make", LEAST)
def test_extra_fields_are_added_and_win(make: Callable[..., Task[Any]]) -> None:
    """`extra` is sent as it is and replaces fields of the same name."""
    assert make(extra={"pageTitle": "x"}).to_wire()["pageTitle"] == "x"
    assert make(extra={"websiteURL": 7}).to_wire()["websiteURL"] == 7


@pytest.mark.parametrize("make", LEAST)
@pytest.mark.parametrize("extra", [{"type": "x"}, {"a": object()}, {1: 2}, [], "a"])
def test_wrong_extra_fields_are_refused(make: Callable[..., Task[Any]], extra: Any) -> None:
    """`extra` must be a mapping of JSON values, without a type."""
    with pytest.raises(InvalidTaskError, match="extra"):
        make(extra=extra)


@pytest.mark.parametrize("make", [*LEAST, lambda: Task("X", website_url=PAGE)])
def test_tasks_are_frozen(make: Callable[..., Task[Any]]) -> None:
    """No attribute can be changed, added or deleted."""
    task: Any = make()

    for name in ("type", "lifetime", "website_url", "anything"):
        with pytest.raises(AttributeError):
            setattr(task, name, "x")
        with pytest.raises(AttributeError):
            delattr(task, name)


@pytest.mark.parametrize("make", LEAST)
def test_equal_tasks_are_one_key(make: Callable[..., Task[Any]]) -> None:
    """Tasks that send the same are equal and hash alike; a difference in any part makes them differ."""
    assert make() == make()
    assert hash(make()) == hash(make())
    assert len({make(), make(), make(type="Other"), make(lifetime=5), make(extra={"a": [1]})}) == 4
    assert make() != "a task"


def test_a_raw_task_is_not_equal_to_a_class_that_sends_the_same() -> None:
    """Their solutions are of different types, so they are different tasks."""
    typed = RecaptchaV2(website_url=PAGE, website_key="k")
    raw = Task("RecaptchaV2TaskProxyless", websiteURL=PAGE, websiteKey="k")

    assert raw.to_wire() == typed.to_wire()
    assert raw != typed


def test_true_and_one_are_different_on_the_wire() -> None:
    """Equality follows the JSON that is sent, not Python's `1 == True`."""
    assert Task("X", a=1) != Task("X", a=True)


@pytest.mark.parametrize("make", [*LEAST, lambda: Task("X", a=1, b=[None])])
def test_tasks_can_be_pickled_and_copied(make: Callable[..., Task[Any]]) -> None:
    """A pickled task comes back equal; a copy of something frozen is itself."""
    task = make()

    assert task == pickle.loads(pickle.dumps(task))
    assert task is copy.copy(task)
    assert task is copy.deepcopy(task)


@pytest.mark.parametrize(
    "task",
    [
        RecaptchaV2(website_url=PAGE, website_key="k", proxy=PROXY),
        RecaptchaV2(website_url=PAGE, website_key="k", extra={"proxy": PROXY_URL}),
        RecaptchaV2(website_url=PAGE, website_key="k", extra={"proxyPassword": "s3cret"}),
        Task("X", proxy=PROXY),
        Task("X", proxy=PROXY_URL),
        Task("X", deep=[{"proxy": PROXY}]),
        Task("X", inner=Task("Y", proxy=PROXY)),
        Task("X", proxyPassword="s3cret"),
    ],
)
def test_a_password_is_neither_shown_nor_pickled(task: Task[Any]) -> None:
    """However a proxy's password got into a task, its `repr` hides it and `pickle` is refused."""
    assert "s3cret" not in repr(task)
    assert "s3cret" in json.dumps(task.to_wire())
    with pytest.raises(TypeError, match="password"):
        pickle.dumps(task)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Slotted(RecaptchaV2):
    """A class of a program's own."""

    page_title: str | None = None


@attrs.frozen(kw_only=True, eq=False, repr=False, slots=False)
class Unslotted(RecaptchaV2):
    """The same without slots."""

    page_title: str | None = None


def test_a_task_is_one_object() -> None:
    """A million that wait are a million objects for the garbage collector."""
    parts = gc.get_referents(RecaptchaV2(website_url=PAGE, website_key="k"))

    assert [RecaptchaV2] == [part for part in parts if gc.is_tracked(part)]


def test_extra_is_the_task_s_own() -> None:
    """What somebody does to the empty one reaches neither this task nor another."""
    one, other = (RecaptchaV2(website_url=PAGE, website_key="k", extra=extra) for extra in (None, {}))
    assert isinstance(one.extra, dict)
    one.extra["pageTitle"] = "x"

    assert one == other
    assert one.extra == other.extra == {}
    assert repr(RecaptchaV2(website_url=PAGE, website_key="k", extra={"a": "s3cret"}).extra) == "<1 hidden: a>"


def test_subclasses_may_have_fields_of_their_own() -> None:
    """They are pickled and lose their password, with slots or without."""
    for cls in (Slotted, Unslotted):
        task = cls(website_url=PAGE, website_key="k", page_title="x", proxy=PROXY, extra={"a": 1})
        bare = task.without_password()

        assert pickle.loads(pickle.dumps(bare)) == bare != task
        assert bare.to_wire()["pageTitle"] == "x"
        assert bare.extra == {"a": 1}


def test_a_subclass_may_have_fields_that_are_no_keywords_only() -> None:
    """Its signature can be asked for, as `help()` does."""

    @attrs.frozen(eq=False, repr=False)
    class Titled(RecaptchaV2):
        page_title: str = "x"

    names = list(inspect.signature(Titled).parameters)

    assert names[:3] == ["page_title", "website_url", "website_key"]
    assert Titled(website_url=PAGE, website_key="k", page_title="y").to_wire()["pageTitle"] == "y"


@pytest.mark.parametrize("cls", [*dict.fromkeys(type(task) for task, _ in FULL), Task])
def test_a_task_that_is_known_by_its_id_is_a_value_like_any_other(cls: type[Task[Any]]) -> None:
    """It is in outcomes and in errors: shown, compared, pickled."""
    task = cls.known_by_id()

    assert repr(task).startswith(f"{cls.__name__}(")
    assert {task, pickle.loads(pickle.dumps(task)), task.without_password(), cls.known_by_id()} == {task}
    assert task.kind == cls.__name__


def test_a_task_that_is_only_half_made_can_be_shown() -> None:
    """So a traceback with local values shows it where its image is refused."""
    with pytest.raises(InvalidTaskError) as caught:
        ImageToText(image=b"no image")

    traceback.TracebackException.from_exception(caught.value, capture_locals=True)


def test_repr_shows_what_was_given() -> None:
    """A task's `repr` reads like its constructor; cookies and images are hidden, long text is counted."""
    task = RecaptchaV2(website_url=PAGE, website_key="k" * 200, cookies="a=b", lifetime=6)

    assert (
        repr(task) == f"RecaptchaV2(website_url={PAGE!r}, website_key=<200 characters>, lifetime=6.0, cookies=<hidden>)"
    )
    assert repr(Task("X", a="b", body=GIF64, c=None, d=[1, 2])) == "Task('X', a='b', body=<hidden>, d=<2 items>)"
    assert repr(ImageToText(image=GIF)) == "ImageToText(image=<image/gif, 42 bytes>)"


# --- wrong values -------------------------------------------------------------------------------------------------

WRONG: list[tuple[type[Task[Any]], str, list[Any]]] = [
    (
        RecaptchaV2,
        "website_url",
        [
            "",
            "/login",
            "example.com",
            "ftp://example.com",
            "https://",
            "https://example.com:0/",
            "https://exa mple.com",
            "https://[::1",
            "https://example.com/\ud800",
            b"https://example.com",
            None,
            7,
        ],
    ),
    (RecaptchaV2, "website_key", ["", " ", "a b", "key\n", "k\x00", "k\ud800", None, 7, b"k"]),
    (RecaptchaV2, "is_invisible", [1, 0, "true", []]),
    (RecaptchaV2, "recaptcha_data_s_value", ["", "  ", 1]),
    (RecaptchaV2, "cookies", ["", {"a": "b"}]),
    (RecaptchaV2, "user_agent", ["", 3]),
    (RecaptchaV2, "type", ["", "a b", 3, b"X"]),
    (RecaptchaV2, "lifetime", [-1, "120", float("nan"), float("inf"), True]),
    (RecaptchaV2Enterprise, "enterprise_payload", ["s", [1], {"s": b"x"}, {"s": float("inf")}, {1: "x"}, {"s": {1}}]),
    (RecaptchaV2Enterprise, "api_domain", ["example.com", "", 1, "WWW.GOOGLE.COM"]),
    (RecaptchaV3, "min_score", [0, 0.09, 0.91, 1, -1, float("nan"), float("inf"), "0.7", True]),
    (HCaptcha, "enterprise_payload", ["rqdata"]),
    (Turnstile, "c_data", ["", 1]),
    (ImageToText, "numeric", [-1, 5, 1.0, True, "1"]),
    (ImageToText, "min_length", [-1, 1.5, "3", 10_001]),
    (ImageToText, "max_length", [-1, None.__class__, 10_001]),
    (ImageToText, "language_pool", ["fr", "EN", 1]),
    (ImageToText, "phrase", [0, "no"]),
    (ImageToText, "website_url", ["example.com"]),
    (GeeTestV3, "gt", ["", None]),
    (GeeTestV3, "challenge", ["", None]),
    (GeeTestV4, "init_parameters", ["{}", [("a", 1)]]),
    (FunCaptcha, "website_public_key", ["", None]),
    (FunCaptcha, "data", ["blob", "[1]", "{", 7, {"blob": b"x"}, "[" * 100_000]),
    (Tencent, "app_id", ["", 190]),
    (Tencent, "captcha_script", ["TCaptcha.js"]),
    (ClickCoordinates, "min_clicks", [0, -1, 1.5]),
    (ClickCoordinates, "max_clicks", [0, "4"]),
    (Rotate, "angle", [0, 361, float("nan"), "40"]),
]
GIVEN: dict[type[Task[Any]], dict[str, Any]] = {
    RecaptchaV2: {"website_url": PAGE, "website_key": "k"},
    RecaptchaV2Enterprise: {"website_url": PAGE, "website_key": "k"},
    RecaptchaV3: {"website_url": PAGE, "website_key": "k"},
    HCaptcha: {"website_url": PAGE, "website_key": "k"},
    Turnstile: {"website_url": PAGE, "website_key": "k"},
    ImageToText: {"image": GIF},
    GeeTestV3: {"website_url": PAGE, "gt": "g", "challenge": "c"},
    GeeTestV4: {"website_url": PAGE, "gt": "g"},
    FunCaptcha: {"website_url": PAGE, "website_public_key": "k"},
    Tencent: {"website_url": PAGE, "app_id": "1"},
    ClickCoordinates: {"image": GIF},
    Rotate: {"image": GIF},
}


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [(cls, field, value) for cls, field, values in WRONG for value in values],
)
def test_a_wrong_value_is_refused_at_construction(cls: Any, field: str, value: Any) -> None:
    """The error names the field and what is allowed, and says that nothing was charged."""
    with pytest.raises(InvalidTaskError, match=field) as caught:
        cls(**{**GIVEN[cls], field: value})

    assert caught.value.field is not None
    assert caught.value.field.startswith(field)
    assert " must " in str(caught.value)
    assert caught.value.charged is False
    assert caught.value.retryable is False


def test_the_message_says_field_type_and_allowed_values() -> None:
    """One error in full."""
    with pytest.raises(InvalidTaskError) as caught:
        RecaptchaV3(website_url=PAGE, website_key="k", min_score=1.5)

    assert str(caught.value) == "min_score must be a number from 0.1 to 0.9; got float 1.5"


@pytest.mark.parametrize(
    ("url", "got"),
    [
        ("example.com/login", "'example.com' without a scheme"),
        ("ftp://user:s3cret@example.com/s3cret?s3cret", "'ftp://example.com'"),
        ("https://example.com/login\n", "'https://example.com' with white space after it"),
        (" https://example.com", "'https://example.com' with white space before it"),
        ("https://example.com/a b", "'https://example.com' with white space inside it"),
        ("https://example.com:port/", "'https://example.com' with a port that is not a number from 1 to 65535"),
        ("https://user:s3 cret@example.com", "str of 32 characters with white space inside it"),
        ("https://user:s3cret/@example.com:x", "str of 34 characters"),
        ("", "empty str"),
        (7, "int 7"),
    ],
)
def test_a_wrong_url_says_which_and_why(url: Any, got: str) -> None:
    """Scheme and host are shown, never credentials, path or query; white space is named as the trouble."""
    with pytest.raises(InvalidTaskError) as caught:
        RecaptchaV2(website_url=url, website_key="k")

    assert caught.value.message == f"website_url must be an absolute URL (http://… or https://…); got {got}"


@pytest.mark.parametrize("score", [0.1, 0.3, 0.9])
def test_scores_at_the_borders_are_allowed(score: float) -> None:
    """0.1 and 0.9 belong to the range."""
    assert score == RecaptchaV3(website_url=PAGE, website_key="k", min_score=score).to_wire()["minScore"]


@pytest.mark.parametrize("value", ["http://user:pass@host:1", 7, {"proxy": 1}])
def test_a_proxy_that_is_not_a_proxy_is_refused(value: Any) -> None:
    """A proxy is given as a `Proxy`, so that its password is never just text."""
    with pytest.raises(ProxyError, match=r"Proxy\.parse"):
        RecaptchaV2(website_url=PAGE, website_key="k", proxy=value)


def test_a_wrong_keyword_is_named() -> None:
    """A misspelt field is a `TypeError`, as of any Python function."""
    with pytest.raises(TypeError, match="websiteURL"):
        RecaptchaV2(websiteURL=PAGE, website_key="k")  # type: ignore[call-arg]


def test_a_missing_field_is_named() -> None:
    """A required field that is not given is a `TypeError`, as of any Python function."""
    with pytest.raises(TypeError, match="website_key"):
        RecaptchaV2(website_url=PAGE)  # type: ignore[call-arg]


def test_the_limits_of_a_length_must_be_in_order() -> None:
    """A least number above the greatest is refused; 0 means no limit."""
    with pytest.raises(InvalidTaskError, match="max_length must be at least min_length"):
        ImageToText(image=GIF, min_length=5, max_length=4)
    with pytest.raises(InvalidTaskError, match="max_clicks must be at least min_clicks"):
        ClickCoordinates(image=GIF, min_clicks=5, max_clicks=4)
    assert ImageToText(image=GIF, min_length=5, max_length=0).to_wire()["maxLength"] == 0


def test_no_traceback_shows_what_was_passed_in() -> None:
    """An error at construction leaves from a frame without arguments, even if locals are shown."""
    for fields in ({"website_key": ""}, {"website_key": "k", "cookies": "", "extra": {"a": "top-s3cret"}}, {"nope": 1}):
        with pytest.raises((InvalidTaskError, TypeError)) as caught:
            RecaptchaV2(website_url=PAGE + "?top-s3cret", **fields)
        frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack[1:]
        assert "s3cret" not in "".join(str(frame.locals) for frame in frames)
        assert caught.value.__context__ is None


def test_no_frame_shows_a_password() -> None:
    """Whatever is wrong, and wherever the password is: no local value of the library's frames shows it."""
    given = {"website_url": PAGE, "website_key": "k", "proxy": PROXY, "extra": {"proxyPassword": "s3cret"}}
    wrong: list[dict[str, Any]] = [
        {"proxy": PROXY_URL},
        {"proxy": PROXY_URL.encode()},
        {"website_url": "ftp://user:s3cret@example.com"},
        {"website_url": "https://user:s3cret@example.com\n"},
        {"website_key": ""},
        {"lifetime": -1},
        {"type": "a b"},
        {"extra": {"proxyPassword": "s3cret", "odd": object()}},
        {"extra": {"deep": [{"proxyPassword": "s3cret", "odd": object()}]}},
        {"extra": {"type": "X", "proxyPassword": "s3cret"}},
        {"proxy": {"https": PROXY_URL}},
        {"cookies": 7},
    ]
    attempts = [functools.partial(RecaptchaV2, **(given | change)) for change in wrong]
    attempts.append(functools.partial(Task, "X", proxyPassword="s3cret", odd=object()))
    attempts.append(functools.partial(Task, "X", nested=[{"proxyPassword": "s3cret"}, {1: 2}], proxy=PROXY_URL))
    attempts.append(functools.partial(Task, "X", lifetime=-1, proxyPassword="s3cret"))
    attempts.append(functools.partial(Task, "a b", proxyPassword="s3cret"))
    for make in attempts:
        with pytest.raises(InvalidTaskError) as caught:
            make()
        report = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        frames = "".join(str(frame.locals) for frame in report.stack[1:])
        assert "s3cret" not in frames + "".join(report.format_exception_only()), make
        assert caught.value.__context__ is None


@pytest.mark.parametrize("cls", dict.fromkeys(type(task) for task, _ in FULL), ids=lambda cls: cls.__name__)
def test_required_fields_come_first(cls: type[Task[Any]]) -> None:
    """In the signature, what must be given stands before what may be, and constants do not show."""
    parameters = list(inspect.signature(cls).parameters.values())
    required = [parameter.default is inspect.Parameter.empty for parameter in parameters]

    assert required == sorted(required, reverse=True)
    assert required[0]
    assert not all(required)
    assert "version" not in inspect.signature(cls).parameters


# --- any other type -----------------------------------------------------------------------------------------------


class Word(StrEnum):
    ONE = "one"


def test_a_raw_task_sends_its_fields_as_given() -> None:
    """Names are not changed, `None` is left out at the top only, and values are plain JSON."""
    task = Task(
        "X", websiteURL=PAGE, some_name=1, gone=None, deep={"kept": None, "t": (1, 2.5)}, word=Word.ONE, yes=True
    )

    assert task.to_wire() == {
        "type": "X",
        "websiteURL": PAGE,
        "some_name": 1,
        "deep": {"kept": None, "t": [1, 2.5]},
        "word": "one",
        "yes": True,
    }


def test_proxies_and_tasks_inside_a_raw_task_are_written_out() -> None:
    """A `Proxy` becomes its URL (or its fields), a task its task object."""
    fields = Proxy(scheme="socks5", host="::1", port=1, spelling="fields")

    assert Task("X", proxy=fields).to_wire() == {
        "type": "X",
        "proxyType": "socks5",
        "proxyAddress": "::1",
        "proxyPort": 1,
    }
    assert Task("X", via=PROXY, inner=[Task("Y", a=1)]).to_wire() == {
        "type": "X",
        "via": PROXY_URL,
        "inner": [{"type": "Y", "a": 1}],
    }


def circular() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    return loop


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        object(),
        {1, 2},
        float("nan"),
        float("-inf"),
        1j,
        Path("x"),
        "\ud800",
        {"\ud800": 1},
        {1: 2},
        [object()],
        2**65,
        circular(),
        timedelta(1),
        {"a": {"b": b""}},
    ],
)
def test_a_raw_field_that_is_no_json_is_refused(value: Any) -> None:
    """What could not be sent raises at construction and names the field."""
    with pytest.raises(InvalidTaskError, match="badField") as caught:
        Task("X", fine=1, badField=value)

    assert str(caught.value.field).startswith("badField")


def test_the_error_names_the_place_inside_a_field() -> None:
    """For nested values the path is told."""
    with pytest.raises(InvalidTaskError, match=r"^a\.b\[1\] must be"):
        Task("X", a={"b": [1, b"x"]})


@pytest.mark.parametrize("name", ["", " ", "a b", None, 7])
def test_a_raw_task_needs_a_type(name: Any) -> None:
    """The type is text without white space."""
    with pytest.raises(InvalidTaskError, match="type must be"):
        Task(name)


def test_a_raw_task_has_one_type() -> None:
    """A second type among the fields is refused."""
    with pytest.raises(InvalidTaskError, match="type must be given once"):
        Task("X", type="Y")


def test_what_the_caller_changes_later_is_not_sent() -> None:
    """Tasks keep copies of mappings and lists, and give copies away."""
    payload: dict[str, Any] = {"s": ["a"]}
    made = [
        Task("X", p=payload),
        RecaptchaV2Enterprise(website_url=PAGE, website_key="k", enterprise_payload=payload),
        RecaptchaV2(website_url=PAGE, website_key="k", extra=payload),
    ]
    before = [task.to_wire() for task in made]

    payload["s"].append("b")
    for task in made:
        wire: dict[str, Any] = task.to_wire()
        for value in wire.values():
            if isinstance(value, dict | list):
                value.clear()

    assert before == [task.to_wire() for task in made]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.from_regex(r"[a-z]\w{0,9}", fullmatch=True), json_values, max_size=4))
def test_any_json_survives_the_way(fields: dict[str, Any]) -> None:
    """Whatever JSON is given arrives unchanged, can be written as UTF-8, and makes equal tasks equal."""
    fields = {name: value for name, value in fields.items() if name not in ("type", "lifetime")}
    task = Task("X", **fields)

    sent = json.loads(json.dumps(task.to_wire(), ensure_ascii=False).encode())
    assert sent == {"type": "X"} | {name: value for name, value in fields.items() if value is not None}
    assert task == Task("X", **fields)
    assert hash(task) == hash(Task("X", **fields))


def test_a_subclass_gives_another_type_a_typed_solution() -> None:
    """Setting `solution_class` is all that a type of one's own needs."""

    class Puzzle(Task[tasks.TextSolution]):
        solution_class = tasks.TextSolution

    task = Puzzle("PuzzleTask", a=1)

    assert task.solution_class is tasks.TextSolution
    assert repr(task) == "Puzzle('PuzzleTask', a=1)"
    assert task.to_wire() == {"type": "PuzzleTask", "a": 1}


# --- solutions and lifetimes --------------------------------------------------------------------------------------


def test_each_class_names_its_solution() -> None:
    """The class of the solution is known from the class of the task."""
    special = {
        ImageToText: tasks.TextSolution,
        GeeTestV3: tasks.GeeTestV3Solution,
        GeeTestV4: tasks.GeeTestV4Solution,
        Tencent: tasks.TencentSolution,
        ClickCoordinates: tasks.CoordinatesSolution,
        Rotate: tasks.RotateSolution,
    }

    for task, _ in FULL:
        assert special.get(type(task), tasks.TokenSolution) is task.solution_class
    assert Task.solution_class is tasks.Solution


def test_documented_lifetimes() -> None:
    """120 s for reCAPTCHA and hCaptcha, 300 s for Turnstile, and nothing is invented for the others."""
    known = {RecaptchaV2: 120, RecaptchaV2Enterprise: 120, RecaptchaV3: 120, HCaptcha: 120, Turnstile: 300}

    for task, _ in FULL:
        assert known.get(type(task)) == task.lifetime
    assert Task("X").lifetime is None


@pytest.mark.parametrize("make", [*LEAST, lambda **more: Task("X", **more)])
def test_a_lifetime_of_ones_own_is_used_and_never_sent(make: Callable[..., Task[Any]]) -> None:
    """`lifetime` takes seconds or a timedelta, and stays out of the task object."""
    assert 90.0 == make(lifetime=90).lifetime == make(lifetime=timedelta(seconds=90)).lifetime
    assert make().to_wire() == make(lifetime=90).to_wire()
    assert make().lifetime == make(lifetime=None).lifetime


# --- images -------------------------------------------------------------------------------------------------------

PICTURES = {
    "image/png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "image/jpeg": b"\xff\xd8\xff\xe0" + bytes(20),
    "image/gif": GIF,
    "image/webp": b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(9),
    "image/bmp": b"BM" + bytes(20),
}


@pytest.mark.parametrize(("media_type", "data"), PICTURES.items(), ids=list(PICTURES))
def test_an_image_comes_from_bytes_a_path_or_text(media_type: str, data: bytes, tmp_path: Path) -> None:
    """All sources of one picture make the same task."""
    path = tmp_path / "picture"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    lines = "\r\n".join(text[i : i + 10] for i in range(0, len(text), 10))
    sources: list[Any] = [
        data,
        bytearray(data),
        memoryview(data),
        path,
        text,
        lines,
        text.rstrip("="),
        f"data:{media_type};base64,{text}",
        f" data:;base64,{lines}\n",
        ImageToText(image=data).image,
    ]

    made = [ImageToText(image=source) for source in sources]

    assert {ImageToText(image=data)} == set(made)
    assert {text} == {task.to_wire()["body"] for task in made}
    assert media_type == made[0].image.media_type
    assert made[0].image is copy.copy(made[0].image) is copy.deepcopy(made[0].image)
    assert f"data:{media_type};base64,{text}" == ClickCoordinates(image=path).to_wire()["imageBase64"]


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"no picture",
        "",
        "captcha.png",
        "no base64!",
        "data:image/png;base64,",
        base64.b64encode(b"some text").decode(),
        b"data:image/gif;base64,",
        "data:image/gif,GIF8",
        io.BytesIO(),
        io.BytesIO(b"no picture"),
        b"RIFF\x10\x00\x00\x00WAVE",
        None,
        7,
        [GIF],
        "é" * 10,
    ],
)
@pytest.mark.parametrize("cls", [ImageToText, ClickCoordinates, Rotate])
def test_what_is_no_image_is_refused(cls: Any, source: Any) -> None:
    """The error names the sources and formats that are allowed."""
    with pytest.raises(InvalidTaskError, match="image must be a PNG, JPEG, GIF, WebP or BMP image") as caught:
        cls(image=source)

    assert caught.value.field == "image"


class Drawn:
    """What an image of Pillow shows of itself."""

    def __init__(self, mode: str, data: bytes) -> None:
        self.mode, self.data = mode, data

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        if (format == "JPEG") != (self.mode == "CMYK"):
            raise OSError(f"cannot write mode {self.mode} as {format}")
        fp.write(self.data)


def written(data: bytes) -> io.BytesIO:
    file = io.BytesIO()
    file.write(data)
    return file


@pytest.mark.parametrize(("media_type", "data"), PICTURES.items(), ids=list(PICTURES))
def test_an_image_comes_as_people_have_it(media_type: str, data: bytes, tmp_path: Path) -> None:
    """Open files, buffers just written to, images of Pillow, and base64 in whatever spelling, make the same task."""
    path = tmp_path / "picture"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    safe = base64.urlsafe_b64encode(data).decode()
    pipe = written(data)
    pipe.seek(0)
    pipe.seekable = lambda: False  # type: ignore[method-assign]
    with path.open("rb") as file:
        sources: list[Any] = [
            file,
            io.BytesIO(data),
            written(data),
            pipe,
            io.BytesIO(text.encode()),
            text.encode(),
            bytearray(text.encode()),
            f"data:{media_type};base64,{text}".encode(),
            safe,
            safe.rstrip("=").encode(),
            f"data:{media_type};base64,{safe}",
            f"data:{media_type};base64,{quote(text, safe='')}",
            f"DATA:{media_type};charset=x;BASE64,{text}",
            f"data:{media_type},{quote(data)}",
            Drawn("RGB", data),
            Drawn("CMYK", data),
        ]
        for source in sources:
            assert ImageToText(image=source) == ImageToText(image=data), source


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the user's home, as in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "picture.gif").write_bytes(GIF)

    assert ImageToText(image=Path("~/picture.gif")) == ImageToText(image=GIF)


def test_a_source_that_fails_says_why() -> None:
    """A closed or a text file, and an image that cannot be saved, are told apart."""
    closed = io.BytesIO(GIF)
    closed.close()
    with pytest.raises(InvalidTaskError, match=r"image must be a readable file: .*closed file"):
        ImageToText(image=closed)
    with pytest.raises(InvalidTaskError, match=r"image must be a file that gives bytes .*'rb'"):
        ImageToText(image=io.StringIO("GIF"))  # type: ignore[arg-type]
    with pytest.raises(
        InvalidTaskError, match=r"image must be an image that can be saved as PNG .*cannot write mode F"
    ):
        ImageToText(image=Broken())


class Broken(Drawn):
    def __init__(self) -> None:
        super().__init__("F", b"")

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        raise OSError("cannot write mode F as PNG")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A missing file and a directory name the path and the reason."""
    with pytest.raises(InvalidTaskError, match=r"image must be a readable file: .*nowhere.*No such file"):
        ImageToText(image=tmp_path / "nowhere")
    with pytest.raises(InvalidTaskError, match="image must be a readable file"):
        ImageToText(image=tmp_path)
    with pytest.raises(InvalidTaskError, match="image must be a readable file"):
        ImageToText(image=Path("nul\0byte"))


def test_the_file_is_read_at_construction(tmp_path: Path) -> None:
    """What happens to the file afterwards does not matter."""
    path = tmp_path / "picture.gif"
    path.write_bytes(GIF)

    task = ImageToText(image=path)
    path.unlink()

    assert task.to_wire()["body"] == GIF64


def test_wrong_instructions_name_their_own_field() -> None:
    """The second image of a task is told apart from the first."""
    with pytest.raises(InvalidTaskError, match="img_instructions must be"):
        Rotate(image=GIF, img_instructions=b"none")
