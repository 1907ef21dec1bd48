"""A lane: what one connection of a route has to send, in the order in which it goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile

from ..queue.sql.claimed import ClaimedMessage
from ..submission import Priority
from .faults import Faults
from .router import Circuit, Route, route_of

#: Octets of contents that a lane has in memory; of a larger message, that one alone.
HOLD = 32 * 1024 * 1024
#: Messages that are on the wire at once where nobody says how many.
WINDOW = 16


@dataclass(eq=False)
class Lane:
    """One connection's worth of work on a route; `high` is kept free for what is urgent."""

    route: Route
    circuit: Circuit
    faults: Faults
    high: bool = False
    #: what it sends
    classes: tuple[Priority, ...] = tuple(Priority)
    #: by the monotonic clock: before it, the route's rate allows nothing
    allowed: float = 0.0
    #: claimed, and begun
    pending: deque[ClaimedMessage] = field(default_factory=deque)
    ready: deque[ClaimedMessage] = field(default_factory=deque)
    busy: bool = False
    #: how often leases had been lost when what it is sending was taken
    losses: int = 0
    #: octets that are on their way
    flying: int = 0
    #: True while it opens a connection
    opening: bool = False
    #: True if it hangs there, and nothing that it had is its own any more
    abandoned: bool = False
    #: by their place among what it sends: what it has taken, the recipients that are not told of
    #: yet, and those that are
    sent: dict[int, tuple[ClaimedMessage, int, tuple[str, ...]]] = field(default_factory=dict)
    #: True if something may be parked in the queue until it has room
    parked: bool = False
    #: the numbers of its connections, if the route may have so many only
    seats: tuple[int, ...] = ()
    #: by the monotonic clock: before it, all connections of the route are others'
    seatless: float = 0.0

    @property
    def waiting(self) -> int:
        """How many messages it has that are not on their way."""
        return len(self.pending) + len(self.ready)

    @property
    def octets(self) -> int:
        """How much of contents it has in memory."""
        waiting = sum(w.size for some in (self.ready, self.pending) for w in some if w.loaded)
        return self.flying + waiting

    @property
    def unseated(self) -> bool:
        """True if it may have no connection, as far as that is known."""
        return not self.seats and time.monotonic() < self.seatless

    def put(self, work: ClaimedMessage, *, begun: bool) -> None:
        """Add `work`; what is urgent comes before what is not."""
        some = self.ready if begun else self.pending
        if work.priority > Priority.HIGH or not some or some[-1].priority <= Priority.HIGH:
            some.append(work)
            return
        some.insert(next(n for n, w in enumerate(some) if w.priority > Priority.HIGH), work)

    def fits(self, work: ClaimedMessage, octets: int) -> bool:
        """True if the content of `work` may be in memory beside so many `octets`."""
        return not octets or octets + work.size <= HOLD

    @property
    def ahead(self) -> int:
        """How many messages are begun and wait to be sent at most.

        What is begun is in doubt if the worker dies, whether it has left or not. So it is as much
        as is on the wire at once.
        """
        window = getattr(self.route.transport, "window", None) or self.route.window or WINDOW
        return int(window) * self.route.seats

    def upcoming(self) -> list[ClaimedMessage]:
        """What is to be begun next: so much that there are always some; what is urgent at once."""
        if self.circuit.on_trial:
            return self._probe()
        ahead, begun = self.ahead, len(self.ready)
        if begun <= ahead // 2:
            return list(islice(self.pending, ahead - begun))
        urgent = sum(1 for _ in takewhile(_is_urgent, self.ready))
        if urgent > ahead // 2:
            return []
        return list(islice(takewhile(_is_urgent, self.pending), ahead - urgent))

    def _probe(self) -> list[ClaimedMessage]:
        """The one message that a route on trial is tried with: the least like those refused."""
        if self.ready or self.busy or not self.pending:
            return []
        return [min(self.pending, key=self.faults.likeness)]

    def lacking(self) -> list[ClaimedMessage]:
        """Of what is to be begun next, what has no content yet and may have it now."""
        chosen: list[ClaimedMessage] = []
        octets = self.octets if self.pending else 0
        for work in self.upcoming():
            if work.loaded:
                continue
            if not self.fits(work, octets):
                break
            octets += work.size
            chosen.append(work)
        return chosen

    def next(self) -> list[ClaimedMessage]:
        """What can be begun now. It stays pending until that is committed."""
        return [work for work in self.upcoming() if work.loaded]


def _is_urgent(work: ClaimedMessage) -> bool:
    return work.priority <= Priority.HIGH


class Ways:
    """Which lane takes what: that of the first route whose rules fit."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes: dict[Route, list[Lane]] = {}
        for lane in sorted(lanes, key=lambda lane: lane.high):
            self._lanes.setdefault(lane.route, []).append(lane)
        self._routes = list(dict.fromkeys(lane.route for lane in lanes))
        self._splits = any(route.domains for route in self._routes)
        #: of the routes
        self.names = {route.name for route in self._routes}

    def assign(self, works: Iterable[ClaimedMessage]) -> list[ClaimedMessage]:
        """`works` with their lanes; one becomes several if its recipients take several routes."""
        if self._splits:
            return [part for work in works for part in self._split(work)]
        chosen = list(works)
        for work in chosen:
            work.lane = self._lane(work.envelope.sender, "", work.priority)
        return chosen

    def _split(self, work: ClaimedMessage) -> Iterator[ClaimedMessage]:
        places: dict[Lane | None, list[int]] = {}
        for place, recipient in enumerate(work.envelope.recipients):
            lane = self._lane(work.envelope.sender, recipient, work.priority)
            places.setdefault(lane, []).append(place)
        for lane, some in places.items():
            part = work if len(places) == 1 else work.only(some)
            part.lane = lane
            yield part

    def _lane(self, sender: str, recipient: str, priority: int) -> Lane | None:
        route = route_of(self._routes, sender, recipient, priority)
        if route is None:
            return None
        # The last is the one that is kept free, if there is one.
        return self._lanes[route][-1 if priority <= Priority.HIGH else 0]
