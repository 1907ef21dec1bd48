"""Rate limits and failure state of routes, shared by all workers on all hosts.

When a server asks for a lower rate, the route carries half as much from then on, on all hosts
together. The rate grows again as long as the server does not ask again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from ..database.constructs import insert_if_absent
from ..schema import process, route

#: A route that is tried, one that is left alone for a while, and one that needs a person.
CLOSED, OPEN, STOPPED = "closed", "open", "stopped"

#: The lowest rate of a route in messages a second, however often its server asks for less, and the
#: rate that is no limit any more.
SLOWEST, UNLIMITED = 0.1, 1000.0
#: Milliseconds in which the rate of a route doubles, if its server does not ask again.
DOUBLING_MS = 300_000
#: Milliseconds in which a rate is halved once at most: several workers hear of one problem.
HALVED_ONCE_IN_MS = 30_000
#: Milliseconds in which one worker tries a paused route, or another password.
ONCE_IN_MS = 60_000
#: Milliseconds: a time so far ahead was written before the clock was set back.
LONGEST_MS = 20 * ONCE_IN_MS

#: Columns that `write` writes.
_WRITTEN = ("state", "until", "failures", "reason", "changed", "logins")
_NEW = insert_if_absent(route)
_WRITE = (
    route.update()
    .where(route.c.name == sa.bindparam("which"))
    .values({name: sa.bindparam(f"new_{name}") for name in _WRITTEN} | {"trying": None})
)
_READ = sa.select(route)
_TRY = (
    route.update()
    .where(route.c.name == sa.bindparam("which"), route.c.changed == sa.bindparam("seen"))
    .values(changed=sa.bindparam("now"))
)
_TRYING = sa.text(
    "UPDATE txmail_route SET trying = :end WHERE name = :name"
    " AND (trying IS NULL OR trying <= :now OR trying > :end)"
)
_LOGINS = (
    route.update()
    .where(route.c.name == sa.bindparam("which"))
    .values(logins=sa.bindparam("refused"))
)
_ALLOWANCE = (
    sa.select(route.c.allowance, route.c.refilled)
    .where(route.c.name == sa.bindparam("name"))
    .with_for_update()
)
_LEARNED = (
    sa.select(route.c.rate, route.c.slowed)
    .where(route.c.name == sa.bindparam("name"))
    .with_for_update()
)
_SLOW = (
    route.update()
    .where(route.c.name == sa.bindparam("which"))
    .values(rate=sa.bindparam("new_rate"), slowed=sa.bindparam("new_slowed"))
)
_WORKERS = sa.select(sa.func.count()).where(
    process.c.kind == "worker", process.c.heartbeat > sa.bindparam("since")
)
_SPEND = (
    route.update()
    .where(route.c.name == sa.bindparam("which"))
    .values(allowance=sa.bindparam("new_allowance"), refilled=sa.bindparam("new_refilled"))
)


def write(
    connection: sa.Connection,
    name: str,
    now_ms: int,
    *,
    state: str,
    until: int | None,
    failures: int,
    reason: str,
    logins: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write the state of the route `name` for all workers. Times are milliseconds since 1970.

    `logins` has an octet of each password that was refused, by account and server.
    """
    row = {
        "state": state,
        "until": until,
        "failures": failures,
        "reason": reason or None,
        "changed": now_ms,
        "logins": _stored(logins),
    }
    values = {"which": name, **{f"new_{column}": value for column, value in row.items()}}
    if connection.execute(_WRITE, values).rowcount:
        return
    if not connection.execute(_NEW, {"name": name, **row}).rowcount:
        connection.execute(_WRITE, values)  # another process was faster


def _make(connection: sa.Connection, name: str, now_ms: int) -> None:
    """Make the row of the route `name`, if it has none."""
    row = {"name": name, "state": CLOSED, "failures": 0, "changed": now_ms}
    connection.execute(_NEW, row)


def keep_logins(
    connection: sa.Connection, name: str, now_ms: int, logins: Mapping[str, int]
) -> None:
    """Write the refused logins of the route `name`, and leave its state as it is."""
    _make(connection, name, now_ms)
    connection.execute(_LOGINS, {"which": name, "refused": _stored(logins)})


def _stored(logins: Mapping[str, int]) -> str | None:
    return json.dumps(logins, sort_keys=True) if logins else None


def refused_logins(row: Any) -> dict[str, int]:
    """The refused logins in the `row` of a route."""
    try:
        found = json.loads(row.logins or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def needs_password(row: Any) -> bool:
    """True if the route of `row` carries nothing until a login has another password."""
    return row.state == STOPPED and row.until is None and bool(refused_logins(row))


def may_log_in(connection: sa.Connection, name: str, now_ms: int) -> bool:
    """True if this process may try another password on the route `name`.

    No other process may, until the result is written or a minute is over.
    """
    values = {"name": name, "now": now_ms, "end": now_ms + ONCE_IN_MS}
    return bool(connection.execute(_TRYING, values).rowcount)


def may_try(connection: sa.Connection, name: str, seen: int, now_ms: int) -> bool:
    """True if this process may try the paused route `name`; no other process may for a minute.

    `seen` is the time of the last change, as this process has read it.
    """
    if 0 <= now_ms - seen < ONCE_IN_MS:
        return False
    return bool(connection.execute(_TRY, {"which": name, "seen": seen, "now": now_ms}).rowcount)


def read(connection: sa.Connection) -> dict[str, Any]:
    """The rows of all routes, by their names."""
    return {row.name: row for row in connection.execute(_READ)}


def grant(connection: sa.Connection, name: str, now_ms: int, rate: float, wanted: int) -> int:
    """How many of `wanted` messages the route `name` may carry now, at `rate` a second over all.

    It may carry at once what it has not carried in the last second, and at least one message. The
    row stays locked until the transaction ends, so that two hosts cannot spend the same allowance.
    """
    _make(connection, name, now_ms)
    row = connection.execute(_ALLOWANCE, {"name": name}).one()
    most = max(rate, 1.0)
    allowance, refilled = row.allowance, row.refilled
    if allowance is None or refilled is None:
        allowance = most
    else:
        allowance = min(most, allowance + max(0, now_ms - refilled) / 1000 * rate)
    granted = min(wanted, int(allowance))
    connection.execute(
        _SPEND,
        {"which": name, "new_allowance": allowance - granted, "new_refilled": now_ms},
    )
    return granted


def limit(
    rate: float | None, learned: float | None, slowed: int | None, now_ms: int
) -> float | None:
    """Messages a second that a route may carry at `now_ms`; None for any number.

    `rate` is its setting, `learned` the rate to which it was slowed down at `slowed`.
    """
    if learned is None or slowed is None or slowed > now_ms + LONGEST_MS:
        return rate
    grown = learned * 2 ** min(max(0, now_ms - slowed) / DOUBLING_MS, 64)
    if rate is None:
        return None if grown >= UNLIMITED else grown
    return min(rate, grown)


def slow(
    connection: sa.Connection,
    name: str,
    now_ms: int,
    *,
    rate: float | None,
    pace: float,
    pause: float,
) -> float | None:
    """The server of the route `name` asks for a lower rate: halve its rate on all hosts.

    Without a rate so far, all workers together are taken to send `pace` messages a second each, as
    this one does. The rate grows again after `pause` seconds, in which the route is left alone.
    Returns the new rate; None if it was halved a moment ago, and stays as it is.
    """
    _make(connection, name, now_ms)
    row = connection.execute(_LEARNED, {"name": name}).one()
    if row.slowed is not None and now_ms < row.slowed <= now_ms + LONGEST_MS:
        return None
    before = limit(rate, row.rate, row.slowed, now_ms)
    if before is None:
        workers = connection.scalar(_WORKERS, {"since": now_ms - ONCE_IN_MS}) or 0
        before = pace * max(1, workers)
    halved = max(SLOWEST, before / 2)
    slowed = now_ms + max(HALVED_ONCE_IN_MS, int(pause * 1000))
    connection.execute(_SLOW, {"which": name, "new_rate": halved, "new_slowed": slowed})
    return halved
