"""Goes on over another connection when one ends: for workers, and callers like them.

A transaction that is all or nothing does not use it: it reconnects once at most, before anything
was sent.
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

#: Connections in a row that may end without having settled a message: one, and its replacement.
FRUITLESS_LIMIT = 2


#: Outcome of a message that was taken and not begun when an error came.
_NOT_BEGUN = Outcome(
    "", Status.UNSENT, Scope.MESSAGE, action=Action.DEFER, reason="an error has ended sending"
)
_FORGOTTEN = Outcome(
    "",
    Status.IN_DOUBT,
    Scope.MESSAGE,
    action=Action.IN_DOUBT,
    reason="an error has ended sending: the message may have left",
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

    An iterator of one `Outcome` per recipient, as they are known; `Outcome.position` says which
    envelope it is about. When a connection ends, messages that were not begun go on over another
    one: as often as each connection has settled at least one message, and once after one that has
    settled none. A message in flight is ``in_doubt`` then, and never sent again here.

    `window` and `guard` are as for `ISession.send`. `timeout` is in seconds, for the whole call.

    Network failures end in outcomes, not in errors: what cannot be sent at last is ``unsent``. If
    the iteration of `envelopes` raises an error, the earlier envelopes are sent, and then the error
    is raised; an object that is no `Envelope` raises TypeError. Any other error of the transport,
    or of `guard`, ends sending at once: it is raised after the outcomes of all envelopes that were
    taken. To close the iterator ends sending, too; messages without an outcome may have been sent.
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
        #: envelopes that were taken: not sent on a connection that has ended, or not offered yet
        self._waiting: deque[tuple[int, Envelope]] = deque()
        #: by the counting of the present connection, envelopes that lack an outcome
        self._open: dict[int, tuple[int, Envelope, list[Outcome]]] = {}
        #: True once no more envelopes come, and the error of the iteration, if it raised one
        self._ended = False
        self._error: Exception | None = None
        #: an unexpected error that has ended sending
        self._broken: Exception | None = None
        #: True if the present connection has settled a message
        self._fruitful = False
        #: True if an outcome of the present connection was about the route
        self._told = False
        #: the outcome of messages that are not sent at last
        self._why = Outcome(
            "",
            Status.UNSENT,
            Scope.ROUTE,
            action=Action.DEFER_ROUTE,
            reason="nothing of it was sent",
        )

    def outcomes(self) -> Iterator[Outcome]:
        """Send; the outcomes as they are known."""
        fruitless = 0
        while fruitless < FRUITLESS_LIMIT and not self._is_done():
            try:
                session = self._open_session(fresh=fruitless > 0)
            except TransportError as error:
                action = Action.DEFER_ROUTE if error.temporary else Action.STOP_ROUTE
                self._why = replace(self._why, reply=error.reply, reason=str(error), action=action)
                break
            except Exception as error:
                self._broken, self._ended = error, True
                break
            try:
                yield from self._send(session)
            finally:
                session.close(dirty=True)
            if self._broken is not None:
                break
            fruitless = 0 if self._fruitful else fruitless + 1
        if self._broken is not None:
            self._why = _NOT_BEGUN
        yield from self._report_unsent()
        problem = self._broken or self._error
        if problem is not None:
            raise problem

    def _is_done(self) -> bool:
        """True if nothing is left to send."""
        if not self._waiting and not self._ended:
            found = self._next()
            if found is None:
                self._ended = True
            else:
                self._waiting.append(found)
        return not self._waiting

    def _next(self) -> tuple[int, Envelope] | None:
        """The next envelope, None at the end. An error of the iteration is raised later."""
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

    def _open_session(self, *, fresh: bool) -> ISession:
        if self._left() == 0.0:
            raise TransportError("the time for it is up")
        return self._transport.open(timeout=self._left(), fresh=fresh)

    def _send(self, session: ISession) -> Iterator[Outcome]:
        """Send over one connection. What it has not begun is in `_waiting` at the end."""
        self._open.clear()
        self._fruitful = self._told = False
        unsent: list[tuple[int, Envelope]] = []
        sending = session.send(
            self._offer(),
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
        yield from self._report_forgotten()
        unsent.sort(key=lambda pair: pair[0])
        self._waiting.extendleft(reversed(unsent))

    def _all_outcomes(self, session: ISession, sending: Iterator[Outcome]) -> Iterator[Outcome]:
        """The outcomes of `sending`, and those that it did not hand out because of an error."""
        try:
            yield from sending
            return
        except Exception as error:
            self._broken, self._ended = error, True
        for outcome in session.unsettled():
            found = self._open.get(outcome.position)
            if found is not None and outcome.recipient not in {o.recipient for o in found[2]}:
                yield outcome

    def _report_forgotten(self) -> Iterator[Outcome]:
        """Put in doubt what a transport has taken without an outcome: it may have been sent."""
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
        """Note what `outcome` says about the route."""
        if outcome.scope is Scope.ROUTE:
            # A reply of the server says more than a later "nothing was sent".
            if outcome.reply is not None or not self._told:
                self._why = replace(outcome, status=Status.UNSENT)
            self._told = True
        elif outcome.status not in (Status.IN_DOUBT, Status.UNSENT):
            self._fruitful = True

    def _offer(self) -> Iterator[Envelope]:
        """Give the waiting envelopes to the present connection, one after another."""
        for number in itertools.count():
            if self._is_done():
                return
            position, envelope = self._waiting.popleft()
            self._open[number] = position, envelope, []
            yield envelope

    def _report_unsent(self) -> Iterator[Outcome]:
        """Report as unsent what is left when no connection can be used."""
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
    """True if another connection may do better than this one."""
    return outcome.status is Status.UNSENT and outcome.action is not Action.STOP_ROUTE


def _only(envelope: Envelope, unsent: list[Outcome]) -> Envelope:
    """`envelope` for the recipients in `unsent`."""
    if len(unsent) == len(envelope.recipients):
        return envelope
    return envelope.only([outcome.recipient for outcome in unsent])
