"""What the users of a world ask for, and what they are told."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import anyio
import attrs

from ucaptcha_async import HCaptcha, ImageToText, RecaptchaV2, Solution, Task, Turnstile, UCaptchaError
from ucaptcha_async.events import Event

from .plan import KINDS, Work

PICTURE = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
CLASSES = dict(zip(KINDS, (RecaptchaV2, Turnstile, HCaptcha), strict=False))

current: ContextVar[Call | None] = ContextVar("current", default=None)
"""The call in whose context something happens."""


@attrs.define(eq=False)
class Call:
    """One user's request for one piece of work, and what came of it.

    Attributes:
        work: The work.
        process: The number of the process.
        started: When.
        ended: When the user had an end of it.
        ending: `solved`, `error`, `cancelled`, `dropped` (left in `solve_many`), or `crashed` with its process.
        solution: What the user got.
        error: What the user got.
        ids: Tasks that the user was told of.
        steps: What has happened on its way so far, in number.
        cancelled_at: When the user gave up.
        scope: Ends the call when the user gives up.
        patient: Whether the user waits to the end, though others of the same work did not.
    """

    work: Work
    process: int
    started: float
    ended: float | None = None
    ending: str = ""
    solution: Solution | None = None
    error: UCaptchaError | None = None
    ids: set[str] = attrs.field(factory=set)
    steps: int = 0
    cancelled_at: float | None = None
    scope: anyio.CancelScope | None = None
    patient: bool = False

    def cancel(self) -> None:
        """The user gives up."""
        if self.scope is not None and self.cancelled_at is None and self.ended is None:
            self.cancelled_at = anyio.current_time()
            self.scope.cancel()

    def told(self, result: Solution | UCaptchaError) -> None:
        """The user has an answer."""
        if isinstance(result, Solution):
            self.ending, self.solution = "solved", result
        else:
            self.ending, self.error = "error", result
            self.ids |= {str(attempt.task_id) for attempt in result.attempts if attempt.task_id is not None}
        if result.task_id is not None:
            self.ids.add(str(result.task_id))


@attrs.frozen
class Heard:
    """An event of a client."""

    at: float
    process: int
    work: str | None
    event: Event


def task_for(work: Work, *, typed: bool) -> Task[Any]:
    """The task that a user asks for: of a class that knows its names, or of the one type."""
    url = f"https://example.com/{work.name}"
    if typed and work.kind == "ImageToTextTask":
        return ImageToText(image=PICTURE, website_url=url)
    if typed:
        return CLASSES[work.kind](website_url=url, website_key="0x4AAAAAAA")
    if work.kind == "ImageToTextTask":
        return Task(work.kind, body=PICTURE, websiteURL=url)
    return Task(work.kind, websiteURL=url, websiteKey="0x4AAAAAAA")
