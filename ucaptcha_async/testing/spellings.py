"""Which names of task types each service of the family takes, and what it calls fields that others spell otherwise.

Source: docs/api/ucaptcha/create-task, docs/getting-started/authentication, docs/features/x402-payments for uCaptcha's
own names; the rest of its set is inferred from their form (`<Kind>Token[ProxyLess]`). The other sets are those of the
public pages of anti-captcha (with 2captcha and CapMonster), CapSolver and AnySolver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import attrs

from .refusals import RefusalError


@attrs.frozen(kw_only=True)
class Spelling:
    """What one service takes.

    Attributes:
        types: The names of task types, by the name of the kind; None for every name that anybody uses.
        elsewhere: Fields of other services that this one does not know, by the name of the kind, with what it says
            instead. The real services ignore them, and sell a token that does not work.
        proxy: Whether a proxy comes as one string (`text`), in five `fields`, or in `both` ways.
        any_proxy_text: Whether the string may have any form.
    """

    types: Mapping[str, tuple[str, ...]] | None = None
    elsewhere: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    proxy: Literal["text", "fields", "both"] = "both"
    any_proxy_text: bool = False

    def takes(self, name: str) -> bool:
        """Tell whether a name of a task type is known here."""
        return self.types is None or any(name in names for names in self.types.values())

    def names(self) -> Iterator[str]:
        """All names, if they are not simply all that there are."""
        for names in (self.types or {}).values():
            yield from names

    def check(self, task: Mapping[str, object], kind: str) -> None:
        """Refuse what other services would understand."""
        for field, here in self.elsewhere.get(kind, {}).items():
            if field in task:
                raise RefusalError("ERROR_BAD_PARAMETERS", f"{field} is not a field of this service: {here}.")
        if self.proxy == "fields" and "proxy" in task:
            raise RefusalError("ERROR_BAD_PROXY", "This service takes a proxy as proxyType, proxyAddress, proxyPort.")
        if self.proxy == "text" and "proxyAddress" in task:
            raise RefusalError("ERROR_BAD_PROXY", "This service takes a proxy as one string, proxy.")


def pairs(names: Iterable[str], ending: str) -> tuple[str, ...]:
    """Each name alone (with a proxy) and with the ending that says that none is needed."""
    return tuple(name + rest for name in names for rest in ("", ending))


def _both(ending: str, **kinds: str) -> dict[str, tuple[str, ...]]:
    return {_KINDS[kind]: pairs(names.split(), ending) for kind, names in kinds.items()}


_KINDS = {
    "v2": "reCAPTCHA v2",
    "v2_enterprise": "reCAPTCHA v2 Enterprise",
    "v3": "reCAPTCHA v3",
    "hcaptcha": "hCaptcha",
    "turnstile": "Turnstile",
    "geetest": "GeeTest",
    "funcaptcha": "FunCaptcha",
    "mtcaptcha": "MTCaptcha",
    "friendly": "Friendly Captcha",
    "yandex": "Yandex SmartCaptcha",
    "tencent": "Tencent",
}
_IMAGE = {"image to text": ("ImageToTextTask",)}
_POPULAR = " ".join(f"PopularCaptcha{a}{b}Token" for a in ("", "Enterprise") for b in ("", "Invisible"))

_OWN = _both(
    "ProxyLess",
    v2="ReCaptchaV2Token",
    v2_enterprise="ReCaptchaV2EnterpriseToken",
    v3="ReCaptchaV3Token ReCaptchaV3EnterpriseToken",
    hcaptcha="HardCaptchaToken",
    turnstile="TurnstileToken",
    geetest="GeeTestToken GeeTestV3Token GeeTestV4Token",
    funcaptcha="FunCaptchaToken",
    mtcaptcha="MTCaptchaToken",
    friendly="FriendlyCaptchaToken",
    yandex="YandexCaptchaToken",
    tencent="TencentToken",
)
_OWN["reCAPTCHA v2"] += ("RecaptchaV2TaskProxyless", "RecaptchaV2Task")

_ANTI_CAPTCHA = _both(
    "Proxyless",
    v2="RecaptchaV2Task NoCaptchaTask",
    v2_enterprise="RecaptchaV2EnterpriseTask",
    hcaptcha="HCaptchaTask",
    turnstile="TurnstileTask",
    geetest="GeeTestTask",
    funcaptcha="FunCaptchaTask",
    mtcaptcha="MtCaptchaTask",
    friendly="FriendlyCaptchaTask",
    yandex="YandexSmartCaptchaTask",
    tencent="TencentTask",
)
_ANTI_CAPTCHA["reCAPTCHA v3"] = ("RecaptchaV3TaskProxyless",)
_ANTI_CAPTCHA["MTCaptcha"] += ("MTCaptchaTask",)

_CAPSOLVER = _both(
    "ProxyLess",
    v2="ReCaptchaV2Task",
    v2_enterprise="ReCaptchaV2EnterpriseTask",
    v3="ReCaptchaV3Task ReCaptchaV3EnterpriseTask",
    hcaptcha="HCaptchaTask",
    geetest="GeeTestTask",
    funcaptcha="FunCaptchaTask",
    mtcaptcha="MtCaptchaTask",
)

_ANYSOLVER = _both(
    "ProxyLess",
    v2="ReCaptchaV2Token",
    v2_enterprise="ReCaptchaV2EnterpriseToken",
    v3="ReCaptchaV3Token ReCaptchaV3EnterpriseToken",
    hcaptcha=_POPULAR,
    turnstile="TurnstileToken",
)

_BY_NAME = "the name of the type says it"
_NOWHERE = "there is none like it"

SPELLINGS: Mapping[str, Spelling] = {
    "any": Spelling(),
    "own": Spelling(types=_OWN | _IMAGE),
    "anticaptcha": Spelling(
        types={
            **_ANTI_CAPTCHA,
            **_IMAGE,
            "click coordinates": ("CoordinatesTask",),
            "rotate": ("RotateTask",),
        },
        elsewhere={
            "Turnstile": {"metadata": "action, cData"},
            "click coordinates": {"imageBase64": "body"},
            "rotate": {"imageBase64": "body"},
        },
        proxy="fields",
    ),
    "capsolver": Spelling(
        types={
            **_CAPSOLVER,
            **_IMAGE,
            "Turnstile": ("AntiTurnstileTaskProxyLess",),
            "Yandex SmartCaptcha": ("YandexCaptchaTaskProxyLess",),
        },
        elsewhere={
            "Turnstile": {
                "action": "metadata.action",
                "cData": "metadata.cdata",
                "data": "metadata.cdata",
                **dict.fromkeys(("chlPageData", "pagedata"), _NOWHERE),
            },
            "reCAPTCHA v3": {"isEnterprise": _BY_NAME},
        },
        any_proxy_text=True,
    ),
    "anysolver": Spelling(
        types={
            **_ANYSOLVER,
            **_IMAGE,
            "click coordinates": ("CoordinatesRecognition",),
            "rotate": ("RotateRecognition",),
            "human recognition": ("HumanRecognition",),
        },
        elsewhere={
            "hCaptcha": {"enterprisePayload": "rqdata", "isInvisible": _BY_NAME},
            "reCAPTCHA v3": {"isEnterprise": _BY_NAME},
            "Turnstile": {"metadata": _NOWHERE},
        },
        proxy="text",
    ),
}
"""What each service takes, by its name. `own` is uCaptcha itself, `any` takes all that somebody of the family takes."""
