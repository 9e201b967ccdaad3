"""The business of the local service, whatever words it is asked in: accounts, tasks, prices, fates."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from typing import TypeVar

import attrs

from .books import Books, TaskRecord
from .options import Options, as_solve_time
from .refusals import RefusalError
from .solutions import KINDS, Kind, make_token
from .spellings import SPELLINGS, Spelling
from .timing import SolveTime
from .validation import check_request, check_task, given

JSON = Mapping[str, object]
T = TypeVar("T")


@attrs.define(eq=False)
class _Plan:
    """What the next task (of a type) will come to."""

    type: str | None
    solution: dict[str, object] | None
    error: str | None
    after: float | None
    times: int


class Desk:
    """Takes tasks, solves them, and charges for them.

    Args:
        options: The options of the service.
        books: The books to write in.
    """

    def __init__(self, options: Options, books: Books) -> None:
        self._options = options
        self._books = books
        self._accounts: dict[str, Decimal] = {}
        self._fingerprints: dict[str, str] = {}
        self._stock: dict[str, deque[float]] = {}
        self._plans: list[_Plan] = []
        extra = [_as_kind(kind) for kind in options.extra_types]
        self._extra = {name for kind in extra for name in kind.types}
        self._kinds = {name: kind for kind in (*KINDS, *extra) for name in kind.types}
        self._ids, self._times, self._fates, self._solutions = (
            random.Random(f"{options.seed}:{name}") for name in ("ids", "times", "fates", "solutions")
        )

    # Accounts

    def key_of(self, body: JSON) -> str:
        """Return the API key of a request, if it exists."""
        key = body.get("clientKey")
        known = self._options.keys
        if not isinstance(key, str) or not key or (known is not None and key not in known):
            raise RefusalError("ERROR_KEY_DOES_NOT_EXIST")
        return key

    def fingerprint(self, key: object) -> str | None:
        """Return a short text that stands for an API key in the books."""
        if not isinstance(key, str):
            return None
        known = self._fingerprints.get(key)
        if known is None:
            known = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            self._fingerprints[key] = known
        return known

    def balance(self, key: str) -> Decimal:
        """Return what is on the account of a key, in USD."""
        credit = self._books.take_credit(self.fingerprint(key) or "")
        balance = self._accounts.get(key, self._options.balance) + credit
        self._accounts[key] = balance
        return balance

    def set_balance(self, key: str, balance: Decimal) -> None:
        """Set what is on the account of a key, in USD."""
        self.balance(key)
        self._accounts[key] = balance

    # Tasks

    def create(self, key: str, body: JSON, now: float) -> TaskRecord:
        """Take a task and charge for it."""
        body = given(body)
        task = body.get("task")
        if not isinstance(task, dict):
            raise RefusalError("ERROR_BAD_PARAMETERS", "task must be an object.")
        task = given(task)
        kind = self._kind(task)
        check_request(body)
        check_task(task, kind, self._spelling, proxy_optional=self._options.dialect.proxy_optional)
        price = self._price(str(task["type"]), kind)
        balance = self.balance(key)
        if balance < price:
            raise RefusalError("ERROR_ZERO_BALANCE")
        self._accounts[key] = balance - price
        record = self._record(key, task, kind, price, now)
        record.selection_mode, record.provider = body.get("selectionMode"), body.get("provider")  # type: ignore[assignment]
        self._books.note_task(record)
        return record

    @property
    def _spelling(self) -> Spelling:
        chosen = self._options.types
        return SPELLINGS[self._options.dialect.spelling if chosen == "dialect" else chosen]

    def _kind(self, task: JSON) -> Kind:
        name = task.get("type")
        if not isinstance(name, str) or not self._takes(name):
            raise RefusalError("TASK_NOT_SUPPORTED")
        return self._kinds[name]

    def _takes(self, name: str) -> bool:
        return name in self._extra or (name in self._kinds and self._spelling.takes(name))

    def price_list(self) -> dict[str, Decimal]:
        """Return the price of each type that is taken, in USD."""
        return {name: self._price(name, kind) for name, kind in self._kinds.items() if self._takes(name)}

    def _price(self, name: str, kind: Kind) -> Decimal:
        price = _choice(self._options.prices, name, kind)
        return kind.price if price is None else Decimal(price)

    def _record(self, key: str, task: JSON, kind: Kind, price: Decimal, now: float) -> TaskRecord:
        name = str(task["type"])
        solve_time = self._solve_time(name, kind).draw(self._times) / self._options.speed
        solution = kind.solution(self._solutions, task)
        error = self._fate()
        plan = self._next_plan(kind)
        if plan is not None:
            solution, error = plan.solution or solution, plan.error
            solve_time = solve_time if plan.after is None else plan.after
        immediate = error is None and (plan is None or plan.after is None) and self._at_once(key, name, kind, now)
        return TaskRecord(
            id=self._options.dialect.new_id(self._ids, len(self._books.tasks)),
            type=name,
            key=self.fingerprint(key) or "",
            created_at=now,
            ready_at=now if immediate else now + solve_time,
            cost=price,
            error_code=error,
            website_url=_text(task.get("websiteURL")),
            website_key=_text(task.get(kind.site_key or "websiteKey")),
            immediate=immediate,
            solution=solution,
            answer=kind.answer,
        )

    def _solve_time(self, name: str, kind: Kind) -> SolveTime:
        chosen = self._options.solve_time
        if isinstance(chosen, Mapping):
            chosen = _choice(chosen, name, kind)
        return kind.solve_time if chosen is None else as_solve_time(chosen)

    def _fate(self) -> str | None:
        fails = self._fates.random() < self._options.failure_rate
        return self._options.failure_code if fails else None

    def _at_once(self, key: str, name: str, kind: Kind, now: float) -> bool:
        """Whether the solution is there already: a type that needs no waiting, or a token from the key's stock."""
        if not self._options.dialect.immediate:
            return False
        if any(map(kind.is_meant, self._options.immediate_types)):
            return True
        size = self._options.lightning.get(key, 0)
        if not size or not kind.pooled:
            return False
        stock = self._stock.get(key)
        if stock is None:
            stock = self._stock[key] = deque([now] * size)
        if stock[0] > now:
            return False
        stock.popleft()
        stock.append(now + self._solve_time(name, kind).draw(self._times) / self._options.speed)
        return True

    def plan(
        self,
        *,
        type: str | None = None,
        solution: Mapping[str, object] | None = None,
        error: str | None = None,
        after: float | None = None,
        times: int = 1,
    ) -> None:
        """Decide what the next tasks come to."""
        self._plans.append(_Plan(type, dict(solution) if solution is not None else None, error, after, times))

    def _next_plan(self, kind: Kind) -> _Plan | None:
        found = (plan for plan in self._plans if plan.type is None or kind.is_meant(plan.type))
        plan = next(found, None)
        if plan is not None:
            plan.times -= 1
            if plan.times <= 0:
                self._plans.remove(plan)
        return plan

    def find(self, key: str, body: JSON, now: float) -> TaskRecord:
        """Return the task that a request asks for, if it is this key's and has not expired."""
        asked = body.get("taskId")
        task = self._books.tasks.get(str(asked))
        if task is not None and not _same(asked, self._options.dialect.wire_id(task)):
            task = None
        retention = self._options.retention
        expired = task is not None and retention is not None and now > task.ready_at + retention
        if task is None or task.key != self.fingerprint(key) or expired:
            raise RefusalError("ERROR_WRONG_CAPTCHA_ID")
        return task

    def status(self, task: TaskRecord, now: float) -> str:
        """Return the status of a task."""
        if now >= task.ready_at:
            return "ready" if task.error_code is None else "failed"
        return "idle" if now - task.created_at < self._options.idle_for / self._options.speed else "processing"

    def feedback(self, task: TaskRecord, result: JSON) -> None:
        """Take a judgement of a solution. Source: docs/api/ucaptcha/feedback-task."""
        if not isinstance(result.get("invalid"), bool):
            raise RefusalError("ERROR_BAD_PARAMETERS", "result.invalid must be a boolean.")
        if not _text(result.get("message")):
            raise RefusalError("ERROR_BAD_PARAMETERS", "result.message is missing.")
        if "code" in result and not isinstance(result["code"], str):
            raise RefusalError("ERROR_BAD_PARAMETERS", "result.code must be a string.")
        task.feedback.append(dict(result))


def _same(asked: object, wire_id: object) -> bool:
    """Whether an id came back as it was given: a number is not its digits."""
    return type(asked) is type(wire_id) and asked == wire_id


def _choice(choices: Mapping[str, T], name: str, kind: Kind) -> T | None:
    """What is chosen for a type: under its own name, or else under any name of its kind."""
    if name in choices:
        return choices[name]
    return next((choice for word, choice in choices.items() if kind.is_meant(word)), None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _as_kind(kind: Kind | str) -> Kind:
    if isinstance(kind, Kind):
        return kind
    return Kind(name=kind, types=(kind,), solution=make_token, page=False, site_key=None)
