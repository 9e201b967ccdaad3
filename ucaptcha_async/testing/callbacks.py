"""Telling clients by HTTP that a task is finished. Source: docs/api/callbacks."""

from __future__ import annotations

import attrs

_share = attrs.validators.and_(attrs.validators.ge(0.0), attrs.validators.le(1.0))


@attrs.frozen(kw_only=True)
class CallbackPlan:
    """What happens to callbacks on their way.

    Attributes:
        loss: The share that is not sent at all.
        delay: How late the others are, in seconds.
        repeat: How often each is sent.
        seed: The seed that decides which are lost.
    """

    loss: float = attrs.field(default=0.0, validator=_share)
    delay: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    repeat: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    seed: int = 0
