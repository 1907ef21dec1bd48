"""Times that were written while a clock was ahead, put right.

A clock can be wrong for a while: that of a machine that has started without a network, say. What
was committed then seems to be due much later than it is, and what was put off, too. A clock that
is right writes nothing that is later than now: so the rows can be told.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import sqlalchemy as sa

from ...submission import Priority
from ..schema import IS_LATER, IS_PARKED, IS_READY, delivery, message
from .executemany import execute_many
from .parked import waited_for

#: How many deliveries that are due later are looked at in one step, of each kind.
STEP = 1000

_COLUMNS = (delivery.c.id, delivery.c.due, delivery.c.changed, delivery.c.since)


def _coming(*conditions: Any) -> sa.Select[Any]:
    """The next that are due after ``after``, with what is known of their messages."""
    some = (
        sa.select(*_COLUMNS, delivery.c.message)
        .where(*conditions, delivery.c.due > sa.bindparam("after"))
        .order_by(delivery.c.due)
        .limit(sa.bindparam("limit"))
        .subquery()
    )
    return (
        sa.select(
            *(some.c.id, some.c.due, some.c.changed, some.c.since),
            *(message.c.created, message.c.not_before),
        )
        .join_from(some, message, message.c.id == some.c.message)
        .order_by(some.c.due)
    )


_of_priority = delivery.c.priority == sa.bindparam("priority")
_READY = _coming(IS_READY, _of_priority)
_PARKED = _coming(IS_PARKED, delivery.c.route == sa.bindparam("which"), _of_priority)
_LATER = _coming(IS_LATER)
_LOCKED = (
    sa.select(delivery.c.id)
    .where(delivery.c.id.in_(sa.bindparam("ids", expanding=True)))
    .with_for_update(skip_locked=True)
)
_MEND = (
    delivery.update()
    .where(delivery.c.id == sa.bindparam("number"), delivery.c.changed == sa.bindparam("before"))
    .values(due=sa.bindparam("new_due"), changed=sa.bindparam("new_changed"))
)


class Mender:
    """Looks at all that is due later, some of it in each step."""

    def __init__(self) -> None:
        #: by kind of delivery, up to which due time it has looked
        self._after: dict[Hashable, int] = {}

    def step(self, connection: sa.Connection, now_ms: int, slack: int) -> int:
        """Put right what is wrong of the next deliveries; how many those were.

        Wrong is what was written more than `slack` later than `now_ms`; both are milliseconds.
        """
        found: list[dict[str, Any]] = []
        for priority in Priority:
            about = {"priority": int(priority)}
            found += self._wrong(connection, _READY, about, now_ms, slack)
            for name in waited_for(connection):
                found += self._wrong(connection, _PARKED, {**about, "which": name}, now_ms, slack)
        found += self._wrong(connection, _LATER, {}, now_ms, slack)
        if not found:
            return 0
        ids = set(connection.scalars(_LOCKED, {"ids": [row["number"] for row in found]}))
        return execute_many(connection, _MEND, [row for row in found if row["number"] in ids])

    def _wrong(
        self,
        connection: sa.Connection,
        statement: sa.Select[Any],
        about: dict[str, Any],
        now_ms: int,
        slack: int,
    ) -> list[dict[str, Any]]:
        key = statement, *about.values()
        after = max(now_ms, self._after.get(key, now_ms))
        rows = connection.execute(statement, {**about, "after": after, "limit": STEP}).all()
        self._after[key] = rows[-1].due if len(rows) == STEP else now_ms
        return [
            {
                "number": row.id,
                "before": row.changed,
                "new_due": _due(row, now_ms, put_off=statement is _LATER or row.since is not None),
                "new_changed": now_ms,
            }
            for row in rows
            if _was_ahead(row, now_ms + slack, put_off=statement is _LATER or row.since is not None)
        ]


def _was_ahead(row: Any, far: int, *, put_off: bool) -> bool:
    """True if the clock was ahead by which the times of `row` were written."""
    times = (row.due, row.changed, row.created, row.not_before or 0)
    if not all(isinstance(moment, int) for moment in times):
        return False  # nobody knows what they are; see `impossible`
    return bool(row.changed > far or (not put_off and row.created > far))


def _due(row: Any, now_ms: int, *, put_off: bool) -> int:
    """When it is due by a clock that is right; never before its own time."""
    due = now_ms + max(0, row.due - row.changed) if put_off else now_ms
    return due if row.not_before is None else max(due, min(row.due, row.not_before))
