"""Claims: the right to send deliveries until a lease ends.

A claim has a token. Each later write about its deliveries tests the token, not the time: once
another process holds a delivery, the former holder writes nothing more about it. The worker commits
``begun`` before a final dot may leave. So a lease that ends before that leaves the delivery ready
again, and a lease that ends after that leaves it in doubt (see `leases`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from ...submission import Priority
from ..process_identity import process_id
from ..schema import IS_LEASED, IS_PARKED, IS_READY, delivery
from ..states import State
from .claimed import COLUMNS, ClaimedMessage
from .executemany import execute_many
from .round_robin import DUE_OF_MESSAGE, RoundRobin
from .statements import chosen, move

#: The share of each class in one claim, if it has as many due deliveries: urgent mail goes first,
#: and no class starves.
SHARES = {Priority.HIGH: 40, Priority.NORMAL: 16, Priority.BULK: 8}
#: How many other bulk messages get a turn in one claim, beside one with many deliveries.
TURNS = 4


def _next(priority: Priority, *, parked: bool) -> sa.Select[Any]:
    """The ids of due deliveries; with `parked`, of those that wait for the route ``which``."""
    which = sa.and_(IS_PARKED, delivery.c.route == sa.bindparam("which")) if parked else IS_READY
    return (
        sa.select(delivery.c.id)
        .where(which, delivery.c.priority == int(priority))
        .where(delivery.c.due <= sa.bindparam("now"))
        .order_by(delivery.c.due, delivery.c.id)
        .limit(sa.bindparam("limit"))
    )


@cache
def _claim(priority: Priority, parked: bool) -> sa.sql.dml.ReturningUpdate[Any]:
    return _claim_of(_next(priority, parked=parked))


def _claim_of(some: sa.Select[Any]) -> sa.sql.dml.ReturningUpdate[Any]:
    return (
        move(State.SENDING, State.READY)
        .where(chosen(some))
        .values(
            route=None,
            process=sa.bindparam("new_process"),
            token=sa.bindparam("new_token"),
            lease=sa.bindparam("new_lease"),
            begun=0,
        )
        .returning(*(delivery.c[name] for name in COLUMNS))
    )


_CLAIM_TURN = _claim_of(DUE_OF_MESSAGE)


_MINE = (
    delivery.update()
    .where(delivery.c.id == sa.bindparam("number"))
    .where(delivery.c.token == sa.bindparam("held"), delivery.c.state == State.SENDING)
)
_BEGIN = _MINE.values(begun=1)
_UNCLAIM = (
    move(State.READY, State.SENDING)
    .where(IS_LEASED, delivery.c.token.in_(sa.bindparam("tokens", expanding=True)))
    .values(begun=0, token=None, lease=None, process=None)
)


def take(
    connection: sa.Connection,
    *,
    token: int,
    now_ms: int,
    lease_ms: int,
    limit: int,
    priorities: Sequence[Priority] = tuple(Priority),
    route: str | None = None,
    latest_ms: int | None = None,
    round_robin: RoundRobin | None = None,
) -> list[Any]:
    """Claim due deliveries; their rows, which `claimed.read` reads when others may write again.

    With `route`, deliveries that are parked for this route. `latest_ms` is the latest due time of a
    delivery that is claimed, by default `now_ms`. With `round_robin`, a bulk message with many
    deliveries leaves half of the claim to other bulk mail.
    """
    values = {
        "now": now_ms if latest_ms is None else latest_ms,
        "new_changed": now_ms,
        "new_process": process_id(),
        "new_token": token,
        "new_lease": lease_ms,
        **({} if route is None else {"which": route}),
    }
    taking = _Taking(connection, values, route is not None, round_robin)
    whole = sum(SHARES.values())
    found: list[Any] = []
    more: list[Priority] = []
    for number, priority in enumerate(priorities):
        kept = sum(SHARES[other] for other in priorities[number + 1 :]) * limit // whole
        wanted = limit - len(found) - kept
        some = taking.some(priority, wanted)
        found += some
        if len(some) >= wanted:
            more.append(priority)
    for priority in more:  # the shares that other classes did not need
        found += taking.some(priority, limit - len(found))
    return found


@dataclass(frozen=True)
class _Taking:
    """One claim; `values` are the parameters of `_claim_of`."""

    connection: sa.Connection
    values: dict[str, Any]
    parked: bool
    round_robin: RoundRobin | None

    def some(self, priority: Priority, wanted: int) -> list[Any]:
        """At most `wanted` deliveries of the class `priority`."""
        if priority is not Priority.BULK or self.round_robin is None:
            return self._first(priority, wanted)
        half = wanted // 2
        found = self._first(priority, wanted - half)
        if len(found) < wanted - half:
            return found
        if half and len({row.message for row in found}) == 1:
            share = -(-half // TURNS)
            for number in self.round_robin.others(self.connection, TURNS, found[0].message):
                most = min(share, wanted - len(found))
                found += self._claimed(_CLAIM_TURN, most, which=number)
        return found + self._first(priority, wanted - len(found))

    def _first(self, priority: Priority, wanted: int) -> list[Any]:
        return self._claimed(_claim(priority, self.parked), wanted)

    def _claimed(self, statement: Any, limit: int, **more: Any) -> list[Any]:
        if limit <= 0:
            return []
        return list(self.connection.execute(statement, {**self.values, "limit": limit, **more}))


def begin(connection: sa.Connection, claimed: Iterable[ClaimedMessage]) -> bool:
    """Write that final dots may leave from now on; False if other tokens hold some deliveries."""
    rows = [{"number": id_, "held": one.token} for one in claimed for id_ in one.ids]
    return execute_many(connection, _BEGIN, rows) == len(rows)


def unclaim(connection: sa.Connection, tokens: Sequence[int], now_ms: int) -> None:
    """Give back the deliveries that `tokens` hold: none of them has been sent."""
    if tokens:
        connection.execute(_UNCLAIM, {"tokens": list(tokens), "new_changed": now_ms})
