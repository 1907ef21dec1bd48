"""What workers on all hosts know of a route: whether it works, and how much it may carry."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from .schema import route

#: A route that is tried, one that is left alone for a while, and one that needs a person.
CLOSED, OPEN, STOPPED = "closed", "open", "stopped"

_WRITE = sa.text(
    "INSERT INTO txmail_route (name, state, until, failures, reason, changed)"
    " VALUES (:name, :state, :until, :failures, :reason, :changed)"
    " ON CONFLICT (name) DO UPDATE SET state = excluded.state, until = excluded.until,"
    " failures = excluded.failures, reason = excluded.reason, changed = excluded.changed"
)
_NEW = sa.text(
    "INSERT INTO txmail_route (name, state, failures, changed) VALUES (:name, 'closed', 0, :now)"
    " ON CONFLICT (name) DO NOTHING"
)
_READ = sa.select(route)
_ALLOWANCE = (
    sa.select(route.c.allowance, route.c.refilled)
    .where(route.c.name == sa.bindparam("name"))
    .with_for_update()
)
_SPEND = (
    route.update()
    .where(route.c.name == sa.bindparam("which"))
    .values(allowance=sa.bindparam("new_allowance"), refilled=sa.bindparam("new_refilled"))
)


def write(
    connection: sa.Connection,
    name: str,
    now: int,
    *,
    state: str,
    until: int | None,
    failures: int,
    reason: str,
) -> None:
    """Tell all others how the route `name` is. Times are milliseconds since 1970."""
    connection.execute(
        _WRITE,
        {
            "name": name,
            "state": state,
            "until": until,
            "failures": failures,
            "reason": reason or None,
            "changed": now,
        },
    )


def read(connection: sa.Connection) -> dict[str, Any]:
    """The rows of all routes, by their names."""
    return {row.name: row for row in connection.execute(_READ)}


def grant(connection: sa.Connection, name: str, now: int, rate: float, wanted: int) -> int:
    """How many of `wanted` messages the route `name` may carry now, at `rate` a second over all.

    What it has not carried in the last second or less it may carry at once, but one at least. The
    row is locked until the transaction ends, so that two hosts cannot spend the same.
    """
    connection.execute(_NEW, {"name": name, "now": now})
    row = connection.execute(_ALLOWANCE, {"name": name}).one()
    most = max(rate, 1.0)
    allowance, refilled = row.allowance, row.refilled
    if allowance is None or refilled is None:
        allowance = most
    else:
        allowance = min(most, allowance + max(0, now - refilled) / 1000 * rate)
    granted = min(wanted, int(allowance))
    connection.execute(
        _SPEND,
        {"which": name, "new_allowance": allowance - granted, "new_refilled": now},
    )
    return granted
