"""The names of each kind: which fit a task, and how a task is written under each of them."""

from __future__ import annotations

import base64
import pickle
from typing import Any

import attrs
import pytest

import ucaptcha_async
from ucaptcha_async import (
    ClickCoordinates,
    GeeTestV3,
    GeeTestV4,
    HCaptcha,
    ImageToText,
    MTCaptcha,
    Proxy,
    RecaptchaV2,
    RecaptchaV3,
    Rotate,
    Task,
    Turnstile,
)
from ucaptcha_async.tasks import names
from ucaptcha_async.tasks.base import Widget
from ucaptcha_async.tasks.names import Name, Names

PAGE = {"website_url": "https://example.com/"}
KEYED = {**PAGE, "website_key": "k"}
PROXY = Proxy.parse("http://user:s3cret@proxy.example.com:8080")
AS_URL = {"proxy": "http://user:s3cret@proxy.example.com:8080"}
AS_FIELDS = {
    "proxyType": "http",
    "proxyAddress": "proxy.example.com",
    "proxyPort": 8080,
    "proxyLogin": "user",
    "proxyPassword": "s3cret",
}
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")

CLASSES = [
    cls
    for cls in (getattr(ucaptcha_async, name) for name in ucaptcha_async.__all__)
    if isinstance(cls, type) and issubclass(cls, Widget)
]
EVERY = [name for kind in names.ALL for name in (*kind.bare, *kind.proxied)]


def types(task: Task[Any]) -> list[str]:
    return [name.type for name in task.names()]


def under(task: Task[Any], type: str) -> dict[str, Any]:
    """A task as it is written under one of its names, without what all have."""
    (name,) = (name for name in task.names() if name.type == type)
    wire = task.to_wire(name)
    assert wire.pop("type") == type
    return {key: value for key, value in wire.items() if key not in ("websiteURL", "websiteKey")}


# --- the table --------------------------------------------------------------------------------------------------------


def test_each_class_has_names_of_its_own() -> None:
    """No class is without names, and no list of names is without a class."""
    assert len(CLASSES) == len(names.ALL)
    assert {id(cls.type_names) for cls in CLASSES} == {id(kind) for kind in names.ALL}


@pytest.mark.parametrize("kind", names.ALL, ids=lambda kind: kind.kind)
def test_a_search_is_short(kind: Names) -> None:
    """At most eight types can be refused for a kind, with or without a proxy."""
    assert len({name.type for name in kind.bare}) <= 8
    assert len({name.type for name in kind.proxied}) <= 8


@pytest.mark.parametrize("kind", names.ALL, ids=lambda kind: kind.kind)
def test_inferred_names_come_last(kind: Names) -> None:
    """What a page says is tried before what is only inferred."""
    for listed in (kind.bare, kind.proxied):
        assert [name.inferred for name in listed] == sorted(name.inferred for name in listed)


def test_each_name_says_where_it_is_from() -> None:
    """A page of uCaptcha, another service, or nothing but inference."""
    assert all(name.source.startswith(("U: ", "family: ", "inferred")) for name in EVERY)
    assert all(name.inferred for name in EVERY if "inferred" in name.source)


def test_proxies_are_spelled_as_the_service_of_the_name_documents_it() -> None:
    """One text where types end in "Token", five fields elsewhere."""
    assert {name.proxy for name in EVERY if "Token" in name.type} == {"url"}
    assert {name.proxy for name in EVERY if "Token" not in name.type} == {"fields"}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_docstring_lists_the_names_with_their_sources(cls: type[Widget[Any]]) -> None:
    """In the order in which they are tried."""
    text = " ".join((cls.__doc__ or "").split())
    kind = cls.type_names
    assert kind.bare is kind.proxied or "; with a proxy" in text
    bare, _, proxied = text.partition("; with a proxy")
    for listed, part in ((kind.bare, bare), (kind.proxied, proxied or bare)):
        places = [part.index(f"`{name.type}`") for name in listed]
        firsts = sorted(set(places), key=places.index)
        assert firsts == sorted(firsts)
        assert all(f"({name.source})" in part[part.index(f"`{name.type}`") :] for name in listed[:1])


def test_a_type_means_one_kind() -> None:
    """No type stands for two kinds; upper and lower case do not matter, for services differ in nothing else."""
    meanings = {(name.type.casefold(), kind.kind) for kind in names.ALL for name in (*kind.bare, *kind.proxied)}

    assert len(meanings) == len({word for word, _ in meanings})
    assert names.kind_of("recaptchav2taskproxyless") == names.kind_of("ReCaptchaV2Token") == "RecaptchaV2"
    assert names.kind_of("RecaptchaV2") == "RecaptchaV2"
    assert names.kind_of("SomeOtherTask") is None


# --- the kind ---------------------------------------------------------------------------------------------------------


def test_the_kind_is_the_same_under_any_name() -> None:
    """Also of a raw task and of a type that was given, if it is a known one; else the type is the kind."""
    assert Turnstile(**KEYED).kind == Turnstile(**KEYED, proxy=PROXY).kind == "Turnstile"
    assert Task("AntiTurnstileTaskProxyLess").kind == "Turnstile"
    assert Turnstile(**KEYED, type="AntiTurnstileTaskProxyLess").kind == "Turnstile"
    assert Turnstile(**KEYED, type="TurnstileTaskV9").kind == Task("TurnstileTaskV9").kind == "TurnstileTaskV9"


def test_both_geetests_are_one_kind() -> None:
    """Services of the family tell them apart by a field, not by the type."""
    assert GeeTestV3(**PAGE, gt="g", challenge="c").kind == GeeTestV4(**PAGE, gt="g").kind == "GeeTest"


# --- which names fit --------------------------------------------------------------------------------------------------


def test_the_service_s_own_names_come_first() -> None:
    """Those that its pages have, where it is certain what they mean."""
    assert types(RecaptchaV2(**KEYED))[:2] == ["RecaptchaV2TaskProxyless", "ReCaptchaV2TokenProxyLess"]
    assert types(Turnstile(**KEYED))[:2] == ["TurnstileTokenProxyLess", "TurnstileTaskProxyless"]
    assert types(ImageToText(image=GIF)) == ["ImageToTextTask"]
    assert types(HCaptcha(**KEYED))[-1] == "HardCaptchaTokenProxyLess"


def test_a_name_that_cannot_carry_a_field_is_skipped() -> None:
    """A token that does not work is paid for, too."""
    assert types(Turnstile(**KEYED, chl_page_data="p")) == ["TurnstileTaskProxyless"]
    assert "RecaptchaV2TaskProxyless" not in types(RecaptchaV2(**KEYED, page_action="a"))
    assert types(MTCaptcha(**KEYED, page_action="a")) == ["MTCaptchaTask"]


def test_a_name_may_say_a_field() -> None:
    """CapSolver and AnySolver have a type of its own for the Enterprise edition, and it is no other's."""
    plain, enterprise = RecaptchaV3(**KEYED), RecaptchaV3(**KEYED, is_enterprise=True)

    assert not [name for name in types(plain) if "Enterprise" in name]
    assert types(enterprise)[1:] == ["ReCaptchaV3EnterpriseTaskProxyLess", "ReCaptchaV3EnterpriseTokenProxyLess"]
    assert types(RecaptchaV3(**KEYED, is_enterprise=False)) == types(plain)
    assert under(enterprise, "RecaptchaV3TaskProxyless") == {"isEnterprise": True}
    assert under(enterprise, "ReCaptchaV3EnterpriseTaskProxyLess") == {}


@pytest.mark.parametrize(
    ("fields", "type"),
    [
        ({}, "PopularCaptchaTokenProxyLess"),
        ({"is_invisible": True}, "PopularCaptchaInvisibleTokenProxyLess"),
        ({"enterprise_payload": {"rqdata": "r"}}, "PopularCaptchaEnterpriseTokenProxyLess"),
        (
            {"enterprise_payload": {"rqdata": "r"}, "is_invisible": True},
            "PopularCaptchaEnterpriseInvisibleTokenProxyLess",
        ),
    ],
)
def test_of_the_variants_in_a_name_one_fits(fields: dict[str, Any], type: str) -> None:
    """AnySolver says the variant of hCaptcha in the type, and takes `rqdata` alone."""
    task = HCaptcha(**KEYED, **fields)

    assert [name for name in types(task) if name.startswith("Popular")] == [type]
    assert under(task, type) == fields.get("enterprise_payload", {})


def test_a_value_that_a_dialect_cannot_carry() -> None:
    """An Enterprise payload with more than `rqdata` has no place at AnySolver."""
    task = HCaptcha(**KEYED, enterprise_payload={"rqdata": "r", "sentry": True})

    assert types(task) == ["HCaptchaTaskProxyless", "HCaptchaTaskProxyLess"]


def test_each_type_is_tried_once() -> None:
    """A type that stands in the list twice, with what is certain and with what is inferred, is sent one way."""
    bare, full = Turnstile(**KEYED), Turnstile(**KEYED, action="login")

    assert types(bare).count("TurnstileTokenProxyLess") == types(full).count("TurnstileTokenProxyLess") == 1
    assert not bare.names()[0].inferred
    assert full.names()[-1].inferred
    assert full.type == "TurnstileTaskProxyless"


def test_no_name_fits() -> None:
    """Then nothing is searched, and everything is sent under the first name."""
    task = RecaptchaV3(**KEYED, enterprise_payload={"s": "x"})

    assert task.names() == ()
    assert task.to_wire()["type"] == "RecaptchaV3TaskProxyless"
    assert task.to_wire()["enterprisePayload"] == {"s": "x"}


def test_a_type_that_was_given_is_sent_as_it_is() -> None:
    """It has no other names, and nothing is spelled in another way."""
    task = Turnstile(**KEYED, type="AntiTurnstileTaskProxyLess", c_data="c", proxy=PROXY)

    assert task.names() == ()
    assert Task("TurnstileTaskProxyless").names() == ()
    assert task.to_wire() == {
        "type": "AntiTurnstileTaskProxyLess",
        "websiteURL": "https://example.com/",
        "websiteKey": "k",
        "cData": "c",
        **AS_URL,
    }


# --- how it is written ------------------------------------------------------------------------------------------------


def test_without_a_name_the_first_is_written() -> None:
    """What the user sees is what is tried first."""
    for cls in (Turnstile, RecaptchaV2, HCaptcha, RecaptchaV3):
        task = cls(**KEYED, proxy=PROXY)
        assert task.to_wire() == task.to_wire(task.names()[0])
        assert task.type == task.names()[0].type


def test_turnstile_in_each_dialect() -> None:
    """`cData` has a place in each, and not the same."""
    task = Turnstile(**KEYED, action="login", c_data="c")

    assert under(task, "TurnstileTaskProxyless") == {"action": "login", "cData": "c", "data": "c"}
    assert under(task, "AntiTurnstileTaskProxyLess") == {"metadata": {"action": "login", "cdata": "c"}}
    assert under(task, "TurnstileTokenProxyLess") == {"action": "login", "cData": "c"}


def test_geetest_v4_in_each_dialect() -> None:
    """CapSolver calls the key `captchaId`."""
    task = GeeTestV4(**PAGE, gt="g")

    assert under(task, "GeeTestTaskProxyless") == {"gt": "g", "version": 4}
    assert under(task, "GeeTestTaskProxyLess") == {"gt": "g", "captchaId": "g", "version": 4}


def test_pictures_in_each_dialect() -> None:
    """A `data:` URI at AnySolver, bare base64 at 2captcha."""
    bare = base64.b64encode(GIF).decode()
    for task, name in (
        (ClickCoordinates(image=GIF, img_instructions=GIF), "Coordinates"),
        (Rotate(image=GIF, img_instructions=GIF), "Rotate"),
    ):
        uri = f"data:image/gif;base64,{bare}"
        assert under(task, f"{name}Recognition") == {"imageBase64": uri, "imgInstructions": uri}
        assert under(task, f"{name}Task") == {"body": bare, "imgInstructions": bare}


def test_proxies_in_each_dialect() -> None:
    """One text under the service's own names, five fields under those of the others."""
    task = RecaptchaV2(**KEYED, proxy=PROXY)

    assert types(task) == ["ReCaptchaV2Token", "RecaptchaV2Task", "ReCaptchaV2Task", "NoCaptchaTask"]
    assert under(task, "ReCaptchaV2Token") == AS_URL
    assert under(task, "RecaptchaV2Task") == under(task, "ReCaptchaV2Task") == AS_FIELDS


@pytest.mark.parametrize(("spelling", "sent"), [("url", AS_URL), ("fields", AS_FIELDS)])
def test_a_spelling_that_was_given_wins(spelling: Any, sent: dict[str, Any]) -> None:
    """Whatever the name."""
    task = RecaptchaV2(**KEYED, proxy=Proxy.parse(PROXY.to_url(), spelling=spelling))

    assert all(under(task, name) == sent for name in types(task))
    assert task.to_wire().items() >= sent.items()


def test_extra_wins_under_every_name() -> None:
    """It is sent as it is, and replaces fields of the same name."""
    task = Turnstile(**KEYED, c_data="c", extra={"metadata": {"own": 1}, "data": "d"})

    assert under(task, "AntiTurnstileTaskProxyLess") == {"metadata": {"own": 1}, "data": "d"}
    assert under(task, "TurnstileTaskProxyless") == {"metadata": {"own": 1}, "data": "d", "cData": "c"}


def test_a_subclass_with_a_field_of_its_own_is_sent_as_before() -> None:
    """Nobody knows which service takes the field, so nothing is searched."""

    @attrs.frozen(kw_only=True, eq=False, repr=False)
    class Own(Turnstile):
        page_title: str | None = None

    assert Own(**KEYED).names() == Turnstile(**KEYED).names()
    assert Own(**KEYED, page_title="x").names() == ()
    assert Own(**KEYED, page_title="x").to_wire()["pageTitle"] == "x"


def test_names_are_no_part_of_a_task() -> None:
    """Equality and pickles are as before."""
    task = Turnstile(**KEYED, c_data="c")

    assert pickle.loads(pickle.dumps(task)) == task
    assert [name.type for name in pickle.loads(pickle.dumps(task)).names()] == types(task)


def test_tasks_of_one_form_have_the_same_names() -> None:
    """Worked out once for the fields that are set, not for each task; values count as far as a name looks at them."""
    plain, invisible = HCaptcha(**KEYED), HCaptcha(**KEYED, is_invisible=True)
    rqdata, more = ({"rqdata": "1"}, {"rqdata": "1", "sentry": True})
    enterprise = [HCaptcha(**KEYED, enterprise_payload=payload) for payload in ({"rqdata": "2"}, rqdata, more)]

    assert plain.names() is HCaptcha(**PAGE, website_key="other").names()
    assert types(plain) == types(HCaptcha(**KEYED, is_invisible=False)) != types(invisible)
    assert enterprise[0].names() is enterprise[1].names()
    assert set(types(enterprise[1])) - set(types(enterprise[2])) == {"PopularCaptchaEnterpriseTokenProxyLess"}


def test_a_field_that_the_name_says_is_not_written() -> None:
    """`write` tells apart "as usual", "in this way" and "not at all"."""
    name = Name(type="X", source="inferred", fields={"a": None, "b": lambda v: {"c": v}}, says={"d": True})

    assert name.write("a", 1) is None
    assert name.write("b", 1) == {"c": 1}
    assert name.write("d", True) == {}
