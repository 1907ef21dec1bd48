"""What the queue makes of an outcome: the state, and when it is tried again."""

from __future__ import annotations

from dataclasses import dataclass

from ..envelope import Outcome, Scope, Status
from .model import State

#: Milliseconds until the next try: of a recipient or message that was asked to wait (greylisting
#: wants five minutes, RFC 6647 section 4.4), of a route, and of what is in doubt.
DEFERRED_DELAY = 300_000
ROUTE_DELAY = 60_000
DOUBT_DELAY = 300_000

#: Characters of a reply that are kept.
MAX_REPLY = 500

_STATES = {
    Status.ACCEPTED: State.SENT,
    Status.DEFERRED: State.DEFERRED,
    Status.FAILED: State.FAILED,
    Status.IN_DOUBT: State.IN_DOUBT,
    Status.UNSENT: State.READY,
}


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is written of a delivery that was tried."""

    state: State
    #: milliseconds since 1970, None for never
    due: int | None
    #: how many tries it cost, 0 or 1
    attempts: int
    #: True if it may have been sent
    doubt: bool
    code: int | None
    reply: str | None


def settlement(outcome: Outcome, now: int, *, hold_doubt: bool = False) -> Settlement:
    """What `outcome`, of a first try at `now`, comes to.

    With `hold_doubt`, what is in doubt waits for a person. A failure of the route is no try.
    """
    state = _STATES[outcome.status]
    route = outcome.scope is Scope.ROUTE
    tried = outcome.status is not Status.UNSENT and not route
    due: int | None = now
    if state is State.DEFERRED:
        due = now + (ROUTE_DELAY if route else DEFERRED_DELAY)
    elif state is State.IN_DOUBT:
        due = None if hold_doubt else now + DOUBT_DELAY
    code, reply = said(outcome)
    return Settlement(state, due, int(tried), state is State.IN_DOUBT, code, reply)


def said(outcome: Outcome) -> tuple[int | None, str | None]:
    """The code of the reply and the reply, or the reason in words, as they are kept."""
    reply = outcome.reply
    words = str(reply) if reply is not None else outcome.reason
    return (reply.code if reply is not None else None), (words[:MAX_REPLY] or None)
