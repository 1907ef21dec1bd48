"""Options of `Worker`, by their types, for those who hand them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from ..events import Events
from ..queue.retry import RetryPolicy


class RunOptions(TypedDict, total=False):
    """See `Worker`."""

    policy: RetryPolicy | None
    reserve: bool
    lease: float
    batch: int
    clock: Callable[[], float]
    events: Events | None


class WorkerOptions(RunOptions, total=False):
    """See `Worker`."""

    limit: int | None
