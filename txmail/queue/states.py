"""The states of the queue, and the one table of legal moves between them.

::

    staged -> ready -> sending -> sent | deferred | failed | in_doubt
                 ^------------------------+---------------+

`held`, `cancelled` and `expired` are on the side. A delivery is one recipient of a message. A batch
is the mail of one transaction; its state decides about its staged deliveries.
"""

from __future__ import annotations

from enum import StrEnum

from ..exceptions import IllegalMove


class State(StrEnum):
    """The state of one delivery."""

    #: written; whether its transaction commits is not known yet
    STAGED = "staged"
    #: a worker may claim it when it is due
    READY = "ready"
    #: a worker has a lease on it
    SENDING = "sending"
    #: the next hop has accepted it
    SENT = "sent"
    #: the next hop has asked for another try later
    DEFERRED = "deferred"
    #: the next hop has refused it for good; it waits for a person
    FAILED = "failed"
    #: it may have been sent: it is tried again when it is due, or waits for a person
    IN_DOUBT = "in_doubt"
    #: a person has stopped it
    HELD = "held"
    #: a person has cancelled it, or another message had its idempotency key first
    CANCELLED = "cancelled"
    #: it was not sent before its end
    EXPIRED = "expired"


#: The states that may follow each state of a delivery.
MOVES: dict[State, frozenset[State]] = {
    State.STAGED: frozenset(
        [
            State.READY,
            State.SENT,
            State.DEFERRED,
            State.FAILED,
            State.IN_DOUBT,
            State.CANCELLED,
        ]
    ),
    State.READY: frozenset([State.SENDING, State.HELD, State.CANCELLED, State.EXPIRED]),
    State.SENDING: frozenset(
        [
            State.READY,
            State.SENT,
            State.DEFERRED,
            State.FAILED,
            State.IN_DOUBT,
            State.EXPIRED,
        ]
    ),
    State.SENT: frozenset(),
    State.DEFERRED: frozenset([State.READY, State.HELD, State.CANCELLED, State.EXPIRED]),
    State.FAILED: frozenset([State.READY, State.CANCELLED]),
    State.IN_DOUBT: frozenset(
        [State.READY, State.SENT, State.FAILED, State.DEFERRED, State.HELD, State.CANCELLED]
    ),
    State.HELD: frozenset([State.READY, State.CANCELLED, State.EXPIRED]),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset([State.READY, State.CANCELLED]),
}


def check_move(source: State, target: State) -> None:
    """Raise `IllegalMove` unless a delivery in `source` may come into `target`."""
    if target not in MOVES[source]:
        raise IllegalMove(f"a delivery that is {source} cannot become {target}")


class BatchState(StrEnum):
    """The state of the mail of one transaction."""

    #: written; whether its transaction commits is not known yet
    STAGED = "staged"
    #: committed; its own process is sending some of it
    SENDING = "sending"
    #: committed; some of its deliveries still have to be made ready
    PUBLISHING = "publishing"
    #: committed; all its deliveries are ready or beyond
    PUBLISHED = "published"
    #: not committed; a process that was taken for dead may still say that it has committed
    DISCARDED = "discarded"
    #: no witness knows whether it has committed; it waits for a person
    UNKNOWN = "unknown"


#: The states that may follow each state of a batch.
BATCH_MOVES: dict[BatchState, frozenset[BatchState]] = {
    BatchState.STAGED: frozenset(
        [
            BatchState.SENDING,
            BatchState.PUBLISHING,
            BatchState.PUBLISHED,
            BatchState.DISCARDED,
            BatchState.UNKNOWN,
        ]
    ),
    BatchState.SENDING: frozenset(
        [BatchState.PUBLISHING, BatchState.PUBLISHED, BatchState.DISCARDED]
    ),
    BatchState.PUBLISHING: frozenset([BatchState.PUBLISHED]),
    BatchState.PUBLISHED: frozenset(),
    BatchState.DISCARDED: frozenset(
        [BatchState.SENDING, BatchState.PUBLISHING, BatchState.PUBLISHED]
    ),
    BatchState.UNKNOWN: frozenset(
        [
            BatchState.SENDING,
            BatchState.PUBLISHING,
            BatchState.PUBLISHED,
            BatchState.DISCARDED,
        ]
    ),
}


def batch_before(state: BatchState) -> tuple[BatchState, ...]:
    """The states from which a batch may come into `state`."""
    return tuple(source for source, targets in BATCH_MOVES.items() if state in targets)
