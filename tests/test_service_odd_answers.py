"""Answers as real services and gateways send them, and worse ones, over real sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.service_helpers import IMAGE, KEY, V2, calling
from ucaptcha_async.testing import (
    Amend,
    Encoded,
    Error,
    Extra,
    Fault,
    FaultRates,
    Html,
    Json,
    LocalService,
    Reply,
    Reword,
    Server,
    running_service,
)
from ucaptcha_async.testing.control import fault_from_json, fault_to_json

SOLVE_FAILED = "ERROR_CAPTCHA_SOLVE_FAILED"


@pytest.fixture
def service() -> LocalService:
    return LocalService(solve_time=0)


@pytest.fixture
async def http(service: LocalService) -> AsyncIterator[httpx.AsyncClient]:
    async with Server(service) as server, httpx.AsyncClient(base_url=server.url, follow_redirects=False) as client:
        yield client


async def ask(http: httpx.AsyncClient, endpoint: str, **body: Any) -> httpx.Response:
    return await http.post(f"/{endpoint}", json={"clientKey": KEY, **body})


async def test_a_refusal_that_names_a_task(service: LocalService, http: httpx.AsyncClient) -> None:
    """It says no, and the task is there and charged."""
    service.script("createTask", Error("ERROR_NEW_WORD", names_task=True))
    answer = await ask(http, "createTask", task=V2)

    (task_id,) = service.books.accepted
    assert answer.status_code == 400
    assert (answer.json()["errorId"], answer.json()["errorCode"]) == (1, "ERROR_NEW_WORD")
    assert answer.json()["taskId"] == task_id
    assert service.books.spent == service.books.tasks[task_id].cost


@pytest.mark.parametrize("task_id", [0, "0", "", False, None])
async def test_a_refusal_that_names_no_task(service: LocalService, http: httpx.AsyncClient, task_id: object) -> None:
    """A plain refusal may have an id that is none."""
    service.script("createTask", Error("ERROR_NEW_WORD", fields={"taskId": task_id}))
    answer = await ask(http, "createTask", task=V2)

    assert answer.json()["taskId"] == task_id
    assert type(answer.json()["taskId"]) is type(task_id)
    assert service.books.accepted == ()


@pytest.mark.parametrize("error_id", ["0", "", None, False, "SUCCESS"])
async def test_a_loose_error_id(service: LocalService, http: httpx.AsyncClient, error_id: object) -> None:
    """Acceptance is said in many ways."""
    service.script("*", Amend({"errorId": error_id}, times=None))
    created = (await ask(http, "createTask", task=V2)).json()
    ready = (await ask(http, "getTaskResult", taskId=created["taskId"])).json()

    assert [created["errorId"], ready["errorId"]] == [error_id, error_id]
    assert ready["status"] == "ready"
    assert service.books.delivered == (created["taskId"],)


@pytest.mark.parametrize("status", [200, 400])
async def test_a_failed_solve_as_an_error(service: LocalService, http: httpx.AsyncClient, status: int) -> None:
    """The end of a solve in the envelope of an error."""
    task_id = (await ask(http, "createTask", task=V2)).json()["taskId"]
    service.script("getTaskResult", Error(SOLVE_FAILED, names_task=True, fields={"status": "failed"}, status=status))
    answer = await ask(http, "getTaskResult", taskId=task_id)

    assert answer.status_code == status
    assert (answer.json()["status"], answer.json()["taskId"]) == ("failed", task_id)


PAGES: list[tuple[Fault, int, str]] = [
    *((Html(status), status, "text/html; charset=utf-8") for status in (200, 302, 403, 404)),
    (Json({"message": "Unauthorized"}, status=401), 401, "application/json"),
    (Json({"detail": "Not Found"}, status=404), 404, "application/json"),
    (Reply(status=302, headers=(("location", "https://login.example/"),), body=b""), 302, "text/plain"),
]


@pytest.mark.parametrize(("fault", "status", "kind"), PAGES)
@pytest.mark.parametrize("endpoint", ["createTask", "getTaskResult"])
async def test_a_page_of_a_gateway(
    service: LocalService, http: httpx.AsyncClient, fault: Fault, status: int, kind: str, endpoint: str
) -> None:
    """Something in front of the service answers in its place, on submits and polls alike."""
    task_id = (await ask(http, "createTask", task=V2)).json()["taskId"]
    service.script(endpoint, fault)
    answer = await ask(http, endpoint, task=V2, taskId=task_id)

    assert (answer.status_code, answer.headers["content-type"]) == (status, kind)
    assert b"errorCode" not in answer.content
    assert len(service.books.accepted) == 1


async def test_a_page_after_the_task_was_made(service: LocalService, http: httpx.AsyncClient) -> None:
    """The page does not say whether the service was reached."""
    service.script("createTask", Html(403, processed=True))
    answer = await ask(http, "createTask", task=V2)

    assert answer.status_code == 403
    assert len(service.books.paid_not_delivered) == 1


@pytest.mark.parametrize("word", ["READY", "Ready", "completed", "success", "SUCCESS"])
async def test_other_words_for_ready(service: LocalService, http: httpx.AsyncClient, word: str) -> None:
    """The solution is delivered, whatever it is called."""
    task_id = (await ask(http, "createTask", task=V2)).json()["taskId"]
    service.script("getTaskResult", Reword({"ready": word}))
    answer = (await ask(http, "getTaskResult", taskId=task_id)).json()

    assert answer["status"] == word
    assert answer["solution"]["gRecaptchaResponse"]
    assert service.books.delivered == (task_id,)


async def test_other_words_leave_the_rest_alone(service: LocalService, http: httpx.AsyncClient) -> None:
    """A task that is not solved yet is not called ready, and the balance has no status."""
    service.solve_next(after=60)
    task_id = (await ask(http, "createTask", task=V2)).json()["taskId"]
    service.script("*", Reword({"ready": "success"}, times=2))
    pending = (await ask(http, "getTaskResult", taskId=task_id)).json()
    balance = (await ask(http, "getBalance")).json()

    assert pending["status"] == "idle"
    assert set(balance) == {"errorId", "balance"}


@pytest.mark.parametrize(
    ("encoding", "begins"), [("utf-8-sig", b"\xef\xbb\xbf{"), ("utf-16", b"\xff\xfe{\0"), ("utf-16-be", b"\0{")]
)
async def test_other_encodings(service: LocalService, http: httpx.AsyncClient, encoding: str, begins: bytes) -> None:
    """The same answer, in other bytes."""
    service.script("createTask", Encoded(encoding))
    answer = await ask(http, "createTask", task=V2)

    assert answer.content.startswith(begins)
    assert json.loads(answer.content.decode(encoding))["taskId"] == service.books.accepted[0]


async def test_bytes_that_are_no_text(service: LocalService, http: httpx.AsyncClient) -> None:
    """A description is not UTF-8; the rest of the answer is."""
    service.script("createTask", Encoded("broken"))
    answer = await ask(http, "createTask", task=V2)

    with pytest.raises(UnicodeDecodeError):
        answer.content.decode()
    assert json.loads(answer.content.decode("utf-8", "replace"))["taskId"] == service.books.accepted[0]


async def test_an_answer_about_another_task(service: LocalService, http: httpx.AsyncClient) -> None:
    """An answer may name a task that nobody asked for."""
    task_id = (await ask(http, "createTask", task=V2)).json()["taskId"]
    service.script("getTaskResult", Amend({"taskId": "other"}))

    assert (await ask(http, "getTaskResult", taskId=task_id)).json()["taskId"] == "other"


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A bare connection, to see what comes on it and when."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        yield line


def send(line: socket.socket, endpoint: str = "createTask") -> None:
    body = json.dumps({"clientKey": KEY, "task": IMAGE}).encode()
    head = f"POST /{endpoint} HTTP/1.1\r\nhost: service\r\ncontent-length: {len(body)}\r\n\r\n"
    line.sendall(head.encode() + body)


def split(data: bytes) -> tuple[Any, bytes] | None:
    """The body of the first answer and what comes behind it; None if it is not whole."""
    head, end, rest = data.partition(b"\r\n\r\n")
    sizes = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return (json.loads(rest[: sizes[0]]), rest[sizes[0] :]) if end and len(rest) >= sizes[0] else None


def answers_in(data: bytes) -> list[Any]:
    """The bodies of whole answers, in their order."""
    found = []
    while data:
        parts = split(data)
        assert parts is not None
        found.append(parts[0])
        data = parts[1]
    return found


def receive(line: socket.socket) -> Any:
    """The body of the next answer, which must be the only one."""
    data = b""
    while (parts := split(data)) is None:
        data += line.recv(65_536)
    assert parts[1] == b""
    return parts[0]


def test_a_second_answer_in_the_same_packet() -> None:
    """Both answers are written at once, so that one read gets them."""
    service = LocalService()
    service.script("createTask", Extra())
    with Server(service) as server, connected(server.url) as line:
        send(line)
        first, second = answers_in(line.recv(65_536))

    assert first == second
    assert first["taskId"] == service.books.accepted[0]
    assert service.books.total_requests == 1
    assert service.faults.fired == {"Extra": 1}


@pytest.mark.parametrize("after", [0.02, 0.3])
def test_a_second_answer_later(after: float) -> None:
    """The second one comes on the connection that has become idle, before the next request's own."""
    service = LocalService()
    service.script("createTask", Extra({"errorId": 0, "taskId": "stray"}, after=after))
    with Server(service) as server, connected(server.url) as line:
        send(line)
        began = time.monotonic()
        first = receive(line)
        second = receive(line)
        took = time.monotonic() - began
        send(line)
        third = receive(line)

    assert second == {"errorId": 0, "taskId": "stray"}
    assert took >= after / 2
    assert [first["taskId"], third["taskId"]] == list(service.books.accepted)


async def test_a_second_answer_needs_a_connection() -> None:
    """In-process there is none, and the test is told so."""
    service = LocalService()
    service.script("getBalance", Extra())
    async with calling(service) as call:
        with pytest.raises(RuntimeError, match="use Server or running_service"):
            await call("getBalance")


def test_a_second_answer_for_somebody_who_has_left() -> None:
    """A closed connection takes no second answer, and the service goes on."""
    service = LocalService()
    service.script("createTask", Extra(after=0.05))
    with Server(service) as server:
        with connected(server.url) as line:
            send(line)
            receive(line)
        with connected(server.url) as line:
            send(line)
            assert receive(line)["taskId"] == service.books.accepted[1]


def test_odd_answers_in_another_process() -> None:
    """They can be ordered from a service in a process of its own."""
    with running_service() as service, connected(service.url) as line:
        service.script(
            "createTask",
            Extra(),
            Reword({"ready": "ready"}),
            Error("NEW", names_task=True, fields={"status": "failed"}),
        )
        send(line)
        both = answers_in(line.recv(65_536))
        send(line)
        encoded = receive(line)
        send(line)
        refusal = receive(line)

    assert len(both) == 2
    assert encoded["status"] == "ready"
    assert (refusal["errorCode"], refusal["status"], bool(refusal["taskId"])) == ("NEW", "failed", True)


@pytest.mark.parametrize(
    "fault",
    [
        Extra({"a": [1]}, after=1.5, status=400),
        Encoded("utf-16"),
        Reword({"ready": "success"}, only=("getTaskResult",)),
        Error("NEW", names_task=True, fields={"taskId": 0}, status=200),
        Amend({"errorId": "0"}, status=201),
    ],
)
def test_faults_survive_the_way_to_another_process(fault: Fault) -> None:
    """What is ordered there is what was meant here."""
    assert fault_from_json(json.loads(json.dumps(fault_to_json(fault)))) == fault


@pytest.mark.virtual_time
async def test_faults_at_random_may_be_meant_for_some_endpoints() -> None:
    """`only` keeps a fault of a mixture from the others; the dice are the same."""
    rates = FaultRates(rates=[(Error("NEW", only=("getTaskResult",)), 1.0)])
    service = LocalService(fault_rates=rates)
    async with calling(service) as call:
        task_id = await call.create()
        answer = await call.poll(task_id)

    assert answer["errorCode"] == "NEW"
    assert service.faults.fired == {"Error": 1}
