"""`ucaptcha doctor`: what a service says about itself, against servers made for it."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli_kit import KEY
from ucaptcha_async.cli.app import run
from ucaptcha_async.cli.exits import Exit
from ucaptcha_async.tasks.names import ALL

PRICES: dict[str, Any] = {"TurnstileTokenProxyLess": 0.003, "ImageToTextTask": 0.001, "SomethingNew": 0.5}


@contextmanager
def serving(
    *,
    table: object = {"pricesUsd": PRICES},
    status: int = 200,
    balance: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server on this machine: its address, and the bodies that it is sent."""
    heard: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, body: object) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response_only(status)
            for name, value in {"Date": formatdate(usegmt=True), **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            heard.append((self.path, ""))
            self._answer(status if self.path == "/x402/pricing" else 404, table)

        def do_POST(self) -> None:
            heard.append((self.path, self.rfile.read(int(self.headers["content-length"])).decode()))
            self._answer(200, balance or {"errorId": 0, "balance": 12.5})

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCAPTCHA_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "140")


def facts(capsys: pytest.CaptureFixture[str], url: str, code: int = Exit.DONE) -> Any:
    assert run(["doctor", "--json", "--base-url", url]) == code
    return json.loads(capsys.readouterr().out)


def test_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """The service's types beside ours, its balance, clock and limits."""
    limits = {"X-RateLimit-Limit": "10000", "X-RateLimit-Remaining": "9999", "X-RateLimit-Reset": "1"}
    with serving(headers=limits) as (url, _):
        assert run(["doctor", "--base-url", url]) == Exit.DONE
    shown = " ".join(capsys.readouterr().out.split())

    assert f"Service {url} answers with HTTP/1.1" in shown
    assert "Balance USD 12.50" in shown
    assert "x-ratelimit-limit 10000, x-ratelimit-remaining 9999" in shown
    assert "Turnstile │ no │ TurnstileTokenProxyLess │ 0.00300 │ 0" in shown
    assert "Turnstile │ yes │ none of 2 │" in shown
    assert "no class here: SomethingNew 0.50" in shown
    assert all(kind.kind in shown for kind in ALL)


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Money is text, and all names are there, in the order in which they are tried."""
    with serving() as (url, _):
        found = facts(capsys, url)
    (row,) = (row for row in found["types"] if row["kind"] == "Turnstile" and not row["proxied"])

    assert found["balance"] == "12.5"
    assert found["url"] == url
    assert (row["listed"], row["price"]) == ("TurnstileTokenProxyLess", "0.003")
    assert row["names"] == ["TurnstileTokenProxyLess", "TurnstileTaskProxyless", "AntiTurnstileTaskProxyLess"]
    assert found["other_types"] == {"SomethingNew": "0.5"}
    assert found["service"]["tls"] is None
    assert {"python", "ucaptcha_async", "httpx", "anyio", "openssl"} <= found["versions"].keys()


def test_the_key_goes_to_the_account_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """The public table is asked for without it, nothing is submitted, and it is not shown."""
    with serving() as (url, heard):
        facts(capsys, url)
        run(["doctor", "--base-url", url.replace("://", "://user:hidden@") + "/?token=hidden"])
        said = capsys.readouterr()

    assert [path for path, _ in heard[:2]] == ["/x402/pricing", "/getBalance"]
    assert KEY not in heard[0][1]
    assert KEY not in said.out + said.err
    assert "hidden" not in said.out + said.err


@pytest.mark.parametrize("ahead", [-90, 0, 3600])
def test_the_clock(capsys: pytest.CaptureFixture[str], ahead: int) -> None:
    """How far it is from this machine's, and how far that may be wrong."""
    with serving(headers={"Date": formatdate(time.time() + ahead, usegmt=True)}) as (url, _):
        service = facts(capsys, url)["service"]

    assert abs(service["clock_ahead"] - ahead) <= service["clock_error"] + 5  # a slow machine
    assert service["clock_error"] >= 0.5


def test_a_date_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """It is not made up."""
    with serving(headers={"Date": "yesterday"}) as (url, _):
        assert facts(capsys, url)["service"]["clock_ahead"] is None
        run(["doctor", "--base-url", url])

    assert "does not tell its time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "status"),
    [
        ({"pricesUsd": PRICES}, 404),
        (b"<html>", 200),
        ([], 200),
        ({"pricesUsd": None}, 200),
        (b"[" * 100_000, 200),
        (b'"' + b"x" * 2_000_000 + b'"', 200),
    ],
)
def test_a_service_without_such_a_table(capsys: pytest.CaptureFixture[str], table: object, status: int) -> None:
    """Other services have none: that is no fault, and the rest is shown."""
    with serving(table=table, status=status) as (url, _):
        assert facts(capsys, url)["service"]["prices"] is None
        assert run(["doctor", "--base-url", url]) == Exit.DONE
    shown = capsys.readouterr().out

    assert f"no public table of types and prices (HTTP {status})" in shown
    assert "12.50" in shown


def test_a_table_that_makes_little_sense(capsys: pytest.CaptureFixture[str]) -> None:
    """What is no price is left out, and no escape sequence reaches the terminal."""
    odd = {"A": "1", "B": -1, "C": True, "D": None, "E": 1e300, "F\x1b[2J\nG": 0.25, "H": [1], "TurnstileToken": 0}
    with serving(table={"pricesUsd": odd}) as (url, _):
        found = facts(capsys, url)
        run(["doctor", "--base-url", url])

    assert list(found["service"]["prices"]) == ["F�[2J G", "TurnstileToken"]
    assert "\x1b[2J" not in capsys.readouterr().out


def test_without_a_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the balance."""
    monkeypatch.delenv("UCAPTCHA_API_KEY")
    with serving() as (url, heard):
        found = facts(capsys, url)

    assert found["balance"] is None
    assert found["account"].startswith("no API key")
    assert found["service"]["prices"]["ImageToTextTask"] == "0.001"
    assert len(heard) == 1


def test_a_key_that_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It says so, shows the rest, and ends as any command does then."""
    refusal = {"errorId": 1, "errorCode": "ERROR_KEY_DOES_NOT_EXIST", "errorDescription": f"no key {KEY}"}
    with serving(balance=refusal) as (url, _):
        found = facts(capsys, url, Exit.ACCOUNT)

    assert "the API key is refused" in found["account"]
    assert KEY not in json.dumps(found)
    assert found["service"]["status"] == 200


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    """It cannot be reached: why, and the names that are known here."""
    with serving() as (url, _):
        pass
    found = facts(capsys, url, Exit.SERVICE)
    assert found["service"] is None
    assert found["trouble"].startswith("ConnectError")
    assert all(row["listed"] is None for row in found["types"])

    assert run(["doctor", "--base-url", url]) == Exit.SERVICE
    assert f"{url} cannot be reached: ConnectError" in capsys.readouterr().out


def test_an_address_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Is found before anything is sent."""
    assert run(["doctor", "--base-url", "ftp://example.com"]) == Exit.USAGE
    assert "base_url must be" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_tls(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its version, its cipher, and who made the certificate until when."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "7", "-subj", "/O=A Test Authority"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command + names, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(context=context) as (url, _):
        found = facts(capsys, url)
        run(["doctor", "--base-url", url])

    tls = found["service"]["tls"]
    assert tls["version"].startswith("TLSv1.")
    assert tls["issuer"] == "A Test Authority"
    assert tls["expires"].endswith("GMT")
    assert "SSL_CERT_FILE" in found["environment"]
    assert found["balance"] == "12.5"
    assert "certificate by A Test Authority" in capsys.readouterr().out
