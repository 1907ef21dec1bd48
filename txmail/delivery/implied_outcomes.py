"""Outcomes that no server has told: they follow from what ended sending, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..envelope import Envelope
from ..exceptions import TransportError
from ..outcome import Action, Outcome, Scope, Status


def unsent(envelope: Envelope) -> list[Outcome]:
    """Outcomes of an envelope of which nothing was sent."""
    return [
        Outcome(
            recipient,
            Status.UNSENT,
            Scope.MESSAGE,
            message_id=envelope.message_id,
            action=Action.DEFER,
            reason="nothing of this message was sent",
        )
        for recipient in envelope.recipients
    ]


def in_doubt(envelope: Envelope) -> list[Outcome]:
    """Outcomes of an envelope that was begun, of which nothing else is known."""
    return [
        Outcome(
            recipient,
            Status.IN_DOUBT,
            Scope.MESSAGE,
            message_id=envelope.message_id,
            action=Action.IN_DOUBT,
            reason="sending was interrupted, and nothing is known of what had left",
        )
        for recipient in envelope.recipients
    ]


def unreachable(envelopes: Sequence[Envelope], error: TransportError) -> list[Outcome]:
    """An outcome for each recipient of `envelopes`, of which none was sent because of `error`."""
    action = Action.DEFER_ROUTE if error.temporary else Action.STOP_ROUTE
    return [
        Outcome(
            recipient,
            Status.UNSENT,
            Scope.ROUTE,
            error.reply,
            envelope.message_id,
            action,
            str(error),
            preflighted=False,
            position=position,
        )
        for position, envelope in enumerate(envelopes)
        for recipient in envelope.recipients
    ]


def all_or_nothing(envelopes: Sequence[Envelope], refusals: Sequence[Outcome]) -> Iterator[Outcome]:
    """One outcome for each recipient of `envelopes`: its refusal, or `unsent` because of others.

    `Outcome.position` says which of the envelopes a refusal is about.
    """
    said: list[dict[str, Outcome]] = [{} for _ in envelopes]
    for refusal in refusals:
        said[refusal.position].setdefault(refusal.recipient, refusal)
    for position, envelope in enumerate(envelopes):
        for recipient in envelope.recipients:
            yield said[position].get(recipient) or Outcome(
                recipient,
                Status.UNSENT,
                Scope.MESSAGE,
                message_id=envelope.message_id,
                action=Action.DEFER,
                reason="a transaction's mail goes out together or not at all",
                position=position,
            )


def left_to_queue(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """`outcomes` of a message with which the queue goes on: it has what was not accepted."""
    return [o if o.status is Status.ACCEPTED else replace(o, queued=True) for o in outcomes]
