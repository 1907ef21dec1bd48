"""The one seam for what happened: logging, metrics and audit subscribe here.

A mailer and everything below it share one `Events`. Subscribers are called in the thread in which
the thing happened, in the order of their subscription, with a frozen dataclass of this module.
A subscriber that raises is logged and the mail goes on; it cannot fail a commit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from .common.logs import quiet_logger
from .common.shown import printable
from .outcome import Outcome

log = quiet_logger("txmail")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened."""


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """A connection was opened and the server has answered EHLO or HELO."""

    #: the transport's printable name, such as ``smtp://mx.example.com:25``
    route: str


@dataclass(frozen=True, slots=True)
class ConnectionLost(Event):
    """A connection ended before we had ended it."""

    route: str
    reason: str


@dataclass(frozen=True, slots=True)
class MessageSettled(Event):
    """What became of one message; one event per message that a commit tried to send."""

    message_id: str
    route: str
    #: one for each recipient, in the order of the envelope
    outcomes: tuple[Outcome, ...]

    @property
    def accepted(self) -> bool:
        """True if every recipient was accepted."""
        return all(o.status == "accepted" for o in self.outcomes)


@dataclass(frozen=True, slots=True)
class MessageQueued(Event):
    """A transaction has committed with a message that the queue goes on with."""

    message_id: str
    #: printable name of the queue
    queue: str
    #: of those recipients that the queue has
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class SentForNothing(Event):
    """The transaction failed after its mail had been accepted: nobody can take it back.

    Another data manager raised in `tpc_finish`, or sorts after ours and voted no.
    """

    message_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VotesAfterUs(Event):
    """A data manager sorts after ours: if it votes no, the mail is out for rolled-back work."""

    sort_key: str


@dataclass(frozen=True, slots=True)
class DeliverySettled(Event):
    """A worker has tried to send to one recipient, and the queue has what became of it."""

    #: printable name of the queue, and name of the route
    queue: str
    route: str
    outcome: Outcome
    #: of the delivery from now on, such as ``sent``
    state: str
    #: how many tries it has cost so far
    attempts: int
    #: seconds since it was enqueued
    age: float
    #: seconds until it is tried again; None if it is not, or not before a person says so
    again: float | None


@dataclass(frozen=True, slots=True)
class ResultsRefused(Event):
    """A worker came with results after its lease had gone to others: so many were not written.

    A `DeliverySettled` that comes with it may be about one of them.
    """

    queue: str
    count: int


@dataclass(frozen=True, slots=True)
class RouteFailed(Event):
    """A worker leaves a route alone for a while. Its mail waits, and is none the worse for it."""

    route: str
    reason: str
    #: seconds until it is tried again
    pause: float


@dataclass(frozen=True, slots=True)
class RouteStopped(RouteFailed):
    """The same, and it will not work before a person does something.

    The `pause` is infinite if no try is made before a login has another password.
    """


@dataclass(frozen=True, slots=True)
class RouteSlowed(Event):
    """The server wants less: the route carries less on all hosts, and more again with time."""

    route: str
    reason: str
    #: messages a second from now on
    rate: float


@dataclass(frozen=True, slots=True)
class RouteRecovered(Event):
    """A route works again."""

    route: str


@dataclass(frozen=True, slots=True)
class WorkerStarted(Event):
    """A worker begins with a queue."""

    queue: str


@dataclass(frozen=True, slots=True)
class WorkerStopped(Event):
    """It has ended, and has tried so many deliveries."""

    queue: str
    settled: int
    #: False if something was still on the wire when its time was over: that is in doubt
    finished: bool


Subscriber = Callable[[Event], object]


def log_event(event: Event) -> None:
    """The default subscriber: one line a message, never a body or an error of ours."""
    match event:
        case DeliverySettled():
            _log_delivery(event)
        case MessageSettled(message_id, route, outcomes) if event.accepted:
            if not log.isEnabledFor(logging.INFO):
                return
            replies = dict.fromkeys(str(o.reply) for o in outcomes if o.reply is not None)
            answer = "; ".join(replies) or "accepted"
            log.info(
                "sent %s via %s to %d recipient(s): %s", message_id, route, len(outcomes), answer
            )
        case MessageSettled(message_id, route, outcomes):
            for outcome in outcomes:
                log.warning("%s via %s: %s", message_id, route, outcome)
        case MessageQueued(message_id, queue, outcomes):
            log.info("queued %s in %s for %d recipient(s)", message_id, queue, len(outcomes))
        case Connected(route):
            log.debug("connected to %s", route)
        case ConnectionLost(route, reason):
            log.info("connection to %s lost: %s", route, reason)
        case SentForNothing(message_ids):
            log.critical(
                "the transaction failed after its mail was accepted: %s", ", ".join(message_ids)
            )
        case VotesAfterUs(sort_key):
            log.warning(
                "a data manager with sort key %r votes after the mail was sent; "
                "if it votes no, the mail is out for rolled-back work",
                sort_key,
            )
        case _:
            _log_worker(event)


def _log_delivery(event: DeliverySettled) -> None:
    sent = event.state == "sent"
    level = logging.INFO if sent else logging.WARNING
    if not log.isEnabledFor(level):
        return
    outcome = event.outcome
    why = printable(str(outcome.reply) if outcome.reply is not None else outcome.reason)
    again = "" if event.again is None else f", again in {event.again:.0f} s"
    log.log(
        level,
        "%s %s via %s to %s: %s (try %d%s)",
        event.state,
        printable(outcome.message_id),
        event.route,
        outcome.recipient,
        why,
        event.attempts,
        again,
    )


def _log_worker(event: Event) -> None:
    match event:
        case ResultsRefused(queue, count):
            log.error("%s: %d result(s) came after the lease had gone to others", queue, count)
        case RouteStopped(route, reason, pause) if math.isinf(pause):
            log.error(
                "route %s needs a person, no try before it has another password: %s", route, reason
            )
        case RouteStopped(route, reason, pause):
            log.error("route %s needs a person, next try in %.0f s: %s", route, pause, reason)
        case RouteFailed(route, reason, pause):
            log.warning("route %s failed, next try in %.0f s: %s", route, pause, reason)
        case RouteSlowed(route, reason, rate):
            log.warning(
                "route %s is slowed down to %.3g message(s) a minute: %s", route, rate * 60, reason
            )
        case RouteRecovered(route):
            log.info("route %s works again", route)
        case WorkerStarted(queue):
            log.info("a worker has begun with %s", queue)
        case WorkerStopped(queue, settled, finished):
            log.info("a worker has ended with %s after %d deliveries", queue, settled)
            if not finished:
                log.error("%s: what was still on the wire is in doubt", queue)


class Events:
    """Subscribers of what happens to one mailer's mail; `log_event` is there from the start."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = [log_event]

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with every `Event` from now on."""
        self._subscribers = [*self._subscribers, subscriber]

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Stop calling `subscriber`; a ValueError if it is not subscribed."""
        remaining = list(self._subscribers)
        remaining.remove(subscriber)
        self._subscribers = remaining

    def emit(self, event: Event) -> None:
        """Tell every subscriber; one that raises is logged, the others still hear of it."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                log.exception("a subscriber failed on %s", type(event).__name__)
