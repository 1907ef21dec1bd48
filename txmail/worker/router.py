"""Routes: the ways out of a queue, which mail takes which, and when one is not tried."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..address import plain_text
from ..common.ascii_text import ascii_lower
from ..exceptions import ConfigurationError
from ..interfaces import ITransport
from ..outcome import Action, Outcome, Status
from ..submission import PRIORITIES
from ..types import Transport

#: Seconds for which a route is left alone after its first failure, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 900.0
#: The part of a pause that is added by chance, so that not all workers try at once.
_JITTER = 0.25
#: Seconds over which it is counted how much a route carries.
MINUTE = 60


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
    #: open at once, of all workers on all hosts together; None for no limit
    connections: int | None = None

    @property
    def seats(self) -> int:
        """How many connections whoever sends over it has, as its transport was told to."""
        return int(getattr(self.transport, "connections", 1))

    @classmethod
    def to(
        cls,
        name: str,
        transport: Transport | ITransport,
        *,
        senders: Iterable[str] = (),
        domains: Iterable[str] = (),
        priorities: Iterable[str] = (),
        window: int | None = None,
        rate: float | None = None,
        connections: int | None = None,
    ) -> Route:
        """A route by its rules. Raises `ConfigurationError`."""
        if rate is not None and not rate > 0:
            raise ConfigurationError("messages a second, above 0, are needed", field="rate")
        if not ITransport.providedBy(transport):
            raise ConfigurationError("an ITransport is needed", field=f"route {name}")
        numbers = set()
        for word in map(plain_text, priorities):
            if word not in PRIORITIES:
                raise ConfigurationError(
                    f"one of {', '.join(PRIORITIES)} is needed", field="priorities", value=word
                )
            numbers.add(int(PRIORITIES[word]))
        route = cls(
            plain_text(name),
            transport,
            frozenset(ascii_lower(plain_text(s)) for s in senders),
            frozenset(ascii_lower(plain_text(d)) for d in domains),
            frozenset(numbers),
            window,
            rate,
            connections,
        )
        if connections is not None and connections < route.seats:
            raise ConfigurationError(
                f"{route.seats} or more are needed, as its transport has them", field="connections"
            )
        return route

    def takes(self, sender: str, recipient: str, priority: int) -> bool:
        """True if what `sender` sends to `recipient` goes this way."""
        if self.priorities and priority not in self.priorities:
            return False
        if self.senders:
            address = ascii_lower(sender)
            if not {address, address.rpartition("@")[2]} & self.senders:
                return False
        return not self.domains or ascii_lower(recipient.rpartition("@")[2]) in self.domains


def route_of(routes: Sequence[Route], sender: str, recipient: str, priority: int) -> Route | None:
    """The first of `routes` that takes what `sender` sends to `recipient`; None if none does."""
    for route in routes:
        if route.takes(sender, recipient, priority):
            return route
    return None


def wants_less(outcome: Outcome) -> bool:
    """True if the server says that we send too much, or that our quota is used up."""
    if outcome.action is not Action.DEFER_ROUTE or outcome.reply is None:
        return False
    status, service = outcome.reply.enhanced, outcome.reply.code == 421
    if outcome.status is Status.UNSENT:  # STARTTLS and AUTH have a 4.7.0 of another meaning
        return service and status is not None and status.subject == 7
    if service or status is None:
        return service
    return str(status) == "5.4.5" or (status.klass, status.subject) == (4, 7)


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
    #: True if it has still to be written that the server wants less
    too_fast: bool = False
    #: True if a login that was refused has another password, and it has still to be tried
    another_login: bool = False
    #: logins of the route that were refused, as all know it: by account and server, an octet
    refused: dict[str, int] = field(default_factory=dict)
    #: `refused` as it was when there was another password
    compared: dict[str, int] = field(default_factory=dict)
    #: when the row of the route was written that is not to be heeded any more
    outdated: int | None = None
    #: what it was slowed down to, in messages a second, and when, by the queue's clock
    learned: float | None = None
    slowed: int | None = None
    #: True if other messages are suspected of being refused for the route's sake: after the pause
    #: one is tried, and nothing else before that is accepted
    on_trial: bool = False
    #: by the second of `clock`, how many messages were accepted of late
    _carried: dict[int, int] = field(default_factory=dict, repr=False)
    _jitter: Callable[[], float] = field(default=random.random, repr=False)

    @property
    def open(self) -> bool:
        """True if the route is not to be tried now."""
        return self.clock() < self.until

    @property
    def left(self) -> float:
        """Seconds until it may be tried."""
        return max(0.0, self.until - self.clock())

    def failed(self, reason: str, *, stop: bool = False, within: float | None = None) -> None:
        """It has failed; with `stop`, so that a person has to do something.

        It is tried again `within` so many seconds, if that is said.
        """
        self.failures += 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.failures - 1, 20))
        if stop:
            pause = LONGEST_PAUSE
        if within is not None:
            pause = min(pause, within / (1 + _JITTER))
        self.until = self.clock() + pause * (1 + self._jitter() * _JITTER)
        self.reason, self.stopped, self.news = reason, stop, True

    def succeeded(self) -> None:
        """It works."""
        self.news = self.news or self.failures > 0
        self.failures, self.until, self.reason, self.stopped = 0, 0.0, "", False
        self.on_trial = False

    def try_now(self, written: int | None, failures: int = 0) -> None:
        """It may be tried, whatever was `written` of it, by the time of that."""
        self.until, self.outdated, self.another_login = 0.0, written, False
        self.failures = max(self.failures, failures)

    def suspect(self, reason: str, *, times: int, stop: bool) -> None:
        """Several messages were refused for its sake, so many times of late."""
        self.failures = max(self.failures, times - 1)
        self.failed(reason, stop=stop)
        self.on_trial = True

    def slow(self, reason: str) -> None:
        """The server wants less."""
        self.reason, self.too_fast, self.news = reason, True, True

    def carried(self) -> None:
        """A message was accepted."""
        second = int(self.clock())
        self._carried[second] = self._carried.get(second, 0) + 1
        if len(self._carried) > 2 * MINUTE:
            self._carried.pop(min(list(self._carried)), None)

    @property
    def pace(self) -> float:
        """Messages a second that were accepted in the last minute; 1.0 if none was."""
        now = int(self.clock())
        recent = {s: count for s, count in list(self._carried.items()) if s > now - MINUTE}
        return sum(recent.values()) / (now - min(recent) + 1) if recent else 1.0

    def adopt(self, left: float, failures: int, reason: str) -> None:
        """Another worker has found that it fails, and leaves it alone for `left` more seconds."""
        # Nobody does that for longer: the clock has been set back meanwhile.
        if left <= LONGEST_PAUSE * (1 + _JITTER):
            self.until = max(self.until, self.clock() + left)
        self.failures, self.reason = max(self.failures, failures), reason
