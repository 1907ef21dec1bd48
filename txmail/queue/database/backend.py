"""The interface of a kind of database: the methods in which kinds differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa

from ...exceptions import QueueUnavailable, TxmailError

#: Reads the table of versions, which has one column less in older versions.
VERSION_ROWS = "SELECT * FROM txmail_version"
#: Why an engine of the application cannot be used.
AUTOCOMMIT = "it commits each statement by itself: an engine with transactions is needed"
#: Seconds between two looks at the version of the tables, where each costs a round trip.
LOOK = 5.0


class CannotListen(QueueUnavailable):
    """This connection cannot hear of mail: workers have to look for it."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A sentence of `txmail doctor` about a database."""

    text: str
    #: true if mail cannot be stored like this
    bad: bool = False
    #: true if nothing has to be done
    fine: bool = False


class Waker(Protocol):
    """See `listener.Bell`."""

    @property
    def rung(self) -> bool:
        """True if the thread must not wait any more."""

    def wait(self, descriptor: int | None = None) -> None:
        """Wait for a moment; less if `descriptor` can be read, or the bell is rung."""


class StoreChanged(QueueUnavailable):
    """A connection leads to another store than its URL does by now."""


class Backend(Protocol):
    """One kind of database: the queue's own at a URL, or the application's."""

    @property
    def name(self) -> str:
        """Printable, without secrets."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """The base classes of its driver's errors."""

    @property
    def one_writer(self) -> bool:
        """True if only one transaction can write at a time: then our threads queue up for it."""

    @property
    def is_in_process(self) -> bool:
        """True if there is no server, so that the answer to a COMMIT cannot be lost."""

    @property
    def is_file(self) -> bool:
        """True if it is a file, which every process of this machine finds by its path."""

    @property
    def is_shared(self) -> bool:
        """True if the application and the queue share one connection."""

    @property
    def clock_is_local(self) -> bool:
        """True if `clock` is this machine's, and each process has its own."""

    @property
    def notifies(self) -> bool:
        """True if `notify` tells others; False if `listen` has to look."""

    @property
    def creates(self) -> bool:
        """True if missing tables are made on first use."""

    @property
    def tables_place(self) -> str:
        """Where tables are looked for, as the end of a sentence; empty if there is one place."""

    def exists(self) -> bool:
        """False if connecting would make a new database."""

    def engine(self) -> sa.Engine:
        """A new engine for this process, or the engine of the application."""

    def looking(self) -> sa.Engine | None:
        """An engine whose connections change nothing; None if reading never changes anything."""

    def begin_looking(self, connection: sa.Connection, seconds: float) -> None:
        """Begin on a connection of `looking`; wait for others for at most so many `seconds`."""

    def connect(self, engine: sa.Engine, seconds: float) -> sa.Connection:
        """A connection of `engine`, within so many `seconds`. Raises `QueueUnavailable`."""

    def check_place(self) -> None:
        """Raise `ConfigurationError` if a store that is not there yet could not be made."""

    def begin(
        self, connection: sa.Connection, seconds: float, *, write: bool, durable: bool
    ) -> None:
        """Begin the transaction, which the driver has not done by itself."""

    def watch(self, key: object, connection: sa.Connection, seconds: float) -> None:
        """End the connection in `seconds` if it could wait for ever; `unwatch` prevents this."""

    def unwatch(self, key: object) -> None:
        """End `watch`, if there was one."""

    def drop(self, driver: Any) -> None:
        """End the driver's transaction, and its connection at once. Never raises."""

    def is_open(self, driver: Any) -> bool:
        """Whether a transaction is open on the driver's connection."""

    def differs(self, connection: sa.Connection) -> bool:
        """Whether the connection leads to another store than a new one would."""

    def check_same(self, connection: sa.Connection) -> None:
        """Raise `StoreChanged` if the connection leads to another store than a new one would."""

    def changed(self, connection: sa.Connection) -> Callable[[], object]:
        """The store has changed: say so, and save what can be saved.

        The caller then drops all connections, and calls the function that this returns. Raises
        `QueueUnavailable` if the connections must not be dropped yet.
        """

    def store(self) -> object:
        """A value that is equal as long as the store is the same."""

    def permit_new(self) -> None:
        """Permit a missing store to be made, although it was there before."""

    def is_lost(self, connection: sa.Connection) -> bool:
        """Whether the connection has ended without us."""

    def committed(self, engine: sa.Engine) -> None:
        """A transaction that wrote has committed, and given its connection back. Never raises."""

    def keep_room(self, connection: sa.Connection) -> None:
        """The transaction is going to add mail. Raises `QueueFull` if only workers may write."""

    def give_room(self, driver: Any, error: BaseException) -> None:
        """A transaction has ended with `error`: if the disk is full, give up the reserved room.

        `driver` is its connection, None if it got none. Never raises.
        """

    def failed(self, engine: sa.Engine, error: BaseException) -> None:
        """A transaction has ended with `error`, and its connection is closed. Never raises."""

    def listen(
        self, connection: sa.Connection, channel: str, wait: Callable[[int | None], object]
    ) -> Iterator[bool]:
        """Yield True when others have written, and False from time to time.

        `wait` waits for a moment; less if the descriptor that it gets can be read.
        """

    def checkpoint(self, engine: sa.Engine, seconds: float) -> bool:
        """See `Database.checkpoint`."""

    def clock(self, connection: sa.Connection) -> float:
        """Seconds since 1970."""

    def tables(self, connection: sa.Connection) -> bool:
        """Whether there is a table of versions."""

    @property
    def look_interval(self) -> float:
        """Seconds between two looks at the version of the tables; 0 where a look is cheap."""

    def version_rows(self, connection: sa.Connection) -> Sequence[tuple[Any, ...]]:
        """The rows of the table of versions."""

    def lock_schema(self, connection: sa.Connection) -> None:
        """Keep others from changing the tables until the transaction ends."""

    def lock_room(self, connection: sa.Connection) -> None:
        """Keep others from adding mail to a limited queue until the transaction ends."""

    def reserve(self, connection: sa.Connection, table: sa.Table, count: int) -> Sequence[int]:
        """See `Database.reserve`."""

    def insert(
        self,
        connection: sa.Connection,
        table: sa.Table,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
    ) -> None:
        """See `Database.insert`."""

    def notify(self, connection: sa.Connection, channel: str) -> None:
        """See `Database.notify`."""

    def advice(self, read: Callable[[], AbstractContextManager[sa.Connection]]) -> Sequence[Advice]:
        """Advice for the administrator; `read` begins a transaction."""

    def translated(self, error: BaseException) -> TxmailError:
        """The error of ours for an error of the driver."""
