"""One database of a queue: its engine, its transactions, its clock and its errors.

`Database` is the only thing in this package that knows which database it is. What differs is in
`sqlite` and `postgresql`, behind the methods of `Backend`. What leaves it is an error of ours
whose text has no parameter, content or password in it: SQLAlchemy's repeat them.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...address import plain_text
from ...exceptions import (
    ConfigurationError,
    QueueUnavailable,
    SchemaError,
    TxmailError,
)
from ...secret import Secret, Unshown, bare, raise_alone

try:
    import sqlalchemy as sa
except ModuleNotFoundError:
    raise ConfigurationError(
        "the queue needs SQLAlchemy: pip install 'txmail[queue]'", field="queue_url"
    ) from None

from sqlalchemy import exc

from ..process_identity import Identity
from ..schema import metadata
from . import postgresql, sqlite, version
from .backend import Advice, Backend, StoreChanged, Waker
from .fork_guard import forks
from .shared_sqlite import SharedSqlite
from .transaction import Block, Turn
from .version import TableVersion

#: Seconds that a transaction may wait for others, and for the server.
PATIENCE = 30.0

#: The setting that errors name.
_FIELD = "queue_url"
#: Those that have to do with a database, and repeat what was to be written.
_SQLALCHEMY_ERRORS: tuple[type[BaseException], ...] = (exc.StatementError, exc.TimeoutError)
#: True if there is a clock from the machine's start that goes on while it is suspended.
_COUNTS_SUSPENSION = hasattr(time, "CLOCK_BOOTTIME")
_NEW_BOOT = sa.text(
    "INSERT INTO txmail_boot (id, started) VALUES (:id, :started) ON CONFLICT (id) DO NOTHING"
)
_BOOT = sa.text("SELECT started FROM txmail_boot WHERE id = :id")
#: Pools in which a second connection is the first.
_SHARING = (sa.StaticPool, sa.SingletonThreadPool, sa.AssertionPool)


class Process:
    """What one process has of a database. A child makes its own and leaves its parent's alone."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.turn = Turn()
        #: by thread: the blocks that it is in
        self.blocks: dict[int, list[weakref.ref[Block]]] = {}
        #: the tables are there, and of the right version
        self.prepared = False
        #: by `time.monotonic`: when their version was looked at last
        self.looked = -math.inf
        self.version_rows: Sequence[tuple[Any, ...]] = ()
        self.closed = False
        #: how often its connections were dropped, because the store was not the same any more
        self.generation = 0
        #: when the machine was started, as the first has written it down who asked; see `lease_now`
        self.boot: int | None = None

    def enter(self, block: Block) -> None:
        """This thread is in `block`, until `leave`."""
        self.blocks.setdefault(threading.get_ident(), []).append(weakref.ref(block))

    def leave(self, block: Block) -> None:
        """The end of that."""
        me = threading.get_ident()
        left = [ref for ref in self.blocks.get(me, ()) if ref() not in (None, block)]
        if left:
            self.blocks[me] = left
        else:
            self.blocks.pop(me, None)

    def abandon(self, *, writing: bool = False) -> None:
        """See `Database.abandon`; only blocks that write, if `writing`."""
        for ref in self.blocks.get(threading.get_ident(), ()):
            block = ref()
            if block is not None and (block.writes or not writing):
                block.abandon()
        self.turn.give()


class Database:
    """A database with the tables of a queue. Shared by threads; works in a forked child."""

    def __init__(
        self,
        backend: Backend | None,
        *,
        owned: bool,
        make: Callable[[], sa.Engine] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._known = backend
        self._owned = owned
        #: makes an engine for each process, where none is adopted before one is needed
        self._make = make
        self._clock = clock
        # By pid, and never emptied of others: a parent's connections are not to be closed here.
        self._processes: dict[int, Process] = {}

    @classmethod
    def from_url(cls, url: str | Secret, *, clock: Callable[[], float] | None = None) -> Database:
        """The database at `url`: ``sqlite:////path`` or ``postgresql://...``, a queue of its own.

        Nothing is opened yet. `clock`, for tests, replaces the database's; it returns seconds
        since 1970. Raises `ConfigurationError`, which does not show the URL.
        """
        given = Unshown(plain_text(url))
        del url
        try:
            return cls(_backend(given), owned=True, clock=clock)
        except ConfigurationError as error:
            problem = bare(error)
        raise problem

    @classmethod
    def of(
        cls,
        engine: sa.Engine | None = None,
        *,
        make: Callable[[], sa.Engine] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> Database:
        """The application's own database, in which it has made the tables of `schema.metadata`.

        No setting of its connections is changed, and they are the application's to close. Without
        `engine`, `adopt` gives it later; where an engine is needed before that, `make` makes one,
        which is ours to close. Raises what `adopt` raises.
        """
        database = cls(None, owned=False, make=make, clock=clock)
        if engine is not None:
            database.adopt(engine)
        return database

    def adopt(self, engine: sa.Engine) -> None:
        """Use `engine` for connections of our own, unless there is one already.

        Raises `ConfigurationError` if it is neither SQLite's nor PostgreSQL's, or has but one
        connection for everybody: what we commit would be what others are in the middle of.
        """
        if self._known is not None:
            return
        if engine.dialect.is_async:
            if self._make is not None:
                return
            raise ConfigurationError(
                "its driver works in an event loop only, and the queue has threads of its own: "
                "name the database with another driver, by mail.queue_engine_url or engine=",
                field="engine",
            )
        self._known = _backend_of(engine)

    @property
    def _backend(self) -> Backend:
        if self._known is None:
            if self._make is None:
                raise ConfigurationError(
                    "it is that of the first session, and there was none yet; "
                    "mail.queue_engine_url or sqlalchemy.url names it before that",
                    field="engine",
                )
            # Two threads at once: one of the two is never used.
            self._known = _backend_of(self._make())
            self._owned = True
        return self._known

    def determine(self) -> bool:
        """Know which database it is; False if only the first session will tell.

        Nothing is opened. Raises `ConfigurationError` if there can be no engine for it.
        """
        return (self._known is not None or self._make is not None) and bool(self._backend)

    @property
    def name(self) -> str:
        """Printable, such as ``sqlite:////var/lib/app/mail.db``; without secrets."""
        return "the application's database" if self._known is None else self._known.name

    @property
    def is_sqlite(self) -> bool:
        """True if it is a file of SQLite."""
        return isinstance(self._known, sqlite.Sqlite)

    @property
    def is_shared(self) -> bool:
        """True if there is one connection for us and the application: SQLite in memory."""
        return isinstance(self._known, SharedSqlite)

    @property
    def unsafe_wal(self) -> bool:
        """True if this machine's SQLite can corrupt a file whose log is reset at a bad moment.

        That is: when a commit does it during another connection's checkpoint. In a queue's own
        file we keep that from happening.
        """
        return self.is_sqlite and not sqlite.wal_reset_is_fixed()

    def __repr__(self) -> str:
        return f"<Database {self.name}>"

    # -- transactions

    def write(
        self, timeout: float = PATIENCE, *, durable: bool = True, prepared: bool = True
    ) -> Block:
        """A transaction that writes: committed at the end of the block, rolled back if it raises.

        `timeout` is in seconds and bounds the waiting for other writers and for a connection and,
        with PostgreSQL, all of the block. Without `durable`, the last transactions may be gone
        after a power failure, but none is there in part. With `prepared`, `prepare` is called
        before the first.

        Raises `QueueUnavailable`, also if nobody can tell whether the commit took place;
        `QueueFull`; `SchemaError`. Errors that are not of a database pass as they are.
        """
        return Block(self, timeout, write=True, durable=durable, prepared=prepared)

    def read(self, timeout: float = PATIENCE, *, prepared: bool = True) -> Block:
        """A transaction that only reads, and sees one moment however many statements it has.

        Arguments and errors are those of `write`.
        """
        return Block(self, timeout, write=False, durable=True, prepared=prepared)

    @contextmanager
    def look(self, timeout: float = PATIENCE) -> Iterator[sa.Connection]:
        """A transaction that changes nothing at all: no file is made, no mode of one changed.

        For whoever only wants to know. The tables may be missing. Raises what `read` raises.
        """
        engine = self._backend.looking()
        if engine is None:
            with self.read(timeout, prepared=False) as connection:
                yield connection
            return
        me = object()
        forks.enter(me)
        try:
            with self.errors(), engine.connect() as connection:
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
                connection.exec_driver_sql("BEGIN")
                yield connection
                connection.rollback()
        finally:
            forks.leave(me)

    @property
    def creates(self) -> bool:
        """True if missing tables are made on first use. Raises `ConfigurationError`."""
        return self._backend.creates

    def check_place(self) -> None:
        """Raise `ConfigurationError` if a file that is not there yet could not be made."""
        self._backend.check_place()

    def is_open(self, driver: Any) -> bool:
        """Whether a transaction is open on the connection of `driver`."""
        return self._backend.is_open(driver)

    def drop(self, driver: Any) -> None:
        """End the transaction and the connection of `driver` at once. Never raises."""
        self._backend.drop(driver)

    def abandon(self) -> None:
        """End what an exception out of the blue has kept this thread from ending."""
        process = self._processes.get(os.getpid())
        if process is not None:
            process.abandon()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise our errors for those of SQLAlchemy and the driver, on a connection of others.

        Wrong uses of SQLAlchemy pass as they are: their texts have no values in them.
        """
        try:
            yield
        except self.foreign as error:
            problem = self._translated(error)
        else:
            return
        raise_alone(problem)

    @property
    def foreign(self) -> tuple[type[BaseException], ...]:
        """The errors of SQLAlchemy and the driver."""
        return _SQLALCHEMY_ERRORS + (() if self._known is None else self._known.errors)

    @property
    def unexpected(self) -> tuple[type[BaseException], ...]:
        """Those, and what is raised if the store is not the same any more."""
        return (StoreChanged, *self.foreign)

    def translated(self, error: BaseException) -> TxmailError | None:
        """The error of ours for one of SQLAlchemy or the driver; None for others."""
        return self._translated(error) if isinstance(error, self.foreign) else None

    @staticmethod
    def cause(error: BaseException) -> BaseException:
        """The driver's own error."""
        return _cause(error)

    def _translated(self, error: BaseException) -> TxmailError:
        cause = _cause(error)
        if self._known is None:
            return QueueUnavailable(f"{self.name}: {type(cause).__name__}")
        problem = self._known.translated(cause)
        process = self._processes.get(os.getpid())
        if process is not None and isinstance(problem, SchemaError):
            process.prepared = False  # somebody may put it right
        return problem

    def _process(self) -> Process:
        """What this process has of it."""
        pid = os.getpid()
        process = self._processes.get(pid)
        if process is None:
            # Two threads at once: one of the engines is never used.
            backend = self._backend  # and who owns its engine
            made = Process(
                self._make() if self._owned and self._make is not None else backend.engine()
            )
            process = self._processes.setdefault(pid, made)
            if process is made and self._owned:
                # Whoever comes after `close` gets an engine that nobody closes.
                weakref.finalize(made, _dispose, made.engine, pid).atexit = False
        return process

    def close(self) -> None:
        """End all connections, once what is under way is done. The database can be used again.

        An engine of the application stays open.
        """
        process = self._processes.pop(os.getpid(), None)
        if process is not None and self._owned:
            process.closed = True
            process.engine.dispose()

    # -- tables

    def prepare(
        self, connection: sa.Connection | None = None, *, timeout: float = PATIENCE
    ) -> None:
        """See to it that the tables are there and of this version. Cheap after the first time.

        A queue's own SQLite file gets them if it has none. The tables are looked for over
        `connection`, if one is given. Raises `SchemaError`, which says what to do, and what `write`
        raises.
        """
        process = self._process()
        if connection is not None:
            with self.errors():
                self._look(process, connection)
            return
        if process.prepared:
            return
        found = self.table_version(timeout=timeout)
        if found is None and self._backend.creates:
            found = self._create(timeout)
        self.check(found)
        process.prepared = True

    def _look(self, process: Process, connection: sa.Connection) -> None:
        """Raise `SchemaError` if the tables are not those that we know: others may upgrade them.

        They are looked at over each new connection, and when `look_interval` has passed.
        """
        now = time.monotonic()
        known = process.prepared and connection.info.get("txmail_looked", False)
        if known and now - process.looked < self._backend.look_interval:
            return
        if not (known and self._backend.version_rows(connection) == process.version_rows):
            try:
                self.check(self.version_in(connection))
            except SchemaError:
                process.prepared = False  # somebody may put it right
                raise
            process.version_rows = self._backend.version_rows(connection)
        connection.info["txmail_looked"] = process.prepared = True
        process.looked = now

    @property
    def store(self) -> object:
        """Something that is equal as long as the store is the same: a file may be replaced."""
        return self._backend.store()

    def permit_new(self) -> None:
        """Let the file be made, although this process has had one that is gone."""
        self._backend.permit_new()

    def look_again(self) -> None:
        """Have the next transaction look at the version of the tables, whoever has just done so."""
        self._process().looked = -math.inf

    def version(self, *, timeout: float = PATIENCE) -> str | None:
        """The version of the tables; None if there are none. Raises what `read` raises.

        No file is made for this.
        """
        found = self.table_version(timeout=timeout)
        return None if found is None else found.number

    def table_version(
        self, *, timeout: float = PATIENCE, look: bool = False
    ) -> TableVersion | None:
        """What `version` says, and which processes may go on with the tables.

        With `look`, nothing at all is changed: see the method of that name.
        """
        if not self._backend.exists():
            return None
        with self.look(timeout) if look else self.read(timeout, prepared=False) as connection:
            return self.version_in(connection)

    def version_in(self, connection: sa.Connection) -> TableVersion | None:
        """What `table_version` says, as seen from within a transaction."""
        if not self._backend.tables(connection):
            return None
        return TableVersion.of(self._backend.version_rows(connection))

    def keep_room(self, connection: sa.Connection) -> None:
        """The transaction is going to add mail. Raises `QueueFull` if only workers may write."""
        self._backend.keep_room(connection)

    def lock_room(self, connection: sa.Connection) -> None:
        """Keep others from writing what counts against a limit until the transaction ends."""
        self._backend.lock_room(connection)

    def advice(self, *, timeout: float = PATIENCE) -> Sequence[Advice]:
        """What an administrator should know of the database's settings. Raises what `read` does."""
        with self.read(timeout, prepared=False) as connection:
            return self._backend.advice(connection)

    def lock_schema(self, connection: sa.Connection) -> None:
        """Keep other processes from changing the tables until the transaction ends."""
        self._backend.lock_schema(connection)

    def _create(self, timeout: float) -> TableVersion | None:
        with self.write(timeout, prepared=False) as connection:
            # Another process may have been faster.
            if self.version_in(connection) is None:
                metadata.create_all(connection)
            return self.version_in(connection)

    def check(self, found: TableVersion | None) -> None:
        """Raise `SchemaError`, which says what to do, if we may not use tables of `found`."""
        version.check(self.name, found, "" if self.is_sqlite else " in its search_path")

    # -- what differs

    def now(self, connection: sa.Connection) -> int:
        """Milliseconds since 1970 by the clock that all users of the database share."""
        seconds = self._backend.clock(connection) if self._clock is None else self._clock()
        return int(seconds * 1000)

    def lease_now(self, connection: sa.Connection) -> int:
        """What `now` would say if nobody had set the machine's clock: for leases.

        A server has one clock for all. With SQLite each process goes by its machine's, which may
        be set, or be wrong for one of them only: leases count from the machine's start, and when
        that was is what the first who asks has written down. To be called in a transaction that
        writes.
        """
        now, boot = self.now(connection), Identity.mine().boot
        if self._clock is not None or not self.is_sqlite or not boot or not _COUNTS_SUSPENSION:
            return now
        uptime = int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)
        process = self._process()
        if process.boot is None:
            process.boot = connection.execute(_BOOT, {"id": boot}).scalar()
        if process.boot is not None:  # and committed: that will not change any more
            return process.boot + uptime
        connection.execute(_NEW_BOOT, {"id": boot, "started": now - uptime})
        return int(connection.execute(_BOOT, {"id": boot}).scalar_one()) + uptime

    def reserve(self, connection: sa.Connection, table: sa.Table, count: int) -> Sequence[int]:
        """`count` ids of `table`, rising, that no row has or will get from anybody else."""
        return self._backend.reserve(connection, table, count) if count > 0 else ()

    def insert(
        self,
        connection: sa.Connection,
        table: sa.Table,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
    ) -> None:
        """Insert `rows`, tuples of values of the driver's own types for `columns`, fast."""
        self._backend.insert(connection, table, columns, rows)

    def notify(self, connection: sa.Connection, channel: str) -> None:
        """Wake who listens to `channel`, when the transaction commits. Nothing with SQLite."""
        self._backend.notify(connection, channel)

    def listen(self, channel: str, heard: Callable[[], object], bell: Waker) -> None:
        """Call `heard` when others have written, until `bell` is rung; on a connection of its own.

        Raises what `read` raises.
        """
        with self.errors(), self._process().engine.connect() as connection:
            try:
                for news in self._backend.listen(connection, channel, bell.wait):
                    if bell.rung:
                        return
                    if news:
                        heard()
            finally:
                connection.invalidate()  # whoever had it next would hear it all, too

    def checkpoint(self, timeout: float = 0.1) -> bool:
        """SQLite: move the log into the database file. Whether all of it could be moved.

        Waits for writers for at most `timeout` seconds, and for readers not at all. Nothing with
        PostgreSQL or with a database of the application. Raises what `write` raises, except that
        a busy database is no error.
        """
        process = self._process()
        process.abandon(writing=True)
        try:
            with self.errors():
                return process.turn.take(timeout) and self._backend.checkpoint(
                    process.engine, timeout
                )
        finally:
            try:
                process.turn.give()
            finally:
                process.turn.give()


def _backend_of(engine: sa.Engine) -> Backend:
    if isinstance(engine.pool, sa.StaticPool) and engine.dialect.name == "sqlite":
        return SharedSqlite(engine)
    if isinstance(engine.pool, _SHARING):
        raise ConfigurationError(
            "its pool gives one connection to several users: use a QueuePool or a NullPool, and "
            "for a database of SQLite in memory poolclass=StaticPool",
            field="engine",
        )
    if engine.dialect.name == "sqlite":
        return sqlite.Sqlite(engine=engine)
    if engine.dialect.name == "postgresql":
        return postgresql.Postgresql(engine=engine)
    raise ConfigurationError("a database of SQLite or PostgreSQL is needed", field="engine")


def _dispose(engine: sa.Engine, pid: int) -> None:
    if os.getpid() == pid:  # a parent's connections are not to be closed here
        engine.dispose()


def _cause(error: BaseException) -> BaseException:
    """The driver's own error."""
    if isinstance(error, exc.StatementError) and error.orig is not None:
        return error.orig
    return error


def _backend(given: Unshown) -> Backend:
    url = given.get()
    if isinstance(url, Secret):
        url = url.reveal(_FIELD)
    if not isinstance(url, str):
        raise ConfigurationError("a URL is needed", field=_FIELD)
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        parsed = None
    if parsed is None:
        raise ConfigurationError("it is no URL of a database", field=_FIELD)
    if parsed.drivername in sqlite.DRIVERS:
        return sqlite.Sqlite(sqlite.path_of(parsed, _FIELD))
    if parsed.drivername in postgresql.DRIVERS:
        return postgresql.Postgresql(parsed, field=_FIELD)
    raise ConfigurationError("it has to begin with sqlite:// or with postgresql://", field=_FIELD)
