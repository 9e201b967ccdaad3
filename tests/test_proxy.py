"""Proxies: read from URLs or fields, written as the service names them, never shown."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucaptcha_async.errors import ProxyError
from ucaptcha_async.tasks.proxy import Proxy

GOOD = [
    ("http://host:1", ("http", "host", 1, None, None)),
    ("https://proxy.example.com:65535", ("https", "proxy.example.com", 65535, None, None)),
    ("socks4://10.0.0.1:1080", ("socks4", "10.0.0.1", 1080, None, None)),
    ("socks5://user:pass@[2001:db8::1]:1080", ("socks5", "2001:db8::1", 1080, "user", "pass")),
    ("http://user@host:80", ("http", "host", 80, "user", None)),
    ("http://u%40x%3A:p:%2F%20%25@host:80", ("http", "host", 80, "u@x:", "p:/ %")),
    ("http://u!$&'()*+,;=:-._~!$&'()*+,;=:@host:80", ("http", "host", 80, "u!$&'()*+,;=", "-._~!$&'()*+,;=:")),
    ("http://us_er-1:p@under_score.example.com.:80", ("http", "under_score.example.com.", 80, "us_er-1", "p")),
    ("http://user:%C3%A9@host:80", ("http", "host", 80, "user", "é")),
]


@pytest.mark.parametrize(("url", "parts"), GOOD)
def test_a_url_is_read_and_written_back(url: str, parts: tuple[Any, ...]) -> None:
    """Parsing decodes, writing encodes, and the service's spelling is one URL."""
    proxy = Proxy.parse(url)

    assert parts == (proxy.scheme, proxy.host, proxy.port, proxy.username, proxy.password)
    assert url == proxy.to_url()
    assert {"proxy": url} == proxy.to_wire()


def test_spellings_of_one_proxy_are_equal() -> None:
    """Case of scheme and host, a final slash and an empty login make no difference."""
    plain = Proxy(scheme="http", host="host", port=80)

    for url in ("HTTP://HOST:80", "http://host:80/", "http://@host:80", "http://:@host:80"):
        assert plain == Proxy.parse(url)
    assert len({plain, Proxy.parse("http://host:80")}) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "//host:80",
        "ftp://host:80",
        "http://host",
        "http://host:",
        "http://:80",
        "http://host:port",
        "http://host:-1",
        "http://host:80/path",
        "http://host:80?query=1",
        "http://host:80#top",
        "http://[2001:db8::1:80",
        "http://2001:db8::1:80",
        "http://[::1",
        "http://user:%FFs3cret@host:80",
        " http://host:80",
        "http://ho st:80",
        "http://host:80\n",
        None,
        7,
        b"http://host:80",
        "user:s3cret:host:80",
        "host:port:user:s3cret",
        "http://[host]:80",
        "ftp://host:80:user:s3cret",
    ],
)
def test_what_is_no_proxy_url_is_refused(url: Any) -> None:
    """The error shows the form that is allowed, and nothing of what was given."""
    with pytest.raises(ProxyError, match="proxy must be a URL type://user:password@host:port") as caught:
        Proxy.parse(url)

    assert "s3cret" not in str(caught.value)
    assert caught.value.field == "proxy"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("scheme", value) for value in ("", "HTTP", "ftp", None, 1)],
        *[
            ("host", value)
            for value in ("", "a b", "a/b", "a@b", "a:1", "[::1]", "-a", "a..b", "300.1.1.1", "1.2.3", "ü.de", None, 7)
        ],
        *[("host", value) for value in ("fe80::1%eth0", "a" * 64, "a." * 127 + "a")],
        *[("port", value) for value in (0, -1, 65_536, "80", 80.0, True, None)],
        *[("username", value) for value in ("", "a\nb", 7, b"u")],
        *[("password", value) for value in ("", "a\nb", 7, b"p", "\ud800")],
        *[("spelling", value) for value in ("", "URL", 1)],
    ],
)
def test_a_wrong_field_is_refused(field: str, value: Any) -> None:
    """Each field is checked at construction and named in the error."""
    good: dict[str, Any] = {"scheme": "http", "host": "host", "port": 80, "username": "u", "password": "p"}

    with pytest.raises(ProxyError, match=f"^{field} must be") as caught:
        Proxy(**{**good, field: value})

    assert field == caught.value.field


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("host:80", "http://host:80"),
        ("user:pass@host:80", "http://user:pass@host:80"),
        ("user@host:80", "http://user@host:80"),
        ("10.0.0.1:80:user:pass", "http://user:pass@10.0.0.1:80"),
        ("10.0.0.1:80:user:a:b@c/d#e?f%41", "http://user:a:b%40c%2Fd%23e%3Ff%2541@10.0.0.1:80"),
        ("[2001:db8::1]:80:user:pass", "http://user:pass@[2001:db8::1]:80"),
        ("socks5://host:80:user:pass", "socks5://user:pass@host:80"),
        ("socks5h://user:pass@host:80", "socks5://user:pass@host:80"),
        ("SOCKS5H://host:80", "socks5://host:80"),
        ("socks4a://host:80", "socks4://host:80"),
        ("http://user:a/b#c?d@e@host:80", "http://user:a%2Fb%23c%3Fd%40e@host:80"),
        ("http://user:100%sure@host:80/", "http://user:100%25sure@host:80"),
    ],
)
def test_the_forms_in_which_providers_list_proxies(text: str, url: str) -> None:
    """Each is read, and sent as the one URL that the service takes."""
    assert Proxy.parse(text).to_wire() == {"proxy": url}
    assert Proxy.parse(text) == Proxy.parse(url)


def test_a_scheme_with_names_looked_up_at_the_proxy_is_taken_without_that() -> None:
    """The constructor takes the spellings of clients, too."""
    assert Proxy(scheme="socks5h", host="host", port=1).scheme == "socks5"
    assert Proxy(scheme="socks4a", host="host", port=1).scheme == "socks4"


@pytest.mark.parametrize(
    ("text", "where"), [(" h:1", "before"), ("h:1\n", "after"), ("http://u:p s3cret@h:1", "inside")]
)
def test_white_space_is_named_as_the_trouble(text: str, where: str) -> None:
    """What was copied with a line's end is not called a wrong URL only."""
    with pytest.raises(ProxyError, match=f"got text with white space {where} it") as caught:
        Proxy.parse(text)

    assert "s3cret" not in str(caught.value)


def test_a_proxy_without_its_password() -> None:
    """All else stays; one that has none is itself."""
    proxy = Proxy.parse("http://user:s3cret@host:80", spelling="fields")

    assert proxy.without_password() == Proxy.parse("http://user@host:80", spelling="fields")
    assert proxy.without_password().without_password() is not proxy


def test_port_zero_in_a_url_names_the_port() -> None:
    """0 is a number, but no port."""
    with pytest.raises(ProxyError, match="port must be a whole number from 1 to 65535; got int 0"):
        Proxy.parse("http://host:0")
    with pytest.raises(ProxyError, match="port must be a whole number from 1 to 65535; got int 65536"):
        Proxy.parse("http://host:65536")


def test_a_password_needs_a_user() -> None:
    """A password alone is a mistake."""
    with pytest.raises(ProxyError, match="username must be given"):
        Proxy(scheme="http", host="host", port=80, password="p")
    with pytest.raises(ProxyError, match="username must be given"):
        Proxy.parse("http://:p@host:80")


def test_the_five_fields_of_the_family() -> None:
    """`spelling="fields"` sends five fields, without those that are not given, and no brackets."""
    proxy = Proxy.parse("socks5://u:p%40@[::1]:1080", spelling="fields")

    assert proxy.to_wire() == {
        "proxyType": "socks5",
        "proxyAddress": "::1",
        "proxyPort": 1080,
        "proxyLogin": "u",
        "proxyPassword": "p@",
    }
    assert Proxy.parse("http://host:1", spelling="fields").to_wire() == {
        "proxyType": "http",
        "proxyAddress": "host",
        "proxyPort": 1,
    }


def test_neither_user_nor_password_is_shown() -> None:
    """`repr`, `str` and the fields that tools show by themselves hide the login."""
    proxy = Proxy.parse("http://us3r:s3cret@host:80")

    assert repr(proxy) == str(proxy) == "Proxy(http://***:***@host:80)"
    assert repr(Proxy.parse("http://us3r@[::1]:80")) == "Proxy(http://***@[::1]:80)"
    assert repr(Proxy.parse("http://host:80")) == "Proxy(http://host:80)"
    assert [f.name for f in attrs.fields(Proxy) if not f.repr] == ["username", "password"]


def test_no_traceback_shows_the_password() -> None:
    """No frame that an error leaves through shows it, and there is no inner error that quotes it."""
    attempts: list[Callable[[], Proxy]] = [
        lambda: Proxy.parse("http://user:s3cret@host:s3cret"),
        lambda: Proxy.parse("http://user:s3cret@host:0"),
        lambda: Proxy(scheme="http", host="", port=1, username="u", password="s3cret"),
        lambda: Proxy(scheme="http", hots="h", port=1, username="u", password="s3cret"),  # type: ignore[call-arg]
    ]
    for make in attempts:
        with pytest.raises((ProxyError, TypeError)) as caught:
            make()
        report = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        inside = [frame for frame in report.stack if not frame.filename.endswith("test_proxy.py")]
        assert inside or isinstance(caught.value, TypeError)
        assert "s3cret" not in "".join(str(frame.locals) for frame in inside) + str(report)
        assert caught.value.__context__ is None


def test_pickling_a_password_is_refused() -> None:
    """Without a password a proxy can be pickled; a copy of something frozen is itself."""
    secret, plain = Proxy.parse("http://user:s3cret@host:80"), Proxy.parse("http://user@host:80")

    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    assert plain == pickle.loads(pickle.dumps(plain))
    assert secret is copy.copy(secret)
    assert secret is copy.deepcopy(secret)


printable = st.text(min_size=1, max_size=30).filter(str.isprintable)


@given(username=printable, password=printable, host=st.sampled_from(["h", "a.b-c.example", "1.2.3.4", "::1"]))
def test_any_login_survives_the_way(username: str, password: str, host: str) -> None:
    """Whatever characters user and password have, the URL reads back the same."""
    proxy = Proxy(scheme="http", host=host, port=80, username=username, password=password)

    assert proxy == Proxy.parse(proxy.to_url())
    assert proxy.to_url().isascii()
