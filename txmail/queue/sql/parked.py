"""Parked mail: it waits in the queue for a route that has no room for it, or does not work now.

A worker gives it back with `park` or `delay`. Workers claim it again when the route has room. If no
worker seems to have that route any more, `unpark` lets any route carry it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from ..retry import Settlement
from ..schema import IS_PARKED, LAST_MOMENT, delivery
from ..states import State
from .claimed import ClaimedMessage
from .executemany import execute_many
from .statements import STEP, chosen, move

#: Milliseconds that mail waits for a route that no worker seems to have any more.
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


def park(
    connection: sa.Connection, claimed: Iterable[tuple[ClaimedMessage, str | None]], now_ms: int
) -> None:
    """Give back messages until the named route has room; for any route, where none is named."""
    rows = [
        {"number": id_, "held": one.token, "new_route": route, "new_changed": now_ms}
        for one, route in claimed
        for id_ in one.ids
    ]
    execute_many(connection, _PARK, rows)


def delay(
    connection: sa.Connection,
    results: Iterable[tuple[int, int, Settlement, str | None]],
    now_ms: int,
) -> int:
    """Give back deliveries until they are due again; how many were written.

    Each result is an id, a token, the new values, and the name of the route that the delivery waits
    for, if any. Column ``since`` keeps when the delivery was due first.
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
    """Let deliveries that wait for the named route be due now, as it works; how many they were."""
    values = {"which": route, "now": now_ms, "limit": limit, "new_changed": now_ms}
    return connection.execute(_RELEASE, values).rowcount


def is_parked(connection: sa.Connection, route: str, now_ms: int = LAST_MOMENT) -> bool:
    """True if a due delivery waits for the named route."""
    return bool(connection.scalar(_PARKED, {"which": route, "now": now_ms}))


def unpark(connection: sa.Connection, known: Collection[str], now_ms: int) -> None:
    """Let any route carry mail that has waited for long for a route that is none of `known`.

    A route can be renamed, and its mail must not wait for ever. One call handles some of the mail.
    """
    for name in waited_for(connection):
        if name not in known:
            values = {"which": name, "limit": STEP, "new_changed": now_ms}
            values |= {"before": now_ms - PARKED_MS, "after": now_ms + PARKED_MS}
            connection.execute(_UNPARK, values)


def waited_for(connection: sa.Connection) -> Iterator[str]:
    """The names of routes with parked mail, found without reading all parked deliveries."""
    name = connection.scalar(_NEXT_ROUTE, {"which": ""})
    while name is not None:
        yield name
        name = connection.scalar(_NEXT_ROUTE, {"which": name})


def waiting_for(connection: sa.Connection) -> dict[str, int]:
    """How many deliveries are parked for each route."""
    return {row.route: row.number for row in connection.execute(_WAITING_FOR)}
