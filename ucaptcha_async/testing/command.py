"""The command line of the local service."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

from .dialects import DIALECTS
from .options import SolveTimes
from .server import NotLoopbackError, make_server, open_socket, url_of
from .service import LocalService
from .spellings import SPELLINGS
from .timing import SolveTime, parse_solve_time

INPUT = 0
"""The descriptor of the standard input."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ucaptcha_async.testing",
        description="Run a uCaptcha of your own on this machine. It prints its address once it listens.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    add("--port", type=int, default=0, help="the port; 0 takes a free one (default: %(default)s)")
    add("--any-host", action="store_true", help="allow addresses that others can reach")
    add("--keys", nargs="+", metavar="KEY", help="the API keys that exist (default: any is accepted)")
    add("--balance", type=Decimal, default=Decimal(100), help="what each account has, in USD (default: %(default)s)")
    add("--seed", type=int, default=0, help="the seed of everything random (default: %(default)s)")
    add("--speed", type=float, default=1.0, help="divide all solve times by this (default: %(default)s)")
    add("--dialect", choices=sorted(DIALECTS), default="ucaptcha", help="whose words to use (default: %(default)s)")
    add("--types", choices=[*SPELLINGS, "dialect"], default="any", help="whose task types to take (default: any)")
    add(
        "--solve-time",
        nargs="+",
        default=[],
        metavar="[TYPE=]TIME",
        help="seconds; 12~0.5 is lognormal with median 12 s; 0.5*4~0.3+0.5*30~0.3 a mixture",
    )
    add("--failure-rate", type=float, default=0.0, help="the share of tasks that fail (default: %(default)s)")
    add("--idle-for", type=float, default=1.0, help="how long tasks are idle, in seconds (default: %(default)s)")
    add("--latency", type=float, default=0.0, help="how long each answer takes, in seconds (default: %(default)s)")
    add("--rate-limit", type=int, default=10_000, help="requests per window (default: %(default)s)")
    add("--rate-window", type=float, default=10.0, help="the window, in seconds (default: %(default)s)")
    add("--lightning", nargs="+", default=[], metavar="KEY=N", help="keys in Lightning mode, with their stock")
    add("--immediate-types", nargs="*", default=["ImageToTextTask"], metavar="TYPE", help="types solved at once")
    add("--extra-types", nargs="+", default=[], metavar="TYPE", help="further task types to accept")
    add("--allow-private-callbacks", action="store_true", help="let callbacks go to private addresses")
    add("--no-books-detail", action="store_true", help="keep only sums and times in the books")
    add("--idle-timeout", type=float, default=60.0, help="close unused connections after this (default: %(default)s s)")
    add("--certificate", type=Path, metavar="FILE", help="listen with TLS: a PEM file with key and certificate")
    add("--stop-on-eof", action="store_true", help="stop when standard input ends")
    add("--parent-pid", type=int, help="stop when this process is gone")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until it is told to stop; return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        service = _service(options)
        listener = open_socket(options.host, options.port, any_host=options.any_host)
        url = url_of(listener, tls=options.certificate is not None)
        server = make_server(
            service,
            idle_timeout=options.idle_timeout,
            certificate=options.certificate,
            on_ready=lambda: print(f"listening on {url}", flush=True),
        )
    except (ImportError, NotLoopbackError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def stop() -> None:
        server.should_exit = True

    _watch(options, stop)
    # Also for after the end: uvicorn raises the signals that it has caught once more when it is done.
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()
    return 0


def _service(options: argparse.Namespace) -> LocalService:
    return LocalService(
        keys=options.keys,
        balance=options.balance,
        seed=options.seed,
        speed=options.speed,
        dialect=options.dialect,
        types=options.types,
        solve_time=_solve_times(options.solve_time),
        failure_rate=options.failure_rate,
        idle_for=options.idle_for,
        latency=options.latency,
        rate_limit=options.rate_limit,
        rate_window=options.rate_window,
        lightning={key: int(n) for key, _, n in (item.rpartition("=") for item in options.lightning)},
        immediate_types=options.immediate_types,
        extra_types=options.extra_types,
        allow_private_callbacks=options.allow_private_callbacks,
        books_detail=not options.no_books_detail,
    )


def _solve_times(items: Sequence[str]) -> SolveTimes:
    """One time for all types, or times by type."""
    if not items:
        return None
    if len(items) == 1 and "=" not in items[0]:
        return parse_solve_time(items[0])
    pairs = (item.partition("=") for item in items)
    by_type: dict[str, SolveTime | float] = {name: parse_solve_time(text) for name, _, text in pairs}
    return by_type


def _watch(options: argparse.Namespace, stop: Callable[[], None]) -> None:
    if options.stop_on_eof:
        threading.Thread(target=_at_eof, args=(stop,), daemon=True).start()
    if options.parent_pid is not None:
        threading.Thread(target=_when_gone, args=(options.parent_pid, stop), daemon=True).start()


def _at_eof(stop: Callable[[], None]) -> None:
    while os.read(INPUT, 65536):
        pass
    stop()


def _when_gone(pid: int, stop: Callable[[], None]) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return stop()
        except PermissionError:
            pass
        time.sleep(0.5)
