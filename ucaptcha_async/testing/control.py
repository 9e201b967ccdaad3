"""Faults and solutions on order over HTTP, for a service in another process: `POST /control`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs

from . import faults
from .faults import Fault
from .scripts import ENDPOINTS, FaultRates

JSON = Mapping[str, object]


class Controlled(Protocol):
    """What can be told to do something: `LocalService`."""

    @property
    def faults(self) -> Any:
        """What goes wrong."""
        ...

    @property
    def script(self) -> Callable[..., None]:
        """Lets the next answers of an endpoint be faults."""
        ...

    @property
    def solve_next(self) -> Callable[..., None]:
        """Decides how the next tasks are solved."""
        ...

    @property
    def fail_next(self) -> Callable[..., None]:
        """Lets the next tasks fail."""
        ...


FAULTS: Mapping[str, type[Fault]] = {
    kind.__name__: kind
    for kind in (
        *(faults.Amend, faults.Delay, faults.Drop, faults.Encoded, faults.Error, faults.Extra, faults.Html),
        *(faults.Huge, faults.Json, faults.RateLimit, faults.Reply, faults.Reword, faults.Truncated),
    )
}


def fault_to_json(fault: Fault) -> dict[str, object]:
    """Write a fault as plain values."""
    fields = {a.name: getattr(fault, a.name) for a in attrs.fields(type(fault)) if a.init}
    if isinstance(fault, faults.Reply):
        fields["body"] = base64.b64encode(fault.body).decode()
    return {"fault": type(fault).__name__, **fields}


def fault_from_json(value: JSON) -> Fault:
    """Read a fault from plain values.

    Raises:
        ValueError: If it is none.
    """
    fields = dict(value)
    name = fields.pop("fault", None)
    if name not in FAULTS:
        raise ValueError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
    if isinstance(fields.get("body"), str):
        fields["body"] = base64.b64decode(str(fields["body"]))
    for field in ("headers", "without", "only"):
        if isinstance(fields.get(field), list):
            fields[field] = tuple(tuple(i) if isinstance(i, list) else i for i in fields[field])  # type: ignore[attr-defined]
    try:
        return FAULTS[str(name)](**fields)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(str(error)) from None


def control(service: Controlled, raw: bytes) -> dict[str, object]:
    """Carry out one order; return `{}` or what is wrong with it.

    An order is an object with `do` (`script`, `rates`, `clear`, `solve_next`, `fail_next`, `set`) and its arguments.
    """
    try:
        order = json.loads(raw)
        action = _ACTIONS[order.pop("do")]
        action(service, order)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {}


def _script(service: Controlled, order: dict[str, object]) -> None:
    steps = order.pop("faults")
    if not isinstance(steps, list):
        raise ValueError("faults must be a list")
    service.script(str(order.pop("endpoint")), *map(fault_from_json, steps), **order)


def _rates(service: Controlled, order: dict[str, object]) -> None:
    pairs = order.pop("rates")
    if not isinstance(pairs, list):
        raise ValueError("rates must be a list of pairs")
    rates = tuple((fault_from_json(fault), float(rate)) for fault, rate in pairs)
    endpoints = order.get("endpoints", ENDPOINTS)
    seed = order.get("seed", 0)
    service.faults.set_rates(FaultRates(rates=rates, seed=int(str(seed)), endpoints=tuple(endpoints)))  # type: ignore[arg-type]


def _set(service: Controlled, order: dict[str, object]) -> None:
    for name, value in order.items():
        if name not in ("latency", "speed", "failure_rate", "rate_limit", "idle_for", "retention"):
            raise ValueError(f"{name} cannot be set")
        setattr(service, name, value)


_ACTIONS: Mapping[str, Callable[[Controlled, dict[str, object]], None]] = {
    "script": _script,
    "rates": _rates,
    "clear": lambda service, order: service.faults.clear(),
    "solve_next": lambda service, order: service.solve_next(**order),
    "fail_next": lambda service, order: service.fail_next(**order),
    "set": _set,
}
