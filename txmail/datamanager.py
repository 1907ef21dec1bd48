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
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from transaction._transaction import Status as TransactionStatus
from transaction.interfaces import DoomedTransaction, IDataManagerSavepoint, NoTransaction
from zope.interface import implementer

from .budget import Budget
from .common.logs import quiet_logger
from .common.shown import echo
from .delivery import unsent
from .delivery.account import BufferedSubmission, Report, Sending, report, tell, tell_queued
from .delivery.outcomes import Settled, in_order, is_left
from .delivery.report import CommitReport
from .events import VotesAfterUs
from .exceptions import (
    DeliveryError,
    QueueUnavailable,
    SchemaError,
    TransactionClosed,
)
from .interfaces import IBatch, IDeliveryMethod, IDeliveryRun, IMailDataManager, IQueue
from .outcome import Status
from .submission import StagedSubmission, Submission

log = quiet_logger("txmail")

#: ZODB sorts by storage name, two-phase zope.sqlalchemy as ``sqlalchemy.twophase:`` and one-phase
#: zope.sqlalchemy as ``~sqlalchemy:``; ours comes after all of them. Votes and finishes go in this
#: order, so a manager that sorted early would send before a database that then says no.
SORT_KEY = "~~txmail"
#: How often our hook goes to the end of the line when others are behind it. Two parties that both
#: insist on being last would go on for ever.
HOOK_TURNS = 10

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

    def __init__(self, entries: list[BufferedSubmission]) -> None:
        self._entries = entries
        self._length = len(entries)

    def rollback(self) -> None:
        """See `IDataManagerSavepoint`."""
        del self._entries[self._length :]


@implementer(IMailDataManager)
class MailDataManager(CommitReport):
    """Our participant in one transaction. See `IMailDataManager`; made by `join` only."""

    def __init__(self, transaction_manager: Any) -> None:
        super().__init__(transaction_manager)
        #: what may have something open when everybody was told that the transaction has failed
        self._unreleased: list[IBatch] = []
        #: true if our hook has ended in the middle of what it does
        self._broken = False
        self._budget = Budget()
        self._joined = False
        self._hook_turns = 0
        self._abort_hook = False
        #: why nothing can be added any more; empty while something can
        self._closed = ""

    # -- joining and buffering

    def join(self, transaction: Any) -> None:
        """Take part in `transaction`; again, if a rolled-back savepoint has put us out of it."""
        status = transaction.status
        if status is TransactionStatus.COMMITFAILED:
            raise TransactionClosed(
                "mail cannot be sent here: the transaction has failed; call abort() to begin anew"
            )
        if self._closed or status is TransactionStatus.COMMITTED:
            raise TransactionClosed(
                f"mail cannot be sent here: {self._closed or f'the status is {echo(status)}'}; "
                "no commit will follow that could send it"
            )
        if not self._joined:
            if status is TransactionStatus.COMMITTING:
                raise TransactionClosed(
                    "mail cannot be sent here: the commit has begun, and there was no mail before"
                )
            transaction.join(self)
            self._joined = True
            self._transaction = weakref.ref(transaction)
        self._register_hooks(transaction)

    def _register_hooks(self, transaction: Any) -> None:
        if not self._hook_pending or self._is_hook_dropped(transaction):
            transaction.addBeforeCommitHook(self._before_commit, (transaction,))
            self._hook_pending = True
        if not self._abort_hook:
            transaction.addBeforeAbortHook(self._before_abort)
            self._abort_hook = True

    def add(self, delivery: IDeliveryMethod, submission: Submission, report: Report) -> None:
        """See `IMailDataManager`."""
        queue = delivery.queue
        if queue is not None and queue not in self._batches:
            transaction = self.transaction_manager.get()
            self._batches[queue] = queue.begin(transaction, self.transaction_manager)
        self._entries.append(BufferedSubmission(delivery, submission, report))

    def buffered(self, *deliveries: IDeliveryMethod) -> list[Submission]:
        """What waits for the commit and one of `deliveries`."""
        return [e.submission for e in self._entries if e.delivery in deliveries]

    def savepoint(self) -> MailSavepoint:
        """See `ISavepointDataManager`."""
        return MailSavepoint(self._entries)

    def sortKey(self) -> str:
        """See `IDataManager`."""
        return SORT_KEY

    # -- everything that can be taken back

    def _before_commit(self, transaction: Any) -> None:
        """The hook: runs last, while no database holds its commit lock."""
        self._tried, self._hook_pending = True, False
        self._sendings.clear()
        hooks = list(transaction.getBeforeCommitHooks())
        if hooks[-1][0] != self._before_commit and self._hook_turns < HOOK_TURNS:
            self._hook_turns += 1
            self._hook_pending = True
            transaction.addBeforeCommitHook(self._before_commit, (transaction,))
            return
        if self._entries and transaction.isDoomed():  # commit() has looked before the hooks only
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
        level = unsent.begins_anew()
        if level:
            unsent.warn(self, "begin() has aborted their transaction", level)

    def tpc_begin(self, transaction: Any) -> None:
        """See `IDataManager`: freeze."""
        self._tried = True
        self._closed = "the commit has begun"
        if not self._entries:
            return
        for manager in transaction._resources:
            if (key := manager.sortKey()) > SORT_KEY:
                for events in dict.fromkeys(e.delivery.events for e in self._entries):
                    events.emit(VotesAfterUs(key))

    def commit(self, transaction: Any) -> None:
        """See `IDataManager`: ask about mail that came after the hook."""
        self._prepare(transaction, wait=False)

    def _prepare(self, transaction: Any, wait: bool) -> None:
        """Have every delivery do what can be taken back, or raise with what forbids it."""
        rows: dict[IQueue, list[StagedSubmission]] = {}
        for delivery, entries in self._by_delivery().items():
            submissions = [entry.submission for entry in entries]
            run = self._run(delivery)
            try:
                refusals = run.prepare(submissions, wait)
            except BaseException:
                self._release()
                raise
            if refusals:
                self._release()
                answers = in_order([submission.envelope for submission in submissions], refusals)
                self._sendings = [Sending(submissions, list(answers))]
                raise self._failure()
            if delivery.queue is not None:
                rows.setdefault(delivery.queue, []).extend(run.to_stage(submissions))
        self._stage(transaction, rows, late=not wait)

    def _stage(
        self, transaction: Any, rows: dict[IQueue, list[StagedSubmission]], late: bool
    ) -> None:
        """Have the queues hold `rows`, so that they survive a crash from here on."""
        if not self._batches:
            return
        others = self._others(transaction)
        if len(self._batches) > 1:
            # None of several queues can be told of the end for all: they are others to each other.
            others.append(self)
        with self._budget:
            for queue, batch in self._batches.items():
                try:
                    batch.stage(rows.get(queue, []), others, self._budget.remaining, late)
                except BaseException as error:
                    self._release()
                    if isinstance(error, (QueueUnavailable, SchemaError)):
                        raise self._queue_failure(error) from error
                    raise

    def _others(self, transaction: Any) -> list[Any]:
        """The data managers of others that may have something to commit."""
        return [
            manager
            for manager in transaction._resources
            # A session of zope.sqlalchemy that has only read is done before the vote.
            if manager is not self and getattr(manager, "state", None) != "no work"
        ]

    def _by_delivery(self) -> dict[IDeliveryMethod, list[BufferedSubmission]]:
        grouped: dict[IDeliveryMethod, list[BufferedSubmission]] = {}
        for entry in self._entries:
            grouped.setdefault(entry.delivery, []).append(entry)
        return grouped

    def _run(self, delivery: IDeliveryMethod) -> IDeliveryRun:
        run = self._runs.get(delivery)
        if run is None:
            self._budget.limit(delivery.commit_timeout)
            run = self._runs[delivery] = delivery.begin(self._budget, first=not self._runs)
        return run

    # -- what cannot

    def tpc_vote(self, transaction: Any) -> None:
        """See `IDataManager`: send, over one connection for each delivery."""
        try:
            last = not any(run.sends for run in self._runs.values())
            self._decide(transaction, last)
            self._send_all()
            outcomes = [o for _, found in self._settled() for o in found]
            if not last and is_left(outcomes):
                self._decide(transaction, last=True)
        except (QueueUnavailable, SchemaError) as error:
            self._revoke()
            raise self._queue_failure(error) from error
        except BaseException as error:
            self._revoke()
            self._interrupted(error)
            raise
        if not all(o.permits_commit for _, found in self._accounted() for o in found):
            self._revoke()
            raise self._failure(transaction)
        self._voted = True

    def _decide(self, transaction: Any, last: bool) -> None:
        """Write down that this commits, where nobody else will know it."""
        if len(self._batches) != 1 or self._others(transaction):
            return
        with self._budget:
            for batch in self._batches.values():
                batch.decide(last, self._budget.remaining)

    def _revoke(self) -> None:
        with self._budget:
            for batch in self._batches.values():
                batch.revoke(self._settled(), self._budget.remaining)

    def _send_all(self) -> None:
        """Send for one delivery after the other, as long as everything is settled."""
        for delivery, entries in self._by_delivery().items():
            sending = Sending([entry.submission for entry in entries])
            self._sendings.append(sending)
            sending.collect(self._run(delivery))
            if not all(o.permits_commit for _, found in sending.settled() for o in found):
                return

    # -- the end

    def tpc_finish(self, transaction: Any) -> None:
        """See `IDataManager`: never raises, there is nothing left to fail."""
        if not self._finished:
            self._finishing = True
            self._end(lambda batch, settled: batch.finish(settled))
            self._unreleased.clear()

    def _end(self, settle: Callable[[IBatch, Settled], None]) -> None:
        """The vote has been; nothing can be taken back. Can be done again, from the beginning."""
        account, settled = self._account(), self._settled()
        report(account)
        self._sent = self._sent or [
            (entry.delivery.events, entry.submission.envelope.message_id)
            for entry, outcomes in account
            if any(o.status is Status.ACCEPTED for o in outcomes)
        ]
        left = [delivery for delivery, run in self._runs.items() if not run.sends]
        for run in self._runs.values():
            run.finish()
        for batch in self._batches.values():
            settle(batch, settled)
        self._forget()
        self._finished = True
        # Who listens may take its time, or be interrupted: there is nothing left to be spoilt.
        tell(account, unsent=left)
        tell_queued(account)

    def abort(self, transaction: Any) -> None:
        """See `IDataManager`: forget. Does nothing once the mail is out."""
        if not self._voted or self._finished:
            self._withdraw()
        elif self._finishing:
            self.tpc_finish(transaction)
        elif id(self) in (transaction._voted or ()):
            # An exception has kept `tpc_abort` from being called.
            self._end(lambda batch, settled: batch.mark_unknown(settled))
        elif transaction.status is TransactionStatus.COMMITTING:
            # One has come right behind our vote: nobody has heard that we have said yes.
            self._voted = False
            self._withdraw()
        if self._aborting:
            # If it has failed, all others have been told. If not, they are going to be: what was
            # interrupted within our hook may be in no state to roll back.
            failed = transaction.status is not TransactionStatus.ACTIVE
            self._release_batches(end=failed or self._broken)

    def tpc_abort(self, transaction: Any) -> None:
        """See `IDataManager`: forget; if the mail is out, all that is left is to say so."""
        if self._voted and not (self._finishing or self._finished):
            self._end(lambda batch, settled: batch.mark_unknown(settled))
        self.abort(transaction)
        self._release_batches(end=not self._finishing)
        if self._voted:
            self._tell_sent_for_nothing()

    def _withdraw(self) -> None:
        """Forget what is here, and say so where somebody has tried to commit it, or aborts it."""
        if self._finished:
            return
        self._joined = False
        self._release()
        if self._entries:
            if self._is_tried():
                self._report_failed()
            elif self._aborting and not self._refused:
                report([(entry, []) for entry in self._entries])
        for batch in self._batches.values():
            batch.abort(self._settled())
        self._forget()

    def _release_batches(self, *, end: bool) -> None:
        """Everybody knows that it has failed: `end` what they have left open."""
        while self._unreleased:
            batch = self._unreleased.pop()
            if end:
                batch.release()

    def _release(self) -> None:
        """Give all connections back, perhaps with a mail transaction open on them."""
        for run in self._runs.values():
            run.abort()
        self._runs.clear()

    def _forget(self) -> None:
        self._unreleased += self._batches.values()
        # Savepoints hold the list itself, and may be rolled back after this.
        self._entries.clear()
        self._runs.clear()
        self._batches.clear()
        self._sendings.clear()
