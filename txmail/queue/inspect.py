"""The one place that counts and lists what is in a queue.

`read_health` says what waits, for how long, who works on it, and which routes fail. It reads only
indexes of unfinished deliveries, so a million finished ones take no longer than none. `read_counts`
and `read_tables` count the finished ones, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .database.database import Database
from .process_identity import alive
from .schema import (
    IS_LATER,
    IS_LEASED,
    IS_OPEN,
    IS_PARKED,
    IS_READY,
    NEEDS_ATTENTION,
    batch,
    delivery,
    message,
    process,
)
from .sql import parked, route_state, schedule
from .sql.dead import leased_by_the_dead
from .sql.processes import identity_of
from .states import BatchState, State

#: Seconds without a heartbeat after which a worker does not count; it has one every five.
FRESH_S = 60
#: Failures in a row after which a route is a problem: some three minutes.
FAILING = 6
#: Seconds that mail may have been due before a queue is called unhealthy.
MAX_AGE = 300.0

#: the states that `Health` counts
WAITING = (
    State.READY,
    State.SENDING,
    State.DEFERRED,
    State.IN_DOUBT,
    State.FAILED,
    State.HELD,
)


@dataclass(frozen=True, slots=True)
class RouteHealth:
    """The state of a route, as workers have written it."""

    name: str
    #: ``closed`` if it works, ``open`` if it is left alone, ``stopped`` if it needs a person
    state: str
    failures: int
    reason: str
    #: messages a second, after its server has asked for a lower rate; None without a limit
    rate: float | None
    #: how many deliveries wait for it
    waiting: int = 0
    #: seconds until it is tried again, 0.0 if it may be tried now
    pause: float = 0.0
    #: true if its login was refused, and it needs another password
    needs_password: bool = False

    @property
    def holds_up(self) -> bool:
        """True if mail waits for it because it does not work."""
        return self.state != route_state.CLOSED and self.waiting > 0

    def __str__(self) -> str:
        """Why mail waits for it."""
        until = f", next try in {self.pause:.0f} s"
        if self.needs_password:
            until = " until it has another password"
        return (
            f"route {self.name} is paused{until}, "
            f"{self.waiting} delivery(s) wait for it: {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a queue at one moment."""

    queue: str
    #: the number of unfinished deliveries by their states
    deliveries: dict[str, int]
    #: the number of transactions whose end is not known
    undecided: int
    #: seconds for which the oldest unsent delivery has been due, whether or not its route works;
    #: 0.0 if no delivery is due
    oldest_due: float
    #: the number of live processes with a worker
    workers: int
    routes: tuple[RouteHealth, ...]
    #: the number of deliveries that provably dead processes hold
    held_by_dead: int = 0

    def problems(self, max_age: float = MAX_AGE, workers: int = 1) -> list[str]:
        """The reasons to wake a person, in words; empty if all is well.

        Mail may have been due for `max_age` seconds, and as many `workers` have to be alive.
        """
        found: list[str] = []
        if self.oldest_due > max_age:
            found.append(f"mail has been due for {self.oldest_due:.0f} seconds")
        if self.workers < workers:
            found.append(f"{self.workers} of {workers} workers run: start txmail worker")
        if self.held_by_dead:
            found.append(
                f"{self.held_by_dead} delivery(s) are held by a process that has died: "
                "start a worker on this host, which takes them over at once"
            )
        for route in self.routes:
            if route.state == route_state.STOPPED:
                found.append(f"route {route.name} needs a person: {route.reason}")
            elif route.state == route_state.OPEN and route.failures >= FAILING:
                found.append(
                    f"route {route.name} has failed {route.failures} times: {route.reason}"
                )
            elif route.holds_up:
                found.append(str(route))
        return found


def read_health(database: Database, *, look: bool = False) -> Health:
    """The state of the queue in `database`. Raises `QueueUnavailable`, `SchemaError`.

    With `look`, nothing at all is changed: see `Database.look`.
    """
    with database.look() if look else database.read() as connection:
        now_ms = database.now_ms(connection)
        due = schedule.oldest_due(connection)
        undecided = sa.select(sa.func.count()).where(IS_OPEN, batch.c.state == BatchState.UNKNOWN)
        return Health(
            database.name,
            _counts(connection),
            connection.scalar(undecided) or 0,
            0.0 if due is None else max(0.0, (now_ms - due) / 1000),
            _workers(connection, now_ms),
            tuple(_routes(connection, now_ms)),
            leased_by_the_dead(connection),
        )


def _counts(connection: sa.Connection) -> dict[str, int]:
    counts = dict.fromkeys((state.value for state in WAITING), 0)

    def count(*conditions: Any) -> int:
        return connection.scalar(sa.select(sa.func.count(delivery.c.id)).where(*conditions)) or 0

    counts[State.READY] = count(IS_READY) + count(IS_PARKED)
    counts[State.SENDING] = count(IS_LEASED)
    counts[State.DEFERRED] = count(IS_LATER, delivery.c.state == State.DEFERRED)
    attention = (
        sa.select(delivery.c.state, sa.func.count(delivery.c.id))
        .where(NEEDS_ATTENTION)
        .group_by(delivery.c.state)
    )
    for state, number in connection.execute(attention):
        counts[state] = number
    return counts


def read_counts(connection: sa.Connection) -> dict[str, int]:
    """See `Queue.counts`."""
    found: dict[str, int] = {}
    rows = connection.execute(
        sa.select(delivery.c.state, sa.func.count())
        .where(delivery.c.state != State.STAGED)
        .group_by(delivery.c.state)
    )
    for state, count in rows:
        found[state] = count
    staged = connection.execute(
        sa.select(batch.c.state, sa.func.count())
        .select_from(delivery)
        .join(message, message.c.id == delivery.c.message)
        .join(batch, batch.c.id == message.c.batch)
        .where(delivery.c.state == State.STAGED, batch.c.state != BatchState.DISCARDED)
        .group_by(batch.c.state)
    )
    for of, count in staged:
        committed = of in (BatchState.PUBLISHING, BatchState.PUBLISHED)
        state = State.READY if committed else State.STAGED
        found[state.value] = found.get(state.value, 0) + count
    return found


@dataclass(frozen=True, slots=True)
class TableCounts:
    """The rows of the tables by their states, in the order of their names, as they are stored."""

    deliveries: tuple[tuple[str, int], ...]
    open_batches: tuple[tuple[str, int], ...]


def read_tables(database: Database) -> TableCounts:
    """The rows of the tables, also of damaged ones. Nothing is changed: see `Database.look`.

    Raises `QueueUnavailable`, `SchemaError`.
    """
    deliveries = sa.select(delivery.c.state, sa.func.count()).group_by(delivery.c.state)
    batches = sa.select(batch.c.state, sa.func.count()).where(IS_OPEN).group_by(batch.c.state)
    with database.look() as connection:
        return TableCounts(_sorted(connection, deliveries), _sorted(connection, batches))


def _sorted(connection: sa.Connection, query: sa.Select[Any]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((str(state), int(number)) for state, number in connection.execute(query)))


def count_waiting(connection: sa.Connection, most: int) -> int:
    """How many deliveries wait or are on their way into the queue; each kind up to `most`.

    Mail that open transactions have staged counts, for they may all commit.
    """
    staged = (
        sa.select(delivery.c.id)
        .select_from(batch)
        .join(message, message.c.batch == batch.c.id)
        .join(delivery, delivery.c.message == message.c.id)
        .where(IS_OPEN, delivery.c.state == State.STAGED)
    )
    # Each condition has an index that holds nothing else.
    conditions = (IS_READY, IS_PARKED, IS_LATER, IS_LEASED)
    waiting = 0
    for chosen in (staged, *(sa.select(delivery.c.id).where(each) for each in conditions)):
        some = chosen.limit(most).subquery()
        waiting += connection.scalar(sa.select(sa.func.count()).select_from(some)) or 0
    return waiting


def _workers(connection: sa.Connection, now_ms: int) -> int:
    fresh = sa.select(process).where(
        process.c.kind == "worker", process.c.heartbeat > now_ms - FRESH_S * 1000
    )
    return sum(
        alive(identity_of(row), row.heartbeat, now_ms, row.id) for row in connection.execute(fresh)
    )


def _routes(connection: sa.Connection, now_ms: int) -> list[RouteHealth]:
    waiting = parked.waiting_for(connection)
    return [
        RouteHealth(
            name,
            row.state,
            row.failures,
            row.reason or "",
            route_state.limit(None, row.rate, row.slowed, now_ms),
            waiting.get(name, 0),
            max(0.0, ((row.until or now_ms) - now_ms) / 1000),
            route_state.needs_password(row),
        )
        for name, row in sorted(route_state.read(connection).items())
    ]
