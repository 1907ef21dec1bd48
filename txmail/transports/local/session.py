"""Sends to a program, a folder or a terminal: the common part of sessions without a server.

A session hands over one envelope after the other, each in one call; in several calls if a call
takes a limited number of recipients. A subclass does one call, and says what it can never take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from zope.interface import implementer

from ...envelope import Envelope
from ...interfaces import ISession
from ...outcome import Action, Outcome, Scope, Status


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one call, for each of its recipients."""

    status: Status
    scope: Scope = Scope.MESSAGE
    action: Action = Action.DONE
    reason: str = ""

    def outcome(self, recipient: str, message_id: str, position: int = 0) -> Outcome:
        """The outcome of `recipient`, about whom no server was asked."""
        return Outcome(
            recipient,
            self.status,
            self.scope,
            message_id=message_id,
            action=self.action,
            reason=self.reason,
            preflighted=False,
            position=position,
        )


def unsent(reason: str) -> Result:
    """The call did nothing, for a reason that says nothing about the message."""
    return Result(Status.UNSENT, Scope.ROUTE, Action.DEFER_ROUTE, reason)


def deferred(reason: str, action: Action = Action.DEFER_ROUTE) -> Result:
    """The call failed, for a reason that says nothing about the message."""
    return Result(Status.DEFERRED, Scope.ROUTE, action, reason)


def in_doubt(reason: str) -> Result:
    """It is unknown whether the message was taken."""
    return Result(Status.IN_DOUBT, Scope.MESSAGE, Action.IN_DOUBT, reason)


_NOTHING = Result(
    Status.UNSENT, Scope.MESSAGE, Action.DEFER, "nothing was done about this recipient"
)


@implementer(ISession)
class LocalSession:
    """See `ISession`. A subclass implements `hand_over`, and perhaps `refusals`."""

    #: recipients of one call at most; None is any number
    most_recipients: int | None = None
    #: there is no connection that could be new, or be lost
    fresh = restartable = False

    def __init__(self, host: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.host = host
        self._clock = clock
        #: an outcome for each recipient of the last `send`, and how many were handed out
        self._outcomes: list[Outcome] = []
        self._handed_out = 0
        #: the result of the present call. It has to be true at every moment, because an interrupt
        #: may come at any moment
        self.result = _NOTHING
        #: the present call: its envelope, the indexes of its recipients, where their outcomes begin
        self._under_way: tuple[Envelope, list[int], int] | None = None

    # -- for subclasses

    def refusals(self, envelope: Envelope) -> list[Outcome]:
        """Outcomes of the recipients of `envelope` that a call can never take."""
        return []

    def hand_over(self, envelope: Envelope, seconds: float | None) -> None:
        """Hand `envelope` over, to all of its recipients, within so many seconds.

        It keeps `result` true at every moment, also if it raises. At first `result` is "nothing
        was done".
        """
        raise NotImplementedError

    # -- ISession

    def preflight(
        self,
        envelopes: Sequence[Envelope],
        *,
        always: bool = False,
        keep_open: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """See `ISession`. There is no server to ask: it returns `refusals`."""
        return [
            replace(outcome, position=position)
            for position, envelope in enumerate(envelopes)
            for outcome in self.refusals(envelope)
        ]

    def send(
        self,
        envelopes: Iterable[Envelope],
        *,
        strict: bool = False,
        timeout: float | None = None,
        window: int | None = None,
        keep_untaken: bool = False,
        guard: Callable[[], object] | None = None,
    ) -> Iterator[Outcome]:
        """See `ISession`.

        With `strict` nothing is handed over if a recipient has to be refused: there was no
        preflight to find that out.
        """
        envelopes = list(envelopes)
        self._outcomes = [
            _NOTHING.outcome(r, envelope.message_id, position)
            for position, envelope in enumerate(envelopes)
            for r in envelope.recipients
        ]
        self._handed_out = 0
        self._under_way = None
        self._guard = guard
        deadline = None if timeout is None else self._clock() + timeout
        return self._send(envelopes, strict, deadline)

    def _send(
        self, envelopes: list[Envelope], strict: bool, deadline: float | None
    ) -> Iterator[Outcome]:
        stopped = strict and self._refused(envelopes)
        start = 0
        for envelope in envelopes:
            if not stopped:
                stopped = self._send_one(envelope, start, strict, deadline)
            start += len(envelope.recipients)
            while self._handed_out < start:
                yield self._outcomes[self._handed_out]
                self._handed_out += 1

    def _refused(self, envelopes: Iterable[Envelope]) -> bool:
        """Note all refusals; True if there is one."""
        start, found = 0, False
        for envelope in envelopes:
            found = bool(self._note_refusals(envelope, start)) or found
            start += len(envelope.recipients)
        return found

    def _note_refusals(self, envelope: Envelope, start: int) -> set[str]:
        """Note the refusals of `envelope`; return the recipients that have one."""
        refusals = {outcome.recipient: outcome for outcome in self.refusals(envelope)}
        for index, recipient in enumerate(envelope.recipients, start):
            if recipient in refusals:
                position = self._outcomes[index].position
                self._outcomes[index] = replace(refusals[recipient], position=position)
        return set(refusals)

    def _send_one(
        self, envelope: Envelope, start: int, strict: bool, deadline: float | None
    ) -> bool:
        """Hand `envelope` over; True if sending ends with it."""
        refused = self._note_refusals(envelope, start)
        wanted = [i for i, r in enumerate(envelope.recipients) if r not in refused]
        size = self.most_recipients or len(wanted) or 1
        for first in range(0, len(wanted), size):
            some = wanted[first : first + size]
            result = self._call(envelope, some, start, deadline)
            if result.scope is Scope.ROUTE or (strict and result.status is not Status.ACCEPTED):
                return True
        return False

    def _call(
        self, envelope: Envelope, indexes: list[int], start: int, deadline: float | None
    ) -> Result:
        """Do one call, for the recipients at `indexes`."""
        seconds = None if deadline is None else deadline - self._clock()
        part = envelope
        if len(indexes) < len(envelope.recipients):
            part = envelope.only([envelope.recipients[index] for index in indexes])
        self.result = _NOTHING
        if self._guard is not None:
            self._guard()
        self._under_way = envelope, indexes, start
        if seconds is not None and seconds <= 0:
            self.result = unsent("the time for it was up")
        else:
            self.hand_over(part, seconds)
        self._note_result()
        return self.result

    def _note_result(self) -> None:
        """Note the outcomes of the present call, if there is one."""
        if self._under_way is not None:
            envelope, indexes, start = self._under_way
            for index in indexes:
                self._outcomes[start + index] = self.result.outcome(
                    envelope.recipients[index],
                    envelope.message_id,
                    self._outcomes[start + index].position,
                )
            self._under_way = None

    def unsettled(self) -> list[Outcome]:
        """See `ISession`."""
        self._note_result()
        return self._outcomes[self._handed_out :]

    def close(self, *, dirty: bool = False) -> None:
        """See `ISession`."""
