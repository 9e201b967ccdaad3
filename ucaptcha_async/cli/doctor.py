"""`ucaptcha doctor`: what a service says about itself, beside what is known here. Fit for a bug report: no secrets."""

from __future__ import annotations

import importlib.metadata
import json as json_module
import os
import platform
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import anyio
import attrs
import httpx
from rich.table import Table

from ucaptcha_async.checks import split_url
from ucaptcha_async.client import BASE_URL
from ucaptcha_async.errors import ConfigurationError, UCaptchaError
from ucaptcha_async.secrecy import redact
from ucaptcha_async.tasks.names import ALL, Names

from .connection import Connection, JsonFlag
from .exits import CommandError, Exit, exit_code
from .output import money, note, one_line, result_console, say, say_json

PRICES = "/x402/pricing"
"""Where the service's public table of types and prices is; it needs no key. Source: docs/features/x402-payments."""

TIMEOUT = 15.0
_LARGEST = 1_000_000  # bytes of an answer that are read
_MOST_TYPES = 500
_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


def doctor(*, json: JsonFlag = False, connection: Connection | None = None) -> int:
    """Look at the service: its public table of types and prices beside the names known here, balance, clock and TLS.

    Nothing is solved and nothing is charged. The output holds no key and no password, so it can go into a bug report.
    Without an API key, all is shown but the balance.
    """
    report = anyio.run(_examine, connection or Connection())
    if json:
        say_json(report.as_json())
    else:
        _show(report)
    return report.code


@attrs.frozen(kw_only=True)
class Answer:
    """What the service says without being given a key.

    Attributes:
        status: The HTTP status.
        version: The HTTP version.
        prices: USD by type; `None` if there is no such table.
        clock_ahead: Seconds that the service's clock is ahead of this machine's; `None` if it does not say.
        clock_error: Seconds by which that may be wrong.
        rate_limit: What the headers say of the rate limit.
        tls: The connection's TLS; `None` without.
    """

    status: int
    version: str
    prices: Mapping[str, Decimal] | None
    clock_ahead: float | None
    clock_error: float
    rate_limit: Mapping[str, str]
    tls: Mapping[str, object] | None


@attrs.frozen(kw_only=True)
class Report:
    """All that was found out.

    Attributes:
        url: Where the service is.
        answer: What it says to all; or in `trouble`, why there is no answer.
        balance: USD; or in `account`, why it is not known.
        code: How the command ends.
    """

    url: str
    answer: Answer | None
    trouble: str | None
    balance: Decimal | None
    account: str | None
    code: Exit

    def as_json(self) -> dict[str, object]:
        """As plain values; money is text."""
        prices = self.answer.prices if self.answer else None
        return {
            "versions": dict(_versions()),
            "environment": _variables(),
            "url": self.url,
            "service": None if self.answer is None else attrs.asdict(self.answer),
            "trouble": self.trouble,
            "balance": self.balance,
            "account": self.account,
            "types": [row.as_json() for row in _rows(prices or {})],
            "other_types": _others(prices or {}),
        }


async def _examine(connection: Connection) -> Report:
    url = connection.base_url or BASE_URL
    split_url("base_url", url, ConfigurationError)
    answer, trouble = None, None
    try:
        with anyio.fail_after(TIMEOUT):
            answer = await _ask(url.rstrip("/"))
    except (httpx.HTTPError, OSError) as error:  # a timeout is an OSError
        trouble = f"{type(error).__name__}: {redact(str(error), ())}".rstrip(": ")
    balance, account, code = await _balance(connection)
    return Report(
        url=_public(url),
        answer=answer,
        trouble=trouble,
        balance=balance,
        account=account,
        code=Exit.SERVICE if answer is None else code,
    )


async def _ask(url: str) -> Answer:
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        began, sent = time.time(), time.perf_counter()
        async with client.stream("GET", url + PRICES) as response:
            took = time.perf_counter() - sent
            stream = response.extensions.get("network_stream")
            tls = None if stream is None else stream.get_extra_info("ssl_object")
            facts = None if tls is None else _tls(tls)
            content = b""
            async for part in response.aiter_bytes():
                content += part
                if len(content) > _LARGEST:
                    break
    date = _date(response.headers.get("date"))
    return Answer(
        status=response.status_code,
        version=response.http_version,
        prices=_prices(content) if response.is_success else None,
        # The header has whole seconds, and nobody knows when between request and answer it was written.
        clock_ahead=None if date is None else round(date + 0.5 - (began + took / 2), 1),
        clock_error=round(0.5 + took / 2, 1),
        rate_limit={name: one_line(value)[:100] for name, value in _limits(response.headers)},
        tls=facts,
    )


async def _balance(connection: Connection) -> tuple[Decimal | None, str | None, Exit]:
    try:
        async with connection.client() as client:
            return await client.get_balance(), None, Exit.DONE
    except CommandError as error:
        if connection.api_key_file is not None:
            raise
        return None, str(error), Exit.DONE
    except ConfigurationError:
        raise
    except UCaptchaError as error:
        return None, str(error), exit_code(error)


def _prices(content: bytes) -> Mapping[str, Decimal] | None:
    """The table of an answer, as far as it makes sense."""
    try:
        body = json_module.loads(content, parse_float=Decimal, parse_int=Decimal)
    except (ValueError, RecursionError):
        return None
    table = body.get("pricesUsd") if isinstance(body, dict) else None
    if not isinstance(table, dict):
        return None
    good = {one_line(name)[:100]: price for name, price in table.items() if _is_price(price)}
    return dict(list(good.items())[:_MOST_TYPES])


def _is_price(value: object) -> bool:
    return isinstance(value, Decimal) and value.is_finite() and 0 <= value < 1_000 and value.adjusted() > -12


def _date(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError):
        return None


def _limits(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in headers.items():
        if name.lower().startswith("x-ratelimit-") or name.lower() == "retry-after":
            yield name.lower(), value


def _tls(tls: ssl.SSLObject) -> Mapping[str, object]:
    certificate: Any = tls.getpeercert() or {}
    issuer = dict(pair[0] for pair in certificate.get("issuer", ()))
    cipher = tls.cipher()
    return {
        "version": tls.version(),
        "cipher": cipher[0] if cipher else None,
        "issuer": one_line(issuer.get("organizationName") or issuer.get("commonName") or "")[:100],
        "expires": certificate.get("notAfter"),
    }


def _public(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_implementation()} {platform.python_version()}"
    yield "platform", f"{sys.platform} {platform.machine()}"
    yield "openssl", ssl.OPENSSL_VERSION
    for package in ("ucaptcha_async", "httpx", "anyio", "trio", "httptools", "h11"):
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def _variables() -> list[str]:
    """Which variables that change connections are set; not what to."""
    return [name for name in _VARIABLES if os.environ.get(name) or os.environ.get(name.lower())]


# --- our names beside theirs ------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Row:
    """The names of one kind, with or without a proxy, and the one of them that the service lists.

    Attributes:
        kind: The kind of task.
        proxied: Whether it is for tasks with a proxy; `None` if that makes no difference.
        names: Our names, in the order in which they are tried.
        listed: The first of them that the service lists, if it lists any.
        price: Its price, USD.
    """

    kind: str
    proxied: bool | None
    names: tuple[str, ...]
    listed: str | None
    price: Decimal | None

    def as_json(self) -> dict[str, object]:
        """As plain values."""
        return attrs.asdict(self)


def _rows(prices: Mapping[str, Decimal]) -> Iterator[Row]:
    known: dict[tuple[str, bool | None], dict[str, None]] = {}
    for kind in ALL:
        for proxied, names in _variants(kind):
            known.setdefault((kind.kind, proxied), {}).update(dict.fromkeys(names))
    for (kind_name, proxied), ours in known.items():
        listed = next((name for name in ours if name in prices), None)
        price = None if listed is None else prices[listed]
        yield Row(kind=kind_name, proxied=proxied, names=tuple(ours), listed=listed, price=price)


def _variants(kind: Names) -> Iterator[tuple[bool | None, tuple[str, ...]]]:
    if kind.bare is kind.proxied:
        yield None, tuple(name.type for name in kind.bare)
        return
    for proxied in (False, True):
        yield proxied, tuple(name.type for name in kind.choose(proxied))


def _others(prices: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """What the service lists and no class here has."""
    ours = {name for row in _rows({}) for name in row.names}
    return {name: price for name, price in prices.items() if name not in ours}


# --- for people -------------------------------------------------------------------------------------------------------


def _show(report: Report) -> None:
    for label, text in _lines(report):
        say(f"{label:<12}{text}")
    if report.answer is None or report.answer.prices is None:
        return
    console = result_console()
    console.print(_table(report.answer.prices))
    others = _others(report.answer.prices)
    if others:
        listed = ", ".join(f"{name} {money(price)}" for name, price in others.items())
        say(f"Listed, and no class here: {listed} (solve them with Task)")
    note("a price is what the service asks for a single paid call at most; a solve with an API key costs less")


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    versions = dict(_versions())
    yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    if _variables():
        yield "Environment", f"set: {', '.join(_variables())}"
    if report.answer is None:
        yield "Service", f"{report.url} cannot be reached: {one_line(report.trouble or '')}"
    else:
        yield "Service", f"{report.url} answers with {report.answer.version}"
        yield from _about(report.answer)
    if report.balance is not None:
        yield "Balance", f"USD {money(report.balance)}"
    else:
        yield "Balance", f"not known: {one_line(report.account or '')}"


def _about(answer: Answer) -> Iterator[tuple[str, str]]:
    if answer.clock_ahead is None:
        yield "Clock", "the service does not tell its time"
    else:
        apart = f"{abs(answer.clock_ahead):.1f} s {'ahead of' if answer.clock_ahead >= 0 else 'behind'}"
        yield "Clock", f"the service's is {apart} this one (± {answer.clock_error:.1f} s)"
    limits = ", ".join(f"{name} {value}" for name, value in answer.rate_limit.items())
    yield "Rate limit", limits or "no headers about it"
    tls = answer.tls
    if tls is None:
        yield "TLS", "none: the address begins with http://"
    else:
        issuer = tls["issuer"] or "nobody named"
        yield "TLS", f"{tls['version']}, {tls['cipher']}; certificate by {issuer}, to {tls['expires']}"
    if answer.prices is None:
        yield "Types", f"no public table of types and prices (HTTP {answer.status})"


def _table(prices: Mapping[str, Decimal]) -> Table:
    table = Table("Kind", "Proxy", "Type that the service lists", "USD", "Tried\nbefore")
    table.columns[2].overflow = "fold"  # a name that is cut off is of no use
    table.columns[3].justify = table.columns[4].justify = "right"
    words = {None: "–", False: "no", True: "yes"}
    for row in _rows(prices):
        proxy = words[row.proxied]
        if row.listed is None or row.price is None:
            table.add_row(row.kind, proxy, f"none of {len(row.names)}", "", "")
        else:
            table.add_row(row.kind, proxy, row.listed, money(row.price, 5), str(row.names.index(row.listed)))
    return table
