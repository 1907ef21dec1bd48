"""What a kind of database does in its own way: the methods that `Database` calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa

from ...exceptions import QueueUnavailable, TxmailError

#: The table of versions: older ones have it without its second column.
VERSION_ROWS = "SELECT * FROM txmail_version"
#: Why an engine of the application cannot be used.
AUTOCOMMIT = "it commits each statement by itself: an engine with transactions is needed"
#: Seconds that a look at the version of the tables counts for where each costs a round trip.
LOOK = 5.0


class CannotListen(QueueUnavailable):
    """Nobody will ever hear of mail over this connection: it has to be looked for."""


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
        """True if nobody is to wait any more."""

    def wait(self, descriptor: int | None = None) -> None:
        """Wait for a moment, until there is something to read from `descriptor`, or a ring."""


class StoreChanged(QueueUnavailable):
    """What a connection leads to is not the store at its URL any more."""


class Backend(Protocol):
    """What one kind of database does in its own way."""

    @property
    def name(self) -> str:
        """Printable, without secrets."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """The root of its driver's errors."""

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
        """A new engine for this process, or the application's."""

    def looking(self) -> sa.Engine | None:
        """An engine whose connections change nothing; None if none do that only read."""

    def begin_looking(self, connection: sa.Connection, seconds: float) -> None:
        """Begin on a connection of `looking`; wait for others for at most so many `seconds`."""

    def connect(self, engine: sa.Engine, seconds: float) -> sa.Connection:
        """A connection of `engine`, within so many `seconds`. Raises `QueueUnavailable`."""

    def check_place(self) -> None:
        """Raise `ConfigurationError` if a store that is not there yet could not be made."""

    def begin(
        self, connection: sa.Connection, seconds: float, *, write: bool, durable: bool
    ) -> None:
        """Begin, for a driver that has not begun."""

    def watch(self, key: object, connection: sa.Connection, seconds: float) -> None:
        """End the connection, if it could wait for ever, unless `unwatch` comes before."""

    def unwatch(self, key: object) -> None:
        """The end of `watch`, if there was one."""

    def drop(self, driver: Any) -> None:
        """End the driver's connection at once, and before that its transaction. Never raises."""

    def is_open(self, driver: Any) -> bool:
        """Whether a transaction is open on the driver's connection."""

    def differs(self, connection: sa.Connection) -> bool:
        """Whether the connection leads to another store than a new one would."""

    def check_same(self, connection: sa.Connection) -> None:
        """Raise `StoreChanged` if it does."""

    def changed(self, connection: sa.Connection) -> Callable[[], object]:
        """It does, and is going to be dropped with all others: say so, and save what can be saved.

        Returns what is to be called when they are. Raises `QueueUnavailable` if they must not be
        yet.
        """

    def store(self) -> object:
        """Something that is equal as long as the store is the same."""

    def permit_new(self) -> None:
        """Let a missing store be made, although it was there before."""

    def is_lost(self, connection: sa.Connection) -> bool:
        """Whether the connection has ended by itself."""

    def committed(self, engine: sa.Engine) -> None:
        """A transaction that wrote has ended well, and its connection is free. Never raises."""

    def keep_room(self, connection: sa.Connection) -> None:
        """The transaction is going to add mail. Raises `QueueFull` if only workers may write."""

    def give_room(self, driver: Any, error: BaseException) -> None:
        """A transaction has ended with `error`: if the disk is full, give up the room kept for it.

        `driver` is its connection, None if it got none. Never raises.
        """

    def failed(self, engine: sa.Engine, error: BaseException) -> None:
        """A transaction has ended with `error`, and its connection is closed. Never raises."""

    def listen(
        self, connection: sa.Connection, channel: str, wait: Callable[[int | None], object]
    ) -> Iterator[bool]:
        """True when others have written, False from time to time.

        `wait` waits for a moment, but no longer than it takes until a descriptor can be read.
        """

    def checkpoint(self, engine: sa.Engine, seconds: float) -> bool:
        """See `Database.checkpoint`."""

    def clock(self, connection: sa.Connection) -> float:
        """Seconds since 1970."""

    def tables(self, connection: sa.Connection) -> bool:
        """Whether there is a table of versions."""

    @property
    def look_interval(self) -> float:
        """Seconds that a look at the version of the tables counts for: none where it is cheap."""

    def version_rows(self, connection: sa.Connection) -> Sequence[tuple[Any, ...]]:
        """What is in the table of versions."""

    def lock_schema(self, connection: sa.Connection) -> None:
        """Keep others from changing the tables until the transaction ends."""

    def lock_room(self, connection: sa.Connection) -> None:
        """Keep others from writing what counts against a limit until the transaction ends."""

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
        """What an administrator should know of it; `read` begins a transaction."""

    def translated(self, error: BaseException) -> TxmailError:
        """What to raise for an error of the driver."""
