"""The conversation that sends envelopes, and the account of what became of them. No I/O.

Where CHUNKING and PIPELINING are offered messages are streamed (`streaming`), as many at once as
the window allows; those that need care, and the first ones behind one that was refused, go as they
go where there is no CHUNKING:

With PIPELINING the content of one message, its final dot, and MAIL, RCPT and DATA of the next
share one write (RFC 2920 section 3.1): a round trip a message, and never more than one final dot
unanswered. DATA goes in one write with more than one RCPT only if all of them have passed the
preflight on this connection, because a 354 cannot be taken back. A message counts as accepted
only when its MAIL, its recipient and its final reply are all positive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace

from ..envelope import Envelope
from ..exceptions import TransportError
from ..outcome import Action, Outcome, Scope, Status
from ..reply import Reply
from . import commands, failure_policy
from .extensions import Extensions
from .failure_policy import Step, Verdict, judge
from .progress import Progress, Source, unsendable, verdict_on
from .protocol import Protocol
from .reconnect_policy import ReconnectPolicy
from .server_memory import ServerMemory
from .streamed_message import StreamedMessage, is_unknown, progress_of
from .streaming import WINDOW_OCTETS, Streaming
from .transactions import (
    RECIPIENTS_LIMIT,
    ConnectionEnded,
    Conversation,
    MailTransaction,
    ReconnectNeeded,
    ResetRefused,
    answer,
)

#: Messages on their way at once where nobody says how many: few enough to be looked at by a person
#: when the connection breaks, enough for most of what a longer window brings.
WINDOW = 16
#: Messages refused on one connection after which another is better: Exim hangs up after ten
#: commands that lead to no message, Postfix sleeps a second for each error after the tenth.
REFUSALS_LIMIT = 8
#: Messages in a row of which MAIL got a 4yz: that many are no matter of the messages any more.
PUT_OFF_LIMIT = 3


class PlannedTransaction:
    """One mail transaction and the envelope it is for."""

    __slots__ = ("problem", "progress", "transaction")

    def __init__(self, progress: Progress, transaction: MailTransaction, problem: str = "") -> None:
        self.progress = progress
        self.transaction = transaction
        #: why this server can never take it; empty if it may
        self.problem = problem


@dataclass(frozen=True, slots=True)
class ConnectionHistory:
    """What a connection has carried."""

    #: messages that were refused
    refusals: int = 0
    #: True if there was an answer to the content of a message
    carried: bool = False


NO_HISTORY = ConnectionHistory()


class Sending:
    """One call of `ISession.send`."""

    def __init__(
        self,
        protocol: Protocol,
        extensions: Extensions,
        envelopes: Iterable[Envelope] | Source,
        *,
        strict: bool,
        pipelining: bool,
        passed: Callable[[Envelope], bool],
        open_transaction: MailTransaction | None = None,
        dirty: bool = False,
        window: int = 0,
        octets: int = WINDOW_OCTETS,
        keep_untaken: bool = False,
        takes_rest: bool | None = None,
        cautious: bool = False,
        memory: ServerMemory | None = None,
        past: ConnectionHistory = NO_HISTORY,
        most: int | None = None,
    ) -> None:
        """`passed` says whether an envelope passed the preflight on this very connection.

        `open_transaction` is the mail transaction that the preflight left open; `dirty` says that
        there may be one which has to be reset. `window` is how many messages are streamed at once,
        0 if none can be; behind more than `octets` nothing is sent before there is an answer. With
        `keep_untaken`,
        envelopes that were not taken when sending ends stay in the iterator and get no outcome,
        and `REFUSALS_LIMIT` ends it. A `Source` is shared with others, and what is left is theirs
        unless `takes_rest`. `cautious` sends no content before there was a reply. `past` is what
        the connection has carried; with a `memory` of the server, `ReconnectNeeded` ends it where a
        fresh connection may get another answer, or has to go on because this one has carried
        `most`.
        """
        self._protocol = protocol
        self._extensions = extensions
        shared = isinstance(envelopes, Source)
        self._source = envelopes if isinstance(envelopes, Source) else Source(envelopes)
        self._streaming = Streaming(protocol, extensions, window, octets) if window else None
        self._octets = octets
        self._keep_untaken = keep_untaken
        #: what is left of a source that others share is theirs
        self._takes_rest = not shared if takes_rest is None else takes_rest
        self._strict = strict
        self._pipelining = pipelining
        self._passed = passed
        self._open_transaction = open_transaction
        self._open: deque[Progress] = deque()
        self._turn: PlannedTransaction | None = None
        #: the first mail transaction of the next envelope, made while the server was busy
        self._ahead: PlannedTransaction | None = None
        self._in_content = False
        self._stopped = False
        #: True from a refusal until a message is accepted: one at a time, asking before content
        self._careful = cautious and self._streaming is not None
        #: messages refused on this connection
        self.refusals = past.refusals
        #: what a fresh connection is asked about
        self.reconnect_policy = ReconnectPolicy(memory, past.carried)
        #: in the stream, a reply for which a fresh connection is asked
        self._reconnect_reply: Reply | None = None
        #: why all is over here and goes on over a fresh connection
        self.reconnect_needed: ReconnectNeeded | None = None
        #: messages that may still be begun here
        self._most = most
        #: those in a row of which MAIL got a 4yz, by their Message-IDs
        self._put_off: set[str] = set()
        #: True if that has become too many
        self.tired = False
        #: True once the server has shown that it does not know BDAT, or RSET between messages
        self.chunking_failed = False
        #: True once it has shown that it does not know RSET
        self.reset_failed = False
        #: outcomes that are known and were not handed out, in order
        self.ready: deque[Outcome] = deque()
        #: messages that the server took one at a time
        self._accepted = 0
        #: True if the next mail transaction on this connection has to begin with RSET
        self.dirty = dirty
        #: True once content has been queued: from here on there is no starting over
        self.begun = False

    def conversation(self) -> Conversation:
        """Send everything; returns when each recipient is decided. Raises `TransportError`."""
        try:
            yield from self._stream()
            turn = self._next()
            while turn is not None:
                turn = yield from self._take(turn)
                self._hand_out()
                if turn is None:
                    self._turn = None
                    yield from self._stream()
                    turn = self._next()
            if self._is_worn_out():
                raise ReconnectNeeded
        except TransportError as ended:
            closed = isinstance(ended, ConnectionEnded) and ended.lost
            again = self._reconnect_needed_for(ended)
            self.cut(str(ended), ended.reply, closed=closed, again=again is not None)
            self.reconnect_needed = again
            if again is None or again is ended:
                raise
            raise again from ended
        self.cut("not sent because an earlier message was not accepted")

    def cut(
        self,
        reason: str,
        reply: Reply | None = None,
        *,
        closed: bool = False,
        again: bool = False,
    ) -> None:
        """Decide all that is undecided: no octet will be written for this call any more.

        `closed` if that is because the server has closed the connection. With `again`, what was
        not sent is put back into the source, which another connection goes on with.
        """
        if self._turn is not None:
            verdict = self._verdict_when_cut(self._turn, reply)
            for index in self._turn.transaction.recipients:
                if index not in self._turn.progress.waiting:
                    self._turn.progress.settle(index, verdict, reply, reason)
            self._turn = None
        if self._streaming is not None:
            self._streaming.cut(self._open, reason, reply, closed=closed)
            self.begun = (
                self.begun
                or self._streaming.accepted > 0
                or any(
                    o is not None and o.status is not Status.UNSENT
                    for progress in self._open
                    for o in progress.outcomes
                )
            )
        if self._ahead is not None:
            self._open.append(self._ahead.progress)
            self._ahead = None
        for progress in self._open:
            progress.settle_rest(failure_policy.UNSENT, reply, reason)
        if again:
            self._put_back()
            self._takes_rest = False
        rest = self._source.rest(taken_only=self._keep_untaken) if self._takes_rest else ()
        for position, envelope in rest:
            progress = Progress(position, envelope, self._passed(envelope))
            progress.settle_rest(failure_policy.UNSENT, reply, reason)
            self._open.append(progress)
        # A mail transaction that the preflight left open and nobody used is still open.
        self.dirty = self.dirty or self._open_transaction is not None
        self._hand_out()

    def _put_back(self) -> None:
        """Leave to another connection what was not sent here."""
        for progress in [progress for progress in self._open if progress.unsent]:
            self._source.repeat(progress.position, progress.envelope)
            self._open.remove(progress)

    def _verdict_when_cut(self, turn: PlannedTransaction, reply: Reply | None) -> Verdict:
        if self._in_content:
            return (
                failure_policy.IN_DOUBT
                if self._protocol.final_dot_left
                else failure_policy.CUT_SHORT
            )
        if reply is not None and turn.transaction.to_recipients:
            return judge(Step.DATA, reply)
        return failure_policy.UNSENT

    @property
    def accepted(self) -> int:
        """Messages that the server took."""
        streamed = self._streaming.accepted if self._streaming is not None else 0
        return self._accepted + streamed

    @property
    def past(self) -> ConnectionHistory:
        """What the connection has carried by now."""
        return ConnectionHistory(self.refusals, self.reconnect_policy.carried)

    def _hand_out(self) -> None:
        while self._open and self._open[0].settled:
            # In this order an interrupt can repeat outcomes and not lose them.
            self.ready.extend([o for o in self._open[0].outcomes if o is not None])
            self._open.popleft()

    # -- what a fresh connection is asked about

    def _reconnect_needed_for(self, ended: TransportError) -> ReconnectNeeded | None:
        """What ends it instead of a 421 in front of any content, if a fresh one is asked."""
        if isinstance(ended, ReconnectNeeded):
            return ended
        reply, turn = ended.reply, self._turn
        if reply is None or reply.code != 421 or self._in_content:
            return None
        if turn is not None and not turn.progress.untouched:
            return None
        if self.reconnect_policy.for_replies(Step.MAIL, [reply]) is None:
            return None
        self._turn = None
        return ReconnectNeeded(reply)

    def _raise_reconnect_needed(self, reply: Reply | None, turn: PlannedTransaction) -> None:
        """Raise `ReconnectNeeded` for `reply`, unless something of `turn` is decided."""
        if reply is not None and turn.progress.untouched:
            self._turn = None
            raise ReconnectNeeded(reply)

    # -- which mail transaction is next

    def _next(self) -> PlannedTransaction | None:
        """The rest of a message that was split, else the next message that can be sent."""
        while not self._stopped:
            waiting = next((progress for progress in self._open if progress.waiting), None)
            if waiting is not None:
                return self._begun(self._turn_for(waiting))
            turn = self._made()
            if turn is None:
                return None
            self._open.append(turn.progress)
            if not turn.problem:
                return self._begun(turn)
            verdict = verdict_on(turn.progress.envelope, self._extensions)
            turn.progress.settle_rest(verdict, reason=turn.problem)
            self._not_accepted()
        return None

    def make_ahead(self) -> None:
        """Use the time while the server is busy: make the next envelope's mail transaction."""
        wanted = self._ahead is None and self._streaming is None and not self._stopped
        if wanted and not self._much_is_under_way:
            self._ahead = self._made()

    @property
    def _much_is_under_way(self) -> bool:
        """True if the next message should not wait here: another connection may take it."""
        return self._turn is not None and self._turn.progress.envelope.size > self._octets

    def _made(self) -> PlannedTransaction | None:
        """The first mail transaction of the next envelope, None if there is none."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            return ahead
        if self._most == 0:
            return None
        found = self._source.take()
        if found is None:
            return None
        self._count_begun()
        position, envelope = found
        progress = Progress(position, envelope, self._passed(envelope))
        open_transaction = self._take_open_transaction(envelope)
        if open_transaction is None:
            return self._turn_for(progress)
        for index in open_transaction.recipients:
            progress.waiting.remove(index)
        return PlannedTransaction(progress, open_transaction)

    def _count_begun(self) -> None:
        if self._most is not None:
            self._most -= 1

    def _is_worn_out(self) -> bool:
        """True if there is more to send, and this connection may carry no more."""
        if self._most != 0 or self._stopped or (found := self._source.take()) is None:
            return False
        self._source.put_back(*found)
        return True

    def _take_open_transaction(self, envelope: Envelope) -> MailTransaction | None:
        """The mail transaction that was left open, if it is that of `envelope`; only once."""
        open_transaction, self._open_transaction = self._open_transaction, None
        if open_transaction is not None and open_transaction.envelope is not envelope:
            self.dirty = True
            return None
        return open_transaction

    def _turn_for(self, progress: Progress) -> PlannedTransaction:
        waiting = progress.waiting
        recipients = [waiting.popleft() for _ in range(min(len(waiting), RECIPIENTS_LIMIT))]
        transaction = MailTransaction(
            progress.envelope,
            recipients,
            self._extensions,
            data=self._pipelining
            and not self._careful
            and (len(recipients) == 1 or progress.preflighted),
        )
        return PlannedTransaction(
            progress, transaction, unsendable(progress.envelope, self._extensions)
        )

    def _begun(self, turn: PlannedTransaction) -> PlannedTransaction:
        """`turn`, which is about to be issued: now it is known whether RSET has to come first."""
        if self.dirty:
            if self.reconnect_policy.no_reset:
                raise ConnectionEnded("this server does not reset a mail transaction")
            turn.transaction.begin_with_reset()
            self.dirty = False
        return turn

    def _not_accepted(self) -> None:
        self.refusals += 1
        self.tired = self._keep_untaken and self.refusals >= REFUSALS_LIMIT
        self._stopped = self._strict or self.tired
        self._careful = self._streaming is not None

    # -- the stream

    def _stream(self) -> Conversation:
        """Stream messages until the next one needs care, or there is none."""
        streaming = self._streaming
        if streaming is None:
            return
        self._fill(streaming)
        while not streaming.empty:
            yield
            accepted = streaming.accepted
            while (refused := streaming.collect(self.ready)) is not None:
                if streaming.accepted > accepted:
                    accepted = streaming.accepted
                    self.reconnect_policy.carried = True
                    self._put_off.clear()
                self._settle_refused(streaming, *refused)
            self.begun = True
            self.reconnect_policy.carried = self.reconnect_policy.carried or streaming.accepted > 0
            self._fill(streaming)
            if streaming.empty and self._protocol.closing:
                raise ConnectionEnded("the server closes the connection")
            if streaming.empty:
                self.dirty = not streaming.clean
        if self._reconnect_reply is not None:
            raise ReconnectNeeded(self._reconnect_reply)
        if streaming.reset_refused is not None:
            self._do_without_reset(streaming, streaming.reset_refused)
        if self.chunking_failed:
            self._accepted += streaming.accepted
            self._streaming, self._careful = None, False

    def _do_without_reset(self, streaming: Streaming, reply: Reply) -> None:
        """All have their replies; what goes on here goes without a stream, if anything can."""
        self.chunking_failed = self.reset_failed = True
        self.dirty = self.dirty or streaming.mixed
        if self.dirty and not self._stopped:
            raise ResetRefused(reply)

    def _fill(self, streaming: Streaming) -> None:
        """Put into the stream what may go there now."""
        if self._careful or self._stopped or self._open or self.chunking_failed:
            return
        if self._protocol.closing or self._reconnect_reply or streaming.reset_refused is not None:
            return
        room = streaming.room
        if self.refusals:
            # Of what is on its way, no more may be refused than the server bears.
            room = min(room, max(1, REFUSALS_LIMIT - self.refusals) - streaming.count)
        if self._most is not None:
            room = min(room, self._most)
        for _ in range(room):
            found = self._source.take()
            if found is None:
                return
            position, envelope = found
            passed = self._passed(envelope)
            if not (streaming.takes(envelope, passed) and streaming.has_room(envelope)):
                self._source.put_back(position, envelope)
                return
            kept = self._open_transaction
            kept = self._take_open_transaction(envelope) if kept is not None else None
            if streaming.empty:
                streaming.clean, self.dirty = not self.dirty, False
            streaming.add(position, envelope, passed, kept)
            self._count_begun()

    def _settle_refused(
        self, streaming: Streaming, message: StreamedMessage, replies: list[Reply]
    ) -> None:
        """Settle a message with a reply that was not positive."""
        progress = progress_of(message, replies, clean=streaming.clean)
        again = self.reconnect_policy.for_streamed(message, replies)
        if again is not None:
            self._reconnect_reply = self._reconnect_reply or again
            self._source.repeat(message.position, message.envelope)
            streaming.dealt_with(replies)
            return
        self._note_mail(progress, message.to_mail(replies))
        self._open.append(progress)
        streaming.dealt_with(replies)
        if progress.waiting and is_unknown(replies[-1]):
            # It may have read the octets as commands: no more of that on this connection.
            self.chunking_failed = streaming.bdat_unknown = True
        if any(o is not None and o.status is not Status.ACCEPTED for o in progress.outcomes):
            self._not_accepted()
        self._hand_out()

    # -- one mail transaction

    @property
    def _pipelines(self) -> bool:
        """True if the commands of the next message may go with the content of this one."""
        return self._pipelining and self._streaming is None and not self._much_is_under_way

    def _take(self, turn: PlannedTransaction) -> Generator[None, None, PlannedTransaction | None]:
        """Do one mail transaction and say which is next."""
        self._turn = turn
        if not (yield from self._opened(turn)):
            return None
        # It raises if the server has said more than its 354; nothing of the content has left then.
        self._protocol.content(turn.progress.envelope.content)
        self._in_content = self.begun = True
        following = None
        if self._pipelines and (following := self._next()):
            following.transaction.issue(self._protocol)
        while (reply := self._protocol.next_reply()) is None:
            yield
        self._settle_final(turn, reply, self._protocol.final_dot_left)
        if self._stopped:
            return None
        if following is not None and not reply.positive:
            following = yield from self._trusted(following)
        return following

    def _opened(self, turn: PlannedTransaction) -> Generator[None, None, bool]:
        """Collect the answers to MAIL, RCPT and DATA; True if the content has to follow."""
        transaction = turn.transaction
        yield from transaction.answers(self._protocol, self._pipelining)
        wanted = self._settle_recipients(turn)
        data = transaction.to_data
        if wanted and data is None:
            self._protocol.issue(Step.DATA, commands.DATA)
            data = yield from answer(self._protocol)
            if data.code == 421:
                raise ConnectionEnded("the server closes the connection", reply=data)
        if data is not None and data.code == 354:
            if wanted:
                return True
            raise ConnectionEnded("hung up: a 354 for a message that must not go out", lost=False)
        self.dirty = True
        if data is not None and wanted:
            self._raise_reconnect_needed(self.reconnect_policy.for_replies(Step.DATA, [data]), turn)
            for index in transaction.recipients:
                turn.progress.settle(index, judge(Step.DATA, data), data)
            self._not_accepted()
        return False

    def _settle_recipients(self, turn: PlannedTransaction) -> bool:
        """Decide who was refused; True if the content is wanted for somebody."""
        if turn.transaction.clean:
            self._put_off.clear()
            return True
        progress = turn.progress
        if progress.untouched:
            self._raise_reconnect_needed(
                self.reconnect_policy.for_transaction(turn.transaction), turn
            )
        verdicts = turn.transaction.verdicts()
        accepted = [i for i, (v, _) in verdicts.items() if v is failure_policy.ACCEPTED]
        refused = False
        for index, (verdict, reply) in verdicts.items():
            if verdict is failure_policy.SPLIT and accepted:
                turn.transaction.recipients.remove(index)
                progress.waiting.append(index)
            elif verdict is not failure_policy.ACCEPTED:
                if verdict is failure_policy.SPLIT:
                    # The server accepts no recipient at all: their number is not the cause.
                    verdict = failure_policy.DEFER_RECIPIENT
                progress.settle(index, verdict, reply)
                refused = True
        self._note_mail(progress, turn.transaction.to_mail)
        if refused:
            self._not_accepted()
            if self._strict:
                progress.settle_rest(
                    failure_policy.UNSENT, reason="not sent because another recipient was refused"
                )
        return bool(accepted) and not (refused and self._strict)

    def _note_mail(self, progress: Progress, mail: Reply | None) -> None:
        """Count messages that are put off at MAIL in a row: of three it is the route's fault.

        What others were accepted between is not known of those that are asked about again.
        """
        if progress.position in self._source.repeated:
            return
        if mail is None or not mail.temporary:
            self._put_off.clear()
            return
        self._put_off.add(progress.envelope.message_id or str(progress.position))
        if len(self._put_off) >= PUT_OFF_LIMIT:
            progress.outcomes = [
                replace(outcome, scope=Scope.ROUTE, action=Action.DEFER_ROUTE)
                if outcome is not None and outcome.reply is mail
                else outcome
                for outcome in progress.outcomes
            ]

    def _settle_final(self, turn: PlannedTransaction, reply: Reply, complete: bool) -> None:
        verdict = judge(Step.FINAL, reply)
        for index in turn.transaction.recipients:
            turn.progress.settle(index, verdict, reply)
        self._in_content, self.reconnect_policy.carried = False, True
        if verdict is failure_policy.ACCEPTED:
            self._accepted += 1
            self._careful = self._careful and not turn.transaction.clean
        else:
            self.dirty = True
            self._not_accepted()
        if reply.code == 421:
            raise ConnectionEnded("the server closes the connection", reply=reply)
        if not complete:
            raise ConnectionEnded("refused before the content was complete", reply=reply)

    def _trusted(self, following: PlannedTransaction) -> Generator[None, None, PlannedTransaction]:
        """`following`, whose MAIL left together with a final dot that was then refused.

        Some servers keep the refused transaction open: to them this MAIL is a second one, and its
        DATA would send the new content under the old sender. Such a MAIL is asked again, after
        RSET.
        """
        transaction = following.transaction
        yield from transaction.answers(self._protocol, self._pipelining)
        self.dirty = False
        mail, data = transaction.to_mail, transaction.to_data
        if mail is None or mail.positive:
            return following
        if data is not None and data.code == 354:
            raise ConnectionEnded("hung up: a 354 for a refused sender", lost=True)
        again = MailTransaction(transaction.envelope, transaction.recipients, self._extensions)
        again.begin_with_reset()
        return PlannedTransaction(following.progress, again)
