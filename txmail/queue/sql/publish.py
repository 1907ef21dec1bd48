"""Writing a transaction's mail, publishing it, settling it and throwing it away.

Each method works on a connection, in the transaction that its caller has opened. It makes the moves
of `txmail.queue.states` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import sqlalchemy as sa

from ...outcome import Outcome
from ...submission import StagedSubmission, Submission
from ..database.database import Database
from ..process_identity import Identity, process_id
from ..retry import settlement
from ..schema import (
    attempt,
    delivery,
    message,
    process,
)
from ..states import BatchState, State
from . import statements
from .rows import DELIVERY_COLUMNS, MESSAGE_COLUMNS, delivery_rows, message_rows

#: How many deliveries one transaction moves, or how many keys it claims.
CHUNK = 1000
#: A limit that no batch reaches.
_ALL = 2**31 - 1

#: the ids of a written submission's deliveries, in the order of its recipients
Written = dict[Submission, Sequence[int]]


class Store:
    """Writes batches and the processes that decide about them."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # -- writing

    def open_batch(
        self,
        connection: sa.Connection,
        number: int,
        state: BatchState,
        witnesses: str,
        now_ms: int,
    ) -> None:
        """Write the row of batch `number`, which this process decides about."""
        connection.execute(
            statements.OPEN_BATCH,
            {
                "id": number,
                "state": state,
                "process": process_id(),
                "created": now_ms,
                "changed": now_ms,
                "witnesses": witnesses,
            },
        )

    def beat(self, connection: sa.Connection, now_ms: int, kind: str = "application") -> None:
        """Say that this process lives."""
        values = {"process_id": process_id(), "new_kind": kind, "new_heartbeat": now_ms}
        if connection.execute(statements.BEAT, values).rowcount:
            return
        mine = Identity.mine()
        row = {
            "id": process_id(),
            "kind": kind,
            "host": mine.host,
            "boot": mine.boot,
            "pid_namespace": mine.pid_namespace,
            "pid": mine.pid,
            "started": mine.started,
            "heartbeat": now_ms,
        }
        if not connection.execute(statements.NEW_PROCESS, row).rowcount:
            connection.execute(statements.BEAT, values)  # another thread was faster

    def retire(self, connection: sa.Connection) -> None:
        """This process has no worker any more."""
        connection.execute(
            process.update().where(process.c.id == process_id()).values(kind="application")
        )

    def insert(
        self,
        connection: sa.Connection,
        number: int,
        rows: Sequence[StagedSubmission],
        state: State,
        now_ms: int,
    ) -> Written:
        """Write `rows` into batch `number`, their deliveries in `state`."""
        count = sum(len(row.submission.envelope.recipients) for row in rows)
        messages = self.database.reserve(connection, message, len(rows))
        ids = self.database.reserve(connection, delivery, count)
        insert = self.database.insert
        insert(connection, message, MESSAGE_COLUMNS, message_rows(rows, messages, number, now_ms))
        self.database.insert(
            connection,
            delivery,
            DELIVERY_COLUMNS,
            delivery_rows(rows, messages, ids, state, now_ms),
        )
        written: Written = {}
        start = 0
        for row in rows:
            end = start + len(row.submission.envelope.recipients)
            written[row.submission] = ids[start:end]
            start = end
        return written

    def change_batch(
        self,
        connection: sa.Connection,
        number: int,
        state: BatchState,
        now_ms: int,
        reason: str | None = None,
    ) -> bool:
        """Bring batch `number` into `state`; False if there is no legal move to this state."""
        values = {"number": number, "new_changed": now_ms, "new_reason": reason}
        return connection.execute(statements.change_batch(state), values).rowcount > 0

    def state(self, connection: sa.Connection, number: int) -> BatchState | None:
        """The state of batch `number`; None if there is none.

        It waits for a transaction that is about to change the state, and locks the row.
        """
        found = connection.scalar(statements.STATE, {"number": number})
        return None if found is None else BatchState(found)

    def note(self, connection: sa.Connection, number: int, witnesses: str, now_ms: int) -> None:
        """Replace the notes of batch `number`."""
        connection.execute(
            statements.NOTE, {"number": number, "new_witnesses": witnesses, "new_changed": now_ms}
        )

    def mark_begun(self, connection: sa.Connection, ids: Sequence[int], begun: bool) -> None:
        """Mark staged deliveries as sent by their own transaction, or unmark them."""
        for some in _chunks(ids):
            connection.execute(
                delivery.update().where(delivery.c.id.in_(some)).values(begun=int(begun))
            )

    # -- deciding

    def publish(
        self, connection: sa.Connection, number: int, now_ms: int, *, keys: bool = True
    ) -> bool:
        """Make a committed batch ready and ``published``; False if it was published before.

        `keys` is false if no message of the batch has an idempotency key.
        """
        while keys and self._claim_keys(connection, number, now_ms, CHUNK):
            pass
        self._ready(connection, number, now_ms, _ALL)
        return self.change_batch(connection, number, BatchState.PUBLISHED, now_ms)

    def promote(
        self, connection: sa.Connection, number: int, now_ms: int, limit: int = CHUNK
    ) -> bool:
        """Make up to `limit` staged deliveries of a committed batch ready; True if none is left.

        Before that, it claims the idempotency keys of the batch in their order: so two transactions
        with the same keys cannot deadlock.
        """
        if self._claim_keys(connection, number, now_ms, limit) == limit:
            return False
        if self._ready(connection, number, now_ms, limit) >= limit:
            return False
        self.change_batch(connection, number, BatchState.PUBLISHED, now_ms)
        return True

    def _ready(self, connection: sa.Connection, number: int, now_ms: int, limit: int) -> int:
        """Make up to `limit` staged deliveries of the batch ready; how many they were."""
        values = {"number": number, "new_changed": now_ms, "limit": limit}
        return connection.execute(statements.READY, values).rowcount

    def _claim_keys(self, connection: sa.Connection, number: int, now_ms: int, limit: int) -> int:
        """Claim up to `limit` keys of the batch; how many keys there were."""
        found = connection.execute(statements.UNCLAIMED, {"number": number, "limit": limit}).all()
        if not found:
            return 0
        connection.execute(
            statements.CLAIM_KEY,
            [{"key": key, "message": id_, "created": now_ms} for id_, key in found],
        )
        keys = [key for _, key in found]
        winners = dict(connection.execute(statements.WINNERS, {"keys": keys}).all())
        losers = [
            {
                "number": id_,
                "new_changed": now_ms,
                "new_reply": f"{statements.DUPLICATE_OF}{winners[key]}",
            }
            for id_, key in found
            if winners[key] != id_
        ]
        if losers:
            connection.execute(statements.CANCEL_DUPLICATE, losers)
        return len(found)

    def doubt(self, connection: sa.Connection, number: int, now_ms: int, due: int | None) -> int:
        """Put deliveries in doubt that a dead process was sending itself; how many they were."""
        about = {"number": number, "new_changed": now_ms}
        connection.execute(statements.DOUBT_HISTORY, {**about, "new_process": process_id()})
        return connection.execute(statements.DOUBT, {**about, "new_due": due}).rowcount

    def settle(
        self,
        connection: sa.Connection,
        outcomes: Iterable[tuple[int, Outcome]],
        now_ms: int,
        *,
        hold_doubt: bool = False,
    ) -> None:
        """Write the outcomes of deliveries that their own transaction has sent, by their ids."""
        changes: dict[State, list[dict[str, Any]]] = {}
        history: list[dict[str, Any]] = []
        for id_, outcome in outcomes:
            made = settlement(outcome, now_ms, hold_doubt=hold_doubt)
            changes.setdefault(made.state, []).append(
                {
                    "number": id_,
                    "new_changed": now_ms,
                    "new_due": made.due,
                    "new_attempts": made.attempts,
                    "new_duplicate": int(made.doubt),
                    "new_code": made.code,
                    "new_reply": made.reply,
                }
            )
            if made.state is not State.SENT:
                history.append(
                    {
                        "delivery": id_,
                        "at": now_ms,
                        "state": made.state,
                        "code": made.code,
                        "reply": made.reply,
                        "process": process_id(),
                    }
                )
        for state, some in changes.items():
            connection.execute(statements.settle(state), some)
        if history:
            connection.execute(attempt.insert(), history)

    def discard(self, connection: sa.Connection, number: int, *states: State) -> None:
        """Delete a batch that was not committed and has sent nothing.

        `states` are the states in which its deliveries may be, by default only staged.
        """
        chosen = list(states or [State.STAGED])
        connection.execute(statements.DISCARD, {"number": number, "states": chosen})
        connection.execute(statements.DISCARD_MESSAGES, {"number": number})
        connection.execute(statements.DISCARD_BATCH, {"number": number})

    def take_back(self, connection: sa.Connection, number: int) -> None:
        """Delete a batch that was published although its transaction has failed, and its keys.

        Deliveries that a worker has begun already stay, with their messages. So does a message for
        whose idempotency key a message of another transaction was cancelled.
        """
        for statement in statements.TAKE_BACK:
            connection.execute(statement, {"number": number})

    def explain_kept(self, connection: sa.Connection, number: int, now_ms: int) -> bool:
        """Write why `take_back` has left something of a batch; False if it has left nothing."""
        about = {"number": number, "new_changed": now_ms}
        connection.execute(statements.KEPT_HISTORY, {**about, "new_process": process_id()})
        return connection.execute(statements.KEPT, about).rowcount > 0

    def remove(self, connection: sa.Connection, ids: Sequence[int]) -> None:
        """Delete staged deliveries that a savepoint took back, with their messages."""
        for some in _chunks(ids):
            messages = connection.scalars(
                sa.select(delivery.c.message).where(delivery.c.id.in_(some)).distinct()
            ).all()
            connection.execute(
                delivery.delete().where(delivery.c.id.in_(some), delivery.c.state == State.STAGED)
            )
            connection.execute(message.delete().where(message.c.id.in_(messages)))

    def cancel_rest(self, connection: sa.Connection, number: int, now_ms: int, why: str) -> None:
        """Cancel the deliveries of a batch that are still staged."""
        connection.execute(
            statements.CANCEL_REST, {"number": number, "new_changed": now_ms, "new_reply": why}
        )


def _chunks(ids: Sequence[int]) -> Iterator[list[int]]:
    rest = iter(ids)
    while some := list(islice(rest, CHUNK)):
        yield some
