"""The account of envelopes on their way: what may be sent at all, and what became of it. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from ..envelope import Envelope, Outcome
from ..reply import Reply
from . import trouble
from .extensions import Extensions
from .trouble import Verdict


class Progress:
    """One envelope on its way: an outcome for each recipient, filled in as it is known."""

    def __init__(self, position: int, envelope: Envelope, preflighted: bool) -> None:
        #: the place of the envelope among those of the call
        self.position = position
        self.envelope = envelope
        self.preflighted = preflighted
        self.outcomes: list[Outcome | None] = [None] * len(envelope.recipients)
        #: recipients that have not been named to the server
        self.waiting: deque[int] = deque(range(len(envelope.recipients)))

    def settle(
        self, index: int, verdict: Verdict, reply: Reply | None = None, reason: str = ""
    ) -> None:
        """Decide recipient `index`; what is decided stays."""
        if self.outcomes[index] is None:
            self.outcomes[index] = outcome_of(
                self.envelope,
                index,
                verdict,
                reply,
                reason,
                preflighted=self.preflighted,
                position=self.position,
            )

    def settle_rest(self, verdict: Verdict, reply: Reply | None = None, reason: str = "") -> None:
        """Decide all recipients that are not."""
        self.waiting.clear()
        for index in range(len(self.outcomes)):
            self.settle(index, verdict, reply, reason)

    @property
    def settled(self) -> bool:
        """True if all recipients are decided."""
        return None not in self.outcomes


class Source:
    """The envelopes of a call with their positions; what was taken too early can be put back.

    Several connections may share one.
    """

    def __init__(self, envelopes: Iterable[Envelope]) -> None:
        self._envelopes = iter(envelopes)
        self._back: deque[tuple[int, Envelope]] = deque()
        self._taken = 0

    def take(self) -> tuple[int, Envelope] | None:
        """The next envelope, None if there is none."""
        if self._back:
            return self._back.popleft()
        envelope = next(self._envelopes, None)
        if envelope is None:
            return None
        self._taken += 1
        return self._taken - 1, envelope

    def put_back(self, position: int, envelope: Envelope) -> None:
        """Have it come again, before all that were not taken yet."""
        self._back.append((position, envelope))

    def rest(self, *, taken_only: bool = False) -> Iterator[tuple[int, Envelope]]:
        """All that is left, or only what was put back."""
        while (self._back or not taken_only) and (found := self.take()) is not None:
            yield found


def outcome_of(
    envelope: Envelope,
    index: int,
    verdict: Verdict,
    reply: Reply | None = None,
    reason: str = "",
    *,
    preflighted: bool = True,
    position: int = 0,
) -> Outcome:
    """The `Outcome` of recipient `index` of `envelope`."""
    return Outcome(
        envelope.recipients[index],
        verdict.status,
        verdict.scope,
        reply,
        envelope.message_id,
        verdict.action,
        reason,
        preflighted,
        position,
    )


def unsendable(envelope: Envelope, extensions: Extensions) -> str:
    """Why this server can never take `envelope`; empty if it may."""
    if not envelope.canonical:
        return "the content has line ends other than CRLF, a NUL, or no line end at its end"
    limit = extensions.size_limit
    if limit is not None and envelope.size > limit:
        return f"5.3.4 {envelope.size} octets, the server takes {limit}"
    if envelope.needs_smtputf8 and not extensions.smtputf8:
        return "5.6.7 SMTPUTF8 is needed and the server does not offer it"
    if envelope.needs_8bitmime and not extensions.eightbitmime:
        return "5.6.3 the content has octets above 127 and the server does not offer 8BITMIME"
    return ""


def verdict_on(envelope: Envelope, extensions: Extensions) -> Verdict:
    """What follows for an `unsendable` envelope.

    A server that was greeted with HELO has not said what it offers: it may know SMTPUTF8 tomorrow.
    """
    unknown = envelope.needs_smtputf8 and not extensions.esmtp and envelope.canonical
    return trouble.NEEDS_EHLO if unknown else trouble.UNSENDABLE
