"""The conversation that sends messages in mail transactions, one after the other. No I/O.

With PIPELINING one write has the content of one message, its final dot, and MAIL, RCPT and DATA of
the next (RFC 2920 section 3.1). So a message takes one round trip, and never more than one final
dot is unanswered. DATA shares a write with several RCPTs only if all recipients have passed the
preflight on this connection, because a 354 cannot be taken back.
"""

from __future__ import annotations

from collections.abc import Generator

from ..reply import Reply
from . import commands, failure_policy
from .connection_state import ConnectionState
from .failure_policy import Step, Verdict, judge
from .protocol import Protocol
from .reconnect_policy import ReconnectPolicy
from .refusals import Refusals
from .send_request import SendRequest
from .transaction_plan import PlannedTransaction, TransactionPlan
from .transactions import ConnectionEnded, MailTransaction, ReconnectNeeded, answer


class TransactionSending:
    """The part of one call of `ISession.send` that is sent one message at a time."""

    def __init__(
        self,
        protocol: Protocol,
        request: SendRequest,
        connection: ConnectionState,
        plan: TransactionPlan,
        refusals: Refusals,
        reconnect_policy: ReconnectPolicy,
    ) -> None:
        self._protocol = protocol
        self._request = request
        self._extensions = connection.extensions
        self._pipelining = connection.pipelining
        self._plan = plan
        self._refusals = refusals
        self._reconnect_policy = reconnect_policy
        #: the mail transaction that is under way
        self.current: PlannedTransaction | None = None
        #: True from the first octet of a content to the reply to its final dot
        self.in_content = False
        #: the number of messages that the server accepted
        self.accepted = 0
        #: True once content was sent: from then on the call cannot start again
        self.begun = False

    @property
    def large_under_way(self) -> bool:
        """True if a large message is under way: another connection may take the next one."""
        current = self.current
        return current is not None and current.progress.envelope.size > self._request.octets

    def take(
        self, planned: PlannedTransaction, *, streams: bool
    ) -> Generator[None, None, PlannedTransaction | None]:
        """Do one mail transaction; returns the next one if its commands have already left.

        A connection that `streams` pipelines nothing here.
        """
        self.current = planned
        if not (yield from self._open(planned)):
            return None
        # It raises if the server sent more than its 354. Then nothing of the content has left.
        self._protocol.content(planned.progress.envelope.content)
        self.in_content = self.begun = True
        following = None
        pipelines = self._pipelining and not streams and not self.large_under_way
        if pipelines and (following := self._plan.next()):
            following.transaction.issue(self._protocol)
        while (reply := self._protocol.next_reply()) is None:
            yield
        self._settle_final(planned, reply, self._protocol.final_dot_left)
        if self._refusals.stopped:
            return None
        if following is not None and not reply.positive:
            following = yield from self._repeat_mail(following)
        return following

    def cut(self, reason: str, reply: Reply | None) -> None:
        """Settle the recipients of the mail transaction that is under way."""
        current = self.current
        if current is None:
            return
        verdict = self._verdict_when_cut(current, reply)
        for index in current.transaction.recipients:
            if index not in current.progress.waiting:
                current.progress.settle(index, verdict, reply, reason)
        self.current = None

    def _verdict_when_cut(self, current: PlannedTransaction, reply: Reply | None) -> Verdict:
        if self.in_content and self._protocol.final_dot_left:
            return failure_policy.IN_DOUBT
        if self.in_content:
            return failure_policy.CUT_SHORT
        if reply is not None and current.transaction.to_recipients:
            return judge(Step.DATA, reply)
        return failure_policy.UNSENT

    def _open(self, planned: PlannedTransaction) -> Generator[None, None, bool]:
        """Collect the answers to MAIL, RCPT and DATA; True if the content comes next."""
        transaction = planned.transaction
        yield from transaction.answers(self._protocol, self._pipelining)
        wanted = self._settle_recipients(planned)
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
        self._plan.dirty = True
        if data is not None and wanted:
            self._check_reconnect(self._reconnect_policy.for_replies(Step.DATA, [data]), planned)
            for index in transaction.recipients:
                planned.progress.settle(index, judge(Step.DATA, data), data)
            self._refusals.add()
        return False

    def _check_reconnect(self, reply: Reply | None, planned: PlannedTransaction) -> None:
        """Raise `ReconnectNeeded` for `reply`, unless a recipient of `planned` is decided."""
        if reply is not None and planned.progress.untouched:
            self.current = None
            raise ReconnectNeeded(reply)

    def _settle_recipients(self, planned: PlannedTransaction) -> bool:
        """Settle the refused recipients; True if the content goes to another one."""
        progress, transaction = planned.progress, planned.transaction
        if transaction.clean:
            return True
        if progress.untouched:
            self._check_reconnect(self._reconnect_policy.for_transaction(transaction), planned)
        verdicts = transaction.verdicts()
        accepted = [i for i, (v, _) in verdicts.items() if v is failure_policy.ACCEPTED]
        refused = False
        for index, (verdict, reply) in verdicts.items():
            if verdict is failure_policy.SPLIT and accepted:
                transaction.recipients.remove(index)
                progress.waiting.append(index)
            elif verdict is not failure_policy.ACCEPTED:
                # If the server takes no recipient at all, their number is not the cause.
                split = verdict is failure_policy.SPLIT
                verdict = failure_policy.DEFER_RECIPIENT if split else verdict
                progress.settle(index, verdict, reply)
                refused = True
        if not refused:
            return bool(accepted)
        self._refusals.add()
        if self._request.strict:
            reason = "not sent because another recipient was refused"
            progress.settle_rest(failure_policy.UNSENT, reason=reason)
        return bool(accepted) and not self._request.strict

    def _settle_final(self, planned: PlannedTransaction, reply: Reply, complete: bool) -> None:
        verdict = judge(Step.FINAL, reply)
        for index in planned.transaction.recipients:
            planned.progress.settle(index, verdict, reply)
        self.in_content, self._reconnect_policy.carried = False, True
        if verdict is failure_policy.ACCEPTED:
            self.accepted += 1
            self._refusals.careful = self._refusals.careful and not planned.transaction.clean
        else:
            self._plan.dirty = True
            self._refusals.add()
        if reply.code == 421:
            raise ConnectionEnded("the server closes the connection", reply=reply)
        if not complete:
            raise ConnectionEnded("refused before the content was complete", reply=reply)

    def _repeat_mail(
        self, following: PlannedTransaction
    ) -> Generator[None, None, PlannedTransaction]:
        """`following`, whose MAIL left together with a final dot that was then refused.

        Some servers keep the refused transaction open. For them this MAIL is a second one, and DATA
        would send the new content under the old sender. Then MAIL is sent again, after RSET.
        """
        transaction = following.transaction
        yield from transaction.answers(self._protocol, self._pipelining)
        self._plan.dirty = False
        mail, data = transaction.to_mail, transaction.to_data
        if mail is None or mail.positive:
            return following
        if data is not None and data.code == 354:
            raise ConnectionEnded("hung up: a 354 for a refused sender", lost=True)
        again = MailTransaction(transaction.envelope, transaction.recipients, self._extensions)
        again.begin_with_reset()
        return PlannedTransaction(following.progress, again)
