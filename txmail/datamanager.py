"""The heart: one data manager per transaction, which does two-phase commit and nothing else.

========================  ======================================================================
`add` (``send()``)        buffer; join the transaction
before-commit hook, last  connect and ask, write it to the queue: all that can be taken back
`tpc_begin`               freeze the buffer
`commit`                  the same for what the hook did not see
`tpc_vote`, last of all   send
`tpc_finish`              publish what the queue has; give the connections back
`abort`, `tpc_abort`      forget
========================  ======================================================================

Mail is sent in the vote because an error in `tpc_finish` would leave the managers before ours
committed and those behind it aborted; in the *last* vote because what is sent cannot be unsent,
so every manager that could still say no must have spoken; and after a preflight because a
one-phase SQL session has by then committed in its own vote, before ours.

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

#: ZODB sorts by storage name, two-phase zope.sqlalchemy as ``sqlalchemy.twophase:`` and one-phase
#: zope.sqlalchemy as ``~sqlalchemy:``; ours comes after all of them. Votes and finishes go in this
#: order, so a manager that sorted early would send before a database that then says no.
SORT_KEY = "~~txmail"

#: The key of our manager in the transaction's data, which is keyed by `id`: it has to live as long
#: as the module.
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
    """The manager of the current transaction, if there are both."""
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
        #: why nothing can be added any more; empty while something can
        self._closed = ""
        #: true if somebody has tried to commit, successfully or not; if the user aborts
        self._tried = self._aborting = False
        #: true if a commit has failed in our hook, and its outcomes were told
        self._refused = False
        #: true if our hook has ended in the middle of what it does
        self._broken = False
        #: true if we have said yes; from our `tpc_finish` on; when all is done
        self._voted = self._finishing = self._finished = False
        #: true if the reply was lost that says whether the queue has what it was to have
        self._publication_in_doubt = False
        #: who would have to be told, if the transaction failed now, that these are out
        self._sent: list[tuple[Events, str]] = []
        #: true once it was said that nobody has committed what is here
        self._warned = self._is_private
        #: the process whose mail it is, and not that of a child
        self._process = this_process()
        if not self._is_private:
            unsent.watch(self)

    def __del__(self) -> None:
        report = getattr(self, "_report", None)
        if report is not None and report.buffered:
            unsent.warn(self, "the transaction was dropped")

    # -- joining and buffering

    def join(self, transaction: Any) -> None:
        """Take part in `transaction`; again, if a rolled-back savepoint has put us out of it."""
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
        # commit() has looked before the hooks only
        if self._report.buffered and transaction.isDoomed():
            raise DoomedTransaction("transaction doomed, cannot commit")
        try:
            self._prepare(transaction, wait=True)
        except BaseException as error:
            # The queue's own error may be what a driver has made of an interrupt.
            refused = isinstance(error, DeliveryError) and not isinstance(error, QueueUnavailable)
            self._broken = not refused
            # For `transaction` it has not failed yet: more may be sent, and it may be committed.
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
        """Have every delivery method do what can be taken back, or raise with what forbids it."""
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
        """Have the queues hold what is `staged`, so that it survives a crash from here on."""
        if not self._batches:
            return
        # None of several queues can be told of the end for all: they are others to each other.
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
        """Write down that this commits, where nobody else will know it."""
        if len(self._batches) == 1 and not self._others(transaction):
            self._batches.decide(last)

    def _send(self) -> None:
        """Send for one delivery method after the other, as long as everything may commit."""
        for method, submissions in self._report.by_method().items():
            if not self._report.send(self._runs.of(method), submissions):
                return

    # -- the end

    def tpc_finish(self, transaction: Any) -> None:
        """See `IDataManager`: never raises, there is nothing left to fail."""
        if not self._finished:
            self._finishing = True
            self._end(self._batches.finish)
            self._batches.release(end=False)

    def _end(self, end_batches: Callable[[KnownOutcomes], None]) -> None:
        """The vote has been; nothing can be taken back. Can be done again, from the beginning."""
        lines, known = self._lines(), self._report.known()
        tell_mailers(lines)
        self._sent = self._sent or accepted(lines)
        queueing = self._runs.queueing
        self._runs.finish()
        end_batches(known)
        self._forget()
        self._finished = True
        # Who listens may take its time, or be interrupted: there is nothing left to be spoilt.
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
            # One has come right behind our vote: nobody has heard that we have said yes.
            self._voted = False
            self._withdraw()
        if self._aborting:
            # If it has failed, all others have been told. If not, they are going to be: what was
            # interrupted within our hook may be in no state to roll back.
            failed = transaction.status is not Status.ACTIVE
            self._batches.release(end=failed or self._broken)

    def tpc_abort(self, transaction: Any) -> None:
        """See `IDataManager`: forget; if the mail is out, all that is left is to say so."""
        if self._voted and not (self._finishing or self._finished):
            self._end(self._batches.mark_unknown)
        self.abort(transaction)
        self._batches.release(end=not self._finishing)
        if self._voted:
            sent, self._sent = self._sent, []
            tell_sent_for_nothing(sent)

    def _withdraw(self) -> None:
        """Forget what is here, and say so where somebody has tried to commit it, or aborts it."""
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
        # Savepoints hold the list itself, and may be rolled back after this.
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
        """True if somebody has tried to commit this, also if we were not asked."""
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
        """What has become of a commit that fails now; everybody was told."""
        lines = self._lines()
        tell_mailers(lines)
        tell_settled(lines, queueing=self._runs.queueing)
        return lines

    def _delivery_error(self, *, databases_may_be_committed: bool = False) -> DeliveryError:
        """The error of a commit in which something was not accepted; everybody was told."""
        return delivery_error(self._told(), databases_may_be_committed=databases_may_be_committed)

    def _queue_error(self, error: QueueUnavailable | SchemaError) -> QueueUnavailable | SchemaError:
        """The error of a commit that a queue could not take; everybody was told."""
        self._publication_in_doubt = isinstance(error, QueueInDoubt)
        return queue_error(error, self._told())

    def _tell_failed(self) -> None:
        """Something has ended the commit: tell the mailers, and note on it what is not obvious."""
        lines = self._lines()
        tell_mailers(lines)
        error = sys.exception()
        if error is not None and not self._aborting:
            note_unless_told(error, lines)
