"""Recipient domains of one route that wait, or get less, while all others go on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds for which a domain waits at first and at most.
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 900.0
#: The part of a pause that is added by chance, so that not all workers try at once.
_JITTER = 0.25
#: Seconds for which one message has the turn that is tried after a pause.
TURN = 30.0
#: Seconds between two messages to a domain that wants less: at first and at most.
FIRST_GAP, LONGEST_GAP = 0.5, 10.0
#: Seconds in which the gap grows once at most, and after which it is half as long again.
GROWS_ONCE_IN, HALVES_IN = 30.0, 300.0
#: Seconds by which a message is put off at most for those in front of it: the gap may shrink.
LOOKS_AHEAD = 60.0
#: How many domains are known at once.
MOST = 1024


@dataclass(slots=True)
class _Domain:
    """What is known of one domain. Moments are by the clock."""

    failures: int = 0
    until: float = 0.0
    reason: str = ""
    #: True while one message is tried after a pause
    trying: bool = False
    gap: float = 0.0
    #: when the gap was changed, and when the next message may go
    changed: float = 0.0
    next: float = 0.0


class DomainWaits:
    """The domains of one route. Whoever uses it has its lock."""

    def __init__(
        self, clock: Callable[[], float], jitter: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._known: dict[str, _Domain] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def failed(self, name: str, reason: str) -> float:
        """The domain refuses what others take: it waits, longer each time. For how many seconds."""
        now, domain = self._clock(), self._of(name)
        if domain.trying or now >= domain.until:
            domain.failures += 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(domain.failures - 1, 20))
            domain.until = now + pause * (1 + self._jitter() * _JITTER)
            domain.trying, domain.reason = False, reason
        return domain.until - now

    def slow(self, name: str, reason: str) -> None:
        """The domain wants less: half of what it gets."""
        now, domain = self._clock(), self._of(name)
        if domain.gap and now - domain.changed < GROWS_ONCE_IN:
            return
        gap = self._gap(domain, now)
        domain.gap = min(LONGEST_GAP, gap * 2) if gap else FIRST_GAP
        domain.changed, domain.next, domain.reason = now, now + domain.gap, reason

    def accepted(self, name: str) -> None:
        """The domain has taken a message."""
        domain = self._known.get(name)
        if domain is None:
            return
        now = self._clock()
        if domain.trying or now >= domain.until:
            domain.failures, domain.until, domain.trying = 0, 0.0, False
            if not self._gap(domain, now):
                del self._known[name]

    def admit(self, name: str) -> float:
        """Seconds for which the next message waits. If it is 0, that one goes now."""
        domain = self._known.get(name)
        if domain is None:
            return 0.0
        now = self._clock()
        if domain.failures:
            if now < domain.until:
                return domain.until - now
            domain.trying, domain.until = True, now + TURN
            return 0.0
        gap = self._gap(domain, now)
        wait = max(0.0, domain.next - now)
        if gap and wait < LOOKS_AHEAD:
            domain.next = max(now, domain.next) + gap
        return wait if gap else 0.0

    def left(self, name: str) -> float:
        """Seconds for which the domain waits."""
        domain = self._known.get(name)
        return 0.0 if domain is None else max(0.0, domain.until - self._clock())

    def reason(self, name: str) -> str:
        """Why it waits."""
        domain = self._known.get(name)
        return "" if domain is None else domain.reason

    def _gap(self, domain: _Domain, now: float) -> float:
        gap = domain.gap / 2 ** min(max(0.0, now - domain.changed) / HALVES_IN, 64)
        return gap if gap > FIRST_GAP / 16 else 0.0

    def _of(self, name: str) -> _Domain:
        domain = self._known.setdefault(name, _Domain())
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        return domain
