"""What workers do to deliveries: claim them, begin, settle, give back; and what a lease is worth.

A claim gives a worker the right to send deliveries until its lease ends, and a token by which that
right is told. Whatever is written later tests the token, not the time: once somebody else has the
delivery, nothing of the former owner's is written. ``begun`` is committed before a final dot may
leave: a lease that ends without it leaves the delivery ready again, with it in doubt. The lease of
a process that is provably dead (see `dead`) ends at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import sqlalchemy as sa

from ...submission import Priority
from ..process_identity import process_id
from ..retry import DOUBT_DELAY, Settlement
from ..schema import (
    IS_DELAYED,
    IS_LATER,
    IS_LEASED,
    IS_PARKED,
    IS_READY,
    LAST_MOMENT,
    attempt,
    delivery,
)
from ..states import State
from .claimed import COLUMNS, Work, load, read
from .dead import DEAD_DELAY
from .executemany import execute_many
from .processes import fates
from .round_robin import DUE_OF_MESSAGE, Turns
from .statements import is_among, move

#: Of the deliveries in one claim, how many are left to each class if it has as many that are due:
#: nothing starves, and what is urgent goes first.
SHARES = {Priority.HIGH: 40, Priority.NORMAL: 16, Priority.BULK: 8}
#: How many other messages get a turn in one claim, beside bulk mail of which there is much.
TURNS = 4
#: How many deliveries are looked at in one step of what is done for all of them.
CHUNK = 500
#: How often what is in doubt is tried again before it waits for a person.
DOUBT_RETRIES = 3
#: Milliseconds for which mail waits for a route that no worker seems to have any more.
PARKED = 600_000


def _next(priority: Priority, *, parked: bool) -> sa.Select[Any]:
    """Those that are due; with `parked`, those that waited for the route ``which`` to have room."""
    which = sa.and_(IS_PARKED, delivery.c.route == sa.bindparam("which")) if parked else IS_READY
    return (
        sa.select(delivery.c.id)
        .where(which, delivery.c.priority == int(priority))
        .where(delivery.c.due <= sa.bindparam("now"))
        .order_by(delivery.c.due, delivery.c.id)
        .limit(sa.bindparam("limit"))
    )


def _is_among(some: sa.Select[Any], skip_locked: bool) -> sa.ColumnElement[bool]:
    """True of the deliveries whose ids `some` finds, but for those that others have locked."""
    if skip_locked:
        # If it ran twice, it would skip what it has just locked, and find more than the limit.
        some = some.with_for_update(skip_locked=True)
    return is_among(some, array=skip_locked)


@cache
def _claim(priority: Priority, skip_locked: bool, parked: bool) -> sa.sql.dml.ReturningUpdate[Any]:
    return _claim_of(_next(priority, parked=parked), skip_locked)


@cache
def _claim_turn(skip_locked: bool) -> sa.sql.dml.ReturningUpdate[Any]:
    return _claim_of(DUE_OF_MESSAGE, skip_locked)


def _claim_of(some: sa.Select[Any], skip_locked: bool) -> sa.sql.dml.ReturningUpdate[Any]:
    return (
        move(State.SENDING, State.READY)
        .where(_is_among(some, skip_locked))
        .values(
            route=None,
            process=sa.bindparam("new_process"),
            token=sa.bindparam("new_token"),
            lease=sa.bindparam("new_lease"),
            begun=0,
        )
        .returning(*(delivery.c[name] for name in COLUMNS))
    )


_MINE = (
    delivery.update()
    .where(delivery.c.id == sa.bindparam("number"))
    .where(delivery.c.token == sa.bindparam("held"), delivery.c.state == State.SENDING)
)
_BEGIN = _MINE.values(begun=1)
_PARK = (
    move(State.READY, State.SENDING)
    .where(delivery.c.id == sa.bindparam("number"), delivery.c.token == sa.bindparam("held"))
    .values(route=sa.bindparam("new_route"), begun=0, token=None, lease=None, process=None)
)
_DELAY = _PARK.values(
    due=sa.bindparam("new_due"),
    since=sa.func.coalesce(delivery.c.since, delivery.c.due),
    code=sa.bindparam("new_code"),
    reply=sa.bindparam("new_reply"),
)


@cache
def _settle(state: State) -> sa.Update:
    names = ("due", "code", "reply")
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
    return (
        move(state, State.SENDING)
        .where(delivery.c.id == sa.bindparam("number"), delivery.c.token == sa.bindparam("held"))
        .values(
            attempts=delivery.c.attempts + sa.bindparam("more"),
            duplicate=sa.case((sa.bindparam("doubt") == 1, 1), else_=delivery.c.duplicate),
            begun=0,
            token=None,
            lease=None,
            process=None,
            since=delivery.c.since if state is State.READY else None,
            **values,
        )
    )


def _history() -> sa.Insert:
    """A try of the delivery ``number``, if it is held by the right of ``held``."""
    names = ("at", "state", "code", "reply", "route", "process")
    values = [sa.bindparam(f"new_{name}", type_=attempt.c[name].type) for name in names]
    return attempt.insert().from_select(
        ("delivery", *names),
        sa.select(delivery.c.id, *values)
        .where(delivery.c.id == sa.bindparam("number"), delivery.c.state == State.SENDING)
        .where(delivery.c.token == sa.bindparam("held"))
        .with_for_update(),
    )


_HISTORY = _history()
_UNCLAIM = (
    move(State.READY, State.SENDING)
    .where(IS_LEASED, delivery.c.token.in_(sa.bindparam("tokens", expanding=True)))
    .values(begun=0, token=None, lease=None, process=None)
)
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
    # Whoever is writing to one has it, and may wait for another that we would have.
    .with_for_update(skip_locked=True)
)


#: What is leased for longer than anybody leases anything.
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
#: How often deliveries have been in doubt.
_DOUBTS = (
    sa.select(attempt.c.delivery, sa.func.count())
    .where(attempt.c.delivery.in_(sa.bindparam("ids", expanding=True)))
    .where(attempt.c.state == State.IN_DOUBT)
    .group_by(attempt.c.delivery)
)


@cache
def _wake(skip_locked: bool) -> sa.Update:
    some = (
        sa.select(delivery.c.id)
        .where(IS_LATER, delivery.c.due <= sa.bindparam("now"))
        .order_by(delivery.c.due)
        .limit(sa.bindparam("limit"))
    )
    return move(State.READY, State.DEFERRED, State.IN_DOUBT).where(_is_among(some, skip_locked))


_NEXT_READY = sa.select(sa.func.min(delivery.c.due)).where(
    IS_READY, delivery.c.priority == sa.bindparam("priority")
)
_PARKED = sa.select(
    sa.exists().where(
        *(IS_PARKED, delivery.c.route == sa.bindparam("which")),
        delivery.c.due <= sa.bindparam("now"),
    )
)
_PARKED_SINCE = sa.select(sa.func.min(delivery.c.due)).where(
    IS_PARKED,
    delivery.c.route == sa.bindparam("which"),
    delivery.c.priority == sa.bindparam("priority"),
)
_DELAYED = sa.select(sa.func.min(delivery.c.since)).where(IS_DELAYED)
_LEASED = sa.select(sa.func.min(sa.func.coalesce(delivery.c.since, delivery.c.due))).where(
    IS_LEASED
)
_WAITING_FOR = (
    sa.select(delivery.c.route, sa.func.count().label("number"))
    .where(IS_PARKED)
    .group_by(delivery.c.route)
)
_NEXT_ROUTE = sa.select(sa.func.min(delivery.c.route)).where(
    IS_PARKED, delivery.c.route > sa.bindparam("which")
)


@cache
def _unpark(skip_locked: bool) -> sa.Update:
    some = (
        sa.select(delivery.c.id)
        .where(IS_PARKED, delivery.c.route == sa.bindparam("which"))
        .where(
            sa.or_(
                delivery.c.changed < sa.bindparam("before"),
                delivery.c.changed > sa.bindparam("after"),  # by a clock that was ahead
            )
        )
        .limit(sa.bindparam("limit"))
    )
    among = _is_among(some, skip_locked)
    return delivery.update().where(among).values(route=None, changed=sa.bindparam("new_changed"))


@cache
def _release(skip_locked: bool) -> sa.Update:
    some = (
        sa.select(delivery.c.id)
        .where(IS_PARKED, delivery.c.route == sa.bindparam("which"))
        .where(delivery.c.since.is_not(None), delivery.c.due > sa.bindparam("now"))
        .order_by(delivery.c.priority, delivery.c.due)
        .limit(sa.bindparam("limit"))
    )
    among = _is_among(some, skip_locked)
    return (
        delivery.update()
        .where(among)
        .values(
            due=sa.case(
                (delivery.c.since < sa.bindparam("now"), delivery.c.since),
                else_=sa.bindparam("now"),
            ),
            changed=sa.bindparam("new_changed"),
        )
    )


_NEXT_LATER = sa.select(sa.func.min(delivery.c.due)).where(IS_LATER)


def claim(
    connection: sa.Connection,
    *,
    token: int,
    now: int,
    lease: int,
    limit: int,
    skip_locked: bool,
    priorities: Sequence[Priority] = tuple(Priority),
) -> tuple[list[Work], int]:
    """Claim at most `limit` due deliveries, for this process and until `lease`.

    The work, and how many deliveries there were: what cannot be read is failed, and nothing else
    suffers from it.
    """
    found = take(
        connection,
        token=token,
        now=now,
        lease=lease,
        limit=limit,
        skip_locked=skip_locked,
        priorities=priorities,
    )
    works, unreadable = read(connection, found, token)
    settle(connection, unreadable + load(connection, works), now)
    return [each for each in works if each.loaded], len(found)


def take(
    connection: sa.Connection,
    *,
    token: int,
    now: int,
    lease: int,
    limit: int,
    skip_locked: bool,
    priorities: Sequence[Priority] = tuple(Priority),
    route: str | None = None,
    latest: int | None = None,
    turn: Turns | None = None,
) -> list[Any]:
    """The first half of `claim`: rows, whose messages `work.read` reads. There others may write.

    With `route`, what was parked because that had no room for it. What is due later than `latest`
    is left alone; that is `now` if it is not given. With `turn`, bulk mail of which there is much
    leaves half of the claim to others.
    """
    values = {
        "now": now if latest is None else latest,
        "new_changed": now,
        "new_process": process_id(),
        "new_token": token,
        "new_lease": lease,
        **({} if route is None else {"which": route}),
    }
    taking = _Taking(connection, values, skip_locked, route is not None, turn)
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
    for priority in more:  # the shares of those that had nothing
        found += taking.some(priority, limit - len(found))
    return found


@dataclass(frozen=True)
class _Taking:
    """One claim: its `values` are those of `_claim_of`."""

    connection: sa.Connection
    values: dict[str, Any]
    skip_locked: bool
    parked: bool
    turn: Turns | None

    def some(self, priority: Priority, wanted: int) -> list[Any]:
        """At most `wanted` deliveries of the class `priority`."""
        if priority is not Priority.BULK or self.turn is None:
            return self._first(priority, wanted)
        half = wanted // 2
        found = self._first(priority, wanted - half)
        if len(found) < wanted - half:
            return found
        if half and len({row.message for row in found}) == 1:
            share = -(-half // TURNS)
            for number in self.turn.others(self.connection, TURNS, found[0].message):
                most = min(share, wanted - len(found))
                found += self._claimed(_claim_turn(self.skip_locked), most, which=number)
        return found + self._first(priority, wanted - len(found))

    def _first(self, priority: Priority, wanted: int) -> list[Any]:
        return self._claimed(_claim(priority, self.skip_locked, self.parked), wanted)

    def _claimed(self, statement: Any, limit: int, **more: Any) -> list[Any]:
        if limit <= 0:
            return []
        return list(self.connection.execute(statement, {**self.values, "limit": limit, **more}))


def begin(connection: sa.Connection, works: Iterable[Work]) -> bool:
    """From now on their final dots may leave. False if some are another's by now."""
    rows = [{"number": id_, "held": work.token} for work in works for id_ in work.ids]
    return execute_many(connection, _BEGIN, rows) == len(rows)


def settle(
    connection: sa.Connection,
    results: Iterable[tuple[int, int, Settlement]],
    now: int,
    route: str | None = None,
) -> int:
    """Write what became of deliveries: id, token, and what it comes to; how many were written.

    One whose token is another's by now is left alone.
    """
    changes: dict[State, list[dict[str, Any]]] = {}
    history: list[dict[str, Any]] = []
    for id_, token, made in results:
        changes.setdefault(made.state, []).append(
            {
                "number": id_,
                "held": token,
                "new_changed": now,
                "new_due": made.due,
                "more": made.attempts,
                "doubt": int(made.doubt),
                "new_code": made.code,
                "new_reply": made.reply,
            }
        )
        tried = made.attempts or made.state is State.IN_DOUBT  # those are counted here
        if tried and made.state is not State.SENT:
            history.append(
                {
                    "number": id_,
                    "held": token,
                    "new_at": now,
                    "new_state": made.state,
                    "new_code": made.code,
                    "new_reply": made.reply,
                    "new_route": route,
                    "new_process": process_id(),
                }
            )
    if history:
        connection.execute(_HISTORY, history)  # as long as it can be seen whose they are
    written = 0
    for state, some in changes.items():
        written += execute_many(connection, _settle(state), some)
    return written


def unclaim(connection: sa.Connection, tokens: Sequence[int], now: int) -> None:
    """Give back what was claimed by `tokens`, if anything was: none of it has been sent."""
    if tokens:
        connection.execute(_UNCLAIM, {"tokens": list(tokens), "new_changed": now})


def renew(connection: sa.Connection, tokens: Sequence[int], lease: int) -> int:
    """Have the leases of `tokens` end at `lease`; how many deliveries are still held by them."""
    if not tokens:
        return 0
    return connection.execute(_RENEW, {"tokens": list(tokens), "new_lease": lease}).rowcount


def park(connection: sa.Connection, works: Iterable[tuple[Work, str | None]], now: int) -> None:
    """Give back what the routes of these names have no room for, until one has; or for anybody."""
    rows = [
        {"number": id_, "held": work.token, "new_route": route, "new_changed": now}
        for work, route in works
        for id_ in work.ids
    ]
    execute_many(connection, _PARK, rows)


def delay(
    connection: sa.Connection, results: Iterable[tuple[int, int, Settlement, str | None]], now: int
) -> int:
    """Give back what routes of these names do not carry now; how many deliveries were written.

    Each waits for its route, if there is one, until it is due, and since when it was due before is
    not forgotten.
    """
    rows = [
        {
            "number": id_,
            "held": token,
            "new_route": route,
            "new_due": made.due,
            "new_code": made.code,
            "new_reply": made.reply,
            "new_changed": now,
        }
        for id_, token, made, route in results
    ]
    return execute_many(connection, _DELAY, rows)


def release(connection: sa.Connection, route: str, now: int, limit: int = CHUNK) -> int:
    """Let what waits for the route of this name be due, for it works; how many deliveries."""
    values = {"which": route, "now": now, "limit": limit, "new_changed": now}
    return connection.execute(_release(connection.dialect.name == "postgresql"), values).rowcount


def is_parked(connection: sa.Connection, route: str, now: int = LAST_MOMENT) -> bool:
    """True if something that is due waits until the route of this name has room."""
    return bool(connection.scalar(_PARKED, {"which": route, "now": now}))


def unpark(connection: sa.Connection, known: Collection[str], now: int) -> None:
    """Let anybody claim what has waited for long for a route that is none of `known`.

    Some of it: routes can be renamed, and what waited for them must not wait for ever.
    """
    for name in waited_for(connection):
        if name not in known:
            values = {"which": name, "limit": CHUNK, "new_changed": now}
            values |= {"before": now - PARKED, "after": now + PARKED}
            connection.execute(_unpark(connection.dialect.name == "postgresql"), values)


def waited_for(connection: sa.Connection) -> Iterator[str]:
    """The routes for which something is parked, found without reading all that is."""
    name = connection.scalar(_NEXT_ROUTE, {"which": ""})
    while name is not None:
        yield name
        name = connection.scalar(_NEXT_ROUTE, {"which": name})


def end_leases(
    connection: sa.Connection,
    now: int,
    lease_now: int | None = None,
    *,
    dead: Collection[str] = (),
    nobodys: Collection[int] = (),
    hold_doubt: bool = False,
    retries: int = DOUBT_RETRIES,
) -> int:
    """Take back what workers had that are gone; how many deliveries that were.

    Gone is who is among the processes `dead`, or has not renewed its lease, or has one of the
    deliveries `nobodys`. `lease_now` is the time by the clock of leases, if that is another: see
    `Database.lease_now`. What was begun is in doubt; `retries` is as for `hold_repeated`, and with
    `hold_doubt` all of it waits for a person.
    """
    moment = now if lease_now is None else lease_now
    gone = {"now": moment, "dead": list(dead), "nobodys": list(nobodys)}
    rows = connection.execute(_ENDED, {**gone, "limit": CHUNK}).all()
    results = []
    for row in rows:
        made = Settlement(State.READY, row.due, 0, False, None, None)
        if row.begun:
            delay = DEAD_DELAY if row.process in dead else DOUBT_DELAY
            due = None if hold_doubt else now + delay
            why = "the worker that was sending it is gone"
            made = Settlement(State.IN_DOUBT, due, 1, True, None, why)
        results.append((row.id, row.token, made))
    return settle(connection, hold_repeated(connection, results, retries), now)


def far_off(
    connection: sa.Connection, far: int, until: int, kept: Collection[int] = ()
) -> list[int]:
    """Deliveries that are leased until a moment after `far`, and by nobody who lives.

    A clock was ahead when they were leased, or when their leases were renewed. Another process
    that may live has until `until` to renew them; this one has those of the tokens `kept`.
    """
    rows = connection.execute(_FAR_OFF, {"far": far, "limit": CHUNK}).all()
    if not rows:
        return []
    known = fates(connection, {row.process for row in rows if row.process is not None})
    others = [id_ for id_ in known if id_ != process_id()]
    if others:
        connection.execute(_SHORTEN, {"far": far, "some": others, "new_lease": until})
    return [
        row.id
        for row in rows
        if (row.token not in kept if row.process == process_id() else row.process not in known)
    ]


def hold_repeated(
    connection: sa.Connection, results: list[tuple[int, int, Settlement]], retries: int
) -> list[tuple[int, int, Settlement]]:
    """`results`, of which those wait for a person that were tried again `retries` times in doubt.

    A server that takes a message and never says so gets one copy of it more than that.
    """
    doubtful = [
        id_ for id_, _, made in results if made.state is State.IN_DOUBT and made.due is not None
    ]
    if not doubtful:
        return results
    counts = dict(map(tuple, connection.execute(_DOUBTS, {"ids": doubtful})))
    again = {id_ for id_ in doubtful if counts.get(id_, 0) < retries}
    return [
        (id_, token, made if made.state is not State.IN_DOUBT or id_ in again else _held(made))
        for id_, token, made in results
    ]


def _held(made: Settlement) -> Settlement:
    return replace(made, due=None)


def wake(connection: sa.Connection, now: int) -> int:
    """Make deferred and doubtful deliveries ready whose time has come; how many they are."""
    values = {"now": now, "limit": CHUNK, "new_changed": now}
    skip_locked = connection.dialect.name == "postgresql"
    return connection.execute(_wake(skip_locked), values).rowcount


def next_due(connection: sa.Connection) -> int | None:
    """When the next delivery is due, in milliseconds since 1970; None if none is."""
    times = [connection.scalar(_NEXT_READY, {"priority": int(p)}) for p in Priority]
    times.append(connection.scalar(_NEXT_LATER))
    return _first(times)


def oldest_due(connection: sa.Connection) -> int | None:
    """Since when the oldest delivery is due that was not sent, whatever its route has come to.

    Later than now if there is none.
    """
    times = [
        connection.scalar(_PARKED_SINCE, {"which": name, "priority": int(priority)})
        for name in waited_for(connection)
        for priority in Priority
    ]
    times += [next_due(connection), connection.scalar(_DELAYED), connection.scalar(_LEASED)]
    return _first(times)


def waiting_for(connection: sa.Connection) -> dict[str, int]:
    """How many deliveries wait for each route that has no room for them, or does not work."""
    return {row.route: row.number for row in connection.execute(_WAITING_FOR)}


def _first(times: Iterable[Any]) -> int | None:
    """The first of `times`; in SQLite some may be none, see `impossible`."""
    return min((moment for moment in times if isinstance(moment, int)), default=None)
