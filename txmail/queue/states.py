"""The states of the queue, and which may follow which: one table, and nobody moves past it.

::

    staged -> ready -> sending -> sent | deferred | failed | in_doubt
                 ^------------------------+---------------+

`held`, `cancelled` and `expired` are on the side. A delivery is what is sent to one recipient of a
message; a batch is what one transaction has written, and decides about its staged deliveries.
"""

from __future__ import annotations

from enum import StrEnum

from ..exceptions import IllegalMove


class State(StrEnum):
    """What there is to be said of one delivery."""

    #: written, and its transaction has not committed yet as far as anybody knows
    STAGED = "staged"
    #: to be sent when it is due
    READY = "ready"
    #: a worker has a lease on it
    SENDING = "sending"
    #: the next hop has it
    SENT = "sent"
    #: the next hop has said "later"
    DEFERRED = "deferred"
    #: the next hop will not have it; waits for a person
    FAILED = "failed"
    #: it may have been sent: it is tried again when it is due, or waits for a person
    IN_DOUBT = "in_doubt"
    #: a person has stopped it
    HELD = "held"
    #: nobody wants it sent any more, or another one with its idempotency key was first
    CANCELLED = "cancelled"
    #: its time was over before it could be sent
    EXPIRED = "expired"


#: What may become of a delivery.
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
    """What there is to be said of one transaction's mail."""

    #: written; whether its transaction commits is not known yet
    STAGED = "staged"
    #: committed, and its process is sending some of it itself
    SENDING = "sending"
    #: committed; some of its deliveries still have to be made ready
    PUBLISHING = "publishing"
    #: committed, and all its deliveries are on their way
    PUBLISHED = "published"
    #: not committed. A process that was taken for dead may still say that it was
    DISCARDED = "discarded"
    #: nobody could say whether it has committed; waits for a person
    UNKNOWN = "unknown"


#: What may become of a batch.
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
