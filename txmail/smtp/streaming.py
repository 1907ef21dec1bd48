"""Streams messages with CHUNKING (RFC 3030) and PIPELINING (RFC 2920). No I/O.

MAIL, RCPT, BDAT LAST and the octets of one message follow those of another, with RSET between where
the earlier message may have left a mail transaction open (see `streamed_message`). The client waits
only when the window is full: so many messages, or so many octets, without an answer. If the
connection breaks, every message in the window may be in doubt.

The outcome of a message is known when its last reply has come, and not before: its octets follow
whatever the server says to its MAIL. That is why a message is streamed only if it needs no care
(`Streaming.takes`).
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
from .streamed_message import (
    StreamedMessage,
    announces_close,
    is_out_of_step,
    is_unknown,
    progress_of,
)
from .transactions import RECIPIENTS_LIMIT, MailTransaction

#: Octets on their way at once. The limit bounds memory, and the time that a fault costs.
WINDOW_OCTETS = 4 * 1024 * 1024
#: Octets on their way at once where several connections share the work: a small message must not
#: wait behind a large one.
SHARED_OCTETS = 256 * 1024


class Streaming:
    """The stream on one connection."""

    def __init__(
        self, protocol: Protocol, extensions: Extensions, window: int, octets: int
    ) -> None:
        """`window` is a number of messages. `octets` limits all but a single message."""
        self._protocol = protocol
        self._extensions = extensions
        self._window = window
        self._octets = octets
        self._messages: deque[StreamedMessage] = deque()
        self._unanswered_octets = 0
        #: messages that were accepted
        self.accepted = 0
        #: True if no mail transaction can be open after the last message that was answered
        self.clean = True
        #: the reply of a server that refused RSET and goes on: nothing more can be streamed to it
        self.reset_refused: Reply | None = None
        #: True once the server did not know BDAT: it may read a content as commands and answer
        #: each line of it, so that a reply may be about anything
        self.bdat_unknown = False
        #: True if the server refused RSET where a mail transaction may have been open
        self.mixed = False
        #: True if the server has said that it will do nothing more: see `announces_close`
        self._close_announced = False

    @property
    def empty(self) -> bool:
        """True if nothing is in the stream."""
        return not self._messages

    # -- into the stream

    def takes(self, envelope: Envelope, passed: bool) -> bool:
        """True if `envelope` needs no care.

        A message to several recipients is streamed only if all of them have `passed` the preflight
        on this very connection: the content goes to every accepted recipient, even if the server
        refuses another one.
        """
        recipients = len(envelope.recipients)
        return (recipients == 1 or (passed and recipients <= RECIPIENTS_LIMIT)) and not unsendable(
            envelope, self._extensions
        )

    @property
    def count(self) -> int:
        """The number of messages in the stream."""
        return len(self._messages)

    @property
    def room(self) -> int:
        """The number of messages that the window still allows."""
        return self._window - len(self._messages)

    def has_room(self, envelope: Envelope) -> bool:
        """True if the octets of `envelope` may be added, or nothing else is in the stream."""
        return not self._messages or self._unanswered_octets + envelope.size <= self._octets

    def add(
        self,
        position: int,
        envelope: Envelope,
        preflighted: bool,
        open_transaction: MailTransaction | None = None,
    ) -> None:
        """Queue the message of `envelope`; only its content if it has an `open_transaction`."""
        reset = open_transaction is None and (bool(self._messages) or not self.clean)
        message = StreamedMessage(
            position, envelope, preflighted, reset=reset, opened=open_transaction is not None
        )
        if open_transaction is None:
            lines = commands.streamed(envelope, self._extensions, reset=reset)
        else:
            lines = commands.bdat(envelope.size)
        # An interrupt must find the message here if anything of it can leave.
        self._messages.append(message)
        self._unanswered_octets += envelope.size
        message.first_reply, message.last_octet = self._protocol.stream(
            lines, envelope.content, message.reply_count
        )

    # -- out of it

    def collect(self, ready: deque[Outcome]) -> tuple[StreamedMessage, list[Reply]] | None:
        """Append the outcomes of accepted messages to `ready`, up to the first refused message.

        Returns the refused message with all its replies, or None; the caller then calls
        `remove_refused`. Raises `MalformedReply`.
        """
        messages, protocol = self._messages, self._protocol
        if protocol.has_surplus:
            raise MalformedReply("nothing asked for it")
        before, came = protocol.streamed_replies()
        refused = None
        last = 0
        while messages and refused is None:
            message = messages[0]
            start = message.first_reply - before
            end = start + message.reply_count
            if end > len(came):
                if protocol.out_of_step:
                    raise MalformedReply("it has no place in a stream")
                break
            replies = came[start:end]
            final = replies[-1]
            if self._is_early(message, replies):
                raise MalformedReply("it answers a message that had not been sent")
            if self.bdat_unknown and not _is_the_same_again(replies):
                raise MalformedReply("it may be about the octets of a content")
            if not self._is_accepted(message, replies):
                refused = message, replies
                break
            self.accepted += 1
            self.clean, self._close_announced = True, False
            envelope = message.envelope
            for recipient in envelope.recipients:
                ready.append(
                    accepted(
                        recipient,
                        final,
                        envelope.message_id,
                        message.preflighted,
                        message.position,
                    )
                )
            self._unanswered_octets -= envelope.size
            messages.popleft()
            last = end
        protocol.take_streamed(last)
        self._wait(refused=refused is not None)
        return refused

    def _is_accepted(self, message: StreamedMessage, replies: Sequence[Reply]) -> bool:
        """True if all of `replies` that matter are positive."""
        for reply in replies:
            if reply.code >= 300:
                break
        else:
            return True
        if is_out_of_step(message, replies):
            raise MalformedReply("it has no place in a stream")
        if not message.refuses_reset(replies):
            return False
        self.reset_refused = replies[0]
        self.mixed = self.mixed or not self.clean
        return self.clean and all(reply.positive for reply in replies[1:])

    def remove_refused(self, replies: Sequence[Reply]) -> None:
        """Remove from the stream the message that `collect` returned: it is settled."""
        message = self._messages.popleft()
        # A positive reply to the content ends the transaction, even if recipients were refused.
        self.clean = replies[-1].positive
        self._close_announced = announces_close(message, replies, self._close_announced)
        self._unanswered_octets -= message.envelope.size
        self._protocol.take_streamed(message.reply_count)
        self._wait(refused=True)

    def _is_early(self, message: StreamedMessage, replies: Sequence[Reply]) -> bool:
        """True if a reply came before its command left. A refusal may come before the content."""
        whole = len(replies) == message.reply_count
        needed = message.last_octet
        if not whole or replies[-1].code >= 400:
            needed -= message.envelope.size
        return not self._protocol.has_left(needed)

    def _wait(self, *, refused: bool) -> None:
        """Tell the protocol how many replies the next step needs."""
        if self._messages:
            self._protocol.want(self._messages[0].reply_count)
            if not refused:
                self._protocol.check_streamed()
        else:
            self._protocol.want(1)

    def cut(
        self, settled: deque[Progress], reason: str, reply: Reply | None, *, closed: bool
    ) -> None:
        """Settle all messages in the stream, because the connection has ended.

        Their progress is appended to `settled`. `closed` is True if the server ended it.
        """
        before, came = self._protocol.streamed_replies()
        surplus = self._protocol.has_surplus or self.bdat_unknown
        close_announced = self._close_announced
        for message in self._messages:
            start = message.first_reply - before
            close_announced = announces_close(
                message, came[start : start + message.reply_count], close_announced
            )
        # After a reply that nothing asked for, no reply can be matched with its command.
        trusted = not surplus
        while self._messages:
            message = self._messages[0]
            start = message.first_reply - before
            replies = came[start : start + message.reply_count] if message.last_octet else []
            rest = self._verdict_when_cut(message)
            if surplus and len(replies) == message.reply_count and is_unknown(replies[-1]):
                rest = failure_policy.UNSENT  # the server has read the content as commands
            elif close_announced and closed and not surplus:
                rest = failure_policy.UNSENT
            if not trusted or (replies and self._is_early(message, replies)):
                replies, trusted = [], False
            progress = progress_of(message, replies, clean=self.clean)
            self.clean = len(replies) == message.reply_count and replies[-1].positive
            trusted = trusted and not is_out_of_step(message, replies)
            for index in progress.waiting:
                progress.settle(index, failure_policy.UNSENT, reply, reason)
            progress.settle_rest(rest, reply, reason)
            # In this order an interrupt can repeat a message and not lose it.
            settled.append(progress)
            self._messages.popleft()
        self._protocol.take_streamed(len(came))

    def _verdict_when_cut(self, message: StreamedMessage) -> Verdict:
        """The verdict on recipients about whom the server said nothing."""
        left = self._protocol.may_have_left
        if not message.last_octet:
            return failure_policy.UNSENT
        if left(message.last_octet):
            return failure_policy.IN_DOUBT
        return (
            failure_policy.CUT_SHORT
            if left(message.last_octet - message.envelope.size + 1)
            else failure_policy.UNSENT
        )


def _is_the_same_again(replies: Sequence[Reply]) -> bool:
    """True if the server accepted everything but BDAT, as with the message before."""
    return is_unknown(replies[-1]) and all(reply.positive for reply in replies[:-1])
