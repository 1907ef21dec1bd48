"""An SQL database as a witness, by SQLAlchemy and zope.sqlalchemy.

A transaction with mail writes one row, with the id of the mail, into the table ``txmail_witness``
of the application's database, through the application's own session. The row is there if the
transaction commits, and not if it does not.

Whoever asks later first writes a row of that id himself, which says ``aborted``. Two rows of one id
cannot be: if the transaction has committed, its row is there, and the answer is yes. If it has not,
the new row is, and the answer is no for good: should the transaction be alive after all, its own
row is refused, and it cannot commit any more. While it is undecided (a process that is stopped in
the middle, a two-phase transaction that is prepared), PostgreSQL has the question wait, and SQLite
is locked: then the answer is unknown, and is to be asked for again.

The table has to be made in the application's database: `witness_metadata` goes into its
migrations, or ``witness_metadata.create_all(engine)`` makes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session
from zope.interface import implementer
from zope.sqlalchemy import mark_changed

from ..common.ascii_text import ascii_strip
from ..common.shown import name_of, one_line
from ..exceptions import ConfigurationError, QueueUnavailable
from ..interfaces import IWitness
from ..queue.database.backends import questions_for
from ..witness_answer import Answer, WitnessAnswer
from .zope_sqlalchemy_internals import is_read_only, takes_part

#: Milliseconds that a question waits for a transaction that is undecided.
LOCK_TIMEOUT_MS = 2000

#: Has one table, ``txmail_witness``.
witness_metadata = sa.MetaData()

_table = sa.Table(
    "txmail_witness",
    witness_metadata,
    # Of the mail of one transaction: random, and the same in the queue.
    sa.Column("batch", sa.BigInteger, primary_key=True, autoincrement=False),
    # committed or aborted; never changed
    sa.Column("state", sa.String(9), nullable=False),
    # milliseconds since 1970, UTC
    sa.Column("created", sa.BigInteger, nullable=False),
)
_WRITING = _table.update()
_MISSING = "the table txmail_witness is missing: witness_metadata.create_all(engine) makes it"


@implementer(IWitness)
class SqlWitness:
    """See `IWitness`.

    `session` is a `Session`, a `scoped_session` or a callable that returns the session of the
    current transaction. It is joined to the transaction by `zope.sqlalchemy` if it is not yet, with
    `keep_session` as there; unless `always`, only sessions that have joined by themselves are used:
    then a transaction that does nothing in this database costs nothing there, but it is none of
    those who know how that transaction ended.

    `engine` is the database, where a session cannot tell because it has several. `name` is what
    batches remember the witness by. Applications with several databases give each another.
    """

    def __init__(
        self,
        session: Session | Callable[[], Session],
        *,
        name: str | None = None,
        keep_session: bool = False,
        always: bool = True,
        engine: sa.Engine | None = None,
    ) -> None:
        self.name = "sql" if name is None else name
        self._session = session
        self._keep_session = keep_session
        self._always = always
        self._engine = engine
        self._several = engine is not None

    def begin(self, transaction: Any, batch: int) -> None:
        """See `IWitness`. Nothing to do yet."""

    def note(
        self, transaction: Any, transaction_manager: Any, batch: int
    ) -> Mapping[str, Any] | None:
        """See `IWitness`.

        Raises `ConfigurationError` for a session that may not write, that belongs to another
        transaction or whose database has no table for us, `QueueUnavailable` if this transaction
        was taken for dead, so that it may not commit any more, and SQLAlchemy's errors as they are:
        `zope.sqlalchemy` knows which of them another try may mend.
        """
        session = self._session if isinstance(self._session, Session) else self._session()
        # Nobody can join once the commit has begun, and who had nothing to write is gone by then.
        free = self._always and transaction.status == "Active"
        if not takes_part(session, transaction) and not free:
            return None
        try:
            connection = session.connection(bind_arguments=self._bind_arguments())
        except sa.exc.UnboundExecutionError:
            raise ConfigurationError(
                "its session has no engine for the table txmail_witness: "
                "SqlWitness(engine=...) names it, or binds={..., witness_metadata's table: engine}",
                field=self.name,
            ) from None
        self._join(session, transaction, transaction_manager)
        self._engine = self._engine or connection.engine
        try:
            connection.execute(_commit_row(batch))
        except sa.exc.IntegrityError:
            raise QueueUnavailable(
                f"{self.name}: this transaction was taken for dead, and cannot commit any more"
            ) from None
        except sa.exc.DBAPIError as error:
            if questions_for(connection.engine).is_missing(_cause(error)):
                raise ConfigurationError(_MISSING, field=self.name) from None
            raise
        return {"dialect": connection.dialect.name, "twophase": bool(session.twophase)}

    def _bind_arguments(self) -> dict[str, Any]:
        # Of a session that reads and writes with different engines, the one that writes.
        return {"bind": self._engine} if self._several else {"clause": _WRITING}

    def _join(self, session: Session, transaction: Any, transaction_manager: Any) -> None:
        # By now the session has joined, if it is registered with zope.sqlalchemy.
        if is_read_only(session):
            problem = "its session is joined as read-only, and cannot be a witness"
            raise ConfigurationError(problem, field=self.name)
        mark_changed(session, transaction_manager, self._keep_session)
        if not takes_part(session, transaction):
            problem = "its session belongs to another transaction manager than the mailer"
            raise ConfigurationError(problem, field=self.name)

    def ask(self, batch: int, noted: Mapping[str, Any]) -> WitnessAnswer:
        """See `IWitness`. Takes a connection of its own, and may wait for `LOCK_TIMEOUT_MS`."""
        try:
            state = self._decide(batch)
        except Exception as error:
            return WitnessAnswer(Answer.UNKNOWN, self._problem(error))
        answers = {
            "committed": WitnessAnswer(Answer.YES, "the database has committed it"),
            "aborted": WitnessAnswer(
                Answer.NO, "the database has not committed it, and never will"
            ),
        }
        strange = WitnessAnswer(Answer.UNKNOWN, "its row in the database says neither")
        return answers.get(state or "", strange)

    def forget(self, before_ms: int) -> int:
        """Delete the rows from before `before_ms`, milliseconds since 1970; how many there were.

        What is forgotten cannot be asked about: it has to be older than every batch that is still
        undecided. Raises SQLAlchemy's errors.
        """
        with self._connect() as connection, connection.begin():
            return connection.execute(
                sa.delete(_table).where(_table.c.created < before_ms)
            ).rowcount

    def _decide(self, batch: int) -> str | None:
        """What the row of `batch` says; written here if there was none."""
        state: sa.Select[Any] = sa.select(_table.c.state).where(_table.c.batch == batch)
        with self._connect() as connection:
            with connection.begin():
                found: str | None = connection.scalar(state)
            if found is not None:
                return found
            try:
                with connection.begin():
                    questions_for(connection.engine).bound_waiting(connection, LOCK_TIMEOUT_MS)
                    connection.execute(sa.insert(_table), _row(batch, "aborted"))
            except sa.exc.IntegrityError:
                pass  # it has committed meanwhile, or somebody else asks
            with connection.begin():
                found = connection.scalar(state)
        return found

    def _connect(self) -> sa.Connection:
        engine = self._engine
        if engine is None:
            session = self._session if isinstance(self._session, Session) else self._session()
            engine = self._engine = session.get_bind(clause=_WRITING).engine
        if isinstance(engine.pool, sa.StaticPool):
            raise ConfigurationError("it has a single connection, which others are using")
        return questions_for(engine).connect(engine)

    def _problem(self, error: Exception) -> str:
        """Why there is no answer, without the parameters that SQLAlchemy's errors repeat."""
        cause = _cause(error)
        if self._engine is not None:
            questions = questions_for(self._engine)
            if questions.is_missing(cause):
                return _MISSING
            if undecided := questions.undecided(cause):
                return undecided
        # The first line only: the others have the statement and its parameters.
        first = ascii_strip(str(cause)).partition("\n")[0]
        return f"{name_of(type(cause))}: {one_line(first, 200)}"


def _row(batch: int, state: str) -> dict[str, Any]:
    return {"batch": batch, "state": state, "created": int(time.time() * 1000)}


def _commit_row(batch: int) -> sa.Insert:
    """Write the row, unless it is there: but not past one that says ``aborted``.

    It may have been written before and be gone, with a savepoint that was rolled back.
    """
    row = _row(batch, "committed")
    columns = _table.c
    there = sa.exists().where(columns.batch == batch, columns.state == "committed")
    values = sa.select(*(sa.literal(row[c.name], c.type) for c in columns)).where(~there)
    return sa.insert(_table).from_select(list(row), values)


def _cause(error: Exception) -> BaseException:
    """The driver's own error, if there is one."""
    cause: BaseException | None = getattr(error, "orig", None)
    return cause or error
