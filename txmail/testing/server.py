"""Runs a real SMTP server on a loopback port, which tests can tell to misbehave.

Every connection has a thread of its own, in which `ServerProtocol` answers. `stop` ends all threads
and closes all sockets. Tests wait for events with `ScriptedServer.wait_for`; the server never
sleeps.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import Self, TypeVar

from ..common.ascii_text import ascii_upper
from ._auth import MECHANISMS
from ._conversation import Conversation
from ._records import Connection, Received, Records
from ._script import Action, Rule, Script, steps_of
from ._settings import Settings
from ._wire import Listening, Wire

T = TypeVar("T")

EXTENSIONS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE 26214400")


class ScriptedServer:
    """A scripted SMTP server: ``with ScriptedServer() as server: ...``.

    `extensions`
        Lines of the EHLO reply. ``CHUNKING`` turns BDAT on. The options below add ``STARTTLS`` and
        ``AUTH``. Without ``PIPELINING`` the server closes the connection of a client that does not
        wait for replies.
    `hostname`
        The name in greeting and EHLO reply.
    `host`, `port`
        The address to listen on. Port 0 takes a free port, and keeps it over restarts.
    `tls_context`
        An `ssl.SSLContext` for servers. The server offers STARTTLS.
    `implicit_tls`
        TLS from the first octet, with `tls_context`, instead of STARTTLS.
    `credentials`
        User names and passwords. The server offers AUTH (with a `tls_context`, under TLS only).
    `mechanisms`
        The names of the mechanisms that AUTH offers, in their order. The default is all of them:
        ``SCRAM-SHA-256-PLUS`` (with ``tls-unique``, under TLS 1.2 only), ``SCRAM-SHA-256``,
        ``CRAM-MD5``, ``PLAIN``, ``LOGIN``, and ``XOAUTH2``, whose passwords are tokens.
    `login_required`
        Answer MAIL with 530 5.7.0 until the client has logged in.
    `max_recipients`
        Answer more recipients of a message with 452 4.5.3.
    `ehlo`
        False answers EHLO with 502.
    `exim_like`
        Keep the mail transaction of a refused message open, as Exim does: until RSET, the next MAIL
        gets 503, and the next DATA has the old sender.

    Rules and records outlive `stop` and `restart`.
    """

    def __init__(
        self,
        *,
        extensions: tuple[str, ...] = EXTENSIONS,
        hostname: str = "mx.example.com",
        host: str = "127.0.0.1",
        port: int = 0,
        tls_context: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        credentials: Mapping[str, str] | None = None,
        mechanisms: tuple[str, ...] = (),
        login_required: bool = False,
        max_recipients: int | None = None,
        ehlo: bool = True,
        exim_like: bool = False,
    ) -> None:
        if implicit_tls and tls_context is None:
            raise ValueError("implicit_tls needs a tls_context")
        unknown = set(mechanisms) - set(MECHANISMS)
        if unknown:
            raise ValueError(f"not one of {', '.join(MECHANISMS)}: {', '.join(sorted(unknown))}")
        self._host, self._port = host, port
        self._tls_context = tls_context
        self._settings = Settings(
            hostname=hostname,
            extensions=tuple(extensions),
            starttls=tls_context is not None and not implicit_tls,
            implicit_tls=implicit_tls,
            credentials=dict(credentials or {}),
            mechanisms=tuple(mechanisms),
            login_required=login_required,
            max_recipients=max_recipients,
            ehlo=ehlo,
            exim_like=exim_like,
        )
        self._records = Records()
        self._condition = self._records.condition
        self._script = Script()
        self._listening: Listening | None = None

    # Starting and stopping

    def start(self) -> Self:
        """Listen, unless the server listens already. Returns the server itself."""
        with self._condition:
            if self._listening is None:
                self._listening = run = Listening(self._host, self._port)
                self._port = run.listener.getsockname()[1]
                run.listen(partial(self._serve, run))
        return self

    def stop(self) -> None:
        """End all connections and threads, if the server listens.

        Raises RuntimeError if a `Callback` does not return within ten seconds.
        """
        self._end(reset=False)

    def kill(self) -> None:
        """Die in mid-session: reset all connections, and listen no more.

        Called by a `Callback`, it acts in the middle of a command, which is not carried out then.
        """
        self._end(reset=True)

    def restart(self) -> None:
        """Stop, and listen again on the same port."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self, *, reset: bool) -> None:
        with self._condition:
            run, self._listening = self._listening, None
        if run is None:
            return
        run.reset = reset
        late = run.end()
        if late:
            raise RuntimeError(f"a callback has not returned: {', '.join(late)}")

    # The address

    @property
    def port(self) -> int:
        """The TCP port, 0 before the first start."""
        return self._port

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as `socket.create_connection` takes them."""
        return self._host, self._port

    @property
    def url(self) -> str:
        """The URL, such as ``smtp://127.0.0.1:2525``; ``smtps://`` with `implicit_tls`."""
        scheme = "smtps" if self._settings.implicit_tls else "smtp"
        return f"{scheme}://{self._host}:{self._port}"

    # The script

    def on(
        self,
        verb: str,
        action: Action,
        *,
        matching: str = "",
        after: int = 0,
        times: int | None = 1,
        connection: int | None = None,
    ) -> None:
        r"""Answer a command with `action` instead of the server's own reply.

        `verb`
            ``connect`` (the greeting), ``EHLO HELO STARTTLS AUTH MAIL RCPT DATA BDAT RSET NOOP
            VRFY QUIT``, or ``.``: the final reply to a message, after DATA or BDAT.
        `action`
            A reply, as in ``"550 5.1.1 no such user"``, with ``\n`` between lines; octets, sent as
            they are; ``CLOSE``, ``RESET``, ``HANG``, ``NO_REPLY``; a `Callback`; or a sequence of
            them made by `then`. Whether the command is carried out follows from the first
            character of the reply: 2 or 3.
        `matching`
            A part of the command's argument, in upper or lower case. For the final reply: a part of
            the sender's address or, exactly, of the content.
        `after`
            The number of matches to let pass first.
        `times`
            The number of times to do it; None is for ever.
        `connection`
            The number of the connection to do it on; the first is 1, None is every connection.

        Of several rules the server uses the first that is due, so that two calls for the same verb
        answer one after the other. Every rule counts every match. A command that is out of
        sequence gets 503 and is not counted.

        Raises ValueError or TypeError for an unknown verb or action.
        """
        verb = verb if verb in ("connect", ".") else ascii_upper(verb)
        rule = Rule(verb, steps_of(action), matching, after, times, connection)
        with self._condition:
            self._script.add(rule)

    def refuse(self, address: str, reply: str = "550 5.1.1 no such user") -> None:
        """Answer every RCPT of `address` with `reply`, until `clear`."""
        self.on("RCPT", reply, matching=f"<{address}>", times=None)

    def clear(self) -> None:
        """Forget all rules. Records stay."""
        with self._condition:
            self._script.clear()

    # The records

    @property
    def messages(self) -> list[Received]:
        """The messages that the server has accepted so far: a copy."""
        return self._records.messages

    @property
    def connections(self) -> list[Connection]:
        """The connections so far: a copy of the list; the records in it still grow."""
        return self._records.connections

    @property
    def commands(self) -> list[str]:
        """The command lines of all connections, one connection after the other."""
        return [line for connection in self.connections for line in connection.commands]

    def wait_for(self, predicate: Callable[[], T], timeout: float = 10.0) -> T:
        """Wait until `predicate`, which looks at the records, is true; its result.

        The server calls it whenever a record changes. Raises TimeoutError after `timeout` seconds.
        """
        with self._condition:
            result = self._condition.wait_for(predicate, timeout)
        if not result:
            raise TimeoutError(f"it did not happen within {timeout} seconds")
        return result

    def wait_closed(self, timeout: float = 10.0) -> None:
        """Wait until no connection is open. Raises TimeoutError after `timeout` seconds."""
        self.wait_for(lambda: all(c.closed for c in self.connections), timeout)

    def _serve(
        self, run: Listening, connected: socket.socket, wake: socket.socket
    ) -> Callable[[], None]:
        """Begin a connection. Returns a function that serves it, for a thread of its own."""
        conversation = Conversation(
            self._settings,
            self._tls_context,
            Wire(connected, wake),
            self._records,
            self._script,
            lambda: run.reset,
        )
        return conversation.hold
