"""Nobody learns the secrets: marked keys, passwords and tokens are looked for wherever something can be read.

The traffic is that of a program on a bad day: every fault, timeouts, cancellations, a service that repeats what it was
sent, over ASGI and over sockets. What is searched: every log record at DEBUG (of httpx, httpcore, h11, aiohttp and
asyncio too), `repr`, `str` and rich's own display of every object within reach, errors with their chains, notes and
tracebacks with local values, pickles, events, and the journal's files.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import functools
import logging
import pickle
import traceback
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import attrs
import httpx
import httpx2
import pytest
import rich.pretty
import rich.traceback

from tests.helpers import at_rest
from ucaptcha_async import (
    AsyncClient,
    Budget,
    CallbackReceiver,
    FunCaptcha,
    ImageToText,
    MemoryJournal,
    Outcome,
    Polling,
    Proxy,
    RecaptchaV2,
    Solution,
    SQLiteJournal,
    Task,
    Turnstile,
    UCaptchaError,
)
from ucaptcha_async.secrecy import SecretStr
from ucaptcha_async.testing import (
    Amend,
    Delay,
    Drop,
    Error,
    Fault,
    Html,
    Huge,
    Json,
    LocalService,
    RateLimit,
    Reply,
    Server,
    Truncated,
)

virtual = pytest.mark.virtual_time

# Each secret holds its mark; a mark is never altered by percent-encoding.
KEY = "ucap_MARKkey0123456789abcdefMARKkey"
USER = "proxyuser"
PASSWORD = "pw/:@MARKpassword"
TOKEN = "03AGdBq2MARKtoken" + "x" * 300
PATH = "MARKpath-0123456789-0123456789"
LOGIN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

MARKS = {
    "the API key": "MARKkey",
    "the proxy's password": "MARKpassword",
    "the proxy's login in base64": LOGIN,
    "the token": "MARKtoken",
    "the secret of the callback's path": "MARKpath",
}
PROXY_URL = f"http://{USER}:{quote(PASSWORD, safe='')}@198.51.100.7:8080"
PUBLIC = "https://hooks.example.com/captcha"
PAGE = "https://example.com/login"
PNG = bytes.fromhex("89504e470d0a1a0a") + bytes(120)
SOLUTION = {"gRecaptchaResponse": TOKEN, "token": TOKEN, "text": TOKEN, "userAgent": "Mozilla/5.0"}


def tasks() -> list[Task[Any]]:
    """Tasks that hold a proxy's password, in each spelling, or an image."""
    proxy = Proxy.parse(PROXY_URL)
    fields = Proxy(scheme="http", host="198.51.100.7", port=8080, username=USER, password=PASSWORD, spelling="fields")
    return [
        RecaptchaV2(website_url=PAGE, website_key="6Le", proxy=proxy),
        Turnstile(website_url=PAGE, website_key="0x4", proxy=fields),
        FunCaptcha(website_url=PAGE, website_public_key="69A21A01", proxy=proxy),
        Task("RecaptchaV2Task", websiteURL=PAGE, websiteKey="6Le", proxy=proxy),
        Task("RecaptchaV2TaskProxyless", websiteURL=PAGE, websiteKey="6Le", nested=[{"also": proxy}], cookies="a=b"),
        ImageToText(image=PNG),
    ]


# --- the search -------------------------------------------------------------------------------------------------------


class Witness(logging.Handler):
    """Looks for marks in all that it is shown, and remembers where it found one."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []
        self.searched: collections.Counter[str] = collections.Counter()
        self.kept: tuple[str, ...] = ()
        self._ways: set[object] = set()

    def text(self, where: str, text: str, *, allowed: Iterable[str] = ()) -> None:
        self.searched[where.partition(" ")[0]] += 1
        for name, mark in MARKS.items():
            if mark in text and name not in allowed:
                at = text.index(mark)
                self.found.append(f"{name} in {where}: …{text[max(0, at - 300) : at + 40]}…")

    # Logs

    def emit(self, record: logging.LogRecord) -> None:
        self.text(f"log of {record.name}", record.getMessage())
        self.text(f"log of {record.name} (fields)", repr(vars(record)))
        if record.exc_info and record.exc_info[1] is not None:
            self.error(record.exc_info[1])

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        names = ("", "ucaptcha_async", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "aiohttp", "asyncio", "trio")
        levels = {name: logging.getLogger(name).level for name in names}
        logging.getLogger().addHandler(self)
        try:
            for name in names:
                logging.getLogger(name).setLevel(logging.DEBUG)
            yield
        finally:
            logging.getLogger().removeHandler(self)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)

    # Objects

    def see(self, *roots: object) -> None:
        """Show all that is within reach, in every way."""
        for thing in reachable(roots):
            where = f"object {type(thing).__name__}"
            self.text(f"{where} (repr)", repr(thing))
            if not isinstance(thing, SecretStr):  # the one way to the secret itself
                self.text(f"{where} (str)", str(thing))
            if self.searched[where] < 8:  # it is slow
                self.searched[where] += 1
                self.text(f"{where} (rich)", rich.pretty.pretty_repr(thing))
                self.text(f"{where} (rich, cut)", rich.pretty.pretty_repr(thing, max_string=30))
            self.pickled(thing)

    def pickled(self, thing: object) -> None:
        # What refuses to be pickled keeps its secrets. Who pickles what was paid for asks for the token.
        paid = ("the token",) if isinstance(thing, Solution | Outcome) else ()
        with contextlib.suppress(Exception):
            data = pickle.dumps(thing).decode("latin-1")
            self.text(f"pickle of {type(thing).__name__}", data, allowed=(*self.kept, *paid))

    # Errors

    def error(self, error: BaseException) -> None:
        """Show an error and all that hangs on it, as plain and as talkative reports would."""
        self.see(error)
        for one in chain(error):
            where = f"error {type(one).__name__}"
            # What a solution without the promised fields had is in `raw`, for those who ask for it.
            fields = {name: value for name, value in vars(one).items() if name != "raw"}
            self.text(f"{where} (args, notes and fields)", repr((one.args, getattr(one, "__notes__", ()), fields)))
            self.text(f"{where} (traceback)", "".join(traceback.format_exception(one)))
            told = traceback.TracebackException.from_exception(one, capture_locals=True)
            self.text(f"{where} (local values)", "".join(without_callers(told).format()))
            way = (type(one), *((frame.filename, frame.lineno) for frame in told.stack))
            if way not in self._ways:  # it is slow
                self._ways.add(way)
                self.text(f"{where} (rich)", in_rich(one))

    # Files

    def files(self, folder: Path, *, allowed: Iterable[str] = ()) -> None:
        for path in sorted(folder.iterdir()):
            self.text(f"file {path.name}", path.read_bytes().decode("latin-1") + path.name, allowed=allowed)


def without_callers(told: traceback.TracebackException) -> traceback.TracebackException:
    """Leave out the frames of this file: the caller's own frames hold the secrets, as they always do."""
    told.stack = traceback.StackSummary.from_list(frame for frame in told.stack if frame.filename != __file__)
    for other in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if other is not None:
            without_callers(other)
    return told


def in_rich(error: BaseException) -> str:
    """The local values as rich shows them, whole and cut."""
    reports = [
        rich.traceback.Traceback.extract(
            type(error), error, error.__traceback__, show_locals=True, locals_max_length=50, locals_max_string=longest
        )
        for longest in (80, 10_000)
    ]
    frames = [frame for report in reports for stack in report.stacks for frame in stack.frames]
    values = [node for frame in frames if frame.filename != __file__ for node in (frame.locals or {}).values()]
    return "\n".join(map(str, values))


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, its causes, its contexts (shown or not), the members of groups, and so on."""
    todo, seen = [error], set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
        todo += getattr(one, "exceptions", ())


def reachable(roots: Iterable[object]) -> Iterator[object]:
    """Our own objects, errors, and functions with arguments bound to them, within reach of the roots."""
    todo, seen = list(roots), {}
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType):
            continue
        seen[id(thing)] = thing
        if is_ours(thing) or isinstance(thing, BaseException | functools.partial):
            yield thing
        todo += parts(thing)


def is_ours(thing: object) -> bool:
    module = type(thing).__module__
    return module.startswith("ucaptcha_async") and not module.startswith("ucaptcha_async.testing")


def parts(thing: Any) -> list[object]:
    if isinstance(thing, collections.abc.Mapping):
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, list | tuple | set | frozenset | collections.deque):
        return list(thing)
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, types.MethodType):
        return [thing.__self__]
    if isinstance(thing, BaseException):
        return [*chain(thing), vars(thing), thing.args]
    if not is_ours(thing):
        return []
    slots = {name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())}
    return [getattr(thing, "__dict__", {}), *(getattr(thing, name, None) for name in slots - {"__weakref__"})]


# --- the stages: in-process and over sockets --------------------------------------------------------------------------


@attrs.define(eq=False)
class Stage:
    """Where the scenarios play: a service, how a client reaches it, and the witness."""

    witness: Witness
    service: LocalService
    reach: Callable[[dict[str, Any]], contextlib.AbstractAsyncContextManager[dict[str, Any]]]
    address: str
    """Host and port; none in-process."""
    short: float
    """Seconds that a scenario lets a timeout take."""
    receiver: CallbackReceiver = attrs.field(factory=lambda: CallbackReceiver(PUBLIC, path_secret=PATH))

    @contextlib.asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[AsyncClient]:
        events: list[Any] = []
        quick = Polling(interval=0.05, first=0.05, jitter=0.0)
        settings = {"polling": quick, "timeout": 20, "on_event": events.append, "cancel_grace": self.short, **options}
        async with self.reach(settings) as reached:
            client = AsyncClient(KEY, **reached)
            self.witness.see(client)
            async with client:
                yield client
                self.witness.see(client, client.statistics(), events)
                at_rest(client)
            self.witness.see(client)

    async def keep(self, call: Awaitable[Any]) -> Any:
        """Await a call, and show what it gives or raises."""
        value = None
        try:
            value = await call
        except UCaptchaError as error:
            self.witness.error(error)
        self.witness.see(value)
        return value


def fresh_service(**options: Any) -> LocalService:
    service = LocalService(solve_time=0.05, idle_for=0.02, keys=[KEY], balance=Decimal(1000), **options)
    service.solve_next(solution=SOLUTION, times=10**9)
    return service


@contextlib.asynccontextmanager
async def in_process(library: Any) -> AsyncIterator[Stage]:
    receiver = CallbackReceiver(PUBLIC, path_secret=PATH)
    service = fresh_service(callback_sender=functools.partial(deliver, receiver), allow_private_callbacks=True)
    service.drop_error = library.ReadError

    @contextlib.asynccontextmanager
    async def reach(settings: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with library.AsyncClient(transport=library.ASGITransport(app=service)) as http:
            yield {**settings, "http_client": http}

    witness = Witness()
    with witness.listening():
        async with service:
            yield Stage(witness, service, reach, "", short=2.0, receiver=receiver)


async def deliver(receiver: CallbackReceiver, url: str) -> int:
    """Bring a callback to its receiver, as a server would."""
    parts, statuses = urlsplit(url), []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    await receiver(
        {"type": "http", "method": "GET", "path": parts.path, "query_string": parts.query.encode()}, receive, send
    )
    return int(statuses[0])


@contextlib.asynccontextmanager
async def over_sockets(transport: str) -> AsyncIterator[Stage]:
    witness = Witness()
    async with Server(fresh_service()) as server:

        @contextlib.asynccontextmanager
        async def reach(settings: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            yield {"base_url": server.url, "transport": transport, **settings}

        with witness.listening():
            yield Stage(witness, server.service, reach, server.url.removeprefix("http://"), short=0.1)


# --- the scenarios ----------------------------------------------------------------------------------------------------


async def good_days(stage: Stage) -> None:
    """Solves of every kind, jobs, batches, states, balance and feedback."""
    async with stage.client(selection_mode="autoFastest", provider="capsolver") as client:
        for task in tasks():
            stage.witness.see(task)
            solution = await stage.keep(client.solve(task))
            assert "MARKtoken" in solution.token
            await stage.keep(solution.rejected("no"))
        job = await stage.keep(client.submit(tasks()[0]))
        await stage.keep(client.get_task_result(job.task_id))
        await stage.keep(job.wait())
        await stage.keep(client.get_task_result(job.task_id))
        await stage.keep(client.get_balance())
        await stage.keep(client.gather(tasks()))
        async with client.solve_many(tasks()) as outcomes:
            stage.witness.see(outcomes)
            async for outcome in outcomes:
                stage.witness.see(outcome)


async def bad_days(stage: Stage) -> None:
    """Each fault, at each endpoint."""
    faults: list[Fault] = [
        *(Html(502), Html(429), Truncated(), Json([1]), Json({"odd": 1}), Huge(2_000_000), RateLimit(retry_after=0)),
        *(Reply(status=503), Drop(before=True), Drop(after=True), Drop(during=True)),
        *(Error("ERROR_NO_SLOT_AVAILABLE"), Error("ERROR_BAD_PROXY"), Error("ERROR_ZERO_BALANCE"), Error("ODD")),
        *(Amend(without=("taskId", "status")), Amend({"status": "pondering"}), Reply(status=307)),
        *(Amend({"status": "ready", "solution": {"odd": TOKEN}}), Amend({"status": "ready", "solution": TOKEN})),
    ]
    for fault in faults:
        async with stage.client(on_uncertain="resubmit", attempts=2) as client:
            for endpoint in ("createTask", "getTaskResult", "getBalance", "feedbackTask"):
                stage.service.faults.clear()
                stage.service.script(endpoint, fault)
                client.reset_breaker()
                await stage.keep(client.solve(tasks()[0]))
                await stage.keep(client.get_balance())
                await stage.keep(client.feedback("5f1c", accepted=False, message="no"))
    stage.service.faults.clear()


async def a_service_that_repeats(stage: Stage) -> None:
    """The service puts what it was sent into its errors, in every way."""
    async with stage.client(callbacks=stage.receiver) as client:
        for code, status in ECHOES:
            for description in echoes():
                body = {"errorId": 1, "errorCode": code, "errorDescription": description}
                stage.service.script("createTask", Json(body, status=status))
                for task in (tasks()[number] for number in (0, 1, 3, 4)):
                    client.reset_breaker()
                    await stage.keep(client.solve(task, timeout=stage.short))
                stage.service.faults.clear()
                stage.service.script("getTaskResult", Json(body, status=status))
                client.reset_breaker()
                await stage.keep(client.solve(tasks()[0]))
                stage.service.faults.clear()
                failed = {"errorId": 0, "status": "failed", "errorCode": code, "errorDescription": description}
                odd = {"errorId": 0, "status": f"waits for {KEY}"}
                stage.service.script("getTaskResult", Json(odd), Json(failed), Json(failed))
                await stage.keep(client.solve(tasks()[1]))
                await stage.keep(client.get_task_result(stage.service.books.accepted[-1]))
                stage.service.faults.clear()
    async with stage.client() as client:
        for description in (f"no such key {KEY}", f"key={KEY}"):
            stage.service.script("getBalance", Error("ERROR_KEY_DOES_NOT_EXIST"))
            stage.service.script("getBalance", Json({"errorId": 1, "errorDescription": description}, status=401))
            stage.service.script("feedbackTask", Json({"errorId": 0, "message": description}))
            for _ in range(2):
                await stage.keep(client.get_balance())
            await stage.keep(client.feedback("5f1c", accepted=False, message="no"))


ECHOES = (
    ("ERROR_KEY_DOES_NOT_EXIST", 401),
    ("ERROR_PROXY_FORMAT", 400),
    ("ERROR_CAPTCHA_UNSOLVABLE", 200),
    ("ERROR_NO_SLOT_AVAILABLE", 503),
    ("INTERNAL_ERROR", 500),
    ("ERROR_SEEN_BY_NOBODY", 409),
    (f"ERROR_{KEY}_REFUSED", 409),
)


def echoes() -> list[str]:
    return [
        f"The key {KEY} is refused.",
        f"Cannot connect to {PROXY_URL}, password {PASSWORD}, raw http://{USER}:{PASSWORD}@198.51.100.7:8080",
        f"callbackUrl {PUBLIC}/{PATH} must lead to a public address; path {PATH}; proxyPassword={quote(PASSWORD)}",
    ]


async def pushed(stage: Stage) -> None:
    """Results that come by callbacks, to an address that nobody may know."""
    stage.witness.see(stage.receiver, stage.receiver.statistics())
    async with stage.client(callbacks=stage.receiver) as client:
        for task in tasks():
            await stage.keep(client.solve(task))
        with contextlib.suppress(ValueError):
            await deliver(stage.receiver, f"{PUBLIC}/{PATH}?captcha_id={'x' * 200}&code={TOKEN}")
            await deliver(stage.receiver, f"{PUBLIC}/{PATH}x?captcha_id=5f1c&code={TOKEN}")
    stage.witness.see(stage.receiver, stage.receiver.statistics())
    assert stage.receiver.statistics().woken > 0


async def broken_connections(stage: Stage) -> None:
    """What only a socket can do, and answers that are no answers."""
    faults = (Drop(before=True), Drop(during=True), Drop(after=True), Truncated(), Huge(2_000_000), Html(502))
    async with stage.client() as client:
        for endpoint in ("createTask", "getTaskResult"):
            for fault in faults:
                stage.service.script(endpoint, fault)
                await stage.keep(client.solve(tasks()[0]))
        stage.service.script("getBalance", *faults, Reply(status=307))
        for _ in faults:
            await stage.keep(client.get_balance())
    stage.service.faults.clear()


async def a_service_that_repeats_once(stage: Stage) -> None:
    """The service puts what it was sent into its errors."""
    async with stage.client() as client:
        for description in echoes()[:2]:
            body = {"errorId": 1, "errorCode": "ERROR_BAD_PROXY", "errorDescription": description}
            stage.service.script("createTask", Json(body, status=400))
            await stage.keep(client.solve(tasks()[0]))
            stage.service.script("getTaskResult", Json(body, status=400))
            await stage.keep(client.solve(tasks()[0]))
    stage.service.faults.clear()


async def through_a_proxy(stage: Stage, transport: str) -> None:
    """The way to the service leads through a proxy with a password: one that works, and two that are not there."""
    login = f"{USER}:{quote(PASSWORD, safe='')}"
    await stage.keep(proxied(stage, f"http://{login}@{stage.address}", transport=transport))
    assert transport == "fast" or stage.service.books.request_counts["getBalance"] > 0
    await stage.keep(proxied(stage, f"http://{login}@127.0.0.1:9", transport=transport))
    await stage.keep(proxied(stage, f"socks5://{login}@127.0.0.1:9", transport=transport))


async def proxied(stage: Stage, proxy: str, **options: Any) -> None:
    async with stage.client(proxy=proxy, **options) as client:
        await stage.keep(client.get_balance())
        await stage.keep(client.solve(tasks()[0], timeout=3 * stage.short))


async def running_out_of_time(stage: Stage) -> None:
    """Deadlines in the queue, in the submit and in the wait; a request that is never answered."""
    async with stage.client(max_in_flight=1, request_timeout=stage.short) as client:
        stage.service.script("getTaskResult", Html(502), Drop(before=True))
        job = await stage.keep(client.submit(tasks()[0]))
        await stage.keep(client.solve(tasks()[1], timeout=stage.short / 2))
        await stage.keep(job.wait(timeout=0.05))
        await stage.keep(job.wait())
        for endpoint in ("createTask", "getTaskResult"):
            stage.service.faults.clear()
            stage.service.script(endpoint, Delay(3 * stage.short, times=3))
            await stage.keep(client.solve(tasks()[0], timeout=4 * stage.short))
    stage.service.faults.clear()


async def cancelled(stage: Stage) -> None:
    """Cancelled while submitting, while waiting, and by the failure of a neighbour in a task group."""
    async with stage.client() as client:
        for endpoint in ("createTask", "getTaskResult"):
            for grace in (0.5, 2.0):
                stage.service.script(endpoint, Delay(grace * stage.short))
                with anyio.move_on_after(stage.short / 4):
                    await client.solve(tasks()[0])
        stage.witness.see(client.abandoned)
        stage.service.faults.clear()
        try:
            async with anyio.create_task_group() as group:
                for task in tasks():
                    group.start_soon(client.solve, task)
                stage.service.script("*", Error("ERROR_BAD_PARAMETERS"))
        except* UCaptchaError as group_error:
            stage.witness.error(group_error)
    stage.service.faults.clear()


async def journals(stage: Stage, folder: Path) -> None:
    """Journals with and without solutions, in use and after it; recovery; a budget; and a file that cannot be used."""
    for store, allowed in ((False, ()), (True, ("the token",))):
        # A journal that was asked to keep solutions also has them in memory, until they are written.
        stage.witness.kept = allowed
        path = folder / f"journal-{store}"
        path.mkdir()
        journal = SQLiteJournal(path / "solves.db", store_solutions=store)
        budget = Budget(max_spend="0.05", estimate="0.01")
        async with stage.client(journal=journal, budget=budget) as client:
            stage.service.script("createTask", Error("ERROR_BAD_PROXY"), Drop(after=True))
            for name in ("one", "two", "two", "three", "three", *"abcdef"):
                await stage.keep(client.solve(tasks()[0], key=name))
            stage.witness.see(journal, budget, [entry async for entry in journal.entries()])
            stage.witness.files(path, allowed=allowed)
        stage.witness.files(path, allowed=allowed)
        async with stage.client(journal=journal) as client, client.recover() as outcomes:
            async for outcome in outcomes:
                stage.witness.see(outcome, outcome.error)
        stage.witness.files(path, allowed=allowed)
    stage.witness.kept = ()
    broken = folder / "broken.db"
    broken.write_bytes(b"SQLite format 3\0" + b"nonsense" * 1000)
    for journal in (SQLiteJournal(broken), SQLiteJournal(folder / "no" / "folder" / "solves.db")):
        await stage.keep(entered(stage, journal))


async def entered(stage: Stage, journal: Any) -> None:
    async with stage.client(journal=journal):
        pass


async def wrong_settings(stage: Stage) -> None:
    """Settings that hold a secret and are refused, or that are beside one that is refused."""
    attempts: list[Callable[[], object]] = [
        lambda: AsyncClient(KEY + "\n\0"),
        lambda: AsyncClient(KEY, timeout=-1),
        lambda: AsyncClient(KEY, max_inflight=1),  # type: ignore[call-arg]
        lambda: AsyncClient(KEY, base_url=f"https://user:{quote(PASSWORD, safe='')}@example.com"),
        lambda: AsyncClient(KEY, proxy=PROXY_URL.replace("8080", "port")),
        lambda: AsyncClient(KEY, proxy=PROXY_URL, transport="fats"),  # type: ignore[arg-type]
        lambda: Proxy.parse(PROXY_URL + "/path"),
        lambda: Proxy(scheme="http", host="a b", port=1, username=USER, password=PASSWORD),
        lambda: RecaptchaV2(website_url=PAGE, website_key="6Le", proxy=PROXY_URL),  # type: ignore[arg-type]
        lambda: RecaptchaV2(website_url=PAGE, website_key="", proxy=Proxy.parse(PROXY_URL)),
        lambda: Task("Any", proxyPassword=PASSWORD, odd=object()),  # type: ignore[arg-type]
        lambda: CallbackReceiver(PUBLIC, path_secret=f"{PATH} "),
        lambda: CallbackReceiver("ftp://odd", path_secret=PATH),
    ]
    for attempt in attempts:
        with pytest.raises((UCaptchaError, TypeError)) as caught:
            attempt()
        stage.witness.error(caught.value)


async def account_refused(stage: Stage) -> None:
    """A refused account, the breaker after it, and a batch that ends with it."""
    async with stage.client(journal=MemoryJournal(store_solutions=True), breaker_reset=0.01) as client:
        stage.service.script("createTask", Error("ERROR_KEY_DOES_NOT_EXIST", times=5))
        for _ in range(3):
            await stage.keep(client.solve(tasks()[0]))
        await stage.keep(client.gather(tasks()))
    stage.service.faults.clear()


BY_LOGIC = (
    *(good_days, bad_days, a_service_that_repeats, pushed, running_out_of_time, cancelled, account_refused),
    wrong_settings,
)
BY_TRANSPORT = (good_days, broken_connections, a_service_that_repeats_once, running_out_of_time, cancelled)


def searched(witness: Witness, *, logs: bool = True) -> None:
    assert not witness.found, "\n\n".join(witness.found[:5])
    assert {"object", "pickle", "error"} <= witness.searched.keys()
    assert not logs or witness.searched["log"] > 20


@virtual
async def test_in_process() -> None:
    """All that the client itself does, in virtual time."""
    async with in_process(httpx) as stage:
        for scenario in BY_LOGIC:
            await scenario(stage)

    searched(stage.witness)


async def test_journal_files(tmp_path: Path) -> None:
    """Journals in files: in real time, for a virtual clock jumps past the thread that writes."""
    async with in_process(httpx) as stage:
        await journals(stage, tmp_path)

    searched(stage.witness)
    assert stage.witness.searched["file"] > 10


@virtual
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_client_handed_in(library: Any) -> None:
    """Through a client of httpx or httpx2 that the program brings along."""
    async with in_process(library) as stage:
        for scenario in BY_TRANSPORT:
            await scenario(stage)

    searched(stage.witness)


@pytest.mark.parametrize("transport", ["httpx", "httpx2", "fast"])
async def test_over_sockets(transport: str, anyio_backend_name: str) -> None:
    """Through the client's own connections, of all three kinds, and through proxies."""
    refused = (transport, anyio_backend_name) == ("fast", "trio")
    async with over_sockets(transport) as stage:
        await through_a_proxy(stage, transport)
        for scenario in () if refused else BY_TRANSPORT:
            await scenario(stage)

    searched(stage.witness, logs=not refused)


# --- the search can fail ----------------------------------------------------------------------------------------------


class Leaky(Proxy):
    """A proxy that shows itself."""

    __module__ = "ucaptcha_async.leaky"

    def __repr__(self) -> str:
        return self.to_url()


@attrs.define
class Plain:
    """An object that keeps a secret where pickle and rich find it."""

    key: str = attrs.field(default=KEY)

    def __repr__(self) -> str:
        return "Plain()"


Plain.__module__ = "ucaptcha_async.plain"


PLANTED = """
def raised(*notes, message="odd", local=None):
    try:
        error = UCaptchaError(message)
        for note in notes:
            error.add_note(note)
        raise error
    except UCaptchaError as caught:
        return caught
"""
elsewhere: dict[str, Any] = {"UCaptchaError": UCaptchaError}
exec(compile(PLANTED, "elsewhere.py", "exec"), elsewhere)
raised = elsewhere["raised"]


def chained() -> BaseException:
    outer = UCaptchaError("outer")
    outer.__context__, outer.__suppress_context__ = raised(local=TOKEN), True
    return outer


def logged(witness: Witness, message: str, *args: object) -> None:
    with witness.listening():
        logging.getLogger("httpcore.connection").debug(message, *args)


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (lambda w: logged(w, "sent %s", f"key={KEY}"), "the API key in log"),
        (lambda w: logged(w, "sent %.4s", KEY.encode()), "the API key in log"),
        (lambda w: w.see([{"proxy": Leaky.parse(PROXY_URL)}]), "the proxy's password in object Leaky (repr)"),
        (lambda w: w.see(Plain()), "the API key in object Plain (rich)"),
        (lambda w: w.see(functools.partial(print, TOKEN)), "the token in object partial (repr)"),
        (lambda w: w.pickled({"token": TOKEN}), "the token in pickle"),
        (lambda w: w.error(raised(message=f"callback to {PATH}")), "the secret of the callback's path in error"),
        (lambda w: w.error(raised(PROXY_URL)), "the proxy's password in error"),
        (lambda w: w.error(raised(local=KEY)), "the API key in error UCaptchaError (local values)"),
        (lambda w: w.error(chained()), "the token in error UCaptchaError (local values)"),
        (lambda w: w.error(ExceptionGroup("both", [raised(message=KEY)])), "the API key in error"),  # type: ignore[list-item]
        (lambda w: w.text("header", f"Basic {LOGIN}"), "the proxy's login in base64 in header"),
    ],
)
def test_a_leak_is_found(plant: Callable[[Witness], object], name: str) -> None:
    """A secret that is planted is found, wherever it is."""
    witness = Witness()
    plant(witness)

    assert any(found.startswith(name) for found in witness.found), witness.found


def test_a_leak_into_a_file_is_found(tmp_path: Path) -> None:
    """The token in a journal that was not asked to keep it; in one that was, it is allowed."""
    (tmp_path / "solves.db-wal").write_bytes(b"\0\1" + TOKEN.encode())
    witness, asked = Witness(), Witness()
    witness.files(tmp_path)
    asked.files(tmp_path, allowed=("the token",))

    assert [found.partition(":")[0] for found in witness.found] == ["the token in file solves.db-wal"]
    assert asked.found == []
