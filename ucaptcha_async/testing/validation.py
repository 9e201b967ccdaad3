"""What the local service checks in a request before it takes it. Source: docs/api/error-codes."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from .refusals import RefusalError
from .solutions import Kind, geetest_version
from .spellings import Spelling

SELECTION_MODES = frozenset({"autoCheapest", "autoFastest", "autoMostReliable", "priority"})
PROXY_TYPES = frozenset({"http", "https", "socks4", "socks5"})
_PROXY = re.compile(
    r"(?:(?P<type>[a-z0-9]+)://)?(?:[^:@/\s]+:[^@/\s]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^:@/\s\[\]]+):(?P<port>\d+)"
)


@lru_cache(maxsize=1024)
def is_url(text: str) -> bool:
    """Tell whether a text is a fully qualified URL for the web."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not any(char.isspace() for char in text)


def check_request(body: Mapping[str, object]) -> None:
    """Check the fields beside `task` that `createTask` knows."""
    mode = body.get("selectionMode")
    if mode is not None and mode not in SELECTION_MODES:
        raise RefusalError(
            "ERROR_BAD_PARAMETERS", f"selectionMode must be one of {', '.join(sorted(SELECTION_MODES))}."
        )
    for name in ("provider", "callbackUrl"):
        if body.get(name) is not None and not _is_text(body[name]):
            raise RefusalError("ERROR_BAD_PARAMETERS", f"{name} must be a string.")


def given(fields: Mapping[str, object]) -> dict[str, object]:
    """Return fields without those that are null or empty text, as clients send optional ones that nobody has set."""
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def check_task(task: Mapping[str, object], kind: Kind, spelling: Spelling, *, proxy_optional: bool) -> None:
    """Check a task's own fields, as its kind and the service need them."""
    spelling.check(task, kind.name)
    url = task.get("websiteURL")
    if (kind.page or url is not None) and not (isinstance(url, str) and is_url(url)):
        raise RefusalError("ERROR_PAGEURL")
    if kind.site_key is not None and not _is_text(task.get(kind.site_key)):
        raise RefusalError("ERROR_SITEKEY", f"{kind.site_key} is missing or invalid.")
    for name in kind.required:
        if not _is_text(task.get(name)):
            raise RefusalError("ERROR_BAD_PARAMETERS", f"{name} is missing.")
    extra = _EXTRA.get(kind.name)
    if extra is not None:
        extra(task)
    _check_proxy(task, kind, proxy_optional, any_text=proxy_optional or spelling.any_proxy_text)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_v3(task: Mapping[str, object]) -> None:
    score = task.get("minScore", 0.3)
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0.1 <= score <= 0.9:
        raise RefusalError("ERROR_BAD_PARAMETERS", "minScore must be a number from 0.1 to 0.9.")


def _check_image(task: Mapping[str, object]) -> None:
    _check_base64(task, "body")


def _check_picture(task: Mapping[str, object]) -> None:
    _check_base64(task, "imageBase64" if "imageBase64" in task else "body")


def _check_base64(task: Mapping[str, object], name: str) -> None:
    body = task.get(name)
    try:
        content = _without_prefix(body, name) if isinstance(body, str) else ""
        decoded = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise RefusalError("ERROR_BAD_PARAMETERS", f"{name} must be an image in base64.")


def _without_prefix(body: str, name: str) -> str:
    """Only `imageBase64` may be a data URI."""
    return body.partition(",")[2] if name == "imageBase64" and body.startswith("data:") else body


def _check_geetest(task: Mapping[str, object]) -> None:
    version = geetest_version(task)
    initial = task.get("initParameters")
    v4_id = isinstance(initial, dict) and _is_text(initial.get("captcha_id"))
    if version not in (3, 4):
        raise RefusalError("ERROR_BAD_PARAMETERS", "version must be 3 or 4.")
    if not _is_text(task.get("gt")) and not (version == 4 and v4_id):
        raise RefusalError("ERROR_BAD_PARAMETERS", "gt is missing.")
    if version == 3 and not _is_text(task.get("challenge")):
        raise RefusalError("ERROR_BAD_PARAMETERS", "challenge is missing.")


_EXTRA = {
    "reCAPTCHA v3": _check_v3,
    "image to text": _check_image,
    "click coordinates": _check_picture,
    "rotate": _check_picture,
    "human recognition": _check_picture,
    "GeeTest": _check_geetest,
}


def _check_proxy(task: Mapping[str, object], kind: Kind, optional: bool, *, any_text: bool) -> None:
    if "proxy" in task:
        if not any_text:
            _check_proxy_text(task["proxy"], task.get("proxyType"))
    elif "proxyAddress" in task or "proxyPort" in task:
        _check_proxy_fields(task)
    elif not optional and f"{task['type']}ProxyLess" in kind.types and kind.name not in _PROXY_NEVER_NEEDED:
        raise RefusalError("ERROR_BAD_PROXY", "This task type needs a proxy.")


_PROXY_NEVER_NEEDED = frozenset({"MTCaptcha", "Yandex SmartCaptcha", "hCaptcha"})
"""Kinds that some service of the family takes without a proxy under the bare name."""


def _check_proxy_text(proxy: object, proxy_type: object) -> None:
    match = _PROXY.fullmatch(proxy) if isinstance(proxy, str) else None
    if match is None or (match["type"] or proxy_type) not in PROXY_TYPES:
        raise RefusalError("ERROR_PROXY_FORMAT")
    if not 0 < int(match["port"]) < 65536:
        raise RefusalError("ERROR_BAD_PROXY")


def _check_proxy_fields(task: Mapping[str, object]) -> None:
    port = task.get("proxyPort")
    port_ok = isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536
    if task.get("proxyType") not in PROXY_TYPES or not _is_text(task.get("proxyAddress")) or not port_ok:
        raise RefusalError("ERROR_BAD_PROXY")
