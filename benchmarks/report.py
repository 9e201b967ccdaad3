"""Results as tables in Markdown. Works on plain JSON, so that earlier results can be shown again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import targets

Row = Mapping[str, Any]
Column = tuple[str, str, int]


def show(figure: Any, digits: int) -> str:
    """A figure with its range, a number, or a dash."""
    if figure is None:
        return "–"
    if not isinstance(figure, Mapping):
        return f"{figure:,.{digits}f}" if isinstance(figure, int | float) else str(figure)
    median, low, high = (f"{figure[name]:,.{digits}f}" for name in ("median", "low", "high"))
    return median if low == high else f"{median} [{low}–{high}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as plain text, too."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    first, *others = widths
    rule = [":" + "-" * (first - 1), *("-" * (width - 1) + ":" for width in others)]
    lines.insert(1, rule)
    rows_of_text = ([line[0].ljust(first), *map(str.rjust, line[1:], others)] for line in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows_of_text)


def _columns(rows: Iterable[Row], first: tuple[str, str], columns: Sequence[Column]) -> str:
    title, name = first
    header = [title, *(heading for heading, _, _ in columns)]
    return table(
        header, ([str(row[name]), *(show(row.get(key), digits) for _, key, digits in columns)] for row in rows)
    )


def environment(results: Row) -> str:
    """On what it was measured."""
    facts = results["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    pinned = (
        f"client on core {facts['client_core']}, service on core {facts['service_core']}"
        if facts["client_core"] is not None
        else "client and service not pinned"
    )
    runs = "one run of each" if facts["runs"] == 1 else f"medians of {facts['runs']} runs where a range is given"
    kind = "a short run (`--quick`)" if facts["quick"] else "a full run"
    return (
        f"{facts['date']}: {kind}, {runs}; Python {facts['python']}, {facts['system']}, {facts['processor']}, "
        f"{facts['cores']} cores ({pinned}), load average at the start {facts['load']}.\n{versions}."
    )


def requests(result: Row) -> str:
    """CPU and requests per second."""
    parts = []
    for scheme, title in (("http", ""), ("https", ", over TLS")):
        rows = [row for row in result["rows"] if row["scheme"] == scheme]
        concurrencies = sorted({row["concurrency"] for row in rows})
        columns = (("CPU ms a request", "cpu_ms", 3), ("CPU / aiohttp", "ratio", 2), ("requests a second", "rate", 0))
        for heading, key, digits in columns:
            cells = {(row["client"], row["concurrency"]): show(row[key], digits) for row in rows}
            names = list(dict.fromkeys(row["client"] for row in rows))
            header = [f"{heading}{title}", *(f"{c:,} at once" for c in concurrencies)]
            parts.append(table(header, ([name, *(cells.get((name, c), "–") for c in concurrencies)] for name in names)))
    return "\n\n".join(parts)


OUTCOME: Sequence[Column] = (
    ("solved", "solved", 0),
    ("failed", "failed", 0),
    ("still running when stopped", "pending", 0),
    ("paid, not delivered", "paid_not_delivered", 0),
    ("refused with 429", "throttled", 0),
    ("wall time / ideal", "over_ideal", 2),
    ("ready → known, s", "delay", 2),
    ("95 %, s", "delay_p95", 2),
    ("polls a solve", "polls", 2),
    ("most requests in 10 s", "worst_window", 0),
)
COST: Sequence[Column] = (
    ("CPU ms a solve", "cpu_ms", 2),
    ("CPU / aiohttp by hand", "cpu_ratio", 2),
    ("CPU ms a request", "cpu_ms_per_request", 2),
    ("share of a core", "core", 2),
    ("peak memory, MB", "peak_memory_mb", 0),
    ("connections opened", "connections", 0),
    ("threads", "threads", 0),
    ("longest stall, ms", "stall_ms", 0),
    ("stall / aiohttp by hand", "stall_ratio", 2),
    ("its own CPU at a stretch, ms", "stall_cpu_ms", 0),
    ("longest garbage collection, ms", "collection_ms", 0),
    ("before the first request, ms", "stall_at_first_ms", 0),
)


def job(result: Row) -> str:
    """Two tables per size: what came out, and what it cost."""
    parts = []
    sizes = sorted({(row.get("scheme", "http"), row["count"]) for row in result["rows"]})
    for scheme, count in sizes:
        every = (row for row in result["rows"] if (row.get("scheme", "http"), row["count"]) == (scheme, count))
        rows = [row if row["ended"] else {**row, "over_ideal": "stopped"} for row in every]
        title = f"{count:,} solves at once" + (", over TLS" if scheme == "https" else "")
        parts += [_columns(rows, (title, "client"), OUTCOME), _columns(rows, (title, "client"), COST)]
        parts += [f"Errors of {row['client']}: {_errors(row['errors'])}." for row in rows if row["errors"]]
    return "\n\n".join(parts)


def _errors(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {times:,}×" for name, times in errors.items())


def pacing(result: Row) -> str:
    """Shares of the limit, and windows."""
    columns: Sequence[Column] = (
        ("requests/s", "rate", 0),
        ("share of the limit", "share", 3),
        ("share of what the other leaves", "share_of_rest", 3),
        ("most of ours in 10 s", "worst_window_of_ours", 0),
        ("most of all in 10 s", "worst_window", 0),
        ("our 429s", "throttled", 0),
        ("the other's 429s", "foreign_refused", 0),
        ("CPU of a core", "busy", 2),
    )
    head = f"The limit here is {result['limit']:,} requests in {result['window']:g} s."
    return head + "\n\n" + _columns(result["rows"], ("", "way"), columns)


def polling(result: Row) -> str:
    """One table per distribution."""
    columns: Sequence[Column] = (
        ("polls a solve", "polls", 2),
        ("mean delay, s", "mean_delay", 2),
        ("95 %, s", "p95_delay", 2),
        ("cost, s", "cost", 3),
        ("over the optimum, %", "percent", 1),
    )
    parts = []
    for distribution in result["distributions"]:
        rows = [{**row, "percent": 100 * row["over_optimum"]} for row in distribution["rows"]]
        parts.append(_columns(rows, (distribution["name"], "polling"), columns))
    return "\n\n".join(parts)


def memory(result: Row) -> str:
    """KB and objects of a waiting solve."""
    kilobytes = _columns(
        [{**row, "name": f"{row['way']}, {row['backend']}"} for row in result["rows"]],
        (f"{result['count']:,} waiting", "name"),
        (("KB each", "kb", 1),),
    )
    columns: Sequence[Column] = (("objects each", "each", 1), ("more than one that sleeps", "more", 1))
    return kilobytes + "\n\n" + _columns(result["objects"], ("2,000 waiting against 1,000, asyncio", "way"), columns)


def journal(result: Row) -> str:
    """Microseconds a solve."""
    columns: Sequence[Column] = (
        ("CPU µs a solve without", "without", 0),
        ("with a journal", "with", 0),
        ("added", "added", 0),
    )
    return _columns(result["rows"], ("solves", "way"), columns)


def imports(result: Row) -> str:
    """Milliseconds."""
    return _columns(result["rows"], ("import", "statement"), (("CPU ms", "cpu_ms", 0), ("wall ms", "wall_ms", 0)))


def reached(results: Row) -> str:
    """What was to be reached, and what was."""
    rows = targets.check(results)
    cells = ([row.what, row.target, row.found, "yes" if row.met else "no"] for row in rows)
    return table(["what", "target", "found", "reached"], cells)


TITLES: Mapping[str, tuple[str, Callable[[Row], str]]] = {
    "requests": ("The cost of a request", requests),
    "headline": ("1,000 and 5,000 solves in flight at 1,000 requests a second", job),
    "job": ("The job", job),
    "pacing": ("Pacing", pacing),
    "polling": ("Polling", polling),
    "journal": ("What the journal costs", journal),
    "memory": ("Memory per waiting solve", memory),
    "imports": ("Import time", imports),
}


def sections(results: Row) -> dict[str, tuple[str, str]]:
    """Title and Markdown of each part that was measured."""
    found = {"environment": ("Measured on", environment(results)), "targets": ("Targets", reached(results))}
    for name, (title, write) in TITLES.items():
        if results.get(name):
            found[name] = (title, write(results[name]))
    return found


def whole(results: Row) -> str:
    """All parts as one document."""
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections(results).values()) + "\n"


def refresh(page: Path, results: Row) -> list[str]:
    """Put the tables between a page's markers `<!-- name -->` and `<!-- /name -->`; return the names without one."""
    text = page.read_text()
    missing = []
    for name, (_, body) in sections(results).items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            missing.append(name)
        else:
            text = text[: found.start()] + f"{found[1]}\n{body}\n\n{found[2]}" + text[found.end() :]
    page.write_text(text)
    return missing
