"""The documentation says what is so: each name is described, each table agrees with the code, each command prints that.

The examples themselves are run by Sybil, see `conftest.py` in the root.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

import ucaptcha_async
from ucaptcha_async import errors, events, journal, testing
from ucaptcha_async.cli.exits import table
from ucaptcha_async.cli.kinds import KINDS
from ucaptcha_async.client import MAX_IN_FLIGHT
from ucaptcha_async.testing import KINDS as SERVICE_KINDS
from ucaptcha_async.testing import RunningService, running_service

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCES = sorted((ROOT / "ucaptcha_async").rglob("*.py"))
PAGES = sorted(DOCS.rglob("*.md"))
PIXEL = bytes.fromhex("89504e470d0a1a0a") + bytes(120)

# The pages of the service's documentation that anything was taken from.
SERVICE_PAGES = {
    "docs/api/overview",
    "docs/api/ucaptcha/create-task",
    "docs/api/ucaptcha/get-task-result",
    "docs/api/ucaptcha/get-balance",
    "docs/api/ucaptcha/feedback-task",
    "docs/api/error-codes",
    "docs/api/callbacks",
    "docs/api/legacy/res-php",
    "docs/features/smart-routing",
    "docs/features/lightning-mode",
    "docs/features/key-recycling",
    "docs/features/x402-payments",
    "docs/getting-started/authentication",
}


def optional(name: str) -> Iterator[ModuleType]:
    """A module of an extra, where that is installed."""
    try:
        yield importlib.import_module(name)
    except ImportError:
        if "CI" in os.environ:
            raise


def own(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public classes and functions that a module defines itself."""
    for name, value in vars(module).items():
        is_definition = inspect.isclass(value) or inspect.isfunction(value)
        if is_definition and not name.startswith("_") and value.__module__ == module.__name__:
            yield f"{module.__name__}.{name}", value


def public() -> dict[str, Any]:
    """What a program may use, by its name."""
    found: dict[str, Any] = {}
    for module in (ucaptcha_async, testing, journal):
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    for module in (events, errors):
        found |= dict(own(module))
    for module in optional("ucaptcha_async.otel"):
        found["ucaptcha_async.otel.instrument"] = module.instrument
    for module in optional("ucaptcha_async.redis"):
        found["ucaptcha_async.redis.RedisRateLimiter"] = module.RedisRateLimiter
        found["ucaptcha_async.redis.RedisUnavailableError"] = module.RedisUnavailableError
    return found


PUBLIC = public()


def described() -> dict[str, Any]:
    """The public classes and functions, and the public methods and properties of the classes."""
    found: dict[str, Any] = {}
    for path, value in PUBLIC.items():
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue
        found[path] = value
        for name in vars(value) if inspect.isclass(value) else ():
            member = getattr(value, name)
            if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                found[f"{path}.{name}"] = member
    return found


DESCRIBED = described()


def docstring(path: str) -> str:
    """What is said of a name; of a method that replaces another, what is said of that one."""
    return inspect.getdoc(DESCRIBED[path]) or ""


def section(text: str, name: str) -> list[str]:
    """The names that a section of a docstring explains."""
    found = re.search(rf"^{name}:\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE)
    return [] if found is None else re.findall(r"^    \*{0,2}(\w+): ", found[1], re.MULTILINE)


def fences(page: Path) -> list[tuple[str, str, str]]:
    """The fenced blocks of a page: language, title, content."""
    found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL)
    return [(language, title, content) for language, title, content in found]


def rows(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading."""
    text = page.read_text().split(f"\n## {heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines is not None
    return [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in lines[0].splitlines()[2:]]


# --- docstrings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DESCRIBED)
def test_docstring(path: str) -> None:
    """Everything public is described, in one form: Google's sections, and examples as fenced blocks that are run."""
    text = docstring(path)

    assert text, "no docstring"
    assert ">>>" not in text
    assert not re.search(r"^\s*:(param|returns?|raises|type)\b", text, re.MULTILINE)
    assert not re.search(
        r"^(Parameters|Params|Arguments|Return|Yield|Examples|Exceptions|Throws):$", text, re.MULTILINE
    )
    for example in re.findall(r"^Example:\n    (.*)$", text, re.MULTILINE):
        assert example == "```python"


MADE_BY_PROGRAMS = [
    path for path, value in PUBLIC.items() if inspect.isclass(value) and not issubclass(value, Exception | events.Event)
]


@pytest.mark.parametrize("path", MADE_BY_PROGRAMS)
def test_required_arguments_come_first(path: str) -> None:
    """Whoever looks at a signature sees first what must be given."""
    parameters = inspect.signature(PUBLIC[path]).parameters.values()
    optional = [p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY]

    assert optional == sorted(optional)


@pytest.mark.parametrize("path", [path for path, value in DESCRIBED.items() if "\nArgs:\n" in docstring(path)])
def test_arguments(path: str) -> None:
    """A list of arguments names all of them and no others."""
    value = DESCRIBED[path]
    names = [name for name in inspect.signature(value).parameters if name != "self"]

    assert sorted(section(docstring(path), "Args")) == sorted(names)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources(source: Path) -> None:
    """A fact of the service names its page, as a path; and only pages that something was taken from."""
    text = source.read_text()
    named = set(re.findall(r"\bdocs/(?:api|features|getting-started)/[\w/-]+", text))

    assert named <= SERVICE_PAGES
    for what in re.findall(r"\bSource: (\S+)", text):
        assert what.startswith("docs/")


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly. (The README's command for the tests installs what that needs.)"""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed (dependency group docs)")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return target


def test_reference(site: Path) -> None:
    """Every public name has its place in the reference."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    known = {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}

    constants = {path for path in PUBLIC if path not in DESCRIBED}
    assert set(PUBLIC) - constants <= known


@pytest.mark.parametrize("page", sorted((DOCS / "reference").glob("*.md")), ids=lambda page: page.stem)
def test_reference_as_a_file(page: Path) -> None:
    """Who reads the files sees what a page holds, and where that is described: mkdocs puts it in for the site alone."""
    text = page.read_text()
    listed = dict(
        re.findall(r"^\| `(\w+)` \| [^|]+ \| `([\w/.]+)` \|$", text.split("<!-- /contents -->")[0], re.MULTILINE)
    )
    included = re.findall(r"^::: (\S+)$", text, re.MULTILINE)

    assert listed
    for name, file in listed.items():
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), name
    for path in included:
        if not inspect.ismodule(sys.modules.get(path)):
            assert path.rpartition(".")[2] in listed


def test_offline(site: Path) -> None:
    """No page loads anything from elsewhere."""
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert [url for url in loaded if "canonical" not in url] == [], page


def test_signatures(site: Path) -> None:
    """The reference shows what a default is, and no name for it that only the code knows."""
    for page in (site / "reference").rglob("*.html"):
        text = re.sub(r"<[^>]+>", "", page.read_text())
        assert re.findall(r"= (?:_\w+|MAX_\w+|NOTHING)", text) == [], page
    client = re.sub(r"<[^>]+>", "", (site / "reference/client/index.html").read_text())
    assert "max_connections: int = 256," in client
    assert "Job(" not in client  # no program makes one, and its parts are the library's own
    assert "wait_for_end" not in client
    assert inspect.signature(ucaptcha_async.AsyncClient).parameters["max_in_flight"].default == MAX_IN_FLIGHT


def test_no_byte_code(site: Path) -> None:
    """What Python keeps beside the sources is no part of the site, nor are its scripts but the examples to download."""
    examples = {site / "how-to" / "workers" / name for name in ("celery_jobs.py", "taskiq_jobs.py")}
    scripts = {path for path in site.rglob("*") if path.suffix in (".pyc", ".py", ".sh") or path.name == "__pycache__"}
    assert scripts == examples


def test_navigation() -> None:
    """Every page can be reached from the navigation."""
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]

    assert {str(page.relative_to(DOCS)) for page in PAGES} == set(re.findall(r"[\w/-]+\.md", navigation))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_of_the_repository(name: str) -> None:
    """The links of the pages outside the site lead to files."""
    for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#]+)", (ROOT / name).read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_skips(page: Path) -> None:
    """An example may be skipped for want of a package or a server only, and says so."""
    for skip in re.findall(r"<!--+ *(skip: .*?) *-->", page.read_text()):
        assert re.fullmatch(r'skip: next if\(not (installed\("\w+"\)|redis_runs\(\)), reason=".+"\)', skip)


# --- tables that repeat what the code says ----------------------------------------------------------------------------


def test_table_of_errors() -> None:
    """The table of errors has every class with what it says of charge and retry."""
    words = {True: "yes", False: "no", None: "unknown"}
    listed = {row[0].strip("└ `"): row for row in rows(DOCS / "how-to/handle-errors.md", "All classes")}

    classes = [value for _, value in own(errors) if issubclass(value, Exception) and value is not errors.UCaptchaError]
    assert list(listed) == [value.__name__ for value in classes]
    for error in classes:
        name, _, charged, retryable = listed[error.__name__]
        assert name.startswith("└") == (error.__bases__[0] is not errors.UCaptchaError)
        assert charged == words[error.charged] or charged.startswith("depends: ")
        assert retryable == words[error.retryable] or retryable.startswith("depends: ")


def test_table_of_exit_codes() -> None:
    """The exit codes are those that `ucaptcha --help` shows."""
    listed = [f"- {code}: {meaning}" for code, meaning in rows(DOCS / "how-to/use-the-command.md", "Exit codes")]

    assert "\n".join(listed) == table()


def test_types_of_the_command() -> None:
    """The types are those that the command knows."""
    text = (DOCS / "how-to/use-the-command.md").read_text()
    sentence = re.search(r"The types are (.*?), and any type", text, re.DOTALL)

    assert sentence is not None
    assert re.findall(r"`([^`]+)`", sentence[1]) == list(KINDS)


async def test_schema(tmp_path: Path) -> None:
    """The columns of the journal's file are those that are described."""
    path = tmp_path / "paid.sqlite"
    async with ucaptcha_async.SQLiteJournal(path):
        pass
    database = sqlite3.connect(path)
    columns = [row[1] for row in database.execute("PRAGMA table_info(submits)")]
    [application], [version] = database.execute("PRAGMA application_id"), database.execute("PRAGMA user_version")
    database.close()

    text = journal.__doc__ or ""
    listed = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)[1:]
    assert [name for row in listed for name in re.findall(r"`(\w+)`", row)] == columns
    assert f"`application_id` {application[0]:#x}" in text
    assert f"`user_version` {version[0]})" in text.replace("\n", " ")


@pytest.mark.parametrize("name", ["index.md", "start.md"])
def test_the_first_pages_fit_their_boxes(name: str) -> None:
    """The site shows some 93 characters of code; who begins need not scroll."""
    for _, _, content in fences(DOCS / name):
        assert max(map(len, content.splitlines())) <= 92


def test_first_example(tmp_path: Path) -> None:
    """The README's first example runs after `ucaptcha serve`, in the shell and with the words that it prints."""
    scripts = str(Path(sys.executable).parent)
    if shutil.which("ucaptcha", path=scripts) is None:
        pytest.skip("the command is not installed")
    text = (ROOT / "README.md").read_text()
    serve, first = (re.findall(rf"<!-- {name} -->\n```sh\n(.*?)```", text, re.DOTALL)[0] for name in ("serve", "first"))
    example = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "first.py").write_text(example)
    port = free_port()
    serve, first = (words.replace("8080", str(port)).replace(".venv/bin", scripts) for words in (serve, first))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UCAPTCHA_")}

    # Solved at once, so that nobody waits for it here.
    words = [*serve.split(), "--immediate-types", "RecaptchaV2TaskProxyless"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        try:
            assert service.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
            run = subprocess.run(first, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        finally:
            service.terminate()

    assert run.returncode == 0, run.stderr
    token, cost, solve_time = run.stdout.split()
    assert len(token) > 40
    assert float(cost) > 0
    assert float(solve_time) >= 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- what is run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """A service that solves at once."""
    every_type = [name for kind in SERVICE_KINDS for name in kind.types]
    with running_service(immediate_types=every_type, seed=1) as running:
        yield running


def test_command(service: RunningService, tmp_path: Path) -> None:
    """Each command of the page about it prints what the page shows; digits and what `…` stands for may differ."""
    scripts = str(Path(sys.executable).parent)
    if shutil.which("ucaptcha", path=scripts) is None:
        pytest.skip("the command is not installed")
    environment = {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "UCAPTCHA_BASE_URL": service.url,
        "UCAPTCHA_API_KEY": "ucap_documentation",
        "COLUMNS": "100",
        "LC_ALL": "C.UTF-8",
    }
    for language, title, content in fences(DOCS / "how-to/use-the-command.md"):
        if title:
            (tmp_path / title).write_text(content)
        elif language == "console":
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", content, re.MULTILINE):
                assert re.fullmatch(pattern(shown), output_of(command, tmp_path, environment))


def output_of(command: str, folder: Path, environment: dict[str, str]) -> str:
    run = subprocess.run(
        command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return run.stdout.decode()


WILD = {
    r"0\.[\w-]{40,}…": r"0\.[\w-]{40,}",  # a token
    r"[0-9a-f]{8}-[0-9a-f-]{27}": r"[0-9a-f-]{36}",  # a task's id
    r'"task_id":"[0-9a-f]+': r'"task_id":"[0-9a-f]+',  # the beginning of one
    r"…": r".*",
    r"\d[\d.,]*": r"\d[\d.,]*",
}


def pattern(shown: str) -> str:
    """What output may look like that is shown so."""
    return "".join(r"(?:.*\n)*" if line == "…" else line_pattern(line) for line in shown.splitlines())


def line_pattern(line: str) -> str:
    parts = re.split(f"({'|'.join(WILD)})", line + "\n")
    return "".join(
        next((wild for kind, wild in WILD.items() if re.fullmatch(kind, part)), re.escape(part)) for part in parts
    )


def spans_of_tables() -> list[str]:
    """The code on the right-hand side of the tables about moving over."""
    text = (DOCS / "how-to/move-over.md").read_text()
    right = [line.split(" | ", 1)[1] for line in text.splitlines() if line.startswith("| ") and " | " in line]
    return [span for cell in right for span in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("span", spans_of_tables())
def test_move_over(span: str, service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What replaces a call of another client works."""
    monkeypatch.setenv("UCAPTCHA_BASE_URL", service.url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captcha.png").write_bytes(PIXEL)
    if span.startswith("except "):
        names = re.findall(r"\b[A-Z]\w+Error\b", span)
        assert names
        assert all(issubclass(getattr(ucaptcha_async, name), Exception) for name in names)
        return
    code = compile(span, "<page>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    asyncio.run(run_span(code))


async def run_span(code: CodeType) -> None:
    names: dict[str, Any] = {name: getattr(ucaptcha_async, name) for name in ucaptcha_async.__all__}
    u, k = "https://example.com/", "6Le-wvkSAAAAAPBMRTvw0Q4Muexq9bi0DJwx_mJ-"
    task = ucaptcha_async.RecaptchaV2(website_url=u, website_key=k)
    async with ucaptcha_async.AsyncClient("ucap_documentation") as client:
        solution = await client.solve(task)
        names |= {"Path": Path, "client": client, "task": task, "tasks": [task], "solution": solution}
        names |= {"u": u, "k": k, "g": "022397c9", "c": "12345678abc", "data": PIXEL, "key": "ucap_another"}
        names |= {"id": solution.task_id, "url": "https://hooks.example.com/captcha"}
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result
