"""One database of a queue: its transactions, its tables, its clock, and what engines differ in.

`Database` is the part that the rest of the queue uses. `connections`, `transaction` and `tables` do
the work, for any kind of database; `Backend` is what the kinds differ in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ...address import plain_text
from ...exceptions import ConfigurationError
from ...secret import Secret, Unshown, bare

try:
    import sqlalchemy as sa
except ModuleNotFoundError:
    raise ConfigurationError(
        "the queue needs SQLAlchemy: pip install 'txmail[queue]'", field="queue_url"
    ) from None

from ..process_identity import Identity
from ..schema import boot
from .backend import Advice, Backend, Waker
from .backends import backend_of_url
from .connections import Connections, MakeEngine
from .constructs import insert_if_absent
from .tables import Tables
from .transaction import Block
from .version import TableVersion

#: Seconds that a transaction may wait for others, and for the server.
PATIENCE = 30.0

#: True if there is a clock from the machine's start that goes on while it is suspended.
_COUNTS_SUSPENSION = hasattr(time, "CLOCK_BOOTTIME")
_NEW_BOOT = insert_if_absent(boot)
_BOOT = sa.text("SELECT started FROM txmail_boot WHERE id = :id")


class Database:
    """A database with the tables of a queue. Shared by threads; works in a forked child."""

    def __init__(
        self, connections: Connections, *, clock: Callable[[], float] | None = None
    ) -> None:
        self._connections = connections
        self._tables = Tables(connections)
        self._clock = clock

    @classmethod
    def from_url(cls, url: str | Secret, *, clock: Callable[[], float] | None = None) -> Database:
        """The database at `url`: ``sqlite:////path`` or ``postgresql://...``, a queue of its own.

        Nothing is opened yet. `clock`, for tests, replaces the database's; it returns seconds
        since 1970. Raises `ConfigurationError`, which does not show the URL.
        """
        given = Unshown(plain_text(url))
        del url
        try:
            return cls(Connections(backend_of_url(given), owned=True), clock=clock)
        except ConfigurationError as error:
            problem = bare(error)
        raise problem

    @classmethod
    def of(
        cls,
        engine: sa.Engine | None = None,
        *,
        make: MakeEngine | None = None,
        clock: Callable[[], float] | None = None,
    ) -> Database:
        """The application's own database, in which it has made the tables of `schema.metadata`.

        No setting of its connections is changed, and they are the application's to close. Without
        `engine`, `adopt` gives it later; where an engine is needed before that, `make` makes one,
        which is ours to close. Raises what `adopt` raises.
        """
        database = cls(Connections(None, owned=False, make=make), clock=clock)
        if engine is not None:
            database.adopt(engine)
        return database

    # -- which database it is

    def adopt(self, engine: sa.Engine) -> None:
        """Use `engine` for connections of our own, unless there is one already.

        Raises `ConfigurationError` if it is of a kind of database that a queue cannot be in, or has
        one connection for everybody: what we commit would be what others are in the middle of.
        """
        self._connections.adopt(engine)

    def determine(self) -> bool:
        """Know which database it is; False if only the first session will tell.

        Nothing is opened. Raises `ConfigurationError` if there can be no engine for it.
        """
        return self._connections.determine()

    @property
    def _backend(self) -> Backend:
        return self._connections.backend

    @property
    def name(self) -> str:
        """Printable, such as ``sqlite:////var/lib/app/mail.db``; without secrets."""
        return self._connections.name

    @property
    def engine(self) -> sa.Engine:
        """The engine of this process."""
        return self._connections.state.engine

    @property
    def is_shared(self) -> bool:
        """True if the application and the queue share one connection: a database in memory."""
        known = self._connections.known
        return known is not None and known.is_shared

    @property
    def is_in_process(self) -> bool:
        """True if there is no server, so that the answer to a COMMIT cannot be lost."""
        return self._backend.is_in_process

    @property
    def is_file(self) -> bool:
        """True if it is a file, which every process of this machine finds by its path."""
        known = self._connections.known
        return known is not None and known.is_file

    @property
    def notifies(self) -> bool:
        """True if `notify` tells others; False if they look by themselves."""
        return self._backend.notifies

    @property
    def one_writer(self) -> bool:
        """True if only one transaction can write at a time: nobody may write without a pause."""
        return self._backend.one_writer

    @property
    def creates(self) -> bool:
        """True if missing tables are made on first use. Raises `ConfigurationError`."""
        return self._backend.creates

    def check_place(self) -> None:
        """Raise `ConfigurationError` if a file that is not there yet could not be made."""
        self._backend.check_place()

    def advice(self, *, timeout: float = PATIENCE) -> Sequence[Advice]:
        """Advice for the administrator of the database. Raises what `read` raises."""
        return self._backend.advice(lambda: self.read(timeout, prepared=False))

    def __repr__(self) -> str:
        return f"<Database {self.name}>"

    # -- transactions

    def write(
        self, timeout: float = PATIENCE, *, durable: bool = True, prepared: bool = True
    ) -> Block:
        """A transaction that writes: committed at the end of the block, rolled back if it raises.

        `timeout` is in seconds and bounds the waiting for other writers and for a connection and,
        with a server, all of the block. Without `durable`, the last transactions may be gone after
        a power failure, but none is there in part. With `prepared`, `prepare` is called before the
        first.

        Raises `QueueUnavailable`, also if nobody can tell whether the commit took place;
        `QueueFull`; `SchemaError`. Errors that are not of a database pass as they are.
        """
        checks = self._tables if prepared else None
        return Block(self._connections, timeout, write=True, durable=durable, checks=checks)

    def read(self, timeout: float = PATIENCE, *, prepared: bool = True) -> Block:
        """A transaction that only reads, and sees one moment however many statements it has.

        Arguments and errors are those of `write`.
        """
        checks = self._tables if prepared else None
        return Block(self._connections, timeout, write=False, checks=checks)

    def look(self, timeout: float = PATIENCE) -> AbstractContextManager[sa.Connection]:
        """A transaction that changes nothing at all: no file is made, no mode of one changed.

        It is for commands that only report. The tables may be missing. Raises what `read` raises.
        """
        return self._tables.look(timeout)

    def is_open(self, driver: Any) -> bool:
        """Whether a transaction is open on the connection of `driver`."""
        return self._backend.is_open(driver)

    def drop(self, driver: Any) -> None:
        """End the transaction and the connection of `driver` at once. Never raises."""
        self._backend.drop(driver)

    def abandon(self) -> None:
        """End the transactions that an exception has kept this thread from ending."""
        self._connections.abandon()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise our errors for those of SQLAlchemy and the driver, on a connection of others.

        Wrong uses of SQLAlchemy pass as they are: their texts have no values in them.
        """
        with self._connections.errors():
            yield

    def close(self) -> None:
        """End all connections, once what is under way is done. The database can be used again.

        An engine of the application stays open.
        """
        self._connections.close()

    # -- tables

    def prepare(
        self, connection: sa.Connection | None = None, *, timeout: float = PATIENCE
    ) -> None:
        """See to it that the tables are there and of this version. Cheap after the first time.

        A queue's own file gets them if it has none. The tables are looked for over `connection`, if
        one is given. Raises `SchemaError`, which says what to do, and what `write` raises.
        """
        if connection is None:
            self._tables.prepare(timeout)
            return
        with self._connections.errors():
            self._tables.verify(self._connections.state, connection)

    def look_again(self) -> None:
        """Have the next transaction look at the version of the tables in any case."""
        self._tables.look_again()

    def table_version(
        self, *, timeout: float = PATIENCE, look: bool = False
    ) -> TableVersion | None:
        """The version of the tables, and which processes may go on with them; None without tables.

        No file is made for this. With `look`, nothing at all is changed: see the method of that
        name. Raises what `read` raises.
        """
        return self._tables.version(timeout, look=look)

    def version_in(self, connection: sa.Connection) -> TableVersion | None:
        """The `table_version` that a transaction sees."""
        return self._tables.version_in(connection)

    def check(self, found: TableVersion | None) -> None:
        """Raise `SchemaError`, which says what to do, if we may not use tables of `found`."""
        self._tables.check(found)

    @property
    def store(self) -> object:
        """A value that is equal as long as the store is the same: a file may be replaced."""
        return self._backend.store()

    def permit_new(self) -> None:
        """Let the file be made, although this process has had one that is gone."""
        self._backend.permit_new()

    def keep_room(self, connection: sa.Connection) -> None:
        """The transaction is going to add mail. Raises `QueueFull` if only workers may write."""
        self._backend.keep_room(connection)

    def lock_room(self, connection: sa.Connection) -> None:
        """Keep others from adding mail to a limited queue until the transaction ends."""
        self._backend.lock_room(connection)

    def lock_schema(self, connection: sa.Connection) -> None:
        """Keep other processes from changing the tables until the transaction ends."""
        self._backend.lock_schema(connection)

    # -- the clock

    def now_ms(self, connection: sa.Connection) -> int:
        """Milliseconds since 1970 by the clock that all users of the database share."""
        seconds = self._backend.clock(connection) if self._clock is None else self._clock()
        return int(seconds * 1000)

    def lease_now_ms(self, connection: sa.Connection) -> int:
        """The time for leases, in milliseconds: it goes on evenly when the machine's clock is set.

        A server has one clock for all. Without a server each process goes by its machine's clock,
        which may be set. Then leases count from the machine's start: the first process that asks
        writes down when that was. Call this in a transaction that writes.
        """
        now_ms, start = self.now_ms(connection), Identity.mine().boot
        one_clock = self._clock is not None or not self._backend.clock_is_local
        if one_clock or not start or not _COUNTS_SUSPENSION:
            return now_ms
        uptime = int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)
        state = self._connections.state
        if state.boot_ms is None:
            state.boot_ms = connection.execute(_BOOT, {"id": start}).scalar()
        if state.boot_ms is not None:  # and committed: that will not change any more
            return state.boot_ms + uptime
        connection.execute(_NEW_BOOT, {"id": start, "started": now_ms - uptime})
        return int(connection.execute(_BOOT, {"id": start}).scalar_one()) + uptime

    # -- rows, and waking others

    def reserve(self, connection: sa.Connection, table: sa.Table, count: int) -> Sequence[int]:
        """`count` rising ids of `table`, which no other transaction will use."""
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
        """Wake all who listen to `channel` when the transaction commits, if it `notifies`."""
        self._backend.notify(connection, channel)

    def listen(self, channel: str, heard: Callable[[], object], bell: Waker) -> None:
        """Call `heard` when others have written, until `bell` is rung; on a connection of its own.

        Raises what `read` raises.
        """
        with self.errors(), self.engine.connect() as connection:
            try:
                for news in self._backend.listen(connection, channel, bell.wait):
                    if bell.rung:
                        return
                    if news:
                        heard()
            finally:
                connection.invalidate()  # whoever had it next would hear it all, too

    def checkpoint(self, timeout: float = 0.1) -> bool:
        """Move the log of a queue's own file into the file. Whether all of it could be moved.

        Waits for writers for at most `timeout` seconds, and for readers not at all. Does nothing
        with a server or with a database of the application. Raises what `write` raises, except
        that a busy database is no error.
        """
        state = self._connections.state
        state.abandon(writing=True)
        try:
            with self.errors():
                return state.turn.take(timeout) and self._backend.checkpoint(state.engine, timeout)
        finally:
            try:
                state.turn.give()
            finally:
                state.turn.give()
