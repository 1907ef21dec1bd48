"""The account of a transaction: what became of each call of `send`, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..events import MessageQueued, MessageSettled
from ..interfaces import IDeliveryMethod, IDeliveryRun
from ..outcome import Outcome, Status
from ..submission import Submission
from .outcomes import (
    Settled,
    doubted,
    in_doubt,
    not_queued,
    queued,
    shared_out,
    unsent,
)

#: Gets the outcomes of one mailer's mail.
Report = Callable[[tuple[Outcome, ...]], object]


#: why the queue has nothing of a transaction's mail
NOT_COMMITTED = "not queued: the transaction failed"
#: the same, if it failed after our vote
NOT_KNOWN = "the transaction failed after our vote: the queue finds out whether it has committed"
#: the same, if the queue is in a database that commits in its own vote, before ours
MAYBE_COMMITTED = (
    "the transaction failed, and its database may have committed, with the queue in it"
)


@dataclass(frozen=True, slots=True, eq=False)
class BufferedSubmission:
    """One buffered envelope, where it goes, and who wants to know what became of it."""

    delivery: IDeliveryMethod
    submission: Submission
    report: Report


#: entries with an outcome for each recipient
Account = list[tuple[BufferedSubmission, list[Outcome]]]


@dataclass(slots=True, eq=False)
class Sending:
    """What is known of what one delivery sends in a transaction.

    Outcomes are noted as they come, before anybody is told. What was begun and has none is in
    doubt, whatever has ended sending: an exception can come at any moment, also from a signal.
    """

    submissions: Sequence[Submission]
    #: of all recipients of all submissions, by their positions; the first of a recipient counts
    outcomes: list[Outcome] = field(default_factory=list)
    #: True if the queue goes on with what was not accepted
    goes_on: bool = False
    #: True from the moment when something may leave
    begun: bool = False

    def collect(self, run: IDeliveryRun) -> None:
        """Have `run` send, and note what becomes of it, also if something ends it."""
        self.begun = True
        coming = run.send(self.submissions)
        try:
            self.outcomes.extend(coming)
            self.goes_on = run.goes_on(self.outcomes)
        except BaseException:
            coming.close()
            self.outcomes.extend(run.unsettled())
            raise

    def settled(self) -> Settled:
        """Each submission with an outcome for each recipient."""
        found = shared_out(self.submissions, self.outcomes, in_doubt if self.begun else unsent)
        return [(submission, queued(said)) for submission, said in found] if self.goes_on else found


def account_of(entries: Iterable[BufferedSubmission], settled: Settled) -> Account:
    """Every entry in call order, with an outcome for each recipient."""
    found = dict(settled)
    return [(e, found.get(e.submission) or unsent(e.submission.envelope)) for e in entries]


def failed(account: Account, *, known: bool, committed: bool) -> Account:
    """`account` of a transaction that failed: nothing can be said to be in the queue.

    It is not `known` how it ended if we had said yes; `committed`, if a database may have.
    """
    reason = NOT_COMMITTED if known else NOT_KNOWN
    return [
        (
            entry,
            _maybe_committed(outcomes)
            if committed and _is_inside(entry)
            else not_queued(outcomes, reason),
        )
        for entry, outcomes in account
    ]


def _maybe_committed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [
        replace(o, queued=False, reason=MAYBE_COMMITTED)
        if o.status is Status.UNSENT and o.reply is None
        else replace(o, queued=False)
        for o in outcomes
    ]


def perhaps_queued(account: Account) -> Account:
    """`account` where nobody knows whether the queue has what it was to have."""
    return [
        (entry, outcomes if entry.delivery.queue is None else doubted(outcomes))
        for entry, outcomes in account
    ]


def _is_inside(entry: BufferedSubmission) -> bool:
    """True if the queue is in a database of the application."""
    return entry.delivery.queue is not None and entry.delivery.queue.in_session


def report(account: Account) -> None:
    """Report to the mailers what became of their mail."""
    reports: dict[Report, list[Outcome]] = {}
    for entry, outcomes in account:
        reports.setdefault(entry.report, []).extend(outcomes)
    for told, outcomes in reports.items():
        told(tuple(outcomes))


def outcomes_of(account: Account) -> list[Outcome]:
    """All outcomes, in call order."""
    return [outcome for _, outcomes in account for outcome in outcomes]


def is_transient(account: Account) -> bool:
    """True if all who sent something want errors that another try may mend to be retried."""
    return all(entry.delivery.transient for entry, _ in account)


def tell(account: Account, *, unsent: Sequence[IDeliveryMethod]) -> None:
    """Emit an event for each message that was tried.

    `unsent` are the deliveries that have left all to the queue.
    """
    for entry, outcomes in account:
        delivery = entry.delivery
        if _is_tried(outcomes, sent=delivery not in unsent):
            message_id = entry.submission.envelope.message_id
            delivery.events.emit(MessageSettled(message_id, delivery.route, tuple(outcomes)))


def _is_tried(outcomes: Iterable[Outcome], *, sent: bool) -> bool:
    """True if there was an answer about a message, or none that came."""
    if sent:
        return any(o.status is not Status.UNSENT for o in outcomes)
    return any(o.reply is not None for o in outcomes)


def tell_queued(account: Account) -> None:
    """Emit an event for each message that a queue goes on with."""
    for entry, outcomes in account:
        queue = entry.delivery.queue
        queued = tuple(o for o in outcomes if o.queued)
        if queued and queue is not None:
            message_id = entry.submission.envelope.message_id
            entry.delivery.events.emit(MessageQueued(message_id, queue.name, queued))
