"""How the services of the family differ in the shape of their answers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from .books import TaskRecord
from .refusals import NUMBERS, describe, http_status

JSON = dict[str, object]
_TOKEN_KEYS = ("gRecaptchaResponse", "token")


@attrs.frozen(kw_only=True)
class Dialect:
    """One service's way to say things; the defaults are uCaptcha's.

    Attributes:
        name: The name of the dialect.
        integer_ids: Task ids are numbers, not UUIDs.
        id_digits: Task ids have so many digits, as numbers or as text with leading zeros (`"0012"`); None for UUIDs, or
            numbers as they are usual.
        always_ok: The HTTP status is 200 whatever happens.
        numeric_errors: `errorId` is the number of the error, not always 1.
        error_id_in_results: `errorId` is there in answers to polls.
        create_status: The `status` in answers of `createTask`; None leaves it out.
        idle: Polls may answer `idle` before `processing`.
        unsolvable_is_error: A failed solve is an error with its `errorId`, without a status.
        names_failed: Where a failed solve is an error, it has `status: failed` and `taskId` all the same.
        immediate: Whether `createTask` may answer with a solution.
        cost: `number`, `text`, or None for no cost in results.
        solve_time: Whether `solveTime` is in results.
        immediate_cost: Whether immediate answers of `createTask` carry cost and solve time, as polls do.
        token_key: The one name for tokens (`token` or `gRecaptchaResponse`), `both`, or None for each type's own name.
        null_solution: Pending answers have `solution: null`.
        extras: Further fields of results: `taskId`, `taskType`, `provider`, and of ready ones `ip`, `createTime`,
            `endTime`, `solveCount`.
        reports: Whether there are `reportCorrect…` and `reportIncorrect…` endpoints.
        proxy_optional: Types with a proxy may come without one, and the proxy's text may have any form.
        spelling: Which names of types and fields the service takes, if `LocalService(types="dialect")` asks for it.
        codes: Other names of error codes.
    """

    name: str = "ucaptcha"
    integer_ids: bool = False
    id_digits: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(4)))
    always_ok: bool = False
    numeric_errors: bool = False
    error_id_in_results: bool = True
    create_status: str | None = "processing"
    idle: bool = True
    unsolvable_is_error: bool = False
    names_failed: bool = False
    immediate: bool = True
    cost: str | None = "number"
    solve_time: bool = True
    immediate_cost: bool = True
    token_key: str | None = None
    null_solution: bool = False
    extras: tuple[str, ...] = ()
    reports: bool = False
    proxy_optional: bool = False
    spelling: str = "own"
    codes: Mapping[str, str] = attrs.field(factory=lambda: MappingProxyType({}), hash=False)

    def new_id(self, rng: random.Random, number: int) -> str:
        """Make the id of the task with this number."""
        if self.id_digits is not None:
            return self._digits(rng, number)
        if self.integer_ids:
            return str(7_000_000_000 + 1009 * number + rng.randrange(1009))
        bits = f"{rng.getrandbits(128):032x}"
        return f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-{'89ab'[int(bits[16], 16) & 3]}{bits[17:20]}-{bits[20:]}"

    def _digits(self, rng: random.Random, number: int) -> str:
        assert self.id_digits is not None
        if self.integer_ids:
            low = 10 ** (self.id_digits - 1)
            return str(low + (number * 1009 + rng.randrange(1009)) % (9 * low))
        return f"{12 + number:0{self.id_digits}d}"

    def wire_id(self, task: TaskRecord) -> object:
        """Return the id of a task as it stands in JSON; a client must send it back in the same type and digits."""
        return int(task.id) if self.integer_ids else task.id

    def error(self, code: str, description: str | None = None) -> tuple[int, JSON]:
        """Return the HTTP status and the body of an error."""
        number = NUMBERS.get(code, 110) if self.numeric_errors else 1
        body: JSON = {
            "errorId": number,
            "errorCode": self.codes.get(code, code),
            "errorDescription": description or describe(code),
        }
        return (200 if self.always_ok else http_status(code)), body

    def created(self, task: TaskRecord) -> JSON:
        """Return the answer of `createTask`."""
        body: JSON = {"errorId": 0, "taskId": self.wire_id(task)}
        if task.immediate:
            return {**body, **self._ready(task, priced=self.immediate_cost)}
        if self.create_status is not None:
            body["status"] = self.create_status
        return body

    def result(self, task: TaskRecord, status: str) -> tuple[int, JSON]:
        """Return the HTTP status and the body of the answer to a poll."""
        if status == "failed" and task.error_code is not None:
            return self._failed(task, task.error_code)
        return 200, {**self._head(task), **(self._ready(task) if status == "ready" else self._pending(status))}

    def _head(self, task: TaskRecord) -> JSON:
        head: JSON = {"errorId": 0} if self.error_id_in_results else {}
        known = {"taskId": self.wire_id(task), "taskType": task.type, "provider": task.provider or "local"}
        return head | {name: value for name, value in known.items() if name in self.extras}

    def _pending(self, status: str) -> JSON:
        body: JSON = {"status": status if self.idle else "processing"}
        return {**body, "solution": None} if self.null_solution else body

    def _failed(self, task: TaskRecord, code: str) -> tuple[int, JSON]:
        if self.unsolvable_is_error:
            http, body = self.error(code)
            return http, {**body, "status": "failed", "taskId": self.wire_id(task)} if self.names_failed else body
        words: JSON = {"errorCode": self.codes.get(code, code), "errorDescription": describe(code)}
        return 200, {**self._head(task), "status": "failed", **words}

    def _ready(self, task: TaskRecord, *, priced: bool = True) -> JSON:
        body: JSON = {"status": "ready", "solution": self._solution(task.solution)}
        if priced and self.cost is not None:
            body["cost"] = str(task.cost) if self.cost == "text" else float(task.cost)
        if priced and self.solve_time:
            body["solveTime"] = round(1000 * (task.ready_at - task.created_at))
        times = {"createTime": int(task.created_at), "endTime": int(task.ready_at)}
        known = {"ip": "127.0.0.1", **times, "solveCount": "0"}
        return body | {name: value for name, value in known.items() if name in self.extras}

    def _solution(self, solution: JSON) -> JSON:
        own = next((key for key in _TOKEN_KEYS if key in solution), None)
        if self.token_key is None or own is None:
            return solution
        names = _TOKEN_KEYS if self.token_key == "both" else (self.token_key,)  # noqa: S105  # a field's name
        rest = {key: value for key, value in solution.items() if key != own}
        return {**dict.fromkeys(names, solution[own]), **rest}


_LABELS = ("ip", "createTime", "endTime", "solveCount")
_NO_SUCH_ID = MappingProxyType({"ERROR_WRONG_CAPTCHA_ID": "ERROR_NO_SUCH_CAPCHA_ID"})

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(),
        Dialect(
            name="anticaptcha",
            spelling="anticaptcha",
            integer_ids=True,
            immediate=False,
            always_ok=True,
            numeric_errors=True,
            create_status=None,
            idle=False,
            unsolvable_is_error=True,
            cost="text",
            solve_time=False,
            extras=_LABELS,
            reports=True,
            proxy_optional=True,
            codes=_NO_SUCH_ID,
        ),
        Dialect(
            name="capsolver",
            extras=("taskId",),
            create_status="idle",
            unsolvable_is_error=True,
            names_failed=True,
            spelling="capsolver",
            cost=None,
            solve_time=False,
            proxy_optional=True,
        ),
        Dialect(
            name="capmonster",
            spelling="anticaptcha",
            integer_ids=True,
            immediate=False,
            always_ok=True,
            create_status=None,
            idle=False,
            unsolvable_is_error=True,
            cost=None,
            solve_time=False,
            proxy_optional=True,
            codes=MappingProxyType({"ERROR_WRONG_CAPTCHA_ID": "WRONG_CAPTCHA_ID"}),
        ),
        Dialect(
            name="2captcha",
            spelling="anticaptcha",
            integer_ids=True,
            immediate=False,
            always_ok=True,
            numeric_errors=True,
            create_status=None,
            idle=False,
            unsolvable_is_error=True,
            cost="text",
            solve_time=False,
            token_key="both",  # noqa: S106  # a field's name
            extras=_LABELS,
            reports=True,
            proxy_optional=True,
            codes=MappingProxyType({**_NO_SUCH_ID, "TASK_NOT_SUPPORTED": "ERROR_TASK_NOT_SUPPORTED"}),
        ),
        Dialect(
            name="anysolver",
            spelling="anysolver",
            immediate=False,
            always_ok=True,
            idle=False,
            token_key="token",  # noqa: S106  # a field's name
            null_solution=True,
            extras=("taskId", "taskType", "provider"),
        ),
        Dialect(
            name="bare", spelling="any", error_id_in_results=False, create_status=None, cost="text", solve_time=False
        ),
    )
}
"""The dialects by name. `bare` is no service's: it leaves out all that a client may not rely on."""


def find_dialect(dialect: Dialect | str) -> Dialect:
    """Return a dialect by its name, or the dialect itself.

    Raises:
        ValueError: If there is none of this name.
    """
    if isinstance(dialect, Dialect):
        return dialect
    if dialect not in DIALECTS:
        raise ValueError(f"no dialect {dialect!r}; there are {', '.join(DIALECTS)}")
    return DIALECTS[dialect]
