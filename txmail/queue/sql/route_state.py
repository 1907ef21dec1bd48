"""What workers on all hosts know of a route: whether it works, and how much it may carry.

A server that says that it gets too much is believed: from then on the route carries half of what
it did, on all hosts together, and more again the longer nothing of that kind is said.
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

#: Messages a second that are left to a route at least, however often its server wants less; and
#: how many are no limit any more.
SLOWEST, UNLIMITED = 0.1, 1000.0
#: Milliseconds in which what a route may carry doubles, if nothing is said.
DOUBLING_MS = 300_000
#: Milliseconds in which it is halved once at most: workers hear of the same trouble several times.
HALVED_ONCE_IN_MS = 30_000
#: Milliseconds in which one worker tries a paused route, or another password.
ONCE_IN_MS = 60_000
#: Milliseconds: what is said of a later moment was said before the clock was set back.
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
    """Tell all others how the route `name` is. Times are milliseconds since 1970.

    `logins` are those that were refused: by account and server, an octet of the password.
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
    """Keep which logins of the route `name` were refused, whether it works otherwise or not."""
    _make(connection, name, now_ms)
    connection.execute(_LOGINS, {"which": name, "refused": _stored(logins)})


def _stored(logins: Mapping[str, int]) -> str | None:
    return json.dumps(logins, sort_keys=True) if logins else None


def refused_logins(row: Any) -> dict[str, int]:
    """The logins that a route was refused, as its `row` has them."""
    try:
        found = json.loads(row.logins or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def needs_password(row: Any) -> bool:
    """True if nothing goes by the route of `row` before a login has another password."""
    return row.state == STOPPED and row.until is None and bool(refused_logins(row))


def may_log_in(connection: sa.Connection, name: str, now_ms: int) -> bool:
    """True if this process may try another password on the route `name`, and no other does.

    Until it is written how that has ended, or a minute is over.
    """
    values = {"name": name, "now": now_ms, "end": now_ms + ONCE_IN_MS}
    return bool(connection.execute(_TRYING, values).rowcount)


def may_try(connection: sa.Connection, name: str, seen: int, now_ms: int) -> bool:
    """True if this process may try the paused route `name`, and no other does in this minute.

    `seen` is when its row was changed, as it was read.
    """
    if 0 <= now_ms - seen < ONCE_IN_MS:
        return False
    return bool(connection.execute(_TRY, {"which": name, "seen": seen, "now": now_ms}).rowcount)


def read(connection: sa.Connection) -> dict[str, Any]:
    """The rows of all routes, by their names."""
    return {row.name: row for row in connection.execute(_READ)}


def grant(connection: sa.Connection, name: str, now_ms: int, rate: float, wanted: int) -> int:
    """How many of `wanted` messages the route `name` may carry now, at `rate` a second over all.

    What it has not carried in the last second or less it may carry at once, but one at least. The
    row is locked until the transaction ends, so that two hosts cannot spend the same.
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

    `rate` is what it was told to, `learned` what it was slowed down to at `slowed`.
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
    """The server of the route `name` wants less: halve what it may carry, on all hosts.

    If it might carry any number, that is half of what all workers together send, if each does as
    many as this one: `pace` messages a second. It grows again after `pause` seconds, in which the
    route is left alone. Returns what it may carry now, None if that is not changed: it has been
    halved a moment ago.
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
