"""Connections of routes that may have so many on all hosts together: which lane has one.

A lane has its seats as long as it has something to send, and somewhat longer. It asks for them in
the transaction that begins its mail, so that nothing is sent without.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Any

from ..queue.sql import connection_slots
from .lane import Lane

_HOLDER_BITS = 63


class Seats:
    """Those of one worker. All methods are for its keeper."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        # In one order everywhere, so that no two wait for each other; who is urgent asks first.
        self._limited = sorted(
            (lane for lane in lanes if lane.route.connections is not None),
            key=lambda lane: (lane.route.name, not lane.high),
        )
        self._holder = secrets.randbits(_HOLDER_BITS)
        #: taken in a transaction that has not committed yet
        self._taken: dict[Lane, tuple[int, ...]] = {}
        #: those that others have by now
        self._lost = False

    def has(self, lane: Lane) -> bool:
        """True if `lane` may have a connection."""
        return lane.route.connections is None or bool(self._taken.get(lane, lane.seats))

    def take(self, connection: Any, wanted: set[Lane], now: int, until: int, pause: float) -> None:
        """Ask for those of `wanted`; one that gets none asks again after `pause` seconds."""
        self._taken.clear()
        for lane in self._limited:
            if lane not in wanted or lane.seats or lane.unseated:
                continue
            held = [number for other in self._on(lane) for number in other.seats]
            held += [number for other in self._on(lane) for number in self._taken.get(other, ())]
            found = connection_slots.take(
                connection,
                lane.route.name,
                _numbers(lane, alone=len(self._on(lane)) == 1),
                lane.route.seats,
                last=lane.high,
                holder=self._holder,
                held=held,
                now_ms=now,
                until_ms=until,
            )
            if found:
                self._taken[lane] = found
            else:
                lane.seatless = time.monotonic() + pause

    def renew(self, connection: Any, until: int) -> bool:
        """Keep them, but for those of lanes that do nothing. False if others have some by now."""
        kept = True
        for lane in self._limited:
            if not lane.seats:
                continue
            name = lane.route.name
            if lane.busy or lane.waiting:
                ours = connection_slots.renew(
                    connection, name, lane.seats, holder=self._holder, until_ms=until
                )
                kept = kept and ours
            else:
                connection_slots.give_back(connection, name, lane.seats, holder=self._holder)
                self._taken[lane] = ()
        if not kept:
            connection_slots.release_all(connection, self._holder)
            self._lost = True
        return kept

    def committed(self) -> None:
        """What was written, is."""
        for lane in self._limited:
            lane.seats = () if self._lost else self._taken.get(lane, lane.seats)
        self._taken.clear()
        self._lost = False

    def failed(self) -> None:
        """Nobody knows whether it was written."""
        self._taken.clear()
        self._lost = False

    def release_all(self, connection: Any) -> None:
        """The worker ends."""
        if self._limited:
            connection_slots.release_all(connection, self._holder)

    def _on(self, lane: Lane) -> list[Lane]:
        return [other for other in self._limited if other.route is lane.route]


def _numbers(lane: Lane, *, alone: bool) -> range:
    """Which seats `lane` may have: some are left to what is urgent if there are enough."""
    count = lane.route.connections or 0
    return range(count if lane.high or alone else count - lane.route.seats)
