"""Records what becomes of envelopes on their way, and tells which can be sent at all. No I/O."""

from __future__ import annotations

from collections import deque

from ..envelope import Envelope
from ..outcome import Outcome, Status, accepted
from ..reply import Reply
from . import failure_policy
from .extensions import Extensions
from .failure_policy import Verdict


class Progress:
    """One envelope on its way, with an outcome for each recipient as soon as it is known."""

    def __init__(self, position: int, envelope: Envelope, preflighted: bool) -> None:
        #: the position of the envelope among those of the call
        self.position = position
        self.envelope = envelope
        self.preflighted = preflighted
        self.outcomes: list[Outcome | None] = [None] * len(envelope.recipients)
        #: recipients that have not been named to the server
        self.waiting: deque[int] = deque(range(len(envelope.recipients)))

    def settle(
        self, index: int, verdict: Verdict, reply: Reply | None = None, reason: str = ""
    ) -> None:
        """Decide recipient `index`, unless it is decided already."""
        if self.outcomes[index] is not None:
            return
        if verdict is failure_policy.ACCEPTED and reply is not None:
            self.outcomes[index] = accepted(
                self.envelope.recipients[index],
                reply,
                self.envelope.message_id,
                self.preflighted,
                self.position,
            )
        else:
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
        """Decide all recipients that are undecided."""
        self.waiting.clear()
        for index in range(len(self.outcomes)):
            self.settle(index, verdict, reply, reason)

    @property
    def settled(self) -> bool:
        """True if all recipients are decided."""
        return None not in self.outcomes

    @property
    def untouched(self) -> bool:
        """True if no recipient is decided."""
        return not any(self.outcomes)

    @property
    def unsent(self) -> bool:
        """True if all recipients are decided, and nothing was sent to any of them."""
        return all(o is not None and o.status is Status.UNSENT for o in self.outcomes)


class ProgressQueue:
    """The envelopes on their way, in order, and the outcomes that are known."""

    def __init__(self) -> None:
        self.open: deque[Progress] = deque()
        #: outcomes that are known and were not handed out, in order
        self.ready: deque[Outcome] = deque()

    def settle_ready(self) -> None:
        """Move the outcomes of all that are settled at the head to `ready`."""
        while self.open and self.open[0].settled:
            # In this order an interrupt can repeat outcomes and not lose them.
            self.ready.extend([o for o in self.open[0].outcomes if o is not None])
            self.open.popleft()

    @property
    def anything_sent(self) -> bool:
        """True if a known outcome of an envelope on its way is not `unsent`."""
        return any(
            o is not None and o.status is not Status.UNSENT
            for progress in self.open
            for o in progress.outcomes
        )


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
    """The reason why this server can never take `envelope`; empty if it may."""
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
    """The verdict on an `unsendable` envelope.

    A server that was greeted with HELO has not said what it offers: it may offer SMTPUTF8 later.
    """
    unknown = envelope.needs_smtputf8 and not extensions.esmtp and envelope.canonical
    return failure_policy.NEEDS_EHLO if unknown else failure_policy.UNSENDABLE
