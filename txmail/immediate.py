"""Sending a message now, outside any transaction: the phases of a commit in which we are alone."""

from __future__ import annotations

from .budget import Budget
from .envelope import Outcome
from .events import MessageQueued, MessageSettled
from .exceptions import QueueUnavailable, SchemaError
from .interfaces import IBatch, IDelivery, IDeliveryRun
from .item import Item
from .outcomes import delivery_error, in_order, is_left, queue_error, unsent


def send_now(delivery: IDelivery, item: Item) -> tuple[Outcome, ...]:
    """Send `item`; its outcomes, whatever they are. Raises `QueueUnavailable`, `SchemaError`."""
    budget = Budget(delivery.commit_timeout)
    run = delivery.begin(budget)
    batch = delivery.queue.begin(None, None) if delivery.queue is not None else None
    try:
        outcomes = _sent(run, batch, item, budget)
    except (QueueUnavailable, SchemaError) as error:
        raise queue_error(error, unsent(item.envelope), transient=delivery.transient) from error
    finally:
        run.finish()
    _tell(delivery, run, item, outcomes)
    return outcomes


def check(outcomes: tuple[Outcome, ...], *, transient: bool) -> None:
    """Raise the error for `outcomes`, unless all of them are settled."""
    if not all(o.settled for o in outcomes):
        raise delivery_error(outcomes, transient=transient)


def _sent(
    run: IDeliveryRun, batch: IBatch | None, item: Item, budget: Budget
) -> tuple[Outcome, ...]:
    refusals = run.prepare([item], wait=True)
    if refusals:
        return tuple(in_order([item.envelope], refusals))
    if batch is None:
        return tuple(run.send([item]))
    found: list[Outcome] = []
    settled = [(item, found)]
    try:
        with budget:
            batch.stage(run.rows([item]), [], budget.remaining)
            batch.decide(not run.sends, budget.remaining)
        found.extend(run.send([item]))
        if run.sends and is_left(found):
            with budget:
                batch.decide(True, budget.remaining)
    except BaseException:
        found.extend(run.unsettled())
        batch.revoke(settled, budget.remaining)
        batch.abort(settled)
        raise
    if all(o.settled for o in found):
        batch.finish(settled)
    else:
        batch.revoke(settled, budget.remaining)
        batch.abort(settled)
    return tuple(found)


def _tell(
    delivery: IDelivery, run: IDeliveryRun, item: Item, outcomes: tuple[Outcome, ...]
) -> None:
    message_id = item.envelope.message_id
    if run.sends or any(o.reply is not None for o in outcomes):
        delivery.events.emit(MessageSettled(message_id, delivery.route, outcomes))
    queued = tuple(o for o in outcomes if o.queued)
    if queued and delivery.queue is not None:
        delivery.events.emit(MessageQueued(message_id, delivery.queue.name, queued))
