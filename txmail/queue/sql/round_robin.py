"""Round robin among bulk messages: one with very many recipients does not hold up the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from ...submission import Priority
from ..schema import IS_BULK, delivery

_NEXT = sa.select(sa.func.min(delivery.c.message)).where(
    IS_BULK, delivery.c.priority == int(Priority.BULK), delivery.c.message > sa.bindparam("after")
)


#: The ids of at most ``limit`` due bulk deliveries of message ``which``.
DUE_OF_MESSAGE: sa.Select[Any] = (
    sa.select(delivery.c.id)
    .where(IS_BULK, delivery.c.priority == int(Priority.BULK))
    .where(delivery.c.message == sa.bindparam("which"))
    .where(delivery.c.due <= sa.bindparam("now"))
    .order_by(delivery.c.due, delivery.c.id)
    .limit(sa.bindparam("limit"))
)


class RoundRobin:
    """Which bulk message has its turn next."""

    def __init__(self) -> None:
        self._after = 0

    def others(self, connection: sa.Connection, count: int, present: int) -> Iterator[int]:
        """The ids of at most `count` messages that come next, each once, without `present`."""
        seen: set[int] = set()
        while len(seen - {present}) < count:
            number = connection.scalar(_NEXT, {"after": self._after})
            if number is None and self._after:
                number = connection.scalar(_NEXT, {"after": 0})
            if number is None or number in seen:
                return
            self._after = number
            seen.add(number)
            if number != present:
                yield number
