"""What the services of the family call each kind of task, and how each of them spells its fields and its proxy.

A service refuses a type that it does not know, before any charge. So each kind has several names, in the order in which
they are tried: the service's own where a page says it and its meaning is certain, then those of anti-captcha,
2captcha, CapSolver, CapMonster and AnySolver, and last what is only inferred.

A name stands for its *dialect*: which fields go with it, and how they are spelled. A task is never sent under a name
whose dialect cannot carry one of its fields, because a token that does not work is paid for, too. What `extra` holds
is sent as it is, under any name.

Sources: docs/api/ucaptcha/create-task, docs/getting-started/authentication, docs/features/x402-payments, and the
public pages of the services named with each entry. uCaptcha's own pages about task types were not available.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import attrs

from ucaptcha_async.json_values import JSON

from .images import Image
from .proxy import Spelling as ProxySpelling

Write: TypeAlias = Callable[[Any], "dict[str, JSON]"]
"""Writes the value of a field as a dialect does."""

Fields: TypeAlias = Mapping[str, "Write | None"]
"""The optional fields that go with a name; `None` for those that are spelled as usual."""

Seen: TypeAlias = "bool | frozenset[str]"
"""All that a name looks at in the value of a field: the keys of a mapping, and of anything else whether it is true."""

Form: TypeAlias = "tuple[tuple[str, Seen], ...]"
"""The optional fields that are set in a task, and what is seen of each. Tasks of one form have the same names."""

_FORMS = 1_024
"""Forms that are remembered; a program has a few."""


def form_of(values: Iterable[tuple[str, object]]) -> Form:
    """The form of a task with these optional fields; `None` is not set."""
    return tuple((field, frozenset(v) if isinstance(v, Mapping) else bool(v)) for field, v in values if v is not None)


@attrs.frozen(eq=False)
class Name:
    """One name for a kind of task.

    Attributes:
        type: What is sent as `type`.
        source: Where the name is from: `"U: …"` is a page of uCaptcha, `"family: …"` a compatible service.
        fields: The optional fields that it carries, and required ones that are spelled in another way.
        inferred: Whether the name, or how fields are spelled with it, is only inferred.
        says: Fields that the name itself says, by whether they are set and not `False`.
        only: Mappings that it carries if they have these keys and no others.
        proxy: How a proxy is sent with it.
    """

    type: str
    source: str
    fields: Fields = attrs.field(factory=dict, repr=False)
    inferred: bool = attrs.field(default=False, kw_only=True)
    says: Mapping[str, bool] = attrs.field(factory=dict, repr=False, kw_only=True)
    only: Mapping[str, frozenset[str]] = attrs.field(factory=dict, repr=False, kw_only=True)
    proxy: ProxySpelling = attrs.field(default="fields", kw_only=True)

    def carries(self, form: Form) -> bool:
        """Whether a task of this form can be sent under this name."""
        values = dict(form)
        if any(bool(values.get(field)) is not said for field, said in self.says.items()):
            return False
        return all(self._carries(field, seen) for field, seen in form)

    def _carries(self, field: str, seen: Seen) -> bool:
        return self.only.get(field, seen) == seen if field in self.fields else field in self.says

    def write(self, field: str, value: object) -> dict[str, JSON] | None:
        """A field as this dialect spells it, which may be not at all; `None` if it is spelled as usual."""
        write = self.fields.get(field)
        if write is not None:
            return write(value)
        return {} if field in self.says and field not in self.fields else None


@attrs.frozen(kw_only=True, eq=False)
class Names:
    """All names of a kind of task, in the order in which they are tried.

    Attributes:
        kind: What the kind is called here, whatever name is sent.
        bare: The names for tasks without a proxy.
        proxied: The names for tasks with one.
    """

    kind: str
    bare: tuple[Name, ...]
    proxied: tuple[Name, ...]

    def choose(self, proxied: bool) -> tuple[Name, ...]:
        """The names with or without a proxy."""
        return self.proxied if proxied else self.bare

    def usual(self, form: Form, proxied: bool) -> Name:
        """The first name for tasks of this form; the first of all if there is none."""
        return (self.fitting(form, proxied) or self.choose(proxied))[0]

    def fitting(self, form: Form, proxied: bool) -> tuple[Name, ...]:
        """The names for tasks of this form, each type once."""
        return _fitting(self, form, proxied)


@functools.lru_cache(_FORMS)
def _fitting(names: Names, form: Form, proxied: bool) -> tuple[Name, ...]:
    found: dict[str, Name] = {}
    for name in names.choose(proxied):
        if name.type not in found and name.carries(form):
            found[name.type] = name
    return tuple(found.values())


def kind_of(type_name: str) -> str | None:
    """The kind of task that a service of the family means by a type, upper and lower case being the same.

    `None` for a type that is not known here.
    """
    return _KINDS.get(type_name.casefold())


# --- how fields are spelled -------------------------------------------------------------------------------------------


def _usual(*fields: str, **others: Write) -> Fields:
    return dict.fromkeys(fields) | others


def _as(*paths: str) -> Write:
    """Under each of these names, which may lead into an object: `metadata.cdata`."""

    def write(value: Any) -> dict[str, JSON]:
        wire: dict[str, JSON] = {}
        for path in paths:
            head, _, rest = path.partition(".")
            wire[head] = {rest: value} if rest else value
        return wire

    return write


def _image_as(name: str) -> Write:
    return lambda image: {name: Image.to_base64(image)}


def _rqdata(payload: Mapping[str, JSON]) -> dict[str, JSON]:
    """The one value of an Enterprise payload that goes without the object around it."""
    return {"rqdata": payload["rqdata"]}


def merge(wire: dict[str, JSON], more: Mapping[str, JSON]) -> None:
    """Add fields to a task, where two may share an object (`metadata`)."""
    for name, value in more.items():
        there = wire.get(name)
        both = isinstance(there, Mapping) and isinstance(value, Mapping)
        wire[name] = {**there, **value} if both else value  # type: ignore[dict-item]


# --- the names --------------------------------------------------------------------------------------------------------

_ANTI_CAPTCHA = "family: anti-captcha"
_2CAPTCHA = "family: 2captcha"
_CAPSOLVER = "family: CapSolver"
_CAPMONSTER = "family: CapMonster"
_ANYSOLVER = "family: AnySolver"
_INFERRED = "inferred"


def _token(type: str, source: str, fields: Fields = MappingProxyType({}), **more: Any) -> Name:
    """A name in the manner of uCaptcha and AnySolver, which take a proxy as one text.

    Source: docs/api/error-codes (`ERROR_PROXY_FORMAT`). The others document five fields, CapSolver as one of two ways.
    """
    return Name(type, source, fields, proxy="url", **more)


def _guess(type: str) -> Name:
    """`<Kind>Token[ProxyLess]`, as uCaptcha's own names and AnySolver's are built; no page has this one."""
    return _token(type, _INFERRED, inferred=True)


_V2 = _usual("is_invisible", "recaptcha_data_s_value", "user_agent", "cookies")
_V2_TOKEN = {**_V2, "page_action": None}
_V2_CAPSOLVER = _usual("is_invisible", "recaptcha_data_s_value", "page_action")

RECAPTCHA_V2 = Names(
    kind="RecaptchaV2",
    bare=(
        Name("RecaptchaV2TaskProxyless", "U: api/ucaptcha/create-task", _V2),
        _token("ReCaptchaV2TokenProxyLess", "U: getting-started/authentication", _V2_TOKEN),
        Name("ReCaptchaV2TaskProxyLess", _CAPSOLVER, _V2_CAPSOLVER),
        Name("NoCaptchaTaskProxyless", _ANTI_CAPTCHA, _V2),
    ),
    proxied=(
        _token("ReCaptchaV2Token", _ANYSOLVER, _V2_TOKEN),
        Name("RecaptchaV2Task", _ANTI_CAPTCHA, _V2),
        Name("ReCaptchaV2Task", _CAPSOLVER, _V2_CAPSOLVER),
        Name("NoCaptchaTask", _ANTI_CAPTCHA, _V2),
    ),
)

_V2_ENTERPRISE = _usual("enterprise_payload", "api_domain")

RECAPTCHA_V2_ENTERPRISE = Names(
    kind="RecaptchaV2Enterprise",
    bare=(
        Name("RecaptchaV2EnterpriseTaskProxyless", _ANTI_CAPTCHA, _V2_ENTERPRISE),
        Name("ReCaptchaV2EnterpriseTaskProxyLess", _CAPSOLVER, _V2_ENTERPRISE),
        _token("ReCaptchaV2EnterpriseTokenProxyLess", _ANYSOLVER, _usual("api_domain")),
    ),
    proxied=(
        Name("RecaptchaV2EnterpriseTask", _ANTI_CAPTCHA, _V2_ENTERPRISE),
        Name("ReCaptchaV2EnterpriseTask", _CAPSOLVER, _V2_ENTERPRISE),
        _token("ReCaptchaV2EnterpriseToken", _ANYSOLVER, _usual("api_domain")),
    ),
)

_V3 = _usual("min_score", "page_action", "is_enterprise", "api_domain")
_V3_CAPSOLVER = _usual("min_score", "page_action", "api_domain", "is_session")
_V3_PAYLOAD = {**_V3_CAPSOLVER, "enterprise_payload": None}
_PLAIN, _ENTERPRISE = {"is_enterprise": False}, {"is_enterprise": True}

RECAPTCHA_V3 = Names(
    kind="RecaptchaV3",
    bare=(
        Name("RecaptchaV3TaskProxyless", _ANTI_CAPTCHA, _V3),
        Name("ReCaptchaV3TaskProxyLess", _CAPSOLVER, _V3_CAPSOLVER, says=_PLAIN),
        Name("ReCaptchaV3EnterpriseTaskProxyLess", _CAPSOLVER, _V3_PAYLOAD, says=_ENTERPRISE),
        _token("ReCaptchaV3TokenProxyLess", _ANYSOLVER, _V3_CAPSOLVER, says=_PLAIN),
        _token("ReCaptchaV3EnterpriseTokenProxyLess", _ANYSOLVER, _V3_CAPSOLVER, says=_ENTERPRISE),
    ),
    proxied=(
        Name("ReCaptchaV3Task", _CAPSOLVER, _V3_CAPSOLVER, says=_PLAIN),
        Name("ReCaptchaV3EnterpriseTask", _CAPSOLVER, _V3_PAYLOAD, says=_ENTERPRISE),
        _token("ReCaptchaV3Token", _ANYSOLVER, _V3_CAPSOLVER, says=_PLAIN),
        _token("ReCaptchaV3EnterpriseToken", _ANYSOLVER, _V3_CAPSOLVER, says=_ENTERPRISE),
        Name("RecaptchaV3Task", _INFERRED, _V3, inferred=True),
    ),
)

_HCAPTCHA = _usual("is_invisible", "enterprise_payload", "user_agent")
_HARD = "U: features/x402-payments; that it means hCaptcha is inferred"


def _popular(ending: str) -> Iterator[Name]:
    """AnySolver's name for hCaptcha says the variant; clients of it send `rqdata` without the object around it."""
    for enterprise, words in ((False, ""), (True, "Enterprise")):
        for invisible, word in ((False, ""), (True, "Invisible")):
            yield _token(
                f"PopularCaptcha{words}{word}Token{ending}",
                _ANYSOLVER,
                _usual("user_agent", **({"enterprise_payload": _rqdata} if enterprise else {})),
                says={"enterprise_payload": enterprise, "is_invisible": invisible},
                only={"enterprise_payload": frozenset({"rqdata"})},
            )


HCAPTCHA = Names(
    kind="HCaptcha",
    bare=(
        Name("HCaptchaTaskProxyless", _ANTI_CAPTCHA, _HCAPTCHA),
        Name("HCaptchaTaskProxyLess", _CAPSOLVER, _HCAPTCHA),
        *_popular("ProxyLess"),
        _token("HardCaptchaTokenProxyLess", _HARD, _usual("is_invisible", "user_agent"), inferred=True),
    ),
    proxied=(
        Name("HCaptchaTask", _ANTI_CAPTCHA, _HCAPTCHA),
        *_popular(""),
        _token("HardCaptchaToken", _INFERRED, _usual("is_invisible", "user_agent"), inferred=True),
    ),
)

# 2captcha has the same types as anti-captcha and other words for two fields: both are sent.
_TURNSTILE = _usual("action", c_data=_as("cData", "data"), chl_page_data=_as("chlPageData", "pagedata"))
_TURNSTILE_CAPSOLVER = _usual(action=_as("metadata.action"), c_data=_as("metadata.cdata"))
# The page that has the name does not have the fields: with them, it comes after all names that are sure.
_TURNSTILE_GUESSED = _usual("action", "c_data")

TURNSTILE = Names(
    kind="Turnstile",
    bare=(
        _token("TurnstileTokenProxyLess", "U: features/x402-payments"),
        Name("TurnstileTaskProxyless", _ANTI_CAPTCHA, _TURNSTILE),
        Name("AntiTurnstileTaskProxyLess", _CAPSOLVER, _TURNSTILE_CAPSOLVER),
        _token("TurnstileTokenProxyLess", "U: features/x402-payments", _TURNSTILE_GUESSED, inferred=True),
    ),
    proxied=(
        _token("TurnstileToken", _ANYSOLVER),
        Name("TurnstileTask", _ANTI_CAPTCHA, _TURNSTILE),
        _token("TurnstileToken", _ANYSOLVER, _TURNSTILE_GUESSED, inferred=True),
    ),
)

_TEXT = (
    Name(
        "ImageToTextTask",
        "U: api/ucaptcha/create-task",
        _usual(
            *("phrase", "case", "numeric", "math", "min_length", "max_length"),
            *("comment", "website_url", "language_pool", "module"),
        ),
    ),
)

IMAGE_TO_TEXT = Names(kind="ImageToText", bare=_TEXT, proxied=_TEXT)

_GEETEST_V3 = _usual("geetest_api_server_subdomain", "geetest_get_lib", "user_agent")
_GEETEST_V4 = _usual("init_parameters", "geetest_api_server_subdomain", "user_agent")
_GEETEST_V3_CAPSOLVER = _usual("geetest_api_server_subdomain")
_GEETEST_V4_CAPSOLVER = _usual("geetest_api_server_subdomain", gt=_as("gt", "captchaId"))

GEETEST_V3 = Names(
    kind="GeeTest",
    bare=(
        Name("GeeTestTaskProxyless", _ANTI_CAPTCHA, _GEETEST_V3),
        Name("GeeTestTaskProxyLess", _CAPSOLVER, _GEETEST_V3_CAPSOLVER),
        _guess("GeeTestV3TokenProxyLess"),
    ),
    proxied=(Name("GeeTestTask", _ANTI_CAPTCHA, _GEETEST_V3), _guess("GeeTestV3Token")),
)

GEETEST_V4 = Names(
    kind="GeeTest",
    bare=(
        Name("GeeTestTaskProxyless", _ANTI_CAPTCHA, _GEETEST_V4),
        Name("GeeTestTaskProxyLess", _CAPSOLVER, _GEETEST_V4_CAPSOLVER),
        _guess("GeeTestV4TokenProxyLess"),
    ),
    proxied=(Name("GeeTestTask", _ANTI_CAPTCHA, _GEETEST_V4), _guess("GeeTestV4Token")),
)

_ARKOSE = _usual("funcaptcha_api_js_subdomain", "data")

FUNCAPTCHA = Names(
    kind="FunCaptcha",
    bare=(
        Name("FunCaptchaTaskProxyless", _ANTI_CAPTCHA, _ARKOSE),
        Name("FunCaptchaTaskProxyLess", _CAPSOLVER, _ARKOSE),
        _guess("FunCaptchaTokenProxyLess"),
    ),
    proxied=(Name("FunCaptchaTask", _ANTI_CAPTCHA, _ARKOSE), _guess("FunCaptchaToken")),
)

_MT_CAPMONSTER = Name("MTCaptchaTask", _CAPMONSTER, _usual("page_action", "is_invisible", "user_agent"))

MTCAPTCHA = Names(
    kind="MTCaptcha",
    bare=(
        Name("MtCaptchaTaskProxyLess", _CAPSOLVER),
        Name("MtCaptchaTaskProxyless", _2CAPTCHA),
        _MT_CAPMONSTER,
        _guess("MTCaptchaTokenProxyLess"),
    ),
    proxied=(Name("MtCaptchaTask", _CAPSOLVER), _MT_CAPMONSTER, _guess("MTCaptchaToken")),
)

FRIENDLY_CAPTCHA = Names(
    kind="FriendlyCaptcha",
    bare=(Name("FriendlyCaptchaTaskProxyless", _ANTI_CAPTCHA), _guess("FriendlyCaptchaTokenProxyLess")),
    proxied=(Name("FriendlyCaptchaTask", _ANTI_CAPTCHA), _guess("FriendlyCaptchaToken")),
)

YANDEX_SMART_CAPTCHA = Names(
    kind="YandexSmartCaptcha",
    bare=(
        Name("YandexCaptchaTaskProxyLess", _CAPSOLVER),
        Name("YandexSmartCaptchaTaskProxyless", _INFERRED, inferred=True),
        _guess("YandexCaptchaTokenProxyLess"),
    ),
    proxied=(
        Name("YandexCaptchaTask", _INFERRED, inferred=True),
        Name("YandexSmartCaptchaTask", _INFERRED, inferred=True),
        _guess("YandexCaptchaToken"),
    ),
)

TENCENT = Names(
    kind="Tencent",
    bare=(Name("TencentTaskProxyless", _2CAPTCHA, _usual("captcha_script")), _guess("TencentTokenProxyLess")),
    proxied=(Name("TencentTask", _2CAPTCHA, _usual("captcha_script")), _guess("TencentToken")),
)

_2CAPTCHA_IMAGES = {"image": _image_as("body"), "img_instructions": _image_as("imgInstructions")}
_CLICKS = (
    Name("CoordinatesRecognition", _ANYSOLVER, _usual("comment", "img_instructions", "min_clicks", "max_clicks")),
    Name("CoordinatesTask", _2CAPTCHA, _usual("comment", "min_clicks", "max_clicks", **_2CAPTCHA_IMAGES)),
)

CLICK_COORDINATES = Names(kind="ClickCoordinates", bare=_CLICKS, proxied=_CLICKS)

_ANGLES = (
    Name("RotateRecognition", _ANYSOLVER, _usual("angle", "comment", "img_instructions")),
    Name("RotateTask", _2CAPTCHA, _usual("angle", "comment", **_2CAPTCHA_IMAGES)),
)

ROTATE = Names(kind="Rotate", bare=_ANGLES, proxied=_ANGLES)

ALL: tuple[Names, ...] = (
    *(RECAPTCHA_V2, RECAPTCHA_V2_ENTERPRISE, RECAPTCHA_V3, HCAPTCHA, TURNSTILE, IMAGE_TO_TEXT, GEETEST_V3, GEETEST_V4),
    *(FUNCAPTCHA, MTCAPTCHA, FRIENDLY_CAPTCHA, YANDEX_SMART_CAPTCHA, TENCENT, CLICK_COORDINATES, ROTATE),
)
"""The names of every kind."""


def _kinds(every: Iterable[Names]) -> Iterator[tuple[str, str]]:
    for names in every:
        for word in (names.kind, *(name.type for name in (*names.bare, *names.proxied))):
            yield word.casefold(), names.kind


_KINDS: Mapping[str, str] = dict(_kinds(ALL))
