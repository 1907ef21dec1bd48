"""The schedule: when deliveries are due, and making ready those whose time has come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from ...submission import Priority
from ..schema import IS_DELAYED, IS_LATER, IS_LEASED, IS_PARKED, IS_READY, delivery
from ..states import State
from .parked import waited_for
from .statements import STEP, chosen, move


def _wake_statement() -> sa.Update:
    some = (
        sa.select(delivery.c.id)
        .where(IS_LATER, delivery.c.due <= sa.bindparam("now"))
        .order_by(delivery.c.due)
        .limit(sa.bindparam("limit"))
    )
    return move(State.READY, State.DEFERRED, State.IN_DOUBT).where(chosen(some))


_WAKE = _wake_statement()


_NEXT_READY = sa.select(sa.func.min(delivery.c.due)).where(
    IS_READY, delivery.c.priority == sa.bindparam("priority")
)
_NEXT_LATER = sa.select(sa.func.min(delivery.c.due)).where(IS_LATER)
_PARKED_SINCE = sa.select(sa.func.min(delivery.c.due)).where(
    IS_PARKED,
    delivery.c.route == sa.bindparam("which"),
    delivery.c.priority == sa.bindparam("priority"),
)
_DELAYED = sa.select(sa.func.min(delivery.c.since)).where(IS_DELAYED)
_LEASED = sa.select(sa.func.min(sa.func.coalesce(delivery.c.since, delivery.c.due))).where(
    IS_LEASED
)


def wake(connection: sa.Connection, now_ms: int) -> int:
    """Make deliveries ready that are deferred or in doubt, and due; how many they were."""
    values = {"now": now_ms, "limit": STEP, "new_changed": now_ms}
    return connection.execute(_WAKE, values).rowcount


def next_due(connection: sa.Connection) -> int | None:
    """When the next delivery is due, in milliseconds since 1970; None if none is."""
    times = [connection.scalar(_NEXT_READY, {"priority": int(p)}) for p in Priority]
    times.append(connection.scalar(_NEXT_LATER))
    return _first(times)


def oldest_due(connection: sa.Connection) -> int | None:
    """Since when the oldest unsent delivery is due, whether or not its route works.

    Milliseconds since 1970; later than now if no delivery is due.
    """
    times = [
        connection.scalar(_PARKED_SINCE, {"which": name, "priority": int(priority)})
        for name in waited_for(connection)
        for priority in Priority
    ]
    times += [next_due(connection), connection.scalar(_DELAYED), connection.scalar(_LEASED)]
    return _first(times)


def _first(times: Iterable[Any]) -> int | None:
    """The first of `times`. In a damaged table a time may be of another type: see `impossible`."""
    return min((moment for moment in times if isinstance(moment, int)), default=None)
