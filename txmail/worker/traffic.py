"""What routes may carry and how they are, over all workers on all hosts."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..events import Event, RouteSlowed
from ..queue import claims, routes
from ..queue.work import Work
from ..reply import printable
from .lane import Lane
from .routing import Circuit, Route, is_about_login

log = logging.getLogger("txmail.worker")


class Traffic:
    """Of the lanes of one worker. All methods are for its keeper."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        #: of which it is being written that their servers want less
        self._slowed: list[Circuit] = []
        #: routes that are paused, and that this worker has not tried since it has begun
        self._untried: set[str] = set()
        #: routes that work again, and still have mail that waits as if they did not
        self._recovered: set[str] = set()

    def begin(self) -> None:
        """A worker that goes on begins: a person may have mended what was wrong."""
        self._untried = {lane.route.name for lane in self._lanes}

    def release(self, connection: Any, now: int) -> None:
        """Let some of what waits for routes that work again be due."""
        for name in sorted(self._recovered):
            if claims.release(connection, name, now) < claims.CHUNK:
                self._recovered.discard(name)

    @property
    def has_news(self) -> bool:
        """True if others do not know yet how a route is."""
        return any(lane.circuit.news for lane in self._lanes)

    def allowed(self, connection: Any, works: list[Work], now: int) -> list[Work]:
        """Those of `works` that the rates of their routes allow now, the most urgent first."""
        rates: dict[Route, float] = {}
        wanted: Counter[Route] = Counter()
        for work in works:
            rate = rate_of(work.lane, now)
            if rate is not None:
                rates[work.lane.route] = rate
                wanted[work.lane.route] += 1
        if not rates:
            return works
        # In one order: each row is locked, and two hosts must not wait for each other.
        granted = {
            route: routes.grant(connection, route.name, now, rates[route], wanted[route])
            for route in sorted(rates, key=lambda route: route.name)
        }
        chosen: list[Work] = []
        for work in sorted(works, key=lambda work: work.priority):
            route = work.lane.route
            if route in granted:
                granted[route] -= 1
                if granted[route] < 0:
                    self._hold(route, min(1.0, 1 / rates[route]))
                    continue
            chosen.append(work)
        return chosen

    def _hold(self, route: Route, seconds: float) -> None:
        """Begin nothing on `route` meanwhile, so that then the most urgent comes first again."""
        for lane in self._lanes:
            if lane.route is route:
                lane.allowed = time.monotonic() + seconds

    def share(self, connection: Any, now: int) -> list[Event]:
        """Tell others which routes fail, and hear it from them; what there is to be told here."""
        known = routes.read(connection)
        self._slowed.clear()
        news: list[Event] = []
        for lane in sorted(self._lanes, key=lambda lane: lane.route.name):
            if lane.high:
                continue  # the other of its route has the same circuit
            circuit, row = lane.circuit, known.get(lane.route.name)
            if circuit.too_fast:
                news += self._slow(connection, lane, now)
            elif row is not None:
                circuit.learned, circuit.slowed = row.rate, row.slowed
            if circuit.news:
                circuit.news = False
                if not circuit.open and not circuit.failures:
                    self._recovered.add(lane.route.name)
                state = routes.STOPPED if circuit.stopped else routes.OPEN
                routes.write(
                    connection,
                    lane.route.name,
                    now,
                    state=state if circuit.open else routes.CLOSED,
                    until=now + int(circuit.left * 1000) if circuit.open else None,
                    failures=circuit.failures,
                    reason=circuit.reason,
                )
            elif row is not None and row.state != routes.CLOSED and not circuit.open:
                # Also if it may be tried again: how that ends matters to all.
                left = ((row.until or now) - now) / 1000
                if left > 0 and self._tries(connection, row, now, left):
                    left = 0.0
                circuit.adopt(left, row.failures, row.reason or "")
            self._untried.discard(lane.route.name)
        self.release(connection, now)
        return news

    def _tries(self, connection: Any, row: Any, now: int, left: float) -> bool:
        """True if the paused route of `row` is tried all the same, as it may have been mended."""
        if row.name not in self._untried:
            return False
        reason = printable(row.reason or "")
        if is_about_login(reason) or not routes.may_try(connection, row.name, row.changed, now):
            log.warning("route %s is paused, next try in %.0f s: %s", row.name, left, reason)
            return False
        log.info("route %s was paused, and is tried now: %s", row.name, reason)
        claims.release(connection, row.name, now, 1)
        return True

    def _slow(self, connection: Any, lane: Lane, now: int) -> list[Event]:
        """Have the route of `lane` carry less, on all hosts."""
        circuit, name = lane.circuit, lane.route.name
        halved = routes.slow(
            connection, name, now, rate=lane.route.rate, pace=circuit.pace, pause=circuit.left
        )
        self._slowed.append(circuit)
        row = routes.read(connection)[name]
        circuit.learned, circuit.slowed = row.rate, row.slowed
        return [] if halved is None else [RouteSlowed(name, printable(circuit.reason), halved)]

    def committed(self) -> None:
        """What `share` has written, is."""
        for circuit in self._slowed:
            circuit.too_fast = False

    def failed(self) -> None:
        """Whatever there was to tell, nobody has heard it."""
        for lane in self._lanes:
            lane.circuit.news = True


def rate_of(lane: Lane, now: int) -> float | None:
    """Messages a second that the route of `lane` may carry; None for any number."""
    return routes.limit(lane.route.rate, lane.circuit.learned, lane.circuit.slowed, now)
