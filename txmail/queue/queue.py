"""`Queue`: the durable store of an application's mail."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Self, SupportsIndex

from zope.interface import implementer

from ..address import plain_text
from ..common.process_wide import is_of_a_database, the_one
from ..exceptions import ConfigurationError
from ..interfaces import IBatch, IQueue, IWitness
from ..secret import Secret
from .database.database import Database
from .host import Host
from .inspect import read_counts
from .own_batch import OwnBatch
from .recovery import Decision
from .retry import DOUBT_RETRIES
from .sql.publish import Store
from .witnesses import FindWitnesses, Witnesses

#: What becomes of mail that may have been sent.
ON_DOUBT = ("retry", "hold")
#: Bits of a batch's number: a signed integer of 64 bits has room for so many.
NUMBER_BITS = 63


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
        _check_settings(on_doubt, doubt_retries, limit)
        database = url if isinstance(url, Database) else Database.from_url(url, clock=clock)
        self._url = (
            Secret(url) if isinstance(url, str) else url if isinstance(url, Secret) else None
        )
        self.on_doubt = on_doubt
        #: how often mail in doubt is tried again
        self.doubt_retries = doubt_retries
        #: when a worker of this process has last looked, by `time.monotonic`; None if none has
        self.attended: float | None = None
        self._witnesses = Witnesses(witnesses)
        #: what this process does for the queue
        self.host = Host(
            database,
            self._witnesses,
            in_session=self.in_session,
            hold_doubt=on_doubt == "hold",
            doubt_retries=doubt_retries,
            limit=limit,
        )

    @property
    def name(self) -> str:
        """See `IQueue`."""
        return self.database.name

    @property
    def database(self) -> Database:
        """The database that the queue is in."""
        return self.host.database

    @property
    def limit(self) -> int | None:
        """How many deliveries may wait; None if the disk is the limit."""
        return self.host.limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.host.limit = limit

    @property
    def store(self) -> Store:
        """The statements that write batches."""
        return self.host.store

    @property
    def witnesses(self) -> list[IWitness]:
        """See `IQueue`."""
        return self._witnesses.known

    @witnesses.setter
    def witnesses(self, witnesses: Iterable[IWitness]) -> None:
        self._witnesses.known[:] = list(witnesses)

    @property
    def find_witnesses(self) -> FindWitnesses | None:
        """Finds the witnesses of databases that take part in a transaction."""
        return self._witnesses.find

    @find_witnesses.setter
    def find_witnesses(self, find: FindWitnesses | None) -> None:
        self._witnesses.find = find

    def bind(self, session: Any) -> Self:
        """See `IQueue`: rows do not go through a session here."""
        return self

    def begin(self, transaction: Any, transaction_manager: Any) -> IBatch:
        """See `IQueue`."""
        number = secrets.randbits(NUMBER_BITS)
        told = self.witnesses if transaction is not None else []
        for witness in told:
            witness.begin(transaction, number)
        return OwnBatch(self.host, number, told, self._witnesses, transaction, transaction_manager)

    def close(self) -> None:
        """See `IQueue`."""
        self.host.background.rest()
        self.database.close()

    # -- workers

    def subscribe(self, listener: Callable[[], object], *, listen: bool = True) -> None:
        """Call `listener` when there is mail, and look after the queue meanwhile: a worker's part.

        Any thread may call it, and it must not block. Without `listen`, it does not hear of the
        mail of other processes.
        """
        self.host.opened(id(listener))
        self.host.notifier.subscribe(listener, listen=listen)

    def unsubscribe(self, listener: Callable[[], object]) -> None:
        """The end of `subscribe`."""
        self.host.closed(id(listener))
        self.host.notifier.unsubscribe(listener)
        if not self.host.notifier.listeners:
            self.attended = None

    # -- recovery

    def resolve(self) -> list[Decision]:
        """Decide about what dead processes have: the batches, by what their witnesses say.

        What they had leased is ready again, or in doubt if they had begun to send it. Every process
        that uses the queue does this from time to time; a worker, too. Raises `QueueUnavailable`.
        """
        return self.host.resolve()

    def resolve_soon(self) -> None:
        """Resolve in the background, if a process has died that has batches here.

        Raises `QueueUnavailable`.
        """
        if self.host.resolver.is_needed():
            self.host.background.do(self.resolve)

    def decide(self, number: int, *, committed: bool, actor: str) -> None:
        """A person says what became of the transaction of an ``unknown`` batch.

        `committed` publishes its mail, otherwise it is thrown away. `actor` is who says so.
        Raises `IllegalMove` if there is nothing to decide about, `QueueUnavailable`.
        """
        self.host.resolver.decide(number, committed=committed, actor=actor)

    # -- asking

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what this process still has to write is written; True if it is.

        `timeout` is in seconds.
        """
        return self.host.background.flush(timeout)

    def counts(self) -> dict[str, int]:
        """How many deliveries there are in each state that has any.

        What is ``staged`` is not in the queue yet: its transaction has not ended, or nobody knows
        how. Once it has committed it counts as ``ready``, and once it has not, not at all.
        """
        with self.database.read() as connection:
            return read_counts(connection)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """For pickle: a queue in a file. Raises `ConfigurationError` for that of a server.

        All who load it from a ZODB in one process have the same. Witnesses stay behind: those of
        ZODB are found again with the first transaction that takes part, others have to be named.
        """
        if self._url is None or not self.database.is_file:
            raise ConfigurationError(
                "a mailer can be pickled only if its queue is a file of its own", field="queue"
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


def _check_settings(on_doubt: str, doubt_retries: int, limit: int | None) -> None:
    """Raise `ConfigurationError` for a setting of a queue that has no meaning."""
    if on_doubt not in ON_DOUBT:
        raise ConfigurationError(
            f"this is not one of {', '.join(ON_DOUBT)}", field="on_doubt", value=on_doubt
        )
    for field, number, least in (("doubt_retries", doubt_retries, 0), ("queue_limit", limit, 1)):
        if number is None and field == "queue_limit":
            continue
        if isinstance(number, bool) or not isinstance(number, int):
            raise ConfigurationError("this is not a whole number", field=field)
        if number < least:
            raise ConfigurationError(f"the least is {least}", field=field)


def _the_one(
    kind: type[Queue], url: str, options: dict[str, Any], first: Queue | None = None
) -> Queue:
    """The queue that a process has for these settings: the first to be stored or loaded."""
    key = (kind, url, *sorted(options.items()))
    return the_one(key, lambda: first if first is not None else kind(url, **options))
