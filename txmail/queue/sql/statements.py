"""The statements of the store, each made once: making one takes longer than running it.

Their parameters are named as what they replace; those that go into a column begin with ``new_``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa

from ..database.constructs import IsAmong, insert_if_absent
from ..schema import attempt, batch, delivery, idempotency, message, process
from ..states import BatchState, State, batch_before, check_move

#: How many deliveries one step of a worker's round handles.
STEP = 500

_number: Any = sa.bindparam("number")
_process: Any = sa.bindparam("process_id", type_=sa.String)
_kind: Any = sa.bindparam("new_kind", type_=sa.String)
_new_changed: Any = sa.bindparam("new_changed", type_=sa.BigInteger)

#: The messages of batch ``number``.
MESSAGES = sa.select(message.c.id).where(message.c.batch == _number).scalar_subquery()

OPEN_BATCH = batch.insert()
STATE = sa.select(batch.c.state).where(batch.c.id == _number).with_for_update()
NOTE = (
    batch.update()
    .where(batch.c.id == _number)
    .values(witnesses=sa.bindparam("new_witnesses"), changed=_new_changed)
)
NEW_PROCESS = insert_if_absent(process)
BEAT = (
    process.update()
    .where(process.c.id == _process)
    .values(
        heartbeat=sa.bindparam("new_heartbeat"),
        # A worker stays one until `Store.retire`.
        kind=sa.case((_kind == "worker", _kind), else_=process.c.kind),
    )
)
CLAIM_KEY = insert_if_absent(idempotency)


def move(state: State, *sources: State) -> sa.Update:
    """The statement that brings deliveries into `state`, if they are in one of `sources`.

    Raises `IllegalMove` where `states.MOVES` has no such move.
    """
    for source in sources:
        check_move(source, state)
    # Not IN: execute_many cannot expand its parameters.
    where = sa.or_(*(delivery.c.state == source for source in sources))
    return delivery.update().where(where).values(state=state, changed=_new_changed)


@cache
def change_batch(state: BatchState) -> sa.Update:
    """Bring batch ``number`` into `state`, if that is a legal move."""
    return (
        batch.update()
        .where(batch.c.id == _number, batch.c.state.in_(batch_before(state)))
        .values(state=state, changed=_new_changed, reason=sa.bindparam("new_reason"))
    )


@cache
def settle(state: State) -> sa.Update:
    """Bring the delivery ``number`` into `state`, with the reply."""
    # A process that was taken for dead may know the outcome of a delivery in doubt.
    sources = [State.STAGED] if state is State.IN_DOUBT else [State.STAGED, State.IN_DOUBT]
    names = ("due", "attempts", "duplicate", "code", "reply")
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
    return move(state, *sources).where(delivery.c.id == _number).values(begun=0, **values)


def chosen(some: sa.Select[Any]) -> sa.ColumnElement[bool]:
    """True of the deliveries whose ids `some` finds; those that others have locked are skipped."""
    return IsAmong(delivery.c.id, some.with_for_update(skip_locked=True))


def _ready() -> sa.Update:
    """Make at most ``limit`` staged deliveries of batch ``number`` ready."""
    some = (
        sa.select(delivery.c.id)
        .join(message, message.c.id == delivery.c.message)
        .where(message.c.batch == _number, delivery.c.state == State.STAGED)
        .where(delivery.c.begun == 0)
        .limit(sa.bindparam("limit"))
    )
    return move(State.READY, State.STAGED).where(IsAmong(delivery.c.id, some))


READY = _ready()


def _unclaimed() -> sa.Select[Any]:
    """At most ``limit`` messages of batch ``number`` whose keys are still to be claimed."""
    mine = (
        sa.select(idempotency.c.key)
        .where(idempotency.c.key == message.c.idempotency_key)
        .where(idempotency.c.message == message.c.id)
    )
    staged = sa.select(delivery.c.id).where(
        delivery.c.message == message.c.id, delivery.c.state == State.STAGED
    )
    return (
        sa.select(message.c.id, message.c.idempotency_key)
        .where(message.c.batch == _number, message.c.idempotency_key.is_not(None))
        .where(~mine.exists(), staged.exists())
        .order_by(message.c.idempotency_key, message.c.id)
        .limit(sa.bindparam("limit"))
    )


UNCLAIMED = _unclaimed()
#: The reason of a cancelled delivery, before the id of the message that had its key first.
DUPLICATE_OF = "duplicate of message "

WINNERS = sa.select(idempotency.c.key, idempotency.c.message).where(
    idempotency.c.key.in_(sa.bindparam("keys", expanding=True))
)
CANCEL_DUPLICATE = (
    move(State.CANCELLED, State.STAGED)
    .where(delivery.c.message == _number)
    .values(reply=sa.bindparam("new_reply"))
)
#: Put begun deliveries of batch ``number`` in doubt.
DOUBT = (
    move(State.IN_DOUBT, State.STAGED)
    .where(delivery.c.begun == 1, delivery.c.message.in_(MESSAGES))
    .values(due=sa.bindparam("new_due"), duplicate=1, reply="the process that was sending it died")
)
#: Write this as a try of each; run it before.
DOUBT_HISTORY = attempt.insert().from_select(
    ("delivery", "at", "state", "reply", "process"),
    sa.select(
        delivery.c.id,
        _new_changed,
        sa.literal(State.IN_DOUBT.value),
        sa.literal("the process that was sending it died"),
        sa.bindparam("new_process", type_=sa.String),
    ).where(
        delivery.c.state == State.STAGED, delivery.c.begun == 1, delivery.c.message.in_(MESSAGES)
    ),
)
#: Cancel the staged deliveries of batch ``number``.
CANCEL_REST = (
    move(State.CANCELLED, State.STAGED)
    .where(delivery.c.message.in_(MESSAGES))
    .values(reply=sa.bindparam("new_reply"))
)
#: Delete the deliveries of batch ``number`` in ``states``, and then its messages and itself.
DISCARD = (
    delivery.delete()
    .where(delivery.c.message.in_(MESSAGES))
    .where(delivery.c.state.in_(sa.bindparam("states", expanding=True)))
)
DISCARD_MESSAGES = message.delete().where(message.c.batch == _number)
DISCARD_BATCH = batch.delete().where(batch.c.id == _number)


def _winners() -> sa.Select[Any]:
    """The messages of batch ``number`` for whose key a message of another batch was cancelled."""
    other, cancelled = message.alias(), delivery.alias()
    said = sa.literal(DUPLICATE_OF) + sa.cast(message.c.id, sa.Text)
    return (
        sa.select(message.c.id)
        .join(other, other.c.idempotency_key == message.c.idempotency_key)
        .join(cancelled, cancelled.c.message == other.c.id)
        .where(message.c.batch == _number, other.c.batch != _number)
        .where(cancelled.c.state == State.CANCELLED, cancelled.c.reply == said)
    )


_untouched = sa.and_(
    delivery.c.message.in_(MESSAGES),
    delivery.c.message.not_in(_winners()),
    delivery.c.state.in_([State.STAGED, State.READY, State.DEFERRED, State.CANCELLED]),
)
_kept = sa.select(delivery.c.message).where(delivery.c.message.in_(MESSAGES))
#: Delete batch ``number`` as if it had never been published: in this order.
TAKE_BACK = (
    attempt.delete().where(attempt.c.delivery.in_(sa.select(delivery.c.id).where(_untouched))),
    delivery.delete().where(_untouched),
    idempotency.delete().where(
        idempotency.c.message.in_(MESSAGES), idempotency.c.message.not_in(_kept)
    ),
    message.delete().where(message.c.batch == _number, message.c.id.not_in(_kept)),
    batch.delete().where(batch.c.id == _number, ~sa.exists().where(message.c.batch == _number)),
)
_UNHEARD = "its transaction failed, because the answer that the queue has it did not arrive"
#: Write why `TAKE_BACK` has left something of batch ``number``: at each delivery and the batch.
KEPT_HISTORY = attempt.insert().from_select(
    ("delivery", "at", "state", "reply", "process"),
    sa.select(
        delivery.c.id,
        _new_changed,
        delivery.c.state,
        sa.literal(_UNHEARD),
        sa.bindparam("new_process", type_=sa.String),
    ).where(delivery.c.message.in_(MESSAGES)),
)
KEPT = batch.update().where(batch.c.id == _number).values(reason=_UNHEARD, changed=_new_changed)
