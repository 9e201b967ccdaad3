"""Results: typed solutions, their age, and that no token is ever shown."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import traceback
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import attrs
import pytest

from ucaptcha_async.errors import Attempt, ClientStateError, ConfigurationError, SolutionError, UnsolvableError
from ucaptcha_async.results import Outcome, SelectionMode, Status, TaskResult
from ucaptcha_async.secrecy import SecretBytes, SecretMapping
from ucaptcha_async.tasks import (
    CoordinatesSolution,
    GeeTestV3Solution,
    GeeTestV4Solution,
    Point,
    Proxy,
    RecaptchaV2,
    RotateSolution,
    Solution,
    Task,
    TencentSolution,
    TextSolution,
    TokenSolution,
)

V3 = {"challenge": "c", "validate": "v", "seccode": "s"}
V4 = {"lot_number": "l", "pass_token": "p", "gen_time": "1", "captcha_output": "o"}

TYPED: list[tuple[type[Solution], dict[str, Any], dict[str, Any]]] = [
    (Solution, {"gRecaptchaResponse": "t"}, {"token": "t"}),
    (Solution, {"text": "t"}, {"token": "t"}),
    (
        TokenSolution,
        {"gRecaptchaResponse": "t", "userAgent": "u", "respKey": "r"},
        {"token": "t", "user_agent": "u", "resp_key": "r"},
    ),
    (TokenSolution, {"token": "t"}, {"token": "t", "user_agent": None, "resp_key": None}),
    (TokenSolution, {"gRecaptchaResponse": None, "token": "t"}, {"token": "t"}),
    (TokenSolution, {"gRecaptchaResponse": "a", "token": "b"}, {"token": "a"}),
    (TokenSolution, {"token": "", "gRecaptchaResponse": "abc"}, {"token": "abc"}),
    (TokenSolution, {"gRecaptchaResponse": "", "token": "abc"}, {"token": "abc"}),
    (TextSolution, {"text": "", "token": "abc"}, {"text": "abc", "token": "abc"}),
    (TextSolution, {"text": 0, "token": "abc"}, {"text": "0"}),
    (GeeTestV3Solution, {**V3, "challenge": "", "geetest_challenge": "c2"}, {"challenge": "c2"}),
    (TextSolution, {"text": "w9h5k", "url": "u"}, {"text": "w9h5k", "token": "w9h5k"}),
    (TextSolution, {"text": 42}, {"text": "42"}),
    (TextSolution, {"token": "w9"}, {"text": "w9"}),
    (GeeTestV3Solution, V3, {"challenge": "c", "validate": "v", "seccode": "s", "token": "v"}),
    (GeeTestV3Solution, {f"geetest_{name}": value for name, value in V3.items()}, {"challenge": "c", "seccode": "s"}),
    (
        GeeTestV4Solution,
        {**V4, "captcha_id": "i", "gen_time": 1},
        {
            "captcha_id": "i",
            "lot_number": "l",
            "pass_token": "p",
            "gen_time": "1",
            "captcha_output": "o",
            "token": "p",
        },
    ),
    (GeeTestV4Solution, V4, {"captcha_id": None}),
    (
        TencentSolution,
        {"appid": "a", "ret": 0, "ticket": "t", "randstr": "r"},
        {"appid": "a", "ret": 0, "ticket": "t", "randstr": "r", "token": "t"},
    ),
    (TencentSolution, {"ticket": "t", "randstr": "r"}, {"appid": None, "ret": None}),
    (CoordinatesSolution, {"coordinates": [{"x": 1, "y": 2}]}, {"coordinates": (Point(1, 2),)}),
    (CoordinatesSolution, {"coordinates": [[1, "2"], [3, 4.5]]}, {"coordinates": (Point(1, 2), Point(3, 4.5))}),
    (RotateSolution, {"rotate": 180}, {"angle": 180.0}),
    (RotateSolution, {"angle": Decimal("12.5")}, {"angle": 12.5}),
    (RotateSolution, {"rotate": "12.5"}, {"angle": 12.5}),
]


@pytest.mark.parametrize(("cls", "raw", "values"), TYPED)
def test_a_solution_has_the_fields_of_its_type(
    cls: type[Solution], raw: dict[str, Any], values: dict[str, Any]
) -> None:
    """Each type reads its own fields, tolerates the family's other names, and keeps all of it in `raw`."""
    raw = {**raw, "somethingNew": [1]}
    solution = cls.parse(raw)

    assert values == {name: getattr(solution, name) for name in values}
    assert raw == solution.raw
    assert type(solution) is cls


LACKING: list[tuple[type[Solution], Any]] = [
    (TokenSolution, {}),
    (TokenSolution, {"token": None}),
    (TokenSolution, {"token": ""}),
    (TokenSolution, {"token": ["s3cret"]}),
    (TokenSolution, {"token": True}),
    (TokenSolution, {"answer": "s3cret"}),
    (TextSolution, {"text": ""}),
    (TextSolution, {"text": 1.5}),
    *[(GeeTestV3Solution, {name: value for name, value in V3.items() if name != gone}) for gone in V3],
    *[(GeeTestV4Solution, {name: value for name, value in V4.items() if name != gone}) for gone in V4],
    (TencentSolution, {"ticket": "s3cret"}),
    (TencentSolution, {"randstr": "s3cret"}),
    (CoordinatesSolution, {"coordinates": []}),
    (CoordinatesSolution, {"coordinates": "1,2"}),
    (CoordinatesSolution, {"coordinates": [{"x": 1}]}),
    (CoordinatesSolution, {"coordinates": [{"x": 1, "y": 2}, [1]]}),
    (CoordinatesSolution, {"coordinates": [7]}),
    (RotateSolution, {"rotate": "left"}),
    (RotateSolution, {"rotate": None}),
    (RotateSolution, {"rotate": True}),
]


@pytest.mark.parametrize(("cls", "raw"), LACKING)
def test_a_solution_that_lacks_something_is_an_error_that_keeps_it(cls: type[Solution], raw: Any) -> None:
    """What was paid for is on the error (id, cost, raw), but no value is in its message."""
    with pytest.raises(SolutionError, match=f"{cls.__name__} needs") as caught:
        cls.parse(raw, task_id="id-1", cost=Decimal("0.003"))

    assert ("id-1", Decimal("0.003"), True) == (caught.value.task_id, caught.value.cost, caught.value.charged)
    assert raw == caught.value.raw
    assert "s3cret" not in str(caught.value) + repr(caught.value.raw)


@pytest.mark.parametrize("cls", [Solution, TokenSolution, GeeTestV4Solution])
@pytest.mark.parametrize("raw", [None, "s3cret", ["s3cret"], 7, True])
def test_a_solution_that_is_no_object_is_an_error(cls: type[Solution], raw: Any) -> None:
    """`null`, text, a list or a number in place of the object raises, and is kept on the error only."""
    with pytest.raises(SolutionError, match="the solution must be a JSON object") as caught:
        cls.parse(raw, task_id="id-1", cost=Decimal(1))

    assert raw == caught.value.raw
    assert ("id-1", Decimal(1)) == (caught.value.task_id, caught.value.cost)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("raw", ["s3cret", {"answer": "s3cret"}])
def test_no_traceback_shows_a_token(raw: Any) -> None:
    """Frames of the library hold no token when they raise, even if locals are shown."""
    with pytest.raises(SolutionError) as caught:
        TokenSolution.parse(raw)

    stack = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack[1:]
    assert stack
    assert "s3cret" not in "".join(str(frame.locals) for frame in stack)


def test_an_unknown_type_without_a_token_still_has_its_fields() -> None:
    """`Solution` promises nothing; only asking for its token raises."""
    solution = Solution.parse({"cookies": {"a": "b"}}, task_id="id-1")

    assert solution.raw["cookies"] == {"a": "b"}
    with pytest.raises(SolutionError, match="Solution needs non-empty text") as caught:
        _ = solution.token
    assert caught.value.task_id == "id-1"


def test_repr_masks_the_token() -> None:
    """The `repr` counts the characters of a token and shows the names in `raw` only."""
    token = TokenSolution.parse(
        {"gRecaptchaResponse": "s3cret" * 300}, task_id="5f1c", cost=Decimal("0.00299"), solve_time=12.4, polls=2
    )
    other = GeeTestV3Solution.parse(V3)

    assert (
        repr(token)
        == str(token)
        == "TokenSolution(task_id='5f1c', token=<1800 characters>, cost=Decimal('0.00299'), solve_time=12.4, polls=2)"
    )
    assert repr(other) == (
        "GeeTestV3Solution(task_id=None, raw=<3 hidden: challenge, validate, seccode>, "
        "cost=None, solve_time=None, polls=0)"
    )
    assert [field.name for field in attrs.fields(Solution) if not field.repr] == ["raw", "_feedback"]


def test_solutions_are_frozen_and_comparable() -> None:
    """Two answers of one task are equal; a copy is the thing itself."""
    when = datetime.now(UTC)
    one = TokenSolution.parse({"token": "t"}, task_id="id", obtained_at=when)
    two = TokenSolution.parse({"token": "t"}, task_id="id", obtained_at=when, feedback=record([]))

    assert one == two
    assert hash(one) == hash(two)
    assert one != TokenSolution.parse({"token": "u"}, task_id="id", obtained_at=when)
    assert one is copy.copy(one)
    assert one is copy.deepcopy(one)
    with pytest.raises(AttributeError):
        one.task_id = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("cls", "raw"), [(cls, raw) for cls, raw, _ in TYPED])
async def test_a_solution_is_pickled_without_its_client(cls: type[Solution], raw: dict[str, Any]) -> None:
    """What was paid for comes back equal, as hidden as before, and says where feedback goes now."""
    solution = cls.parse(raw, task_id="id", cost=Decimal("0.003"), solve_time=1.5, polls=2, feedback=record([]))

    back = pickle.loads(pickle.dumps(solution))

    assert type(back) is cls
    assert (solution, repr(solution)) == (back, repr(back))
    assert isinstance(back.raw, SecretMapping)
    for tell in (back.accepted, functools.partial(back.rejected, "why")):
        with pytest.raises(ClientStateError, match=r"use client\.feedback\(") as caught:
            await tell()
        assert (caught.value.task_id, caught.value.charged) == ("id", None)


def test_outcomes_are_pickled_without_passwords() -> None:
    """An outcome comes back with its task, whose proxy has lost its password; results and attempts come back too."""
    proxy = Proxy.parse("http://user:s3cret@host:80")
    extra = {"proxyPassword": "s3cret", "via": "http://user:s3cret@host:1", "deep": [{"proxy": "host:1:user:s3cret"}]}
    tasks: list[Task[Any]] = [
        RecaptchaV2(website_url="https://example.com", website_key="k", proxy=proxy, extra=extra, lifetime=7),
        Task("X", proxy=proxy, **extra),
        Task("X", proxy=attrs.evolve(proxy, spelling="fields"), nested=[proxy]),
    ]
    failure = UnsolvableError("not solved", task_id="id-2")
    for task in tasks:
        solution = Solution.parse({"token": "t0ken"}, task_id="id-1")
        outcome = Outcome(index=3, task=task, key="k", result=solution, attempts=(Attempt(error=failure),))

        data = pickle.dumps(outcome)
        back = pickle.loads(data)

        assert b"s3cret" not in data
        assert (back.index, back.key, back.solution, back.ok) == (3, "k", solution, True)
        assert str(back.attempts[0].error) == str(failure)
        assert back.task == task.without_password()
        assert back.task.lifetime == task.lifetime
        assert "s3cret" in json.dumps(task.to_wire())
        assert "user" in json.dumps(back.task.to_wire())
    failed = pickle.loads(pickle.dumps(Outcome(index=0, task=tasks[0], result=failure)))
    assert str(failed.error) == str(failure)


def test_a_secret_mapping_is_a_dict_that_shows_names_only() -> None:
    """It serialises and compares like a dict; `repr`, rich and `pickle` get nothing."""
    secret = SecretMapping({"token": "s3cret"})

    assert {"token": "s3cret"} == secret == copy.copy(secret) == copy.deepcopy(secret)
    assert json.dumps(secret) == '{"token": "s3cret"}'
    assert f"{secret!r} {secret} {list(secret.__rich_repr__())} {copy.copy(secret)}".count("s3cret") == 0
    assert repr(SecretMapping()) == "<empty>"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)


@pytest.mark.parametrize("part", [slice(None), slice(2), slice(1, None), slice(6, None), slice(9, 9)])
def test_a_part_of_secret_bytes_is_one(part: slice) -> None:
    """Also when nothing is left of it; a single byte is a number, as ever."""
    secret = SecretBytes(b"s3cret")

    assert type(secret[part]) is SecretBytes
    assert secret[part] == b"s3cret"[part]
    assert secret[0] == ord("s")
    assert not hasattr(secret, "__dict__")


# --- freshness ----------------------------------------------------------------------------------------------------


def aged(seconds: float, lifetime: float | None) -> Solution:
    return Solution.parse({}, obtained_at=datetime.now(UTC) - timedelta(seconds=seconds), lifetime=lifetime)


def test_freshness_follows_the_lifetime() -> None:
    """Age grows from `obtained_at`; a solution is fresh while more than `margin` is left."""
    solution = aged(100, lifetime=120)

    assert 100 <= solution.age < 110
    assert solution.expires_in is not None
    assert 10 < solution.expires_in <= 20
    assert solution.is_fresh() is True
    assert solution.is_fresh(margin=30) is False
    assert solution.is_fresh(margin=timedelta(seconds=5)) is True
    assert aged(130, lifetime=120).is_fresh() is False
    assert (aged(130, lifetime=120).expires_in or 0) < 0


def test_freshness_is_unknown_where_nobody_knows() -> None:
    """Without a lifetime the answer is `None`, not a guess."""
    assert aged(100, lifetime=None).expires_in is None
    assert aged(100, lifetime=None).is_fresh(margin=5) is None


def test_obtained_at_has_a_time_zone() -> None:
    """By default it is now, in UTC; a naive time is refused; another zone is fine."""
    solution = Solution.parse({})

    assert solution.obtained_at.utcoffset() == timedelta(0)
    assert solution.age < 10
    with pytest.raises(ConfigurationError, match="obtained_at must be a datetime with a time zone"):
        Solution(raw={}, obtained_at=datetime(2026, 1, 1))
    east = datetime.now(timezone(timedelta(hours=9)))
    assert Solution.parse({}, obtained_at=east).age < 10


def test_a_clock_that_was_set_back_makes_no_negative_age() -> None:
    """A time in the future counts as now."""
    assert aged(-100, lifetime=120).age == 0
    assert aged(-100, lifetime=120).expires_in == 120


@pytest.mark.parametrize("margin", [-1, "5", None, float("nan")])
def test_a_wrong_margin_is_refused(margin: Any) -> None:
    """The margin is a number of seconds."""
    with pytest.raises(ConfigurationError, match="margin must be"):
        aged(0, lifetime=120).is_fresh(margin)


# --- feedback -----------------------------------------------------------------------------------------------------


def record(calls: list[tuple[bool, str, str | None]]) -> Any:
    async def feedback(accepted: bool, message: str, code: str | None) -> str:
        calls.append((accepted, message, code))
        return "noted"

    return feedback


async def test_feedback_goes_to_the_client() -> None:
    """`accepted` and `rejected` send what was said, and return the service's words."""
    calls: list[tuple[bool, str, str | None]] = []
    solution = Solution.parse({}, feedback=record(calls))

    assert await solution.accepted() == "noted"
    assert await solution.accepted("fine") == "noted"
    assert await solution.rejected("refused by the site", code="E1") == "noted"
    assert calls == [(True, "accepted", None), (True, "fine", None), (False, "refused by the site", "E1")]


async def test_feedback_without_a_client_is_an_error() -> None:
    """A solution that was made by hand has nobody to tell."""
    with pytest.raises(ClientStateError, match=r"has no client: .* use client\.feedback\("):
        await Solution.parse({}).accepted()
    with pytest.raises(ClientStateError, match=r"has no client: .* use client\.feedback\("):
        await Solution.parse({}).rejected("why")


# --- one task's state, and outcomes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("idle", (True, False, False)),
        ("processing", (True, False, False)),
        (Status.READY, (False, True, False)),
        ("failed", (False, False, True)),
        ("resting", (True, False, False)),
    ],
)
def test_status_words(status: str, state: tuple[bool, bool, bool]) -> None:
    """A word that nobody knows counts as pending and stays as it is."""
    result = TaskResult(status=status)

    assert state == (result.pending, result.ready, result.failed)
    assert status == result.status


def test_words_of_the_protocol() -> None:
    """Status and selection mode are spelt as the service spells them."""
    assert list(Status) == ["idle", "processing", "ready", "failed"]
    assert list(SelectionMode) == ["autoCheapest", "autoFastest", "autoMostReliable", "priority"]


def test_a_task_result_hides_what_it_holds() -> None:
    """Its `repr` shows neither the solution's token nor the raw answer; only its solution is pickled."""
    result = TaskResult(
        status="ready", solution=TokenSolution.parse({"token": "s3cret"}), raw={"solution": {"token": "s3cret"}}
    )

    assert "s3cret" not in repr(result) + repr(result.raw)
    assert result is copy.copy(result)
    assert result is copy.deepcopy(result)
    assert hash(result) == hash(attrs.evolve(result))
    with pytest.raises(TypeError, match="not pickled; pickle its solution"):
        pickle.dumps(result)


def test_an_outcome_is_a_solution_or_an_error() -> None:
    """`solution` returns or raises; `ok`, `error` and `task_id` tell without raising."""
    task = RecaptchaV2(website_url="https://example.com", website_key="k")
    solution = TokenSolution.parse({"token": "s3cret"}, task_id="id-1")
    failure = UnsolvableError("not solved", task_id="id-2")
    good = Outcome(index=0, task=task, result=solution)
    bad = Outcome(index=1, task=task, key="row 1", result=failure, attempts=(Attempt(task_id="id-2", error=failure),))

    assert (good.ok, good.solution, good.error, good.task_id) == (True, solution, None, "id-1")
    assert (bad.ok, bad.error, bad.task_id, bad.key) == (False, failure, "id-2", "row 1")
    with pytest.raises(UnsolvableError) as caught:
        _ = bad.solution
    assert caught.value is failure
    assert "s3cret" not in repr(good)
    assert repr(bad).startswith("Outcome(index=1, key='row 1', error=UnsolvableError(")


def test_outcomes_are_their_own_identity() -> None:
    """Two outcomes are never equal by content: each is one event."""
    task = Task("X")
    solution = Solution.parse({})

    assert Outcome(index=0, task=task, result=solution) != Outcome(index=0, task=task, result=solution)
