"""Messages in a stream, with CHUNKING (RFC 3030) and PIPELINING (RFC 2920). No I/O.

RSET, MAIL, RCPT, BDAT LAST and the octets of one message stand behind those of another, and nothing
is waited for but the window: so many messages, so many octets, without an answer. All that are in
the window may be in doubt if the connection breaks.

Whoever is in the stream is answered as a whole: nothing is known of a message until its last reply
has come, because its octets have to follow whatever the server says to its MAIL. That is why only
those are streamed that need no care (`Streaming.takes`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..envelope import Envelope, Outcome, accepted
from ..reply import Reply
from . import commands, trouble
from .extensions import Extensions
from .progress import Progress, unsendable
from .protocol import Protocol
from .replies import MalformedReply
from .transactions import RECIPIENTS_LIMIT, MailTransaction
from .trouble import Stage, Verdict, judge

#: Octets on their way at once, so that memory is bounded, and the time that a fault costs.
WINDOW_OCTETS = 4 * 1024 * 1024
#: The same where several connections share the work: a small message must not have to wait
#: behind a large one.
SHARED_OCTETS = 256 * 1024

#: Replies to BDAT that are about the command and not about the message.
_UNKNOWN = frozenset({500, 501, 502, 503, 504})


class Flight:
    """One message in the stream."""

    __slots__ = ("ends", "envelope", "first", "position", "preflighted", "replies")

    def __init__(self, position: int, envelope: Envelope, preflighted: bool, replies: int) -> None:
        self.position = position
        self.envelope = envelope
        self.preflighted = preflighted
        #: how many it gets
        self.replies = replies
        #: the number of the first of them, and how many octets the socket has taken when it has
        #: the last of this message; 0 before it was queued
        self.first = self.ends = 0

    @property
    def staged(self) -> bool:
        """True if its MAIL and RCPTs were answered before, in the preflight."""
        return self.replies == 1


class Streaming:
    """The stream on one connection."""

    def __init__(
        self, protocol: Protocol, extensions: Extensions, window: int, octets: int
    ) -> None:
        """`window` is in messages, and at least 1; `octets` binds all but a single message."""
        self._protocol = protocol
        self._extensions = extensions
        self._window = window
        self._octets = octets
        self._flights: deque[Flight] = deque()
        self._flying = 0
        #: messages that were accepted
        self.accepted = 0

    @property
    def empty(self) -> bool:
        """True if nothing is in the stream."""
        return not self._flights

    # -- into the stream

    def takes(self, envelope: Envelope, passed: bool) -> bool:
        """True if `envelope` needs no care.

        A message to several is streamed only if all of them have `passed` the preflight on this
        very connection: the octets go to those that are accepted, whoever is refused.
        """
        recipients = len(envelope.recipients)
        return (recipients == 1 or (passed and recipients <= RECIPIENTS_LIMIT)) and not unsendable(
            envelope, self._extensions
        )

    @property
    def room(self) -> int:
        """How many messages more the window allows."""
        return self._window - len(self._flights)

    def has_room(self, envelope: Envelope) -> bool:
        """True if the octets of `envelope` may be added, or nothing else is in the stream."""
        return not self._flights or self._flying + envelope.size <= self._octets

    def add(
        self,
        position: int,
        envelope: Envelope,
        preflighted: bool,
        staged: MailTransaction | None = None,
    ) -> None:
        """Queue the message of `envelope`; of one that is `staged`, the content only."""
        if staged is None:
            lines = commands.streamed(envelope, self._extensions)
            replies = len(envelope.forward_paths) + 3
        else:
            lines, replies = commands.bdat(envelope.size), 1
        flight = Flight(position, envelope, preflighted, replies)
        # An interrupt must find it here if anything of it can leave.
        self._flights.append(flight)
        self._flying += envelope.size
        flight.first, flight.ends = self._protocol.stream(lines, envelope.content, replies)

    # -- out of it

    def collect(self, ready: deque[Outcome]) -> tuple[Flight, list[Reply]] | None:
        """Give the outcomes of what was accepted to `ready`, up to the first that was not.

        That one, with all its replies, is returned, and `dealt_with` has to follow. None if there
        is none. Raises `MalformedReply`.
        """
        flights, protocol = self._flights, self._protocol
        before, came = protocol.streamed_replies()
        refused = None
        last = 0
        while flights and refused is None:
            flight = flights[0]
            start = flight.first - before
            end = start + flight.replies
            if end > len(came):
                break
            replies = came[start:end]
            final = replies[-1]
            if self._is_early(flight, replies):
                raise MalformedReply("an answer to a message that had not been sent")
            for reply in replies:
                if reply.code >= 300:
                    if is_out_of_step(flight, replies):
                        raise MalformedReply("one that has no place in a stream")
                    refused = flight, replies
                    break
            else:
                self.accepted += 1
                envelope = flight.envelope
                for recipient in envelope.recipients:
                    ready.append(
                        accepted(
                            recipient,
                            final,
                            envelope.message_id,
                            flight.preflighted,
                            flight.position,
                        )
                    )
                self._flying -= envelope.size
                flights.popleft()
                last = end
        protocol.take_streamed(last)
        self._wait(refused=refused is not None)
        return refused

    def dealt_with(self) -> None:
        """What `collect` returned has an account: it leaves the stream."""
        flight = self._flights.popleft()
        self._flying -= flight.envelope.size
        self._protocol.take_streamed(flight.replies)
        self._wait(refused=True)

    def _is_early(self, flight: Flight, replies: Sequence[Reply]) -> bool:
        """True if `replies` are to what had not left. A refusal need not wait for the octets."""
        whole = len(replies) == flight.replies
        needed = flight.ends
        if not whole or replies[-1].code >= 400:
            needed -= flight.envelope.size
        return not self._protocol.has_left(needed)

    def _wait(self, *, refused: bool) -> None:
        """Say how many replies have to come before there is something to do here."""
        if self._flights:
            self._protocol.want(self._flights[0].replies)
            if not refused:
                self._protocol.check_streamed()
        else:
            self._protocol.want(1)

    def cut(self, accounts: deque[Progress], reason: str, reply: Reply | None) -> None:
        """The connection has ended: `accounts` get that of all that were in the stream."""
        before, came = self._protocol.streamed_replies()
        # Nobody knows what a reply is about that comes behind one which has no place here.
        trusted = True
        while self._flights:
            flight = self._flights[0]
            start = flight.first - before
            replies = came[start : start + flight.replies] if flight.ends and trusted else []
            if replies and self._is_early(flight, replies):
                replies, trusted = [], False
            progress = account(flight, replies)
            trusted = trusted and not is_out_of_step(flight, replies)
            for index in progress.waiting:
                progress.settle(index, trouble.UNSENT, reply, reason)
            progress.settle_rest(self._verdict_when_cut(flight), reply, reason)
            # In this order an interrupt can repeat one and not lose it.
            accounts.append(progress)
            self._flights.popleft()
        self._protocol.take_streamed(len(came))

    def _verdict_when_cut(self, flight: Flight) -> Verdict:
        """What became of those of whom nothing was said."""
        left = self._protocol.may_have_left
        if not flight.ends:
            return trouble.UNSENT
        if left(flight.ends):
            return trouble.IN_DOUBT
        return trouble.CUT_SHORT if left(flight.ends - flight.envelope.size + 1) else trouble.UNSENT


def account(flight: Flight, replies: Sequence[Reply]) -> Progress:
    """What becomes of a message by the replies to its commands, of which the last may be missing.

    `waiting` are those of its recipients that go again: the server takes no more at once, or knows
    no BDAT. About others that are undecided nothing was said.
    """
    progress = Progress(flight.position, flight.envelope, flight.preflighted)
    named = list(progress.waiting)
    progress.waiting.clear()
    final = replies[-1] if len(replies) == flight.replies else None
    if is_out_of_step(flight, replies):
        if final is not None and final.code >= 400:
            progress.settle_rest(trouble.UNSENT, final)
        return progress
    if not flight.staged:
        named = _account_of_recipients(progress, replies)
    if final is not None and is_unknown(final):
        progress.waiting.extendleft(reversed(named))
    elif final is not None:
        verdict = judge(Stage.FINAL, final)
        for index in named:
            progress.settle(index, verdict, final)
    return progress


def is_out_of_step(flight: Flight, replies: Sequence[Reply]) -> bool:
    """True if nobody can know what the server makes of what it was sent.

    A 3yz has no place here, and behind a RSET that was refused there may be anything. (A 421 to it
    is clear if the server did not go on: nothing behind that was done.)
    """
    if any(reply.intermediate for reply in replies):
        return True
    if flight.staged or not replies or replies[0].positive:
        return False
    return replies[0].code != 421 or any(reply.positive for reply in replies)


def _account_of_recipients(progress: Progress, replies: Sequence[Reply]) -> list[int]:
    """Settle who was refused by what RSET, MAIL and RCPT got; return who was accepted."""
    for stage, reply in zip((Stage.RSET, Stage.MAIL), replies, strict=False):
        if not reply.positive:
            progress.settle_rest(judge(stage, reply), reply)
            return []
    to_recipients = replies[2 : 2 + len(progress.outcomes)]
    verdicts = [judge(Stage.RCPT, reply) for reply in to_recipients]
    named = [i for i, verdict in enumerate(verdicts) if verdict is trouble.ACCEPTED]
    for index, (verdict, reply) in enumerate(zip(verdicts, to_recipients, strict=True)):
        if verdict is trouble.SPLIT and named:
            progress.waiting.append(index)
        elif verdict is not trouble.ACCEPTED:
            refusal = trouble.DEFER_RECIPIENT if verdict is trouble.SPLIT else verdict
            progress.settle(index, refusal, reply)
    return named


def is_unknown(reply: Reply) -> bool:
    """True if `reply`, to a BDAT whose recipients were accepted, is about BDAT itself."""
    return reply.code in _UNKNOWN
