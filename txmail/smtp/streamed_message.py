"""Settles one message in a stream by the replies to its commands. No I/O.

RSET stands before a message if the message before it may have left a mail transaction open: while
its content has no final reply, or after the server refused it. Exim keeps the transaction of a
refused message open, and would send the next message under the previous sender. Exim also counts
every RSET that is not needed (``smtp_accept_max_nonmail``).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..envelope import Envelope
from ..reply import Reply
from . import failure_policy
from .failure_policy import Step, judge
from .progress import Progress

#: Codes of replies to BDAT that are about the command and not about the message.
_UNKNOWN = frozenset({500, 501, 502, 503, 504})


class StreamedMessage:
    """One message in the stream."""

    __slots__ = (
        *("envelope", "first_reply", "last_octet", "opened"),
        *("position", "preflighted", "reply_count", "reset"),
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
        #: True if RSET stands before it
        self.reset = reset
        #: True if the server answered its MAIL and RCPTs before, in the preflight
        self.opened = opened
        #: how many replies it gets
        self.reply_count = 1 if opened else len(envelope.forward_paths) + 2 + reset
        #: the number of its first reply, and of its last octet among all octets that the socket
        #: takes; 0 until the message is queued
        self.first_reply = self.last_octet = 0

    def to_mail(self, replies: Sequence[Reply]) -> Reply | None:
        """The reply to MAIL, of the `replies` to this message."""
        place = int(self.reset)
        return replies[place] if not self.opened and len(replies) > place else None

    def refuses_reset(self, replies: Sequence[Reply]) -> bool:
        """True if the server refused the RSET before this message, and goes on."""
        return self.reset and bool(replies) and replies[0].code >= 400 and replies[0].code != 421


def progress_of(message: StreamedMessage, replies: Sequence[Reply], *, clean: bool) -> Progress:
    """The progress of a message after `replies` to its commands; the last may be missing.

    `clean` is True if the server had no mail transaction open when the message came. Recipients
    that go again are `waiting`: the server takes no more of them at once, or knows no BDAT. About
    other undecided recipients the server said nothing.
    """
    progress = Progress(message.position, message.envelope, message.preflighted)
    named = list(progress.waiting)
    progress.waiting.clear()
    final = replies[-1] if len(replies) == message.reply_count else None
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
    """True if the replies do not tell what the server made of the commands.

    A 3yz has no place in a stream. After a 421 to RSET a server does nothing more, so that a
    positive reply behind it has no meaning.
    """
    if any(reply.intermediate for reply in replies):
        return True
    close_announced = message.reset and bool(replies) and replies[0].code == 421
    return close_announced and any(reply.positive for reply in replies)


def announces_close(message: StreamedMessage, replies: Sequence[Reply], before: bool) -> bool:
    """True if the server has announced in `replies` that it closes the connection.

    It says 421, or refuses RSET as Exim does when it hangs up, and no positive reply follows.
    `before` is the answer before `replies` came.
    """
    for place, reply in enumerate(replies):
        if reply.code == 421 or (place == 0 and message.refuses_reset(replies)):
            before = True
        elif reply.positive:
            before = False
    return before


def _settle_mixed(progress: Progress, to_recipients: Sequence[Reply], final: Reply | None) -> None:
    """Settle a message whose RSET was refused: another transaction may have been open.

    Then the message may have gone out under the sender of that transaction, or to its recipients.
    A refusal says nothing about the message.
    """
    if final is None:
        return
    for index in range(len(progress.outcomes)):
        taken = final.positive and to_recipients[index].positive
        progress.settle(index, failure_policy.IN_DOUBT if taken else failure_policy.UNSENT, final)


def _settle_refused(progress: Progress, replies: Sequence[Reply], final: Reply | None) -> list[int]:
    """Settle the recipients refused in reply to MAIL or RCPT; return the accepted ones."""
    if not replies:
        return []
    mail, to_recipients = replies[0], replies[1 : 1 + len(progress.outcomes)]
    if not mail.positive:
        taken = final is not None and final.positive
        # The server took content without a sender: what it made of that is unknown.
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
    """True if `reply` to BDAT, whose recipients were accepted, is about the command itself."""
    return reply.code in _UNKNOWN
