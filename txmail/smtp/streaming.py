"""Messages in a stream, with CHUNKING (RFC 3030) and PIPELINING (RFC 2920). No I/O.

MAIL, RCPT, BDAT LAST and the octets of one message stand behind those of another, with RSET between
where the one before may have left a mail transaction open (see `flight`). Nothing is waited for but
the window: so many messages, so many octets, without an answer. All that are in the window may be
in doubt if the connection breaks.

Whoever is in the stream is answered as a whole: nothing is known of a message until its last reply
has come, because its octets have to follow whatever the server says to its MAIL. That is why only
those are streamed that need no care (`Streaming.takes`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..envelope import Envelope
from ..outcome import Outcome, accepted
from ..reply import Reply
from . import commands, failure_policy
from .extensions import Extensions
from .failure_policy import Verdict
from .progress import Progress, unsendable
from .protocol import Protocol
from .replies import MalformedReply
from .streamed_message import Flight, account, is_out_of_step, is_unknown, says_goodbye
from .transactions import RECIPIENTS_LIMIT, MailTransaction

#: Octets on their way at once, so that memory is bounded, and the time that a fault costs.
WINDOW_OCTETS = 4 * 1024 * 1024
#: The same where several connections share the work: a small message must not have to wait
#: behind a large one.
SHARED_OCTETS = 256 * 1024


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
        #: True if no mail transaction can be open behind the last message that was answered
        self.clean = True
        #: a RSET was refused, by a server that goes on: no more can be streamed to it
        self.reset_refused: Reply | None = None
        #: True once BDAT was not known: the server may read a content as commands, and answer each
        #: line of it, so that a reply may be about anything
        self.bdat_unknown = False
        #: True if that was where a mail transaction may have been open
        self.mixed = False
        #: True if the server has said that it does nothing any more: see `says_goodbye`
        self._goodbye = False

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
    def count(self) -> int:
        """How many messages are in it."""
        return len(self._flights)

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
        reset = staged is None and (bool(self._flights) or not self.clean)
        flight = Flight(position, envelope, preflighted, reset=reset, staged=staged is not None)
        if staged is None:
            lines = commands.streamed(envelope, self._extensions, reset=reset)
        else:
            lines = commands.bdat(envelope.size)
        # An interrupt must find it here if anything of it can leave.
        self._flights.append(flight)
        self._flying += envelope.size
        flight.first, flight.ends = self._protocol.stream(lines, envelope.content, flight.replies)

    # -- out of it

    def collect(self, ready: deque[Outcome]) -> tuple[Flight, list[Reply]] | None:
        """Give the outcomes of what was accepted to `ready`, up to the first that was not.

        That one, with all its replies, is returned, and `dealt_with` has to follow. None if there
        is none. Raises `MalformedReply`.
        """
        flights, protocol = self._flights, self._protocol
        if protocol.has_surplus:
            raise MalformedReply("one that nothing asked for")
        before, came = protocol.streamed_replies()
        refused = None
        last = 0
        while flights and refused is None:
            flight = flights[0]
            start = flight.first - before
            end = start + flight.replies
            if end > len(came):
                if protocol.out_of_step:
                    raise MalformedReply("one that has no place in a stream")
                break
            replies = came[start:end]
            final = replies[-1]
            if self._is_early(flight, replies):
                raise MalformedReply("an answer to a message that had not been sent")
            if self.bdat_unknown and not _is_the_same_again(replies):
                raise MalformedReply("one that may be about the octets of a content")
            if not self._is_accepted(flight, replies):
                refused = flight, replies
                break
            self.accepted += 1
            self.clean, self._goodbye = True, False
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

    def _is_accepted(self, flight: Flight, replies: Sequence[Reply]) -> bool:
        """True if all of `replies` are positive, or all that matter."""
        for reply in replies:
            if reply.code >= 300:
                break
        else:
            return True
        if is_out_of_step(flight, replies):
            raise MalformedReply("one that has no place in a stream")
        if not flight.refuses_reset(replies):
            return False
        self.reset_refused = replies[0]
        self.mixed = self.mixed or not self.clean
        return self.clean and all(reply.positive for reply in replies[1:])

    def dealt_with(self, replies: Sequence[Reply]) -> None:
        """What `collect` returned has an account: it leaves the stream."""
        flight = self._flights.popleft()
        # What has a positive reply to its content has ended its transaction, whoever was refused.
        self.clean = replies[-1].positive
        self._goodbye = says_goodbye(flight, replies, self._goodbye)
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

    def cut(
        self, accounts: deque[Progress], reason: str, reply: Reply | None, *, closed: bool
    ) -> None:
        """The connection has ended: `accounts` get that of all that were in the stream.

        `closed` if the server has ended it.
        """
        before, came = self._protocol.streamed_replies()
        goodbye, surplus = self._goodbye, self._protocol.has_surplus or self.bdat_unknown
        for flight in self._flights:
            start = flight.first - before
            goodbye = says_goodbye(flight, came[start : start + flight.replies], goodbye)
        # Nobody knows what a reply is about that comes behind one which has no place here.
        trusted = not surplus
        while self._flights:
            flight = self._flights[0]
            start = flight.first - before
            replies = came[start : start + flight.replies] if flight.ends else []
            rest = self._verdict_when_cut(flight)
            if surplus and len(replies) == flight.replies and is_unknown(replies[-1]):
                rest = failure_policy.UNSENT  # it has read the content as commands
            elif goodbye and closed and not surplus:
                rest = failure_policy.UNSENT
            if not trusted or (replies and self._is_early(flight, replies)):
                replies, trusted = [], False
            progress = account(flight, replies, clean=self.clean)
            self.clean = len(replies) == flight.replies and replies[-1].positive
            trusted = trusted and not is_out_of_step(flight, replies)
            for index in progress.waiting:
                progress.settle(index, failure_policy.UNSENT, reply, reason)
            progress.settle_rest(rest, reply, reason)
            # In this order an interrupt can repeat one and not lose it.
            accounts.append(progress)
            self._flights.popleft()
        self._protocol.take_streamed(len(came))

    def _verdict_when_cut(self, flight: Flight) -> Verdict:
        """What became of those of whom nothing was said."""
        left = self._protocol.may_have_left
        if not flight.ends:
            return failure_policy.UNSENT
        if left(flight.ends):
            return failure_policy.IN_DOUBT
        return (
            failure_policy.CUT_SHORT
            if left(flight.ends - flight.envelope.size + 1)
            else failure_policy.UNSENT
        )


def _is_the_same_again(replies: Sequence[Reply]) -> bool:
    """True if a message fared like the one before it: all was well but for BDAT, not known."""
    return is_unknown(replies[-1]) and all(reply.positive for reply in replies[:-1])
