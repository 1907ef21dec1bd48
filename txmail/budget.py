"""How much network time one transaction may still take.

Only our own time counts: the clock runs inside ``with budget:`` and stands still while other data
managers do their work between our phases.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

#: Seconds a transaction may spend on its mail, the before-commit hook included.
COMMIT_TIMEOUT = 30.0


class Budget:
    """A stopwatch that runs down, in seconds, on the monotonic clock.

    Without `seconds` it has `COMMIT_TIMEOUT`, until the first `limit` says how many.
    """

    def __init__(
        self, seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._left = COMMIT_TIMEOUT if seconds is None else seconds
        self._is_default = seconds is None
        self._clock = clock
        self._started: float | None = None

    def limit(self, seconds: float) -> None:
        """Have no more than `seconds` left from here on."""
        self._left = seconds if self._is_default else min(self._left, seconds)
        self._is_default = False

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        running = self._clock() - self._started if self._started is not None else 0.0
        return max(0.0, self._left - running)

    def __enter__(self) -> Budget:
        self._started = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left = self.remaining
        self._started = None
