"""Mail transactions (RFC 5321 section 3.3): the commands of one, and what was said to each.

A `Group` is a run of commands that may share one write where the server offers PIPELINING
(RFC 2920); where it does not they go one at a time. A `MailTransaction` is the group that opens
the transaction of one envelope: MAIL, its RCPTs and, where that is safe, DATA.

Conversations are generators: they issue commands on a `Protocol` and yield for the next reply; the
driver sends it in, or throws `ConnectionEnded` when there will be none.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ..envelope import Envelope
from ..exceptions import TransportError
from ..reply import Reply
from . import commands
from .extensions import Extensions
from .protocol import Protocol
from .trouble import Stage, Verdict, judge

#: Recipients in one mail transaction: what every server has to take (RFC 5321 section 4.5.3.1.8).
RECIPIENTS_LIMIT = 100

Step = tuple[Stage, bytes]
Conversation = Generator[None, Reply, None]


class ConnectionEnded(TransportError):
    """No reply will come any more: EOF, a reset, a 421, a time-out or nonsense."""

    def __init__(self, problem: str, *, lost: bool = True, reply: Reply | None = None) -> None:
        super().__init__(problem, lost=lost, reply=reply)


class Group:
    """Commands in their order and the replies so far."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = list(steps)
        self.replies: list[Reply] = []
        self._issued = 0

    def issue(self, protocol: Protocol) -> None:
        """Queue all commands that have not been; they leave in one write."""
        for stage, line in self.steps[self._issued :]:
            protocol.issue(stage, line)
        self._issued = len(self.steps)

    def answers(self, protocol: Protocol, pipelining: bool) -> Conversation:
        """Collect all replies. Raises `ConnectionEnded` on 421, and on a refused RSET."""
        if pipelining:
            self.issue(protocol)
        while len(self.replies) < len(self.steps):
            if len(self.replies) == self._issued:
                protocol.issue(*self.steps[self._issued])
                self._issued += 1
            reply = yield
            stage = self.steps[len(self.replies)][0]
            self.replies.append(reply)
            if reply.code == 421:
                raise ConnectionEnded("the server closes the connection", reply=reply)
            if stage is Stage.RSET and not reply.positive:
                raise ConnectionEnded("RSET was refused", reply=reply)
            if stage is Stage.MAIL and not reply.positive and not pipelining:
                self._skip_recipients()

    def _skip_recipients(self) -> None:
        kept = [step for step in self.steps[self._issued :] if step[0] is Stage.RSET]
        self.steps[self._issued :] = kept

    def reply_to(self, stage: Stage) -> Reply | None:
        """The reply to the last command of `stage`, None if there is none."""
        found = None
        for (asked, _), reply in zip(self.steps, self.replies, strict=False):
            if asked is stage:
                found = reply
        return found

    def replies_to_recipients(self) -> list[Reply]:
        """The replies to the RCPTs, in their order."""
        pairs = zip(self.steps, self.replies, strict=False)
        return [reply for (stage, _), reply in pairs if stage is Stage.RCPT]


class MailTransaction(Group):
    """MAIL, RCPT and perhaps DATA for some recipients of one envelope."""

    def __init__(
        self,
        envelope: Envelope,
        recipients: Sequence[int],
        extensions: Extensions,
        *,
        data: bool = False,
        reset: bool = False,
    ) -> None:
        """`recipients` are positions in the envelope's; `data` and `reset` add DATA and RSET."""
        self.envelope = envelope
        self.recipients = list(recipients)
        paths = envelope.forward_paths
        steps = [(Stage.RSET, commands.RSET)] if reset else []
        steps.append((Stage.MAIL, mail_command(envelope, extensions)))
        steps += [(Stage.RCPT, commands.rcpt(paths[i])) for i in self.recipients]
        if data:
            steps.append((Stage.DATA, commands.DATA))
        super().__init__(steps)

    def verdicts(self) -> dict[int, tuple[Verdict, Reply]]:
        """What the answers mean for each recipient that has one, by its position."""
        mail = self.reply_to(Stage.MAIL)
        if mail is not None and not mail.positive:
            verdict = judge(Stage.MAIL, mail)
            return dict.fromkeys(self.recipients, (verdict, mail))
        answered = zip(self.recipients, self.replies_to_recipients(), strict=False)
        return {i: (judge(Stage.RCPT, reply), reply) for i, reply in answered}


def mail_command(envelope: Envelope, extensions: Extensions, size: int | None = None) -> bytes:
    """MAIL for `envelope`; with another `size` in octets if it stands for several."""
    return commands.mail(
        envelope.reverse_path,
        extensions,
        size=envelope.size if size is None else size,
        eightbit=envelope.needs_8bitmime,
        smtputf8=envelope.needs_smtputf8,
    )
