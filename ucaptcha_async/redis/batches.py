"""Orders that go to Redis in small batches, one batch at a time, until they are carried out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import anyio
import attrs

from ucaptcha_async.checks import Seconds, seconds
from ucaptcha_async.errors import UCaptchaError

from .store import Client, RedisHook, RedisUnavailableError, Shared

T = TypeVar("T")

_MOST = 500


@attrs.define(eq=False)
class Order(Generic[T]):
    """Something to be done in Redis, and who waits for the answer."""

    what: T = attrs.field(repr=False)
    answer: Any = attrs.field(default=None, repr=False)
    error: UCaptchaError | None = None
    #: The one who gave it does not wait any more.
    orphan: bool = False
    done: anyio.Event = attrs.field(factory=anyio.Event, repr=False)


class Batching(Shared, Generic[T]):
    """An object whose changes go to Redis in batches.

    A batch whose answer was lost is sent again as it was, with the same number: what it orders can be done twice.
    """

    def __init__(
        self,
        redis: str | Client,
        name: str,
        timeout: Seconds,
        lease: Seconds,
        linger: Seconds,
        on_event: RedisHook | None,
    ) -> None:
        super().__init__(redis, name, timeout, on_event)
        self._linger = seconds("linger", linger)
        self._lease = seconds("lease", lease, minimum=1.0)
        self._queue: deque[Order[T]] = deque()
        self._batch: list[Order[T]] = []
        self._number = 0
        self._visited_at = -math.inf

    def _begin(self) -> None:
        self._visited_at = -math.inf

    def _order(self, what: T, *, first: bool = False) -> Order[T]:
        """Have something done, with the next batch; what is undone goes first, before others ask for it."""
        order = Order(what)
        if first:
            self._queue.appendleft(order)
        else:
            self._queue.append(order)
        self._wake()
        return order

    async def _answer(self, order: Order[T]) -> Any:
        """Wait for the answer; who is cancelled leaves an orphan, or takes the order back."""
        try:
            await order.done.wait()
        except BaseException:
            self._desert(order)
            raise
        if order.error is not None:
            raise order.error
        return order.answer

    def _desert(self, order: Order[T]) -> None:
        if order.done.is_set():
            if order.error is None:
                self._orphaned(order)
        elif order in self._queue:
            self._queue.remove(order)
        else:
            order.orphan = True

    def _due(self) -> float:
        if self.is_away:
            return self._visited_at + self._link.retry_in
        return self._visited_at + (self._linger if self._queue or self._batch else self._rest())

    def _rest(self) -> float:
        """Seconds to the next visit when there is nothing to order."""
        return self._lease / 3

    async def _visit(self) -> None:
        if not self._batch:
            self._batch = [self._queue.popleft() for _ in range(min(len(self._queue), _MOST))]
            self._number += 1
        self._visited_at = anyio.current_time()
        try:
            answers = await self._send([order.what for order in self._batch], self._number)
        except RedisUnavailableError as error:
            self._postponed(error)
            return
        batch, self._batch = self._batch, []
        for order, answer in zip(batch, answers, strict=True):
            self._settle(order, answer)

    def _settle(self, order: Order[T], answer: Any) -> None:
        if isinstance(answer, UCaptchaError):
            order.error = answer
        else:
            order.answer = answer
            if order.orphan:
                self._orphaned(order)
        order.done.set()

    async def _leave(self) -> None:
        while self._queue or self._batch:
            await self._visit()
            if self.is_away:
                if all(order.orphan for order in (*self._batch, *self._queue)):
                    return  # nobody wants them
                await anyio.sleep(self._link.retry_in)

    @abstractmethod
    async def _send(self, orders: Sequence[T], number: int) -> Sequence[Any]:
        """Have a batch done: an answer, or an error, for each order.

        Raises:
            RedisUnavailableError: It may have been done, or not.
        """

    @abstractmethod
    def _postponed(self, error: RedisUnavailableError) -> None:
        """Redis is away: the batch stays to be sent again."""

    @abstractmethod
    def _orphaned(self, order: Order[T]) -> None:
        """Undo what was done for somebody who did not wait for it."""
