"""One answer of HTTP/1.1, byte by byte: what is taken, what is refused, and what is left behind. For both parsers."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transport_kit import OK, response
from ucaptcha_async.transport.exchange import MAX_BODY
from ucaptcha_async.transport.parser import (
    CUT_OFF,
    DAMAGED,
    ENDLESS,
    LARGE_HEAD,
    MALFORMED,
    MAX_HEAD,
    NO_ANSWER,
    TOO_LARGE,
    Parser,
)
from ucaptcha_async.transport.with_h11 import H11Parser
from ucaptcha_async.transport.with_httptools import HttptoolsParser

BODY = b'{"errorId":0,"balance":1.5}'
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

parsers = pytest.mark.parametrize("make", [HttptoolsParser, H11Parser])
Make = Callable[[], Parser]


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def in_bytes(data: bytes) -> Iterator[bytes]:
    for index in range(len(data)):
        yield data[index : index + 1]


def at_the_last_byte(data: bytes) -> Iterator[bytes]:
    yield data[:-1]
    yield data[-1:]


cuts = pytest.mark.parametrize("cut", [whole, in_bytes, at_the_last_byte])


def read(parser: Parser, data: bytes, cut: Callable[[bytes], Iterator[bytes]] = whole) -> Parser:
    """Feed an answer, and the end of the connection if it needs that."""
    over = any(parser.feed(piece) for piece in cut(data) if piece) or parser.feed(b"")
    assert over
    if parser.failure is None:
        parser.finish()
    return parser


TAKEN = {
    "a length": (response(BODY), True),
    "names in any case": (OK + b"CONTENT-length: %d\r\nconTent-TYPE: a\r\n\r\n%b" % (len(BODY), BODY), True),
    "chunks": (CHUNKED + b"10\r\n%b\r\nb\r\n%b\r\n0\r\n\r\n" % (BODY[:16], BODY[16:]), True),
    "chunks with extensions and trailers": (
        CHUNKED + b'1b;name=value;other="x"\r\n%b\r\n0;last\r\nX-Trailer: 1\r\nDate: odd\r\n\r\n' % BODY,
        True,
    ),
    "HTTP/1.0 to its end": (b"HTTP/1.0 200 OK\r\n\r\n" + BODY, False),
    "HTTP/1.0 with a length": (b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY), False),
    "HTTP/1.1 to its end": (OK + b"\r\n" + BODY, False),
    "close": (response(BODY, b"Connection: close"), False),
    "an interim answer": (b"HTTP/1.1 100 Continue\r\n\r\n" + response(BODY), True),
    "white space behind values": (
        OK + b"Transfer-Encoding: chunked \r\nContent-Type: a \t\r\n\r\n1b\r\n%b\r\n0\r\n\r\n" % BODY,
        True,
    ),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\nDate: odd\r\n\r\n" * 3 + response(BODY), True),
    "no reason": (response(BODY, status=b"200"), True),
    "gzip": (response(gzip.compress(BODY), b"Content-Encoding: gzip"), True),
    "gzip in members": (
        response(gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), b"Content-Encoding: GZIP"),
        True,
    ),
    "deflate": (response(zlib.compress(BODY), b"Content-Encoding: deflate"), True),
    "raw deflate": (response(zlib.compress(BODY, wbits=-15), b"Content-Encoding: deflate"), True),
    "identity": (response(BODY, b"Content-Encoding: identity"), True),
    "gzip, filled up": (response(gzip.compress(BODY) + bytes(100), b"Content-Encoding: gzip"), True),
}


@parsers
@cuts
@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken(make: Make, cut: Callable[[bytes], Iterator[bytes]], name: str) -> None:
    """Each form of an answer gives the same body, and says whether the connection is fit for another request."""
    data, reusable = TAKEN[name]

    parser = read(make(), data, cut)

    assert (None, 200, BODY) == (parser.failure, parser.status, parser.content)
    assert (reusable, False) == (parser.reusable, parser.extra)
    assert "odd" not in parser.headers.values()


@parsers
@cuts
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_no_body(make: Make, cut: Callable[[bytes], Iterator[bytes]], status: bytes) -> None:
    """Some answers have none, whatever they say."""
    parser = read(make(), b"HTTP/1.1 " + status + b"\r\nDate: now\r\n\r\n", cut)

    assert (None, b"", True) == (parser.failure, parser.content, parser.reusable)
    assert int(status[:3]) == parser.status
    assert {"date": "now"} == parser.headers


@parsers
def test_an_empty_body(make: Make) -> None:
    """A length of zero ends with the head; so do empty chunks."""
    for data in (response(b""), CHUNKED + b"0\r\n\r\n", response(b"", b"Content-Encoding: gzip")):
        parser = read(make(), data)
        assert (None, b"", True) == (parser.failure, parser.content, parser.reusable)


def gzipped_bomb() -> bytes:
    return response(gzip.compress(bytes(400 * MAX_BODY)), b"Content-Encoding: gzip")


REFUSED = {
    "nothing": (b"", NO_ANSWER),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", MALFORMED),
    "a request": (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", MALFORMED),
    "HTTP/2": (b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", MALFORMED),
    "a folded header": (OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n", MALFORMED),
    "a folded interim header": (b"HTTP/1.1 103 E\r\nA: b\r\n\tc\r\n\r\n" + response(b""), MALFORMED),
    "a space before the colon": (OK + b"A : b\r\nContent-Length: 0\r\n\r\n", MALFORMED),
    "a zero byte": (OK + b"A: b\0c\r\nContent-Length: 0\r\n\r\n", MALFORMED),
    "length and chunks": (OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", MALFORMED),
    "chunks and length": (OK + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", MALFORMED),
    "two lengths": (OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", MALFORMED),
    "a signed length": (OK + b"Content-Length: +3\r\n\r\nabc", MALFORMED),
    "a length in words": (OK + b"Content-Length: three\r\n\r\nabc", MALFORMED),
    "another transfer coding": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", MALFORMED),
    "no number of a chunk": (CHUNKED + b"xyz\r\nabc\r\n0\r\n\r\n", MALFORMED),
    "an upgrade": (b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", MALFORMED),
    "a head cut off": (OK + b"Content-Le", CUT_OFF),
    "a body cut off": (response(BODY)[:-1], CUT_OFF),
    "chunks cut off": (CHUNKED + b"3\r\nabc\r\n", CUT_OFF),
    "only interim": (b"HTTP/1.1 100 Continue\r\n\r\n", CUT_OFF),
    "endless interim answers": (b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000, ENDLESS),
    "a large head": (OK + b"A: %b\r\nContent-Length: 0\r\n\r\n" % (b"a" * MAX_HEAD), LARGE_HEAD),
    "many headers": (OK + b"A: b\r\n" * 20_000 + b"Content-Length: 0\r\n\r\n", LARGE_HEAD),
    "an endless head": (OK + b"A: b\r\n" * 100_000, LARGE_HEAD),
    "a large body": (response(b" " * (MAX_BODY + 1)), TOO_LARGE),
    "a large body in chunks": (CHUNKED + b"8000\r\n%b\r\n" % (b" " * 0x8000) * 33 + b"0\r\n\r\n", TOO_LARGE),
    "a large body to its end": (OK + b"\r\n" + b" " * (MAX_BODY + 1), TOO_LARGE),
    "endless trailers": (CHUNKED + b"0\r\n" + b"A: b\r\n" * 10**6, TOO_LARGE),
    "a bomb": (gzipped_bomb(), TOO_LARGE),
    "damaged gzip": (response(b"not gzip", b"Content-Encoding: gzip"), DAMAGED),
    "gzip cut off": (response(gzip.compress(BODY)[:-9], b"Content-Encoding: gzip"), DAMAGED),
    "gzip in endless pieces": (response(gzip.compress(b"") * 50_000, b"Content-Encoding: gzip"), DAMAGED),
    "gzip and more": (response(gzip.compress(BODY) + b"more", b"Content-Encoding: gzip"), DAMAGED),
    "damaged deflate": (response(b"\xff\xff\xff", b"Content-Encoding: deflate"), DAMAGED),
}


def in_pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 60_000):
        yield data[start : start + 60_000]


@parsers
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(make: Make, name: str) -> None:
    """The failure says what was wrong in our own words."""
    data, failure = REFUSED[name]
    parser = make()

    read(parser, data, in_pieces)

    refusals = {failure} | ({MALFORMED} if name in ("an endless head", "many headers", "endless trailers") else set())
    assert parser.failure in refusals
    assert parser.content == b""


@parsers
def test_the_largest_that_are_taken(make: Make) -> None:
    """A body of exactly the bound, and a head just below it."""
    assert MAX_BODY == len(read(make(), response(b" " * MAX_BODY), in_pieces).content)
    packed = response(gzip.compress(b" " * MAX_BODY), b"Content-Encoding: gzip")
    assert MAX_BODY == len(read(make(), packed).content)
    head = OK + b"A: %b\r\nContent-Length: 0\r\n\r\n" % (b"a" * (MAX_HEAD - 100))
    assert read(make(), head).failure is None


EXTRA = [b"X", b"\r\n", b"\n", b"\0", response(BODY), response(BODY)[:5], b"HTTP/1.1 100 Continue\r\n\r\n"]


@parsers
@pytest.mark.parametrize("more", EXTRA)
@pytest.mark.parametrize(
    "data", [response(BODY), response(BODY, b"Connection: close"), CHUNKED + b"1b\r\n%b\r\n0\r\n\r\n" % BODY]
)
def test_bytes_behind_the_answer(make: Make, data: bytes, more: bytes) -> None:
    """They are noticed however they come, and the answer before them is whole."""
    for cut in (whole, at_the_last_byte):
        parser = read(make(), data + more, cut)
        if cut is whole or len(more) > 1:
            assert parser.extra
        assert (None, BODY) == (parser.failure, parser.content)


@parsers
def test_one_after_the_other(make: Make) -> None:
    """A parser reads what a connection carries, whatever form each answer has."""
    parser = make()
    forms = [name for name, (_, reusable) in TAKEN.items() if reusable]
    for number, name in enumerate(random.Random(1).choices(forms, k=50)):
        if number:
            parser.begin()
        read(parser, TAKEN[name][0])
        assert (None, BODY, True) == (parser.failure, parser.content, parser.reusable)


@parsers
def test_the_headers_that_matter(make: Make) -> None:
    """Names in lower case; all others are left out."""
    lines = [b"X-RateLimit-Remaining: 7", b"RETRY-AFTER: 3", b"Date: Thu", b"Server: s", b"Set-Cookie: a=b"]
    parser = read(make(), response(BODY, *lines))

    kept = {"x-ratelimit-remaining": "7", "retry-after": "3", "date": "Thu", "content-type": "application/json"}
    assert kept | {"content-length": "27"} == parser.headers


@given(st.binary(max_size=300), st.randoms(use_true_random=False))
def test_noise_breaks_nothing(noise: bytes, rng: random.Random) -> None:
    """Whatever comes, a parser says that the answer is over or that it waits, and raises nothing. Where both parsers
    take an answer, they read the same."""
    good = rng.choice(list(TAKEN.values()))[0]
    at = rng.randrange(len(good))
    few = bytes(rng.choices(b"\r\n :;,01a", k=rng.randint(0, 3)))
    damaged = rng.choice([noise, good[:at] + noise, good[:at] + noise + good[at + 1 :], good[:at] + few + good[at:]])
    taken = []
    for make in (HttptoolsParser, H11Parser):
        parser = make()
        over = any(parser.feed(piece) for piece in in_pieces(damaged)) or parser.feed(b"")
        assert over
        if parser.failure is None:
            parser.finish()
        assert parser.failure is None or parser.content == b""
        taken += [(parser.status, parser.content, parser.extra)] if parser.failure is None else []
    assert len(set(taken)) < 2
