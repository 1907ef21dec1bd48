"""Tells mailers and subscribers of events what became of the mail of a transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from ..events import Events, MessageQueued, MessageSettled, SentForNothing
from ..interfaces import IDeliveryMethod
from ..outcome import Outcome, Status
from ..submission import Listener
from .report import Line


def tell_mailers(lines: Iterable[Line]) -> None:
    """Tell each mailer what became of its mail."""
    found: dict[Listener, list[Outcome]] = {}
    for line in lines:
        found.setdefault(line.buffered.listener, []).extend(line.outcomes)
    for listener, outcomes in found.items():
        listener(tuple(outcomes))


def tell_settled(lines: Iterable[Line], *, queueing: Collection[IDeliveryMethod]) -> None:
    """Emit an event for each message that was tried.

    The methods that are `queueing` have left all to the queue.
    """
    for buffered, outcomes in lines:
        method = buffered.method
        if _is_tried(outcomes, sent=method not in queueing):
            message_id = buffered.submission.envelope.message_id
            method.events.emit(MessageSettled(message_id, method.route, tuple(outcomes)))


def tell_queued(lines: Iterable[Line]) -> None:
    """Emit an event for each message that a queue goes on with."""
    for buffered, outcomes in lines:
        queue = buffered.method.queue
        queued = tuple(o for o in outcomes if o.queued)
        if queued and queue is not None:
            message_id = buffered.submission.envelope.message_id
            buffered.method.events.emit(MessageQueued(message_id, queue.name, queued))


def accepted(lines: Sequence[Line]) -> list[tuple[Events, str]]:
    """The Message-IDs of the mail that is out, each with the events of its mailer."""
    return [
        (buffered.method.events, buffered.submission.envelope.message_id)
        for buffered, outcomes in lines
        if any(o.status is Status.ACCEPTED for o in outcomes)
    ]


def tell_sent_for_nothing(sent: Sequence[tuple[Events, str]]) -> None:
    """Emit an event for mail that is out although its transaction has failed. See `accepted`."""
    message_ids = tuple(message_id for _, message_id in sent)
    for events in dict.fromkeys(events for events, _ in sent):
        events.emit(SentForNothing(message_ids))


def _is_tried(outcomes: Iterable[Outcome], *, sent: bool) -> bool:
    """True if something of a message was sent, or a server has answered about it."""
    if sent:
        return any(o.status is not Status.UNSENT for o in outcomes)
    return any(o.reply is not None for o in outcomes)
