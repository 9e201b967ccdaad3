"""What a solved task gives: one class for each kind of solution."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar, NamedTuple, NoReturn, Self, TypeAlias

import attrs

from ucaptcha_async.checks import Seconds, describe, seconds, wrong
from ucaptcha_async.errors import ClientStateError, ConfigurationError, SolutionError
from ucaptcha_async.json_values import JSON
from ucaptcha_async.secrecy import OwnCopy, hidden, masked

Feedback: TypeAlias = Callable[[bool, str, str | None], Awaitable[str]]
"""Sends feedback on one task: `await feedback(accepted, message, code)` gives the service's confirmation."""

_TOKEN_KEYS = ("gRecaptchaResponse", "token", "text")


class Point(NamedTuple):
    """A place in an image, in pixels from its top left corner."""

    x: float
    y: float


def _now() -> datetime:
    return datetime.now(UTC)


def _aware(_: object, attribute: attrs.Attribute[datetime], value: datetime) -> None:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise wrong(attribute.name, value, "a datetime with a time zone", ConfigurationError)


@attrs.frozen(kw_only=True, init=False, repr=False)
class Solution(OwnCopy):
    """What a solved task gave. Task types without a solution class of their own give this one.

    Its `repr` shows no token. It can be copied, compared and pickled: a pickle holds the token, so keep it as you keep
    secrets. An unpickled solution has no client to send feedback with.

    Attributes:
        raw: The solution as the service sent it, unknown fields included. Its `repr` shows the names only.
        task_id: The task's id.
        cost: What it cost, USD; `None` if the service did not say.
        solve_time: How long the service took, seconds; `None` if it did not say.
        polls: How often the client asked for it; 0 for an immediate answer.
        obtained_at: Since when it may exist (UTC): when the service was last asked and had not solved the task yet. A
            pre-solved token, or that of a task which was resumed by its id, may be older; it is not known how much.
        lifetime: How long such a solution is usually accepted, seconds; `None` if it is not known.
            Source: docs/features/lightning-mode.

    Example:
        ```python
        from ucaptcha_async import Solution

        solution = Solution.parse({"token": "P1_eyJ0eXAi"}, task_id="5f1c", lifetime=120)
        assert solution.token == "P1_eyJ0eXAi"
        assert solution.is_fresh(margin=30)
        assert "P1_eyJ0eXAi" not in repr(solution)
        ```
    """

    raw: Mapping[str, JSON] = attrs.field(repr=False, hash=False)
    task_id: str | None = None
    cost: Decimal | None = None
    solve_time: float | None = None
    polls: int = 0
    obtained_at: datetime = attrs.field(validator=_aware)
    lifetime: float | None = None
    _feedback: Feedback | None = attrs.field(default=None, alias="feedback", eq=False, repr=False)

    promised: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        raw: Mapping[str, JSON],
        task_id: str | None = None,
        cost: Decimal | None = None,
        solve_time: float | None = None,
        polls: int = 0,
        obtained_at: datetime | None = None,
        lifetime: float | None = None,
        feedback: Feedback | None = None,
    ) -> None:
        raw = hidden(raw)
        self.__attrs_init__(  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it
            raw=raw,
            task_id=task_id,
            cost=cost,
            solve_time=solve_time,
            polls=polls,
            obtained_at=_now() if obtained_at is None else obtained_at,
            lifetime=lifetime,
            feedback=feedback,
        )
        for name in self.promised:
            getattr(self, name)

    @classmethod
    def parse(
        cls,
        raw: object,
        *,
        task_id: str | None = None,
        cost: Decimal | None = None,
        solve_time: float | None = None,
        polls: int = 0,
        obtained_at: datetime | None = None,
        lifetime: float | None = None,
        feedback: Feedback | None = None,
    ) -> Self:
        """Build the solution from the wire's `solution` object.

        Args:
            raw: The object as it was received; anything else is an error.
            task_id: The task's id.
            cost: What it cost, USD.
            solve_time: How long the service took, seconds.
            polls: How often it was asked for.
            obtained_at: Since when it may exist; now by default.
            lifetime: How long it is usually accepted, seconds.
            feedback: What `accepted` and `rejected` call.

        Raises:
            SolutionError: It is not an object, or lacks what its type promises. The error keeps `raw`.
        """
        if not isinstance(raw, Mapping):
            problem = SolutionError(
                f"the solution must be a JSON object; got {describe(raw)}", raw=raw, task_id=task_id, cost=cost
            )
            del raw
            raise problem
        raw = hidden(raw)
        return cls(
            raw=raw,
            task_id=task_id,
            cost=cost,
            solve_time=solve_time,
            polls=polls,
            obtained_at=obtained_at,
            lifetime=lifetime,
            feedback=feedback,
        )

    @property
    def token(self) -> str:
        """What proves the solve: `gRecaptchaResponse`, `token` or `text`, whichever the service sent.

        Raises:
            SolutionError: The solution has none of them (see `raw`).
        """
        return self._text(*_TOKEN_KEYS)

    @property
    def age(self) -> float:
        """Seconds for which the solution may exist, by the wall clock: its age at the most (see `obtained_at`)."""
        return max(0.0, (_now() - self.obtained_at).total_seconds())

    @property
    def expires_in(self) -> float | None:
        """Seconds until the solution is usually refused (negative: since then); `None` if it is not known."""
        return None if self.lifetime is None else self.lifetime - self.age

    def is_fresh(self, margin: Seconds = 0.0) -> bool | None:
        """Whether the solution will still be good in `margin` seconds; `None` if it is not known."""
        margin = seconds("margin", margin)
        left = self.expires_in
        return None if left is None else left > margin

    async def accepted(self, message: str = "accepted", *, code: str | None = None) -> str:
        """Tell the service that the solution worked. Source: docs/api/ucaptcha/feedback-task.

        Args:
            message: Free text; the service requires one.
            code: Your own category.

        Returns:
            The service's confirmation.

        Raises:
            ClientStateError: The solution has no client: it was made by hand or unpickled. Use
                [`client.feedback`][ucaptcha_async.AsyncClient.feedback].
        """
        return await self._send(True, message, code)

    async def rejected(self, message: str, *, code: str | None = None) -> str:
        """Tell the service that the site refused the solution, and why. No refund is promised for it.

        Arguments, result and errors as for `accepted`. Source: docs/api/ucaptcha/feedback-task.
        """
        return await self._send(False, message, code)

    async def _send(self, accepted: bool, message: str, code: str | None) -> str:
        if self._feedback is None:
            raise ClientStateError(
                "this solution has no client: it did not come from a client, or it was unpickled; "
                "use client.feedback(task_id, accepted=…, message=…)",
                task_id=self.task_id,
                charged=None,  # nobody here knows
            )
        return await self._feedback(accepted, message, code)

    def _find(self, *keys: str) -> Any:
        """The first value that is there and not empty, out of sight: errors leave through here."""
        for key in keys:
            if not _is_blank(self.raw.get(key)):
                return masked(self.raw[key])
        return None

    def _text(self, *keys: str) -> str:
        value = self._text_or_none(*keys)
        if not value:
            self._lacks(keys, "non-empty text")
        return value

    def _text_or_none(self, *keys: str) -> str | None:
        value = self._find(*keys)
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return str(value)
        return None

    def _number(self, *keys: str) -> float:
        value = _as_number(self._find(*keys))
        if value is None:
            self._lacks(keys, "a number")
        return value

    def _lacks(self, keys: tuple[str, ...], allowed: str) -> NoReturn:
        names = " or ".join(repr(key) for key in keys)
        raise SolutionError(
            f"{type(self).__name__} needs {allowed} in {names}; the service sent the fields {list(self.raw)}",
            raw=self.raw,
            task_id=self.task_id,
            cost=self.cost,
        )

    def __repr__(self) -> str:
        token = self._text_or_none(*_TOKEN_KEYS)
        content = f"raw={self.raw!r}" if token is None else f"token=<{len(token)} characters>"
        rest = f"cost={self.cost!r}, solve_time={self.solve_time!r}, polls={self.polls!r}"
        return f"{type(self).__name__}(task_id={self.task_id!r}, {content}, {rest})"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {str(f.alias): getattr(self, f.name) for f in attrs.fields(Solution) if f.name != "_feedback"}
        return partial(type(self), **fields | {"raw": dict(self.raw)}), ()


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _as_number(value: object) -> float | None:
    if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return None
    return None


class TokenSolution(Solution):
    """A token: of reCAPTCHA, hCaptcha, Turnstile, FunCaptcha and others.

    The token is read from `gRecaptchaResponse` or, in its place, `token`.
    Source: docs/api/ucaptcha/get-task-result (reCAPTCHA: `gRecaptchaResponse`, hCaptcha: `token`).

    Example:
        ```python
        from ucaptcha_async import TokenSolution

        solution = TokenSolution.parse({"gRecaptchaResponse": "03AGdBq27", "userAgent": "Mozilla/5.0"})
        assert solution.token == "03AGdBq27"
        assert solution.user_agent == "Mozilla/5.0"
        ```
    """

    __slots__ = ()

    promised: ClassVar[tuple[str, ...]] = ("token",)

    @property
    def user_agent(self) -> str | None:
        """The browser identity that the token was made with, if sent (family: CapSolver, anti-captcha)."""
        return self._text_or_none("userAgent")

    @property
    def resp_key(self) -> str | None:
        """HCaptcha's `respKey`, if sent (family: anti-captcha)."""
        return self._text_or_none("respKey")


class TextSolution(Solution):
    """The text in an image. Source: docs/api/ucaptcha/get-task-result.

    Example:
        ```python
        from ucaptcha_async import TextSolution

        assert TextSolution.parse({"text": "w9h5k"}).text == "w9h5k"
        ```
    """

    __slots__ = ()

    promised: ClassVar[tuple[str, ...]] = ("text",)

    @property
    def text(self) -> str:
        """The text that was read."""
        return self._text("text", "token", "gRecaptchaResponse")

    @property
    def token(self) -> str:
        """The same as `text`."""
        return self.text


class GeeTestV3Solution(Solution):
    """GeeTest v3's three values (family: names of anti-captcha and 2captcha, not on uCaptcha's own pages).

    Example:
        ```python
        from ucaptcha_async import GeeTestV3Solution

        solution = GeeTestV3Solution.parse({"challenge": "a1", "validate": "b2", "seccode": "b2|jordan"})
        assert (solution.challenge, solution.validate, solution.seccode) == ("a1", "b2", "b2|jordan")
        ```
    """

    __slots__ = ()

    promised: ClassVar[tuple[str, ...]] = ("challenge", "validate", "seccode")

    @property
    def challenge(self) -> str:
        """The challenge that was solved."""
        return self._text("challenge", "geetest_challenge")

    @property
    def validate(self) -> str:
        """The proof."""
        return self._text("validate", "geetest_validate")

    @property
    def seccode(self) -> str:
        """The proof with its suffix."""
        return self._text("seccode", "geetest_seccode")

    @property
    def token(self) -> str:
        """The same as `validate`; a site needs all three values."""
        return self.validate


class GeeTestV4Solution(Solution):
    """GeeTest v4's five values (family: names of anti-captcha and 2captcha, not on uCaptcha's own pages).

    Example:
        ```python
        from ucaptcha_async import GeeTestV4Solution

        solution = GeeTestV4Solution.parse(
            {"lot_number": "7f2", "pass_token": "c0d", "gen_time": "1750000000", "captcha_output": "X=="}
        )
        assert solution.pass_token == solution.token == "c0d"
        ```
    """

    __slots__ = ()

    promised: ClassVar[tuple[str, ...]] = ("lot_number", "pass_token", "gen_time", "captcha_output")

    @property
    def captcha_id(self) -> str | None:
        """The site's id, if sent."""
        return self._text_or_none("captcha_id")

    @property
    def lot_number(self) -> str:
        """The number of the challenge."""
        return self._text("lot_number")

    @property
    def pass_token(self) -> str:
        """The proof."""
        return self._text("pass_token")

    @property
    def gen_time(self) -> str:
        """When the proof was made (Unix time, seconds, as text)."""
        return self._text("gen_time")

    @property
    def captcha_output(self) -> str:
        """The encoded result."""
        return self._text("captcha_output")

    @property
    def token(self) -> str:
        """The same as `pass_token`; a site needs all values."""
        return self.pass_token


class TencentSolution(Solution):
    """Tencent's values (family: names of 2captcha, not on uCaptcha's own pages).

    Example:
        ```python
        from ucaptcha_async import TencentSolution

        solution = TencentSolution.parse({"appid": "190014885", "ret": 0, "ticket": "tr03", "randstr": "@KVN"})
        assert solution.ticket == solution.token == "tr03"
        ```
    """

    __slots__ = ()

    promised: ClassVar[tuple[str, ...]] = ("ticket", "randstr")

    @property
    def appid(self) -> str | None:
        """The site's id, if sent."""
        return self._text_or_none("appid")

    @property
    def ret(self) -> int | None:
        """The widget's own result code (0: passed), if sent."""
        number = _as_number(self._find("ret"))
        return None if number is None else int(number)

    @property
    def ticket(self) -> str:
        """The proof."""
        return self._text("ticket")

    @property
    def randstr(self) -> str:
        """The random text that goes with the ticket."""
        return self._text("randstr")

    @property
    def token(self) -> str:
        """The same as `ticket`; a site needs `randstr` as well."""
        return self.ticket


class CoordinatesSolution(Solution):
    """Where to click (family: shape of 2captcha, not on uCaptcha's own pages).

    Example:
        ```python
        from ucaptcha_async import CoordinatesSolution

        solution = CoordinatesSolution.parse({"coordinates": [{"x": 44, "y": 32}, {"x": 9, "y": 5}]})
        assert [(point.x, point.y) for point in solution.coordinates] == [(44, 32), (9, 5)]
        ```
    """

    __slots__ = ()

    promised: ClassVar[tuple[str, ...]] = ("coordinates",)

    @property
    def coordinates(self) -> tuple[Point, ...]:
        """The places, in the order in which to click; objects with `x` and `y`, or pairs, on the wire."""
        points = _as_points(self._find("coordinates"))
        if not points:
            self._lacks(("coordinates",), "a list of places (x, y)")
        return points


def _as_points(places: object) -> tuple[Point, ...]:
    """The places; none at all if one of them is wrong."""
    points = [_as_point(place) for place in places] if isinstance(places, list | tuple) else []
    found = tuple(point for point in points if point is not None)
    return found if len(found) == len(points) else ()


def _as_point(place: object) -> Point | None:
    pair = [place.get("x"), place.get("y")] if isinstance(place, Mapping) else place
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    x, y = map(_as_number, pair)
    return None if x is None or y is None else Point(x, y)


class RotateSolution(Solution):
    """How far to turn an image (family: shape of 2captcha, not on uCaptcha's own pages).

    Example:
        ```python
        from ucaptcha_async import RotateSolution

        assert RotateSolution.parse({"rotate": 180}).angle == 180
        ```
    """

    __slots__ = ()

    promised: ClassVar[tuple[str, ...]] = ("angle",)

    @property
    def angle(self) -> float:
        """The angle, degrees clockwise; `rotate` or `angle` on the wire."""
        return self._number("rotate", "angle")
