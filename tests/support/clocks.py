"""A clock that is told the time."""

from __future__ import annotations

from datetime import UTC, datetime

#: Seconds since 1970 at which an injected clock starts, in 2030: nothing is over yet.
START = 1_900_000_000.0


class Clock:
    """Says what it is told."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def at(self, seconds: float) -> datetime:
        """The moment so many seconds from now."""
        return datetime.fromtimestamp(self.now + seconds, UTC)
