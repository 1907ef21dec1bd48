"""A queue in the application's own database: its session writes the rows, in its transaction.

There is one commit then, and nothing to resolve: mail is in the queue if and only if the rest of
the transaction is in the database. After the commit, connections of our own make rows with
idempotency keys ready, write the outcomes of mail that was sent directly, and wake workers.
"""

from __future__ import annotations

import json
import secrets
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.orm import Session, scoped_session
from zope.interface import implementer

from ..exceptions import ConfigurationError
from ..interfaces import IBatch
from ..outcome import Outcome
from ..submission import KnownOutcomes, StagedSubmission
from .batch import (
    BACKGROUND_TIMEOUT,
    FINISH_TIMEOUT,
    Batch,
    Change,
    sent,
)
from .database.database import Database
from .database.session_connection import SessionConnection, watch_returns
from .own_batch import OwnBatch
from .queue import NUMBER_BITS, Queue
from .retry import DOUBT_RETRIES
from .schema import batch, delivery
from .sql.dead import noted_process
from .states import BatchState, State

#: Tells a session with one engine for reading and another for writing that we write.
_WRITING = delivery.update()

#: a session, or what returns the one of the current transaction
Sessions = Session | scoped_session[Session] | Callable[[], Session]
#: ``mark_changed(session, transaction_manager, keep_session)``: has it take part in the transaction
MarkChanged = Callable[[Session, Any, bool], object]


class SessionQueue(Queue):
    """A queue whose tables are in the database of `session`. See `IQueue`.

    `txmail.integrations.session_queue` makes one for zope.sqlalchemy.
    """

    #: see `IQueue`
    in_session = True

    def __init__(
        self,
        session: Sessions | None,
        mark_changed: MarkChanged,
        *,
        engine: sa.Engine | Callable[[], sa.Engine] | None = None,
        default_engine: Callable[[], sa.Engine] | None = None,
        keep_session: bool = False,
        on_doubt: str = "retry",
        doubt_retries: int = DOUBT_RETRIES,
        limit: int | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Raises `ConfigurationError`.

        Without `session`, bind each mailer to one: ``mailer.bind(session=request.dbsession)``.
        `engine` is for connections of our own: an engine, or a function that makes one for each
        process. By default it is the engine of the first session; before there is a session,
        `default_engine` makes one. With `keep_session`, zope.sqlalchemy does not close the session
        at the end of its transaction if the session takes part because of our rows.
        """
        self._session = session
        self._mark_changed = mark_changed
        self._keep_session = keep_session
        #: the engines whose connections are looked at when they go back to the pool
        self._watched: weakref.WeakSet[sa.Engine] = weakref.WeakSet()
        #: true if the database is that of the first session
        self._adopts = engine is None
        given, make = (engine, None) if isinstance(engine, sa.Engine) else (None, engine)
        if self._adopts and session is not None:
            given = _engine_of(_current(session))
        make = make or default_engine
        super().__init__(
            Database.of(given, make=make, clock=clock),
            on_doubt=on_doubt,
            doubt_retries=doubt_retries,
            limit=limit,
            clock=clock,
        )

    def bind(self, session: Sessions) -> Self:
        """See `IQueue`."""
        bound = type(self).__new__(type(self))
        vars(bound).update(vars(self), _session=session)
        return bound

    def begin(self, transaction: Any, transaction_manager: Any) -> IBatch:
        """See `IQueue`. Raises `ConfigurationError` if there is no session."""
        if transaction is None:
            return super().begin(transaction, transaction_manager)
        session = _current(self._session)
        engine = _engine_of(session)
        if self._adopts:
            self.database.adopt(engine)
        return SessionBatch(self, secrets.randbits(NUMBER_BITS), session, transaction_manager)

    def begin_apart(self, transaction_manager: Any) -> IBatch:
        """A batch for mail that comes too late for the session to take part."""
        number = secrets.randbits(NUMBER_BITS)
        transaction = transaction_manager.get()
        return OwnBatch(self.host, number, (), self._witnesses, transaction, transaction_manager)

    def join(self, session: Session, transaction_manager: Any) -> None:
        """Have `session` take part in the transaction, with changes."""
        engine = _engine_of(session)
        if engine not in self._watched:
            self._watched.add(engine)
            watch_returns(engine, self.database)
        self._mark_changed(session, transaction_manager, self._keep_session)


def _current(session: Sessions | None) -> Session:
    """The session of the current transaction."""
    if not isinstance(session, Session):
        session = session() if callable(session) else None
    if not isinstance(session, Session):
        raise ConfigurationError(
            "the queue is in the application's database, and this mailer has no session: call "
            "mailer.bind(session=...)",
            field="session",
        )
    return session


def _engine_of(session: Session) -> sa.Engine:
    """The engine that `session` writes our tables with. Raises `ConfigurationError`."""
    try:
        bind = session.get_bind(clause=_WRITING)
    except exc.UnboundExecutionError:
        raise ConfigurationError(
            "it has no engine for the tables of the queue: add one to its binds, "
            "binds={..., txmail.queue.schema.delivery: engine}",
            field="session",
        ) from None
    return bind if isinstance(bind, sa.Engine) else bind.engine


@implementer(IBatch)
class SessionBatch(Batch):
    """See `IBatch`; made by `SessionQueue.begin`."""

    def __init__(
        self, queue: SessionQueue, number: int, session: Session, transaction_manager: Any
    ) -> None:
        super().__init__(queue.host, number)
        self._queue = queue
        self._session: Session | None = session
        self._held: SessionConnection | None = None
        self._transaction_manager = transaction_manager
        #: true if rows have to be written after the commit: mail sent directly, or with keys
        self._later = False
        #: for mail that comes after the commit has begun, when the session takes no part in it
        self._apart: IBatch | None = None

    def stage(
        self,
        rows: Sequence[StagedSubmission],
        resources: list[Any],
        timeout: float,
        late: bool = False,
    ) -> None:
        """See `IBatch`."""
        wanted = {row.submission: row for row in rows}
        if late and not Change.between(self._rows, wanted):
            return
        if not wanted and not self._rows:
            return
        session = self._session
        assert session is not None  # `_end` drops it
        if late and not session.in_transaction():
            self._apart = self._apart or self._queue.begin_apart(self._transaction_manager)
            self._apart.stage(rows, resources, timeout)
            return
        database = self._store.database
        with database.errors():
            self._queue.join(session, self._transaction_manager)
            connection = self._connection_of(session)
            database.prepare(connection)
            if self._rows:
                # A savepoint may have taken back some of the rows.
                self._store.discard(connection, self.number, State.STAGED, State.READY)
            self._rows = wanted
            if wanted:
                self._write(connection, list(rows))

    def _connection_of(self, session: Session) -> sa.Connection:
        connection = session.connection(bind_arguments={"clause": _WRITING})
        if self._held is None or self._held.connection is not connection:
            owned = isinstance(session.get_bind(clause=_WRITING), sa.Engine)
            self._held = SessionConnection(connection, self._store.database, owned)
        return connection

    def _write(self, connection: sa.Connection, rows: list[StagedSubmission]) -> None:
        store = self._store
        now_ms = store.database.now_ms(connection)
        begun = self._begun()
        self._later = begun or any(
            row.submission.options.idempotency_key is not None or row.outcomes for row in rows
        )
        self._host.check_room(
            connection, sum(len(row.submission.envelope.recipients) for row in rows)
        )
        if begun:
            self._host.opened(self.number)
            self._host.beat_soon()
        state = BatchState.SENDING if begun else BatchState.PUBLISHING
        self._public = not begun
        if not self._later:
            state = BatchState.PUBLISHED
        store.open_batch(connection, self.number, state, json.dumps(noted_process()), now_ms)
        self._written = store.insert(
            connection, self.number, rows, State.STAGED if self._later else State.READY, now_ms
        )

    def decide(self, last: bool, timeout: float) -> None:
        """See `IBatch`: the session decides."""
        if self._apart is not None:
            self._apart.decide(last, timeout)

    def revoke(self, known: KnownOutcomes, timeout: float) -> None:
        """See `IBatch`."""
        if self._apart is not None:
            self._apart.revoke(known, timeout)

    def finish(self, known: KnownOutcomes) -> None:
        """See `IBatch`."""
        if self._ended:
            return
        if self._apart is not None:
            self._apart.finish(known)
        elif self._later:
            outcomes = self._outcomes(known)
            self._soon(lambda seconds: self._finish(outcomes, seconds), FINISH_TIMEOUT)
        elif self._rows and self._wakes():
            self._host.notifier.announce_later()
        self._end()

    def _finish(self, outcomes: list[tuple[int, Outcome]], timeout: float) -> None:
        with self._store.database.write(timeout=timeout, durable=False) as connection:
            more = self._publish(connection, outcomes)
            if self._wakes():
                self._host.notifier.announce(connection)
        self._host.closed(self.number)
        if more:
            self._host.promote_later(self.number)
        if self._wakes():
            self._host.notifier.wake()

    def abort(self, known: KnownOutcomes) -> None:
        """See `IBatch`: the session rolls the rows back, unless it has committed before."""
        if self._ended:
            return
        if self._apart is not None:
            self._apart.abort(known)
        elif self._begun():
            out = sent(self._outcomes(known))
            self._later_ended(lambda: self._forget(out))
        elif self._later:
            # The session may have committed in its own vote, and the mail with it.
            self._later_ended(lambda: self._host.abandon(self.number, []))
        self._end()

    def _forget(self, outcomes: list[tuple[int, Outcome]]) -> None:
        there = sa.select(batch.c.id).where(batch.c.id == self.number)
        with self._store.database.write(timeout=BACKGROUND_TIMEOUT) as connection:
            if connection.scalar(there) is not None:
                self._settle_aborted(connection, outcomes)
        self._host.closed(self.number)

    def mark_unknown(self, known: KnownOutcomes) -> None:
        """See `IBatch`: if the rows are there, they have committed."""
        if self._ended:
            return
        if self._apart is not None:
            self._apart.mark_unknown(known)
        elif self._later:
            outcomes = self._outcomes(known)
            self._later_ended(lambda: self._host.abandon(self.number, outcomes))
        self._end()

    def may_be_committed(self, error: BaseException | None) -> bool:
        """See `IBatch`."""
        return self._held is not None and self._held.may_be_committed(error)

    def release(self) -> None:
        """See `IBatch`."""
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _end(self) -> None:
        self._ended = True
        self._session = self._transaction_manager = None
