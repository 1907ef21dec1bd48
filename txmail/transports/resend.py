"""Sending that goes on after a connection has ended: for those who may, workers above all.

A transaction that is all or nothing may not: it reconnects once at most, before anything was sent.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ..common.shown import name_of
from ..envelope import Envelope
from ..exceptions import TransportError
from ..interfaces import ISession, ITransport
from ..outcome import Action, Outcome, Scope, Status

#: In a row, how many connections may end without having settled anything: the one that is
#: replaced, and the one that replaces it.
FRUITLESS_LIMIT = 2


#: of what was taken and not begun when an error came
_NOT_BEGUN = Outcome(
    "", Status.UNSENT, Scope.MESSAGE, action=Action.DEFER, reason="an error has ended sending"
)
_FORGOTTEN = Outcome(
    "",
    Status.IN_DOUBT,
    Scope.MESSAGE,
    action=Action.IN_DOUBT,
    reason="an error has ended sending, and nobody knows what has left",
)


def send_all(
    transport: ITransport,
    envelopes: Iterable[Envelope],
    *,
    window: int | None = None,
    timeout: float | None = None,
    guard: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Outcome]:
    """Send `envelopes` over as many connections of `transport` as it takes, one after another.

    An iterator of one `Outcome` per recipient, as they are known; `Outcome.position` says which of
    the envelopes it is about. When a connection ends, what was not begun goes on over another one:
    as often as each has settled at least one message, and once when one has settled none. What was
    in flight is ``in_doubt``, and never sent again here.

    `window` and `guard` are as for `ISession.send`. `timeout` is in seconds, for all of it. Network
    failures end in outcomes, not in errors: what could not be sent at last is ``unsent``. If the
    iteration of `envelopes` raises an error, what had come until then is sent, and then the error
    is raised; a TypeError for what is no `Envelope`. An error of the transport that is none of the
    network, or of `guard`, ends sending at once, and is raised behind the outcomes of all that was
    taken. Closing the iterator ends it, too: what has no outcome then may have been sent, or not.
    """
    return _Resending(transport, envelopes, window, timeout, guard, clock).outcomes()


class _Resending:
    """One call of `send_all`."""

    def __init__(
        self,
        transport: ITransport,
        envelopes: Iterable[Envelope],
        window: int | None,
        timeout: float | None,
        guard: Callable[[], object] | None,
        clock: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._guard = guard
        self._envelopes = enumerate(envelopes)
        self._window = window
        self._clock = clock
        self._deadline = math.inf if timeout is None else clock() + timeout
        #: taken, and not sent on a connection that has ended, or not yet offered to one
        self._waiting: deque[tuple[int, Envelope]] = deque()
        #: of the present connection: by its own counting, envelopes without all their outcomes
        self._open: dict[int, tuple[int, Envelope, list[Outcome]]] = {}
        #: True once there will be no more envelopes, and the error that was the reason, if any
        self._ended = False
        self._error: Exception | None = None
        #: what nobody has expected, and has ended all of it
        self._broken: Exception | None = None
        #: True if the present connection has settled something
        self._fruitful = False
        #: True if it was the route's fault that something was not accepted there
        self._told = False
        #: why something was not sent, as far as that is known
        self._why = Outcome(
            "",
            Status.UNSENT,
            Scope.ROUTE,
            action=Action.DEFER_ROUTE,
            reason="nothing of it was sent",
        )

    def outcomes(self) -> Iterator[Outcome]:
        """Send."""
        fruitless = 0
        while fruitless < FRUITLESS_LIMIT and not self._is_done():
            try:
                session = self._opened(fresh=fruitless > 0)
            except TransportError as error:
                action = Action.DEFER_ROUTE if error.temporary else Action.STOP_ROUTE
                self._why = replace(self._why, reply=error.reply, reason=str(error), action=action)
                break
            except Exception as error:
                self._broken, self._ended = error, True
                break
            try:
                yield from self._sent(session)
            finally:
                session.close(dirty=True)
            if self._broken is not None:
                break
            fruitless = 0 if self._fruitful else fruitless + 1
        if self._broken is not None:
            self._why = _NOT_BEGUN
        yield from self._unsent()
        problem = self._broken or self._error
        if problem is not None:
            raise problem

    def _is_done(self) -> bool:
        """True if there is nothing left to send."""
        if not self._waiting and not self._ended:
            found = self._next()
            if found is None:
                self._ended = True
            else:
                self._waiting.append(found)
        return not self._waiting

    def _next(self) -> tuple[int, Envelope] | None:
        """One more envelope. An error waits: messages that are on their way are none of its."""
        try:
            position, envelope = next(self._envelopes)
            if not isinstance(envelope, Envelope):
                raise TypeError(f"an Envelope is needed, not {name_of(type(envelope))}")
        except StopIteration:
            return None
        except Exception as error:
            self._error = error
            return None
        return position, envelope

    def _left(self) -> float | None:
        return None if self._deadline == math.inf else max(0.0, self._deadline - self._clock())

    def _opened(self, *, fresh: bool) -> ISession:
        if self._left() == 0.0:
            raise TransportError("the time for it is up")
        return self._transport.open(timeout=self._left(), fresh=fresh)

    def _sent(self, session: ISession) -> Iterator[Outcome]:
        """The outcomes of one connection; what it has not begun is in `_waiting` at the end."""
        self._open.clear()
        self._fruitful = self._told = False
        unsent: list[tuple[int, Envelope]] = []
        sending = session.send(
            self._taken(),
            window=self._window,
            keep_untaken=True,
            timeout=self._left(),
            guard=self._guard,
        )
        try:
            for outcome in self._all_outcomes(session, sending):
                position, envelope, said = self._open[outcome.position]
                said.append(replace(outcome, position=position))
                if len(said) < len(envelope.recipients):
                    continue
                del self._open[outcome.position]
                left = [o for o in said if _goes_on(o)]
                if left:
                    unsent.append((position, _only(envelope, left)))
                for known in said:
                    self._note(known)
                    if not _goes_on(known):
                        yield known
        finally:
            close = getattr(sending, "close", None)
            if close is not None:
                close()
        yield from self._forgotten()
        unsent.sort(key=lambda pair: pair[0])
        self._waiting.extendleft(reversed(unsent))

    def _all_outcomes(self, session: ISession, sending: Iterator[Outcome]) -> Iterator[Outcome]:
        """The outcomes of `sending`, also those that an error has kept it from telling."""
        try:
            yield from sending
            return
        except Exception as error:
            self._broken, self._ended = error, True
        for outcome in session.unsettled():
            found = self._open.get(outcome.position)
            if found is not None and outcome.recipient not in {o.recipient for o in found[2]}:
                yield outcome

    def _forgotten(self) -> Iterator[Outcome]:
        """What a transport has taken and said nothing about may have been sent."""
        for position, envelope, said in self._open.values():
            told = {outcome.recipient for outcome in said}
            yield from said
            for recipient in envelope.recipients:
                if recipient not in told:
                    yield replace(
                        _FORGOTTEN,
                        recipient=recipient,
                        message_id=envelope.message_id,
                        position=position,
                    )
        self._open.clear()

    def _note(self, outcome: Outcome) -> None:
        """Learn from `outcome` what to think of the route."""
        if outcome.scope is Scope.ROUTE:
            # What the server has said tells more than that nothing was sent any more.
            if outcome.reply is not None or not self._told:
                self._why = replace(outcome, status=Status.UNSENT)
            self._told = True
        elif outcome.status not in (Status.IN_DOUBT, Status.UNSENT):
            self._fruitful = True

    def _taken(self) -> Iterator[Envelope]:
        """The envelopes that are left, as the present connection takes them."""
        for number in itertools.count():
            if self._is_done():
                return
            position, envelope = self._waiting.popleft()
            self._open[number] = position, envelope, []
            yield envelope

    def _unsent(self) -> Iterator[Outcome]:
        """What is left when there is no connection that leads anywhere."""
        while not self._is_done():
            position, envelope = self._waiting.popleft()
            for recipient in envelope.recipients:
                yield replace(
                    self._why,
                    recipient=recipient,
                    message_id=envelope.message_id,
                    preflighted=False,
                    position=position,
                )


def _goes_on(outcome: Outcome) -> bool:
    """True if another connection may do better, by what is known of this one."""
    return outcome.status is Status.UNSENT and outcome.action is not Action.STOP_ROUTE


def _only(envelope: Envelope, unsent: list[Outcome]) -> Envelope:
    """`envelope` for those to whom nothing was sent."""
    if len(unsent) == len(envelope.recipients):
        return envelope
    return envelope.only([outcome.recipient for outcome in unsent])
