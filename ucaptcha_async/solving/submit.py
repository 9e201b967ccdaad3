"""The submit: at most one task is paid for, and its fate is known or said to be unknown."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

import anyio
import attrs

from ucaptcha_async.errors import (
    APIConnectionError,
    NoProviderError,
    RateLimitedError,
    ServiceError,
    SubmitUncertainError,
    UCaptchaError,
)
from ucaptcha_async.events import Retried, Throttled
from ucaptcha_async.transport.api import Answer, Unreadable
from ucaptcha_async.transport.error_codes import INTERNAL
from ucaptcha_async.transport.old_exchange import Sending

from .session import Engine, Walk
from .shelter import sheltered

FIRST_DELAY = 0.5
LONGEST_DELAY = 15.0


class Fate(Enum):
    """What a failed submit has come to."""

    REFUSED = auto()
    """The service said no, for good."""
    REFUSED_FOR_NOW = auto()
    """The service said no and may say yes in a moment; or the request was never sent."""
    UNKNOWN = auto()
    """Sent, and no readable answer."""


def fate_of(error: UCaptchaError, sending: Sending) -> Fate:
    """Judge a failed submit. What is not proved to be refused is unknown."""
    if isinstance(error, APIConnectionError):
        return Fate.UNKNOWN if sending.sent else Fate.REFUSED_FOR_NOW
    if isinstance(error, RateLimitedError | NoProviderError):
        # An answer that refuses and names a task contradicts itself.
        return Fate.REFUSED_FOR_NOW if error.task_id is None else Fate.UNKNOWN
    if isinstance(error, Unreadable) or (isinstance(error, ServiceError) and _server_fault(error)):
        return Fate.UNKNOWN
    return Fate.REFUSED


def _server_fault(error: ServiceError) -> bool:
    return error.http_status is None or error.http_status >= 500 or error.error_code in INTERNAL


@attrs.define(eq=False)
class Submit:
    """One task on its way to the service.

    Attributes:
        wire: The `task` object.
        secrets: Values in it that no error may show.
        options: The other fields of `createTask`; `None` is not sent.
        sending: The proof of sending of the latest request.
        answer: The service's answer, once there is one, even if nobody waits for it any more.
    """

    engine: Engine
    walk: Walk
    wire: Mapping[str, Any] = attrs.field(repr=False)
    secrets: tuple[str, ...] = attrs.field(repr=False)
    options: dict[str, str | None]
    sending: Sending = attrs.field(init=False, factory=Sending)
    answer: Answer | None = attrs.field(init=False, default=None)

    async def run(self) -> Answer:
        """Submit until the service has accepted or refused the task.

        Raises:
            SubmitUncertainError: The fate of the request is unknown.
            UCaptchaError: The service refused the task for good.
        """
        tries = 0
        while True:
            self.sending = Sending()
            try:
                await sheltered(self._once, self.sending, self.engine.cancel_grace)
            except UCaptchaError as error:
                fate = fate_of(error, self.sending)
                if fate is Fate.UNKNOWN:
                    raise _uncertain(error) from error
                if fate is Fate.REFUSED:
                    raise
                delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(tries, 30)) * self.engine.rng.uniform(0.5, 1.0)
                self._tell(error, delay)
            else:
                assert self.answer is not None
                return self.answer
            tries += 1
            await anyio.sleep(delay)

    async def _once(self) -> None:
        try:
            answer = await self.engine.api.create_task(
                self.wire, sending=self.sending, secrets=self.secrets, **self.options
            )
        except UCaptchaError as error:
            if fate_of(error, self.sending) is not Fate.UNKNOWN:
                # What was refused is not under way any more, even if the caller, cancelled, does not hear of it.
                self.sending = Sending()
            raise
        if answer.task_id is None and answer.status != "ready":
            raise Unreadable("createTask answered without a taskId")
        self.answer, self.walk.task_id, self.walk.trouble = answer, answer.task_id, None

    def _tell(self, error: UCaptchaError, delay: float) -> None:
        self.walk.trouble = error
        if isinstance(error, RateLimitedError):
            self.engine.emit(Throttled, self.walk, endpoint="createTask")
        self.engine.emit(
            Retried,
            self.walk,
            endpoint="createTask",
            reason=type(error).__name__,
            error_code=error.error_code,
            delay=delay,
        )


def _uncertain(error: UCaptchaError) -> SubmitUncertainError:
    message = f"the task was sent and may have been accepted and charged; no readable answer came: {error.message}"
    return SubmitUncertainError(message, error_code=error.error_code, task_id=error.task_id)
