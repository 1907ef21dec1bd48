"""What is made of the outcomes of a transaction: shared out to messages, and told as an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ..envelope import Envelope
from ..exceptions import (
    DeliveryError,
    DeliveryRefused,
    DeliveryUnavailable,
    PartialDelivery,
    QueueUnavailable,
    SchemaError,
    TransientDeliveryUnavailable,
    TransientQueueUnavailable,
    TransportError,
)
from ..outcome import Action, Outcome, Scope, Status
from ..submission import Submission

#: why the outcome of mail is in doubt that no server was asked to take
PERHAPS_QUEUED = "the queue may have it: the reply to its COMMIT was lost"
#: submissions, each with an outcome for each of its recipients
Settled = list[tuple[Submission, list[Outcome]]]


def all_unsent(envelopes: Sequence[Envelope], error: TransportError) -> list[Outcome]:
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


def in_order(envelopes: Sequence[Envelope], refusals: Sequence[Outcome]) -> Iterator[Outcome]:
    """One outcome for each recipient of `envelopes`: its refusal, or `unsent`.

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


def delivery_error(
    outcomes: Sequence[Outcome],
    *,
    transient: bool = False,
    databases_may_be_committed: bool = False,
) -> DeliveryError:
    """The error for `outcomes` of which at least one is not settled.

    It is `PartialDelivery` if anything was accepted or is in doubt, else `DeliveryRefused` if
    anything was refused for good, else `DeliveryUnavailable`: as a `TransientError` if `transient`
    asks for that and no person has to act first.
    """
    statuses = {o.status for o in outcomes}
    kind: type[DeliveryError] = DeliveryUnavailable
    if statuses & {Status.ACCEPTED, Status.IN_DOUBT}:
        kind = PartialDelivery
    elif Status.FAILED in statuses or any(o.action is Action.FAIL for o in outcomes):
        kind = DeliveryRefused
    elif transient and not any(o.action is Action.STOP_ROUTE for o in outcomes):
        kind = TransientDeliveryUnavailable
    bad = [o for o in outcomes if not o.permits_commit] or list(outcomes)
    decisive = [o for o in bad if o.status is not Status.UNSENT or o.action is Action.FAIL] or bad
    problem = f"{decisive[0]}" + (f" and {len(decisive) - 1} more" if decisive[1:] else "")
    return kind(problem, tuple(outcomes), databases_may_be_committed=databases_may_be_committed)


def queue_error(
    error: QueueUnavailable | SchemaError, outcomes: Sequence[Outcome], *, transient: bool = False
) -> QueueUnavailable | SchemaError:
    """`error` with the outcomes of a transaction of which nothing was sent."""
    kind = type(error)
    if transient and kind is QueueUnavailable:
        kind = TransientQueueUnavailable
    return kind(str(error), tuple(outcomes))


def is_left(outcomes: Iterable[Outcome]) -> bool:
    """True if nothing is out, and the queue has it all."""
    return all(o.queued and o.status not in (Status.ACCEPTED, Status.IN_DOUBT) for o in outcomes)


def shared_out(
    submissions: Sequence[Submission],
    outcomes: Iterable[Outcome],
    rest: Callable[[Envelope], list[Outcome]] | None = None,
) -> Settled:
    """The outcomes of each submission: the first that was said of a recipient; else one of `rest`.

    By default that is `unsent`.
    """
    said: list[dict[str, Outcome]] = [{} for _ in submissions]
    for outcome in outcomes:
        said[outcome.position].setdefault(outcome.recipient, outcome)
    return [
        (submission, _of(submission.envelope, found, rest or unsent))
        for submission, found in zip(submissions, said, strict=True)
    ]


def _of(
    envelope: Envelope, said: dict[str, Outcome], rest: Callable[[Envelope], list[Outcome]]
) -> list[Outcome]:
    if len(said) == len(envelope.recipients):
        return [said[recipient] for recipient in envelope.recipients]
    return [said.get(o.recipient, o) for o in rest(envelope)]


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


def queued(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The queue has what was not accepted."""
    return [o if o.status is Status.ACCEPTED else replace(o, queued=True) for o in outcomes]


def doubted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The queue may have what was not accepted: nobody knows whether it was published."""
    return [
        o
        if o.status is Status.ACCEPTED
        else replace(
            o, status=Status.IN_DOUBT, action=Action.IN_DOUBT, queued=False, reason=PERHAPS_QUEUED
        )
        for o in outcomes
    ]


def not_queued(outcomes: Sequence[Outcome], reason: str) -> list[Outcome]:
    """The queue has none of it, for this `reason`: the transaction has failed."""
    return [
        replace(o, queued=False, reason=o.reason or ("" if o.reply else reason)) if o.queued else o
        for o in outcomes
    ]
