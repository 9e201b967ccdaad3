"""Which error code means which cause. Source: docs/api/error-codes, and the codes of the protocol family."""

from __future__ import annotations

from ucaptcha_async.errors import (
    AddressRefusedError,
    AuthenticationError,
    InsufficientBalanceError,
    InvalidTaskError,
    NoProviderError,
    ProtocolError,
    ProxyError,
    RateLimitedError,
    ServiceError,
    TaskNotFoundError,
    UCaptchaError,
    UnsolvableError,
    UnsupportedTaskError,
)

PENDING_CODES = frozenset({"CAPCHA_NOT_READY", "CAPTCHA_NOT_READY", "ERROR_CAPTCHA_NOT_READY"})
"""Codes that mean "not yet". The first, misspelt, is the protocol's own."""

INTERNAL = frozenset({"INTERNAL_ERROR", "ERROR_INTERNAL_SERVER_ERROR", "ERROR_INTERNAL"})
"""Codes that say that the service itself failed, whatever the HTTP status."""

CODES: dict[str, type[UCaptchaError]] = {
    # uCaptcha's own table
    "ERROR_KEY_DOES_NOT_EXIST": AuthenticationError,
    "ERROR_WRONG_USER_KEY": AuthenticationError,
    "ERROR_ZERO_BALANCE": InsufficientBalanceError,
    "ERROR_PAGEURL": InvalidTaskError,
    "ERROR_SITEKEY": InvalidTaskError,
    "ERROR_BAD_PARAMETERS": InvalidTaskError,
    "ERROR_BAD_PROXY": ProxyError,
    "ERROR_PROXY_FORMAT": ProxyError,
    "ERROR_CAPTCHA_UNSOLVABLE": UnsolvableError,
    "ERROR_WRONG_CAPTCHA_ID": TaskNotFoundError,
    "ERROR_EMPTY_ACTION": InvalidTaskError,
    "TASK_NOT_SUPPORTED": UnsupportedTaskError,
    "NO_PROVIDERS_AVAILABLE": NoProviderError,
    # the protocol family
    "ERROR_NO_SLOT_AVAILABLE": NoProviderError,
    "ERROR_ZERO_CAPTCHA_FILESIZE": InvalidTaskError,
    "ERROR_TOO_BIG_CAPTCHA_FILESIZE": InvalidTaskError,
    "ERROR_IMAGE_TYPE_NOT_SUPPORTED": InvalidTaskError,
    "ERROR_IP_NOT_ALLOWED": AddressRefusedError,
    "ERROR_IP_BLOCKED": AddressRefusedError,
    "ERROR_IP_BANNED": AddressRefusedError,
    "ERROR_USER_BANNED": AuthenticationError,
    "ERROR_BAD_DUPLICATES": UnsolvableError,
    "ERROR_NO_SUCH_CAPCHA_ID": TaskNotFoundError,
    "WRONG_CAPTCHA_ID": TaskNotFoundError,
    "ERROR_TASKID_INVALID": TaskNotFoundError,
    "ERROR_TASK_ABSENT": InvalidTaskError,
    "ERROR_TASK_NOT_SUPPORTED": UnsupportedTaskError,
    "ERROR_INVALID_TASK_DATA": InvalidTaskError,
    "INVALID_TASK_DATA": InvalidTaskError,
    "ERROR_TOO_MUCH_REQUESTS": RateLimitedError,
    "ERROR_RATE_LIMIT": RateLimitedError,
    "CAPTCHA_UNSOLVABLE": UnsolvableError,
    "DOMAIN_BANNED": InvalidTaskError,
    "ERROR_DOMAIN_NOT_ALLOWED": InvalidTaskError,
    "IMAGE_CORRUPTED": InvalidTaskError,
    "IMAGE_TOO_LARGE": InvalidTaskError,
    "IMAGE_TOO_SMALL": InvalidTaskError,
}

_WORDS: tuple[tuple[str, type[UCaptchaError]], ...] = (
    ("PROXY", ProxyError),
    ("BALANCE", InsufficientBalanceError),
    ("NO_PROVIDERS", NoProviderError),
    ("NO_SLOT", NoProviderError),
    ("UNSOLVABLE", UnsolvableError),
    ("RATE_LIMIT", RateLimitedError),
    ("TOO_MANY_REQUESTS", RateLimitedError),
    ("NOT_SUPPORTED", UnsupportedTaskError),
)

_STATUSES: dict[int, type[UCaptchaError]] = {
    400: InvalidTaskError,
    401: AuthenticationError,
    402: InsufficientBalanceError,
    404: TaskNotFoundError,
    422: InvalidTaskError,
    429: RateLimitedError,
}

# Each says only what the class says; whether a submit was charged is for the caller of the endpoint to judge.
_MEANINGS: dict[type[UCaptchaError], str] = {
    AuthenticationError: "the API key is refused",
    InsufficientBalanceError: "the balance is too low",
    AddressRefusedError: "this IP address is refused",
    InvalidTaskError: "the service refuses the task",
    UnsupportedTaskError: "the service does not support this task type",
    ProxyError: "the service refuses the proxy",
    NoProviderError: "no provider is available now",
    RateLimitedError: "too many requests",
    TaskNotFoundError: "the task is unknown or has expired",
    UnsolvableError: "the task could not be solved",
    ServiceError: "the service reports an error",
}


def error_for(
    code: str | None, http_status: int, description: str = "", *, task_id: str | None = None
) -> UCaptchaError:
    """The error for a refusal in JSON: by its code, else by words in the code, else by the HTTP status."""
    cls = class_for(code, http_status)
    meaning = _MEANINGS[cls]
    message = f"{meaning}: {description}" if description else meaning
    error = cls(message, error_code=code, task_id=task_id)
    return _located(error, http_status)


def class_for(code: str | None, http_status: int) -> type[UCaptchaError]:
    """The class for a code, seen before or not."""
    if code in CODES:
        return CODES[code]
    if code in INTERNAL:
        return ServiceError
    for word, cls in _WORDS:
        if code and word in code.upper():
            return cls
    return _STATUSES.get(http_status, ServiceError)


def by_status(http_status: int, message: str, *, task_id: str | None = None) -> UCaptchaError:
    """The error for an answer that has nothing but its HTTP status."""
    if 300 <= http_status < 400:
        return ProtocolError(f"{message}; redirects are not followed", task_id=task_id, retryable=True)
    # A 404 without the protocol's own body comes from something in between: it says nothing of the task.
    cls = ServiceError if http_status == 404 else _STATUSES.get(http_status, ServiceError)
    error = _located(cls(message, task_id=task_id), http_status)
    if cls is ServiceError:
        error.retryable = True
    return error


def _located(error: UCaptchaError, http_status: int) -> UCaptchaError:
    if isinstance(error, ServiceError):
        error.http_status = http_status
        error.retryable = http_status >= 500 or error.error_code in INTERNAL
    return error
