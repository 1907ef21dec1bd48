"""Decides which mail transaction is next on a connection. No I/O."""

from __future__ import annotations

from ..envelope import Envelope
from .connection_state import ConnectionState
from .progress import Progress, ProgressQueue, unsendable, verdict_on
from .refusals import Refusals
from .source import Source
from .streaming import Streaming
from .transactions import RECIPIENTS_LIMIT, ConnectionEnded, MailTransaction


class PlannedTransaction:
    """One mail transaction and the progress of the envelope it is for."""

    __slots__ = ("problem", "progress", "transaction")

    def __init__(self, progress: Progress, transaction: MailTransaction, problem: str = "") -> None:
        self.progress = progress
        self.transaction = transaction
        #: the reason why this server can never take the message; empty if it may
        self.problem = problem


class TransactionPlan:
    """The mail transactions of one call, in order, as far as a connection may carry them."""

    def __init__(
        self,
        source: Source,
        connection: ConnectionState,
        queue: ProgressQueue,
        refusals: Refusals,
    ) -> None:
        self._source = source
        self._connection = connection
        self._queue = queue
        self._refusals = refusals
        self._open_transaction = connection.open_transaction
        #: the first mail transaction of the next envelope, made while the server was busy
        self._prepared: PlannedTransaction | None = None
        #: messages that may still be begun here; None is any number
        self.messages_left = connection.messages_left
        #: True if the next mail transaction has to begin with RSET
        self.dirty = connection.dirty

    def next(self) -> PlannedTransaction | None:
        """The rest of a split message, else the next message that can be sent; None at the end."""
        queue = self._queue
        while not self._refusals.stopped:
            waiting = next((progress for progress in queue.open if progress.waiting), None)
            if waiting is not None:
                return self._begin(self._transaction_for(waiting))
            planned = self._take()
            if planned is None:
                return None
            queue.open.append(planned.progress)
            if not planned.problem:
                return self._begin(planned)
            verdict = verdict_on(planned.progress.envelope, self._connection.extensions)
            planned.progress.settle_rest(verdict, reason=planned.problem)
            self._refusals.add()
        return None

    def prepare(self) -> None:
        """Make the next envelope's mail transaction ahead of time."""
        if self._prepared is None and not self._refusals.stopped:
            self._prepared = self._take()

    def give_up_prepared(self) -> None:
        """Put a prepared envelope into the queue without sending it."""
        if self._prepared is not None:
            self._queue.open.append(self._prepared.progress)
            self._prepared = None

    def add_to(self, streaming: Streaming) -> bool:
        """Put the next envelope into the stream; False if it may not go there, or none is left."""
        found = self._source.take()
        if found is None:
            return False
        position, envelope = found
        passed = self._connection.passed(envelope)
        if not (streaming.takes(envelope, passed) and streaming.has_room(envelope)):
            self._source.put_back(position, envelope)
            return False
        kept = self._open_transaction
        if kept is not None:
            kept = self._take_open_transaction(envelope)
        if streaming.empty:
            streaming.clean, self.dirty = not self.dirty, False
        streaming.add(position, envelope, passed, kept)
        self._count()
        return True

    @property
    def limit_reached(self) -> bool:
        """True if more envelopes are left than this connection may carry."""
        if self.messages_left != 0 or self._refusals.stopped:
            return False
        found = self._source.take()
        if found is None:
            return False
        self._source.put_back(*found)
        return True

    def end(self) -> None:
        """End the call: a mail transaction that the preflight left open has to be reset."""
        self.dirty = self.dirty or self._open_transaction is not None

    def _take(self) -> PlannedTransaction | None:
        """The first mail transaction of the next envelope, None at the end."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            return prepared
        if self.messages_left == 0:
            return None
        found = self._source.take()
        if found is None:
            return None
        self._count()
        position, envelope = found
        progress = Progress(position, envelope, self._connection.passed(envelope))
        kept = self._take_open_transaction(envelope)
        if kept is None:
            return self._transaction_for(progress)
        for index in kept.recipients:
            progress.waiting.remove(index)
        return PlannedTransaction(progress, kept)

    def _count(self) -> None:
        if self.messages_left is not None:
            self.messages_left -= 1

    def _take_open_transaction(self, envelope: Envelope) -> MailTransaction | None:
        """Take the mail transaction that the preflight left open, if it is for `envelope`."""
        kept, self._open_transaction = self._open_transaction, None
        if kept is not None and kept.envelope is not envelope:
            self.dirty = True
            return None
        return kept

    def _transaction_for(self, progress: Progress) -> PlannedTransaction:
        waiting, extensions = progress.waiting, self._connection.extensions
        recipients = [waiting.popleft() for _ in range(min(len(waiting), RECIPIENTS_LIMIT))]
        transaction = MailTransaction(
            progress.envelope,
            recipients,
            extensions,
            data=self._connection.pipelining
            and not self._refusals.careful
            and (len(recipients) == 1 or progress.preflighted),
        )
        return PlannedTransaction(progress, transaction, unsendable(progress.envelope, extensions))

    def _begin(self, planned: PlannedTransaction) -> PlannedTransaction:
        """`planned`, with RSET before it if a mail transaction may be open."""
        if self.dirty:
            if self._connection.no_reset:
                raise ConnectionEnded("this server does not reset a mail transaction")
            planned.transaction.begin_with_reset()
            self.dirty = False
        return planned
