"""Deliveries in impossible states: a person or a broken disk has written to the tables.

No other statement finds these deliveries, so they would wait for ever, unseen. They have an index
of their own, so looking for them costs nothing.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from ...submission import Priority
from ..schema import IS_IMPOSSIBLE, LAST_MOMENT, delivery
from ..states import State
from .statements import STEP, move

_d = delivery.c
_FOUND = (
    sa.select(*(_d.id, _d.state, _d.priority, _d.due, _d.changed, _d.lease, _d.token))
    .where(IS_IMPOSSIBLE)
    .limit(STEP)
    .with_for_update(skip_locked=True)
)
_THESE = _d.id.in_(sa.bindparam("ids", expanding=True))
#: Legal moves to a state from which a delivery may fail.
_WAYS = (
    move(State.READY, State.DEFERRED).where(_THESE),
    move(State.SENDING, State.READY).where(_THESE),
)
_FAIL = (
    delivery.update()
    .where(_d.id == sa.bindparam("number"))
    .values(
        state=State.FAILED,
        priority=sa.bindparam("new_priority"),
        due=None,
        begun=0,
        token=None,
        lease=None,
        process=None,
        route=None,
        reply=sa.bindparam("new_reply"),
        changed=sa.bindparam("new_changed"),
    )
)
_PRIORITIES = [int(priority) for priority in Priority]


def fail(connection: sa.Connection, now_ms: int) -> int:
    """Have impossible deliveries wait for a person, with the reason; how many they were."""
    rows = connection.execute(_FOUND).all()
    if not rows:
        return 0
    ids = [row.id for row in rows]
    for way in _WAYS:
        connection.execute(way, {"ids": ids, "new_changed": now_ms})
    for row in rows:
        known = row.priority in _PRIORITIES
        connection.execute(
            _FAIL,
            {
                "number": row.id,
                "new_priority": row.priority if known else int(Priority.NORMAL),
                "new_reply": f"it cannot be sent: {_reason(row)}",
                "new_changed": now_ms,
            },
        )
    return len(rows)


def _reason(row: Any) -> str:
    if row.state not in list(State):
        return f"its state is {row.state!r}, which is not a state"[:200]
    if row.priority not in _PRIORITIES:
        return f"its priority is {row.priority!r}, which is not a priority"[:200]
    for name in ("due", "changed"):
        value = getattr(row, name)
        if value is not None and not (isinstance(value, int) and 0 <= value <= LAST_MOMENT):
            return f"the time {name} is {value!r}, which is not a time"[:200]
    if row.state != State.SENDING:
        return "it has no time at which it is due"
    return "a worker has it, and nobody can say which or until when"
