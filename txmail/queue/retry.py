"""Which state a delivery gets by an outcome, and when it is tried again.

`RetryPolicy` can be replaced by any object that has its `settle`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..outcome import Action, Outcome, Scope, Status
from .states import State

#: Milliseconds until the next try: of a recipient or message that the server asked to wait
#: (greylisting wants five minutes, RFC 6647 section 4.4), of a route, and of a delivery in doubt.
DEFERRED_DELAY_MS = 300_000
ROUTE_DELAY_MS = 60_000
DOUBT_DELAY_MS = 300_000
#: How often a delivery in doubt is tried again before it waits for a person.
DOUBT_RETRIES = 3
#: The longest time between two tries, and how long a message without an end is tried.
MAX_DELAY_MS = 4 * 3_600_000
LIFETIME_MS = 5 * 24 * 3_600_000
#: How long a delivery to a full mailbox is tried.
FULL_LIFETIME_MS = 3 * 24 * 3_600_000

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
    """The new values of a delivery that was tried."""

    state: State
    #: milliseconds since 1970; None if a person has to decide
    due: int | None
    #: how many tries this counts as, 0 or 1
    attempts: int
    #: true if the message may have been sent
    doubt: bool
    code: int | None
    reply: str | None


class RetryPolicy:
    """When a delivery is tried again: after five minutes, and twice as long each time.

    A failure of the route does not count as a try. A message that is asked to wait is tried until
    it expires.
    """

    def __init__(
        self,
        *,
        first: int = DEFERRED_DELAY_MS,
        longest: int = MAX_DELAY_MS,
        lifetime: int = LIFETIME_MS,
        hold_doubt: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """All times are in milliseconds; `lifetime` is for messages without an end of their own.

        With `hold_doubt`, deliveries in doubt wait for a person. `jitter` returns 0 to 1.
        """
        self.first = first
        self.longest = longest
        self.lifetime = lifetime
        self.hold_doubt = hold_doubt
        self._jitter = jitter

    def settle(
        self,
        outcome: Outcome,
        now_ms: int,
        *,
        attempts: int = 0,
        created: int | None = None,
        expires: int | None = None,
    ) -> Settlement:
        """The new values of a delivery with `outcome`, after `attempts` earlier tries.

        `now_ms`, `created` and `expires` are milliseconds since 1970.
        """
        state = _STATES[outcome.status]
        route = outcome.scope is Scope.ROUTE
        doubt = outcome.status is Status.IN_DOUBT
        tried = doubt or (outcome.status is not Status.UNSENT and not route)
        code, reply = said(outcome)
        due: int | None = now_ms
        if state is State.DEFERRED and route:
            state, due = State.READY, now_ms + ROUTE_DELAY_MS
        elif state is State.DEFERRED and outcome.action is Action.SPLIT:
            state, tried = State.READY, False
        elif state is State.DEFERRED:
            due = now_ms + self.delay(attempts)
        elif state is State.IN_DOUBT:
            due = None if self.hold_doubt else now_ms + max(DOUBT_DELAY_MS, self.delay(attempts))
        born = now_ms if created is None else created
        end = expires if expires is not None else born + self.lifetime
        if _is_full(outcome):
            end = min(end, born + FULL_LIFETIME_MS)
        if state is State.DEFERRED and due is not None and due >= end:
            state, due = State.EXPIRED, None
        elif state is State.IN_DOUBT and due is not None and due >= end:
            due = None  # it may have arrived each time
        return Settlement(state, due, int(tried), state is State.IN_DOUBT, code, reply)

    def delay(self, attempts: int) -> int:
        """Milliseconds until the next try, after `attempts` tries before this one."""
        delay = min(self.longest, self.first * 2 ** min(attempts, 20))
        return int(delay * (1 + self._jitter() / 4))


def settlement(outcome: Outcome, now_ms: int, *, hold_doubt: bool = False) -> Settlement:
    """The new values of a delivery with `outcome` of its first try, at `now_ms`.

    With `hold_doubt`, a delivery in doubt waits for a person. A failure of the route is no try.
    """
    return RetryPolicy(hold_doubt=hold_doubt, jitter=float).settle(outcome, now_ms)


def _is_full(outcome: Outcome) -> bool:
    """True if the recipient's mailbox is full (RFC 3463 section 3.3)."""
    status = outcome.reply.enhanced if outcome.reply is not None else None
    return status is not None and (status.subject, status.detail) == (2, 2)


def said(outcome: Outcome) -> tuple[int | None, str | None]:
    """The code of the reply, and the reply or the reason in words, cut to `MAX_REPLY`."""
    reply = outcome.reply
    words = str(reply) if reply is not None else outcome.reason
    return (reply.code if reply is not None else None), (words[:MAX_REPLY] or None)
