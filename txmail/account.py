"""The account of a transaction: what became of each call of `send`, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .envelope import Outcome, Status
from .events import MessageQueued, MessageSettled
from .interfaces import IDelivery
from .item import Item
from .outcomes import Settled, unsent

#: Gets the outcomes of one mailer's mail.
Report = Callable[[tuple[Outcome, ...]], object]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One buffered envelope, where it goes, and who wants to know what became of it."""

    delivery: IDelivery
    item: Item
    report: Report


#: entries with an outcome for each recipient
Account = list[tuple[Entry, list[Outcome]]]


def account_of(entries: Iterable[Entry], settled: Settled) -> Account:
    """Every entry in call order, with an outcome for each recipient."""
    found = dict(settled)
    return [(e, found.get(e.item) or unsent(e.item.envelope)) for e in entries]


def outcomes_of(account: Account) -> list[Outcome]:
    """All outcomes, in call order."""
    return [outcome for _, outcomes in account for outcome in outcomes]


def is_transient(account: Account) -> bool:
    """True if all who sent something want errors that another try may mend to be retried."""
    return all(entry.delivery.transient for entry, _ in account)


def tell(account: Account, *, unsent: Sequence[IDelivery]) -> None:
    """Emit an event for each message that was tried, and report to the mailers.

    `unsent` are the deliveries that have left all to the queue.
    """
    reports: dict[Report, list[Outcome]] = {}
    for entry, outcomes in account:
        reports.setdefault(entry.report, []).extend(outcomes)
        delivery = entry.delivery
        if _is_tried(outcomes, sent=delivery not in unsent):
            message_id = entry.item.envelope.message_id
            delivery.events.emit(MessageSettled(message_id, delivery.route, tuple(outcomes)))
    for report, outcomes in reports.items():
        report(tuple(outcomes))


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
            message_id = entry.item.envelope.message_id
            entry.delivery.events.emit(MessageQueued(message_id, queue.name, queued))
