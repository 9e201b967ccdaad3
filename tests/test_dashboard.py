"""The dashboard in the documentation asks for what is really exported: checked at a real `/metrics` endpoint."""

from __future__ import annotations

import json
import re
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.helpers import KEY, TURNSTILE, V2
from ucaptcha_async import AsyncClient, MemoryJournal, Polling, SubmitUncertainError, UnsolvableError
from ucaptcha_async.errors import JournalError
from ucaptcha_async.otel import instrument
from ucaptcha_async.testing import Drop, RateLimit, Reply, RunningService, running_service

promql = pytest.importorskip("promql_parser")
prometheus = pytest.importorskip("opentelemetry.exporter.prometheus")

from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from prometheus_client import CollectorRegistry, start_http_server  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

DOCS = Path(__file__).parent.parent / "docs"
BOARD = json.loads((DOCS / "assets/grafana-dashboard.json").read_text())
PANELS = BOARD["panels"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$task_type": ".*"}
ALL_TARGETS = pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{t}-{x['refId']}" for t, x in TARGETS])

Series = dict[str, list[dict[str, str]]]


class FailingJournal(MemoryJournal):
    """One whose disk is full at the wrong moment."""

    async def finished(self, *arguments: Any, **fields: Any) -> bool:
        raise JournalError("the disk is full")


async def solve_everything(service: RunningService, hook: Any) -> None:
    """Solves that end in every way there is."""
    settings: dict[str, Any] = {"base_url": service.url, "polling": Polling(interval=0.05, first=0.05)}
    async with AsyncClient(KEY, **settings, on_event=hook, journal=FailingJournal()) as client:
        service.script("createTask", RateLimit(headers=False, retry_after=0))
        service.script("getTaskResult", Reply(status=503))
        await client.gather([V2, TURNSTILE, V2])
        service.fail_next()
        with pytest.raises(UnsolvableError):
            await client.solve(V2)
        service.solve_next(after=1000)
        with anyio.move_on_after(0.3):
            await client.solve(TURNSTILE)
        service.script("createTask", Drop(after=True))
        with pytest.raises(SubmitUncertainError):
            await client.solve(V2)


@contextmanager
def endpoint(hook_of: Any = instrument) -> Iterator[tuple[Any, str]]:
    """A hook, and the address at which its metrics are served."""
    registry = CollectorRegistry()
    provider = MeterProvider([prometheus.PrometheusMetricReader(registry=registry)], shutdown_on_exit=False)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield hook_of(meter_provider=provider), f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        provider.shutdown()


@pytest.fixture(scope="module")
def scraped() -> str:
    """What Prometheus gets after all kinds of solves."""
    with running_service(solve_time=0.1) as service, endpoint() as (hook, url):
        anyio.run(solve_everything, service, hook)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            return str(answer.read(), "utf-8")


@pytest.fixture(scope="module")
def kinds(scraped: str) -> dict[str, str]:
    """The kind of each metric, by the names of its series."""
    return {s.name: family.type for family in text_string_to_metric_families(scraped) for s in family.samples}


@pytest.fixture(scope="module")
def series(scraped: str) -> Series:
    """The labels of all series, by name."""
    found: Series = defaultdict(list)
    for family in text_string_to_metric_families(scraped):
        for sample in family.samples:
            found[sample.name].append(dict(sample.labels))
    return found


def parsed(query: str) -> Any:
    """A query as Prometheus gets it from Grafana."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    assert "$" not in query, "a variable that nobody sets"
    return promql.parse(query)


def nodes(expression: Any, kind: type) -> list[Any]:
    """All parts of a kind in a query."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, kind):
            found.append(node)

    promql.walk(expression, visit)
    return found


def selectors(expression: Any) -> list[Any]:
    return [*nodes(expression, promql.VectorSelector), *(m.vector_selector for m in matrices(expression))]


def matrices(expression: Any) -> list[Any]:
    return nodes(expression, promql.MatrixSelector)


def matches(matcher: Any, labels: dict[str, str]) -> bool:
    value = labels.get(matcher.name)
    if value is None:
        return False
    if matcher.op == promql.MatchOp.Equal:
        return bool(value == matcher.value)
    assert matcher.op == promql.MatchOp.Re
    return re.fullmatch(matcher.value, value) is not None


@ALL_TARGETS
def test_queries_find_something(title: str, target: dict[str, str], series: Series) -> None:
    """Each name and each label of each query is exported, and matches a series."""
    wanted = selectors(parsed(target["expr"]))

    assert wanted
    for selector in wanted:
        assert selector.name in series, f"{title}: nothing exports {selector.name}"
        found = [
            labels for labels in series[selector.name] if all(matches(m, labels) for m in selector.matchers.matchers)
        ]
        assert found, f"{title}: no series of {selector.name} matches"


@ALL_TARGETS
def test_groups_and_legends(title: str, target: dict[str, str], series: Series) -> None:
    """What a query groups by, its series have; what a legend shows, the query keeps."""
    expression = parsed(target["expr"])
    kept: set[str] = set()
    for group in nodes(expression, promql.AggregateExpr):
        if group.modifier is None:
            continue
        assert group.modifier.type == promql.AggModifierType.By
        kept |= set(group.modifier.labels)
        for selector in selectors(group.expr):
            known = set().union(*series[selector.name])
            assert set(group.modifier.labels) <= known, title
    shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    assert shown == kept - {"le"}, title


@ALL_TARGETS
def test_kinds(title: str, target: dict[str, str], kinds: dict[str, str]) -> None:
    """Counters are seen through a rate or an increase, gauges are not; quantiles come from buckets, with `le` kept."""
    expression = parsed(target["expr"])
    ranged = {matrix.vector_selector.name for matrix in matrices(expression)}
    for selector in selectors(expression):
        assert (kinds[selector.name] in ("counter", "histogram")) == (selector.name in ranged), title
    for call in nodes(expression, promql.Call):
        if call.func.name == "histogram_quantile":
            (aggregate,) = nodes(call, promql.AggregateExpr)
            assert "le" in aggregate.modifier.labels
            assert all(selector.name.endswith("_bucket") for selector in selectors(call))


def test_every_metric_has_a_panel(series: Series) -> None:
    """Nothing that is exported is left out of the dashboard."""
    asked = {selector.name for _, target in TARGETS for selector in selectors(parsed(target["expr"]))}
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in series} - {"target_info"}

    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} == families


def test_choices(series: Series) -> None:
    """The choice of task types reads a label that is there."""
    (query,) = [each["definition"] for each in BOARD["templating"]["list"] if each["name"] == "task_type"]
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)

    assert found is not None
    assert {labels[found[2]] for labels in series[found[1]]} == {"RecaptchaV2", "Turnstile"}


def test_layout() -> None:
    """Panels have ids of their own and lie side by side; each has a unit and says what it shows."""
    ids = [panel["id"] for panel in PANELS]
    cells = [
        (x, y)
        for panel in PANELS
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len(set(ids)) == len(ids)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)
    sources = {panel["datasource"]["uid"] for panel in PANELS} | {target["datasource"]["uid"] for _, target in TARGETS}
    assert sources == {"${datasource}"}


def test_nothing_secret_at_the_endpoint(scraped: str) -> None:
    """Whoever may scrape sees neither the key nor what was solved."""
    assert "Turnstile" in scraped
    for secret in (KEY, V2.website_key, "example.com"):
        assert secret not in scraped


def test_scrape_example() -> None:
    """The scrape example is YAML, and asks at the port of the program beside it."""
    yaml = pytest.importorskip("yaml")
    page = (DOCS / "how-to/telemetry.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    port = re.findall(r"start_http_server\((\d+)", page)

    (job,) = yaml.safe_load(text)["scrape_configs"]
    assert [target.rpartition(":")[2] for target in job["static_configs"][0]["targets"]] == port
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert "assets/grafana-dashboard.json" in page
