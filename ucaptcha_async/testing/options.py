"""What can be set on the local service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from decimal import Decimal

import attrs

from .callbacks import CallbackPlan
from .dialects import DIALECTS, Dialect, find_dialect
from .scripts import FaultRates
from .solutions import Kind
from .spellings import SPELLINGS
from .timing import Fixed, SolveTime
from .wire import ConnectionDroppedError

_share = attrs.validators.and_(attrs.validators.ge(0.0), attrs.validators.le(1.0))
_not_negative = attrs.validators.ge(0.0)
_positive = attrs.validators.gt(0.0)
SolveTimes = SolveTime | float | Mapping[str, SolveTime | float] | None


def as_solve_time(value: SolveTime | float) -> SolveTime:
    """Take a number for a solve time that is always the same."""
    return Fixed(float(value)) if isinstance(value, int | float) else value


def as_usd(value: Decimal | float | str) -> Decimal:
    """Take any number for a sum of money."""
    return Decimal(str(value))


@attrs.define(eq=False, kw_only=True)
class Options:
    """The options of the local service; each may also be changed while it runs, unless it is a seed or the dialect.

    Where an option goes by type, any name of a type stands for its whole kind, whatever name a task is sent under. A
    choice for the very name that is sent goes first.

    Attributes:
        keys: The API keys that exist; None accepts any.
        balance: What is on each key's account at first, in USD.
        seed: The seed of everything that is random. The same requests in the same order get the same answers.
        rate_limit: Requests per window and address before HTTP 429. Source: docs/api/overview
        rate_window: The length of the window, in seconds; windows begin at multiples of it on the service's clock.
        solve_time: How long solves take, in seconds: a distribution or a number for all types, or a mapping from types
            to those; None for the defaults of each kind.
        speed: Solve times and `idle_for` are divided by this.
        prices: Prices in USD by type, in place of the defaults of each kind.
        failure_rate: The share of tasks that fail.
        failure_code: The error code of tasks that fail by `failure_rate`.
        idle_for: How long new tasks are `idle` before they are `processing`, in seconds.
        immediate_types: Types whose solution is in the answer of `createTask`.
        lightning: Keys in Lightning mode, with the number of solved tokens held in stock for each.
            Source: docs/features/lightning-mode
        retention: How long a finished task can be asked for, in seconds; None for ever.
        latency: How long each answer takes on top, in seconds: a number, or a function of the endpoint's name.
        dialect: The dialect, or the name of one: `ucaptcha`, `anticaptcha`, `capsolver`, `capmonster`, `2captcha`,
            `anysolver`, `bare`.
        types: Which names of task types and fields it takes: `own` (uCaptcha's), `anticaptcha` (also 2captcha's and
            CapMonster's), `capsolver`, `anysolver`, all of them (`any`), or those of the service whose `dialect` it
            speaks. Another type is refused with `TASK_NOT_SUPPORTED`, and costs nothing.
        fault_rates: Faults at random.
        epoch: The Unix time at which the clock of the event loop was zero; None takes the machine's clock.
        clock_skew: How far the service's clock is ahead of that, in seconds.
        extra_types: Further task types: names (they need no fields and give a token) or kinds.
        callback_plan: What happens to callbacks; None sends each once.
        callback_sender: Sends a callback, given its URL, and returns the HTTP status; None sends it over a socket.
        allow_private_callbacks: Whether callbacks may go to private addresses, which the real service refuses.
            Source: docs/api/callbacks
        books_detail: Whether the books list every request and charge, or only sums and times.
        drop_error: Makes the error that a dropped connection raises in-process, from a text, such as `httpx.ReadError`.
    """

    keys: Collection[str] | None = attrs.field(default=None, repr=False)
    balance: Decimal = attrs.field(default=Decimal(100), converter=as_usd)
    seed: int = 0
    rate_limit: int = attrs.field(default=10_000, validator=attrs.validators.gt(0))
    rate_window: float = attrs.field(default=10.0, validator=_positive)
    solve_time: SolveTimes = None
    speed: float = attrs.field(default=1.0, validator=_positive)
    prices: Mapping[str, Decimal] = attrs.field(factory=dict)
    failure_rate: float = attrs.field(default=0.0, validator=_share)
    failure_code: str = "ERROR_CAPTCHA_UNSOLVABLE"
    idle_for: float = attrs.field(default=1.0, validator=_not_negative)
    immediate_types: Collection[str] = ("ImageToTextTask",)
    lightning: Mapping[str, int] = attrs.field(factory=dict, repr=False)
    retention: float | None = attrs.field(default=None, validator=attrs.validators.optional(_not_negative))
    latency: float | Callable[[str], float] = 0.0
    dialect: Dialect = attrs.field(default=DIALECTS["ucaptcha"], converter=find_dialect)
    types: str = attrs.field(default="any", validator=attrs.validators.in_((*SPELLINGS, "dialect")))
    fault_rates: FaultRates | None = None
    epoch: float | None = None
    clock_skew: float = 0.0
    extra_types: Collection[Kind | str] = ()
    callback_plan: CallbackPlan | None = None
    callback_sender: Callable[[str], Awaitable[int]] | None = None
    allow_private_callbacks: bool = False
    books_detail: bool = True
    drop_error: Callable[[str], Exception] = ConnectionDroppedError
