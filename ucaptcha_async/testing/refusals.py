"""What the local service refuses, with the documented HTTP statuses. Source: docs/api/error-codes."""

from __future__ import annotations

from collections.abc import Mapping

ERRORS: Mapping[str, tuple[int, str]] = {
    "ERROR_KEY_DOES_NOT_EXIST": (401, "The API key is invalid or has been deleted."),
    "ERROR_WRONG_USER_KEY": (401, "The API key is invalid."),
    "ERROR_ZERO_BALANCE": (402, "There are not enough funds on the account."),
    "ERROR_PAGEURL": (400, "websiteURL is missing or is not a fully qualified URL."),
    "ERROR_SITEKEY": (400, "The site key is missing or invalid."),
    "ERROR_BAD_PARAMETERS": (400, "A parameter is missing or invalid."),
    "ERROR_BAD_PROXY": (400, "The proxy is invalid or cannot be reached."),
    "ERROR_PROXY_FORMAT": (400, "The proxy must be type://user:pass@ip:port, or user:pass@ip:port with proxyType."),
    "ERROR_CAPTCHA_UNSOLVABLE": (200, "The provider could not solve the CAPTCHA."),
    "ERROR_WRONG_CAPTCHA_ID": (404, "The task does not exist or has expired."),
    "ERROR_EMPTY_ACTION": (400, "The parameter action is missing."),
    "TASK_NOT_SUPPORTED": (400, "This task type is not supported."),
    # Not on the visible part of the page: the name is cut off there, and the statuses are assumptions.
    "NO_PROVIDERS_AVAILABLE": (503, "No provider is available for this task type."),
    "ERROR_TOO_MUCH_REQUESTS": (429, "Too many requests."),
    "ERROR_NO_SUCH_METHOD": (404, "This method does not exist."),
    # Codes of compatible services that may be passed on.
    "ERROR_NO_SLOT_AVAILABLE": (503, "No idle workers are available at the moment."),
    "ERROR_IP_NOT_ALLOWED": (403, "Requests from this address are not allowed with this key."),
    "ERROR_IP_BLOCKED": (403, "This address is blocked."),
}

NUMBERS: Mapping[str, int] = {
    "ERROR_KEY_DOES_NOT_EXIST": 1,
    "ERROR_WRONG_USER_KEY": 1,
    "ERROR_NO_SLOT_AVAILABLE": 2,
    "ERROR_ZERO_CAPTCHA_FILESIZE": 3,
    "ERROR_TOO_BIG_CAPTCHA_FILESIZE": 4,
    "ERROR_ZERO_BALANCE": 10,
    "ERROR_IP_NOT_ALLOWED": 11,
    "ERROR_CAPTCHA_UNSOLVABLE": 12,
    "ERROR_BAD_DUPLICATES": 13,
    "ERROR_NO_SUCH_METHOD": 14,
    "ERROR_IMAGE_TYPE_NOT_SUPPORTED": 15,
    "ERROR_WRONG_CAPTCHA_ID": 16,
    "ERROR_IP_BLOCKED": 21,
    "ERROR_TASK_ABSENT": 22,
    "TASK_NOT_SUPPORTED": 23,
    "ERROR_BAD_PARAMETERS": 110,
    "ERROR_BAD_PROXY": 130,
}
"""The numbers that stand in `errorId` at services of the family (2captcha's list, 110 for what has none)."""


class RefusalError(Exception):
    """A request that the service does not serve.

    Attributes:
        code: The error code.
        description: What is wrong, in words.
    """

    def __init__(self, code: str, description: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.description = description or describe(code)


def describe(code: str) -> str:
    """Return the words for an error code."""
    return ERRORS[code][1] if code in ERRORS else "The request was refused."


def http_status(code: str) -> int:
    """Return the HTTP status that goes with an error code."""
    return ERRORS[code][0] if code in ERRORS else 400
