"""Lets the reference show the signatures that attrs makes: the reader of the sources does not run them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from typing import Any

import attrs
import griffe

LONGEST = 60
"""Characters of a default that is still shown."""


class AttrsSignatures(griffe.Extension):
    """Gives each attrs class the `__init__` that it has when it runs."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called by griffe with what it has read."""
        self._visit(pkg)

    def _visit(self, scope: griffe.Module | griffe.Class) -> None:
        for member in [*scope.members.values()]:
            if member.is_alias:
                continue
            if isinstance(member, griffe.Class):
                _add_init(member)
            if isinstance(member, griffe.Class | griffe.Module):
                self._visit(member)


def _add_init(cls: griffe.Class) -> None:
    if not any("attrs." in str(decorator.value) for decorator in cls.decorators) or "__init__" in cls.members:
        return
    try:
        running = getattr(importlib.import_module(cls.module.path), cls.name)
    except ImportError:  # a module of an extra that is not installed: it is described without its signatures
        return
    if not attrs.has(running):
        return
    parameters = [*inspect.signature(running).parameters.values()]
    described = re.findall(r"^ +(\w+): ", cls.docstring.value if cls.docstring else "", re.MULTILINE)
    keywords = sorted((p for p in parameters if p.kind is p.KEYWORD_ONLY), key=lambda p: _rank(p, described))
    shown = [p for p in parameters if p.kind is not p.KEYWORD_ONLY] + keywords
    init = griffe.Function(
        "__init__",
        parent=cls,
        lineno=cls.lineno,
        endlineno=cls.lineno,
        returns="None",
        parameters=griffe.Parameters(
            griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword),
            *(_parameter(parameter, cls) for parameter in shown),
        ),
    )
    cls.set_member("__init__", init)


def _rank(parameter: inspect.Parameter, described: list[str]) -> tuple[bool, int]:
    """What is required first, and else in the order of the description."""
    known = parameter.name in described
    optional = parameter.default is not parameter.empty
    return optional, described.index(parameter.name) if known else len(described)


def _parameter(parameter: inspect.Parameter, cls: griffe.Class) -> griffe.Parameter:
    kind = {
        parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
        parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
    }[parameter.kind]
    return griffe.Parameter(
        parameter.name,
        kind=kind,
        annotation=_annotation(parameter.annotation, cls),
        default=_default(parameter.default),
    )


def _annotation(annotation: object, cls: griffe.Class) -> griffe.Expr | str | None:
    if not isinstance(annotation, str):
        return None
    return griffe.safe_get_annotation(ast.parse(annotation, mode="eval").body, parent=cls)


def _default(default: object) -> str | None:
    if default is inspect.Parameter.empty:
        return None
    text = repr(default)
    return "..." if default is attrs.NOTHING or len(text) > LONGEST or text.startswith("<") else text
