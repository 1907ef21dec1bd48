"""What becomes of deliveries that were tried, by the retry policy, and what is told of it."""

from __future__ import annotations

from typing import Any

from ..common.logs import quiet_logger
from ..events import DeliverySettled, Event
from ..outcome import Outcome, Scope, Status
from ..queue.queue import Queue
from ..queue.retry import RetryPolicy, Settlement
from ..queue.sql.claimed import ClaimedMessage
from ..queue.states import State, check_move
from .faults import Result

log = quiet_logger("txmail.worker")

#: States from which a delivery is tried again by itself.
_GOES_ON = (State.READY, State.DEFERRED, State.IN_DOUBT)


#: Seconds after which a message is tried again that was refused for the route's sake.
AGAIN = 5.0


class Judge:
    """Asks a policy, which users may have written."""

    def __init__(self, queue: Queue, policy: RetryPolicy) -> None:
        self._queue = queue
        self._policy = policy

    @property
    def holds_doubt(self) -> bool:
        """True if what is in doubt waits for a person."""
        return bool(getattr(self._policy, "hold_doubt", self._queue.on_doubt == "hold"))

    def settle(self, result: Result, now: int) -> tuple[int, int, Settlement]:
        """The delivery, the token it is held by, and what is written of it."""
        work, place, outcome = result
        made = self._settlement(work, place, outcome, now)
        if outcome.scope is Scope.ROUTE and outcome.status is Status.UNSENT:
            left = max(work.lane.circuit.left, work.lane.faults.left(outcome.recipient))
            if outcome.reply is not None and not work.lane.circuit.failures:
                left = max(left, AGAIN)
            due = now + int(left * 1000)
            made = Settlement(State.READY, due, 0, False, made.code, made.reply)
        return work.ids[place], work.token, made

    def _settlement(
        self, work: ClaimedMessage, place: int, outcome: Outcome, now: int
    ) -> Settlement:
        """What the policy says; what ours says if it fails, or asks for what cannot be."""
        known: Any = {
            "attempts": work.attempts[place],
            "created": work.created,
            "expires": work.expires,
        }
        try:
            made = self._policy.settle(outcome, now, **known)
            _check(made)
        except Exception:
            log.exception("the retry policy failed; the usual one is used")
            return RetryPolicy(hold_doubt=self.holds_doubt).settle(outcome, now, **known)
        return made

    def delays(self, result: Result, settled: Settlement) -> str | None:
        """The name of the route that the delivery waits for because that does not work now."""
        work, _, outcome = result
        unsent = settled.state is State.READY and not settled.attempts
        return work.lane.route.name if unsent and outcome.scope is Scope.ROUTE else None

    def tell(self, result: Result, settled: Settlement, now: int) -> Event:
        """The event for those who want to know."""
        work, place, outcome = result
        again = settled.due if settled.state in _GOES_ON else None
        return DeliverySettled(
            self._queue.name,
            work.lane.route.name,
            outcome,
            settled.state.value,
            work.attempts[place] + settled.attempts,
            max(0.0, (now - work.created) / 1000),
            None if again is None else max(0.0, (again - now) / 1000),
        )


def _check(made: Settlement) -> None:
    """Raise an error for what cannot be written."""
    check_move(State.SENDING, made.state)
    if made.due is None:
        if made.state in (State.READY, State.DEFERRED):
            raise ValueError(f"{made.state.value} at no time")
    elif not isinstance(made.due, int) or not 0 <= made.due < 2**63:
        raise ValueError("due is not in milliseconds since 1970")
    if made.attempts not in (0, 1):
        raise ValueError("one try, or none")
    if made.code is not None and not 0 <= made.code < 2**15:
        raise ValueError("no code of a reply")
    if made.reply is not None and b"\0" in made.reply.encode():
        raise ValueError("a NUL in the reply")
