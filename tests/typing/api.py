"""The public types, pinned: checked by mypy, pyright and ty, never run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TypeVar, assert_type

from ucaptcha_async import AsyncClient, Job, Prefetch, PrefetchStatistics
from ucaptcha_async.errors import Attempt, UCaptchaError
from ucaptcha_async.json_values import JSON
from ucaptcha_async.results import Outcome, SelectionMode, TaskResult
from ucaptcha_async.tasks import (
    ClickCoordinates,
    CoordinatesSolution,
    FriendlyCaptcha,
    FunCaptcha,
    GeeTestV3,
    GeeTestV3Solution,
    GeeTestV4,
    GeeTestV4Solution,
    HCaptcha,
    ImageToText,
    MTCaptcha,
    Point,
    Proxy,
    RecaptchaV2,
    RecaptchaV2Enterprise,
    RecaptchaV3,
    Rotate,
    RotateSolution,
    Solution,
    Task,
    Tencent,
    TencentSolution,
    TextSolution,
    TokenSolution,
    Turnstile,
    YandexSmartCaptcha,
)
from ucaptcha_async.tasks.images import Image

S = TypeVar("S", bound=Solution)
URL = "https://example.com"
KEY = "6Le-wvkS"


def solve(task: Task[S]) -> S:
    """Stands for every call that takes a task and gives its solution."""
    raise NotImplementedError


# --- each task gives its own solution
assert_type(solve(RecaptchaV2(website_url=URL, website_key=KEY)), TokenSolution)
assert_type(
    solve(RecaptchaV2Enterprise(website_url=URL, website_key=KEY, enterprise_payload={"s": "x"})), TokenSolution
)
assert_type(solve(RecaptchaV3(website_url=URL, website_key=KEY, min_score=0.7, api_domain="google.com")), TokenSolution)
assert_type(solve(HCaptcha(website_url=URL, website_key=KEY, enterprise_payload={"rqdata": "r"})), TokenSolution)
assert_type(solve(Turnstile(website_url=URL, website_key=KEY, c_data="c")), TokenSolution)
assert_type(solve(ImageToText(image=b"GIF", numeric=1, language_pool="en")), TextSolution)
assert_type(solve(ImageToText(image=Path("captcha.png"))), TextSolution)
assert_type(solve(ImageToText(image="R0lGODlh")), TextSolution)
assert_type(solve(GeeTestV3(website_url=URL, gt="g", challenge="c")), GeeTestV3Solution)
assert_type(solve(GeeTestV4(website_url=URL, gt="g", init_parameters={"a": [1, None]})), GeeTestV4Solution)
assert_type(solve(FunCaptcha(website_url=URL, website_public_key=KEY, data={"blob": "b"})), TokenSolution)
assert_type(solve(MTCaptcha(website_url=URL, website_key=KEY)), TokenSolution)
assert_type(solve(FriendlyCaptcha(website_url=URL, website_key=KEY)), TokenSolution)
assert_type(solve(YandexSmartCaptcha(website_url=URL, website_key=KEY)), TokenSolution)
assert_type(solve(Tencent(website_url=URL, app_id="1")), TencentSolution)
assert_type(solve(ClickCoordinates(image=b"GIF", max_clicks=4)), CoordinatesSolution)
assert_type(solve(Rotate(image=b"GIF", angle=40)), RotateSolution)

# --- what all tasks share
proxy = Proxy.parse("http://user:password@proxy.example.com:8080")
assert_type(proxy, Proxy)
assert_type(Proxy(scheme="socks5", host="::1", port=1080, spelling="fields").to_wire(), dict[str, JSON])
task = RecaptchaV2(
    website_url=URL, website_key=KEY, proxy=proxy, type="X", lifetime=timedelta(minutes=1), extra={"a": 1}
)
assert_type(task.type, str)
assert_type(task.lifetime, float | None)
assert_type(task.website_url, str)
assert_type(task.is_invisible, bool | None)
assert_type(task.proxy, Proxy | None)
assert_type(task.to_wire(), dict[str, JSON])
assert_type(ImageToText(image=b"GIF").image, Image)

# --- any other type
raw = Task("AnyOtherTask", lifetime=60, websiteURL=URL, deep={"list": [1, 2.5, None]}, proxy=proxy, inner=[Task("X")])
assert_type(raw, Task[Solution])
assert_type(solve(raw), Solution)


class PuzzleSolution(TokenSolution):
    """A solution of one's own."""


class Puzzle(Task[PuzzleSolution]):
    """A task of one's own."""

    solution_class = PuzzleSolution


assert_type(solve(Puzzle("PuzzleTask", a=1)), PuzzleSolution)


# --- tasks of many kinds together
def mixed(tasks: Sequence[Task[Solution]]) -> None:
    """A list of tasks of different classes is a sequence of tasks."""


mixed([RecaptchaV2(website_url=URL, website_key=KEY), ImageToText(image=b"GIF"), Task("X")])
general: Task[Solution] = RecaptchaV2(website_url=URL, website_key=KEY)


# --- solutions
def solutions(
    token: TokenSolution,
    text: TextSolution,
    three: GeeTestV3Solution,
    four: GeeTestV4Solution,
    tencent: TencentSolution,
    clicks: CoordinatesSolution,
    rotate: RotateSolution,
) -> None:
    """The fields of each kind of solution."""
    assert_type(token.token, str)
    assert_type(token.user_agent, str | None)
    assert_type(token.raw, Mapping[str, JSON])
    assert_type(token.task_id, str | None)
    assert_type(token.cost, Decimal | None)
    assert_type(token.solve_time, float | None)
    assert_type(token.polls, int)
    assert_type(token.obtained_at, datetime)
    assert_type(token.lifetime, float | None)
    assert_type(token.age, float)
    assert_type(token.expires_in, float | None)
    assert_type(token.is_fresh(margin=30), bool | None)
    assert_type(text.text, str)
    assert_type((three.challenge, three.validate, three.seccode), tuple[str, str, str])
    assert_type((four.lot_number, four.pass_token, four.gen_time, four.captcha_output), tuple[str, str, str, str])
    assert_type(four.captcha_id, str | None)
    assert_type((tencent.ticket, tencent.randstr), tuple[str, str])
    assert_type(tencent.ret, int | None)
    assert_type(clicks.coordinates, tuple[Point, ...])
    assert_type(rotate.angle, float)
    assert_type(TokenSolution.parse({"token": "t"}, task_id="1", lifetime=120), TokenSolution)


async def feedback(solution: Solution) -> None:
    """Feedback gives the service's words."""
    assert_type(await solution.accepted(), str)
    assert_type(await solution.rejected("why", code="E1"), str)


# --- states and outcomes
def outcomes(result: TaskResult, outcome: Outcome[TextSolution]) -> None:
    """What a batch and a single question give."""
    assert_type(result.status, str)
    assert_type(result.solution, Solution | None)
    assert_type((result.pending, result.ready, result.failed), tuple[bool, bool, bool])
    assert_type(outcome.solution, TextSolution)
    assert_type(outcome.task, Task[TextSolution])
    assert_type(outcome.error, UCaptchaError | None)
    assert_type(outcome.task_id, str | None)
    assert_type(outcome.attempts, tuple[Attempt, ...])
    assert_type(SelectionMode("autoFastest"), SelectionMode)


def widened(outcome: Outcome[Solution]) -> None:
    """An outcome of one kind is an outcome of any kind."""
    assert_type(outcome.solution, Solution)


def narrow(outcome: Outcome[TextSolution]) -> None:
    """Covariance of outcomes."""
    widened(outcome)


async def the_client(client: AsyncClient) -> None:
    """Each task class brings its own solution type through every verb."""
    assert_type(await client.solve(RecaptchaV2(website_url="https://e.com", website_key="k")), TokenSolution)
    assert_type(await client.solve(ImageToText(image=b"")), TextSolution)
    assert_type(await client.solve(Task("Other", field=1)), Solution)
    job = await client.submit(RecaptchaV2(website_url="https://e.com", website_key="k"))
    assert_type(job, Job[TokenSolution])
    assert_type(await job.wait(timeout=timedelta(seconds=5)), TokenSolution)
    assert_type(await client.job("id", ImageToText).wait(), TextSolution)
    async with client.solve_many([ImageToText(image=b"")]) as outcomes:
        async for outcome in outcomes:
            assert_type(outcome.solution, TextSolution)
            assert_type(outcome.error, UCaptchaError | None)
    assert_type(await client.gather([ImageToText(image=b"")]), list[Outcome[TextSolution]])
    maybe: list[ImageToText | UCaptchaError] = []
    assert_type(await client.gather(maybe), list[Outcome[TextSolution]])
    async with client.solve_many(iter(maybe)) as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, Outcome[TextSolution])
    async with client.prefetch(RecaptchaV2(website_url="https://e.com", website_key="k"), ready=5) as tokens:
        assert_type(tokens, Prefetch[TokenSolution])
        assert_type(await tokens.get(timeout=timedelta(seconds=5)), TokenSolution)
        assert_type(tokens.unused, tuple[TokenSolution, ...])
        assert_type(tokens.statistics(), PrefetchStatistics)
    async with client.recover() as left:
        async for recovered in left:
            assert_type(recovered.solution, Solution)
    assert_type(await client.get_balance(), Decimal)
    assert_type(await client.get_task_result("id"), TaskResult)
    assert_type(client.with_options(timeout=5.0), AsyncClient)
    assert_type(client.abandoned, tuple[str, ...])
    assert_type(client.job("id"), Job[Solution])
