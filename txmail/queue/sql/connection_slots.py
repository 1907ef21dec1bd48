"""The right to a connection: a route may have so many of them, of all workers on all hosts.

Each is a row with a number. Who holds it says so again and again; of a worker that is gone it is
free when its lease ends, and of one that is provably dead at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

import sqlalchemy as sa

from ..database.constructs import insert_if_absent
from ..process_identity import process_id
from ..schema import slot
from .processes import fates

_s = slot.c
_NUMBERS = sa.select(_s.number).where(_s.route == sa.bindparam("name"))
_NEW = insert_if_absent(slot)


@cache
def _free(last: bool) -> sa.Select[Any]:
    return (
        sa.select(_s.number)
        .where(_s.route == sa.bindparam("name"))
        .where(_s.number.in_(sa.bindparam("wanted", expanding=True)))
        # Ours may be what a transaction took of which nobody knew whether it has committed.
        .where(sa.or_(_s.until <= sa.bindparam("now"), _s.holder == sa.bindparam("mine")))
        .order_by(_s.number.desc() if last else _s.number)
        .limit(sa.bindparam("count"))
        # Two who come at once: the second one does not wait for the first.
        .with_for_update(skip_locked=True)
    )


_TAKE = (
    slot.update()
    .where(_s.route == sa.bindparam("name"))
    .where(_s.number.in_(sa.bindparam("chosen", expanding=True)))
    .values(
        holder=sa.bindparam("mine"),
        until=sa.bindparam("new_until"),
        process=sa.bindparam("new_process"),
    )
)
_RENEW = (
    slot.update()
    .where(_s.route == sa.bindparam("name"), _s.holder == sa.bindparam("mine"))
    .where(_s.number.in_(sa.bindparam("held", expanding=True)))
    .values(until=sa.bindparam("new_until"))
)
_RELEASE_ALL = (
    slot.update().where(_s.holder == sa.bindparam("mine")).values(holder=0, until=0, process=None)
)
_GIVE_BACK = (
    slot.update()
    .where(_s.route == sa.bindparam("name"), _s.holder == sa.bindparam("mine"))
    .where(_s.number.in_(sa.bindparam("held", expanding=True)))
    .values(holder=0, until=0, process=None)
)
_FREE_OF = (
    slot.update()
    .where(_s.process.in_(sa.bindparam("gone", expanding=True)))
    .values(holder=0, until=0, process=None)
)
_SHORTEN = (
    slot.update()
    .where(_s.process.in_(sa.bindparam("some", expanding=True)), _s.until > sa.bindparam("far"))
    .values(until=sa.bindparam("new_until"))
)
_FAR = sa.select(_s.process).where(_s.until > sa.bindparam("far"), _s.process.is_not(None))
_HOLDING = sa.select(_s.process).where(_s.holder != 0, _s.process.is_not(None)).distinct()


def take(
    connection: sa.Connection,
    name: str,
    numbers: Iterable[int],
    count: int,
    *,
    last: bool = False,
    holder: int,
    held: Collection[int] = (),
    now_ms: int,
    until_ms: int,
) -> tuple[int, ...]:
    """`count` of `numbers` of the route `name` for `holder`, but none that it has `held` already.

    All of them, or none; with `last`, those with the highest numbers. Times are milliseconds
    since 1970. Nobody waits for others.
    """
    wanted = [number for number in numbers if number not in held]
    known = set(connection.scalars(_NUMBERS, {"name": name}))
    for number in wanted:
        if number not in known:
            connection.execute(_NEW, {"route": name, "number": number, "holder": 0, "until": 0})
    about = {"name": name, "mine": holder}
    found = connection.scalars(
        _free(last), {**about, "wanted": wanted, "now": now_ms, "count": count}
    ).all()
    if len(found) < count:
        return ()
    new = {"new_until": until_ms, "new_process": process_id()}
    connection.execute(_TAKE, {**about, "chosen": list(found), **new})
    return tuple(found)


def renew(
    connection: sa.Connection, name: str, numbers: Collection[int], *, holder: int, until_ms: int
) -> bool:
    """Hold them until then. False if some are another's by now."""
    values = {"name": name, "held": list(numbers), "mine": holder, "new_until": until_ms}
    return connection.execute(_RENEW, values).rowcount == len(numbers)


def give_back(
    connection: sa.Connection, name: str, numbers: Collection[int], *, holder: int
) -> None:
    """They are not needed any more."""
    connection.execute(_GIVE_BACK, {"name": name, "held": list(numbers), "mine": holder})


def release_all(connection: sa.Connection, holder: int) -> None:
    """Give back all that `holder` has."""
    connection.execute(_RELEASE_ALL, {"mine": holder})


def holders(connection: sa.Connection) -> set[str]:
    """The processes that have any."""
    return set(connection.scalars(_HOLDING))


def free(connection: sa.Connection, gone: Collection[str]) -> None:
    """Free what the processes `gone` have."""
    if gone:
        connection.execute(_FREE_OF, {"gone": list(gone)})


def end_far_off(connection: sa.Connection, far_ms: int, until_ms: int) -> None:
    """End what is taken until a moment after `far_ms`, as a clock has said that was ahead.

    A process that may live has until `until_ms` to say so again.
    """
    ids = set(connection.scalars(_FAR, {"far": far_ms}))
    if not ids:
        return
    known = fates(connection, ids)
    free(connection, ids - set(known))
    if known:
        connection.execute(_SHORTEN, {"some": list(known), "far": far_ms, "new_until": until_ms})
