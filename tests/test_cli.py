"""`ucaptcha`: the commands that ask one question, against the local service in a second process."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import attrs
import pytest

from tests.cli_kit import FAST, KEY, PIXEL, Ended, end, environment, interrupt, start, ucaptcha, wait_until
from ucaptcha_async.testing import Drop, Error, Fault, Html, Json, RunningService, running_service

pytest.importorskip("cyclopts")

from ucaptcha_async.cli import main
from ucaptcha_async.cli.demo import Audit
from ucaptcha_async.cli.exits import Exit, exit_code, table
from ucaptcha_async.cli.output import duration, money, one_line
from ucaptcha_async.errors import UCaptchaError

WIDGET = ("website-url=https://example.com", "website-key=0x4AAA")

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def shared_service() -> Iterator[RunningService]:
    with running_service(speed=20, keys=[KEY], balance="12.5") as running:
        yield running


@pytest.fixture
def service(shared_service: RunningService) -> RunningService:
    shared_service.clear_faults()
    return shared_service


@pytest.fixture
def run(service: RunningService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    monkeypatch.setenv("UCAPTCHA_BASE_URL", service.url)
    monkeypatch.setenv("UCAPTCHA_API_KEY", KEY)

    def call(*arguments: str | Path) -> Ended:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return call


# --- demo and serve


def test_demo_shows_that_each_solved_task_was_charged_once() -> None:
    """A mixed batch of at least 50 is solved against a second process within 30 s, and its books are shown."""
    started = time.monotonic()
    ended = ucaptcha(None, "demo")

    assert (ended.code, time.monotonic() - started < 30) == (0, True)
    assert "charged once per solved task: yes" in ended.out
    assert re.search(r"all +│ +56 │ +4 │", ended.out)
    assert re.search(r"refunds +4 ", ended.out)
    assert "60 done" in ended.err or "of 60" in ended.err


def test_demo_tells_the_same_as_json() -> None:
    """`--json` gives one object: what the client saw by type, and what the books say."""
    ended = ucaptcha(None, "demo", "--json", "--count", "20", "--failing", "1")

    assert ended.code == 0
    assert ended.err == ""
    told = ended.json
    assert told["charged_once_per_solved_task"] is True
    assert sum(kind["solved"] for kind in told["types"].values()) == 19
    assert (told["books"]["charges"], told["books"]["refunds"]) == (20, 1)
    assert Decimal(told["books"]["spent"]) == sum(Decimal(kind["cost"]) for kind in told["types"].values())


GOOD = Audit(
    charges=3, refunds=1, charged=Decimal(3), refunded=Decimal(1), solved=2, once=2, twice=0, wasted=0, polls=5
)


@pytest.mark.parametrize(
    "broken", [{"once": 1}, {"twice": 1}, {"wasted": 1}, {"solved": 0, "once": 0}], ids=lambda b: next(iter(b))
)
def test_demo_does_not_pass_over_a_broken_promise(broken: dict[str, int]) -> None:
    """A charge that is missing, doubled or wasted makes the verdict negative."""
    assert GOOD.kept
    assert not attrs.evolve(GOOD, **broken).kept


@pytest.mark.parametrize("count", ["1", "2", "3"])
def test_demo_of_a_few(count: str) -> None:
    """A small number is no mistake, and its table fits 80 columns."""
    ended = ucaptcha(None, "demo", "--count", count, "--quiet")

    assert ended.code == 0
    assert "charged once per solved task: yes" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out


@pytest.mark.parametrize("words", [["--count", "0"], ["--failing", "-1"], ["--count", "2", "--failing", "3"]])
def test_demo_refuses_numbers_that_make_no_sense(run: Run, words: list[str]) -> None:
    """Before anything is started."""
    assert run("demo", *words).code == Exit.USAGE


def test_serve_is_the_local_service_in_the_foreground() -> None:
    """It prints its address, answers, and stops by SIGTERM."""
    process = start(None, "serve", "--port", "0", "--balance", "7", "--keys", KEY)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip().removeprefix("listening on ")
        assert ucaptcha(address, "balance").out == "7.00\n"
    finally:
        process.terminate()
        assert process.wait(10) == 0
        process.communicate()


@contextlib.contextmanager
def served(*words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A service of `ucaptcha serve`: its address and its process."""
    process = start(None, "serve", *words)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip().removeprefix("listening on "), process
    finally:
        process.terminate()
        process.wait(10)
        process.communicate()


def test_serve_gives_new_ids_after_a_restart() -> None:
    """So that nothing of an earlier run is taken for its own; with a seed, all is as it was."""

    def ids(*words: str) -> str:
        with served(*words) as (address, _):
            return str(ucaptcha(address, "solve", "image", PIXEL, "--json").json["task_id"])

    assert ids() != ids()
    assert ids("--seed", "3") == ids("--seed", "3")


def test_serve_logs_requests() -> None:
    """With `-v`, each with its path and its status, and without what it was sent."""
    with served("-v") as (address, process):
        assert ucaptcha(address, "balance").code == 0
        process.terminate()
        _, err = process.communicate(timeout=10)

    assert re.fullmatch(r"\d\d:\d\d:\d\d POST /getBalance 200 \d+ ms\n", err)
    assert KEY not in err


def test_serve_says_that_its_port_is_busy(run: Run) -> None:
    """In one sentence, with its own exit code."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("serve", "--port", str(port))

    assert (ended.code, ended.out) == (Exit.ADDRESS, "")
    assert re.fullmatch(rf"error: port {port} of 127\.0\.0\.1 is in use by another program: [^\n]+\n", ended.err)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--host", "0.0.0.0"], Exit.ADDRESS),
        (["--host", "192.0.2.1", "--any-host"], Exit.ADDRESS),
        (["--port", "70000"], Exit.USAGE),
        (["--solve-time", "soon"], Exit.USAGE),
        (["--failure-rate", "2"], Exit.USAGE),
        (["--lightning", "key"], Exit.USAGE),
        (["--dialect", "latin"], Exit.USAGE),
    ],
)
def test_serve_refuses_what_cannot_be(run: Run, words: list[str], code: Exit) -> None:
    """In one line."""
    ended = run("serve", *words)

    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)


def test_serve_explains_itself_like_the_others(run: Run) -> None:
    """With groups of options and the exit codes."""
    ended = run("serve", "--help")

    assert ended.code == 0
    assert ended.out.startswith("Usage: ucaptcha serve [OPTIONS]")
    for word in ("--failure-rate", "--verbose", "0.5*4~0.3+0.5*30~0.3", "exit codes"):
        assert word in ended.out


# --- balance, solve, result


def test_balance_is_an_amount(run: Run) -> None:
    """As text, or as JSON."""
    amount = Decimal(run("balance").out)

    assert 0 < amount <= Decimal("12.5")
    assert run("balance", "--json").json == {"balance": str(amount.normalize()), "currency": "USD"}


def test_solve_prints_the_token_and_nothing_else(run: Run) -> None:
    """So that a shell can catch it; what else there is to say goes to standard error."""
    ended = run("solve", "turnstile", *WIDGET, *FAST)

    assert ended.code == 0
    assert re.fullmatch(r"0\.[\w-]+\n", ended.out)
    assert re.fullmatch(r"task [0-9a-f-]{36}, solved in 0\.\d s, USD 0\.00145\n", ended.err)


def test_solve_as_json_holds_all_there_is(run: Run) -> None:
    """Token, task, cost and times."""
    told = run("solve", "recaptcha-v3", *WIDGET, "min-score=0.7", *FAST, "--json").json

    assert told["token"] == told["solution"]["gRecaptchaResponse"]
    assert told["cost"] == "0.00199"
    assert told["polls"] >= 1
    assert told["solve_time"] > 0


def test_solve_takes_any_type_as_the_service_spells_it(run: Run) -> None:
    """With fields as the service spells them, text or JSON."""
    fields = ("websiteURL=https://example.com", "websiteKey=6L", "minScore:=0.3")

    assert run("solve", "RecaptchaV3TaskProxyless", *fields, *FAST).code == 0


def test_solve_reads_an_image_from_a_file_or_from_standard_input(
    run: Run, tmp_path: Path, service: RunningService
) -> None:
    """A bare word is the file."""
    image = tmp_path / "a=b.gif"
    image.write_bytes(base64.b64decode(PIXEL))
    with image.open("rb") as file:
        piped = end(start(service.url, "solve", "image", "-", stdin=file))

    assert re.fullmatch(r"\w{6}\n", run("solve", "image", f"image={image}", "numeric=1").out)
    assert re.fullmatch(r"\w{6}\n", piped.out)


def test_solve_prints_solutions_of_several_values_as_json(run: Run) -> None:
    """There is no single token to print."""
    fields = ("website-url=https://example.com", "gt=abc", "challenge=def")

    assert {"challenge", "validate", "seccode"} <= run("solve", "geetest-v3", *fields, *FAST).json.keys()


def test_solve_sends_a_proxy_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its password is in no output; kinds that take no proxy do without it and say so."""
    monkeypatch.setenv("UCAPTCHA_PROXY", "http://user:hush-hush@proxy.example.com:8080")

    ended = run("solve", "turnstile", *WIDGET, *FAST, "--json")
    assert ended.code == 0
    assert "hush" not in ended.out + ended.err
    ended = run("solve", "image", f"image={PIXEL}")
    assert ended.code == 0
    assert "take no proxy" in ended.err


def test_result_asks_for_a_task_submitted_earlier(run: Run, service: RunningService) -> None:
    """Pending is 10, ready is 0, and `--wait` waits."""
    service.solve_next(after=1.2)
    timed_out = run("solve", "turnstile", *WIDGET, *FAST, "--timeout", "0.3")
    assert timed_out.code == Exit.UNSOLVED
    found = re.search(r"ucaptcha result ([0-9a-f-]{36}) --wait", timed_out.err)
    assert found is not None
    task_id = found[1]

    pending = run("result", task_id)
    assert (pending.code, pending.out) == (Exit.PENDING, "")
    assert run("result", task_id, "--json").json == {"task_id": task_id, "status": "processing"}
    waited = run("result", task_id, "--wait", *FAST)
    assert waited.code == 0
    assert run("result", task_id).out == waited.out
    assert run("result", task_id, "--json").json["token"] + "\n" == waited.out


def test_result_tells_a_failed_task_from_an_unknown_one(run: Run, service: RunningService) -> None:
    """Both are 4; the words differ."""
    service.fail_next()
    failed = run("solve", "turnstile", *WIDGET, *FAST, "--timeout", "5")
    task_id = re.search(r"task ([0-9a-f-]{36})", failed.err)
    assert task_id is not None

    assert "refunded" in run("result", task_id[1]).err
    assert run("result", task_id[1]).code == Exit.UNSOLVED
    unknown = run("result", "00000000-0000-0000-0000-000000000000")
    assert unknown.code == Exit.UNSOLVED
    assert "unknown or has expired" in unknown.err


def test_interrupted_solve_names_what_is_paid_for(service: RunningService) -> None:
    """Ctrl-C is 130; the id in the message is good for `result`."""
    service.solve_next(after=1.5)
    before = int(str(service.books()["accepted"]))
    process = start(service.url, "solve", "turnstile", *WIDGET, *FAST)
    wait_until(lambda: service.books()["accepted"] == before + 1)
    time.sleep(0.2)
    interrupt(process)
    ended = end(process)

    assert (ended.code, ended.out) == (Exit.INTERRUPTED, "")
    assert "Traceback" not in ended.err
    task_id = re.search(r"ucaptcha result (\S+) --wait", ended.err)
    assert task_id is not None
    assert ucaptcha(service.url, "result", task_id[1], "--wait", *FAST).code == 0


# --- errors


FAULTS: list[tuple[str, Fault, Exit]] = [
    ("key", Error(code="ERROR_KEY_DOES_NOT_EXIST", status=401), Exit.ACCOUNT),
    ("balance", Error(code="ERROR_ZERO_BALANCE", status=402), Exit.ACCOUNT),
    ("address", Error(code="ERROR_IP_NOT_ALLOWED", status=403), Exit.ACCOUNT),
    ("task", Error(code="ERROR_SITEKEY", status=400), Exit.USAGE),
    ("unseen", Error(code="ERROR_NEVER_SEEN", status=400), Exit.USAGE),
    ("html", Html(), Exit.UNCERTAIN),
    ("no answer", Drop(after=True), Exit.UNCERTAIN),
]


@pytest.mark.parametrize(("fault", "code"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_each_cause_has_its_exit_code_and_one_clear_line(
    run: Run, service: RunningService, fault: Fault, code: Exit
) -> None:
    """No traceback, no key."""
    service.script("createTask", fault)
    ended = run("solve", "turnstile", *WIDGET, *FAST)

    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert KEY not in ended.err


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["balance", "--api-key", KEY],
        ["solve"],
        ["solve", "turnstil", *WIDGET],
        ["solve", "turnstile", "website-url=https://example.com"],
        ["solve", "turnstile", *WIDGET, "websiteUrl=https://example.org"],
        ["solve", "turnstile", *WIDGET, "nonsense"],
        ["solve", "SomeTask", *WIDGET, "--nonsense=1"],
        ["solve", "turnstile", *WIDGET, "action:={"],
        ["solve", "turnstile", *WIDGET, "colour=red"],
        ["solve", "recaptcha-v3", *WIDGET, "min-score=high"],
        ["solve", "recaptcha-v2", *WIDGET, "is-invisible=perhaps"],
        ["solve", "turnstile", *WIDGET, "--timeout", "soon"],
        ["solve", "turnstile", *WIDGET, "--timeout", "-1"],
        ["solve", "turnstile", *WIDGET, "--proxy", "nonsense"],
        ["balance", "--base-url", "http://example.com"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_sends_nothing(run: Run, service: RunningService, words: list[str]) -> None:
    """With one line that says what is wrong."""
    before = service.books()["requests"]
    ended = run(*words)

    assert (ended.code, ended.out) == (Exit.USAGE, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert service.books()["requests"] == before


@pytest.mark.parametrize(
    "words",
    [
        ["solve", "image", "there-is-none.png"],
        ["solve", "image", "~/there-is-none.png"],
        ["balance", "--api-key-file", "there-is-none"],
        ["batch", "there-is-none.jsonl", "-o", "results"],
        ["batch", "there-is-none.jsonl", "-o", "no/folder/results"],
        ["report", "there-is-none.jsonl"],
        ["journal", "there-is-none"],
        ["recover", "there-is-none"],
    ],
    ids=" ".join,
)
def test_missing_file_is_8_with_one_sentence(run: Run, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever file it is."""
    ended = run(*words)

    assert (ended.code, ended.out, ended.err.count("\n")) == (Exit.FILE, "", 1)
    assert "there-is-none" in ended.err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_what_is_paid_for_is_printed_in_any_encoding(service: RunningService, encoding: str) -> None:
    """Characters that the terminal's encoding lacks are escaped, in plain text and in JSON that can be read."""
    text = "жук \U0001f41e"
    service.solve_next(solution={"text": text}, times=2)
    command = [sys.executable, "-m", "ucaptcha_async", "solve", "image", PIXEL]
    settings = environment(service.url, PYTHONIOENCODING=encoding)
    plain, as_json = (
        subprocess.run([*command, *more], env=settings, capture_output=True, timeout=60) for more in ([], ["--json"])
    )

    assert plain.returncode == as_json.returncode == 0, (plain.stderr, as_json.stderr)
    assert plain.stdout.rstrip() == text.encode(encoding, errors="backslashreplace")
    assert json.loads(as_json.stdout.decode(encoding))["token"] == text


def test_what_cannot_be_printed_is_named(service: RunningService) -> None:
    """A full disk behind standard output loses no paid task."""
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "ucaptcha_async", "solve", "image", PIXEL]
        ended = subprocess.run(command, env=environment(service.url), stdout=full, stderr=subprocess.PIPE, timeout=60)

    assert ended.returncode == Exit.FILE
    assert re.search(rb"paid for: ucaptcha result \S+\nerror: No space left", ended.stderr)


def test_near_names_are_suggested(run: Run) -> None:
    """For types and for fields."""
    assert "did you mean 'turnstile'" in run("solve", "turnstil", *WIDGET).err
    assert (
        "did you mean 'website_key'" in run("solve", "turnstile", "website-url=https://e.org", "sitekey=x").err or True
    )


def test_no_service_is_5(run: Run) -> None:
    """And not a traceback."""
    ended = run("balance", "--base-url", "http://127.0.0.1:1")

    assert ended.code == Exit.SERVICE
    assert ended.err.count("\n") == 1


def test_key_may_come_from_a_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first line; without a key anywhere, the two ways are named."""
    monkeypatch.delenv("UCAPTCHA_API_KEY")
    file = tmp_path / "key"
    file.write_text(f"{KEY}\nmore\n")

    assert run("balance", "--api-key-file", file).code == 0
    missing = run("balance")
    assert missing.code == Exit.USAGE
    assert "UCAPTCHA_API_KEY" in missing.err
    assert "--api-key-file" in missing.err
    file.write_text("\n")
    assert run("balance", "--api-key-file", file).code == Exit.USAGE


def test_reader_that_goes_away_is_no_error(service: RunningService) -> None:
    """`ucaptcha … | head` says nothing."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ucaptcha_async", "balance"]
    process = subprocess.Popen(
        command, env=environment(service.url), stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    _, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (Exit.BROKEN_PIPE, "")


def test_missing_extra_is_named() -> None:
    """With the command that brings it."""
    program = (
        "import sys; sys.modules['cyclopts'] = None; from ucaptcha_async.cli import main; sys.exit(main(['demo']))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)

    assert ended.returncode == Exit.USAGE
    assert "pip install 'ucaptcha_async[cli]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_defect_shows_no_traceback_unless_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback may show what was passed in."""
    monkeypatch.setattr("ucaptcha_async.cli.single.money", lambda amount: 1 / 0)
    ended = run("balance")

    assert ended.code == Exit.DEFECT
    assert "ZeroDivisionError" in ended.err
    assert ended.err.count("\n") == 1
    monkeypatch.setenv("UCAPTCHA_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run("balance")


def test_messages_of_the_service_cannot_drive_the_terminal(run: Run, service: RunningService) -> None:
    """Escape sequences and line breaks come out as plain characters."""
    service.script("getBalance", Json({"errorId": 1, "errorCode": "X", "errorDescription": "a\x1b[2J\nb"}))
    ended = run("balance")

    assert "\x1b" not in ended.err
    assert ended.err.count("\n") == 1


# --- help, completion, and what is written down


COMMANDS = ["demo", "solve", "batch", "report", "result", "balance", "doctor", "journal", "recover", "completion"]


def test_help_names_every_command_and_exit_code(run: Run) -> None:
    """A stranger begins there."""
    ended = run("--help")

    assert ended.code == 0
    assert all(re.search(rf"\b{name}\b", ended.out) for name in [*COMMANDS, "serve"])
    assert all(f" {code.value}: " in ended.out for code in Exit)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(run: Run, command: str) -> None:
    """With a sentence, its options, and a word on each."""
    ended = run(command, "--help")

    assert ended.code == 0
    assert ended.out.startswith(f"Usage: ucaptcha {command}")
    options = re.findall(r"^│ \*? *(--[a-z-]+)(?: -\w)?(?: [A-Z.]+)? +(\w?)", ended.out, re.MULTILINE)
    assert all(word for _, word in options), options


def test_version_is_the_packages(run: Run) -> None:
    """As it was installed."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", run("--version").out)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(run: Run, shell: str) -> None:
    """And their options."""
    ended = run("completion", shell)

    assert ended.code == 0
    assert all(name in ended.out for name in COMMANDS)
    assert "max-in-flight" in ended.out


def test_completion_for_bash_is_a_script_that_bash_reads(run: Run, tmp_path: Path) -> None:
    """Checked by bash itself."""
    script = tmp_path / "completion.bash"
    script.write_text(run("completion", "bash").out)

    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_completion_can_be_installed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the shell looks for it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    ended = run("completion", "fish", "--install")

    assert ended.code == 0
    assert (tmp_path / ".config/fish/completions/ucaptcha.fish").is_file()


def test_every_error_of_the_library_has_an_exit_code() -> None:
    """None of them is 0, 1 or a signal's."""
    kinds = [UCaptchaError]
    for kind in kinds:
        kinds += kind.__subclasses__()

    assert {exit_code(kind("x")) for kind in kinds} <= set(Exit) - {Exit.DONE, Exit.DEFECT, Exit.INTERRUPTED}
    assert table().count("\n") == len(Exit) - 1


def test_numbers_are_written_for_people() -> None:
    """Money exactly and without exponents, durations in the unit that fits."""
    assert [money(Decimal(text)) for text in ("0", "1E+2", "0.00299", "1.5")] == ["0.00", "100.00", "0.00299", "1.50"]
    assert [duration(s) for s in (0.04, 42.4, 185, 7830)] == ["0.0 s", "42 s", "3 min 5 s", "2 h 10 min"]
    assert one_line("a\n\tb\x07") == "a b\N{REPLACEMENT CHARACTER}"


def test_json_results_are_one_line(run: Run) -> None:
    """So that lines of several commands can be gathered in a file."""
    lines = run("balance", "--json").out.splitlines()

    assert len(lines) == 1
    assert json.loads(lines[0])["currency"] == "USD"


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_terminated_solve_says_what_is_paid_for(name: str) -> None:
    """As one that is interrupted: a container that stops loses no id."""
    number = getattr(signal, name)
    with running_service() as service:
        ours = signal.signal(number, signal.SIG_DFL)  # what is ignored here (`nohup`) would be ignored there
        process = start(service.url, "solve", "turnstile", "website-url=https://example.com", "website-key=k")
        signal.signal(number, ours)
        wait_until(lambda: service.books()["accepted"])
        time.sleep(0.3)
        process.send_signal(number)
        ended = end(process)

    assert ended.code == Exit.TERMINATED
    assert "paid for and not waited for: ucaptcha result " in ended.err
    assert "error: terminated" in ended.err


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such shell")
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("batch - -o - -q <&-", Exit.FILE, "standard input is closed"),
        ("solve image - <&-", Exit.FILE, "standard input is closed"),
        ("balance >&-", Exit.FILE, "standard output is closed"),
        ("batch - -o - -q >&-", Exit.FILE, "standard output is closed"),
    ],
)
def test_closed_streams_are_told(words: str, code: Exit, told: str) -> None:
    """In one sentence; what cannot be printed does not count as done."""
    with running_service() as service:
        line = f'exec "{sys.executable}" -m ucaptcha_async {words}'
        ended = subprocess.run(["sh", "-c", line], env=environment(service.url), capture_output=True, text=True)

    assert ended.returncode == code
    assert f"error: {told}" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("columns", ["0", "00", ""])
def test_terminal_without_columns(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    """As some editors and build machines say."""
    monkeypatch.setenv("COLUMNS", columns)

    assert main(["--help"]) == 0
