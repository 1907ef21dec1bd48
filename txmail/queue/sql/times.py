"""Corrects times that were written while a clock was ahead.

The clock of a machine that starts without a network can be wrong for a while. Mail that is written
meanwhile, or put off, seems to be due much later than it is. A right clock writes no time later
than now, so such rows can be recognized.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import sqlalchemy as sa

from ...submission import Priority
from ..schema import IS_LATER, IS_PARKED, IS_READY, delivery, message
from .executemany import execute_many
from .parked import waited_for

#: How many deliveries of each kind one step looks at.
STEP = 1000

_COLUMNS = (delivery.c.id, delivery.c.due, delivery.c.changed, delivery.c.since)


def _coming(*conditions: Any) -> sa.Select[Any]:
    """The next deliveries that are due after ``after``, with times of their messages."""
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
    """Looks at all deliveries that are due later, at some of them in each step."""

    def __init__(self) -> None:
        #: by kind of delivery: the due time up to which it has looked
        self._after: dict[Hashable, int] = {}

    def step(self, connection: sa.Connection, now_ms: int, slack_ms: int) -> int:
        """Correct the times of the next deliveries; how many were wrong.

        A time is wrong if it was written more than `slack_ms` later than `now_ms`.
        """
        found: list[dict[str, Any]] = []
        for priority in Priority:
            about = {"priority": int(priority)}
            found += self._wrong(connection, _READY, about, now_ms, slack_ms)
            for name in waited_for(connection):
                found += self._wrong(
                    connection, _PARKED, {**about, "which": name}, now_ms, slack_ms
                )
        found += self._wrong(connection, _LATER, {}, now_ms, slack_ms)
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
        slack_ms: int,
    ) -> list[dict[str, Any]]:
        key = statement, *about.values()
        after = max(now_ms, self._after.get(key, now_ms))
        rows = connection.execute(statement, {**about, "after": after, "limit": STEP}).all()
        later = statement is _LATER
        self._after[key] = rows[-1].due if len(rows) == STEP else now_ms
        return [
            {
                "number": row.id,
                "before": row.changed,
                "new_due": _due(row, now_ms, put_off=later or row.since is not None),
                "new_changed": now_ms,
            }
            for row in rows
            if _was_ahead(
                row, now_ms + slack_ms, put_off=statement is _LATER or row.since is not None
            )
        ]


def _was_ahead(row: Any, far_ms: int, *, put_off: bool) -> bool:
    """True if the times of `row` were written by a clock that was ahead."""
    times = (row.due, row.changed, row.created, row.not_before or 0)
    if not all(isinstance(moment, int) for moment in times):
        return False  # they are no times; see `impossible`
    return bool(row.changed > far_ms or (not put_off and row.created > far_ms))


def _due(row: Any, now_ms: int, *, put_off: bool) -> int:
    """When it is due by a right clock; never before the time that its sender has named."""
    due = now_ms + max(0, row.due - row.changed) if put_off else now_ms
    return due if row.not_before is None else max(due, min(row.due, row.not_before))
