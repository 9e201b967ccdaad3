"""The proxy that a task is solved through."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Literal, Self
from urllib.parse import quote, unquote, urlsplit

import attrs

from ucaptcha_async.checks import wrong
from ucaptcha_async.errors import ProxyError
from ucaptcha_async.json_values import JSON, checked, discreet

Scheme = Literal["http", "https", "socks4", "socks5"]
Spelling = Literal["url", "fields"]

_SCHEMES = ("http", "https", "socks4", "socks5")
_SPELLINGS = ("url", "fields")
_URL_ALLOWED = (
    "a URL type://user:password@host:port with type http, https, socks4 or socks5 and nothing after the port "
    "(percent-encode special characters in user and password)"
)
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def _is_host(host: object) -> bool:
    if not isinstance(host, str) or not 0 < len(host) <= 253:
        return False
    try:
        return "%" not in str(ipaddress.ip_address(host))
    except ValueError:
        labels = host.removesuffix(".").split(".")
        return all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def _check_scheme(_: object, __: object, value: Scheme) -> None:
    if value not in _SCHEMES:
        raise wrong("scheme", value, "http, https, socks4 or socks5", ProxyError)


def _check_host(_: object, __: object, value: str) -> None:
    if not _is_host(value):
        allowed = "a host name (ASCII), an IPv4 address or an IPv6 address without brackets"
        raise wrong("host", value, allowed, ProxyError)


def _check_port(_: object, __: object, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65_536:
        raise wrong("port", value, "a whole number from 1 to 65535", ProxyError)


def _check_login(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value or not value.isprintable()):
        raise wrong(attribute.name, value, "non-empty printable text or None", ProxyError)


def _check_spelling(_: object, __: object, value: Spelling | None) -> None:
    if value is not None and value not in _SPELLINGS:
        raise wrong("spelling", value, "'url', 'fields' or None", ProxyError)


@checked
@attrs.frozen(kw_only=True, repr=False)
class Proxy:
    """The proxy that the service uses for a task.

    Its `repr` shows neither user nor password, and one with a password cannot be pickled.

    Source: docs/api/error-codes (`ERROR_PROXY_FORMAT`) names the form `type://user:pass@ip:port`. That the field is
    called `proxy` is inferred; the five fields are family: anti-captcha, not uCaptcha's own page.

    Attributes:
        scheme: `"http"`, `"https"`, `"socks4"` or `"socks5"`. Required.
        host: Host name, IPv4 or IPv6 address (without brackets). Required.
        port: 1 to 65535. Required.
        username: The user, if the proxy wants one; in plain text, not percent-encoded.
        password: The password, if the proxy wants one; in plain text. Needs `username`.
        spelling: `"url"` sends one text, `proxy`. `"fields"` sends `proxyType`, `proxyAddress`, `proxyPort`,
            `proxyLogin` and `proxyPassword` instead. `None`, the default: as the service that a task's type is from
            documents it, and one text where the library does not know the type.

    Raises:
        ProxyError: A value is wrong; the message names the field, never the value.

    Example:
        ```python
        from ucaptcha_async import Proxy

        proxy = Proxy.parse("socks5://user:p%40ss@[2001:db8::1]:1080")
        assert (proxy.host, proxy.port, proxy.password) == ("2001:db8::1", 1080, "p@ss")
        assert proxy == Proxy(scheme="socks5", host="2001:db8::1", port=1080, username="user", password="p@ss")
        assert "p@ss" not in repr(proxy)
        ```
    """

    scheme: Scheme = attrs.field(validator=_check_scheme)
    host: str = attrs.field(validator=_check_host)
    port: int = attrs.field(validator=_check_port)
    username: str | None = attrs.field(default=None, validator=_check_login, repr=False)
    password: str | None = attrs.field(default=None, validator=_check_login, repr=False)
    spelling: Spelling | None = attrs.field(default=None, validator=_check_spelling)

    def __attrs_post_init__(self) -> None:
        if self.password is not None and self.username is None:
            raise ProxyError("username must be given with a password", field="username")

    @classmethod
    @discreet
    def parse(cls, url: str, *, spelling: Spelling | None = None) -> Self:
        """Read a proxy from a URL; user and password are percent-decoded.

        Args:
            url: `type://user:password@host:port`; user and password may be left out, the port may not.
            spelling: How it is sent, see the class.

        Raises:
            ProxyError: It is not such a URL.
        """
        if not isinstance(url, str) or not url.isprintable() or any(c.isspace() for c in url):
            raise wrong("proxy", url, _URL_ALLOWED, ProxyError)
        try:
            parts = urlsplit(url)
            port = parts.port
            username, password = _decoded(parts.username), _decoded(parts.password)
        except ValueError:
            raise wrong("proxy", url, _URL_ALLOWED, ProxyError) from None
        if parts.scheme not in _SCHEMES or not parts.hostname or port is None:
            raise wrong("proxy", url, _URL_ALLOWED, ProxyError)
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise wrong("proxy", url, _URL_ALLOWED, ProxyError)
        scheme: Any = parts.scheme
        return cls(
            scheme=scheme, host=parts.hostname, port=port, username=username, password=password, spelling=spelling
        )

    def to_url(self) -> str:
        """The proxy as a URL, password included."""
        login = "" if self.username is None else quote(self.username, safe="")
        if self.password is not None:
            login += f":{quote(self.password, safe='')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{login}{'@' if login else ''}{host}:{self.port}"

    def to_wire(self, usual: Spelling = "url") -> dict[str, JSON]:
        """The fields that a task sends for this proxy, password included.

        Args:
            usual: How it is sent if `spelling` is `None`.
        """
        if (self.spelling or usual) == "url":
            return {"proxy": self.to_url()}
        fields: dict[str, JSON] = {
            "proxyType": self.scheme,
            "proxyAddress": self.host,
            "proxyPort": self.port,
            "proxyLogin": self.username,
            "proxyPassword": self.password,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def encode_nested(self) -> str:
        """How the proxy is written inside another value."""
        return self.to_url()

    def __repr__(self) -> str:
        login = "***:***@" if self.password is not None else "***@" if self.username is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"Proxy({self.scheme}://{login}{host}:{self.port})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self.password is not None:
            raise TypeError("a Proxy with a password is not pickled; keep its URL where you keep secrets")
        return _rebuild, (attrs.asdict(self),)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _decoded(text: str | None) -> str | None:
    return unquote(text, errors="strict") or None if text else None


def _rebuild(fields: dict[str, Any]) -> Proxy:
    return Proxy(**fields)
