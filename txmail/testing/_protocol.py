"""The server's side of SMTP (RFC 5321): reads octets, and says what to do. No I/O.

`ServerProtocol` knows no socket, clock or thread. Its methods return iterators of outputs: octets
to send (`bytes`), a `Callback` to run, `StartTLS`, or a `Signal` that ends the connection. The
driver carries out one output before it asks for the next, and asks no more after a `Signal`.

The laws:

1. Commands are answered in their order, out of one buffer (RFC 2920 section 3.2). Unless PIPELINING
   is offered, octets that come before the answer to a command end the connection.
2. A command that is out of sequence gets 503, whatever the script says.
3. If a reply begins with 2 or 3, whether the script's or the server's own, the command is carried
   out; else it is not. That is decided and recorded before the reply is sent.
4. Content ends at CRLF "." CRLF and at nothing else. Octets that came in clear behind STARTTLS are
   thrown away (RFC 3207 section 5).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from typing import Protocol

from ..common.ascii_text import ascii_strip, ascii_upper, ascii_words
from ._auth import MECHANISMS, Exchange
from ._script import Callback, Signal, Step, encode_reply
from ._settings import MailTransaction, Settings, parse_path, refusal_of_mail

#: Longest command line in octets; RFC 5321 section 4.5.3.1.4 asks for 512, extensions for more.
LINE_LIMIT = 4096

_ENHANCED = re.compile(r"^([245][0-9][0-9][ -])[245]\.[0-9]+\.[0-9]+ ", re.ASCII)
_BDAT = re.compile(r"([0-9]{1,12})( +LAST)?", re.I | re.ASCII)


class StartTLS:
    """Do the TLS handshake, then call `ServerProtocol.tls_started`."""


Output = bytes | Callback | Signal | StartTLS


class Observer(Protocol):
    """Decides by the script, and keeps the records."""

    def choose(self, verb: str, argument: str, content: bytes) -> tuple[Step, ...] | None:
        """The script's steps for a command, or None."""

    def command(self, line: str) -> None:
        """Record a command line, without its line end."""

    def channel_binding(self) -> bytes | None:
        """The ``tls-unique`` of the connection, if it has one."""

    def accepted(self, transaction: MailTransaction, content: bytes) -> None:
        """Record an accepted message."""


def _nothing() -> None:
    pass


def _text(octets: bytes | bytearray) -> str:
    return octets.decode("utf-8", "surrogateescape")


class ServerProtocol:
    """The protocol of one connection."""

    def __init__(self, settings: Settings, observer: Observer) -> None:
        self._settings = settings
        self._observer = observer
        self._buffer = bytearray()
        self._read = self._read_command
        self._turned_away = False
        self._tls = False
        self._offered: frozenset[str] = frozenset()
        self._greeted = False
        self._user_known = False
        self._transaction: MailTransaction | None = None
        self._exchange: Exchange | None = None
        self._scanned = 0
        self._handlers: dict[str, Callable[[str], Iterator[Output]]] = {
            "EHLO": self._ehlo,
            "HELO": self._helo,
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "BDAT": self._bdat,
            "RSET": self._rset,
            "NOOP": self._noop,
            "VRFY": self._vrfy,
            "QUIT": self._quit,
        }

    # What the driver calls

    def greet(self) -> Iterator[Output]:
        """Greet a client that has connected."""

        def turn_away() -> None:
            self._turned_away = True

        greeting = f"220 {self._settings.hostname} ESMTP"
        yield from self._answer("connect", "", greeting, _nothing, turn_away)

    def receive(self, octets: bytes) -> Iterator[Output]:
        """Answer octets that came."""
        self._buffer += octets
        while (step := self._read()) is not None:
            if self._is_unsynchronised():
                yield encode_reply("554 5.5.0 SMTP synchronisation error")
                yield Signal.CLOSE
                return
            yield from step

    def tls_started(self) -> None:
        """Forget everything that came in clear: the TLS handshake is done."""
        self._tls = True
        self._greeted = False
        self._offered = frozenset()
        self._user_known = False
        self._transaction = None
        self._buffer.clear()

    def _is_unsynchronised(self) -> bool:
        """True if the client did not wait for an answer although it had to.

        The chunk behind a BDAT does not wait.
        """
        return (
            bool(self._buffer)
            and self._read == self._read_command
            and "PIPELINING" not in self._offered
        )

    # Reading: each function takes one thing off the buffer, or returns None if a part is missing

    def _read_command(self) -> Iterator[Output] | None:
        end = self._buffer.find(b"\r\n")
        if end < 0 and len(self._buffer) <= LINE_LIMIT:
            return None
        if end < 0 or end > LINE_LIMIT:
            return iter((encode_reply("500 5.5.2 Line too long"), Signal.CLOSE))
        line = self._take(end + 2)[:-2]
        if self._exchange is not None:
            return self._auth_step(self._exchange, line)
        text = _text(line)
        self._observer.command(text)
        verb, _, argument = text.partition(" ")
        if self._turned_away and ascii_upper(verb) != "QUIT":
            return self._say("503 5.5.1 No service here")
        if "\r" in text or "\n" in text or "\0" in text:
            return self._say("500 5.5.2 Bare CR, LF or NUL")
        handler = self._handlers.get(ascii_upper(verb))
        return handler(argument) if handler else self._say("500 5.5.2 Command not recognised")

    def _read_content(self) -> Iterator[Output] | None:
        end = self._buffer.find(b"\r\n.\r\n", max(0, self._scanned - 4))
        if end < 0:
            self._scanned = len(self._buffer)
            return None
        # The first CRLF is the end of the DATA line: see `_begin_content`.
        stuffed = self._take(end + 5)[: end + 2]
        self._read = self._read_command
        content = stuffed.replace(b"\r\n.", b"\r\n")[2:]
        transaction = self._transaction
        if transaction is None:  # it cannot be None: nothing ends it while content comes
            return self._say("503 5.5.1 MAIL comes first")
        return self._settle(transaction, content, ".", transaction.sender)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    # Answering

    def _say(self, reply: str) -> Iterator[Output]:
        yield self._encode(reply)

    def _encode(self, reply: str) -> bytes:
        if "ENHANCEDSTATUSCODES" not in self._offered:
            reply = _ENHANCED.sub(r"\1", reply)
        return encode_reply(reply)

    def _answer(
        self,
        verb: str,
        argument: str,
        default: str,
        effect: Callable[[], None] = _nothing,
        otherwise: Callable[[], None] = _nothing,
        content: bytes = b"",
        fallback: tuple[str, str] | None = None,
    ) -> Iterator[Output]:
        """Answer as the script says, or with `default`, and carry the command out, or not (law 3).

        `fallback` is a verb and argument to look for if the script has no rule for the first ones.
        """
        steps = self._observer.choose(verb, argument, content)
        if steps is None and fallback is not None:
            steps = self._observer.choose(*fallback, content)
        ours = self._encode(default)
        if steps is None:
            steps = (ours,)
        elif all(isinstance(step, Callback) for step in steps):
            steps = (*steps, ours)
        decided = False
        for step in steps:
            if isinstance(step, Callback):
                yield step
                continue
            if not decided:
                decided = True
                (effect if _is_positive(step, ours) else otherwise)()
            if isinstance(step, str):
                yield encode_reply(step)
            elif step is not Signal.NO_REPLY:
                yield step

    # Commands

    def _ehlo(self, name: str) -> Iterator[Output]:
        def begin() -> None:
            self._greeted, self._offered = True, keywords
            self._transaction = None

        if not self._settings.ehlo:
            return self._answer("EHLO", name, "502 5.5.1 EHLO is not implemented")
        if not ascii_strip(name):
            return self._say("501 5.5.4 A name is needed")
        lines = [f"250 {self._settings.hostname}", *self._extensions()]
        keywords = frozenset(ascii_upper(ascii_words(line)[0]) for line in lines[1:])
        return self._answer("EHLO", name, "\n".join(lines), begin)

    def _extensions(self) -> Iterator[str]:
        yield from self._settings.extensions
        if self._settings.starttls and not self._tls:
            yield "STARTTLS"
        elif self._settings.credentials:
            yield "AUTH " + " ".join(self._mechanisms())

    def _mechanisms(self) -> list[str]:
        bound = self._observer.channel_binding() is not None
        known = self._settings.mechanisms or tuple(MECHANISMS)
        return [name for name in known if bound or not name.endswith("-PLUS")]

    def _helo(self, name: str) -> Iterator[Output]:
        def begin() -> None:
            self._greeted, self._offered = True, frozenset()
            self._transaction = None

        if not ascii_strip(name):
            return self._say("501 5.5.4 A name is needed")
        return self._answer("HELO", name, f"250 {self._settings.hostname}", begin)

    def _starttls(self, argument: str) -> Iterator[Output]:
        if not self._settings.starttls or self._tls:
            yield from self._answer("STARTTLS", argument, "502 5.5.1 TLS is not available")
            return
        ready = False

        def begin() -> None:
            nonlocal ready
            ready = True

        yield from self._answer("STARTTLS", argument, "220 2.0.0 Ready to start TLS", begin)
        if ready:
            yield StartTLS()

    def _auth(self, argument: str) -> Iterator[Output]:
        name, _, initial = argument.partition(" ")
        available = "AUTH" in self._offered and ascii_upper(name) in self._mechanisms()
        if self._user_known or self._transaction is not None:
            return self._say("503 5.5.1 Not now")
        if not available:
            return self._answer("AUTH", argument, "504 5.5.4 No such mechanism")
        first = initial.encode("utf-8", "surrogateescape") if initial else None
        # Without an offer of channel binding the exchange has to know of none.
        bound = "SCRAM-SHA-256-PLUS" in self._mechanisms()
        binding = self._observer.channel_binding() if bound else None
        exchange = MECHANISMS[ascii_upper(name)](self._settings.credentials, first, binding)
        return self._auth_step(exchange, None)

    def _auth_step(self, exchange: Exchange, answer: bytes | None) -> Iterator[Output]:
        self._exchange = None
        if answer == b"*":
            return self._say("501 5.7.0 Given up")
        try:
            challenge = next(exchange) if answer is None else exchange.send(answer)
        except StopIteration as stop:
            return self._auth_ended(right=stop.value)
        except ValueError:
            return self._say("501 5.5.2 Not base64")
        self._exchange = exchange
        return self._say("334 " + base64.b64encode(challenge).decode("ascii"))

    def _auth_ended(self, *, right: bool) -> Iterator[Output]:
        def known() -> None:
            self._user_known = True

        reply = "235 2.7.0 Welcome" if right else "535 5.7.8 Wrong user name or password"
        return self._answer("AUTH", "", reply, known)

    def _mail(self, argument: str) -> Iterator[Output]:
        def begin() -> None:
            self._transaction = MailTransaction(sender, parameters)

        if not self._greeted:
            return self._say("503 5.5.1 Say EHLO or HELO first")
        if self._settings.login_required and not self._user_known:
            return self._say("530 5.7.0 Authentication required")
        if self._transaction is not None:
            return self._say("503 5.5.1 Nested MAIL command")
        parsed = parse_path("FROM", argument)
        if parsed is None:
            return self._say("501 5.5.4 Syntax: MAIL FROM:<address>")
        sender, parameters = parsed
        refusal = refusal_of_mail(sender, parameters, self._offered, self._settings.size_limit)
        return self._answer("MAIL", argument, refusal or "250 2.1.0 Ok", begin)

    def _rcpt(self, argument: str) -> Iterator[Output]:
        transaction = self._transaction
        if transaction is None or transaction.chunks is not None:
            return self._say("503 5.5.1 MAIL comes first")
        parsed = parse_path("TO", argument)
        if parsed is None or not parsed[0]:
            return self._say("501 5.1.3 Syntax: RCPT TO:<address>")
        (recipient, parameters), recipients = parsed, transaction.recipients
        refusal = None
        if parameters:
            refusal = "555 5.5.4 Unsupported parameter"
        elif not recipient.isascii() and "SMTPUTF8" not in transaction.parameters:
            refusal = "553 5.6.7 The address needs SMTPUTF8"
        elif len(recipients) == self._settings.max_recipients:
            refusal = "452 4.5.3 Too many recipients"
        return self._answer(
            "RCPT", argument, refusal or "250 2.1.5 Ok", lambda: recipients.append(recipient)
        )

    def _data(self, argument: str) -> Iterator[Output]:
        transaction = self._transaction
        if transaction is None or transaction.chunks is not None:
            return self._say("503 5.5.1 Not now")
        reply = "354 End with <CRLF>.<CRLF>"
        if ascii_strip(argument):
            reply = "501 5.5.4 Syntax: DATA"
        elif not transaction.recipients:
            reply = "554 5.5.1 No valid recipients"
        return self._answer("DATA", argument, reply, self._begin_content)

    def _begin_content(self) -> None:
        # Behind the end of the DATA line, a dot on the first line is like any other dot.
        self._buffer[:0] = b"\r\n"
        self._scanned = 0
        self._read = self._read_content

    def _settle(
        self, transaction: MailTransaction, content: bytes, verb: str, argument: str
    ) -> Iterator[Output]:
        """Accept or refuse the message of the open transaction."""

        def accept() -> None:
            self._transaction = None
            self._observer.accepted(transaction, content)

        def refuse() -> None:
            transaction.chunks = None
            if not self._settings.exim_like:
                self._transaction = None

        limit = self._settings.size_limit
        reply = "250 2.0.0 Ok: queued"
        if not transaction.recipients:
            reply = "554 5.5.1 No valid recipients"
        elif limit and len(content) > limit:
            reply = "552 5.3.4 Message too big"
        final = (".", transaction.sender) if verb == "BDAT" else None
        return self._answer(verb, argument, reply, accept, refuse, content, final)

    def _bdat(self, argument: str) -> Iterator[Output]:
        found = _BDAT.fullmatch(ascii_strip(argument))
        if found is None or "CHUNKING" not in self._offered:
            # The end of the chunk is unknown.
            return iter((self._encode("502 5.5.1 BDAT is not available"), Signal.CLOSE))
        size, last = int(found[1]), found[2] is not None

        def read_chunk() -> Iterator[Output] | None:
            if len(self._buffer) < size:
                return None
            self._read = self._read_command
            return self._chunk_came(argument, self._take(size), last)

        self._read = read_chunk
        return iter(())

    def _chunk_came(self, argument: str, chunk: bytes, last: bool) -> Iterator[Output]:
        transaction = self._transaction
        if transaction is None:
            return self._say("503 5.5.1 MAIL comes first")
        if not transaction.recipients:
            return self._say("554 5.5.1 No valid recipients")
        content = (transaction.chunks or b"") + chunk
        if last:
            return self._settle(transaction, bytes(content), "BDAT", argument)

        def keep() -> None:
            transaction.chunks = bytearray(content)

        def forget() -> None:
            self._transaction = None

        return self._answer("BDAT", argument, f"250 2.0.0 {len(chunk)} octets", keep, forget)

    def _rset(self, argument: str) -> Iterator[Output]:
        def reset() -> None:
            self._transaction = None

        return self._answer("RSET", argument, "250 2.0.0 Ok", reset)

    def _noop(self, argument: str) -> Iterator[Output]:
        return self._answer("NOOP", argument, "250 2.0.0 Ok")

    def _vrfy(self, argument: str) -> Iterator[Output]:
        return self._answer("VRFY", argument, "252 2.5.0 Cannot verify; send and see")

    def _quit(self, argument: str) -> Iterator[Output]:
        yield from self._answer("QUIT", argument, "221 2.0.0 Bye")
        yield Signal.CLOSE


def _is_positive(step: Step, ours: bytes) -> bool:
    """True if `step` means that the command is carried out (law 3)."""
    if step is Signal.NO_REPLY:
        step = ours
    if isinstance(step, str):
        return step.startswith(("2", "3"))
    return isinstance(step, bytes) and step.startswith((b"2", b"3"))
