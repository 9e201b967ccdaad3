"""What the library must reach, checked against the results of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .imports import DEPENDENCIES_ENTERED, ENTERED

Row = Mapping[str, Any]

BY_HAND = "aiohttp by hand"


class Target(NamedTuple):
    """One line: what, the bound, what was found, and whether it holds."""

    what: str
    target: str
    found: str
    met: bool


def check(results: Row) -> list[Target]:
    """Every target of the parts that were measured."""
    return [
        *_headline(results.get("headline")),
        *_against_peers(results.get("job")),
        *_requests(results.get("requests")),
        *_pacing(results.get("pacing")),
        *_polling(results.get("polling")),
        *_journal(results.get("journal")),
        *_memory(results.get("memory")),
        *_imports(results.get("imports")),
    ]


def at_most(what: str, found: float, bound: float, digits: int = 2, unit: str = "") -> Target:
    """A target that is a greatest value."""
    return Target(what, f"≤ {bound:,g}{unit}", f"{found:,.{digits}f}{unit}", found <= bound)


def _median(row: Row, name: str) -> float:
    figure = row[name]
    return float(figure["median"]) if figure is not None else float("inf")


CPU_OF_A_SOLVE = {"ours, h11": (1.3, 1.2), "ours, httptools": (1.15, 1.0), "ours, fast": (0.75, 0.65)}
"""Against aiohttp by hand: with 1,000 in flight and with more."""

CPU_OF_A_POLL = {"ours, h11": 2.2, "ours, httptools": 1.6, "ours, fast": 0.8}
"""Against aiohttp, 100 and 1,000 at once. Over TLS a tenth more is allowed."""

WALL = {"ours, h11": 1.05, "ours, httptools": 1.03, "ours, fast": 1.03}


def _headline(part: Row | None) -> Iterator[Target]:
    for row in part["rows"] if part else []:
        if row["client"] not in CPU_OF_A_SOLVE:
            continue
        count, scheme = row["count"], row["scheme"]
        name = f"{row['client']}, {count:,} in flight, {scheme}"
        least = row["solved"]["low"]
        yield Target(f"{name}: solved", f"{count:,}", f"{least:,.0f}", least == count)
        yield at_most(f"{name}: most requests in any 10 s", row["worst_window"]["high"], 10_000, 0)
        if row["cpu_ratio"] is not None:
            bound = CPU_OF_A_SOLVE[row["client"]][count > 1000]
            yield at_most(f"{name}: CPU a solve / {BY_HAND}", _median(row, "cpu_ratio"), bound, 2, " ×")
        if count > 1000 and scheme == "http":
            yield at_most(f"{name}: wall time / ideal", _median(row, "over_ideal"), WALL[row["client"]], 3)
            if row["stall_ratio"] is not None:
                yield at_most(f"{name}: longest stall / {BY_HAND}", _median(row, "stall_ratio"), 1.0, 2, " ×")


def _against_peers(part: Row | None) -> Iterator[Target]:
    rows = part["rows"] if part else []
    for count in sorted({row["count"] for row in rows}):
        found = {row["client"]: row["cpu_ms"] for row in rows if row["count"] == count}
        ours, other = found.get("ours, httptools"), found.get("2captcha-python")
        if ours and other:
            ratio = ours["median"] / other["median"]
            yield at_most(f"CPU a solve / 2captcha-python's, {count:,} solves", ratio, 0.05, 4, " ×")


def _requests(part: Row | None) -> Iterator[Target]:
    for row in part["rows"] if part else []:
        if row["client"] in CPU_OF_A_POLL and row["concurrency"] >= 100 and row["ratio"] is not None:
            what = f"{row['client']}, {row['concurrency']:,} at once, {row['scheme']}: CPU of a poll / aiohttp"
            tenth = 1.1 if row["scheme"] == "https" else 1.0
            yield at_most(what, _median(row, "ratio"), round(tenth * CPU_OF_A_POLL[row["client"]], 2), 2, " ×")


def _pacing(part: Row | None) -> Iterator[Target]:
    for row in part["rows"] if part else []:
        if row["share_of_rest"] is None:
            share = _median(row, "share")
            yield Target(f"{row['way']}: share of the limit", "≥ 0.98", f"{share:.3f}", share >= 0.98)
        else:
            refused = row["throttled"]["high"]
            yield Target(f"{row['way']}: our 429s", "0", f"{refused:.0f}", refused == 0)
        yield at_most(f"{row['way']}: most of ours in 10 s", row["worst_window_of_ours"]["high"], part["limit"], 0)  # type: ignore[index]


def _polling(part: Row | None) -> Iterator[Target]:
    for distribution in part["distributions"] if part else []:
        row = next(row for row in distribution["rows"] if row["polling"] == "learned, 200 solves")
        name = distribution["name"]
        if "12 s" in name:
            yield at_most(f"{name}: polls a solve", row["polls"], 2.5)
            yield at_most(f"{name}: mean delay", row["mean_delay"], 2.7, 2, " s")
        yield at_most(f"{name}: cost over the optimum", 100 * row["over_optimum"], 5, 1, " %")


def _journal(part: Row | None) -> Iterator[Target]:
    for row in part["rows"] if part else []:
        yield at_most(f"journal, {row['way']}: CPU added to a solve", _median(row, "added"), 120, 0, " µs")


def _memory(part: Row | None) -> Iterator[Target]:
    for row in part["rows"] if part else []:
        if row["way"].startswith("solve") and row["kb"] is not None:
            name = f"{row['way']}, {row['backend']}"
            yield at_most(f"{name}: memory of a waiting solve", row["kb"]["median"], 7.5, 1, " KB")
    for row in part["objects"] if part else []:
        if row["more"] is not None:
            yield at_most(f"{row['way']}: collected objects of a waiting solve, above a sleeper's", row["more"], 8, 1)


def _imports(part: Row | None) -> Iterator[Target]:
    rows = {row["statement"]: row for row in part["rows"]} if part else {}
    if rows:
        ratio = _median(rows[ENTERED], "cpu_ms") / _median(rows[DEPENDENCIES_ENTERED], "cpu_ms")
        yield at_most("CPU up to an entered client / the same of httpx, anyio, attrs", ratio, 1.15, 2, " ×")
