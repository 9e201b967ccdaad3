"""The local service on real sockets: in a thread, as a second process, and at its command line."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.abc
import httpx
import pytest

from ucaptcha_async.testing import (
    Drop,
    FaultRates,
    Fixed,
    Html,
    LocalService,
    LogNormal,
    Mixture,
    Reply,
    RunningService,
    Server,
    parse_solve_time,
    running_service,
    start_service,
)
from ucaptcha_async.testing.callbacks import check_public, send_get
from ucaptcha_async.testing.command import main
from ucaptcha_async.testing.refusals import RefusalError
from ucaptcha_async.testing.server import NotLoopbackError, is_loopback

from .service_helpers import IMAGE, KEY, V2

COMMAND = [sys.executable, "-m", "ucaptcha_async.testing"]


def ask(http: httpx.Client, endpoint: str, **body: Any) -> Any:
    return http.post(f"/{endpoint}", json={"clientKey": KEY, **body}).json()


@pytest.fixture(scope="module")
def second_process() -> Iterator[RunningService]:
    with running_service(seed=1, speed=100, allow_private_callbacks=True, extra_types=["OwnTask"]) as service:
        yield service


def test_a_solve_over_a_socket(second_process: RunningService) -> None:
    """The service in a second process solves, charges, and shows its books."""
    before = second_process.books()
    with httpx.Client(base_url=second_process.url) as http:
        task_id = ask(http, "createTask", task=V2)["taskId"]
        answer = ask(http, "getTaskResult", taskId=task_id)
        while answer["status"] != "ready":
            time.sleep(0.02)
            answer = ask(http, "getTaskResult", taskId=task_id)
        headers = http.post("/getBalance", json={"clientKey": KEY}).headers
        assert "taskId" in ask(http, "createTask", task={"type": "OwnTask"})
    books: Any = second_process.books(full=True)

    assert answer["solution"]["gRecaptchaResponse"]
    assert books["accepted"] - int(str(before["accepted"])) == 2
    assert task_id in [task["id"] for task in books["task_list"]]
    assert "server" not in headers
    assert headers.get_list("date") == [headers["date"]]
    assert abs(int(headers["x-ratelimit-reset"]) - time.time()) < 11


def test_faults_over_a_socket(second_process: RunningService) -> None:
    """Faults can be ordered in another process, and a drop is a closed connection there."""
    second_process.script("getBalance", Reply(status=503), Drop(before=True), Drop(during=True))
    second_process.solve_next(solution={"text": "as ordered"})
    with httpx.Client(base_url=second_process.url) as http:
        assert http.post("/getBalance", json={"clientKey": KEY}).status_code == 503
        for _ in range(2):
            with pytest.raises(httpx.TransportError):
                ask(http, "getBalance")
        assert "balance" in ask(http, "getBalance")
        assert ask(http, "createTask", task=IMAGE)["solution"] == {"text": "as ordered"}
        second_process.set_rates(FaultRates(rates=[(Html(502), 1.0)]))
        assert http.post("/getBalance", json={"clientKey": KEY}).status_code == 502
        second_process.clear_faults()
        second_process.fail_next("ERROR_BAD_PROXY", after=0)
        second_process.set(latency=0.001)
        failed = ask(http, "getTaskResult", taskId=ask(http, "createTask", task=V2)["taskId"])

    assert failed["errorCode"] == "ERROR_BAD_PROXY"
    with pytest.raises(ValueError, match="no endpoint"):
        second_process.script("getResult", Html())


def test_a_callback_over_a_socket(second_process: RunningService) -> None:
    """A callback is a GET over a real connection."""
    with listening() as (url, paths), httpx.Client(base_url=second_process.url) as http:
        task_id = ask(http, "createTask", task=V2, callbackUrl=f"{url}/cb?a=1")["taskId"]
        deadline = time.monotonic() + 10
        while not paths and time.monotonic() < deadline:
            time.sleep(0.02)

    (path,) = paths
    query = parse_qs(urlsplit(path).query)
    assert (urlsplit(path).path, query["a"], query["captcha_id"], query["status"]) == ("/cb", ["1"], [task_id], ["1"])
    assert len(query["code"][0]) > 300


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """Serve HTTP in a thread and note the paths that are asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()
        thread.join()


async def test_the_sender_of_callbacks() -> None:
    """A callback is a plain GET that returns the HTTP status, to names as well, and fails where nobody speaks HTTP."""
    async with Server(LocalService()) as server:
        port = urlsplit(server.url).port
        assert await send_get(f"{server.url}/books?full=1") == 200
        assert await send_get(f"http://localhost:{port}/favicon.ico") == 404
    with pytest.raises(OSError, match=r"."):
        await send_get(f"http://127.0.0.1:{port}/books")


@pytest.mark.parametrize("words", [b"hello\r\n", b"HTTP/1.1\r\n", b"HTTP/1.1 fine\r\n"])
async def test_the_sender_of_callbacks_hears_nonsense(words: bytes) -> None:
    """What does not answer in HTTP has not taken the callback."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")

    async def speak(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(words)

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, speak)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with pytest.raises(ValueError, match=r"."):
            await send_get(f"http://127.0.0.1:{port}/")
        group.cancel_scope.cancel()


async def test_callback_names_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is as good as the addresses that it stands for: all must be public."""
    known = {"public.test": ["93.184.216.34"], "mixed.test": ["93.184.216.34", "10.0.0.1"]}

    async def lookup(host: str, *_: object, **__: object) -> list[Any]:
        if host not in known:
            raise OSError("no such name")
        return [(2, 1, 6, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr(anyio, "getaddrinfo", lookup)
    await check_public("https://public.test/cb")
    for host in ("mixed.test", "nobody.test"):
        with pytest.raises(RefusalError):
            await check_public(f"https://{host}/cb")


def test_terminate_is_clean_and_kill_is_not() -> None:
    """SIGTERM ends the process with exit code 0, SIGKILL at once; the address is free again afterwards."""
    first = start_service()
    port = first.port
    with httpx.Client(base_url=first.url) as http:
        ask(http, "getBalance")
        assert first.terminate() == 0
    again = start_service(port=port)
    assert again.url.endswith(f":{port}")
    assert again.kill() == -signal.SIGKILL


def test_ctrl_c_is_clean() -> None:
    """SIGINT ends the process with exit code 0 and without a traceback."""
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)

    assert (process.returncode, errors) == (0, "")


def test_an_orphan_stops_itself() -> None:
    """When the process that started it is gone, the service stops: at the end of its input, or of a process."""
    code = (
        "import os, subprocess, sys, time\n"
        "from ucaptcha_async.testing import start_service\n"
        "service = start_service()\n"
        "print(service.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert gone(pid)

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as watched:
        watching = subprocess.Popen([*COMMAND, "--parent-pid", str(watched.pid)], stdout=subprocess.PIPE)
        assert watching.stdout is not None
        watching.stdout.readline()
        watched.kill()
    assert watching.wait(20) == 0
    watching.stdout.close()


def gone(pid: int, seconds: float = 20) -> bool:
    """Wait until a process that is not ours has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_it_starts_with_all_options() -> None:
    """Every option of the command line reaches the service."""
    options: dict[str, Any] = {
        "keys": [KEY, "ucap_b"],
        "balance": "0.5",
        "dialect": "anticaptcha",
        "solve_time": {"ImageToTextTask": "0", "reCAPTCHA v2": "0.5*1~0.1+0.5*2"},
        "failure_rate": 0.0,
        "idle_for": 0,
        "latency": 0.01,
        "rate_limit": 50,
        "rate_window": 5,
        "lightning": {KEY: 1},
        "immediate_types": [],
        "no_books_detail": True,
        "idle_timeout": 5,
        "any_host": False,
    }
    with running_service(**options) as service, httpx.Client(base_url=service.url) as http:
        image = ask(http, "createTask", task=IMAGE)
        answer = http.post("/getTaskResult", json={"clientKey": KEY, "taskId": image["taskId"]})
        refused = ask(http, "getBalance", clientKey="ucap_c")
        books: Any = service.books(full=True)

    assert isinstance(image["taskId"], int)
    assert (answer.json()["status"], answer.headers["x-ratelimit-limit"]) == ("ready", "50")
    assert refused["errorId"] == 1
    assert (books["request_list"], books["requests"]) == ([], 3)


def test_a_service_that_cannot_start_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong option, a foreign address or a taken port are exit code 2 and a line on the error output."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert main(["--host", "0.0.0.0"]) == 2
    assert main(["--speed", "0"]) == 2
    with pytest.raises(SystemExit):
        main(["--dialect", "klingon"])
    errors = capsys.readouterr().err

    assert errors.count("error: ") == 4
    assert "0.0.0.0 can be reached by others" in errors
    with pytest.raises(RuntimeError, match="did not start"):
        start_service(host="0.0.0.0")


@pytest.mark.parametrize("reason", ["signal", "eof"])
def test_the_command_runs_until_it_is_told_to_stop(
    reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command prints its address, serves, and ends with exit code 0 at a signal or at the end of its input."""
    reading, writing = os.pipe()
    monkeypatch.setattr("ucaptcha_async.testing.command.INPUT", reading)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def stop_it() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
            while not answers(http):
                time.sleep(0.02)
        os.write(writing, b"x")
        if reason == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        os.close(writing)

    stopper = threading.Thread(target=stop_it)
    handler = signal.getsignal(signal.SIGTERM)
    stopper.start()
    code = main(["--port", str(port), "--stop-on-eof", "--solve-time", "ImageToTextTask=1", "--lightning", f"{KEY}=2"])
    stopper.join()
    os.close(reading)

    assert (code, capsys.readouterr().out) == (0, f"listening on http://127.0.0.1:{port}\n")
    assert signal.getsignal(signal.SIGTERM) is handler


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/books").status_code == 200
    except httpx.TransportError:
        return False


def test_only_loopback_unless_asked_for() -> None:
    """Addresses that others can reach are refused, unless they are asked for."""
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.1", "example.com", "::")))
    with pytest.raises(NotLoopbackError), Server(LocalService(), host="0.0.0.0"):
        pass
    with Server(LocalService(), host="0.0.0.0", any_host=True) as server:
        assert server.url.startswith("http://0.0.0.0:")


def test_a_server_in_a_thread() -> None:
    """The service object can be used while the server runs, from a thread of its own."""
    service = LocalService(solve_time=0)
    server = Server(service)
    with pytest.raises(RuntimeError, match="does not run"):
        _ = server.url
    with server, httpx.Client(base_url=server.url) as http:
        service.script("getBalance", Html(502))
        assert http.post("/getBalance", json={}).status_code == 502
        ask(http, "createTask", task=V2)

    assert (service.books.total_requests, len(service.books.accepted)) == (2, 1)
    server.stop()


def test_a_server_that_restarts() -> None:
    """A restart cuts all connections, refuses new ones for a while, and forgets nothing."""
    with Server(LocalService(solve_time=0)) as server, httpx.Client(base_url=server.url) as http:
        url = server.url
        task_id = ask(http, "createTask", task=V2)["taskId"]
        server.stop(abrupt=True)
        with pytest.raises(httpx.TransportError):
            ask(http, "getBalance")
        server.start()
        answer = ask(http, "getTaskResult", taskId=task_id)
        server.restart()
        again = ask(http, "getTaskResult", taskId=task_id)

        assert server.url == url
        assert (answer["status"], again) == ("ready", answer)


def test_a_restart_loses_the_answers_on_their_way() -> None:
    """A request that is being answered when the service crashes gets no answer, though it was carried out."""
    service = LocalService(latency=30)
    with Server(service) as server, httpx.Client(base_url=server.url) as http:
        failures: list[Exception] = []

        def submit() -> None:
            try:
                ask(http, "createTask", task=IMAGE)
            except httpx.TransportError as error:
                failures.append(error)

        thread = threading.Thread(target=submit)
        thread.start()
        while not service.books.accepted:
            time.sleep(0.01)
        server.restart()
        thread.join(10)

    assert len(failures) == 1
    assert len(service.books.paid_not_delivered) == 1


async def test_a_server_beside_any_event_loop() -> None:
    """Tests on asyncio and on trio talk to it over a real socket."""
    service = LocalService(solve_time=0)
    async with Server(service) as server, httpx.AsyncClient(base_url=server.url) as http:
        answers = []

        async def one() -> None:
            answers.append((await http.post("/createTask", json={"clientKey": KEY, "task": V2})).json())

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)

    assert len({answer["taskId"] for answer in answers}) == 20


def test_idle_connections_are_closed() -> None:
    """A connection without requests is closed after the idle timeout."""
    with Server(LocalService(), idle_timeout=0.2) as server:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:  # type: ignore[arg-type]
            body = b'{"clientKey":"k"}'
            connection.sendall(b"POST /getBalance HTTP/1.1\r\nhost: x\r\ncontent-length: 17\r\n\r\n" + body)
            heard = connection.recv(65536)
            begin = time.monotonic()
            end = connection.recv(1)

    assert b'"balance"' in heard
    assert end == b""
    assert time.monotonic() - begin < 5


def test_solve_times_are_read_from_text() -> None:
    """A number, a lognormal, a mixture."""
    assert parse_solve_time("8") == Fixed(8)
    assert parse_solve_time("12~0.5") == LogNormal(12, 0.5)
    assert parse_solve_time("0.5*4~0.3+0.5*30") == Mixture(((0.5, LogNormal(4, 0.3)), (0.5, Fixed(30))))
    for wrong in ("", "fast", "12~", "0.5*"):
        with pytest.raises(ValueError, match=r"."):
            parse_solve_time(wrong)
