"""The conversation that sends envelopes. No I/O.

Where the server offers CHUNKING and PIPELINING, messages are streamed (`stream_sending`), as many
at once as the window allows. A message that needs care, and the first one behind a refused one, is
sent in a mail transaction of its own (`transaction_sending`), as all messages are without CHUNKING.
`transaction_plan` says which is next.

A message counts as accepted only when its MAIL, its recipient and its final reply are all positive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..envelope import Envelope
from ..exceptions import TransportError
from ..outcome import Outcome
from ..reply import Reply
from . import failure_policy
from .connection_state import ConnectionHistory, ConnectionState
from .failure_policy import Step
from .progress import Progress, ProgressQueue
from .protocol import Protocol
from .reconnect_policy import ReconnectPolicy
from .refusals import Refusals
from .send_request import SendRequest
from .source import Source
from .stream_sending import StreamSending
from .streaming import Streaming
from .transaction_plan import TransactionPlan
from .transaction_sending import TransactionSending
from .transactions import ConnectionEnded, Conversation, ReconnectNeeded


class Sending:
    """One call of `ISession.send`."""

    def __init__(
        self,
        protocol: Protocol,
        envelopes: Iterable[Envelope] | Source,
        request: SendRequest,
        connection: ConnectionState,
    ) -> None:
        """`ReconnectNeeded` ends the conversation where a fresh connection has to go on.

        A fresh connection may get another answer, or this one has carried as much as it may.
        """
        source = envelopes if isinstance(envelopes, Source) else Source(envelopes)
        history, streams = connection.history, request.window > 0
        self._source = source
        self._keep_untaken = request.keep_untaken
        self._takes_rest = request.takes_rest
        self._passed = connection.passed
        self._queue = ProgressQueue()
        self._refusals = Refusals(
            history.refusals,
            strict=request.strict,
            limited=request.keep_untaken,
            streams=streams,
            cautious=not connection.proven,
        )
        self._policy = ReconnectPolicy(connection.memory, history.carried)
        self._plan = TransactionPlan(source, connection, self._queue, self._refusals)
        self._transactions = TransactionSending(
            protocol, request, connection, self._plan, self._refusals, self._policy
        )
        self._stream = StreamSending(
            protocol,
            Streaming(protocol, connection.extensions, request.window, request.octets),
            source,
            self._plan,
            self._queue,
            self._refusals,
            self._policy,
        )
        self._stream.over = not streams
        #: the error that ended sending here, so that it goes on over a fresh connection
        self.reconnect_needed: ReconnectNeeded | None = None

    # -- results

    @property
    def ready(self) -> deque[Outcome]:
        """Outcomes that are known and were not handed out, in order."""
        return self._queue.ready

    @property
    def accepted(self) -> int:
        """The number of messages that the server accepted."""
        return self._transactions.accepted + self._stream.accepted

    @property
    def begun(self) -> bool:
        """True once content was sent: from then on the call cannot start again."""
        return self._transactions.begun or self._stream.begun

    @property
    def dirty(self) -> bool:
        """True if the next mail transaction on this connection has to begin with RSET."""
        return self._plan.dirty

    @property
    def history(self) -> ConnectionHistory:
        """The mail that the connection has carried up to now."""
        return ConnectionHistory(self._refusals.count, self._policy.carried)

    @property
    def refused_too_often(self) -> bool:
        """True if so many messages were refused that sending has ended."""
        return self._refusals.too_many

    @property
    def chunking_failed(self) -> bool:
        """True once the server has shown that it does not know BDAT, or RSET between messages."""
        return self._stream.chunking_failed

    @property
    def reset_failed(self) -> bool:
        """True once the server has shown that it does not know RSET."""
        return self._stream.reset_failed

    # -- sending

    def conversation(self) -> Conversation:
        """Send everything, until each recipient is decided. Raises `TransportError`."""
        transactions = self._transactions
        try:
            yield from self._stream.conversation()
            planned = self._plan.next()
            while planned is not None:
                planned = yield from transactions.take(planned, streams=not self._stream.over)
                self._queue.settle_ready()
                if planned is None:
                    transactions.current = None
                    yield from self._stream.conversation()
                    planned = self._plan.next()
            if self._plan.limit_reached:
                raise ReconnectNeeded
        except TransportError as ended:
            closed = isinstance(ended, ConnectionEnded) and ended.lost
            needed = self._reconnect_needed_for(ended)
            self.cut(str(ended), ended.reply, closed=closed, reconnects=needed is not None)
            self.reconnect_needed = needed
            if needed is None or needed is ended:
                raise
            raise needed from ended
        self.cut("not sent because an earlier message was not accepted")

    def prepare_next(self) -> None:
        """Make the next envelope's mail transaction while the server is busy."""
        if self._stream.over and not self._transactions.large_under_way:
            self._plan.prepare()

    def cut(
        self,
        reason: str,
        reply: Reply | None = None,
        *,
        closed: bool = False,
        reconnects: bool = False,
    ) -> None:
        """Decide all undecided recipients: no octet will be written for this call any more.

        `closed` is True if the server has closed the connection. If the call `reconnects`, put
        envelopes that were not sent back into the source, for another connection.
        """
        queue = self._queue
        self._transactions.cut(reason, reply)
        if not self._stream.over:
            self._stream.cut(reason, reply, closed=closed)
        self._plan.give_up_prepared()
        for progress in queue.open:
            progress.settle_rest(failure_policy.UNSENT, reply, reason)
        if reconnects:
            self._put_back()
            self._takes_rest = False
        rest = self._source.rest(taken_only=self._keep_untaken) if self._takes_rest else ()
        for position, envelope in rest:
            progress = Progress(position, envelope, self._passed(envelope))
            progress.settle_rest(failure_policy.UNSENT, reply, reason)
            queue.open.append(progress)
        self._plan.end()
        queue.settle_ready()

    def _put_back(self) -> None:
        """Put back into the source the envelopes of which nothing was sent."""
        for progress in [progress for progress in self._queue.open if progress.unsent]:
            self._source.put_back(progress.position, progress.envelope)
            self._queue.open.remove(progress)

    def _reconnect_needed_for(self, ended: TransportError) -> ReconnectNeeded | None:
        """The error to raise in place of `ended` if a fresh connection goes on, else None.

        A fresh connection goes on after `ReconnectNeeded`, and after a 421 before any content.
        """
        if isinstance(ended, ReconnectNeeded):
            return ended
        reply, transactions = ended.reply, self._transactions
        if reply is None or reply.code != 421 or transactions.in_content:
            return None
        if transactions.current is not None and not transactions.current.progress.untouched:
            return None
        if self._policy.for_replies(Step.MAIL, [reply]) is None:
            return None
        transactions.current = None
        return ReconnectNeeded(reply)
