"""An SQL database as a witness, by SQLAlchemy and zope.sqlalchemy.

A transaction with mail writes one row, with the id of the mail, into the table ``txmail_witness``
of the application's database, through the application's own session. The row is there if and only
if the transaction commits.

A later question first tries to write a row with the same id that says ``aborted``. There cannot be
two rows with one id. If the transaction has committed, its row is there, and the answer is yes. If
not, the new row is there, and the answer is no for good: if the transaction is still alive, the
database refuses its row, and it can no longer commit. While the transaction is undecided (its
process is stopped, or a two-phase transaction is prepared), PostgreSQL makes the question wait, and
SQLite is locked. Then the answer is unknown: ask again later.

The application's database needs the table: add `witness_metadata` to its migrations, or call
``witness_metadata.create_all(engine)``.
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

#: Milliseconds for which a question waits for an undecided transaction.
LOCK_TIMEOUT_MS = 2000

#: Has one table, ``txmail_witness``.
witness_metadata = sa.MetaData()

_table = sa.Table(
    "txmail_witness",
    witness_metadata,
    # the id of the mail of one transaction: random, and the same in the queue
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
    current transaction. The witness joins the session to the transaction by `zope.sqlalchemy`, with
    `keep_session`, if the session has not joined itself. With `always` false it only uses sessions
    that have joined: then a transaction without work in this database costs nothing there, but this
    witness does not know how the transaction ends.

    `engine` names the database of a session that has several. Batches remember the witness by
    `name`: give each database of an application another name.
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
        """See `IWitness`. Does nothing."""

    def note(
        self, transaction: Any, transaction_manager: Any, batch: int
    ) -> Mapping[str, Any] | None:
        """See `IWitness`.

        Raises `ConfigurationError` for a session that is read-only, belongs to another transaction,
        or whose database lacks the table. Raises `QueueUnavailable` if a question has taken this
        transaction for dead, so that it can no longer commit. Raises SQLAlchemy's errors unchanged:
        `zope.sqlalchemy` knows for which of them another try helps.
        """
        session = self._session if isinstance(self._session, Session) else self._session()
        # A session can no longer join once the commit has begun.
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
                f"{self.name}: this transaction was taken for dead, and can no longer commit"
            ) from None
        except sa.exc.DBAPIError as error:
            if questions_for(connection.engine).is_missing(_cause(error)):
                raise ConfigurationError(_MISSING, field=self.name) from None
            raise
        return {"dialect": connection.dialect.name, "twophase": bool(session.twophase)}

    def _bind_arguments(self) -> dict[str, Any]:
        # A session may read and write with different engines: take the engine that writes.
        return {"bind": self._engine} if self._several else {"clause": _WRITING}

    def _join(self, session: Session, transaction: Any, transaction_manager: Any) -> None:
        # A session that is registered with zope.sqlalchemy has joined by now.
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
        """Delete rows older than `before_ms`, milliseconds since 1970; returns their number.

        The witness cannot answer for deleted rows: every undecided batch has to be newer. Raises
        SQLAlchemy's errors.
        """
        with self._connect() as connection, connection.begin():
            return connection.execute(
                sa.delete(_table).where(_table.c.created < before_ms)
            ).rowcount

    def _decide(self, batch: int) -> str | None:
        """What the row of `batch` says; this writes the row if it is missing."""
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
                pass  # the transaction has just committed, or another process asks
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
        # The first line only: the other lines have the statement and its parameters.
        first = ascii_strip(str(cause)).partition("\n")[0]
        return f"{name_of(type(cause))}: {one_line(first, 200)}"


def _row(batch: int, state: str) -> dict[str, Any]:
    return {"batch": batch, "state": state, "created": int(time.time() * 1000)}


def _commit_row(batch: int) -> sa.Insert:
    """Writes the row unless it is there. A row that says ``aborted`` makes this fail.

    The transaction may have written the row before, and a savepoint may have rolled it back.
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
