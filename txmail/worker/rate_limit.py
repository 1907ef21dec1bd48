"""What routes may carry and how they are, over all workers on all hosts."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..common.shown import printable
from ..events import Event, RouteSlowed
from ..queue.sql import parked, route_state, statements
from ..queue.sql.claimed import ClaimedMessage
from .lane import Lane
from .login_watch import is_barred, logins_of_route, patience, refused_here
from .router import LONGEST_PAUSE, Circuit, Route

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
        #: by route, which logins were refused, as this worker has last said it
        self._refused: dict[str, dict[str, int]] = {}

    def begin(self) -> None:
        """A worker that goes on begins: a person may have mended what was wrong."""
        self._untried = {lane.route.name for lane in self._lanes}

    def recall(self, connection: Any) -> None:
        """See which logins were refused before this worker began."""
        known = route_state.read(connection)
        for lane in self._lanes:
            if lane.route.name in known:
                lane.circuit.refused = route_state.refused_logins(known[lane.route.name])

    def release(self, connection: Any, now: int) -> None:
        """Let some of what waits for routes that work again be due."""
        for name in sorted(self._recovered):
            if parked.release(connection, name, now) < statements.STEP:
                self._recovered.discard(name)

    @property
    def has_news(self) -> bool:
        """True if others do not know yet how a route is."""
        return any(lane.circuit.news or self._has_refused(lane.route) for lane in self._lanes)

    def _has_refused(self, route: Route) -> bool:
        """True if other logins of `route` are refused than this worker has said."""
        return self._refused.get(route.name, {}) != refused_here(route)

    def allowed(
        self, connection: Any, works: list[ClaimedMessage], now: int
    ) -> list[ClaimedMessage]:
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
            route: route_state.grant(connection, route.name, now, rates[route], wanted[route])
            for route in sorted(rates, key=lambda route: route.name)
        }
        chosen: list[ClaimedMessage] = []
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
        known = route_state.read(connection)
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
            if row is not None:
                circuit.refused = route_state.refused_logins(row)
            if circuit.news:
                circuit.news = False
                if not circuit.open and not circuit.failures:
                    self._recovered.add(lane.route.name)
                state = route_state.STOPPED if circuit.stopped else route_state.OPEN
                route_state.write(
                    connection,
                    lane.route.name,
                    now,
                    state=state if circuit.open else route_state.CLOSED,
                    until=self._until(lane, now),
                    failures=circuit.failures,
                    reason=circuit.reason,
                    logins=self._own(lane.route),
                )
                circuit.refused = self._refused[lane.route.name]
            elif circuit.another_login:
                self._log_in(connection, lane, row, now)
            elif row is not None and row.state != route_state.CLOSED and not circuit.open:
                self._adopt(connection, lane, row, now)
            if self._has_refused(lane.route):
                route_state.keep_logins(connection, lane.route.name, now, self._own(lane.route))
            self._untried.discard(lane.route.name)
        self.release(connection, now)
        return news

    def _until(self, lane: Lane, now: int) -> int | None:
        """Until when the route of `lane` is paused; None if no time ends that, or there is none."""
        if not lane.circuit.open or is_barred(lane.route):
            return None
        return now + int(lane.circuit.left * 1000)

    def _own(self, route: Route) -> dict[str, int]:
        """The logins of `route` that were refused; they are told from now on."""
        self._refused[route.name] = refused_here(route)
        return self._refused[route.name]

    def _adopt(self, connection: Any, lane: Lane, row: Any, now: int) -> None:
        """Another worker has found that the route of `lane` fails, as its `row` says."""
        if row.changed == lane.circuit.outdated:
            return
        # Also if it may be tried again: how that ends matters to all.
        left = _left(row, now)
        if left > 0 and self._tries(connection, lane.route, row, now, left):
            left = 0.0
        lane.circuit.adopt(left, row.failures, row.reason or "")

    def _log_in(self, connection: Any, lane: Lane, row: Any, now: int) -> None:
        """A login of the route of `lane` was refused, and there is another password by now.

        Of all workers one tries it. Passwords that a program makes have to wait: each is another
        one, and nobody has looked at it.
        """
        circuit, name = lane.circuit, lane.route.name
        if row is None or row.state == route_state.CLOSED:
            circuit.try_now(None)
            return
        of_a_program = any(login.of_a_program for login in logins_of_route(lane.route))
        wait = patience(row.failures) if of_a_program else 0.0
        if is_barred(lane.route) or circuit.refused != circuit.compared:
            circuit.another_login = False  # it is the one that was refused, after all
        elif 0 <= now - row.changed < wait * 1000 or not route_state.may_log_in(
            connection, name, now
        ):
            circuit.adopt(_left(row, now), row.failures, row.reason or "")
        else:
            log.info("route %s has another password, and is tried now", name)
            circuit.try_now(row.changed, row.failures)
            parked.release(connection, name, now)

    def _tries(self, connection: Any, route: Route, row: Any, now: int, left: float) -> bool:
        """True if the paused `route` is tried all the same, as it may have been mended."""
        if row.name not in self._untried:
            return False
        reason = printable(row.reason or "")
        if is_barred(route):
            log.warning("route %s is paused until it has another password: %s", row.name, reason)
            return False
        if not route_state.may_try(connection, row.name, row.changed, now):
            log.warning("route %s is paused, next try in %.0f s: %s", row.name, left, reason)
            return False
        log.info("route %s was paused, and is tried now: %s", row.name, reason)
        parked.release(connection, row.name, now, 1)
        return True

    def _slow(self, connection: Any, lane: Lane, now: int) -> list[Event]:
        """Have the route of `lane` carry less, on all hosts."""
        circuit, name = lane.circuit, lane.route.name
        halved = route_state.slow(
            connection, name, now, rate=lane.route.rate, pace=circuit.pace, pause=circuit.left
        )
        self._slowed.append(circuit)
        row = route_state.read(connection)[name]
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
    return route_state.limit(lane.route.rate, lane.circuit.learned, lane.circuit.slowed, now)


def _left(row: Any, now: int) -> float:
    """Seconds until the paused route of `row` is tried again.

    What has no end waits for another password. Its route is looked at all the same from time to
    time, and the log says what is wrong; a password that was refused is not sent for that.
    """
    if route_state.needs_password(row):
        return LONGEST_PAUSE
    return ((row.until or now) - now) / 1000
