"""The command; see the package."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import attrs

from . import charts, peers, report
from .harness import ROOT, Bench, facts, make_bench, note

PARTS = {
    "imports": "imports",
    "memory": "memory",
    "requests": "request_cost",
    "polling": "polling",
    "pacing": "pacing",
    "headline": "headline",
    "journal": "journal",
    "job": "job",
}
"""The parts in the order in which they run, and their modules."""

SEED = 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the library; see `benchmarks`.")
    made.add_argument("parts", nargs="*", metavar="PART", help=f"which parts: {', '.join(PARTS)} (default: all)")
    made.add_argument("--quick", action="store_true", help="a short run: fewer sizes, one run of each")
    made.add_argument("--full", action="store_true", help="the long run (the default)")
    made.add_argument("--runs", type=int, help="repeats of each measurement (default: 3, quick: 1)")
    made.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results", help="where results go")
    made.add_argument("--docs", action="store_true", help="bring docs/benchmarks.md and docs/assets up to date")
    made.add_argument("--render", type=Path, metavar="FILE", help="measure nothing; show an earlier results.json")
    made.add_argument("--without-peers", action="store_true", help="leave the other libraries out")
    made.add_argument("--list", action="store_true", help="list the parts")
    return made


def main() -> None:
    """Measure, print, and write."""
    options = parser().parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser().error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if options.list:
        for name, module in PARTS.items():
            print(f"{name:10} {(importlib.import_module(f'benchmarks.{module}').__doc__ or '').partition(chr(10))[0]}")
        return
    results = json.loads(options.render.read_text()) if options.render else measure(options)
    write(results, options.output, docs=options.docs)
    print(report.whole(results))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen parts."""
    parts = options.parts or list(PARTS)
    environments = {}
    if "job" in parts and not options.without_peers:
        environments = peers.interpreters(ROOT / ".venv-peers", note)
    bench = make_bench(quick=options.quick, runs=options.runs, peers=environments)
    results: dict[str, Any] = {"facts": facts(bench)}
    for name in parts:
        began = time.monotonic()
        results[name] = _part(name, bench)
        note(f"{name}: {time.monotonic() - began:.0f} s")
    return results


def _part(name: str, bench: Bench) -> Any:
    module = importlib.import_module(f"benchmarks.{PARTS[name]}")
    found = module.run(SEED) if name == "polling" else module.run(bench)
    return json.loads(json.dumps(found, default=attrs.asdict))


def write(results: dict[str, Any], folder: Path, *, docs: bool) -> None:
    """Write the results, the tables and the charts; the page of the documentation if asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (folder / "tables.md").write_text(report.whole(results))
    for place in [folder, *([ROOT / "docs" / "assets"] if docs else [])]:
        try:
            drawn = charts.draw(results, place)
        except ImportError as error:
            note(f"no charts: {error.name} is missing (extra `report`)")
            break
        for path in drawn:
            note(f"wrote {path}")
    if docs:
        for name in report.refresh(ROOT / "docs" / "benchmarks.md", results):
            note(f"docs/benchmarks.md has no place for {name}")


if __name__ == "__main__":
    main()
