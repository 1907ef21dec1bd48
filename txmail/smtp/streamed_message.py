"""One message in a stream, and what the replies to it mean. No I/O.

A stream has RSET in front of a message if the one before it may have left a mail transaction open:
while its content has no final reply, or when it was refused. Exim keeps the transaction of a
refused message, and would send the next message under the previous sender; and it counts every
RSET that is not needed (``smtp_accept_max_nonmail``).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..envelope import Envelope
from ..reply import Reply
from . import failure_policy
from .failure_policy import Step, judge
from .progress import Progress

#: Replies to BDAT that are about the command and not about the message.
_UNKNOWN = frozenset({500, 501, 502, 503, 504})


class StreamedMessage:
    """One message in the stream."""

    __slots__ = (
        *("ends", "envelope", "first", "position", "preflighted"),
        *("replies", "reset", "opened"),
    )

    def __init__(
        self,
        position: int,
        envelope: Envelope,
        preflighted: bool,
        *,
        reset: bool = False,
        opened: bool = False,
    ) -> None:
        self.position = position
        self.envelope = envelope
        self.preflighted = preflighted
        #: True if RSET stands in front of it
        self.reset = reset
        #: True if its MAIL and RCPTs were answered before, in the preflight
        self.opened = opened
        #: how many it gets
        self.replies = 1 if opened else len(envelope.forward_paths) + 2 + reset
        #: the number of the first of them, and how many octets the socket has taken when it has
        #: the last of this message; 0 before it was queued
        self.first = self.ends = 0

    def to_mail(self, replies: Sequence[Reply]) -> Reply | None:
        """Of `replies` to this message, the one to MAIL."""
        place = int(self.reset)
        return replies[place] if not self.opened and len(replies) > place else None

    def refuses_reset(self, replies: Sequence[Reply]) -> bool:
        """True if the server refused the RSET in front of it, and goes on."""
        return self.reset and bool(replies) and replies[0].code >= 400 and replies[0].code != 421


def progress_of(message: StreamedMessage, replies: Sequence[Reply], *, clean: bool) -> Progress:
    """What becomes of a message by the replies to its commands, of which the last may be missing.

    `clean` if the server had no mail transaction open when the message came. `waiting` are those
    of its recipients that go again: the server takes no more at once, or knows no BDAT. About
    others that are undecided nothing was said.
    """
    progress = Progress(message.position, message.envelope, message.preflighted)
    named = list(progress.waiting)
    progress.waiting.clear()
    final = replies[-1] if len(replies) == message.replies else None
    if is_out_of_step(message, replies):
        if final is not None and final.code >= 400:
            progress.settle_rest(failure_policy.UNSENT, final)
        return progress
    if message.reset:
        refused = message.refuses_reset(replies)
        if refused and not (clean and len(replies) > 1 and replies[1].positive):
            _settle_mixed(progress, replies[2:], final)
            return progress
        if replies and replies[0].code == 421:
            progress.settle_rest(judge(Step.RSET, replies[0]), replies[0])
            return progress
        replies = replies[1:]
    if not message.opened:
        named = _settle_refused(progress, replies, final)
    if final is not None and is_unknown(final):
        progress.waiting.extendleft(reversed(named))
    elif final is not None:
        verdict = judge(Step.FINAL, final)
        for index in named:
            progress.settle(index, verdict, final)
    return progress


def is_out_of_step(message: StreamedMessage, replies: Sequence[Reply]) -> bool:
    """True if nobody can know what the server makes of what it was sent.

    A 3yz has no place here, and behind a 421 to RSET there is nothing that is done. (If nothing
    was done it is clear.)
    """
    if any(reply.intermediate for reply in replies):
        return True
    goodbye = message.reset and bool(replies) and replies[0].code == 421
    return goodbye and any(reply.positive for reply in replies)


def says_goodbye(message: StreamedMessage, replies: Sequence[Reply], before: bool) -> bool:
    """True if by `replies` the server does nothing any more; `before`, what was known until then.

    It has said 421, or refused a RSET as Exim does when it hangs up, and nothing positive behind.
    """
    for place, reply in enumerate(replies):
        if reply.code == 421 or (place == 0 and message.refuses_reset(replies)):
            before = True
        elif reply.positive:
            before = False
    return before


def _settle_mixed(progress: Progress, to_recipients: Sequence[Reply], final: Reply | None) -> None:
    """Settle a message whose RSET was refused: perhaps it was not alone in its transaction.

    If another transaction was open, it may have gone out under the sender of that one, or to its
    recipients. What was refused was refused for no reason of its own.
    """
    if final is None:
        return
    for index in range(len(progress.outcomes)):
        taken = final.positive and to_recipients[index].positive
        progress.settle(index, failure_policy.IN_DOUBT if taken else failure_policy.UNSENT, final)


def _settle_refused(progress: Progress, replies: Sequence[Reply], final: Reply | None) -> list[int]:
    """Settle who was refused by what MAIL and RCPT got; return who was accepted."""
    if not replies:
        return []
    mail, to_recipients = replies[0], replies[1 : 1 + len(progress.outcomes)]
    if not mail.positive:
        taken = final is not None and final.positive
        # Content without a sender: nobody can know what the server has made of it.
        progress.settle_rest(failure_policy.IN_DOUBT if taken else judge(Step.MAIL, mail), mail)
        return []
    verdicts = [judge(Step.RCPT, reply) for reply in to_recipients]
    named = [i for i, verdict in enumerate(verdicts) if verdict is failure_policy.ACCEPTED]
    for index, (verdict, reply) in enumerate(zip(verdicts, to_recipients, strict=True)):
        if verdict is failure_policy.SPLIT and named:
            progress.waiting.append(index)
        elif verdict is not failure_policy.ACCEPTED:
            refusal = failure_policy.DEFER_RECIPIENT if verdict is failure_policy.SPLIT else verdict
            progress.settle(index, refusal, reply)
    return named


def is_unknown(reply: Reply) -> bool:
    """True if `reply`, to a BDAT whose recipients were accepted, is about BDAT itself."""
    return reply.code in _UNKNOWN
