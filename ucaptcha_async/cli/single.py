"""`ucaptcha balance`, `solve` and `result`: one question, one answer."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import anyio
import attrs
from cyclopts import Parameter

from ucaptcha_async.client import AsyncClient
from ucaptcha_async.errors import SolveTimeoutError
from ucaptcha_async.events import Event, Submitted
from ucaptcha_async.results import SelectionMode, TaskResult
from ucaptcha_async.tasks import Solution, Task

from .connection import Connection, JsonFlag, read_stdin
from .exits import CommandError, Exit
from .kinds import KINDS, build, find, main_field, parse_words, takes_proxy
from .output import duration, money, note, say, say_json
from .progress import Outage, waiting


def balance(*, json: JsonFlag = False, connection: Connection | None = None) -> int:
    """Print the balance of the account, in USD."""

    async def ask() -> Decimal:
        async with (connection or Connection()).client() as client:
            return await client.get_balance()

    amount = anyio.run(ask)
    if json:
        say_json({"balance": str(amount), "currency": "USD"})
    else:
        say(money(amount))
    return Exit.DONE


def solve(
    type: Annotated[
        str,
        Parameter(
            help=f"What to solve: {', '.join(KINDS)}; or any task type as the service spells it.",
        ),
    ],
    /,
    *fields: Annotated[
        str,
        Parameter(
            help="The task's fields: name=text, or name:=JSON. For images, the first may be a file, or - for standard "
            "input.",
            allow_leading_hyphen=True,  # for the lone hyphen; others are refused
        ),
    ],
    proxy: Annotated[
        str | None,
        Parameter(
            env_var="UCAPTCHA_PROXY",
            show_env_var=True,
            help="type://user:password@host:port, for the service to solve through. Arguments show in process lists: "
            "put a password into the environment variable.",
        ),
    ] = None,
    timeout: Annotated[float, Parameter(help="Seconds to wait for the solution.")] = 300.0,
    attempts: Annotated[int, Parameter(help="Tasks to use until one is solved; failed ones are refunded.")] = 1,
    selection_mode: Annotated[SelectionMode | None, Parameter(help="How the service chooses a provider.")] = None,
    provider: Annotated[str | None, Parameter(help="The one provider to use.")] = None,
    json: JsonFlag = False,
    connection: Connection | None = None,
) -> int:
    """Solve one CAPTCHA and print its token.

    Only the token goes to standard output, so that it can be caught:
    `TOKEN=$(ucaptcha solve turnstile website-url=https://example.com website-key=0x4AAA)`.
    Solutions of several values are printed as JSON.

    Press Ctrl-C to give up; a task that is paid for can be taken up again with `ucaptcha result ID --wait`.
    """
    task = _task(type, fields, proxy)
    progress = Progress()
    client = (connection or Connection()).client(
        timeout=timeout,
        attempts=attempts,
        selection_mode=selection_mode,
        provider=provider,
        on_event=progress.hear,
    )
    solution = anyio.run(_solve, client, task, progress)
    _show(solution, json=json)
    return Exit.DONE


def _task(type_: str, words: tuple[str, ...], proxy: str | None) -> Task[Any]:
    kind = find(type_)
    fields = parse_words(words, main_field(kind))
    if fields.get("image") == "-" and kind is not None:
        fields["image"] = read_stdin()
    if proxy is not None and takes_proxy(kind):
        fields.setdefault("proxy", proxy)
    elif proxy is not None:
        note(f"{type_} tasks take no proxy: it is not used")
    return build(type_, fields)


@attrs.define(eq=False)
class Progress:
    """How far a solve has come."""

    task_id: str | None = None
    outage: Outage = attrs.field(factory=Outage)

    def hear(self, event: Event) -> None:
        """Take in an event of the client."""
        self.outage.hear(event)
        if isinstance(event, Submitted):
            self.task_id = event.task_id

    def __str__(self) -> str:
        return "submitting" if self.task_id is None else f"waiting for task {self.task_id}"


async def _solve(client: AsyncClient, task: Task[Any], progress: Progress) -> Solution:
    try:
        async with client, waiting(progress.__str__, progress.outage):
            return await client.solve(task)
    except SolveTimeoutError as error:
        if error.task_id is not None:
            note(f"it may still be solved: ucaptcha result {error.task_id} --wait")
        raise
    finally:
        for task_id in client.abandoned:
            note(f"paid for and not waited for: ucaptcha result {task_id} --wait")


def result(
    task_id: Annotated[str, Parameter(help="The id of a task, as another command or a log shows it.")],
    /,
    *,
    wait: Annotated[bool, Parameter(help="Wait until it has ended.", negative=(), show_default=False)] = False,
    timeout: Annotated[float, Parameter(help="With --wait: seconds to wait.")] = 300.0,
    json: JsonFlag = False,
    connection: Connection | None = None,
) -> int:
    """Ask for a task that was submitted earlier, here or elsewhere, and print its token.

    Exits 0 if it is solved, 4 if it failed (and is refunded), 10 if it has not ended yet.
    """
    outage = Outage()
    client = (connection or Connection()).client(timeout=timeout, on_event=outage.hear)
    if wait:
        _show(anyio.run(_wait, client, task_id, outage), json=json)
        return Exit.DONE
    state: TaskResult = anyio.run(_ask, client, task_id)
    if state.solution is not None:
        _show(state.solution, json=json)
        return Exit.DONE
    if state.failed:
        raise CommandError(f"the task failed and is refunded: {state.error_code or 'no reason given'}", Exit.UNSOLVED)
    if json:
        say_json({"task_id": task_id, "status": state.status})
    else:
        note(f"not finished: {state.status}")
    return Exit.PENDING


async def _wait(client: AsyncClient, task_id: str, outage: Outage) -> Solution:
    async with client, waiting(lambda: f"waiting for task {task_id}", outage):
        return await client.job(task_id).wait()


async def _ask(client: AsyncClient, task_id: str) -> TaskResult:
    async with client:
        return await client.get_task_result(task_id)


def as_json(solution: Solution) -> dict[str, object]:
    """A solution as plain values; money is text. It holds the token: that is what was paid for."""
    return {
        "task_id": solution.task_id,
        "status": "ready",
        "token": token_of(solution),
        "solution": dict(solution.raw),
        "cost": None if solution.cost is None else str(solution.cost),
        "solve_time": solution.solve_time,
        "polls": solution.polls,
    }


def token_of(solution: Solution) -> str | None:
    """The token, if there is a single one."""
    value = next(
        (solution.raw[name] for name in ("gRecaptchaResponse", "token", "text") if solution.raw.get(name)), None
    )
    return value if isinstance(value, str) else None


def _show(solution: Solution, *, json: bool) -> None:
    token = token_of(solution)
    try:
        if json:
            return say_json(as_json(solution))
        say(token) if token is not None else say_json(dict(solution.raw))
    except OSError:
        note(f"it could not be printed, but is paid for: ucaptcha result {solution.task_id}")
        raise
    facts = [
        f"task {solution.task_id}" if solution.task_id else "",
        "" if solution.solve_time is None else f"solved in {duration(solution.solve_time)}",
        "" if solution.cost is None else f"USD {money(solution.cost)}",
    ]
    note(", ".join(fact for fact in facts if fact))
    return None
