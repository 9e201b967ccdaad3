"""The compatibility tables of the documentation cannot rot: what they name exists, and what exists is named."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import ucaptcha_async
from tests.helpers import V2, opened
from ucaptcha_async import (
    Proxy,
    SelectionMode,
    ServiceError,
    Solution,
    Status,
    Task,
    UCaptchaError,
)
from ucaptcha_async.json_values import camel
from ucaptcha_async.tasks.base import Widget
from ucaptcha_async.testing import Amend, Json, LocalService, Reply
from ucaptcha_async.transport.error_codes import CODES, INTERNAL, PENDING_CODES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ucaptcha_async"
PAGE = (ROOT / "docs" / "compatibility.md").read_text()

virtual = pytest.mark.virtual_time

Row = tuple[str, ...]


def tables() -> Iterator[list[Row]]:
    """Each table of the page: its head, and its rows."""
    for block in re.findall(r"(?:^\|.*\|\n)+", PAGE, re.MULTILINE):
        head, _, *rows = [tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in block.splitlines()]
        yield [head, *rows]


def table(*columns: str) -> list[Row]:
    """The rows of the one table with these columns."""
    (found,) = (rows for head, *rows in tables() if head == columns)
    return found


def plain(cell: str) -> str:
    """The first name in a cell, without its quotes."""
    return cell.partition("`")[2].partition("`")[0] if "`" in cell else cell


def names(rows: list[Row]) -> list[str]:
    return [plain(row[0]) for row in rows]


def of_fields(section: str) -> list[Row]:
    """The table of fields under a heading; more than one has the same columns."""
    block = PAGE.split(f"## {section}\n", 1)[1]
    first = re.search(r"(?:^\|.*\|\n)+", block, re.MULTILINE)
    assert first is not None
    return [tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in first[0].splitlines()[2:]]


def literals(pattern: str, *modules: str) -> set[str]:
    """What a pattern finds in the source of modules."""
    return {name for module in modules for name in re.findall(pattern, (PACKAGE / module).read_text())}


# --- what the page names exists ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(ucaptcha_async\.[\w.]+)`", PAGE))))
def test_places_exist(reference: str) -> None:
    """Each place in the library is there: a module, a class, a function, an attribute."""
    path, *names = reference.split(".")
    found: Any = importlib.import_module(path)
    while names and importlib.util.find_spec(f"{path}.{names[0]}") is not None:
        path = f"{path}.{names.pop(0)}"
        found = importlib.import_module(path)
        if not hasattr(found, "__path__"):
            break
    for name in names[:-1]:
        found = getattr(found, name)

    assert not names or names[-1] in {*dir(found), *getattr(found, "__annotations__", ())}


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(tests/[\w./:]+)`", PAGE))))
def test_tests_exist(reference: str) -> None:
    """Each test that is named is there."""
    path, _, name = reference.partition("::")

    assert (ROOT / path).is_file()
    assert not name or re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_each_row_says_how_it_is_known_and_what_covers_it() -> None:
    """Each fact has its provenance and a test."""
    marks = ("U: ", "family: ", "inferred")
    for head, *rows in tables():
        assert rows
        for row in rows:
            assert len(row) == len(head), row
            assert "known from" not in head or row[head.index("known from")].startswith(marks), row
            assert "test" not in head or "`tests/" in row[head.index("test")], row
    untested = [head for head, *_ in tables() if "test" not in head]
    assert untested == [("field", "of", "here", "known from")]  # one test covers them all, and is named before them


# --- what exists is named ---------------------------------------------------------------------------------------------


def test_endpoints() -> None:
    """Each path that the client calls."""
    listed = {name.removeprefix("POST ") for name in names(table("endpoint", "known from", "here", "test"))}

    assert literals(r'_exchange\("(/\w+)"', "transport/api.py") == {
        name for name in listed if name.startswith("/") and "." not in name
    }


def test_fields_of_requests() -> None:
    """Each field that the client sends beside those of tasks."""
    listed = set(names(of_fields("Fields of requests")))
    feedback = {f"result.{name}" for name in literals(r'(?:result\[|\{|, )"(invalid|message|code)"', "solving/job.py")}
    sent = literals(r'"(clientKey|task|taskId|result)":', "transport/api.py")
    chosen = literals(r'"(\w+)": (?:url|self\.mode|self\.options\.provider)[,}]', "solving/job.py")

    assert listed == sent | chosen | feedback


def test_fields_of_answers() -> None:
    """Each field that the client reads."""
    listed = {name for row in of_fields("Fields of answers") for name in re.findall(r"`(\w+)`", row[0])}
    read = literals(r'(?:body\.get\(|raw\.get\(|_word\(exchange, body, )"(\w+)"\)', "transport/api.py")
    (words,) = literals(r'for name in \(("errorDescription".*)\):', "transport/api.py")

    assert listed == read | set(re.findall(r'"(\w+)"', words))


def test_headers() -> None:
    """Each header that the client reads."""
    listed = {name.lower() for name in names(table("header", "known from", "here", "test"))}

    assert listed == literals(r'headers\.get\("([a-z-]+)"\)', "pacing/quota.py")


def test_words() -> None:
    """Each status, and each way to choose providers."""
    assert names(table("status", "known from", "here", "test")) == [status.value for status in Status]
    assert names(table("`selectionMode`", "known from", "here", "test")) == [mode.value for mode in SelectionMode]


def widgets() -> list[type[Widget[Any]]]:
    found = (getattr(ucaptcha_async, name) for name in ucaptcha_async.__all__)
    return [cls for cls in found if isinstance(cls, type) and issubclass(cls, Widget)]


def test_task_types() -> None:
    """Each class of tasks with its types in their order and where they are from, its solution and its lifetime."""
    for cls in widgets():
        listed = [
            (plain(row[0]), row[1], plain(row[3]), row[4])
            for row in table("type", "known from", "here", "solution", "lifetime", "test")
            if plain(row[2]) == f"ucaptcha_async.{cls.__name__}"
        ]
        sources: dict[str, str] = {}
        for name in (*cls.type_names.bare, *cls.type_names.proxied):
            sources.setdefault(name.type, name.source)
        solution = f"ucaptcha_async.{cls.solution_class.__name__}"

        assert listed == [(name, source, solution, lifetime(cls)) for name, source in sources.items()]


def lifetime(cls: type[Task[Any]]) -> str:
    return "–" if cls.usual_lifetime is None else f"{cls.usual_lifetime:g} s"


def test_task_fields() -> None:
    """Each field of each class, as it is sent, and whether it must be given."""
    listed = {(plain(row[0]), row[1], plain(row[2])) for row in table("field", "of", "here", "known from")}
    proxy = Proxy.parse("http://user:password@host:1", spelling="fields")
    values = {str(value): name for name, value in attrs.asdict(proxy).items()}
    expected = {(wire, "Proxy", values[str(value)]) for wire, value in proxy.to_wire().items()}
    for cls in widgets():
        for field in attrs.fields(cls):
            wire, _ = field.metadata.get("wire", (camel(field.name), None))
            required = " (required)" if field.default is attrs.NOTHING else ""
            if wire is not None:
                expected.add((wire, f"{cls.__name__}{required}", field.name))

    assert listed == expected


def test_solution_fields() -> None:
    """Each property of each solution that reads a field."""
    listed = {plain(row[2]) for row in table_of_solutions()}
    shared = {"token", "age", "expires_in"}
    expected = {
        f"ucaptcha_async.{cls.__name__}.{name}"
        for cls in (getattr(ucaptcha_async, name) for name in ucaptcha_async.__all__)
        if isinstance(cls, type) and issubclass(cls, Solution) and cls is not Solution
        for name, value in vars(cls).items()
        if isinstance(value, property) and name not in shared
    }
    read = literals(r'_(?:text|text_or_none|number|find)\(((?:"\w+"(?:, )?)+)\)', "tasks/solutions.py")
    keys = {key for found in read for key in re.findall(r'"(\w+)"', found) if not key.startswith("geetest_")}
    keys |= literals(r'raw\.get\("(\w+)"\)', "tasks/solutions.py")
    keys |= literals(r'_TOKEN_KEYS = \("(\w+)"', "tasks/solutions.py")

    assert listed == expected | {"ucaptcha_async.TokenSolution.token"}
    assert set(names(table_of_solutions())) == keys


def table_of_solutions() -> list[Row]:
    return of_fields("Solution fields")


def test_codes() -> None:
    """Each code with the class that the library gives it."""
    listed = {plain(row[0]): row[3] for row in table("code", "HTTP", "known from", "error class", "test")}
    classes = CODES | dict.fromkeys(INTERNAL, ServiceError)
    expected = {code: f"`ucaptcha_async.{cls.__name__}`" for code, cls in classes.items()}

    assert listed == expected | dict.fromkeys(PENDING_CODES, "pending")


def test_callbacks() -> None:
    """Each field of a callback; of which one is read."""
    listed = names(table("field of the query", "known from", "here", "test"))

    assert listed == ["captcha_id", "status", "code"]
    assert literals(r'name == b"(\w+)"', "callbacks.py") == {"captcha_id"}


# --- and the codes mean what the page says ----------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("code", [*CODES, *sorted(INTERNAL)])
@pytest.mark.parametrize("status", [200, 400, 500])
async def test_each_code(code: str, status: int) -> None:
    """A code raises its class and is kept, whatever the HTTP status and the number of the error."""
    service = LocalService()
    service.script("getBalance", Json({"errorId": 12, "errorCode": code, "errorDescription": "words"}, status=status))
    async with opened(service) as client:
        with pytest.raises(UCaptchaError) as caught:
            await client.get_balance()

    assert type(caught.value) is CODES.get(code, ServiceError)
    assert caught.value.error_code == code
    assert "words" in str(caught.value)


@virtual
@pytest.mark.parametrize("code", sorted(PENDING_CODES))
async def test_each_code_that_means_not_yet(code: str) -> None:
    """Such a code is an answer like `processing`."""
    service = LocalService(solve_time=6)
    service.script("getTaskResult", Amend({"errorId": 1, "errorCode": code}, without=("status",)))
    async with opened(service) as client:
        assert (await client.solve(V2)).token

    assert service.books.request_counts["getTaskResult"] > 1


BY_STATUS = table("HTTP status", "known from", "without a code that says more", "test")


@virtual
@pytest.mark.parametrize("row", BY_STATUS, ids=names(BY_STATUS))
async def test_each_http_status(row: Row) -> None:
    """A status without JSON raises the class that the page says."""
    number = int(row[0].replace("x", "1"))
    service = LocalService()
    service.script("getBalance", Reply(status=number, body=b""))
    async with opened(service) as client:
        with pytest.raises(UCaptchaError) as caught:
            await client.get_balance()

    named = re.search(r"`ucaptcha_async\.(\w+)`", row[2])
    assert type(caught.value).__name__ == (named[1] if named else "Unreadable")
