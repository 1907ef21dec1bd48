"""What is known of the mail of one transaction at every moment, and how it is told.

`MailDataManager` does the work and notes what comes; everything that is said of it is made here of
what was noted: the outcomes of the mailers, the error that a commit raises, the events, the log.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

from transaction._transaction import Status as TransactionStatus

from ..common.logs import quiet_logger
from ..common.per_process import this_process
from ..envelope import Envelope
from ..events import Events, SentForNothing
from ..exceptions import (
    DeliveryError,
    QueueInDoubt,
    QueueUnavailable,
    SchemaError,
    TxmailError,
)
from ..interfaces import IBatch, IDeliveryMethod, IDeliveryRun, IQueue
from ..outcome import Outcome, Status
from . import unsent
from .account import (
    MAYBE_COMMITTED,
    Account,
    BufferedSubmission,
    Report,
    Sending,
    account_of,
    failed,
    is_transient,
    outcomes_of,
    perhaps_queued,
    report,
    tell,
)
from .outcomes import Settled, delivery_error, queue_error

log = quiet_logger("txmail")

#: One-phase zope.sqlalchemy commits its SQL in its vote, before ours.
ONE_PHASE_SORT_KEY = "~sqlalchemy:"
#: How a note begins that says, on an error that is none of ours, what became of the mail.
NOTE = "while sending mail: "


class CommitReport:
    """What the manager of one transaction knows of its mail, and says of it."""

    def __init__(self, transaction_manager: Any) -> None:
        self.transaction_manager = transaction_manager
        self._entries: list[BufferedSubmission] = []
        self._runs: dict[IDeliveryMethod, IDeliveryRun] = {}
        self._batches: dict[IQueue, IBatch] = {}
        #: what is known of what the server was asked, or was sent, in the present commit
        self._sendings: list[Sending] = []
        self._hook_pending = False
        #: true if somebody has tried to commit, successfully or not; if the user aborts
        self._tried = self._aborting = False
        #: true if a commit has failed in our hook, and its outcomes were told
        self._refused = False
        #: true if we have said yes; from our `tpc_finish` on; when all is done
        self._voted = self._finishing = self._finished = False
        #: true if nobody knows whether the queue has what it was to have
        self._perhaps_queued = False
        self._transaction: weakref.ref[Any] | None = None
        #: true once it was said that nobody has committed what is here
        self._warned = False
        #: the process whose mail it is, and not that of a child
        self._process = this_process()
        unsent.watch(self)
        #: who would have to be told, if the transaction failed now, that these are out
        self._sent: list[tuple[Events, str]] = []

    def _before_commit(self, transaction: Any) -> None:
        """The hook, by which a commit that failed before it is known."""
        raise NotImplementedError

    def __del__(self) -> None:
        if getattr(self, "_entries", None):
            unsent.warn(self, "the transaction was dropped")

    def pending(self, report: Report) -> tuple[Envelope, ...]:
        """What waits for the commit, of the mailer that `report` is of."""
        return tuple(e.submission.envelope for e in self._entries if e.report == report)

    def uncommitted(self) -> tuple[str, ...]:
        """See `txmail.delivery.unsent.Holder`."""
        if self._process != this_process() or self._warned or self._refused or self._is_tried():
            return ()
        found = tuple(
            e.submission.envelope.message_id for e in self._entries if e.delivery.is_missed_unsent
        )
        self._warned = bool(found)
        return found

    def _is_hook_dropped(self, transaction: Any) -> bool:
        """True if a commit has failed in a hook before ours: that has cleared the list."""
        return self._hook_pending and all(
            hook != self._before_commit for hook, _, _ in transaction.getBeforeCommitHooks()
        )

    def _settled(self) -> Settled:
        """What is known of each submission that was begun."""
        return [pair for sending in self._sendings for pair in sending.settled()]

    def _accounted(self) -> Account:
        """What would be said of all mail if the transaction committed."""
        return account_of(self._entries, self._settled())

    def _account(self) -> Account:
        """What is to be said of all mail now."""
        account = self._accounted()
        if self._finishing:
            return account
        transaction = self._transaction() if self._transaction is not None else None
        error = sys.exception()
        committed = (transaction is not None and _committed_early(transaction)) or any(
            batch.may_be_committed(error) for batch in self._batches.values()
        )
        account = failed(account, known=not self._voted, committed=committed)
        return perhaps_queued(account) if self._perhaps_queued else account

    def _is_tried(self) -> bool:
        """True if somebody has tried to commit this, also if we were not asked."""
        transaction = self._transaction() if self._transaction is not None else None
        if transaction is not None and not self._tried:
            begun = transaction.status in (
                TransactionStatus.COMMITTING,
                TransactionStatus.COMMITFAILED,
            )
            self._tried = begun or self._is_hook_dropped(transaction)
        return self._tried

    def notice(self) -> None:
        """Report what is known of a commit that was tried and has not ended, if there was one."""
        if self._entries and self._is_tried():
            report(self._account())

    def _failure(self, transaction: Any = None) -> DeliveryError:
        """The error for a commit in which not everything was accepted; tells it to everybody."""
        account = self._account()
        self._tell(account)
        return delivery_error(
            outcomes_of(account),
            transient=is_transient(account),
            databases_may_be_committed=transaction is not None and _committed_early(transaction),
        )

    def _queue_failure(
        self, error: QueueUnavailable | SchemaError
    ) -> QueueUnavailable | SchemaError:
        """The queue could not take the mail: nothing was sent, and everybody is told."""
        self._perhaps_queued = isinstance(error, QueueInDoubt)
        account = self._account()
        self._tell(account)
        return queue_error(error, outcomes_of(account), transient=is_transient(account))

    def _interrupted(self, error: BaseException) -> None:
        """Something that is no delivery error ended the vote: note on it what happened."""
        account = self._account()
        self._tell(account)
        self._note(error, account)

    def _report_failed(self) -> None:
        """Something has ended the commit: report, and note on it what is not obvious."""
        account = self._account()
        report(account)
        error = sys.exception()
        if error is None or self._aborting or isinstance(error, TxmailError):
            return
        if not isinstance(error, Exception) or any(map(_is_unsure, outcomes_of(account))):
            self._note(error, account)

    def _note(self, error: BaseException, account: Account) -> None:
        if any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
            return
        note = NOTE + "; ".join(str(o) for o in outcomes_of(account))
        error.add_note(note)
        log.error("interrupted %s (%s)", note, type(error).__name__)

    def _tell(self, account: Account) -> None:
        report(account)
        left = [delivery for delivery, run in self._runs.items() if not run.sends]
        tell(account, unsent=left)

    def _tell_sent_for_nothing(self) -> None:
        sent, self._sent = self._sent, []
        message_ids = tuple(message_id for _, message_id in sent)
        for events in dict.fromkeys(events for events, _ in sent):
            events.emit(SentForNothing(message_ids))


def _is_unsure(outcome: Outcome) -> bool:
    """True if there may be mail of a transaction that has failed."""
    return outcome.status in (Status.ACCEPTED, Status.IN_DOUBT) or outcome.reason == MAYBE_COMMITTED


def _committed_early(transaction: Any) -> bool:
    """True if a database may have committed in its vote, before ours."""
    if transaction.status is TransactionStatus.ACTIVE:
        return False
    return any(
        manager.sortKey().startswith(ONE_PHASE_SORT_KEY)
        and getattr(manager, "state", "committed") == "committed"
        for manager in transaction._resources
    )
