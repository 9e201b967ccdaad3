"""What you ask and what you get: tasks, their fields, their solutions.

Kinds of tasks are loaded when one of them is first used: most programs ask for widgets only, or for pictures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .base import Task
from .proxy import Proxy
from .solutions import (
    CoordinatesSolution,
    GeeTestV3Solution,
    GeeTestV4Solution,
    Point,
    RotateSolution,
    Solution,
    TencentSolution,
    TextSolution,
    TokenSolution,
)

if TYPE_CHECKING:
    from .pictures import ClickCoordinates, ImageToText, Rotate
    from .widgets import (
        FriendlyCaptcha,
        FunCaptcha,
        GeeTestV3,
        GeeTestV4,
        HCaptcha,
        MTCaptcha,
        RecaptchaV2,
        RecaptchaV2Enterprise,
        RecaptchaV3,
        Tencent,
        Turnstile,
        YandexSmartCaptcha,
    )

__all__ = [
    "ClickCoordinates",
    "CoordinatesSolution",
    "FriendlyCaptcha",
    "FunCaptcha",
    "GeeTestV3",
    "GeeTestV3Solution",
    "GeeTestV4",
    "GeeTestV4Solution",
    "HCaptcha",
    "ImageToText",
    "MTCaptcha",
    "Point",
    "Proxy",
    "RecaptchaV2",
    "RecaptchaV2Enterprise",
    "RecaptchaV3",
    "Rotate",
    "RotateSolution",
    "Solution",
    "Task",
    "Tencent",
    "TencentSolution",
    "TextSolution",
    "TokenSolution",
    "Turnstile",
    "YandexSmartCaptcha",
]

_PICTURES = ("ClickCoordinates", "ImageToText", "Rotate")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "pictures" if name in _PICTURES else "widgets"
    value: object = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
