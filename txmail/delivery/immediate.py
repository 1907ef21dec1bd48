"""Sending a message now, outside any transaction: the phases of a commit in which we are alone."""

from __future__ import annotations

from collections.abc import Callable

from ..budget import Budget
from ..events import MessageQueued, MessageSettled
from ..exceptions import QueueInDoubt, QueueUnavailable, SchemaError
from ..interfaces import IBatch, IDeliveryMethod, IDeliveryRun
from ..outcome import Outcome
from ..submission import Submission
from .account import NOT_COMMITTED, Sending
from .outcomes import (
    delivery_error,
    doubted,
    in_order,
    is_left,
    not_queued,
    queue_error,
    unsent,
)


def send_now(
    delivery: IDeliveryMethod,
    submission: Submission,
    report: Callable[[tuple[Outcome, ...]], object],
) -> tuple[Outcome, ...]:
    """Send `submission`; its outcomes, whatever they are. Raises `QueueUnavailable`, `SchemaError`.

    `report` gets the outcomes before anybody else is told, also if an error ends it.
    """
    budget = Budget(delivery.commit_timeout)
    run = delivery.begin(budget)
    batch = delivery.queue.begin(None, None) if delivery.queue is not None else None
    sending = Sending([submission])
    try:
        outcomes = _sent(run, batch, sending, budget)
    except (QueueUnavailable, SchemaError) as error:
        left = unsent(submission.envelope)
        if isinstance(error, QueueInDoubt):
            left = doubted(left)
        report(tuple(left))
        raise queue_error(error, left, transient=delivery.transient) from error
    except BaseException:
        report(tuple(_failed(sending)))
        raise
    finally:
        run.finish()
    report(outcomes)
    _tell(delivery, run, submission, outcomes)
    return outcomes


def check(outcomes: tuple[Outcome, ...], *, transient: bool) -> None:
    """Raise the error for `outcomes`, unless all of them are settled."""
    if not all(o.permits_commit for o in outcomes):
        raise delivery_error(outcomes, transient=transient)


def _sent(
    run: IDeliveryRun, batch: IBatch | None, sending: Sending, budget: Budget
) -> tuple[Outcome, ...]:
    (submission,) = sending.submissions
    refusals = run.prepare([submission], wait=True)
    if refusals:
        return tuple(in_order([submission.envelope], refusals))
    if batch is None:
        sending.collect(run)
        return tuple(_outcomes_of(sending))
    try:
        with budget:
            batch.stage(run.to_stage([submission]), [], budget.remaining)
            batch.decide(not run.sends, budget.remaining)
        sending.collect(run)
        if run.sends and is_left(_outcomes_of(sending)):
            with budget:
                batch.decide(True, budget.remaining)
    except BaseException:
        _give_up(batch, sending, budget)
        raise
    if all(o.permits_commit for o in _outcomes_of(sending)):
        batch.finish(sending.settled())
        return tuple(_outcomes_of(sending))
    _give_up(batch, sending, budget)
    return tuple(_failed(sending))


def _give_up(batch: IBatch, sending: Sending, budget: Budget) -> None:
    settled = sending.settled() if sending.begun else []
    batch.revoke(settled, budget.remaining)
    batch.abort(settled)


def _outcomes_of(sending: Sending) -> list[Outcome]:
    """The outcomes of its only submission."""
    return [o for _, found in sending.settled() for o in found]


def _failed(sending: Sending) -> list[Outcome]:
    """The same, if it has failed: the queue has nothing of it."""
    if not sending.begun:
        return unsent(sending.submissions[0].envelope)
    return not_queued(_outcomes_of(sending), NOT_COMMITTED)


def _tell(
    delivery: IDeliveryMethod,
    run: IDeliveryRun,
    submission: Submission,
    outcomes: tuple[Outcome, ...],
) -> None:
    message_id = submission.envelope.message_id
    if run.sends or any(o.reply is not None for o in outcomes):
        delivery.events.emit(MessageSettled(message_id, delivery.route, outcomes))
    queued = tuple(o for o in outcomes if o.queued)
    if queued and delivery.queue is not None:
        delivery.events.emit(MessageQueued(message_id, delivery.queue.name, queued))
