"""A mail server without a socket that misbehaves by plan, and the account it is held against.

`Hostile` answers commands as `Move` s say and is honest when there are none left. `FakeStream` is
the connection to it, with a clock that only waiting moves. What the client may claim is worked out
anew here, from what went over the connection and with another reader of replies.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from accounts import Delivery, check_account
from clocks import Clock
from commits import Ended, commit
from zope.interface import implementer

from txmail import Mailer, Outcome
from txmail.exceptions import TransportError
from txmail.interfaces import ITransport
from txmail.outcome import Status
from txmail.smtp.options import Options
from txmail.smtp.pool import Pool
from txmail.smtp.session import Session

REPLY = re.compile(rb"(?:([2-5][0-9][0-9])-[^\r\n]*\r\n(?=\1))*([2-5][0-9][0-9])(?: [^\r\n]*)?\r\n")
CHUNK = re.compile(rb"BDAT ([0-9]+) LAST\r\n")
OFFERS = (b"PIPELINING", b"SIZE 100000", b"8BITMIME", b"SMTPUTF8", b"ENHANCEDSTATUSCODES")
OFFERS += (b"CHUNKING",)
#: what ends a connection or keeps it from going on
ENDS = ("eof", "reset", "silence", "deaf", "flood")
#: lines of a reply, and octets of a line with its line end, beyond which it is none
LINES, LINE = 100, 4096
#: octets that a client may take in a session before it has to have given up
PATIENCE = 3_000_000


@dataclass(frozen=True, slots=True)
class Move:
    """What a server does when a command comes."""

    #: octets instead of the right reply; None is the right reply
    said: bytes | None = None
    #: octets behind it
    extra: bytes = b""
    #: one of `ENDS`, after that
    end: str = ""
    #: octets said when the first of the next content has come, before the rest has
    early: bytes = b""


@dataclass
class Said:
    """A command, or a message's content, as it came."""

    line: bytes
    #: how many octets the client had sent when it was complete
    until: int
    #: of BDAT and the final dot
    content: bytes | None = None


class Hostile:
    """One connection, the server's side."""

    def __init__(self, moves: Iterator[Move], offers: tuple[bytes, ...]) -> None:
        self._moves = moves
        self._offers = offers
        self._buffer = b""
        self.heard = 0
        self.commands: list[Said] = []
        self.outgoing = b""
        self.end = ""
        #: the number of the last command after which content came
        self._content_after = 0
        self._early = b""
        #: what the client got, and how much it had sent when it got each octet up to there
        self.delivered = b""
        self._delivered_at: list[tuple[int, int]] = []
        self._answer(b"", b"220 mx ESMTP\r\n")

    # -- what the stream calls

    def hear(self, octets: bytes) -> None:
        self.heard += len(octets)
        self._buffer += octets
        while (end := self._end_of_next()) is not None:
            is_content = self._content_is_next()
            chunk = CHUNK.match(self._buffer)
            taken, self._buffer = self._buffer[:end], self._buffer[end:]
            until = self.heard - len(self._buffer)
            if chunk and not is_content:
                self.commands.append(Said(chunk[0], until, taken[chunk.end() :]))
                self._answer(chunk[0], b"250 2.0.0 Ok\r\n")
            elif is_content:
                self.commands.append(Said(b".", until, taken))
                self._answer(b".", b"250 2.0.0 Ok\r\n")
            else:
                self.commands.append(Said(taken, until))
                self._answer(taken, self._right(taken))
        begun = CHUNK.match(self._buffer) or self._content_is_next()
        if self._early and begun and not self.end:
            self.outgoing += self._early
            self._early = b""

    def deliver(self, octets: int) -> bytes:
        if self.end == "flood" and not self.outgoing:
            data = (b"250-more\r\n" * 7000)[:octets]
        else:
            data, self.outgoing = self.outgoing[:octets], self.outgoing[octets:]
        self.delivered += data
        self._delivered_at.append((len(self.delivered), self.heard))
        return data

    def become_honest(self) -> None:
        """Do what is right from now on; a connection that is past that ends."""
        self._early = b""
        self.end = self.end and "eof"

    @property
    def speaks(self) -> bool:
        return bool(self.outgoing) or self.end in ("eof", "reset", "flood")

    # -- reading and answering

    def _end_of_next(self) -> int | None:
        if self._content_is_next():
            if self._buffer.startswith(b".\r\n"):
                return 3
            end = self._buffer.find(b"\r\n.\r\n")
            return end + 5 if end >= 0 else None
        if (chunk := CHUNK.match(self._buffer)) is not None:
            end = chunk.end() + int(chunk[1])
            return end if len(self._buffer) >= end else None
        end = self._buffer.find(b"\r\n")
        return end + 2 if end >= 0 else None

    def _content_is_next(self) -> bool:
        """True if the client has got a 354 as the answer to the DATA that came last."""
        number = len(self.commands)
        if not self._buffer or not self.commands or self.commands[-1].line != b"DATA\r\n":
            return False
        if self._content_after != number:
            replies = self.replies()
            if len(replies) > number and replies[number][0] == 354:
                self._content_after = number
        return self._content_after == number

    def _right(self, line: bytes) -> bytes:
        if line.startswith(b"EHLO"):
            lines = [b"250-mx", *(b"250-" + offer for offer in self._offers), b"250 HELP"]
            return b"\r\n".join(lines) + b"\r\n"
        return {b"DATA\r\n": b"354 go\r\n", b"QUIT\r\n": b"221 bye\r\n"}.get(line, b"250 Ok\r\n")

    def _answer(self, line: bytes, right: bytes) -> None:
        if self.end:
            return
        move = next(self._moves, Move())
        self.outgoing += (right if move.said is None else move.said) + move.extra
        self._early = self._early or move.early
        self.end = move.end
        if move.end == "reset":
            self.outgoing = b""

    # -- the account

    def replies(self) -> list[tuple[int, int]]:
        """Code of each well-formed reply, and how much the client had sent when it had it all."""
        found = []
        position = 0
        while (reply := REPLY.match(self.delivered, position)) is not None:
            if reply[0].count(b"\n") > LINES or len(max(reply[0].split(b"\n"), key=len)) >= LINE:
                break
            position = reply.end()
            index = bisect.bisect_left(self._delivered_at, (position, 0))
            found.append((int(reply[2]), self._delivered_at[index][1]))
        return found

    def heard_of(self, sender: bytes) -> bool:
        """True if the reverse-path `sender` was named."""
        named = b"FROM:" + sender
        return named in self._buffer or any(named in said.line for said in self.commands)

    def deliveries(self) -> Iterator[Delivery]:
        """Every message that came whole, with what was said about it."""
        replies = self.replies()
        said_so_far = _Transaction()
        for index, said in enumerate(self.commands, 1):  # reply 0 is the greeting
            code, heard = replies[index] if index < len(replies) else (0, 0)
            if said.content is not None:
                yield said_so_far.delivery(said, code, in_time=heard >= said.until)
            else:
                said_so_far.note(said.line, code, in_time=heard >= said.until)


class _Transaction:
    """What was said on one connection, to the commands before a message's content."""

    def __init__(self) -> None:
        #: code, and whether it was said when the command had come
        self._mail = (0, False)
        self._recipients: dict[bytes, tuple[int, bool]] = {}
        self._reset = (0, False)
        #: True once something was said in a stream that leaves open what the server makes of it
        self._lost = False

    def note(self, line: bytes, code: int, *, in_time: bool) -> None:
        if line.startswith(b"MAIL"):
            self._mail, self._recipients = (code, in_time), {}
        elif line.startswith(b"RCPT"):
            self._recipients[line[8:-2]] = code, in_time
        if code // 100 == 3 and not line.startswith((b"DATA", b"AUTH")):
            self._lost = True
        if line.startswith(b"RSET"):
            self._reset = code, in_time
            # After a 421 nothing more is done, unless something is.
            self._lost = self._lost or (code // 100 not in (0, 2) and code != 421)
        self._go_on_after_421(code)

    def _go_on_after_421(self, code: int) -> None:
        if self._reset[0] == 421 and code // 100 == 2:
            self._lost = True

    def delivery(self, said: Said, code: int, *, in_time: bool) -> Delivery:
        chunk = said.line != b"."
        # In a stream nobody can say what is early, except before the message's last octet; it may
        # be refused before that.
        early = not in_time and not (chunk and code >= 400)
        self._lost = self._lost or (chunk and code // 100 == 3)
        self._go_on_after_421(code)
        # Content that was taken without a sender: perhaps it had that of another transaction.
        mixed = chunk and code // 100 == 2 and self._mail[0] >= 400
        taken, open_ = set(), set()
        for path, about in self._recipients.items():
            said_of = [about, self._mail]
            if all(c // 100 == 2 and (chunk or timed) for c, timed in said_of):
                taken.add(path)
            if self._lost or mixed or not any(c >= 400 for c, _ in (*said_of, self._reset)):
                open_.add(path)
        content = said.content if chunk else unstuffed(said.content)
        if not chunk:
            open_ = taken
        return Delivery(content, taken, 0 if early else code, open_, chunk, self._lost)


def unstuffed(content: bytes) -> bytes:
    lines = content[: -len(b".\r\n")].split(b"\r\n")
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)


class FakeStream:
    """A `Stream` to a `Hostile`; `size` says how much of so many octets goes at once, perhaps 0."""

    encrypted = False
    local_literal = "[127.0.0.1]"

    def __init__(self, peer: Hostile, clock: Clock, size: Callable[[int], int]) -> None:
        self._peer, self._clock, self._size = peer, clock, size
        self._open = True

    def send(self, buffers):
        if not self._open or self._peer.end == "reset":
            raise BrokenPipeError
        octets = b"".join(buffers)
        taken = 0 if self._peer.end == "deaf" else self._size(len(octets))
        self._peer.hear(octets[:taken])
        return taken

    def receive(self):
        assert self._open
        if self._peer.outgoing or self._peer.end == "flood":
            return self._peer.deliver(max(1, self._size(65536)))
        if self._peer.end == "reset":
            raise ConnectionResetError
        return b"" if self._peer.end == "eof" else None

    def wait(self, write, timeout):
        assert self._open
        if self._peer.speaks or (write and self._peer.end != "deaf"):
            self._clock.now += 0.001
            return True
        self._clock.now += max(0.0, timeout)
        return False

    @property
    def quiet(self):
        return self._open and not self._peer.speaks

    def close(self):
        self._open = False


@implementer(ITransport)
class FuzzTransport:
    """Sessions with `Hostile` s. See `ITransport`."""

    name = "smtp://mx.example.com:25"
    asks_server = True

    def __init__(
        self,
        moves: Iterator[Move],
        size: Callable[[int], int],
        offers: tuple[bytes, ...],
        window: int,
    ) -> None:
        self._moves, self._size, self._offers = moves, size, offers
        self._window = window
        self._clock = Clock(0.0)
        self._pool = Pool(self._connect, clock=self._clock)
        self.peers: list[Hostile] = []

    def open(self, *, timeout=None, wait=True, fresh=False, verify=True):
        return self._pool.take(60.0, wait=wait, fresh=fresh, verify=verify)

    def _connect(self, timeout):
        peer = Hostile(self._moves, self._offers)
        self.peers.append(peer)
        options = Options("mx.example.com", local_hostname="client.example", window=self._window)
        session = Session(FakeStream(peer, self._clock, self._size), options, self._clock)
        session.greet(timeout)
        return session

    def close(self):
        self._pool.close()


@dataclass
class Counts:
    """What became of all that was sent in many sessions."""

    sessions: int = 0
    commits: int = 0
    failed: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    #: octets of the longest exchange with one server
    longest: int = 0
    #: messages that came by BDAT
    chunks: int = 0


def play(tm, moves, size, offers, preflight, transactions, counts, *, window=1, worker=False):
    """Commit `transactions`, lists of envelopes, to a hostile server and check each account.

    As a `worker` they are sent without a transaction. At the end the server is honest, and the
    last transaction has to succeed.
    """
    plan = iter(moves)
    transport = FuzzTransport(plan, size, offers, window)
    mailer = Mailer(transport, transaction_manager=tm, preflight=preflight)
    counts.sessions += 1
    for number, envelopes in enumerate(transactions):
        if number == len(transactions) - 1:
            for _ in plan:  # from here on there are no moves left
                pass
            for peer in transport.peers:
                peer.become_honest()
        old = [list(peer.deliveries()) for peer in transport.peers]
        ended = work(transport, envelopes) if worker else commit(tm, mailer, *envelopes)
        new = [
            delivery
            for index, peer in enumerate(transport.peers)
            for delivery in list(peer.deliveries())[len(old[index]) if index < len(old) else 0 :]
        ]
        check_account(ended, envelopes, new, window, strict=not worker)
        counts.commits += 1
        counts.failed += set(ended.statuses) != {"accepted"}
        for status in ended.statuses:
            counts.statuses[status] = counts.statuses.get(status, 0) + 1
    assert set(ended.statuses) == {"accepted"}, ended.error
    for peer in transport.peers:
        counts.longest = max(counts.longest, len(peer.delivered))
        counts.chunks += sum(said.line.startswith(b"BDAT") for said in peer.commands)
        assert len(peer.delivered) < PATIENCE
    mailer.close()


def work(transport, envelopes):
    """Send `envelopes` as a worker does, over one connection."""
    left = iter(envelopes)
    try:
        session = transport.open()
    except TransportError:
        outcomes = []
    else:
        outcomes = list(session.send(left, keep_untaken=True))
        session.close()
    begun = len(envelopes) - len(list(left))
    assert {o.position for o in outcomes} == set(range(begun))
    outcomes += [
        Outcome(recipient, Status.UNSENT, message_id=envelope.message_id, position=begun + number)
        for number, envelope in enumerate(envelopes[begun:])
        for recipient in envelope.recipients
    ]
    outcomes.sort(key=lambda o: (o.position, envelopes[o.position].recipients.index(o.recipient)))
    return Ended(None, tuple(outcomes), "")
