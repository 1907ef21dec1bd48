"""The heart: one data manager per transaction, which does two-phase commit and nothing else.

========================  ======================================================================
`add` (``send()``)        buffer; join the transaction
before-commit hook, last  connect, ask the server, write to the queue: all that can be taken back
`tpc_begin`               freeze the buffer
`commit`                  do for later mail what the hook did
`tpc_vote`, last of all   send
`tpc_finish`              publish what the queue has; give the connections back
`abort`, `tpc_abort`      forget
========================  ======================================================================

Mail is sent in the vote: an error in `tpc_finish` would leave the managers before ours committed
and those behind it aborted. It is the *last* vote, because nobody can take back what is sent: every
manager that could still say no must have spoken. By then a one-phase SQL session has committed, so
the server is asked, in a preflight, before all votes.

What becomes of the mail is noted in a `CommitReport`; `txmail.delivery.telling` tells it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from transaction.interfaces import DoomedTransaction, IDataManagerSavepoint, NoTransaction
from zope.interface import implementer

from .budget import Budget
from .common.per_process import this_process
from .common.session_managers import committed_early, with_work
from .common.shown import echo
from .common.transaction_internals import Status, begin_level, has_voted, resources
from .delivery import unsent
from .delivery.batches import Batches
from .delivery.commit_error import delivery_error, note, note_unless_told, queue_error
from .delivery.ending import COMMITTED, NOT_COMMITTED, NOT_KNOWN, Ending
from .delivery.last_hook import LastHook
from .delivery.private_transaction import PrivateTransactionManager
from .delivery.report import BufferedSubmission, CommitReport, Line
from .delivery.runs import Runs
from .delivery.telling import (
    accepted,
    tell_mailers,
    tell_queued,
    tell_sent_for_nothing,
    tell_settled,
)
from .envelope import Envelope
from .events import Events, VotesAfterUs
from .exceptions import (
    DeliveryError,
    QueueInDoubt,
    QueueUnavailable,
    SchemaError,
    TransactionClosed,
)
from .interfaces import IDeliveryMethod, IMailDataManager, IQueue
from .submission import KnownOutcomes, Listener, StagedSubmission, Submission

#: Votes and finishes go by sort key. A manager that sorted early would send before a database that
#: then says no. ZODB sorts by storage name, two-phase zope.sqlalchemy as ``sqlalchemy.twophase:``
#: and one-phase zope.sqlalchemy as ``~sqlalchemy:``; ours comes after all of them.
SORT_KEY = "~~txmail"

#: The key of our manager in the data of the transaction. The data are kept by its `id`, so it lives
#: as long as the module.
_KEY = object()


def join(transaction_manager: Any) -> MailDataManager:
    """The manager of the current transaction of `transaction_manager`, joined to it.

    Raises `TransactionClosed` where no commit will follow, and whatever the transaction manager
    raises if there is no transaction (`NoTransaction` in explicit mode).
    """
    transaction = transaction_manager.get()
    try:
        manager: MailDataManager = transaction.data(_KEY)
    except KeyError:
        manager = MailDataManager(transaction_manager)
        transaction.set_data(_KEY, manager)
    manager.join(transaction)
    return manager


def joined(transaction_manager: Any) -> MailDataManager | None:
    """The manager of the current transaction, or None."""
    try:
        manager: MailDataManager = transaction_manager.get().data(_KEY)
    except (NoTransaction, KeyError):
        return None
    return manager


@implementer(IDataManagerSavepoint)
class MailSavepoint:
    """The length of the buffer; rolling back, once or again, truncates it."""

    def __init__(self, buffered: list[BufferedSubmission]) -> None:
        self._buffered = buffered
        self._length = len(buffered)

    def rollback(self) -> None:
        """See `IDataManagerSavepoint`."""
        del self._buffered[self._length :]


@implementer(IMailDataManager)
class MailDataManager:
    """Our participant in one transaction. See `IMailDataManager`; made by `join` only."""

    def __init__(self, transaction_manager: Any) -> None:
        self.transaction_manager = transaction_manager
        self._is_private = isinstance(transaction_manager, PrivateTransactionManager)
        self._report = CommitReport()
        self._budget = Budget()
        self._runs = Runs(self._budget)
        self._batches = Batches(self._budget)
        self._hook = LastHook()
        self._joined = False
        self._transaction: weakref.ref[Any] | None = None
        #: why no mail can be added any more; empty while it can
        self._closed = ""
        #: True if the application has tried to commit; True if it aborts
        self._tried = self._aborting = False
        #: True if a commit has failed in our hook, and the mailers know
        self._refused = False
        #: True if an exception that is not ours has ended our hook
        self._broken = False
        #: True once we have said yes; from our `tpc_finish` on; once all is done
        self._voted = self._finishing = self._finished = False
        #: True if the reply to the COMMIT was lost that publishes the mail in its queue
        self._publication_in_doubt = False
        #: what is out: told again if the transaction fails all the same
        self._sent: list[tuple[Events, str]] = []
        #: True once a warning has said that nobody has committed this mail
        self._warned = self._is_private
        #: a forked child does not warn of the mail of its parent
        self._process = this_process()
        if not self._is_private:
            unsent.watch(self)

    def __del__(self) -> None:
        report = getattr(self, "_report", None)
        if report is not None and report.buffered:
            unsent.warn(self, "the transaction was dropped")

    # -- joining and buffering

    def join(self, transaction: Any) -> None:
        """Take part in `transaction`; once more, if rolling back a savepoint has ended that."""
        status = transaction.status
        if status is Status.COMMITFAILED:
            raise TransactionClosed(
                "mail cannot be sent here: the transaction has failed; call abort() to begin anew"
            )
        if self._closed or status is Status.COMMITTED:
            raise TransactionClosed(
                f"mail cannot be sent here: {self._closed or f'the status is {echo(status)}'}; "
                "no commit will follow that could send it"
            )
        if not self._joined:
            if status is Status.COMMITTING:
                raise TransactionClosed(
                    "mail cannot be sent here: the commit has begun, and there was no mail before"
                )
            transaction.join(self)
            self._joined = True
        if self._transaction is None:
            transaction.addBeforeAbortHook(self._before_abort)
            self._transaction = weakref.ref(transaction)
        self._hook.register(transaction, self._before_commit)

    def add(self, method: IDeliveryMethod, submission: Submission, listener: Listener) -> None:
        """See `IMailDataManager`."""
        if method.queue is not None:
            transaction = None if self._is_private else self.transaction_manager.get()
            self._batches.open(method.queue, transaction, self.transaction_manager)
        self._report.buffered.append(BufferedSubmission(method, submission, listener))

    def buffered(self, *methods: IDeliveryMethod) -> list[Submission]:
        """What waits for the commit and one of `methods`."""
        return [each.submission for each in self._report.buffered if each.method in methods]

    def pending(self, listener: Listener) -> tuple[Envelope, ...]:
        """See `IMailDataManager`."""
        buffered = self._report.buffered
        return tuple(each.submission.envelope for each in buffered if each.listener == listener)

    def uncommitted(self) -> tuple[str, ...]:
        """See `txmail.delivery.unsent.Holder`."""
        if self._process != this_process() or self._warned or self._refused or self._is_tried():
            return ()
        found = tuple(
            each.submission.envelope.message_id
            for each in self._report.buffered
            if each.method.is_missed_unsent
        )
        self._warned = bool(found)
        return found

    def savepoint(self) -> MailSavepoint:
        """See `ISavepointDataManager`."""
        return MailSavepoint(self._report.buffered)

    def sortKey(self) -> str:
        """See `IDataManager`."""
        return SORT_KEY

    # -- everything that can be taken back

    def _before_commit(self, transaction: Any) -> None:
        """The hook: runs last, while no database holds its commit lock."""
        self._tried = True
        self._report.begin()
        if self._hook.goes_behind(transaction, self._before_commit):
            return
        # `transaction` looks before it calls the hooks, and not after
        if self._report.buffered and transaction.isDoomed():
            raise DoomedTransaction("transaction doomed, cannot commit")
        try:
            self._prepare(transaction, wait=True)
        except BaseException as error:
            # A driver may have turned an interrupt into an error of the queue.
            refused = isinstance(error, DeliveryError) and not isinstance(error, QueueUnavailable)
            self._broken = not refused
            # The transaction is still active: the application may send more, and commit it.
            self.notice()
            self._tried, self._refused = False, True
            raise

    def _before_abort(self) -> None:
        self._aborting = True
        self._closed = "the transaction is being aborted"
        if level := begin_level():
            unsent.warn(self, "begin() has aborted their transaction", level)

    def tpc_begin(self, transaction: Any) -> None:
        """See `IDataManager`: freeze."""
        self._tried = True
        self._closed = "the commit has begun"
        self._report.begin()
        subscribers = dict.fromkeys(each.method.events for each in self._report.buffered)
        later = [key for manager in resources(transaction) if (key := manager.sortKey()) > SORT_KEY]
        for key in later:
            for events in subscribers:
                events.emit(VotesAfterUs(key))

    def commit(self, transaction: Any) -> None:
        """See `IDataManager`: ask about mail that came after the hook."""
        self._prepare(transaction, wait=False)

    def _prepare(self, transaction: Any, wait: bool) -> None:
        """Have every delivery method do what can be taken back; raise what forbids the commit."""
        staged: dict[IQueue, list[StagedSubmission]] = {}
        try:
            for method, submissions in self._report.by_method().items():
                run = self._runs.of(method)
                refusals = run.prepare(submissions, wait)
                if refusals:
                    self._runs.abort()
                    self._report.refuse(submissions, refusals)
                    raise self._delivery_error()
                if method.queue is not None:
                    staged.setdefault(method.queue, []).extend(run.to_stage(submissions))
            self._stage(transaction, staged, late=not wait)
        except BaseException:
            self._runs.abort()
            raise

    def _stage(
        self, transaction: Any, staged: dict[IQueue, list[StagedSubmission]], late: bool
    ) -> None:
        """Have the queues hold what is `staged`: from here on it survives a crash."""
        if not self._batches:
            return
        # No queue of several can decide for all: each takes part beside the others, as we do.
        others = [*self._others(transaction), *([self] if len(self._batches) > 1 else [])]
        try:
            self._batches.stage(staged, others, late=late)
        except (QueueUnavailable, SchemaError) as error:
            self._runs.abort()
            raise self._queue_error(error) from error

    def _others(self, transaction: Any) -> list[Any]:
        """The data managers of others that may have something to commit."""
        return [manager for manager in with_work(transaction) if manager is not self]

    # -- what cannot

    def tpc_vote(self, transaction: Any) -> None:
        """See `IDataManager`: send, over one connection for each delivery method."""
        try:
            last = not self._runs.send
            self._decide(transaction, last)
            self._send()
            if not last and self._report.is_left_to_queue():
                self._decide(transaction, last=True)
        except (QueueUnavailable, SchemaError) as error:
            self._batches.revoke(self._report.known())
            raise self._queue_error(error) from error
        except BaseException as error:
            self._batches.revoke(self._report.known())
            note(error, self._told())
            raise
        if not self._report.permits_commit():
            self._batches.revoke(self._report.known())
            raise self._delivery_error(databases_may_be_committed=committed_early(transaction))
        self._voted = True

    def _decide(self, transaction: Any, last: bool) -> None:
        """Write into the queue that this commits, if no other manager can tell it later."""
        if len(self._batches) == 1 and not self._others(transaction):
            self._batches.decide(last)

    def _send(self) -> None:
        """Send for one delivery method after the other, until something forbids the commit."""
        for method, submissions in self._report.by_method().items():
            if not self._report.send(self._runs.of(method), submissions):
                return

    # -- the end

    def tpc_finish(self, transaction: Any) -> None:
        """See `IDataManager`: publish, give the connections back. Never raises."""
        if not self._finished:
            self._finishing = True
            self._end(self._batches.finish)
            self._batches.release(end=False)

    def _end(self, end_batches: Callable[[KnownOutcomes], None]) -> None:
        """End after the vote: nothing can be taken back. Starts over if an exception ended it."""
        lines, known = self._lines(), self._report.known()
        tell_mailers(lines)
        self._sent = self._sent or accepted(lines)
        queueing = self._runs.queueing
        self._runs.finish()
        end_batches(known)
        self._forget()
        self._finished = True
        # Last: a subscriber may take long or be interrupted, and spoils nothing.
        tell_settled(lines, queueing=queueing)
        tell_queued(lines)

    def abort(self, transaction: Any) -> None:
        """See `IDataManager`: forget. Does nothing once the mail is out."""
        if not self._voted or self._finished:
            self._withdraw()
        elif self._finishing:
            self.tpc_finish(transaction)
        elif has_voted(transaction, self):
            # An exception has kept `tpc_abort` from being called.
            self._end(self._batches.mark_unknown)
        elif transaction.status is Status.COMMITTING:
            # It has come right behind our vote: `transaction` does not know that we have said yes.
            self._voted = False
            self._withdraw()
        if self._aborting:
            # If the transaction has failed, all others know. If not, they will abort after us, but
            # a connection that was interrupted within our hook may be in no state to roll back.
            failed = transaction.status is not Status.ACTIVE
            self._batches.release(end=failed or self._broken)

    def tpc_abort(self, transaction: Any) -> None:
        """See `IDataManager`: forget. If the mail is out, say so: nobody can take it back."""
        if self._voted and not (self._finishing or self._finished):
            self._end(self._batches.mark_unknown)
        self.abort(transaction)
        self._batches.release(end=not self._finishing)
        if self._voted:
            sent, self._sent = self._sent, []
            tell_sent_for_nothing(sent)

    def _withdraw(self) -> None:
        """Forget the mail; tell its mailers if the application has tried to commit or aborts."""
        if self._finished:
            return
        self._joined = False
        self._runs.abort()
        if self._report.buffered:
            if self._is_tried():
                self._tell_failed()
            elif self._aborting and not self._refused:
                tell_mailers([Line(each, []) for each in self._report.buffered])
        self._batches.abort(self._report.known())
        self._forget()

    def _forget(self) -> None:
        # The list stays the same: savepoints hold it, and may be rolled back after this.
        self._report.forget()
        self._runs.forget()
        self._batches.forget()

    # -- what is known, and who is told

    def _ending(self) -> Ending:
        """How the transaction ends, as far as it is known now."""
        if self._finishing:
            return COMMITTED
        transaction = self._transaction() if self._transaction is not None else None
        early = transaction is not None and committed_early(transaction)
        return Ending(
            NOT_KNOWN if self._voted else NOT_COMMITTED,
            early or self._batches.may_be_committed(sys.exception()),
            self._publication_in_doubt,
        )

    def _lines(self) -> list[Line]:
        return self._report.lines(self._ending())

    def _is_tried(self) -> bool:
        """True if the application has tried to commit, even if the commit has not come to us."""
        transaction = self._transaction() if self._transaction is not None else None
        if transaction is not None and not self._tried:
            begun = transaction.status in (Status.COMMITTING, Status.COMMITFAILED)
            self._tried = begun or self._hook.is_dropped(transaction, self._before_commit)
        return self._tried

    def notice(self) -> None:
        """See `IMailDataManager`."""
        if self._report.buffered and self._is_tried():
            tell_mailers(self._lines())

    def _told(self) -> list[Line]:
        """Tell everybody what became of the mail of a commit that fails now; what was told."""
        lines = self._lines()
        tell_mailers(lines)
        tell_settled(lines, queueing=self._runs.queueing)
        return lines

    def _delivery_error(self, *, databases_may_be_committed: bool = False) -> DeliveryError:
        """Tell everybody; the error of a commit in which something was not accepted."""
        return delivery_error(self._told(), databases_may_be_committed=databases_may_be_committed)

    def _queue_error(self, error: QueueUnavailable | SchemaError) -> QueueUnavailable | SchemaError:
        """Tell everybody; the error of a commit whose mail a queue could not take."""
        self._publication_in_doubt = isinstance(error, QueueInDoubt)
        return queue_error(error, self._told())

    def _tell_failed(self) -> None:
        """Tell the mailers of a commit that something else has ended; note on it what is out."""
        lines = self._lines()
        tell_mailers(lines)
        error = sys.exception()
        if error is not None and not self._aborting:
            note_unless_told(error, lines)
