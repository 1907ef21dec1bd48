"""Leases: how long a claim lasts, and what becomes of deliveries whose holder is gone.

The lease of a process that is provably dead (see `dead`) ends at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from ..process_identity import process_id
from ..retry import DOUBT_DELAY_MS, DOUBT_RETRIES, Settlement
from ..schema import IS_LEASED, delivery
from ..states import State
from .dead import DEAD_DELAY_MS
from .processes import fates
from .settlements import hold_repeated, settle
from .statements import STEP

_RENEW = (
    delivery.update()
    .where(IS_LEASED, delivery.c.token.in_(sa.bindparam("tokens", expanding=True)))
    .values(lease=sa.bindparam("new_lease"))
)
_ENDED = (
    sa.select(
        *(delivery.c.id, delivery.c.token, delivery.c.begun, delivery.c.due, delivery.c.process)
    )
    .where(IS_LEASED)
    .where(
        sa.or_(
            delivery.c.lease < sa.bindparam("now"),
            delivery.c.process.in_(sa.bindparam("dead", expanding=True)),
            delivery.c.id.in_(sa.bindparam("nobodys", expanding=True)),
        )
    )
    .order_by(delivery.c.lease)
    .limit(sa.bindparam("limit"))
    # A process that is writing to one has locked it, and may wait for another that we lock.
    .with_for_update(skip_locked=True)
)
#: Deliveries that are leased for longer than any worker leases.
_FAR_OFF = (
    sa.select(delivery.c.id, delivery.c.process, delivery.c.token)
    .where(IS_LEASED, delivery.c.lease > sa.bindparam("far"))
    .limit(sa.bindparam("limit"))
)
_SHORTEN = (
    delivery.update()
    .where(IS_LEASED, delivery.c.lease > sa.bindparam("far"))
    .where(delivery.c.process.in_(sa.bindparam("some", expanding=True)))
    .values(lease=sa.bindparam("new_lease"))
)


def renew(connection: sa.Connection, tokens: Sequence[int], lease_ms: int) -> int:
    """Have the leases of `tokens` end at `lease_ms`; how many deliveries they still hold."""
    if not tokens:
        return 0
    return connection.execute(_RENEW, {"tokens": list(tokens), "new_lease": lease_ms}).rowcount


def end_leases(
    connection: sa.Connection,
    now_ms: int,
    lease_now_ms: int | None = None,
    *,
    dead: Collection[str] = (),
    nobodys: Collection[int] = (),
    hold_doubt: bool = False,
    retries: int = DOUBT_RETRIES,
) -> int:
    """Take back the deliveries of workers that are gone; how many they were.

    A worker is gone if its process is among `dead`, or if its lease has ended. The deliveries
    `nobodys` are taken back in any case. `lease_now_ms` is the time by the clock of leases, if that
    is another clock: see `Database.lease_now_ms`. A delivery that was begun is in doubt. `retries`
    is as for `hold_repeated`; with `hold_doubt` all deliveries in doubt wait for a person.
    """
    moment_ms = now_ms if lease_now_ms is None else lease_now_ms
    gone = {"now": moment_ms, "dead": list(dead), "nobodys": list(nobodys)}
    rows = connection.execute(_ENDED, {**gone, "limit": STEP}).all()
    results = []
    for row in rows:
        made = Settlement(State.READY, row.due, 0, False, None, None)
        if row.begun:
            delay_ms = DEAD_DELAY_MS if row.process in dead else DOUBT_DELAY_MS
            due = None if hold_doubt else now_ms + delay_ms
            why = "the worker that was sending it is gone"
            made = Settlement(State.IN_DOUBT, due, 1, True, None, why)
        results.append((row.id, row.token, made))
    return settle(connection, hold_repeated(connection, results, retries), now_ms)


def far_off(
    connection: sa.Connection, far_ms: int, until_ms: int, kept: Collection[int] = ()
) -> list[int]:
    """Deliveries that are leased until after `far_ms`, and not held by a live process.

    A clock was ahead when they were leased, or when their leases were renewed. A process that may
    live has until `until_ms` to renew them. This process holds those of the tokens `kept`.
    """
    rows = connection.execute(_FAR_OFF, {"far": far_ms, "limit": STEP}).all()
    if not rows:
        return []
    known = fates(connection, {row.process for row in rows if row.process is not None})
    others = [id_ for id_ in known if id_ != process_id()]
    if others:
        connection.execute(_SHORTEN, {"far": far_ms, "some": others, "new_lease": until_ms})
    return [
        row.id
        for row in rows
        if (row.token not in kept if row.process == process_id() else row.process not in known)
    ]
