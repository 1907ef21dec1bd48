"""The part of a queue that belongs to a process: what a batch needs of its process.

A process decides about the batches that it has opened, and says from time to time that it lives.
It finishes in the background what a transaction could not finish, and in each round looks for
batches of dead processes. A forked child decides about none of its parent's batches.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from ..common.per_process import PerProcess
from ..exceptions import QueueFull
from ..outcome import Outcome
from .background import ROUND, Background
from .database.database import Database
from .inspect import count_waiting
from .notifier import Notifier
from .recovery import Decision, Resolver
from .schema import batch
from .sql.publish import CHUNK, Store
from .witnesses import Witnesses

#: Seconds between two chunks of a large batch, so that other writers get a turn.
_BREATH = 0.005


class _State:
    """The state that one process has of a queue."""

    def __init__(self) -> None:
        #: the numbers of the batches that it decides about, and the keys of its workers
        self.open: set[int] = set()
        #: when it has last said that it lives, by `time.monotonic`
        self.beat: float | None = None


class Host:
    """The process in which a queue is used. Shared by threads; a child has a state of its own."""

    def __init__(
        self,
        database: Database,
        witnesses: Witnesses,
        *,
        in_session: bool,
        hold_doubt: bool,
        doubt_retries: int,
        limit: int | None,
    ) -> None:
        """`hold_doubt`, `doubt_retries` and `limit` are settings of `Queue`.

        With `in_session`, rows are written by the application's transactions.
        """
        self.database = database
        self.store = Store(database)
        self.hold_doubt = hold_doubt
        self._witnesses = witnesses
        self._in_session = in_session
        self._doubt_retries = doubt_retries
        self.limit = limit
        self._states = PerProcess(_State)
        me = weakref.ref(self)
        self.background = Background(
            database.name, lambda: _round(me), lambda: bool((host := me()) and host.open)
        )
        self.notifier = Notifier(database, self.background)

    # -- what this process decides about

    @property
    def open(self) -> set[int]:
        """The numbers of the batches that this process decides about, and keys of its workers."""
        return self._states.get().open

    def opened(self, number: int) -> None:
        """This process decides about batch `number`, until `closed`."""
        first = not self.open
        self.open.add(number)
        # A database in memory ends with its process: nobody else reads its heartbeat.
        if first and not self.database.is_shared:
            self.background.start()

    def closed(self, number: int) -> None:
        """This process has decided about batch `number`."""
        self.open.discard(number)

    # -- heartbeats

    def beat(self, connection: sa.Connection, now_ms: int) -> None:
        """Say that this process lives, unless it has said so a moment ago."""
        mine, moment = self._states.get(), time.monotonic()
        if mine.beat is None or moment - mine.beat > ROUND / 2:
            self.store.beat(connection, now_ms)
            mine.beat = moment

    def unbeaten(self) -> None:
        """Say it again with the next `beat`: what the last one wrote may have been rolled back."""
        self._states.get().beat = None

    def beat_soon(self) -> None:
        """Say it in the background, if this process never has: for transactions that take long.

        Other transactions that say the same would wait for such a transaction.
        """
        mine = self._states.get()
        if mine.beat is None and not self.database.is_shared:
            mine.beat = time.monotonic()
            self.background.do(self._beat)

    def _beat(self) -> None:
        with self.database.write(durable=False) as connection:
            self.store.beat(connection, self.database.now_ms(connection))

    # -- what batches ask for

    def check_room(self, connection: sa.Connection, more: int) -> None:
        """Raise `QueueFull` if there is no room for `more` deliveries."""
        if not self._in_session:
            self.database.keep_room(connection)
        if self.limit is not None:
            if not self._in_session:  # an application's transaction may take long
                self.database.lock_room(connection)
            if count_waiting(connection, self.limit + 1) + more > self.limit:
                raise QueueFull(
                    f"more than {self.limit} deliveries would wait, which is the queue's limit"
                )

    def promote_later(self, number: int) -> None:
        """Make a large batch ready in steps, in the background."""
        self.background.do(lambda: self.promote(number))

    def promote(self, number: int) -> None:
        """Make what is left of the committed batch `number` ready, in steps."""
        done = False
        while not done:
            with self.database.write() as connection:
                done = self.store.promote(
                    connection, number, self.database.now_ms(connection), CHUNK
                )
                if done:
                    self.notifier.announce(connection)
            self.notifier.wake()
            if not done:
                time.sleep(_BREATH)

    def abandon(
        self, number: int, outcomes: list[tuple[int, Outcome]], unsent: Sequence[int] = ()
    ) -> None:
        """Leave batch `number` to the resolver: its transaction has ended, nobody knows how.

        `outcomes` are those of deliveries that it had sent before; `unsent` has the ids of
        deliveries that it was going to send, and has not sent.
        """
        with self.database.write() as connection:
            changed = connection.execute(
                batch.update().where(batch.c.id == number).values(process=None)
            )
            if changed.rowcount:
                now_ms = self.database.now_ms(connection)
                self.store.settle(connection, outcomes, now_ms, hold_doubt=self.hold_doubt)
                self.store.mark_begun(connection, unsent, False)
        self.closed(number)

    # -- recovery

    @property
    def resolver(self) -> Resolver:
        """The resolver, with the witnesses that are known now."""
        return Resolver(
            self.store,
            self._witnesses.known,
            hold_doubt=self.hold_doubt,
            retries=self._doubt_retries,
        )

    def resolve(self) -> list[Decision]:
        """See `Queue.resolve`."""
        resolver = self.resolver
        resolver.bury()
        return resolver.resolve()

    def round(self) -> None:
        """Do what a process does for its queue from time to time."""
        self.database.look_again()
        if self.open:
            self._beat()
        self.resolve()
        self.database.checkpoint()


def _round(host: Callable[[], Host | None]) -> None:
    found = host()
    if found is not None:
        found.round()
