"""The conversation that sends messages in a stream. No I/O.

It ends before a message that needs care, and at the last message.
"""

from __future__ import annotations

from ..outcome import Status
from ..reply import Reply
from .progress import ProgressQueue
from .protocol import Protocol
from .reconnect_policy import ReconnectPolicy
from .refusals import REFUSALS_LIMIT, Refusals
from .source import Source
from .streamed_message import StreamedMessage, is_unknown, progress_of
from .streaming import Streaming
from .transaction_plan import TransactionPlan
from .transactions import ConnectionEnded, Conversation, ReconnectNeeded, ResetRefused


class StreamSending:
    """The part of one call of `ISession.send` that is streamed."""

    def __init__(
        self,
        protocol: Protocol,
        streaming: Streaming,
        source: Source,
        plan: TransactionPlan,
        queue: ProgressQueue,
        refusals: Refusals,
        reconnect_policy: ReconnectPolicy,
    ) -> None:
        self._protocol = protocol
        self._streaming = streaming
        self._source = source
        self._plan = plan
        self._queue = queue
        self._refusals = refusals
        self._reconnect_policy = reconnect_policy
        #: a reply for which a fresh connection is asked
        self._reconnect_reply: Reply | None = None
        #: True once content was sent: from then on the call cannot start again
        self.begun = False
        #: True if nothing more is streamed on this connection
        self.over = False
        #: True once the server has shown that it does not know BDAT, or RSET between messages
        self.chunking_failed = False
        #: True once the server has shown that it does not know RSET
        self.reset_failed = False

    @property
    def accepted(self) -> int:
        """The number of messages that the server accepted."""
        return self._streaming.accepted

    def conversation(self) -> Conversation:
        """Stream messages until the next one needs care, or none is left."""
        if self.over:
            return
        streaming = self._streaming
        self._fill()
        while not streaming.empty:
            yield
            self._collect()
            self.begun = True
            self._fill()
            if streaming.empty and self._protocol.closing:
                raise ConnectionEnded("the server closes the connection")
            if streaming.empty:
                self._plan.dirty = not streaming.clean
        if self._reconnect_reply is not None:
            raise ReconnectNeeded(self._reconnect_reply)
        if streaming.reset_refused is not None:
            self._do_without_reset(streaming.reset_refused)
        if self.chunking_failed:
            self.over = True
            self._refusals.end_stream()

    def cut(self, reason: str, reply: Reply | None, *, closed: bool) -> None:
        """Settle all messages in the stream. `closed` if the server has closed the connection."""
        self._streaming.cut(self._queue.open, reason, reply, closed=closed)
        self.begun = self.begun or self._streaming.accepted > 0 or self._queue.anything_sent

    def _collect(self) -> None:
        """Settle the messages that have all their replies."""
        streaming, policy = self._streaming, self._reconnect_policy
        accepted = streaming.accepted
        while (refused := streaming.collect(self._queue.ready)) is not None:
            if streaming.accepted > accepted:
                accepted = streaming.accepted
                policy.carried = True
            self._settle_refused(*refused)
        policy.carried = policy.carried or streaming.accepted > 0

    def _do_without_reset(self, reply: Reply) -> None:
        """Stop streaming, because the server refused RSET: all messages have their replies.

        Raises `ResetRefused` if a mail transaction may be open, so that nothing more can be sent.
        """
        self.chunking_failed = self.reset_failed = True
        self._plan.dirty = self._plan.dirty or self._streaming.mixed
        if self._plan.dirty and not self._refusals.stopped:
            raise ResetRefused(reply)

    def _fill(self) -> None:
        """Put as many messages into the stream as may go there now."""
        streaming, refusals = self._streaming, self._refusals
        if refusals.careful or refusals.stopped or self._queue.open or self.chunking_failed:
            return
        if self._protocol.closing or self._reconnect_reply or streaming.reset_refused is not None:
            return
        room = streaming.room
        if refusals.count:
            # If all messages on their way are refused, the server must not hang up for it.
            room = min(room, max(1, REFUSALS_LIMIT - refusals.count) - streaming.count)
        if self._plan.messages_left is not None:
            room = min(room, self._plan.messages_left)
        for _ in range(room):
            if not self._plan.add_to(streaming):
                return

    def _settle_refused(self, message: StreamedMessage, replies: list[Reply]) -> None:
        """Settle a message that got a reply which is not positive."""
        streaming = self._streaming
        progress = progress_of(message, replies, clean=streaming.clean)
        reply = self._reconnect_policy.for_streamed(message, replies)
        if reply is not None:
            self._reconnect_reply = self._reconnect_reply or reply
            self._source.put_back(message.position, message.envelope)
            streaming.remove_refused(replies)
            return
        self._queue.open.append(progress)
        streaming.remove_refused(replies)
        if progress.waiting and is_unknown(replies[-1]):
            # The server may have read the content as commands: stream no more here.
            self.chunking_failed = streaming.bdat_unknown = True
        if any(o is not None and o.status is not Status.ACCEPTED for o in progress.outcomes):
            self._refusals.add()
        self._queue.settle_ready()
