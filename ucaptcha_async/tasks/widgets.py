"""What you ask: one class for each CAPTCHA widget, and `Task` for any other type.

The names of fields are the service's in snake case. uCaptcha's own pages about the task types were not available when
this was written: only the names `RecaptchaV2TaskProxyless`, `ReCaptchaV2TokenProxyLess`, `TurnstileTokenProxyLess`,
`HardCaptchaTokenProxyLess` and `ImageToTextTask` are uCaptcha's (marked "U: …"), and all else is the common ground of
its protocol family (marked "family: …"). So each class has several types, and a client finds the one that its service
takes (see `names`). With `type` you choose it yourself, and `extra` adds any field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, TypeAlias

import attrs

from ucaptcha_async.json_values import JSON

from . import names
from .base import S_co, SolutionClass, Widget, sent
from .fields import (
    DOMAIN,
    FLAG,
    KEY,
    OBJECT,
    TEXT,
    a_copy_or_none,
    a_proxy,
    json_object,
    json_text,
    maybe,
    number,
    page,
)
from .proxy import Proxy
from .solutions import GeeTestV3Solution, GeeTestV4Solution, TencentSolution, TokenSolution

ApiDomain: TypeAlias = Literal["google.com", "recaptcha.net", "www.google.com", "www.recaptcha.net"]
"""A host that serves reCAPTCHA's script."""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class OnPage(Widget[S_co]):
    """A widget on a page, solved with or without a proxy."""

    website_url: str = attrs.field(validator=page, metadata=sent("websiteURL"))
    proxy: Proxy | None = attrs.field(default=None, validator=a_proxy)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class WithKey(OnPage[TokenSolution]):
    """A widget on a page, known by its site key, that gives a token."""

    solution_class: ClassVar[SolutionClass] = TokenSolution

    website_key: str = attrs.field(validator=KEY)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class RecaptchaV2(WithKey):
    """reCAPTCHA v2, the checkbox or the invisible one. Gives a `TokenSolution`.

    Types, in the order in which they are tried: `RecaptchaV2TaskProxyless` (U: api/ucaptcha/create-task),
    `ReCaptchaV2TokenProxyLess` (U: getting-started/authentication), `ReCaptchaV2TaskProxyLess` (family: CapSolver),
    `NoCaptchaTaskProxyless` (family: anti-captcha); with a proxy `ReCaptchaV2Token` (family: AnySolver),
    `RecaptchaV2Task` (family: anti-captcha), `ReCaptchaV2Task` (family: CapSolver), `NoCaptchaTask` (family:
    anti-captcha).

    Attributes:
        website_url: Absolute URL of the page. Required. Source: docs/api/ucaptcha/create-task.
        website_key: The widget's site key. Required. Source: docs/api/ucaptcha/create-task.
        is_invisible: Whether it is the invisible variant. Family: anti-captcha RecaptchaV2Task.
        recaptcha_data_s_value: The page's `data-s` value, where it has one. Family: anti-captcha.
        page_action: The widget's `action`. Family: CapSolver ReCaptchaV2.
        user_agent: Browser identity to solve with, used with a proxy. Family: anti-captcha.
        cookies: Cookies to solve with, `name=value; name2=value2`, used with a proxy. Family: anti-captcha.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through. Family, see there.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a token is accepted (120). Source: docs/features/lightning-mode. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import Proxy, RecaptchaV2

        task = RecaptchaV2(website_url="https://example.com/login", website_key="6Le-wvkSAAAAAPBMRTvw")
        assert task.to_wire() == {
            "type": "RecaptchaV2TaskProxyless",
            "websiteURL": "https://example.com/login",
            "websiteKey": "6Le-wvkSAAAAAPBMRTvw",
        }
        proxy = Proxy.parse("http://user:password@proxy.example.com:8080")
        assert RecaptchaV2(website_url="https://example.com", website_key="6L", proxy=proxy).type == "ReCaptchaV2Token"
        ```
    """

    type_names: ClassVar[names.Names] = names.RECAPTCHA_V2
    usual_lifetime: ClassVar[float | None] = 120.0

    is_invisible: bool | None = attrs.field(default=None, validator=maybe(FLAG))
    recaptcha_data_s_value: str | None = attrs.field(default=None, validator=maybe(TEXT))
    page_action: str | None = attrs.field(default=None, validator=maybe(TEXT))
    user_agent: str | None = attrs.field(default=None, validator=maybe(TEXT))
    cookies: str | None = attrs.field(default=None, validator=maybe(TEXT), repr=False)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class RecaptchaV2Enterprise(WithKey):
    """reCAPTCHA v2 Enterprise. Gives a `TokenSolution`.

    Types, in the order in which they are tried: `RecaptchaV2EnterpriseTaskProxyless` (family: anti-captcha),
    `ReCaptchaV2EnterpriseTaskProxyLess` (family: CapSolver), `ReCaptchaV2EnterpriseTokenProxyLess` (family: AnySolver);
    with a proxy `RecaptchaV2EnterpriseTask` (family: anti-captcha), `ReCaptchaV2EnterpriseTask` (family: CapSolver),
    `ReCaptchaV2EnterpriseToken` (family: AnySolver). The fields are family: anti-captcha RecaptchaV2EnterpriseTask, not
    uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_key: The widget's site key. Required.
        enterprise_payload: What the page passes to `grecaptcha.enterprise.render`, for example `{"s": "…"}`.
        api_domain: The host that the widget is loaded from: `"www.google.com"` or `"www.recaptcha.net"`.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a token is accepted (120). Source: docs/features/lightning-mode. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import RecaptchaV2Enterprise

        task = RecaptchaV2Enterprise(website_url="https://example.com", website_key="6L", enterprise_payload={"s": "x"})
        assert task.to_wire()["enterprisePayload"] == {"s": "x"}
        ```
    """

    type_names: ClassVar[names.Names] = names.RECAPTCHA_V2_ENTERPRISE
    usual_lifetime: ClassVar[float | None] = 120.0

    enterprise_payload: Mapping[str, JSON] | None = attrs.field(
        default=None, converter=a_copy_or_none, validator=maybe(OBJECT)
    )
    api_domain: ApiDomain | None = attrs.field(default=None, validator=maybe(DOMAIN))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class RecaptchaV3(WithKey):
    """reCAPTCHA v3, Enterprise or not. Gives a `TokenSolution`.

    Types, in the order in which they are tried: `RecaptchaV3TaskProxyless` (family: anti-captcha),
    `ReCaptchaV3TaskProxyLess`, `ReCaptchaV3EnterpriseTaskProxyLess` (family: CapSolver), `ReCaptchaV3TokenProxyLess`,
    `ReCaptchaV3EnterpriseTokenProxyLess` (family: AnySolver); with a proxy `ReCaptchaV3Task`,
    `ReCaptchaV3EnterpriseTask` (family: CapSolver), `ReCaptchaV3Token`, `ReCaptchaV3EnterpriseToken` (family:
    AnySolver), `RecaptchaV3Task` (inferred).

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_key: The site key. Required.
        min_score: The score to reach, 0.1 to 0.9. Family: anti-captcha requires one of 0.3, 0.7 and 0.9; optional
            at CapSolver.
        page_action: The `action` of the page's `grecaptcha.execute`. Family: anti-captcha, CapSolver.
        is_enterprise: Whether it is the Enterprise edition. Family: anti-captcha.
        api_domain: The host that the script is loaded from. Family: 2captcha.
        enterprise_payload: What the page passes to the Enterprise script. Family: CapSolver.
        is_session: Whether a session is wanted besides the token. Family: CapSolver.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a token is accepted (120). Source: docs/features/lightning-mode. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import RecaptchaV3

        task = RecaptchaV3(website_url="https://example.com", website_key="6Lc_a", min_score=0.7, page_action="login")
        assert task.to_wire()["minScore"] == 0.7
        ```
    """

    type_names: ClassVar[names.Names] = names.RECAPTCHA_V3
    usual_lifetime: ClassVar[float | None] = 120.0

    min_score: float | None = attrs.field(default=None, validator=maybe(number(0.1, 0.9)))
    page_action: str | None = attrs.field(default=None, validator=maybe(TEXT))
    is_enterprise: bool | None = attrs.field(default=None, validator=maybe(FLAG))
    api_domain: ApiDomain | None = attrs.field(default=None, validator=maybe(DOMAIN))
    enterprise_payload: Mapping[str, JSON] | None = attrs.field(
        default=None, converter=a_copy_or_none, validator=maybe(OBJECT)
    )
    is_session: bool | None = attrs.field(default=None, validator=maybe(FLAG))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class HCaptcha(WithKey):
    """hCaptcha. Gives a `TokenSolution`.

    Types, in the order in which they are tried: `HCaptchaTaskProxyless` (family: anti-captcha), `HCaptchaTaskProxyLess`
    (family: CapSolver), `PopularCaptchaTokenProxyLess`, `PopularCaptchaInvisibleTokenProxyLess`,
    `PopularCaptchaEnterpriseTokenProxyLess`, `PopularCaptchaEnterpriseInvisibleTokenProxyLess` (family: AnySolver),
    `HardCaptchaTokenProxyLess` (U: features/x402-payments; that it means hCaptcha is inferred); with a proxy
    `HCaptchaTask` (family: anti-captcha), `PopularCaptchaToken`, `PopularCaptchaInvisibleToken`,
    `PopularCaptchaEnterpriseToken`, `PopularCaptchaEnterpriseInvisibleToken` (family: AnySolver), `HardCaptchaToken`
    (inferred). The fields are family: anti-captcha HCaptchaTask, not uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_key: The widget's site key. Required.
        is_invisible: Whether it is the invisible variant.
        enterprise_payload: Values of the Enterprise edition, for example `{"rqdata": "…"}`.
        user_agent: Browser identity to solve with. Deprecated at anti-captcha: use the solution's `user_agent`.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a token is accepted (120). Source: docs/features/lightning-mode. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import HCaptcha

        task = HCaptcha(website_url="https://example.com", website_key="10000000-ffff-ffff-ffff-000000000001")
        assert task.type == "HCaptchaTaskProxyless"
        ```
    """

    type_names: ClassVar[names.Names] = names.HCAPTCHA
    usual_lifetime: ClassVar[float | None] = 120.0

    is_invisible: bool | None = attrs.field(default=None, validator=maybe(FLAG))
    enterprise_payload: Mapping[str, JSON] | None = attrs.field(
        default=None, converter=a_copy_or_none, validator=maybe(OBJECT)
    )
    user_agent: str | None = attrs.field(default=None, validator=maybe(TEXT))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Turnstile(WithKey):
    """Cloudflare Turnstile, the widget. Gives a `TokenSolution`.

    Types, in the order in which they are tried: `TurnstileTokenProxyLess` (U: features/x402-payments),
    `TurnstileTaskProxyless` (family: anti-captcha), `AntiTurnstileTaskProxyLess` (family: CapSolver); with a proxy
    `TurnstileToken` (family: AnySolver), `TurnstileTask` (family: anti-captcha). The fields are family: anti-captcha
    TurnstileTask, not uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_key: The widget's site key. Required.
        action: The widget's `action`.
        c_data: The widget's `cData`.
        chl_page_data: The widget's `chlPageData`.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a token is accepted (300). Source: docs/features/lightning-mode. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import Turnstile

        task = Turnstile(website_url="https://example.com", website_key="0x4AAAAAAA", action="login", c_data="c1")
        assert task.to_wire()["cData"] == "c1"
        assert task.lifetime == 300
        ```
    """

    type_names: ClassVar[names.Names] = names.TURNSTILE
    usual_lifetime: ClassVar[float | None] = 300.0

    action: str | None = attrs.field(default=None, validator=maybe(TEXT))
    c_data: str | None = attrs.field(default=None, validator=maybe(TEXT))
    chl_page_data: str | None = attrs.field(default=None, validator=maybe(TEXT))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class GeeTestV3(OnPage[GeeTestV3Solution]):
    """GeeTest v3, the slider and its variants. Gives a `GeeTestV3Solution`.

    Types, in the order in which they are tried: `GeeTestTaskProxyless` (family: anti-captcha), `GeeTestTaskProxyLess`
    (family: CapSolver), `GeeTestV3TokenProxyLess` (inferred); with a proxy `GeeTestTask` (family: anti-captcha),
    `GeeTestV3Token` (inferred). The fields are family: anti-captcha GeeTestTask, not uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        gt: The site's public key. Required.
        challenge: The challenge, fresh for each task: it serves once. Required.
        geetest_api_server_subdomain: The API's host, where it is not the usual one.
        geetest_get_lib: The path of the library, JSON text. Family: CapMonster.
        user_agent: Browser identity to solve with. Family: CapMonster.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a solution is accepted; not known in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import GeeTestV3

        task = GeeTestV3(website_url="https://example.com", gt="022397c9", challenge="12345678abc")
        assert task.to_wire()["challenge"] == "12345678abc"
        ```
    """

    solution_class: ClassVar[SolutionClass] = GeeTestV3Solution
    type_names: ClassVar[names.Names] = names.GEETEST_V3

    gt: str = attrs.field(validator=KEY)
    challenge: str = attrs.field(validator=KEY)
    geetest_api_server_subdomain: str | None = attrs.field(default=None, validator=maybe(KEY))
    geetest_get_lib: str | None = attrs.field(default=None, validator=maybe(TEXT))
    user_agent: str | None = attrs.field(default=None, validator=maybe(TEXT))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class GeeTestV4(OnPage[GeeTestV4Solution]):
    """GeeTest v4. Gives a `GeeTestV4Solution`.

    Types, in the order in which they are tried: `GeeTestTaskProxyless` (family: anti-captcha), `GeeTestTaskProxyLess`
    (family: CapSolver), `GeeTestV4TokenProxyLess` (inferred); with a proxy `GeeTestTask` (family: anti-captcha),
    `GeeTestV4Token` (inferred). `version` 4 is sent along. The fields are family: anti-captcha GeeTestTask, not
    uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        gt: The site's `captcha_id`. Required.
        init_parameters: What the page passes to `initGeetest4`; 2captcha wants `captcha_id` here too.
        geetest_api_server_subdomain: The API's host, where it is not the usual one.
        user_agent: Browser identity to solve with. Family: CapMonster.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a solution is accepted; not known in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import GeeTestV4

        task = GeeTestV4(website_url="https://example.com", gt="e392e1d7", init_parameters={"riskType": "slide"})
        assert task.to_wire()["version"] == 4
        ```
    """

    solution_class: ClassVar[SolutionClass] = GeeTestV4Solution
    type_names: ClassVar[names.Names] = names.GEETEST_V4

    gt: str = attrs.field(validator=KEY)
    version: int = attrs.field(default=4, init=False)
    init_parameters: Mapping[str, JSON] | None = attrs.field(
        default=None, converter=a_copy_or_none, validator=maybe(OBJECT)
    )
    geetest_api_server_subdomain: str | None = attrs.field(default=None, validator=maybe(KEY))
    user_agent: str | None = attrs.field(default=None, validator=maybe(TEXT))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class FunCaptcha(OnPage[TokenSolution]):
    """FunCaptcha (Arkose Labs). Gives a `TokenSolution`.

    Types, in the order in which they are tried: `FunCaptchaTaskProxyless` (family: anti-captcha),
    `FunCaptchaTaskProxyLess` (family: CapSolver), `FunCaptchaTokenProxyLess` (inferred); with a proxy `FunCaptchaTask`
    (family: anti-captcha), `FunCaptchaToken` (inferred). The fields are family: anti-captcha FunCaptchaTask, not
    uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_public_key: The widget's public key. Required.
        funcaptcha_api_js_subdomain: The host that the widget is loaded from, where it is the site's own.
        data: What the page passes to the widget, for example `{"blob": "…"}`: a mapping, or JSON text. Sent as text.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a token is accepted; not known in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import FunCaptcha

        task = FunCaptcha(website_url="https://example.com", website_public_key="69A21A01", data={"blob": "b1"})
        assert task.to_wire()["data"] == '{"blob": "b1"}'
        ```
    """

    solution_class: ClassVar[SolutionClass] = TokenSolution
    type_names: ClassVar[names.Names] = names.FUNCAPTCHA

    website_public_key: str = attrs.field(validator=KEY)
    funcaptcha_api_js_subdomain: str | None = attrs.field(
        default=None, validator=maybe(KEY), metadata=sent("funcaptchaApiJSSubdomain")
    )
    data: str | None = attrs.field(default=None, converter=json_text, validator=json_object)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class MTCaptcha(WithKey):
    """MTCaptcha. Gives a `TokenSolution`.

    Types, in the order in which they are tried: `MtCaptchaTaskProxyLess` (family: CapSolver), `MtCaptchaTaskProxyless`
    (family: 2captcha), `MTCaptchaTask` (family: CapMonster), `MTCaptchaTokenProxyLess` (inferred); with a proxy
    `MtCaptchaTask` (family: CapSolver), `MTCaptchaTask` (family: CapMonster), `MTCaptchaToken` (inferred). The optional
    fields are family: CapMonster.

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_key: The widget's site key, `MTPublic-…`. Required.
        page_action: The widget's `action`.
        is_invisible: Whether it is the invisible variant.
        user_agent: Browser identity to solve with.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a token is accepted; not known in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import MTCaptcha

        task = MTCaptcha(website_url="https://example.com", website_key="MTPublic-tqNCRE0GS")
        assert task.type == "MtCaptchaTaskProxyLess"
        ```
    """

    type_names: ClassVar[names.Names] = names.MTCAPTCHA

    page_action: str | None = attrs.field(default=None, validator=maybe(TEXT))
    is_invisible: bool | None = attrs.field(default=None, validator=maybe(FLAG))
    user_agent: str | None = attrs.field(default=None, validator=maybe(TEXT))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class FriendlyCaptcha(WithKey):
    """Friendly Captcha. Gives a `TokenSolution`.

    Types, in the order in which they are tried: `FriendlyCaptchaTaskProxyless` (family: anti-captcha),
    `FriendlyCaptchaTokenProxyLess` (inferred); with a proxy `FriendlyCaptchaTask` (family: anti-captcha),
    `FriendlyCaptchaToken` (inferred). The fields are family: anti-captcha FriendlyCaptchaTask, not uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_key: The widget's site key. Required.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a token is accepted; not known in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import FriendlyCaptcha

        task = FriendlyCaptcha(website_url="https://example.com", website_key="FCMGEMUD2KTDSQ5H")
        assert task.type == "FriendlyCaptchaTaskProxyless"
        ```
    """

    type_names: ClassVar[names.Names] = names.FRIENDLY_CAPTCHA


@attrs.frozen(kw_only=True, eq=False, repr=False)
class YandexSmartCaptcha(WithKey):
    """Yandex SmartCaptcha. Gives a `TokenSolution`.

    Types, in the order in which they are tried: `YandexCaptchaTaskProxyLess` (family: CapSolver),
    `YandexSmartCaptchaTaskProxyless`, `YandexCaptchaTokenProxyLess` (inferred); with a proxy `YandexCaptchaTask`,
    `YandexSmartCaptchaTask`, `YandexCaptchaToken` (inferred). The fields are family: CapSolver YandexCaptcha, not
    uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_key: The widget's site key, `ysc1_…`. Required.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a token is accepted; not known in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import YandexSmartCaptcha

        task = YandexSmartCaptcha(website_url="https://example.com", website_key="ysc1_abc")
        assert task.type == "YandexCaptchaTaskProxyLess"
        ```
    """

    type_names: ClassVar[names.Names] = names.YANDEX_SMART_CAPTCHA


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Tencent(OnPage[TencentSolution]):
    """Tencent Captcha. Gives a `TencentSolution`.

    Types, in the order in which they are tried: `TencentTaskProxyless` (family: 2captcha), `TencentTokenProxyLess`
    (inferred); with a proxy `TencentTask` (family: 2captcha), `TencentToken` (inferred). The fields are family:
    2captcha, from memory of its clients; not uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        app_id: The site's id. Required.
        captcha_script: Absolute URL of the widget's script, where it is not the usual one.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a ticket is accepted; not known in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import Tencent

        task = Tencent(website_url="https://example.com", app_id="190014885")
        assert task.to_wire()["appId"] == "190014885"
        ```
    """

    solution_class: ClassVar[SolutionClass] = TencentSolution
    type_names: ClassVar[names.Names] = names.TENCENT

    app_id: str = attrs.field(validator=KEY)
    captcha_script: str | None = attrs.field(default=None, validator=maybe(page))
