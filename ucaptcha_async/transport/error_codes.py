"""Which error code means which cause: one table of the service's own codes and of its family's, with their sources."""

from __future__ import annotations

import functools
import re

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

_OWN = "U: api/error-codes"
_TABLE: tuple[tuple[type[UCaptchaError], str, str], ...] = (
    (AuthenticationError, _OWN, "ERROR_KEY_DOES_NOT_EXIST ERROR_WRONG_USER_KEY"),
    (AuthenticationError, "family: AnySolver", "ERROR_USER_BANNED"),
    (AuthenticationError, "family: anti-captcha", "ERROR_ACCOUNT_SUSPENDED"),
    (AuthenticationError, "family: CapSolver", "ERROR_KEY_DENIED_ACCESS ERROR_KEY_TEMP_BLOCKED ERROR_INVALID_KEY"),
    (AuthenticationError, "family: 2captcha", "ERROR_KEY_BANNED"),
    (InsufficientBalanceError, _OWN, "ERROR_ZERO_BALANCE"),
    (AddressRefusedError, "family: 2captcha", "ERROR_IP_NOT_ALLOWED ERROR_IP_BLOCKED"),
    (AddressRefusedError, "family: 2captcha in.php", "IP_BANNED ERROR_IP_ADDRES"),
    (AddressRefusedError, "family: CapMonster", "ERROR_IP_BANNED"),
    (InvalidTaskError, _OWN, "ERROR_PAGEURL ERROR_SITEKEY ERROR_BAD_PARAMETERS ERROR_EMPTY_ACTION"),
    (
        InvalidTaskError,
        "family: 2captcha",
        "ERROR_ZERO_CAPTCHA_FILESIZE ERROR_TOO_BIG_CAPTCHA_FILESIZE ERROR_IMAGE_TYPE_NOT_SUPPORTED ERROR_TASK_ABSENT",
    ),
    (
        InvalidTaskError,
        "family: 2captcha in.php",
        "ERROR_WRONG_FILE_EXTENSION ERROR_UPLOAD ERROR_BAD_TOKEN_OR_PAGEURL ERROR_GOOGLEKEY ERROR_WRONG_GOOGLEKEY "
        "ERROR_CAPTCHAIMAGE_BLOCKED TOO_MANY_BAD_IMAGES",
    ),
    (
        InvalidTaskError,
        "family: anti-captcha",
        "ERROR_EMPTY_COMMENT ERROR_INCORRECT_SESSION_DATA ERROR_RECAPTCHA_INVALID_SITEKEY "
        "ERROR_RECAPTCHA_INVALID_DOMAIN ERROR_RECAPTCHA_OLD_BROWSER ERROR_VISIBLE_RECAPTCHA ERROR_INVISIBLE_RECAPTCHA",
    ),
    (
        InvalidTaskError,
        "family: CapSolver",
        "ERROR_INVALID_TASK_DATA ERROR_BAD_REQUEST ERROR_INVALID_IMAGE ERROR_PARSE_IMAGE_FAIL ERROR_UNKNOWN_QUESTION",
    ),
    (InvalidTaskError, "family: CapMonster", "ERROR_DOMAIN_NOT_ALLOWED ERROR_TOKEN_EXPIRED"),
    (
        InvalidTaskError,
        "family: AnySolver",
        "DOMAIN_BANNED IMAGE_CORRUPTED IMAGE_TOO_LARGE IMAGE_TOO_SMALL INVALID_TASK_DATA",
    ),
    (UnsupportedTaskError, _OWN, "TASK_NOT_SUPPORTED"),
    (UnsupportedTaskError, "family: 2captcha", "ERROR_TASK_NOT_SUPPORTED ERROR_NO_SUCH_METHOD"),
    (UnsupportedTaskError, "family: 2captcha in.php", "ERROR_METHOD_CALL"),
    (ProxyError, _OWN, "ERROR_BAD_PROXY ERROR_PROXY_FORMAT"),
    (NoProviderError, _OWN, "NO_PROVIDERS_AVAILABLE"),
    (NoProviderError, "family: 2captcha", "ERROR_NO_SLOT_AVAILABLE"),
    (NoProviderError, "family: CapSolver", "ERROR_SERVICE_UNAVALIABLE ERROR_SERVICE_UNAVAILABLE"),
    (NoProviderError, "family: CapMonster", "ERROR_NO_NODES_AVAILABLE"),
    (NoProviderError, "family: anti-captcha", "ERROR_ALL_WORKERS_FILTERED"),
    (RateLimitedError, "family: CapMonster", "ERROR_TOO_MUCH_REQUESTS"),
    (RateLimitedError, "family: CapSolver", "ERROR_RATE_LIMIT"),
    (RateLimitedError, "family: 2captcha in.php", "MAX_USER_TURN"),
    (TaskNotFoundError, _OWN, "ERROR_WRONG_CAPTCHA_ID"),
    (TaskNotFoundError, "family: 2captcha", "ERROR_NO_SUCH_CAPCHA_ID"),
    (TaskNotFoundError, "family: 2captcha in.php", "ERROR_WRONG_ID_FORMAT"),
    (TaskNotFoundError, "family: CapMonster", "WRONG_CAPTCHA_ID"),
    (TaskNotFoundError, "family: CapSolver", "ERROR_TASKID_INVALID ERROR_TASK_NOT_FOUND"),
    (UnsolvableError, _OWN, "ERROR_CAPTCHA_UNSOLVABLE"),
    (UnsolvableError, "family: 2captcha", "ERROR_BAD_DUPLICATES"),
    (UnsolvableError, "family: AnySolver", "CAPTCHA_UNSOLVABLE"),
    (UnsolvableError, "family: CapSolver", "ERROR_CAPTCHA_SOLVE_FAILED ERROR_TASK_TIMEOUT"),
    (UnsolvableError, "family: CapMonster", "ERROR_MAXIMUM_TIME_EXCEED"),
    (UnsolvableError, "family: 2captcha in.php", "ERROR_PROXY_CONNECTION_FAILED"),
    (
        UnsolvableError,
        "family: anti-captcha",
        "ERROR_PROXY_CONNECT_REFUSED ERROR_PROXY_CONNECT_TIMEOUT ERROR_PROXY_READ_TIMEOUT ERROR_PROXY_BANNED "
        "ERROR_PROXY_TRANSPARENT ERROR_PROXY_NOT_AUTHORISED ERROR_PROXY_HAS_NO_IMAGE_SUPPORT "
        "ERROR_PROXY_INCOMPATIBLE_HTTP_VERSION ERROR_RECAPTCHA_TIMEOUT ERROR_FAILED_LOADING_WIDGET",
    ),
)

SOURCES: dict[str, str] = {code: source for _, source, codes in _TABLE for code in codes.split()}
"""Where each code is known from: `U` is the service's own page, the rest its family's."""

CODES: dict[str, type[UCaptchaError]] = {code: cls for cls, _, codes in _TABLE for code in codes.split()}
"""The class of each code."""

PENDING_CODES = frozenset({"CAPCHA_NOT_READY", "CAPTCHA_NOT_READY", "ERROR_CAPTCHA_NOT_READY"})
"""Codes that mean "not yet". The first, misspelt, is the protocol's own."""

INTERNAL = frozenset({"INTERNAL_ERROR", "ERROR_INTERNAL_SERVER_ERROR", "ERROR_INTERNAL", "ERROR_SETTLEMENT_FAILED"})
"""Codes that say that the service itself failed, whatever the HTTP status."""

_INTERNAL_WORDS = frozenset({"INTERNAL", "EXCEPTION", "DATABASE"})
_OF_SERVERS = frozenset({"SERVER", "SYSTEM"})
_WITH_SERVERS = _OF_SERVERS | {"ERROR", "FAILED", "FAILURE", "FAULT"}

# What an unknown code's words mean, compared whole, the first rule that fits. All words of a rule must be there. What
# belongs to the task decides before what belongs to the account: `ERROR_INVALID_SITEKEY` is about no API key.
_WORDS: dict[type[UCaptchaError], tuple[str, ...]] = {
    UnsolvableError: (
        "UNSOLVABLE",
        *(
            f"{word} {failed}"
            for word in ("SOLVE", "SOLVING", "TASK", "CAPTCHA", "CAPCHA", "RECAPTCHA", "HCAPTCHA", "SOLUTION")
            for failed in ("FAILED", "FAILURE")
        ),
        *(f"{word} TIMEOUT" for word in ("SOLVE", "SOLVING", "TASK", "CAPTCHA", "RECAPTCHA")),
    ),
    UnsupportedTaskError: ("NOT SUPPORTED", "UNSUPPORTED"),
    ProxyError: ("PROXY", "PROXIES"),
    TaskNotFoundError: (
        *(f"NOT FOUND {word}" for word in ("TASK", "TASKID", "CAPTCHA", "CAPCHA", "CAPTCHAID", "ID", "REQUEST")),
        *(f"NO SUCH {word}" for word in ("TASK", "CAPTCHA", "CAPCHA")),
        *(f"{word} EXPIRED" for word in ("TASK", "CAPTCHA")),
        *(
            f"{wrong} {word}"
            for wrong in ("WRONG", "INVALID", "UNKNOWN")
            for word in ("TASK ID", "TASKID", "CAPTCHA ID", "CAPCHA ID")
        ),
    ),
    NoProviderError: (
        *("BUSY", "OVERLOADED", "OVERLOAD", "UNAVAILABLE", "UNAVALIABLE"),
        *(f"NO {word}" for word in ("SLOT", "SLOTS", "PROVIDER", "PROVIDERS", "NODES", "WORKERS")),
        *("NO SOLVERS", "MAINTENANCE"),
    ),
    RateLimitedError: ("RATE LIMIT", "TOO MANY REQUESTS", "TOO MUCH REQUESTS"),
    InvalidTaskError: (
        *("SITEKEY", "GOOGLEKEY", "WEBSITEKEY", "PUBLICKEY", "SITE", "WEBSITE"),
        *("GOOGLE", "PUBLIC", "PAGE", "PAGEURL", "URL", "WEBSITEURL", "DOMAIN"),
        *("IMAGE", "FILE", "FILESIZE", "BODY", "TASK", "PARAMETER", "PARAMETERS"),
        *("USER AGENT", "USERAGENT", "COOKIE", "COOKIES", "ACTION", "METHOD", "TYPE"),
        *("CAPTCHA", "CAPCHA", "RECAPTCHA", "HCAPTCHA", "TURNSTILE", "ENTERPRISE"),
    ),
    ServiceError: ("PROVIDER", "PROVIDERS", "SERVICE"),
    InsufficientBalanceError: ("BALANCE", "FUNDS", "MONEY", "CREDIT", "CREDITS"),
    AddressRefusedError: tuple(
        f"IP {word}" for word in ("BANNED", "BLOCKED", "ALLOWED", "WHITELIST", "WHITELISTED", "DENIED")
    ),
    AuthenticationError: (
        *("KEY", "APIKEY", "CLIENTKEY", "ACCOUNT", "USER", "UNAUTHORIZED"),
        *("BANNED", "SUSPENDED", "BLOCKED", "DISABLED"),
    ),
}


@functools.cache
def _rules() -> tuple[tuple[frozenset[str], type[UCaptchaError]], ...]:
    """Each rule with its class, made for the first code that is not known."""
    return tuple((frozenset(rule.split()), cls) for cls, rules in _WORDS.items() for rule in rules)


_STATUSES: dict[int, type[UCaptchaError]] = {
    400: InvalidTaskError,
    401: AuthenticationError,
    402: InsufficientBalanceError,
    404: TaskNotFoundError,
    422: InvalidTaskError,
    429: RateLimitedError,
}

_ABOUT_THE_PAGE = frozenset(
    {"ERROR_RECAPTCHA_INVALID_SITEKEY", "ERROR_RECAPTCHA_INVALID_DOMAIN", "ERROR_RECAPTCHA_OLD_BROWSER"}
)
"""Refusals of the task that come when it is being solved. Family: anti-captcha."""

_FINAL_STATUSES = frozenset({405, 413, 451})
"""HTTP statuses that the same request will meet again."""

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


def is_pending(code: str) -> bool:
    """Whether a code means "not yet"."""
    return code in PENDING_CODES or (code not in CODES and {"NOT", "READY"} <= _words(code))


def is_internal(code: str | None) -> bool:
    """Whether a code says that the service itself failed: a known one, or by its words."""
    if code is None or code in CODES:
        return False
    words = _words(code)
    return code in INTERNAL or bool(words & _INTERNAL_WORDS) or (bool(words & _OF_SERVERS) and words <= _WITH_SERVERS)


def ends_wait(code: str | None) -> bool:
    """Whether a code that answers a poll says that the task has ended, or is not known any more."""
    return code in _ABOUT_THE_PAGE or issubclass(class_for(code, 0), UnsolvableError | TaskNotFoundError)


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
    if is_internal(code):
        return RateLimitedError if http_status == 429 else ServiceError
    words = _words(code or "")
    guess = next((cls for rule, cls in _rules() if rule <= words), None)
    return guess or _STATUSES.get(http_status, ServiceError)


def _words(code: str) -> set[str]:
    return set(re.split(r"[^A-Z0-9]+", code.upper()))


def by_status(http_status: int, message: str, *, task_id: str | None = None) -> UCaptchaError:
    """The error for an answer that has nothing but its HTTP status."""
    if 300 <= http_status < 400:
        return ProtocolError(f"{message}; redirects are not followed", task_id=task_id, retryable=True)
    # A 404 without the protocol's own body comes from something in between: it says nothing of the task.
    cls = ServiceError if http_status == 404 else _STATUSES.get(http_status, ServiceError)
    error = _located(cls(message, task_id=task_id), http_status)
    if cls is ServiceError:
        error.retryable = http_status not in _FINAL_STATUSES
    return error


def _located(error: UCaptchaError, http_status: int) -> UCaptchaError:
    if isinstance(error, ServiceError):
        error.http_status = http_status
        error.retryable = http_status >= 500 or is_internal(error.error_code)
    return error
