"""`Queue`: the durable store of an application's mail, and what its batches share."""

from __future__ import annotations

import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self, SupportsIndex

import sqlalchemy as sa
from zope.interface import implementer

from ..address import plain_text
from ..common.logs import quiet_logger
from ..common.process_wide import is_of_a_database, the_one
from ..exceptions import ConfigurationError
from ..interfaces import IBatch, IQueue, IWitness
from ..outcome import Outcome
from ..secret import Secret
from .background import ROUND, Upkeep
from .batch import OwnBatch
from .database.database import Database
from .database.listener import Listening
from .recovery import Decision, Resolver
from .schema import batch
from .sql.claim import DOUBT_RETRIES
from .sql.publish import CHUNK, Store

log = quiet_logger("txmail.queue")

#: What becomes of mail that may have been sent.
ON_DOUBT = ("retry", "hold")
#: The channel of PostgreSQL on which workers are told that there is mail.
CHANNEL = "txmail"
#: Bits of a batch's number: what a signed integer of 64 bits has room for.
NUMBER_BITS = 63
#: Seconds between two chunks of a large batch, so that others get to write.
_BREATH = 0.005


#: The witnesses of some data managers, without those that are known.
FindWitnesses = Callable[[Sequence[Any], Sequence[IWitness]], Iterable[IWitness]]


class _Process:
    """What one process has of a queue."""

    def __init__(self) -> None:
        #: its batches that are open
        self.open: set[int] = set()
        #: when it has said that it lives, by `time.monotonic`
        self.beat: float | None = None


@implementer(IQueue)
class Queue:
    """A queue in a database of its own. See `IQueue`.

    >>> import tempfile, transaction
    >>> from txmail import Mailer, Message, transport_from_url
    >>> folder = tempfile.TemporaryDirectory()
    >>> queue = Queue(f"sqlite:///{folder.name}/mail.db")
    >>> mailer = Mailer(transport_from_url("memory:"), queue=queue)
    >>> with transaction.manager:
    ...     message_id = mailer.enqueue(
    ...         Message("News", ["ann@example.com"], "...", sender="shop@example.com"))
    >>> queue.counts()
    {'ready': 1}
    >>> queue.close(); folder.cleanup()
    """

    #: see `IQueue`
    in_session = False

    def __init__(
        self,
        url: str | Secret | Database,
        *,
        witnesses: Iterable[IWitness] = (),
        on_doubt: str = "retry",
        doubt_retries: int = DOUBT_RETRIES,
        limit: int | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Nothing is opened before it is needed. Raises `ConfigurationError`.

        `url` is ``sqlite:////absolute/path`` or ``postgresql://...``. `witnesses` are those of the
        databases that change in the same transactions. `on_doubt` says what becomes of mail that
        may have been sent: ``retry``, later and flagged, or ``hold`` for a person. It is retried
        `doubt_retries` times, then it waits for a person. `limit` is how many deliveries may wait;
        by default the disk is the limit. `clock`, in seconds since 1970, is for tests; the
        database's own is used otherwise.
        """
        on_doubt = plain_text(on_doubt)
        if on_doubt not in ON_DOUBT:
            raise ConfigurationError(
                f"one of {', '.join(ON_DOUBT)} is needed", field="on_doubt", value=on_doubt
            )
        if isinstance(doubt_retries, bool) or not isinstance(doubt_retries, int):
            raise ConfigurationError("a number is needed", field="doubt_retries")
        if doubt_retries < 0:
            raise ConfigurationError("0 or a number above it is needed", field="doubt_retries")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise ConfigurationError("a number is needed", field="queue_limit")
        if limit is not None and limit < 1:
            raise ConfigurationError("a number above 0 is needed", field="queue_limit")
        database = url if isinstance(url, Database) else Database.from_url(url, clock=clock)
        self._url = (
            Secret(url) if isinstance(url, str) else url if isinstance(url, Secret) else None
        )
        self.database = database
        self.store = Store(database)
        self.witnesses: list[IWitness] = list(witnesses)
        self.on_doubt = on_doubt
        #: how often what may have been sent is tried again
        self.doubt_retries = doubt_retries
        self.limit = limit
        #: finds the witnesses of those who take part in a transaction, by their data managers
        self.find_witnesses: FindWitnesses | None = None
        #: those that it has found
        self._found: list[IWitness] = []
        #: called when there is mail, by whatever thread has published it: must not block
        self.listeners: list[Callable[[], object]] = []
        #: when a worker of this process has last looked, by `time.monotonic`; None if none has
        self.attended: float | None = None
        self._listening = Listening(database, CHANNEL, self.wake)
        # By pid: a forked child decides about none of its parent's batches.
        self._processes: dict[int, _Process] = {}
        mine = weakref.ref(self)
        self.upkeep = Upkeep(
            database.name, lambda: _round(mine), lambda: bool((q := mine()) and q._mine.open)
        )

    @property
    def name(self) -> str:
        """See `IQueue`."""
        return self.database.name

    def bind(self, session: Any) -> Self:
        """See `IQueue`: rows do not go through a session here."""
        return self

    def begin(self, transaction: Any, transaction_manager: Any) -> IBatch:
        """See `IQueue`."""
        number = secrets.randbits(NUMBER_BITS)
        witnesses = self.witnesses if transaction is not None else []
        for witness in witnesses:
            witness.begin(transaction, number)
        return OwnBatch(self, number, witnesses, transaction, transaction_manager)

    def close(self) -> None:
        """See `IQueue`."""
        self.upkeep.rest()
        self.database.close()

    def witnesses_of(self, resources: Sequence[Any]) -> list[IWitness]:
        """All witnesses, now that `resources` take part; those of databases are found here."""
        find = self.find_witnesses
        for witness in () if find is None else find(resources, self.witnesses):
            # One of that name that was found before is of a database that was opened anew.
            others = [w for w in self.witnesses if w.name != witness.name or w not in self._found]
            if all(other.name != witness.name for other in others):
                self.witnesses[:] = [*others, witness]
                self._found.append(witness)
        return self.witnesses

    # -- what batches share

    def opened(self, number: int) -> None:
        """This process decides about batch `number` from now on."""
        first = not self._mine.open
        self._mine.open.add(number)
        if first:
            self.upkeep.start()

    def closed(self, number: int) -> None:
        """It has decided."""
        self._mine.open.discard(number)

    @property
    def _mine(self) -> _Process:
        return self._processes.setdefault(os.getpid(), _Process())

    def beat(self, connection: sa.Connection, now: int) -> None:
        """Say that this process lives, unless it has said so a moment ago."""
        mine, moment = self._mine, time.monotonic()
        if mine.beat is None or moment - mine.beat > ROUND / 2:
            self.store.beat(connection, now)
            mine.beat = moment

    def unbeaten(self) -> None:
        """What `beat` has written may have been rolled back."""
        self._mine.beat = None

    def beat_soon(self) -> None:
        """Say it in the background, if it never has: for transactions that may take long.

        Others that say the same would wait for them.
        """
        mine = self._mine
        if mine.beat is None:
            mine.beat = time.monotonic()
            self.upkeep.do(self._beat)

    def _beat(self) -> None:
        with self.database.write(durable=False) as connection:
            self.store.beat(connection, self.database.now(connection))

    def check_room(self, connection: sa.Connection, more: int) -> None:
        """Raise `QueueFull` if there is no room for `more` deliveries."""
        if not self.in_session:
            self.database.keep_room(connection)
        if self.limit is not None:
            if not self.in_session:  # an application's transaction may last
                self.database.lock_room(connection)
            self.store.check_room(connection, self.limit, more)

    def announce(self, connection: sa.Connection) -> None:
        """Tell the workers of other processes, when the transaction of `connection` commits."""
        self.database.notify(connection, CHANNEL)

    def wake(self) -> None:
        """Tell the workers of this process that there is mail. A listener that raises is logged."""
        for listener in list(self.listeners):
            try:
                listener()
            except Exception:
                log.exception("%s: a listener failed", self.name)

    def attend(self, listener: Callable[[], object], *, listen: bool = True) -> None:
        """Call `listener` when there is mail, and look after the queue meanwhile: a worker's part.

        It may be called by any thread, and must not block. Without `listen`, it does not hear of
        the mail of other processes.
        """
        self.listeners.append(listener)
        self.opened(id(listener))
        if listen:
            self._listening.start()

    def neglect(self, listener: Callable[[], object]) -> None:
        """The end of `attend`."""
        self.listeners.remove(listener)
        if not self.listeners:
            self.attended = None
        self.closed(id(listener))
        if not self.listeners:
            self._listening.stop()

    def announce_later(self) -> None:
        """Tell all workers, without making anybody wait for it."""
        self.wake()
        if not self.database.is_sqlite:
            self.upkeep.do(self._announce)

    def _announce(self) -> None:
        with self.database.write(durable=False) as connection:
            self.announce(connection)

    def promote_later(self, number: int) -> None:
        """Make a large batch ready in steps, in the background."""
        self.upkeep.do(lambda: self.promote(number))

    def promote(self, number: int) -> None:
        """Make what is left of the committed batch `number` ready, in steps."""
        done = False
        while not done:
            with self.database.write() as connection:
                done = self.store.promote(connection, number, self.database.now(connection), CHUNK)
                if done:
                    self.announce(connection)
            self.wake()
            if not done:
                time.sleep(_BREATH)

    def abandon(
        self, number: int, outcomes: list[tuple[int, Outcome]], unsent: Sequence[int] = ()
    ) -> None:
        """This process does not know how the transaction of batch `number` ended.

        `outcomes` are of what it had sent before; `unsent`, the ids of what it has not sent, after
        all.
        """
        with self.database.write() as connection:
            changed = connection.execute(
                batch.update().where(batch.c.id == number).values(process=None)
            )
            if changed.rowcount:
                now = self.database.now(connection)
                self.store.settle(connection, outcomes, now, hold_doubt=self.on_doubt == "hold")
                self.store.mark_begun(connection, unsent, False)
        self.closed(number)

    # -- recovery

    def resolve(self) -> list[Decision]:
        """Decide about what dead processes have: the batches, by what their witnesses say.

        What they had leased is ready again, or in doubt if they had begun to send it. Every process
        that uses the queue does this from time to time; a worker, too. Raises `QueueUnavailable`.
        """
        self._resolver.bury()
        return self._resolver.resolve()

    def resolve_soon(self) -> None:
        """Resolve in the background, if a process has died that has batches here.

        Raises `QueueUnavailable`.
        """
        if self._resolver.is_needed():
            self.upkeep.do(self.resolve)

    @property
    def _resolver(self) -> Resolver:
        return Resolver(
            self.store,
            self.witnesses,
            hold_doubt=self.on_doubt == "hold",
            retries=self.doubt_retries,
        )

    def decide(self, number: int, *, committed: bool, actor: str) -> None:
        """A person says what became of the transaction of an ``unknown`` batch.

        `committed` publishes its mail, otherwise it is thrown away. `actor` is who says so.
        Raises `IllegalMove` if there is nothing to decide about, `QueueUnavailable`.
        """
        self._resolver.decide(number, committed=committed, actor=actor)

    def _round(self) -> None:
        self.database.look_again()
        if self._mine.open:
            self._beat()
        self.resolve()
        self.database.checkpoint()

    # -- asking

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what this process still has to write is written; True if it is.

        `timeout` is in seconds.
        """
        return self.upkeep.flush(timeout)

    def counts(self) -> dict[str, int]:
        """How many deliveries there are in each state that has any.

        What is ``staged`` is not in the queue yet: its transaction has not ended, or nobody knows
        how. Once it has committed it counts as ``ready``, and once it has not, not at all.
        """
        with self.database.read() as connection:
            return self.store.counts(connection)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """For pickle: a queue in a file. Raises `ConfigurationError` for that of a server.

        All who load it from a ZODB in one process have the same. Witnesses stay behind: those of
        ZODB are found again with the first transaction that takes part, others have to be named.
        """
        if self._url is None or not self.database.is_sqlite:
            raise ConfigurationError(
                "a mailer whose queue is not a file of its own cannot be pickled", field="queue"
            )
        options: dict[str, Any] = {
            "on_doubt": self.on_doubt,
            "doubt_retries": self.doubt_retries,
            "limit": self.limit,
        }
        url = self._url.reveal("queue")
        if not is_of_a_database(protocol):
            return partial(type(self), **options), (url,)
        _the_one(type(self), url, options, self)
        return _the_one, (type(self), url, options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def _round(queue: Callable[[], Queue | None]) -> None:
    found = queue()
    if found is not None:
        found._round()


def _the_one(
    kind: type[Queue], url: str, options: dict[str, Any], first: Queue | None = None
) -> Queue:
    """The queue that a process has for these settings: the first to be stored or loaded."""
    key = (kind, url, *sorted(options.items()))
    return the_one(key, lambda: first if first is not None else kind(url, **options))
