"""Leases, slots and batches of dead processes: any live process takes them over at once.

A process that is provably dead on this host (`process_identity.fate`) sends nothing more, so its
leases need not run out. For all other processes the lease, the slot and the heartbeat decide.
"""

from __future__ import annotations

import json
from dataclasses import astuple
from typing import Any

import sqlalchemy as sa

from ..process_identity import DEAD_AFTER_S, Fate, Identity, fate, process_id
from ..schema import IS_LEASED, IS_OPEN, batch, delivery, process
from . import connection_slots
from .processes import fates, identity_of

#: Milliseconds until mail that a dead process had begun is tried again.
DEAD_DELAY_MS = 20_000

_LEASING = (
    sa.select(delivery.c.process).where(IS_LEASED, delivery.c.process.is_not(None)).distinct()
)
_LEASED_BY = sa.select(sa.func.count(delivery.c.id)).where(
    IS_LEASED, delivery.c.process.in_(sa.bindparam("ids", expanding=True))
)
#: The key of the process in the notes of a batch: the process may have no row of its own yet.
_PROCESS = "owner"
#: Open batches, with the rows of their processes.
BATCHES = (
    sa.select(
        *(batch.c.id, batch.c.state, batch.c.witnesses, batch.c.reason),
        *(batch.c.process, batch.c.created),
        process,
    )
    .join_from(batch, process, process.c.id == batch.c.process, isouter=True)
    .where(IS_OPEN)
    .order_by(batch.c.created)
)


def dead_holders(connection: sa.Connection) -> list[str]:
    """The ids of processes that have leases or slots and are provably dead."""
    ids = set(connection.scalars(_LEASING)) | connection_slots.holders(connection)
    return [id_ for id_, found in fates(connection, ids).items() if found is Fate.DEAD]


def leased_by_the_dead(connection: sa.Connection) -> int:
    """How many deliveries are leased by processes that are provably dead."""
    ids = dead_holders(connection)
    return (connection.scalar(_LEASED_BY, {"ids": ids}) or 0) if ids else 0


# -- batches


def noted_process() -> dict[str, Any]:
    """The identity of this process, for the notes of a batch."""
    return {_PROCESS: astuple(Identity.mine())}


def fate_of_holder(row: Any, now_ms: int) -> Fate:
    """Whether the process of a batch decides about it; `row` is one of `BATCHES`.

    `Fate.DEAD` is proved. `Fate.UNKNOWN` stands for a process that has shown no sign of life for
    `process_identity.DEAD_AFTER_S` seconds, or has given the batch up.
    """
    if row.process is None:
        return Fate.UNKNOWN
    if row.process == process_id():
        return Fate.ALIVE
    # Before the first heartbeat of a process, its batch is the sign of life.
    known = row.host is not None
    other = identity_of(row) if known else _noted(row.witnesses)
    sign = row.heartbeat if known else row.created
    sign = sign if isinstance(sign, int) else 0
    found = Fate.UNKNOWN if other is None else fate(other, row.process)
    if found is Fate.UNKNOWN and now_ms - sign < DEAD_AFTER_S * 1000:
        return Fate.ALIVE
    return found


def _noted(witnesses: str) -> Identity | None:
    try:
        host, boot, namespace, pid, started = json.loads(witnesses)[_PROCESS]
    except (ValueError, TypeError, KeyError):
        return None
    texts = all(isinstance(text, str) for text in (host, boot, namespace))
    if not texts or not all(isinstance(number, int) for number in (pid, started)):
        return None
    return Identity(host, boot, namespace, pid, started)
