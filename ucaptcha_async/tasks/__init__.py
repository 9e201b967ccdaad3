"""What you ask and what you get: tasks, their fields, their solutions."""

from __future__ import annotations

from .base import Task
from .pictures import ClickCoordinates, ImageToText, Rotate
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
