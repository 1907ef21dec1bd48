"""Routes: the ways out of a queue, which mail takes which, and when one is not tried."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..envelope import Envelope
from ..exceptions import ConfigurationError
from ..interfaces import ITransport
from ..item import PRIORITIES

#: Seconds for which a route is left alone after its first failure, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 900.0


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A transport, and the rules for what goes that way. Without rules, everything does.

    `senders` and `domains` are matched without regard to case: a sender is an address or the
    domain of one, a domain that of the recipients. `priorities` are names, such as ``bulk``.
    """

    name: str
    transport: ITransport
    senders: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    priorities: frozenset[int] = frozenset()
    #: messages that may be on their way at once, None for the transport's own
    window: int | None = None
    #: messages a second, of all workers on all hosts together; None for no limit
    rate: float | None = None

    @classmethod
    def to(
        cls,
        name: str,
        transport: ITransport,
        *,
        senders: Iterable[str] = (),
        domains: Iterable[str] = (),
        priorities: Iterable[str] = (),
        window: int | None = None,
        rate: float | None = None,
    ) -> Route:
        """A route by its rules. Raises `ConfigurationError`."""
        if rate is not None and not rate > 0:
            raise ConfigurationError("messages a second, above 0, are needed", field="rate")
        if not ITransport.providedBy(transport):
            raise ConfigurationError("an ITransport is needed", field=f"route {name}")
        numbers = set()
        for word in priorities:
            if word not in PRIORITIES:
                raise ConfigurationError(
                    f"one of {', '.join(PRIORITIES)} is needed", field="priorities", value=word
                )
            numbers.add(int(PRIORITIES[word]))
        return cls(
            name,
            transport,
            frozenset(s.lower() for s in senders),
            frozenset(d.lower() for d in domains),
            frozenset(numbers),
            window,
            rate,
        )

    def takes(self, envelope: Envelope, priority: int) -> bool:
        """True if `envelope` goes this way."""
        if self.priorities and priority not in self.priorities:
            return False
        if self.senders:
            sender = envelope.sender.lower()
            if not {sender, sender.rpartition("@")[2]} & self.senders:
                return False
        if self.domains:
            return all(r.rpartition("@")[2].lower() in self.domains for r in envelope.recipients)
        return True


def route_of(routes: Sequence[Route], envelope: Envelope, priority: int) -> Route | None:
    """The first of `routes` that takes `envelope`; None if none does."""
    return next((route for route in routes if route.takes(envelope, priority)), None)


@dataclass(slots=True)
class Circuit:
    """Whether a route is tried: not for a while after it has failed, longer each time."""

    clock: Callable[[], float]
    failures: int = 0
    #: by `clock`; before it the route is left alone
    until: float = 0.0
    reason: str = ""
    #: True if a person has to do something
    stopped: bool = False
    #: True if others have still to be told
    news: bool = False
    _jitter: Callable[[], float] = field(default=random.random, repr=False)

    @property
    def open(self) -> bool:
        """True if the route is not to be tried now."""
        return self.clock() < self.until

    @property
    def left(self) -> float:
        """Seconds until it may be tried."""
        return max(0.0, self.until - self.clock())

    def failed(self, reason: str, *, stop: bool = False) -> None:
        """It has failed; with `stop`, so that a person has to do something."""
        self.failures += 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.failures - 1, 20))
        if stop:
            pause = LONGEST_PAUSE
        self.until = self.clock() + pause * (1 + self._jitter() / 4)
        self.reason, self.stopped, self.news = reason, stop, True

    def succeeded(self) -> None:
        """It works."""
        self.news = self.news or self.failures > 0
        self.failures, self.until, self.reason, self.stopped = 0, 0.0, "", False

    def adopt(self, left: float, failures: int, reason: str) -> None:
        """Another worker has found that it fails, and leaves it alone for `left` seconds."""
        # A clock that has jumped must not keep it so for longer than anybody wanted.
        self.until = max(self.until, self.clock() + min(left, LONGEST_PAUSE * 1.25))
        self.failures, self.reason = max(self.failures, failures), reason
