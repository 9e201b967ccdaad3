"""The proxy that a task is solved through."""

from __future__ import annotations

import ipaddress
import re
from functools import partial
from typing import Any, Literal, Self
from urllib.parse import quote, unquote

import attrs

from ucaptcha_async.checks import is_whole, must, white_space, wrong
from ucaptcha_async.errors import ProxyError
from ucaptcha_async.json_values import JSON
from ucaptcha_async.secrecy import OwnCopy, SecretStr, masked

Scheme = Literal["http", "https", "socks4", "socks5"]
Spelling = Literal["url", "fields"]

_SCHEMES = ("http", "https", "socks4", "socks5")
_REMOTE_DNS = {"socks4a": "socks4", "socks5h": "socks5"}
"""Spellings of clients that let the proxy look names up. The service names the protocol only."""
_SPELLINGS = ("url", "fields")
_ALLOWED = (
    "a URL type://user:password@host:port with type http, https, socks4 or socks5 and nothing after the port, "
    "or host:port:user:password"
)
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LEGAL = "!$&'()*+,;="
"""Characters that may stand in a URL's user as they are, besides letters, digits and `-._~`."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]*:[^\[\]@/?#]*)\]|(?P<name>[^:\[\]@/?#]+)):(?P<port>[0-9]{1,5})")


def _is_host(host: object) -> bool:
    if not isinstance(host, str) or not 0 < len(host) <= 253:
        return False
    try:
        return "%" not in str(ipaddress.ip_address(host))
    except ValueError:
        labels = host.removesuffix(".").split(".")
        return all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def _is_login(value: object) -> bool:
    return value is None or (isinstance(value, str) and value != "" and value.isprintable())


_must = partial(must, error=ProxyError)
_HOST_ALLOWED = "a host name (ASCII), an IPv4 address or an IPv6 address without brackets"
_PORT = _must("a whole number from 1 to 65535", lambda port: is_whole(port) and 0 < port < 65_536)
_LOGIN = _must("non-empty printable text or None", _is_login)


@attrs.frozen(kw_only=True, init=False, repr=False)
class Proxy(OwnCopy):
    """The proxy that the service uses for a task.

    Its `repr` shows neither user nor password, and one with a password cannot be pickled.

    Source: docs/api/error-codes (`ERROR_PROXY_FORMAT`) names the form `type://user:pass@ip:port`. That the field is
    called `proxy` is inferred; the five fields are family: anti-captcha, not uCaptcha's own page.

    Attributes:
        scheme: `"http"`, `"https"`, `"socks4"` or `"socks5"`. Required. `"socks5h"` and `"socks4a"` are taken as
            `"socks5"` and `"socks4"`: the service names the protocol only.
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

    scheme: Scheme = attrs.field(validator=_must("http, https, socks4 or socks5", _SCHEMES.__contains__))
    host: str = attrs.field(validator=_must(_HOST_ALLOWED, _is_host))
    port: int = attrs.field(validator=_PORT)
    username: str | None = attrs.field(default=None, validator=_LOGIN, repr=False)
    password: str | None = attrs.field(default=None, validator=_LOGIN, repr=False)
    spelling: Spelling | None = attrs.field(
        default=None, validator=_must("'url', 'fields' or None", (*_SPELLINGS, None).__contains__)
    )

    def __init__(
        self,
        *,
        scheme: Scheme | Literal["socks4a", "socks5h"],
        host: str,
        port: int,
        username: str | None = None,
        password: str | None = None,
        spelling: Spelling | None = None,
    ) -> None:
        username, password = masked(username), masked(password)
        known: Any = _REMOTE_DNS.get(scheme, scheme) if isinstance(scheme, str) else scheme
        self.__attrs_init__(  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it
            scheme=known, host=host, port=port, username=username, password=password, spelling=spelling
        )
        if password is not None and username is None:
            raise ProxyError("username must be given with a password", field="username")

    @classmethod
    def parse(cls, url: str, *, spelling: Spelling | None = None) -> Self:
        """Read a proxy from a URL, or from the forms in which providers list them.

        The forms are `type://user:password@host:port`, the same without `type://`, and `host:port:user:password`.
        User and password may be left out, the port may not; the type is `http` where there is none. The last `@` ends
        the password, so it may hold any character; in the forms with `@`, `%40` stands for `@` and so on.

        Args:
            url: The text.
            spelling: How it is sent, see the class.

        Raises:
            ProxyError: It is none of these.
        """
        url = masked(url)
        if isinstance(url, str) and (trouble := white_space(url)) is not None:
            raise ProxyError(f"proxy must be {_ALLOWED}; got text {trouble}", field="proxy")
        parts = _parts(url)
        if parts is None:
            raise wrong("proxy", url, _ALLOWED, ProxyError)
        scheme, host, port, username, password = parts
        return cls(scheme=scheme, host=host, port=port, username=username, password=password, spelling=spelling)

    def without_password(self) -> Proxy:
        """The same proxy without its password, for what must not hold one."""
        return self if self.password is None else attrs.evolve(self, password=None)

    def to_url(self) -> str:
        """The proxy as a URL, password included: only what may not stand in a URL is percent-encoded."""
        login = "" if self.username is None else quote(self.username, safe=_LEGAL)
        if self.password is not None:
            login += f":{quote(self.password, safe=_LEGAL + ':')}"
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
            "proxyLogin": None if self.username is None else str(self.username),
            "proxyPassword": None if self.password is None else str(self.password),
        }
        return {name: value for name, value in fields.items() if value is not None}

    def encode_nested(self) -> str:
        """How the proxy is written inside another value."""
        return self.to_url()

    def __repr__(self) -> str:
        login = "***:***@" if self.password is not None else "***@" if self.username is not None else ""
        host = f"[{self.host}]" if ":" in str(self.host) else self.host  # it may be a wrong value that is being refused
        return f"Proxy({self.scheme}://{login}{host}:{self.port})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self.password is not None:
            raise TypeError("a Proxy with a password is not pickled; keep its URL where you keep secrets")
        state: dict[str, Any] = attrs.asdict(self)
        if self.username is not None:
            state["username"] = str(self.username)  # a secret is not pickled
        return partial(Proxy, **state), ()


def _parts(text: object) -> tuple[Any, str, int, str | None, str | None] | None:
    """Scheme, host, port, user and password of a proxy in one of its forms; `None` if it is in none."""
    if not isinstance(text, str) or not text.isprintable():
        return None
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else "http"
    rest = SecretStr(text[found.end() :].removesuffix("/")) if found else text
    if scheme not in (*_SCHEMES, *_REMOTE_DNS):
        return None
    login, _, address = map(SecretStr, rest.rpartition("@"))
    place = _ADDRESS.fullmatch(address)
    if place is not None:
        user, _, password = map(SecretStr, login.partition(":"))
        decoded = [_decoded(user), _decoded(password)]
        if None in decoded:
            return None
        return scheme, _host(place), int(place["port"]), decoded[0] or None, decoded[1] or None
    place = _ADDRESS.match(rest)
    if place is None or not rest[place.end() :].startswith(":"):
        return None
    user, _, password = map(SecretStr, rest[place.end() + 1 :].partition(":"))
    return scheme, _host(place), int(place["port"]), user or None, password or None


def _host(place: re.Match[str]) -> str:
    return (place["v6"] or place["name"]).lower()


def _decoded(text: str) -> SecretStr | None:
    """A user or a password, percent-decoded; `None` if that gives no text."""
    try:
        return SecretStr(unquote(text, errors="strict"))
    except UnicodeDecodeError:
        return None
