"""The end of an `async with` block whose tasks live in a task group."""

from __future__ import annotations

from types import TracebackType

import anyio
from anyio.abc import TaskGroup


async def leave(
    group: TaskGroup, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
) -> bool | None:
    """Cancel what runs in the group and wait for its end. What `__aexit__` of the block returns.

    An error of the block's own body leaves as it is, in no `ExceptionGroup`, also if the block is cancelled meanwhile:
    who cancelled it does so again at the next checkpoint.
    """
    cancelled = anyio.get_cancelled_exc_class()
    group.cancel_scope.cancel()
    if isinstance(error, cancelled):
        return await group.__aexit__(kind, error, traceback)
    try:
        await group.__aexit__(None, None, None)  # told of the error, the group would wrap it
    except cancelled:
        if error is None:
            raise
    return False
