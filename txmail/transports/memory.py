"""Keeps envelopes in this process: for tests and to try things out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from zope.interface import implementer

from ..envelope import Envelope
from ..interfaces import ISession, ITransport
from ..outcome import Action, Outcome, Scope, Status, accepted
from ..reply import Reply

ACCEPTED = Reply(250, ("2.0.0 kept in memory",))


@implementer(ITransport)
class MemoryTransport:
    """Accepts all recipients but those that it was told to refuse. See `ITransport`."""

    name = "memory:"
    #: a preflight finds a refusal before the vote, as with a real server
    asks_server = True

    def __init__(self) -> None:
        #: the accepted envelopes, in order
        self.envelopes: list[Envelope] = []
        self._replies: dict[str, Reply] = {}

    def refuse(self, recipient: str, reply: Reply) -> None:
        """Answer `reply`, a 4yz or 5yz, to `recipient` from now on; ``"*"`` is every recipient."""
        if not (reply.temporary or reply.permanent):
            raise ValueError(f"not a refusal: {reply}")
        self._replies[recipient] = reply

    def accept_all(self) -> None:
        """Forget all refusals."""
        self._replies.clear()

    def open(
        self,
        *,
        timeout: float | None = None,
        wait: bool = True,
        fresh: bool = False,
        verify: bool = True,
    ) -> MemorySession:
        """See `ITransport`."""
        return MemorySession(self)

    def close(self) -> None:
        """See `ITransport`."""

    def outcomes(self, envelope: Envelope, position: int = 0) -> list[Outcome]:
        """The outcomes of `envelope`, which is at `position` in its call."""
        replies, mid = self._replies, envelope.message_id
        if not replies:
            return [accepted(r, ACCEPTED, mid, True, position) for r in envelope.recipients]
        everyone = replies.get("*", ACCEPTED)
        return [_outcome(r, replies.get(r, everyone), mid, position) for r in envelope.recipients]


def _outcome(recipient: str, reply: Reply, message_id: str, position: int) -> Outcome:
    if reply.positive:
        return accepted(recipient, reply, message_id, True, position)
    status, action = (
        (Status.DEFERRED, Action.DEFER) if reply.temporary else (Status.FAILED, Action.FAIL)
    )
    return Outcome(recipient, status, Scope.RECIPIENT, reply, message_id, action, position=position)


@implementer(ISession)
class MemorySession:
    """See `ISession`."""

    host = "memory:"
    #: there is no connection that could be new, or be lost
    fresh = restartable = False

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self._rest: list[Outcome] = []

    def preflight(
        self,
        envelopes: Sequence[Envelope],
        *,
        always: bool = False,
        keep_open: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """See `ISession`."""
        found = [
            outcome
            for position, envelope in enumerate(envelopes)
            for outcome in self._transport.outcomes(envelope, position)
        ]
        return [o for o in found if o.status is not Status.ACCEPTED]

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
        """See `ISession`."""
        self._rest = []
        stopped = False
        for position, envelope in enumerate(envelopes):
            if guard is not None:
                guard()
            found = self._transport.outcomes(envelope, position)
            refused = any(o.status is not Status.ACCEPTED for o in found)
            if stopped or (strict and refused):
                found = [_unsent(o) if stopped or o.status is Status.ACCEPTED else o for o in found]
                stopped = True
            else:
                self._keep(envelope, found)
            self._rest += found
        while self._rest:
            yield self._rest[0]
            del self._rest[0]

    def _keep(self, envelope: Envelope, outcomes: list[Outcome]) -> None:
        """Keep `envelope`, with the accepted recipients."""
        takers = tuple(o.recipient for o in outcomes if o.status is Status.ACCEPTED)
        if takers and takers != envelope.recipients:
            envelope = envelope.only(takers)
        if takers:
            self._transport.envelopes.append(envelope)

    def unsettled(self) -> list[Outcome]:
        """See `ISession`."""
        return list(self._rest)

    def close(self, *, dirty: bool = False) -> None:
        """See `ISession`."""


def _unsent(outcome: Outcome) -> Outcome:
    return Outcome(
        outcome.recipient,
        Status.UNSENT,
        Scope.MESSAGE,
        message_id=outcome.message_id,
        action=Action.DEFER,
        reason="not sent because another recipient was refused",
        position=outcome.position,
    )
