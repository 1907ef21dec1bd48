"""The client's side of one SMTP connection, without I/O: turns commands into octets, and back.

`Protocol` knows no socket, clock or thread. A conversation (`preflight`, `sending`) calls `issue`,
`content` and `next_reply`. The driver writes `outgoing()`, tells `note_written()` how much the
socket accepted, and gives what it received to `receive()` until a reply is `ready`.

The laws:

1. A reply answers the oldest command that has none. A reply that nothing asked for, or that came
   before its command had left, is the route's fault, and ends the connection. If such a surplus
   reply is there when the reply to content is judged, that reply is not trusted: it may be the
   surplus. A 421 is no surplus, and the reply before it counts.
2. After DATA nothing is issued until the server has answered it (RFC 2920 section 3.1).
3. Content follows a 354, and nothing else follows it.
4. A content is handed over, and in doubt, when the socket has accepted the last octet of the final
   dot's line, and not before. While a write is under way the socket may have accepted it.
5. A streamed message (RFC 3030, RFC 2920) is queued as a whole: commands, BDAT LAST, octets. Until
   all streamed messages are answered, only streamed messages are queued. A message is in doubt as
   by law 4: its last octet counts as the final dot.
6. Replies, errors and the log have only the codes of an AUTH exchange, and no secret that the
   server repeats later: the server may tell everybody what the client has told it alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..exceptions import TxmailError
from ..reply import Reply
from ..secret import Censor
from . import dot_stuffing as content_
from .failure_policy import Step
from .log import ProtocolLog
from .replies import MalformedReply, ReplyParser


class LocalProtocolError(TxmailError):
    """txmail was about to break the protocol: a bug in txmail."""


class Protocol:
    """Keeps what is queued and unanswered, and checks that each command and reply may come now."""

    def __init__(self, protocol_log: ProtocolLog | None = None) -> None:
        """`protocol_log` logs the dialogue."""
        self._protocol_log = protocol_log if protocol_log is not None else ProtocolLog("")
        #: takes secrets out of replies
        self.censor = Censor()
        self._challenge = ""
        self._parser = ReplyParser(self.censor)
        self._outgoing: list[bytes | memoryview] = []
        #: octets ever queued, and ever accepted by the socket
        self._queued = self._taken = 0
        #: octets that the socket has accepted, or is being offered now
        self._offered = 0
        #: steps without a reply, each with the number of octets after which its command has left
        self._unanswered: deque[tuple[Step, int]] = deque([(Step.GREETING, 0)])
        self._final_dot: int | None = None
        self._content_due = False
        #: how many replies streamed messages get in all, and how many to wait for now
        self._streamed = 0
        self._wanted = 1

    # -- what the client says

    def issue(self, step: Step, line: bytes) -> None:
        """Queue one command. Raises `MalformedReply` if there is a reply nothing asked for."""
        if step is Step.AUTH:
            self._parser.challenges = True
            words = line.split()
            self.censor.hide_octets(*(words[2:] if words[:1] == [b"AUTH"] else words))
        self.issue_all(((step, line),))

    def issue_all(self, commands: Sequence[tuple[Step, bytes]]) -> None:
        """Queue commands, which then leave in one write.

        Raises `MalformedReply` if there is a reply nothing asked for.
        """
        if self._content_due or (self._unanswered and self._unanswered[-1][0] is Step.DATA):
            raise LocalProtocolError("a command where content or the reply to DATA is due")
        if self._streaming:
            raise LocalProtocolError("a command among streamed messages")
        if self._protocol_log.active:
            for step, line in commands:
                self._protocol_log.command(step, line)
        self.check_silence()
        queued = self._queued
        for step, line in commands:
            queued += len(line)
            self._unanswered.append((step, queued))
        self._outgoing.append(b"".join([line for _, line in commands]))
        self._queued = queued

    def content(self, content: bytes) -> None:
        """Queue canonical `content` and the final dot."""
        if not self._content_due:
            raise LocalProtocolError("content without a 354")
        self._content_due = False
        if self._protocol_log.active:
            self._protocol_log.content(len(content))
        self.check_silence()
        for piece in content_.dot_stuffed(content):
            self._outgoing.append(piece)
            self._queued += len(piece)
        self._final_dot = self._queued
        self._unanswered.append((Step.FINAL, self._queued))

    def stream(self, commands: bytes, content: bytes, replies: int) -> tuple[int, int]:
        """Queue `content` behind `commands`, which get so many `replies` and end with BDAT LAST.

        Returns two numbers: that of the first of these replies, for `streamed_replies`, and that of
        the last octet among all octets that the socket accepts, for `has_left`.
        Raises `MalformedReply` if there is a reply nothing asked for.
        """
        if self._unanswered or self._content_due:
            raise LocalProtocolError("a streamed message among commands that are not answered")
        if not self._streaming:
            self.check_silence()
            self._parser.intermediate = False
        if self._protocol_log.active:
            for line in commands.split(b"\r\n")[:-1]:
                self._protocol_log.command(Step.MAIL, line)
            self._protocol_log.content(len(content))
        first = self._streamed
        self._streamed += replies
        self._outgoing += (commands, content)
        self._queued += len(commands) + len(content)
        return first, self._queued

    @property
    def _streaming(self) -> bool:
        """True if replies to streamed messages are due, or were not taken."""
        return self._streamed != self._parser.dropped

    def check_silence(self) -> None:
        """Raise `MalformedReply` if there is a reply nothing asked for."""
        if not (self._unanswered or self._streaming) and self._parser.pending:
            raise MalformedReply("nothing asked for it")

    # -- what the socket took

    @property
    def unwritten(self) -> bool:
        """True if something waits to be written."""
        return bool(self._outgoing)

    def outgoing(self) -> list[bytes | memoryview]:
        """The buffers to write now, in order. The caller then calls `note_written`.

        An interrupt may come between the system call and `note_written`: until then, all of them
        may have left.
        """
        self._offered = self._queued
        return self._outgoing

    def note_written(self, octets: int) -> None:
        """Note that the socket accepted so many `octets` of `outgoing()`, perhaps none."""
        self._taken = self._offered = self._taken + octets
        if self._taken == self._queued:
            self._outgoing = []
            return
        left = self._outgoing
        whole = 0
        while octets >= len(left[whole]):
            octets -= len(left[whole])
            whole += 1
        left[: whole + 1] = [memoryview(left[whole])[octets:]]

    @property
    def final_dot_left(self) -> bool:
        """False if the socket cannot have accepted the whole line of the last final dot."""
        return self._final_dot is None or self._offered >= self._final_dot

    @property
    def carries_content(self) -> bool:
        """True if the server may have a part of a content whose reply has not come."""
        return self._streaming or any(step is Step.FINAL for step, _ in self._unanswered)

    def may_have_left(self, octets: int) -> bool:
        """False if the socket cannot have accepted so many octets in all."""
        return self._offered >= octets

    def has_left(self, octets: int) -> bool:
        """True if the socket has accepted so many octets in all."""
        return self._taken >= octets

    @property
    def idle(self) -> bool:
        """True if nothing is unanswered, unwritten or unread: another user may go on here."""
        return not (
            self._unanswered
            or self._streaming
            or self._outgoing
            or self._parser.pending
            or self._content_due
        )

    # -- what the server says

    def receive(self, data: bytes) -> None:
        """Take octets as they came from the socket, cut anywhere."""
        self._parser.feed(data)

    @property
    def ready(self) -> bool:
        """True if the next reply has come, or all replies to a streamed message."""
        return self._parser.has(self._wanted) or self.out_of_step

    @property
    def out_of_step(self) -> bool:
        """True if a 3yz has come in a stream, where nothing asks for one."""
        return self._streaming and self._parser.intermediate

    @property
    def closing(self) -> bool:
        """True after a 421: the server is going to close the connection."""
        return self._parser.closing

    def want(self, replies: int) -> None:
        """Be `ready` when so many replies are there."""
        self._wanted = replies

    def streamed_replies(self) -> tuple[int, list[Reply]]:
        """The replies to streamed messages that were not taken, behind the number of the first."""
        return self._parser.dropped, self._parser.peek()

    @property
    def has_surplus(self) -> bool:
        """True if more replies have come than the streamed messages get."""
        return self._streaming and self._parser.has_surplus(self._streamed - self._parser.dropped)

    def check_streamed(self) -> None:
        """Raise `MalformedReply` if a malformed reply came: there will be no more replies."""
        self._parser.check()

    def take_streamed(self, count: int) -> None:
        """Remove the first `count` of `streamed_replies`, which are settled."""
        if self._protocol_log.active:
            for reply in self._parser.peek()[:count]:
                self._protocol_log.reply(reply)
        self._parser.drop(count)

    def next_reply(self) -> Reply | None:
        """The answer to the oldest unanswered command, or None if it has not come yet.

        Raises `MalformedReply`: then no later reply on this connection can be trusted.
        """
        reply = self._parser.next()
        if reply is None:
            return None
        if not self._unanswered:
            raise MalformedReply("nothing asked for it")
        step, left_at = self._unanswered.popleft()
        if self._taken < left_at and not (step is Step.FINAL and reply.code >= 400):
            raise MalformedReply(f"it answers {step}, which had not been sent")
        if step is Step.DATA:
            self._data_answered(reply)
        elif step is Step.AUTH:
            reply = self._auth_answered(reply)
        elif reply.intermediate:
            raise MalformedReply(f"{reply.code} to {step}")
        if self._protocol_log.active:
            self._protocol_log.reply(reply)
        if step is Step.FINAL and self._parser.has_surplus(len(self._unanswered)):
            raise MalformedReply("nothing asked for it")
        return reply

    def _auth_answered(self, reply: Reply) -> Reply:
        self._parser.challenges = False
        if reply.code == 334:
            self._challenge = reply.text
        elif reply.intermediate:
            raise MalformedReply(f"{reply.code} to AUTH")
        return Reply(reply.code, (str(reply.enhanced or ""),))

    def take_challenge(self) -> str:
        """Take the text of the last challenge of an AUTH exchange, as it came."""
        challenge, self._challenge = self._challenge, ""
        return challenge

    def discard(self) -> None:
        """Forget what is unwritten and unread: the connection is closed."""
        self._outgoing = []
        self._challenge = ""
        self._parser = ReplyParser(self.censor)
        self._wanted = 1
        self._streamed = 0

    def _data_answered(self, reply: Reply) -> None:
        if reply.code == 354:
            self._content_due = True
        elif reply.code < 400:
            raise MalformedReply(f"{reply.code} to DATA")
