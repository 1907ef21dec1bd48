"""Issues the commands of mail transactions (RFC 5321 section 3.3), and collects their replies.

The commands of a `CommandGroup` share one write where the server offers PIPELINING (RFC 2920), and
go one at a time where it does not. A `MailTransaction` is the group that opens the transaction of
one envelope: MAIL, its RCPTs and, where that is safe, DATA.

Conversations are generators. They issue commands on a `Protocol` and take its replies. Where a
reply has not come yet they yield; the driver resumes them when it has, or throws `ConnectionEnded`
if it will not come.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ..envelope import Envelope
from ..exceptions import TransportError
from ..reply import Reply
from . import commands
from .extensions import Extensions
from .failure_policy import Step, Verdict, judge
from .protocol import Protocol

#: Recipients in one mail transaction: every server has to take that many (RFC 5321
#: section 4.5.3.1.8).
RECIPIENTS_LIMIT = 100

#: A command line, and the step of the dialogue that it is.
Command = tuple[Step, bytes]
Conversation = Generator[None, None, None]


class ConnectionEnded(TransportError):
    """No reply will come any more: EOF, a reset, a 421, a time-out or nonsense."""

    def __init__(self, problem: str, *, lost: bool = True, reply: Reply | None = None) -> None:
        super().__init__(problem, lost=lost, reply=reply)


class ReconnectNeeded(ConnectionEnded):
    """The rest of a call goes on over a fresh connection.

    The server gave a `reply` that may be about this connection alone, or this connection has
    carried as many messages as it may.
    """

    def __init__(self, reply: Reply | None = None) -> None:
        said = "it has carried enough" if reply is None else str(reply)
        super().__init__(f"a fresh connection is needed: {said}", reply=reply)


class ResetRefused(ConnectionEnded):
    """The server refused RSET: a mail transaction that is open on the connection stays open."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("RSET was refused", reply=reply)
        self.reply_to_reset = reply


def answer(protocol: Protocol) -> Generator[None, None, Reply]:
    """The answer to the oldest unanswered command."""
    while (reply := protocol.next_reply()) is None:
        yield
    return reply


class CommandGroup:
    """Commands in their order, and the replies so far."""

    __slots__ = ("_answered", "_issued", "commands", "to_data", "to_mail", "to_recipients")

    def __init__(self, run: Sequence[Command]) -> None:
        self.commands = list(run)
        self._issued = self._answered = 0
        #: the replies to MAIL, to the RCPTs in their order, and to DATA
        self.to_mail: Reply | None = None
        self.to_recipients: list[Reply] = []
        self.to_data: Reply | None = None

    def issue(self, protocol: Protocol) -> None:
        """Queue all commands that were not queued before; they leave in one write."""
        if self._issued < len(self.commands):
            protocol.issue_all(self.commands[self._issued :])
            self._issued = len(self.commands)

    def answers(self, protocol: Protocol, pipelining: bool) -> Conversation:
        """Collect all replies. Raises `ConnectionEnded` on 421, and on a refused RSET."""
        if pipelining:
            self.issue(protocol)
        while self._answered < len(self.commands):
            step, line = self.commands[self._answered]
            if self._answered == self._issued:
                protocol.issue(step, line)
                self._issued += 1
            while (reply := protocol.next_reply()) is None:
                yield
            self._answered += 1
            self._note(step, reply)
            if step is Step.MAIL and not reply.positive and not pipelining:
                self._skip_recipients()

    def _note(self, step: Step, reply: Reply) -> None:
        if step is Step.RCPT:
            self.to_recipients.append(reply)
        elif step is Step.MAIL:
            self.to_mail = reply
        elif step is Step.DATA:
            self.to_data = reply
        elif step is Step.RSET and reply.code >= 500:
            raise ResetRefused(reply)
        elif not reply.positive:
            raise ConnectionEnded(f"{step} was refused", reply=reply)
        if reply.code == 421:
            raise ConnectionEnded("the server closes the connection", reply=reply)

    def _skip_recipients(self) -> None:
        kept = [command for command in self.commands[self._issued :] if command[0] is Step.RSET]
        self.commands[self._issued :] = kept


class MailTransaction(CommandGroup):
    """MAIL, RCPT and perhaps DATA for some recipients of one envelope."""

    __slots__ = ("envelope", "recipients")

    def __init__(
        self,
        envelope: Envelope,
        recipients: Sequence[int],
        extensions: Extensions,
        *,
        data: bool = False,
    ) -> None:
        """`recipients` are indexes of the envelope's recipients; `data` adds DATA."""
        self.envelope = envelope
        self.recipients = list(recipients)
        paths = envelope.forward_paths
        run = [(Step.MAIL, commands.mail(envelope, extensions))]
        run += [(Step.RCPT, commands.rcpt(paths[i])) for i in self.recipients]
        if data:
            run.append((Step.DATA, commands.DATA))
        super().__init__(run)

    def begin_with_reset(self) -> None:
        """Put RSET before MAIL. Only before the transaction is issued."""
        self.commands.insert(0, (Step.RSET, commands.RSET))

    @property
    def clean(self) -> bool:
        """True if the server refused neither the sender nor a recipient."""
        mail = self.to_mail
        return (
            mail is not None
            and mail.positive
            and len(self.to_recipients) == len(self.recipients)
            and all(reply.positive for reply in self.to_recipients)
        )

    def verdicts(self) -> dict[int, tuple[Verdict, Reply]]:
        """By index, the verdict and the reply of each recipient that has a reply."""
        mail = self.to_mail
        if mail is not None and not mail.positive:
            verdict = judge(Step.MAIL, mail)
            return dict.fromkeys(self.recipients, (verdict, mail))
        answered = zip(self.recipients, self.to_recipients, strict=False)
        return {i: (judge(Step.RCPT, reply), reply) for i, reply in answered}
