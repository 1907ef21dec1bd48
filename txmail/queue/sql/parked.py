"""Mail that is given back because its route has no room for it, or does not work now.

It waits for its route (`park`, `delay`) until the route takes it, or until no worker seems to have
that route any more (`unpark`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from ..retry import Settlement
from ..schema import IS_PARKED, LAST_MOMENT, delivery
from ..states import State
from .claimed import Work
from .executemany import execute_many
from .statements import STEP, chosen, move

#: Milliseconds for which mail waits for a route that no worker seems to have any more.
PARKED_MS = 600_000
_PARK = (
    move(State.READY, State.SENDING)
    .where(delivery.c.id == sa.bindparam("number"), delivery.c.token == sa.bindparam("held"))
    .values(route=sa.bindparam("new_route"), begun=0, token=None, lease=None, process=None)
)
_new_code: Any = sa.bindparam("new_code", type_=delivery.c.code.type)
#: What a server has said to it itself tells more than why its route does not work now.
_KEEPS_REPLY = sa.and_(
    _new_code.is_(None), delivery.c.since.is_not(None), delivery.c.code.is_not(None)
)
_DELAY = _PARK.values(
    due=sa.bindparam("new_due"),
    since=sa.func.coalesce(delivery.c.since, delivery.c.due),
    code=sa.case((_KEEPS_REPLY, delivery.c.code), else_=_new_code),
    reply=sa.case(
        (_KEEPS_REPLY, delivery.c.reply),
        else_=sa.bindparam("new_reply", type_=delivery.c.reply.type),
    ),
)
_PARKED = sa.select(
    sa.exists().where(
        *(IS_PARKED, delivery.c.route == sa.bindparam("which")),
        delivery.c.due <= sa.bindparam("now"),
    )
)
_WAITING_FOR = (
    sa.select(delivery.c.route, sa.func.count().label("number"))
    .where(IS_PARKED)
    .group_by(delivery.c.route)
)
_NEXT_ROUTE = sa.select(sa.func.min(delivery.c.route)).where(
    IS_PARKED, delivery.c.route > sa.bindparam("which")
)


def _unpark_statement() -> sa.Update:
    some = (
        sa.select(delivery.c.id)
        .where(IS_PARKED, delivery.c.route == sa.bindparam("which"))
        .where(
            sa.or_(
                delivery.c.changed < sa.bindparam("before"),
                delivery.c.changed > sa.bindparam("after"),  # by a clock that was ahead
            )
        )
        .limit(sa.bindparam("limit"))
    )
    among = chosen(some)
    return delivery.update().where(among).values(route=None, changed=sa.bindparam("new_changed"))


_UNPARK = _unpark_statement()


def _release_statement() -> sa.Update:
    some = (
        sa.select(delivery.c.id)
        .where(IS_PARKED, delivery.c.route == sa.bindparam("which"))
        .where(delivery.c.since.is_not(None), delivery.c.due > sa.bindparam("now"))
        .order_by(delivery.c.priority, delivery.c.due)
        .limit(sa.bindparam("limit"))
    )
    among = chosen(some)
    return (
        delivery.update()
        .where(among)
        .values(
            due=sa.case(
                (delivery.c.since < sa.bindparam("now"), delivery.c.since),
                else_=sa.bindparam("now"),
            ),
            changed=sa.bindparam("new_changed"),
        )
    )


_RELEASE = _release_statement()


def park(connection: sa.Connection, works: Iterable[tuple[Work, str | None]], now_ms: int) -> None:
    """Give back what the routes of these names have no room for, until one has; or for anybody."""
    rows = [
        {"number": id_, "held": work.token, "new_route": route, "new_changed": now_ms}
        for work, route in works
        for id_ in work.ids
    ]
    execute_many(connection, _PARK, rows)


def delay(
    connection: sa.Connection,
    results: Iterable[tuple[int, int, Settlement, str | None]],
    now_ms: int,
) -> int:
    """Give back what routes of these names do not carry now; how many deliveries were written.

    Each waits for its route, if there is one, until it is due, and since when it was due before is
    not forgotten.
    """
    rows = [
        {
            "number": id_,
            "held": token,
            "new_route": route,
            "new_due": made.due,
            "new_code": made.code,
            "new_reply": made.reply,
            "new_changed": now_ms,
        }
        for id_, token, made, route in results
    ]
    return execute_many(connection, _DELAY, rows)


def release(connection: sa.Connection, route: str, now_ms: int, limit: int = STEP) -> int:
    """Let what waits for the route of this name be due, for it works; how many deliveries."""
    values = {"which": route, "now": now_ms, "limit": limit, "new_changed": now_ms}
    return connection.execute(_RELEASE, values).rowcount


def is_parked(connection: sa.Connection, route: str, now_ms: int = LAST_MOMENT) -> bool:
    """True if something that is due waits until the route of this name has room."""
    return bool(connection.scalar(_PARKED, {"which": route, "now": now_ms}))


def unpark(connection: sa.Connection, known: Collection[str], now_ms: int) -> None:
    """Let anybody claim what has waited for long for a route that is none of `known`.

    Some of it: routes can be renamed, and what waited for them must not wait for ever.
    """
    for name in waited_for(connection):
        if name not in known:
            values = {"which": name, "limit": STEP, "new_changed": now_ms}
            values |= {"before": now_ms - PARKED_MS, "after": now_ms + PARKED_MS}
            connection.execute(_UNPARK, values)


def waited_for(connection: sa.Connection) -> Iterator[str]:
    """The routes for which something is parked, found without reading all that is."""
    name = connection.scalar(_NEXT_ROUTE, {"which": ""})
    while name is not None:
        yield name
        name = connection.scalar(_NEXT_ROUTE, {"which": name})


def waiting_for(connection: sa.Connection) -> dict[str, int]:
    """How many deliveries wait for each route that has no room for them, or does not work."""
    return {row.route: row.number for row in connection.execute(_WAITING_FOR)}
