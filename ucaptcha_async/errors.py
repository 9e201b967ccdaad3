"""What goes wrong: one exception per cause, each saying whether you were charged.

Every exception of the library derives from [`UCaptchaError`][ucaptcha_async.UCaptchaError]:

    UCaptchaError
    ├── ConfigurationError        the client was set up wrongly (also a ValueError)
    ├── ClientStateError          not entered, closed, draining (also a RuntimeError)
    ├── InvalidTaskError          a field of the task is wrong (also a ValueError)
    │   ├── UnsupportedTaskError  the service does not know the task type
    │   └── ProxyError            the proxy is wrong or unreachable
    ├── AccountError              the account as a whole is refused
    │   ├── AuthenticationError   the API key
    │   ├── InsufficientBalanceError
    │   └── AddressRefusedError   this IP address
    ├── NoProviderError           no provider free to take the task
    ├── RateLimitedError          HTTP 429
    ├── ServiceError              any other refusal, by its code; HTTP 5xx
    ├── TaskNotFoundError         unknown or expired task id
    ├── UnsolvableError           tried, not solved, refunded
    ├── SolveTimeoutError         the solve's own deadline (also a TimeoutError)
    ├── SubmitUncertainError      sent, and no answer: perhaps charged
    ├── APIConnectionError        the service could not be reached
    ├── ProtocolError             an answer that is not the protocol's
    │   └── SolutionError         solved, but the solution lacks what its type promises
    ├── BudgetExceededError       refused by your own budget
    └── JournalError              the journal file failed
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs


class UCaptchaError(Exception):
    """The root of all errors of this library.

    Attributes:
        task_id: The task that the error concerns, if the service had accepted one.
        error_code: The service's own code, for example `"ERROR_ZERO_BALANCE"`, as it was received.
        retryable: Whether the same call may succeed later without a change by the caller.
        charged: Whether money was spent: `True`, `False` (never charged, or refunded), `None` for unknown.
        attempts: Each `createTask` of the solve that ended with this error, in order.
        retry_after: Seconds that the service asks to wait (its `Retry-After`), if it does.
    """

    retryable: bool = False
    charged: bool | None = False
    task_id: str | None = None
    error_code: str | None = None
    attempts: tuple[Attempt, ...] = ()
    retry_after: float | None = None

    def __init__(
        self,
        message: str,
        *,
        task_id: str | None = None,
        error_code: str | None = None,
        retryable: bool | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        given = {"task_id": task_id, "error_code": error_code, "retryable": retryable}
        # `charged` has three values of which None is one, so it is told apart from "not given" by its presence.
        self.__dict__.update({name: value for name, value in given.items() if value is not None} | details)

    def __str__(self) -> str:
        notes = [self.error_code] if self.error_code and self.error_code not in self.message else []
        if self.task_id is not None:
            notes.append(f"task {self.task_id}")
        if self.charged is not False or self.task_id is not None:  # else nothing can have been paid for
            notes.append({True: "charged", False: "not charged", None: "charged: unknown"}[self.charged])
        return f"{self.message} ({', '.join(notes)})" if notes else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # The state goes apart from the constructor's arguments, for `attempts` may lead back to the error itself.
        return type(self), (self.message,), self._state()

    def _state(self) -> dict[str, Any]:
        return self.__dict__


@attrs.frozen(kw_only=True)
class Attempt:
    """One `createTask` of a solve, and how it went.

    Attributes:
        task_id: The id that the service gave, if it accepted the task.
        error: Why this attempt failed; `None` if it brought the solution.
        cost: What it cost, USD; `None` if unknown. A failed task is refunded.
        selection_mode: The routing that was asked for, if any.
        uncertain: Whether the fate of the submit is unknown: it may have been charged.
    """

    task_id: str | None = None
    error: UCaptchaError | None = attrs.field(default=None, hash=False)
    cost: Decimal | None = None
    selection_mode: str | None = None
    uncertain: bool = False


class ConfigurationError(UCaptchaError, ValueError):
    """A setting of the client is missing or wrong. Raised before any request."""


class ClientStateError(UCaptchaError, RuntimeError):
    """The client is not entered yet, closed, draining, or used in another event loop.

    A solve that still runs when the client closes ends with it, too: then `task_id` and `charged` say what is paid for.
    """


class InvalidTaskError(UCaptchaError, ValueError):
    """A field of the task is wrong: found here before any request, or refused by the service.

    Source: docs/api/error-codes (`ERROR_PAGEURL`, `ERROR_SITEKEY`, `ERROR_BAD_PARAMETERS`, …).

    Attributes:
        field: The name of the field as the library spells it, where it is known.
    """

    field: str | None = None


class UnsupportedTaskError(InvalidTaskError):
    """The service does not recognise the task type (`TASK_NOT_SUPPORTED`). Source: docs/api/error-codes."""


class ProxyError(InvalidTaskError):
    """The proxy is malformed or unreachable (`ERROR_PROXY_FORMAT`, `ERROR_BAD_PROXY`). Source: docs/api/error-codes."""


class AccountError(UCaptchaError):
    """The account, the key or the address is refused, so that every further submit would be refused too."""


class AuthenticationError(AccountError):
    """The API key is invalid or deleted. Source: docs/api/error-codes (HTTP 401)."""


class InsufficientBalanceError(AccountError):
    """The balance does not cover a task (`ERROR_ZERO_BALANCE`). Source: docs/api/error-codes (HTTP 402)."""


class AddressRefusedError(AccountError):
    """The key's IP whitelist, or a ban, refuses this address (a code of the protocol family)."""


class NoProviderError(UCaptchaError):
    """No provider is available for the task now (`NO_PROVIDERS_AVAILABLE`, `ERROR_NO_SLOT_AVAILABLE`)."""

    retryable = True


class RateLimitedError(UCaptchaError):
    """Too many requests from this address (HTTP 429). Source: docs/api/overview."""

    retryable = True


class ServiceError(UCaptchaError):
    """A refusal with a code that has no class of its own, or a fault of the service (HTTP 5xx).

    Attributes:
        http_status: The HTTP status of the answer.
    """

    http_status: int | None = None


class TaskNotFoundError(UCaptchaError):
    """The task id is unknown or has expired (`ERROR_WRONG_CAPTCHA_ID`). Source: docs/api/error-codes (HTTP 404)."""

    charged: bool | None = None


class UnsolvableError(UCaptchaError):
    """The task ended as `failed`; the charge is refunded automatically. Source: docs/api/ucaptcha/get-task-result."""

    retryable = True


class SolveTimeoutError(UCaptchaError, TimeoutError):
    """The solve's own deadline passed. With a `task_id`, the task may still finish: wait for it again.

    Attributes:
        phase: Where the time ran out: `"queue"` (waiting for a free place), `"submit"` or `"wait"`.
    """

    retryable = True
    phase: str = "wait"


class SubmitUncertainError(UCaptchaError):
    """`createTask` was sent and no readable answer came: the task may exist and may have been charged."""

    charged: bool | None = None


class APIConnectionError(UCaptchaError):
    """The service could not be reached, or the connection broke."""

    retryable = True


class ProtocolError(UCaptchaError):
    """The answer is not one of the protocol: not JSON, not an object, or without a required field."""


class SolutionError(ProtocolError):
    """The task is solved, but the solution lacks what its type promises.

    Attributes:
        raw: The solution as the service sent it. Not part of the message: it may hold a token.
        cost: What the task cost (`Decimal`, USD), if the service said.
    """

    charged: bool | None = True
    raw: Any = None
    cost: Any = None

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "raw"}


class BudgetExceededError(UCaptchaError):
    """Your own budget has no room for the task. Raised before any request."""


class JournalError(UCaptchaError):
    """The journal could not be read or written. Running solves go on."""

    retryable = True
