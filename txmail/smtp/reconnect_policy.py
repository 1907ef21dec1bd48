"""Finds the replies about which a fresh connection is asked once more. No I/O.

Servers limit what one connection may carry, and say so with any reply: "too many messages" to MAIL,
a 4yz to each RCPT, a 5yz to DATA. On a connection that has carried a message such a reply may be
about the connection, and then a fresh one gets another answer. The answer of the fresh connection
counts. If it is the same, the client asks no fresh connection about this reply for a while.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..reply import Reply
from .failure_policy import Step, concerns_connection
from .server_memory import ServerMemory
from .streamed_message import StreamedMessage
from .transactions import MailTransaction


class ReconnectPolicy:
    """Judges the replies on one connection."""

    def __init__(self, memory: ServerMemory | None, carried: bool) -> None:
        """`carried` is True if the server has answered the content of a message here.

        Without a `memory` of the server no fresh connection is ever asked.
        """
        self._memory = memory
        self.carried = carried

    def for_replies(self, step: Step, replies: Sequence[Reply]) -> Reply | None:
        """The first of `replies` if all of them may be about this connection alone, else None."""
        if self._memory is None or not replies:
            return None
        if not all(concerns_connection(step, reply) for reply in replies):
            return None
        if self.carried:
            return replies[0] if self._memory.may_reconnect_for(replies[0]) else None
        self._memory.note_answer(replies[0])
        return None

    def for_transaction(self, transaction: MailTransaction) -> Reply | None:
        """As `for_replies`, for the replies to MAIL and RCPT."""
        mail = transaction.to_mail
        if mail is not None and not mail.positive:
            return self.for_replies(Step.MAIL, [mail])
        return self.for_replies(Step.RCPT, transaction.to_recipients)

    def for_streamed(self, message: StreamedMessage, replies: Sequence[Reply]) -> Reply | None:
        """As `for_replies`, for the replies to a message in the stream."""
        mail = message.to_mail(replies)
        if mail is None or replies[-1].positive or message.refuses_reset(replies):
            return None
        if not mail.positive:
            return self.for_replies(Step.MAIL, [mail])
        return self.for_replies(Step.RCPT, replies[message.reset + 1 : -1])
