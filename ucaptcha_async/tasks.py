"""What you ask: one class for each CAPTCHA widget, and `Task` for any other type.

The names of fields are the service's in snake case. uCaptcha's own pages about the task types were not available when
this was written: only the names `RecaptchaV2TaskProxyless`, `ReCaptchaV2TokenProxyLess` and `ImageToTextTask` are
uCaptcha's, and all else is the common ground of its protocol family (marked "family: …"). So `type` can be set on each
class, and `extra` adds any field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Literal, NoReturn, TypeAlias, TypeVar

import attrs

from .checks import Seconds, seconds, split_url, wrong
from .errors import ConfigurationError, InvalidTaskError, ProxyError
from .images import Image, ImageSource, read_image
from .proxy import Proxy
from .results import (
    Solution,
    TextSolution,
    TokenSolution,
)
from .wire import JSON, camel, checked, discreet, shown, to_json

S_co = TypeVar("S_co", bound=Solution, covariant=True)

ApiDomain: TypeAlias = Literal["google.com", "recaptcha.net", "www.google.com", "www.recaptcha.net"]
LanguagePool: TypeAlias = Literal["en", "rn"]
_SolutionClass: TypeAlias = type[Solution]
_Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]

_PRIVATE = re.compile(r"(?i)proxy|pass|login|cookie|token|secret|body|image")


# --- checks of fields: each names the field, what is allowed, and what was given -----------------------------------


def _must(allowed: str, test: Callable[[Any], bool]) -> _Validator:
    def validate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not test(value):
            raise wrong(attribute.alias or attribute.name, value, allowed)

    return validate


def _maybe(validator: _Validator) -> _Validator:
    def validate(task: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None:
            validator(task, attribute, value)

    return validate


def _number(low: float, high: float | None = None, *, whole: bool = False) -> _Validator:
    kind, noun = (int, "a whole number") if whole else (int | float, "a number")
    allowed = f"{noun} of at least {low:g}" if high is None else f"{noun} from {low:g} to {high:g}"

    def test(value: Any) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= (high or value)

    return _must(allowed, test)


def _one_of(*words: str) -> _Validator:
    return _must(f"one of {', '.join(map(repr, words))}", lambda value: isinstance(value, str) and value in words)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_key(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable() and not any(c.isspace() for c in value)


def _page(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    split_url(attribute.name, value, InvalidTaskError)


_TEXT = _must("non-empty text", _is_text)
_KEY = _must("non-empty text without white space", _is_key)
_FLAG = _must("True or False", lambda value: isinstance(value, bool))
_OBJECT = _must("a mapping of JSON values", lambda value: isinstance(value, Mapping))
_DOMAIN = _one_of("google.com", "recaptcha.net", "www.google.com", "www.recaptcha.net")


def _check_object(task: object, attribute: attrs.Attribute[Any], value: object) -> None:
    _OBJECT(task, attribute, value)
    to_json(attribute.name, value)


def _check_proxy(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, Proxy):
        raise wrong("proxy", value, "a Proxy (Proxy.parse reads a URL) or None", ProxyError)


def _check_extra(task: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    _check_object(task, attribute, value)
    if "type" in value:
        raise InvalidTaskError("extra must not hold 'type': set the task's own type", field="extra")


def _type_name(value: str | None) -> str | None:
    if value is not None and not _is_key(value):
        raise wrong("type", value, "non-empty text without white space")
    return value


def _lifetime(value: Seconds | None) -> float | None:
    if value is None:
        return None
    try:
        return seconds("lifetime", value)
    except ConfigurationError as error:
        raise InvalidTaskError(error.message, field="lifetime") from None


def _image(value: ImageSource) -> Image:
    return read_image("image", value)


def _instructions(value: ImageSource | None) -> Image | None:
    return None if value is None else read_image("img_instructions", value)


def _blob(value: str | Mapping[str, JSON] | None) -> str | None:
    if isinstance(value, Mapping):
        return json.dumps(to_json("data", value))
    if value is not None and not (isinstance(value, str) and _is_json_object(value)):
        raise wrong("data", value, "a mapping, or text that holds a JSON object")
    return value


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


# --- the base of all tasks -----------------------------------------------------------------------------------------


class Task(Generic[S_co]):
    """A task of any type, and the base of all task classes.

    The fields are sent as they are given (`None` is left out), so write them as the service does: `websiteURL`.

    Tasks are immutable. Two tasks are equal if they are of one class and send the same; so they can be keys of a
    dict and members of a set. They can be copied, and pickled unless they hold a proxy's password.

    Source: docs/api/ucaptcha/create-task.

    Attributes:
        type: The task's type on the wire.
        lifetime: How long its solutions are usually accepted, seconds; `None` if nobody knows. Never sent.

    Raises:
        InvalidTaskError: `type` is empty, or a field is no JSON value.

    Example:
        ```python
        from ucaptcha_async import Task

        task = Task("AnyOtherTask", websiteURL="https://example.com", websiteKey="abc", pageTitle=None)
        assert task.to_wire() == {"type": "AnyOtherTask", "websiteURL": "https://example.com", "websiteKey": "abc"}
        ```
    """

    __slots__ = ("_fields", "_life", "_type")

    solution_class: ClassVar[_SolutionClass] = Solution
    """What the solution of such a task is parsed as."""

    _type: str | None
    _life: float | None
    _fields: Mapping[str, JSON]

    @discreet
    def __init__(
        self: Task[Solution],
        type: str,
        /,
        *,
        lifetime: Seconds | None = None,
        **fields: JSON | Proxy | Task[Solution],
    ) -> None:
        if "type" in fields:
            raise InvalidTaskError("type must be given once, as the first argument", field="type")
        object.__setattr__(self, "_type", _type_name(type or ""))
        object.__setattr__(self, "_life", _lifetime(lifetime))
        object.__setattr__(self, "_fields", _raw_fields(fields))

    @property
    def type(self) -> str:
        """The task's type on the wire."""
        return self._type or ""

    @property
    def lifetime(self) -> float | None:
        """How long the solutions of this task are usually accepted, seconds; `None` if nobody knows."""
        return self._life

    def to_wire(self) -> dict[str, JSON]:
        """The `task` object of `createTask`. It may hold a proxy's password."""
        return {"type": self.type} | {name: to_json(name, value) for name, value in self._fields.items()}

    def encode_nested(self) -> JSON:
        """How the task is written inside another value."""
        return self.to_wire()

    def _shown(self) -> Iterator[str]:
        yield repr(self.type)
        for name, value in self._fields.items():
            yield f"{name}={'<hidden>' if _PRIVATE.search(name) else shown(value)}"

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({', '.join(self._shown())})"

    def _identity(self) -> tuple[object, ...]:
        return self.__class__, self.lifetime, json.dumps(self.to_wire(), sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise attrs.exceptions.FrozenInstanceError

    def __delattr__(self, name: str) -> NoReturn:
        raise attrs.exceptions.FrozenInstanceError

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in Task.__slots__}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __copy__(self) -> Task[S_co]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Task[S_co]:
        return self


def _raw_fields(fields: Mapping[str, object]) -> dict[str, JSON]:
    wire: dict[str, JSON] = {}
    for name, value in fields.items():
        if name == "proxy" and isinstance(value, Proxy):
            wire |= value.to_wire()
        elif value is not None:
            wire[name] = to_json(name, value)
    return wire


_WIRE = "wire"


def _sent(name: str | None, write: Callable[[Any], JSON] | None = None) -> dict[str, Any]:
    """Metadata of a field whose name on the wire is not simply its own in camel case, or that is not sent."""
    return {_WIRE: (name, write)}


@attrs.frozen(kw_only=True, eq=False, repr=False)
class _Widget(Task[S_co]):
    types: ClassVar[tuple[str, str]]
    """The type's name without and with a proxy."""
    usual_lifetime: ClassVar[float | None] = None

    _type: str | None = attrs.field(default=None, alias="type", converter=_type_name, metadata=_sent(None))
    _life: float | None = attrs.field(default=None, alias="lifetime", converter=_lifetime, metadata=_sent(None))
    extra: Mapping[str, JSON] = attrs.field(factory=dict, validator=_check_extra, metadata=_sent(None), repr=False)

    @property
    def type(self) -> str:
        """The task's type on the wire: the one that was given, or the usual one."""
        return self._type or self.types[getattr(self, "proxy", None) is not None]

    @property
    def lifetime(self) -> float | None:
        """How long the solutions of this task are usually accepted, seconds; `None` if nobody knows."""
        return self.usual_lifetime if self._life is None else self._life

    def to_wire(self) -> dict[str, JSON]:
        """The `task` object of `createTask`. It may hold a proxy's password."""
        wire: dict[str, JSON] = {"type": self.type}
        for field in attrs.fields(self.__class__):
            value = getattr(self, field.name)
            name, write = field.metadata.get(_WIRE, (camel(field.name), None))
            if isinstance(value, Proxy):
                wire |= value.to_wire()
            elif value is not None and name is not None:
                wire[name] = write(value) if write else to_json(field.name, value)
        return wire | {name: to_json(name, value) for name, value in self.extra.items()}

    def _shown(self) -> Iterator[str]:
        for field in attrs.fields(self.__class__):
            value = getattr(self, field.name)
            if field.init and value is not None and value != {}:
                yield f"{field.alias}={shown(value) if field.repr else '<hidden>'}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class _OnPage(_Widget[S_co]):
    website_url: str = attrs.field(validator=_page, metadata=_sent("websiteURL"))
    proxy: Proxy | None = attrs.field(default=None, validator=_check_proxy)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class _WithKey(_OnPage[S_co]):
    website_key: str = attrs.field(validator=_KEY)


# --- the widgets ---------------------------------------------------------------------------------------------------


@checked
@attrs.frozen(kw_only=True, eq=False, repr=False)
class RecaptchaV2(_WithKey[TokenSolution]):
    """reCAPTCHA v2, the checkbox or the invisible one. Gives a `TokenSolution`.

    Type `RecaptchaV2TaskProxyless` (source: docs/api/ucaptcha/create-task), with a proxy `RecaptchaV2Task`
    (family: anti-captcha RecaptchaV2Task, not uCaptcha's own page).

    Attributes:
        website_url: Absolute URL of the page. Required. Source: docs/api/ucaptcha/create-task.
        website_key: The widget's site key. Required. Source: docs/api/ucaptcha/create-task.
        is_invisible: Whether it is the invisible variant. Family: anti-captcha RecaptchaV2Task.
        recaptcha_data_s_value: The page's `data-s` value, where it has one. Family: anti-captcha.
        page_action: The widget's `action`. Family: CapSolver ReCaptchaV2.
        user_agent: Browser identity to solve with, used with a proxy. Family: anti-captcha.
        cookies: Cookies to solve with, `name=value; name2=value2`, used with a proxy. Family: anti-captcha.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through. Family, see there.
        type: Another type name to send instead.
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
        assert RecaptchaV2(website_url="https://example.com", website_key="6L", proxy=proxy).type == "RecaptchaV2Task"
        ```
    """

    solution_class: ClassVar[_SolutionClass] = TokenSolution
    types: ClassVar[tuple[str, str]] = ("RecaptchaV2TaskProxyless", "RecaptchaV2Task")
    usual_lifetime: ClassVar[float | None] = 120.0

    is_invisible: bool | None = attrs.field(default=None, validator=_maybe(_FLAG))
    recaptcha_data_s_value: str | None = attrs.field(default=None, validator=_maybe(_TEXT))
    page_action: str | None = attrs.field(default=None, validator=_maybe(_TEXT))
    user_agent: str | None = attrs.field(default=None, validator=_maybe(_TEXT))
    cookies: str | None = attrs.field(default=None, validator=_maybe(_TEXT), repr=False)


@checked
@attrs.frozen(kw_only=True, eq=False, repr=False)
class RecaptchaV2Enterprise(_WithKey[TokenSolution]):
    """reCAPTCHA v2 Enterprise. Gives a `TokenSolution`.

    Type `RecaptchaV2EnterpriseTaskProxyless`, with a proxy `RecaptchaV2EnterpriseTask`. Type and fields are family:
    anti-captcha RecaptchaV2EnterpriseTask, not uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_key: The widget's site key. Required.
        enterprise_payload: What the page passes to `grecaptcha.enterprise.render`, for example `{"s": "…"}`.
        api_domain: The host that the widget is loaded from: `"www.google.com"` or `"www.recaptcha.net"`.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: Another type name to send instead.
        lifetime: Seconds that a token is accepted (120). Source: docs/features/lightning-mode. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import RecaptchaV2Enterprise

        task = RecaptchaV2Enterprise(website_url="https://example.com", website_key="6L", enterprise_payload={"s": "x"})
        assert task.to_wire()["enterprisePayload"] == {"s": "x"}
        ```
    """

    solution_class: ClassVar[_SolutionClass] = TokenSolution
    types: ClassVar[tuple[str, str]] = ("RecaptchaV2EnterpriseTaskProxyless", "RecaptchaV2EnterpriseTask")
    usual_lifetime: ClassVar[float | None] = 120.0

    enterprise_payload: Mapping[str, JSON] | None = attrs.field(default=None, validator=_maybe(_check_object))
    api_domain: ApiDomain | None = attrs.field(default=None, validator=_maybe(_DOMAIN))


@checked
@attrs.frozen(kw_only=True, eq=False, repr=False)
class RecaptchaV3(_WithKey[TokenSolution]):
    """reCAPTCHA v3, Enterprise or not. Gives a `TokenSolution`.

    Type `RecaptchaV3TaskProxyless` (family: anti-captcha and 2captcha RecaptchaV3), with a proxy `RecaptchaV3Task`
    (inferred from CapSolver's `ReCaptchaV3Task`); neither is on uCaptcha's own pages.

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
        type: Another type name to send instead.
        lifetime: Seconds that a token is accepted (120). Source: docs/features/lightning-mode. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import RecaptchaV3

        task = RecaptchaV3(website_url="https://example.com", website_key="6Lc_a", min_score=0.7, page_action="login")
        assert task.to_wire()["minScore"] == 0.7
        ```
    """

    solution_class: ClassVar[_SolutionClass] = TokenSolution
    types: ClassVar[tuple[str, str]] = ("RecaptchaV3TaskProxyless", "RecaptchaV3Task")
    usual_lifetime: ClassVar[float | None] = 120.0

    min_score: float | None = attrs.field(default=None, validator=_maybe(_number(0.1, 0.9)))
    page_action: str | None = attrs.field(default=None, validator=_maybe(_TEXT))
    is_enterprise: bool | None = attrs.field(default=None, validator=_maybe(_FLAG))
    api_domain: ApiDomain | None = attrs.field(default=None, validator=_maybe(_DOMAIN))
    enterprise_payload: Mapping[str, JSON] | None = attrs.field(default=None, validator=_maybe(_check_object))
    is_session: bool | None = attrs.field(default=None, validator=_maybe(_FLAG))


@checked
@attrs.frozen(kw_only=True, eq=False, repr=False)
class HCaptcha(_WithKey[TokenSolution]):
    """hCaptcha. Gives a `TokenSolution`.

    Type `HCaptchaTaskProxyless`, with a proxy `HCaptchaTask`. Type and fields are family: anti-captcha HCaptchaTask,
    not uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_key: The widget's site key. Required.
        is_invisible: Whether it is the invisible variant.
        enterprise_payload: Values of the Enterprise edition, for example `{"rqdata": "…"}`.
        user_agent: Browser identity to solve with. Deprecated at anti-captcha: use the solution's `user_agent`.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: Another type name to send instead.
        lifetime: Seconds that a token is accepted (120). Source: docs/features/lightning-mode. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import HCaptcha

        task = HCaptcha(website_url="https://example.com", website_key="10000000-ffff-ffff-ffff-000000000001")
        assert task.type == "HCaptchaTaskProxyless"
        ```
    """

    solution_class: ClassVar[_SolutionClass] = TokenSolution
    types: ClassVar[tuple[str, str]] = ("HCaptchaTaskProxyless", "HCaptchaTask")
    usual_lifetime: ClassVar[float | None] = 120.0

    is_invisible: bool | None = attrs.field(default=None, validator=_maybe(_FLAG))
    enterprise_payload: Mapping[str, JSON] | None = attrs.field(default=None, validator=_maybe(_check_object))
    user_agent: str | None = attrs.field(default=None, validator=_maybe(_TEXT))


@checked
@attrs.frozen(kw_only=True, eq=False, repr=False)
class Turnstile(_WithKey[TokenSolution]):
    """Cloudflare Turnstile, the widget. Gives a `TokenSolution`.

    Type `TurnstileTaskProxyless`, with a proxy `TurnstileTask`. Type and fields are family: anti-captcha
    TurnstileTask, not uCaptcha's own page.

    Attributes:
        website_url: Absolute URL of the page. Required.
        website_key: The widget's site key. Required.
        action: The widget's `action`.
        c_data: The widget's `cData`.
        chl_page_data: The widget's `chlPageData`.
        proxy: A [`Proxy`][ucaptcha_async.Proxy] to solve through.
        type: Another type name to send instead.
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

    solution_class: ClassVar[_SolutionClass] = TokenSolution
    types: ClassVar[tuple[str, str]] = ("TurnstileTaskProxyless", "TurnstileTask")
    usual_lifetime: ClassVar[float | None] = 300.0

    action: str | None = attrs.field(default=None, validator=_maybe(_TEXT))
    c_data: str | None = attrs.field(default=None, validator=_maybe(_TEXT))
    chl_page_data: str | None = attrs.field(default=None, validator=_maybe(_TEXT))


@checked
@attrs.frozen(kw_only=True, eq=False, repr=False)
class ImageToText(_Widget[TextSolution]):
    """Text in an image. Gives a `TextSolution`, usually at once.

    Type `ImageToTextTask` (source: docs/api/ucaptcha/create-task). The fields are family: anti-captcha
    ImageToTextTask, not uCaptcha's own page.

    Attributes:
        image: The image. Required. `bytes`; the path of a file as `pathlib.Path`, which is read at once; or text:
            base64 or a `data:` URI. PNG, JPEG, GIF, WebP or BMP. Sent as `body`.
        phrase: Whether the answer has more than one word.
        case: Whether upper and lower case matter.
        numeric: 0 anything, 1 digits only, 2 no digits (anti-captcha); 3 and 4 are 2captcha's: either digits or
            letters, and both.
        math: Whether the answer is the result of a calculation.
        min_length: Fewest characters; 0 for no limit.
        max_length: Most characters; 0 for no limit.
        comment: A hint for who solves it.
        website_url: Absolute URL of the page it comes from.
        language_pool: `"en"` or `"rn"` (Russian and neighbours).
        module: The name of a recogniser. Family: CapSolver.
        type: Another type name to send instead.
        lifetime: Seconds that the text is accepted; nobody knows in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        import base64
        from ucaptcha_async import ImageToText

        text = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
        task = ImageToText(image=base64.b64decode(text), numeric=1, max_length=6)
        assert task.to_wire() == {"type": "ImageToTextTask", "body": text, "numeric": 1, "maxLength": 6}
        assert task == ImageToText(image=f"data:image/gif;base64,{text}", numeric=1, max_length=6)
        ```
    """

    solution_class: ClassVar[_SolutionClass] = TextSolution
    types: ClassVar[tuple[str, str]] = ("ImageToTextTask", "ImageToTextTask")

    image: Image = attrs.field(converter=_image, metadata=_sent("body", Image.to_base64))
    phrase: bool | None = attrs.field(default=None, validator=_maybe(_FLAG))
    case: bool | None = attrs.field(default=None, validator=_maybe(_FLAG))
    numeric: int | None = attrs.field(default=None, validator=_maybe(_number(0, 4, whole=True)))
    math: bool | None = attrs.field(default=None, validator=_maybe(_FLAG))
    min_length: int | None = attrs.field(default=None, validator=_maybe(_number(0, whole=True)))
    max_length: int | None = attrs.field(default=None, validator=_maybe(_number(0, whole=True)))
    comment: str | None = attrs.field(default=None, validator=_maybe(_TEXT))
    website_url: str | None = attrs.field(default=None, validator=_maybe(_page), metadata=_sent("websiteURL"))
    language_pool: LanguagePool | None = attrs.field(default=None, validator=_maybe(_one_of("en", "rn")))
    module: str | None = attrs.field(default=None, validator=_maybe(_TEXT))

    def __attrs_post_init__(self) -> None:
        _check_order("min_length", self.min_length, "max_length", self.max_length or None)


def _check_order(low_name: str, low: int | None, high_name: str, high: int | None) -> None:
    if low is not None and high is not None and low > high:
        raise wrong(high_name, high, f"at least {low_name} ({low})")
