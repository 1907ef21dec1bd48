"""Settlements: what became of claimed deliveries, written only by the holder of their token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import sqlalchemy as sa

from ..process_identity import process_id
from ..retry import Settlement
from ..schema import attempt, delivery
from ..states import State
from .executemany import execute_many
from .statements import move

#: The id of a delivery, the token that holds it, and its new values.
Settled = tuple[int, int, Settlement]


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
    """Write a try of the delivery ``number``, if the token ``held`` holds it."""
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
#: How often deliveries have been in doubt.
_DOUBTS = (
    sa.select(attempt.c.delivery, sa.func.count())
    .where(attempt.c.delivery.in_(sa.bindparam("ids", expanding=True)))
    .where(attempt.c.state == State.IN_DOUBT)
    .group_by(attempt.c.delivery)
)


def settle(
    connection: sa.Connection,
    results: Iterable[Settled],
    now_ms: int,
    route: str | None = None,
) -> int:
    """Write what became of deliveries; how many were written.

    A delivery that another token holds by now is left alone.
    """
    changes: dict[State, list[dict[str, Any]]] = {}
    history: list[dict[str, Any]] = []
    for id_, token, made in results:
        changes.setdefault(made.state, []).append(
            {
                "number": id_,
                "held": token,
                "new_changed": now_ms,
                "new_due": made.due,
                "more": made.attempts,
                "doubt": int(made.doubt),
                "new_code": made.code,
                "new_reply": made.reply,
            }
        )
        tried = made.attempts or made.state is State.IN_DOUBT  # `hold_repeated` counts these rows
        if tried and made.state is not State.SENT:
            history.append(
                {
                    "number": id_,
                    "held": token,
                    "new_at": now_ms,
                    "new_state": made.state,
                    "new_code": made.code,
                    "new_reply": made.reply,
                    "new_route": route,
                    "new_process": process_id(),
                }
            )
    if history:
        connection.execute(_HISTORY, history)  # before the tokens are gone
    written = 0
    for state, some in changes.items():
        written += execute_many(connection, _settle(state), some)
    return written


def hold_repeated(connection: sa.Connection, results: list[Settled], retries: int) -> list[Settled]:
    """`results`; a delivery that was tried again `retries` times in doubt waits for a person.

    So a server that takes a message and never answers gets `retries` copies more.
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
