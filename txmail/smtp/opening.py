"""The conversations that open a connection: greeting, EHLO, STARTTLS, AUTH. No I/O.

Before TLS the client tells the server nothing but its name. After the handshake it forgets what the
server said before (RFC 3207 section 4.2). Any error here is about the route: no message fails for
it.
"""

from __future__ import annotations

import base64
from collections.abc import Generator
from dataclasses import dataclass

from ..exceptions import TransportError, TxmailError
from ..outcome import Action
from ..reply import Reply
from ..secret import Secret, bare
from . import commands
from .auth import AuthenticationFailed, Mechanism, choose, mechanism_of
from .extensions import Extensions
from .failure_policy import Step, judge
from .options import Options
from .protocol import Protocol
from .replies import MalformedReply
from .tls import TlsMode
from .transactions import ConnectionEnded, Conversation, answer

#: Codes of a server that does not know a mechanism (RFC 4954 section 4, RFC 5321 section 4.2.4).
_NOT_THERE = (500, 502, 504)


class Opening:
    """The opening of one connection."""

    def __init__(self, protocol: Protocol, options: Options, name: str) -> None:
        """`name` is the client's name in EHLO."""
        self._protocol = protocol
        self._options = options
        self._name = name
        #: the extensions in the server's last reply to EHLO
        self.extensions = Extensions()

    def greeting(self) -> Conversation:
        """Read the greeting (RFC 5321 section 3.1)."""
        try:
            reply = yield from answer(self._protocol)
        except ConnectionEnded as ended:
            if ended.lost or self._options.tls is TlsMode.IMPLICIT:
                raise
            problem = f"{ended}; if TLS begins at once on this port, it is smtps://"
            raise ConnectionEnded(problem, lost=False) from ended
        if not reply.positive:
            raise _refused(f"turned away by {self._options.name}", Step.GREETING, reply)

    def introduction(self) -> Conversation:
        """Say EHLO; HELO to a server that does not know EHLO, unless TLS or AUTH is needed."""
        self.extensions = Extensions()
        self._protocol.issue(Step.EHLO, commands.ehlo(self._name))
        reply = yield from answer(self._protocol)
        if reply.positive:
            self.extensions = Extensions.from_ehlo(reply)
            return
        if reply.code in (500, 502, 504):
            if self._options.tls.verified or self._options.user:
                raise TransportError(
                    f"{self._options.name} does not know EHLO, and so neither TLS nor AUTH",
                    temporary=False,
                    reply=reply,
                )
            self._protocol.issue(Step.HELO, commands.helo(self._name))
            reply = yield from answer(self._protocol)
            if reply.positive:
                return
        raise _refused(f"{self._options.name} refused EHLO", Step.EHLO, reply)

    def starttls(self) -> Conversation:
        """Say STARTTLS (RFC 3207). The caller then does the TLS handshake."""
        self._protocol.issue(Step.STARTTLS, commands.STARTTLS)
        reply = yield from answer(self._protocol)
        if reply.code != 220:
            raise TransportError(
                f"{self._options.name} offered STARTTLS and refused it", reply=reply
            )
        if not self._protocol.idle:
            raise TransportError(
                f"{self._options.name} sent more than its reply before the TLS handshake"
            )

    def authentication(
        self, password: Secret, binding: tuple[str, bytes] | None = None
    ) -> Conversation:
        """Log in (RFC 4954) with one mechanism; with another one if the server does not know it.

        See `choose`. `binding` is the channel binding of the TLS connection, if it has one. Raises
        `AuthenticationFailed`, or a temporary `TransportError` if the server's reply is temporary.
        """
        account, refused = self._options.account, _Refused()
        while True:
            name = self._choose(binding is not None, refused)
            mechanism = mechanism_of(
                name,
                self._options.user,
                lambda: password.reveal(account),
                binding,
                self.extensions.auth,
            )
            try:
                reply = yield from self._exchange(mechanism)
            except ConnectionEnded as ended:
                if not refused.names:
                    raise
                problem = f"{ended}, after it had refused {refused}; see auth="
                raise ConnectionEnded(problem, lost=ended.lost, reply=ended.reply) from ended
            if reply.code not in _NOT_THERE:
                break
            refused = _Refused((*refused.names, name), reply)
        if reply.temporary:
            raise TransportError(f"{account} cannot log in now", reply=reply)
        if reply.permanent:
            raise AuthenticationFailed(f"{account} may not log in with {name}", reply)
        if reply.code != 235:
            raise MalformedReply(f"{reply.code} to AUTH")

    def _choose(self, binding: bool, refused: _Refused) -> str:
        """The mechanism to try next. Raises `TransportError` if no mechanism is left."""
        options = self._options
        try:
            return choose(
                self.extensions.auth,
                options.auth,
                token=options.auth == "XOAUTH2",
                binding=binding,
                refused=refused.names,
            )
        except TransportError as none:
            if refused.reply is None:
                raise
            problem = f"{options.account} may not log in with {refused}: {none}"
            raise AuthenticationFailed(problem, refused.reply) from none

    def _exchange(self, mechanism: Mechanism) -> Generator[None, None, Reply]:
        """Do one exchange; the reply that ends it. Raises `TransportError`."""
        first_is_due = self._begin(mechanism)
        while (reply := (yield from answer(self._protocol))).intermediate:
            # Before a secret is an argument of a call that could fail.
            self._protocol.check_silence()
            problem = self._answer_challenge(mechanism, first_is_due)
            if problem is not None:
                raise problem
            first_is_due = False
        if reply.code == 235:
            mechanism.finish()
        return reply

    def _begin(self, mechanism: Mechanism) -> bool:
        """Say AUTH; True if the mechanism's first octets have to wait for a challenge."""
        self._protocol.check_silence()
        if not mechanism.initial:
            self._protocol.issue(Step.AUTH, commands.auth(mechanism.name))
            return False
        if len(commands.auth(mechanism.name, mechanism.first())) > commands.LINE_LIMIT:
            self._protocol.issue(Step.AUTH, commands.auth(mechanism.name))
            return True
        self._protocol.issue(Step.AUTH, commands.auth(mechanism.name, mechanism.first()))
        return False

    def _answer_challenge(self, mechanism: Mechanism, first_is_due: bool) -> TxmailError | None:
        """Answer a challenge, or return the error in it.

        The caller raises the error: a challenge may repeat the password, which this frame has in
        its variables.
        """
        challenge = _decoded(self._protocol.take_challenge())
        malformed = MalformedReply("a challenge that is not base64")
        if challenge is None and mechanism.reads_challenges and not first_is_due:
            return malformed
        try:
            said = mechanism.first() if first_is_due else mechanism.answer(challenge or b"")
        except TxmailError as error:
            return bare(error) if challenge is not None else malformed
        self._protocol.issue(Step.AUTH, commands.auth_answer(said))
        return None


@dataclass(frozen=True, slots=True)
class _Refused:
    """Mechanisms that the server did not know, and its reply to the last of them."""

    names: tuple[str, ...] = ()
    reply: Reply | None = None

    def __str__(self) -> str:
        code = f" ({self.reply.code})" if self.reply is not None else ""
        return ", ".join(self.names) + code


def _decoded(challenge: str) -> bytes | None:
    """The octets of a challenge, None if it is no base64. Ignores blanks and missing padding."""
    text = challenge.strip(" \t")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return None


def _refused(problem: str, step: Step, reply: Reply) -> TransportError:
    stopped = judge(step, reply).action is Action.STOP_ROUTE
    return TransportError(problem, temporary=not stopped, reply=reply)
