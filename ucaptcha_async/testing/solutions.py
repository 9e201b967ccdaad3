"""What the local service solves: the kinds of CAPTCHA, their type names, and what a solution of each looks like.

The documentation shows only few type names; the others are those of the services it is compatible with.
Source: docs/api/ucaptcha/create-task, docs/api/ucaptcha/get-task-result.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Mapping
from decimal import Decimal

import attrs

from .spellings import SPELLINGS
from .timing import LogNormal, SolveTime

JSON = dict[str, object]
Maker = Callable[[random.Random, Mapping[str, object]], JSON]

USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"


@attrs.frozen(kw_only=True)
class Kind:
    """One kind of CAPTCHA that the local service solves.

    Attributes:
        name: A short name for it.
        types: The names that `task.type` may have.
        solution: Makes a solution from a generator and the `task` object.
        answer: The field of the solution that a callback carries alone.
        page: Whether `websiteURL` is required.
        site_key: The name of the field with the site's key, if one is required.
        required: Names of other fields that are required.
        price: What a solve costs, in USD.
        solve_time: How long a solve takes, in seconds at speed 1.
        pooled: Whether Lightning mode may hold solved ones in stock.
    """

    name: str
    types: tuple[str, ...]
    solution: Maker
    answer: str = "token"
    page: bool = True
    site_key: str | None = "websiteKey"
    required: tuple[str, ...] = ()
    price: Decimal = Decimal("0.00299")
    solve_time: SolveTime = attrs.field(factory=lambda: LogNormal(12.0, 0.5))
    pooled: bool = True

    def is_meant(self, word: str) -> bool:
        """Tell whether a word is the name of this kind or any name of its types."""
        return word == self.name or word in self.types


def token(rng: random.Random, prefix: str = "", size: int = 360) -> str:
    """Make a token such as sites hand out: long, random, safe in a URL."""
    return prefix + base64.urlsafe_b64encode(rng.randbytes(size)).decode("ascii")


def digits(rng: random.Random, size: int = 32) -> str:
    """Make a random hexadecimal string."""
    return f"{rng.getrandbits(4 * size):0{size}x}"


def _recaptcha(rng: random.Random, task: Mapping[str, object]) -> JSON:
    return {"gRecaptchaResponse": token(rng, "03AGdBq2")}


def _hcaptcha(rng: random.Random, task: Mapping[str, object]) -> JSON:
    return {"token": token(rng, "P1_eyJ0"), "userAgent": USER_AGENT}


def _turnstile(rng: random.Random, task: Mapping[str, object]) -> JSON:
    return {"token": token(rng, "0."), "userAgent": USER_AGENT}


def make_token(rng: random.Random, task: Mapping[str, object]) -> JSON:
    """Make a solution that is a token and nothing else."""
    return {"token": token(rng)}


def _friendly(rng: random.Random, task: Mapping[str, object]) -> JSON:
    return {"token": token(rng), "userAgent": USER_AGENT}


def _arkose(rng: random.Random, task: Mapping[str, object]) -> JSON:
    return {"token": f"{rng.getrandbits(64):016x}.{rng.getrandbits(32):08x}|r=eu-west-1|pk={task['websitePublicKey']}"}


def _text(rng: random.Random, task: Mapping[str, object]) -> JSON:
    return {"text": "".join(rng.choices("abcdefghjkmnpqrstuvwxyz23456789", k=6))}


def geetest_version(task: Mapping[str, object]) -> object:
    """Return which version of GeeTest a task is about: by its field, else by the name of its type."""
    return task.get("version", 4 if "V4" in str(task.get("type")) else 3)


def _geetest(rng: random.Random, task: Mapping[str, object]) -> JSON:
    if geetest_version(task) == 4:
        return _geetest_v4(rng, task)
    validate = digits(rng)
    return {"challenge": task.get("challenge"), "validate": validate, "seccode": f"{validate}|jordan"}


def _geetest_v4(rng: random.Random, task: Mapping[str, object]) -> JSON:
    initial = task.get("initParameters")
    captcha_id = initial.get("captcha_id") if isinstance(initial, dict) else None
    return {
        "captcha_id": captcha_id or task.get("gt"),
        "lot_number": digits(rng),
        "pass_token": digits(rng, 64),
        "gen_time": str(1_700_000_000 + rng.randrange(10**7)),
        "captcha_output": token(rng, size=120),
    }


def _tencent(rng: random.Random, task: Mapping[str, object]) -> JSON:
    return {"appid": task["appId"], "ret": 0, "ticket": token(rng, "tr03", 90), "randstr": f"@{digits(rng, 4)}"}


def _coordinates(rng: random.Random, task: Mapping[str, object]) -> JSON:
    clicks = task.get("minClicks")
    count = clicks if isinstance(clicks, int) else rng.randint(1, 4)
    return {"coordinates": [{"x": rng.randrange(300), "y": rng.randrange(300)} for _ in range(count)]}


def _rotate(rng: random.Random, task: Mapping[str, object]) -> JSON:
    return {"rotate": rng.randrange(0, 360, 5)}


_ENDINGS = ("Proxyless", "ProxyLess")


def _names(kind: str) -> tuple[str, ...]:
    """What the services of the family call a kind, each name with both spellings of the ending."""
    known = [name for spelling in SPELLINGS.values() for name in (spelling.types or {}).get(kind, ())]
    stems = dict.fromkeys(name.removesuffix(_ENDINGS[0]).removesuffix(_ENDINGS[1]) for name in known)
    return tuple(stem + ending for stem in stems for ending in ("", *_ENDINGS))


KINDS: tuple[Kind, ...] = (
    Kind(
        name="reCAPTCHA v2",
        types=_names("reCAPTCHA v2"),
        solution=_recaptcha,
        answer="gRecaptchaResponse",
    ),
    Kind(
        name="reCAPTCHA v2 Enterprise",
        types=_names("reCAPTCHA v2 Enterprise"),
        solution=_recaptcha,
        answer="gRecaptchaResponse",
        price=Decimal("0.00399"),
        solve_time=LogNormal(14.0, 0.5),
    ),
    Kind(
        name="reCAPTCHA v3",
        types=_names("reCAPTCHA v3"),
        solution=_recaptcha,
        answer="gRecaptchaResponse",
        price=Decimal("0.00199"),
        solve_time=LogNormal(8.0, 0.4),
    ),
    Kind(
        name="hCaptcha",
        types=_names("hCaptcha"),
        solution=_hcaptcha,
        solve_time=LogNormal(15.0, 0.5),
    ),
    Kind(
        name="Turnstile",
        types=_names("Turnstile"),
        solution=_turnstile,
        price=Decimal("0.00145"),
        solve_time=LogNormal(6.0, 0.4),
    ),
    Kind(
        name="image to text",
        types=("ImageToTextTask",),
        solution=_text,
        answer="text",
        page=False,
        site_key=None,
        price=Decimal("0.0005"),
        solve_time=LogNormal(4.0, 0.4),
        pooled=False,
    ),
    Kind(
        name="GeeTest",
        types=_names("GeeTest"),
        solution=_geetest,
        answer="validate",
        site_key=None,
        solve_time=LogNormal(10.0, 0.4),
        pooled=False,
    ),
    Kind(
        name="FunCaptcha",
        types=_names("FunCaptcha"),
        solution=_arkose,
        site_key="websitePublicKey",
        solve_time=LogNormal(20.0, 0.5),
    ),
    Kind(name="MTCaptcha", types=_names("MTCaptcha"), solution=make_token),
    Kind(name="Friendly Captcha", types=_names("Friendly Captcha"), solution=_friendly),
    Kind(
        name="Yandex SmartCaptcha",
        types=_names("Yandex SmartCaptcha"),
        solution=make_token,
    ),
    Kind(
        name="Tencent",
        types=_names("Tencent"),
        solution=_tencent,
        answer="ticket",
        site_key=None,
        required=("appId",),
        pooled=False,
    ),
    Kind(
        name="click coordinates",
        types=("CoordinatesRecognition", "CoordinatesTask"),
        solution=_coordinates,
        answer="coordinates",
        page=False,
        site_key=None,
        price=Decimal("0.0012"),
        pooled=False,
    ),
    Kind(
        name="rotate",
        types=("RotateRecognition", "RotateTask"),
        solution=_rotate,
        answer="rotate",
        page=False,
        site_key=None,
        price=Decimal("0.0005"),
        pooled=False,
    ),
    Kind(
        name="human recognition",
        types=("HumanRecognition",),
        solution=_text,
        answer="text",
        page=False,
        site_key=None,
        price=Decimal("0.001"),
        pooled=False,
    ),
)
"""Every kind that the local service solves without being told of it."""
