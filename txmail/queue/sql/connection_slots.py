"""Connection slots: the connections that a route may have at once, of all workers on all hosts.

Each slot is a row with a number. Its holder renews it again and again. The slot of a worker that is
gone is free when its lease ends; that of a worker that is provably dead is free at once.
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
        # Ours may come from an earlier transaction whose commit got no answer.
        .where(sa.or_(_s.until <= sa.bindparam("now"), _s.holder == sa.bindparam("mine")))
        .order_by(_s.number.desc() if last else _s.number)
        .limit(sa.bindparam("count"))
        # Of two workers that ask at once, the second does not wait for the first.
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
    """Take `count` slots of the route `name` for `holder`; their numbers.

    The result is empty, and no slot is taken, if fewer are free.

    They are among `numbers`, without those that the holder has `held` already; with `last`, the
    highest of them. No worker waits for another.
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
    """Hold the slots until `until_ms`; False if another worker holds some of them by now."""
    values = {"name": name, "held": list(numbers), "mine": holder, "new_until": until_ms}
    return connection.execute(_RENEW, values).rowcount == len(numbers)


def give_back(
    connection: sa.Connection, name: str, numbers: Collection[int], *, holder: int
) -> None:
    """Give back slots that are not needed any more."""
    connection.execute(_GIVE_BACK, {"name": name, "held": list(numbers), "mine": holder})


def release_all(connection: sa.Connection, holder: int) -> None:
    """Give back all slots of `holder`."""
    connection.execute(_RELEASE_ALL, {"mine": holder})


def holders(connection: sa.Connection) -> set[str]:
    """The ids of the processes that hold slots."""
    return set(connection.scalars(_HOLDING))


def free(connection: sa.Connection, gone: Collection[str]) -> None:
    """Free the slots of the processes `gone`."""
    if gone:
        connection.execute(_FREE_OF, {"gone": list(gone)})


def end_far_off(connection: sa.Connection, far_ms: int, until_ms: int) -> None:
    """Free slots that are taken until after `far_ms`: a clock was ahead when they were taken.

    A process that may be alive has until `until_ms` to renew them.
    """
    ids = set(connection.scalars(_FAR, {"far": far_ms}))
    if not ids:
        return
    known = fates(connection, ids)
    free(connection, ids - set(known))
    if known:
        connection.execute(_SHORTEN, {"some": list(known), "far": far_ms, "new_until": until_ms})
