"""`ucaptcha journal` and `ucaptcha recover`: what is paid for and has not ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import Parameter
from rich.table import Table

from ucaptcha_async.checks import seconds
from ucaptcha_async.client import AsyncClient
from ucaptcha_async.journal import Entry, SQLiteJournal, State, Total
from ucaptcha_async.results import Outcome
from ucaptcha_async.tasks import Solution

from .batch.index import KeyIndex, Met
from .batch.records import Times, record, status_of
from .batch.results import Results
from .batch.source import Item
from .connection import Connection, JsonFlag, QuietFlag
from .exits import CommandError, Exit
from .output import duration, money, note, one_line, result_console, say, say_json

OPEN = (State.INTENT, State.ACCEPTED, State.UNCERTAIN)

MEANING = {
    State.INTENT: "being sent; if its process is dead: sent or not, nobody knows",
    State.ACCEPTED: "paid for, not ended",
    State.UNCERTAIN: "sent, and no answer came",
    State.SOLVED: "solved",
    State.FAILED: "failed, refunded",
    State.REFUSED: "refused by the service",
    State.FORGOTTEN: "given up by hand",
}

DAY = 86_400.0

JournalFile = Annotated[
    Path, Parameter(help="The journal, or the output of ucaptcha batch that it lies beside (results.jsonl).")
]


def journal(
    file: JournalFile,
    /,
    *,
    forget: Annotated[
        list[str] | None,
        Parameter(
            help="Give up an open job, by its key or id, so that it may be submitted anew. May be repeated.",
            negative=(),
        ),
    ] = None,
    prune: Annotated[float | None, Parameter(help="Remove what ended more than this many days ago.")] = None,
    json: JsonFlag = False,
) -> int:
    """Show what a journal holds: what is open, and what everything has cost. Needs no key and no network."""
    if prune is not None:
        seconds("--prune", prune)  # a day yet to come would remove everything, and let it be paid again
    kept = _journal(file)
    return anyio.run(_look, kept, tuple(forget or ()), prune, json)


async def _look(kept: SQLiteJournal, forget: Sequence[str], prune: float | None, json: bool) -> int:
    async with kept:
        forgotten = await _forget(kept, forget)
        if prune is not None:
            removed = await kept.prune(datetime.now(UTC).timestamp() - prune * DAY)
            note(f"{removed:,} ended rows removed")
        totals = await kept.totals()
        entries = [entry async for entry in kept.entries(states=OPEN)]
    if json:
        say_json({"totals": [_total(total) for total in totals], "open": [_open(entry) for entry in entries]})
    else:
        _print(totals, entries)
    return Exit.DONE if forgotten else Exit.USAGE


async def _forget(kept: SQLiteJournal, names: Sequence[str]) -> bool:
    """Give up what has one of the names; whether all were found and free."""
    left = set(names)
    found = [entry async for entry in kept.entries() if left & _names(entry)] if left else []
    for entry in found:
        if entry.state not in (*OPEN, State.SOLVED):
            continue
        if not await kept.forget(entry.submit_id):
            note(f"{_label(entry)} is being worked on: not forgotten")
            continue
        left -= _names(entry)
        note(f"{_label(entry)} is forgotten: {MEANING[entry.state]}")
    for name in sorted(left):
        note(f"error: nothing open or solved is called {name!r}")
    return not left


def _names(entry: Entry) -> set[str]:
    return {name for name in (entry.key, entry.task_id, entry.submit_id) if name is not None}


def _label(entry: Entry) -> str:
    return entry.key or entry.task_id or entry.submit_id


def _total(total: Total) -> dict[str, object]:
    return {"type": total.type, "state": str(total.state), "count": total.count, "cost": str(total.cost)}


def _open(entry: Entry) -> dict[str, object]:
    return {
        "key": entry.key,
        "id": entry.submit_id,
        "type": entry.type,
        "state": str(entry.state),
        "task_id": entry.task_id,
        "since": entry.created_at.isoformat(timespec="seconds"),
    }


def _print(totals: Sequence[Total], entries: Sequence[Entry]) -> None:
    console = result_console()
    if not totals:
        say("the journal is empty")
        return
    table = Table(header_style="bold")
    for name in ("task type", "state"):
        table.add_column(name)
    for name in ("tasks", "cost, USD"):
        table.add_column(name, justify="right")
    for total in sorted(totals, key=lambda total: (total.type, list(State).index(total.state))):
        table.add_row(one_line(total.type), MEANING[total.state], f"{total.count:,}", money(total.cost, 5))
    console.print(table)
    say(f"cost of all that is solved: USD {money(sum((total.cost for total in totals), Decimal(0)))}")
    if entries:
        console.print(_open_table(entries))
        say("to wait for them: start the batch again, or ucaptcha recover")
        say("to give one up: --forget KEY")


def _open_table(entries: Sequence[Entry], most: int = 50) -> Table:
    table = Table(title=f"{len(entries):,} open", title_justify="left", header_style="bold")
    for name in ("key", "task type", "state", "task id"):
        table.add_column(name, overflow="fold")
    table.add_column("for", justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for entry in entries[:most]:
        age = duration(max(0.0, (now - entry.created_at).total_seconds()))
        table.add_row(one_line(entry.key or ""), one_line(entry.type), str(entry.state), entry.task_id or "", age)
    if len(entries) > most:
        table.add_row(f"… {len(entries) - most:,} more: --json lists all", "", "", "", "")
    return table


def recover(
    file: JournalFile,
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "-o"],
            help="Append the results to this file, which may be the output of a batch. Default: standard output.",
        ),
    ] = None,
    timeout: Annotated[float, Parameter(help="Seconds to wait for each.")] = 300.0,
    quiet: QuietFlag = False,
    connection: Connection | None = None,
) -> int:
    """Wait for what earlier programs have paid for and left open in a journal, and print it as lines of JSON.

    A batch that was interrupted needs no `recover`: start it again. Nothing is submitted, so nothing is paid.
    """
    kept = _journal(file)
    client = (connection or Connection()).client(timeout=timeout, journal=kept)
    with KeyIndex() as index:
        results = Results.to_stdout() if output is None else Results.open(output, index)
        try:
            counts = anyio.run(_recover, client, index, results)
        finally:
            results.close()
    if not quiet:
        parts = [f"{counts[status]:,} {word}" for status, word in _WORDS.items() if counts[status]]
        note(", ".join(parts) or "nothing is open")
    if counts["uncertain"]:
        return Exit.UNCERTAIN
    return Exit.UNSOLVED if counts["failed"] or counts["open"] or counts["unsent"] else Exit.DONE


_WORDS = {
    "solved": "solved",
    "failed": "failed",
    "uncertain": "of unknown fate",
    "open": "still open",
    "unsent": "not asked for",
}


async def _recover(client: AsyncClient, index: KeyIndex, results: Results) -> Counter[str]:
    counts: Counter[str] = Counter()
    async with client, client.recover() as outcomes:
        async for outcome in outcomes:
            status = status_of(outcome)
            counts[status] += 1
            key = outcome.key or outcome.task_id or f"unnamed-{outcome.index}"
            if status in ("solved", "failed", "uncertain") and _is_news(index.meet(key), status):
                results.write(_line(key, outcome, status))
    return counts


def _is_news(met: Met, status: str) -> bool:
    """Whether an output that says `met` of a key does not say this yet."""
    return met is Met.NEW or (status == "solved" and met is not Met.SOLVED)


def _line(key: str, outcome: Outcome[Solution], status: str) -> dict[str, object]:
    item = Item(key=key, task=outcome.task, place={})
    return record(item, outcome, status, Times(submitted=None, known=datetime.now(UTC).timestamp()))


def _journal(file: Path) -> SQLiteJournal:
    beside = file.with_name(file.name + ".journal")
    path = beside if beside.is_file() else file
    if not path.is_file():
        raise CommandError(f"there is no journal {str(file)!r}", Exit.FILE)
    # Solutions are wiped when a row is given up.
    return SQLiteJournal(path, store_solutions=True)
