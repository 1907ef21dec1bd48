"""The sendmail transport: hands envelopes to a program such as ``/usr/sbin/sendmail``.

The program gets an argument list, never a shell's line and never ``-t``: the recipients are those
of the envelope, whatever a header says. Its only answer is its exit code:

=====================  =========================================================
0                      accepted
68 69 75               deferred
64 65 67               failed
any other              the route needs a person
ended by a signal      in doubt if it had the whole message, else deferred
=====================  =========================================================
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from zope.interface import implementer

from ...common import system
from ...common.ascii_text import ascii_split
from ...common.shown import one_line, printable
from ...envelope import Envelope
from ...exceptions import ConfigurationError, TransportError
from ...interfaces import ITransport
from ...outcome import Action, Outcome, Scope, Status
from .session import LocalSession, Result, deferred, in_doubt, unsent
from .subprocess import Program

#: The path of the Filesystem Hierarchy Standard (section 4.10).
PROGRAM = "/usr/sbin/sendmail"
#: Seconds for one call.
TIMEOUT = 60.0
#: Recipients of one call, as of one mail transaction (RFC 5321 section 4.5.3.1.8).
MOST_RECIPIENTS = 100

#: sysexits.h: usage, data, no such user.
_FAILED = frozenset({64, 65, 67})
#: The one of them that is about a recipient.
_NO_USER = 67
#: sysexits.h: no such host, unavailable, try again. msmtp exits with 68 if it cannot look up the
#: name of its smarthost, and with 69 for each 4yz: neither says anything about the message.
_TRY_AGAIN = frozenset({68, 69, 75})
#: Errors at the start of a program that pass by themselves.
_PASSING = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR})

_SENDER = "{sender}"
_APP = "{sendmail_app}"


@dataclass(frozen=True, slots=True)
class Command:
    """The program to run. Its argument list always ends in ``--`` and the recipients."""

    #: absolute path
    program: str = PROGRAM
    #: options; ``{sender}`` in one is replaced by the reverse-path, ``<>`` if it is null
    options: tuple[str, ...] = ("-i", "-f", _SENDER)

    @classmethod
    def from_template(
        cls, app: str | None, template: str | None, *, app_field: str, template_field: str
    ) -> Self:
        """The command of pyramid_mailer's settings. Raises `ConfigurationError`, naming them.

        `template` is split at blanks. No shell reads it, and quotes in it have no meaning.
        """
        program = app or PROGRAM
        if not program.startswith("/") or "\0" in program:
            raise ConfigurationError("an absolute path is needed", field=app_field, value=app)
        if template is None:
            return cls(program)
        first, *options = ascii_split(template) or [""]
        problem = "" if first in (_APP, program) else f"it has to begin with {_APP}"
        problem = problem or _problem(options)
        if problem:
            raise ConfigurationError(problem, field=template_field, value=template)
        return cls(program, tuple(options))

    def arguments(self, envelope: Envelope) -> list[bytes]:
        """The argument list for `envelope`."""
        sender = envelope.reverse_path[1:-1] or envelope.reverse_path
        options = (os.fsencode(o).replace(_SENDER.encode(), sender) for o in self.options)
        recipients = (path[1:-1] for path in envelope.forward_paths)
        return [os.fsencode(self.program), *options, b"--", *recipients]


def _problem(options: Sequence[str]) -> str:
    """The error in the options of a template; empty if there is none."""
    for option in options:
        if option.startswith(("-t", "-it")):
            return "-t is not supported: the recipients are the envelope's, not a header's"
        if option == "--" or (option.startswith("-b") and option != "-bm"):
            return f"{option} is not supported"
        if "{" in option.replace(_SENDER, "") or "}" in option.replace(_SENDER, ""):
            return f"the only placeholders are {_APP} and {_SENDER}: remove the others"
    if not any(_SENDER in option for option in options):
        return f"it needs -f {_SENDER}"
    if "-i" not in options and "-oi" not in options:
        return "it needs -i: without it a line with a single dot ends the message"
    return ""


@implementer(ITransport)
class SendmailTransport:
    """Hands envelopes to a program. See `ITransport`."""

    #: there is no server to ask: a call sends the message
    asks_server = False
    #: messages on their way at once: the program gets one after the other
    window = 1

    def __init__(self, command: Command | None = None, timeout: float = TIMEOUT) -> None:
        """`timeout` is in seconds, for each call."""
        self.command = command if command is not None else Command()
        self.timeout = timeout

    @property
    def name(self) -> str:
        """Such as ``sendmail:///usr/sbin/sendmail``."""
        return f"sendmail://{printable(self.command.program)}"

    def open(
        self,
        *,
        timeout: float | None = None,
        wait: bool = True,
        fresh: bool = False,
        verify: bool = True,
    ) -> SendmailSession:
        """See `ITransport`. Raises `TransportError` if the program cannot be run.

        Raises `ConfigurationError` on a system that lacks what it needs.
        """
        if problem := system.lacks("poll", "killpg"):
            raise ConfigurationError(problem, field=self.name)
        program = self.command.program
        try:
            runnable = stat.S_ISREG(os.stat(program).st_mode) and os.access(program, os.X_OK)
            problem = "" if runnable else "it is not a program that this user may run"
        except OSError as error:
            problem = str(error.strerror)
        if problem:
            raise TransportError(f"{self.name}: {problem}", temporary=False)
        return SendmailSession(self.command, self.timeout, self.name)

    def close(self) -> None:
        """See `ITransport`. Nothing is open."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class SendmailSession(LocalSession):
    """See `ISession`."""

    most_recipients = MOST_RECIPIENTS

    def __init__(self, command: Command, timeout: float, host: str) -> None:
        super().__init__(host)
        self._command = command
        self._timeout = timeout

    def refusals(self, envelope: Envelope) -> list[Outcome]:
        """See `LocalSession`. Refuses addresses that a program could take for options.

        ``--`` stands before the recipients, but some programs of this name ignore it, and nothing
        stands before the sender.
        """
        if envelope.sender.startswith("-"):
            reason = f"the sender {envelope.sender} begins with a hyphen"
            refused = Result(Status.FAILED, Scope.MESSAGE, Action.FAIL, reason)
            return [refused.outcome(r, envelope.message_id) for r in envelope.recipients]
        reason = "an address that begins with a hyphen cannot be handed to a program"
        refused = Result(Status.FAILED, Scope.RECIPIENT, Action.FAIL, reason)
        return [
            refused.outcome(recipient, envelope.message_id)
            for recipient in envelope.recipients
            if recipient.startswith("-")
        ]

    def hand_over(self, envelope: Envelope, seconds: float | None) -> None:
        """See `LocalSession`."""
        seconds = self._timeout if seconds is None else min(seconds, self._timeout)
        # The program expects the line ends of a local text. Given CRLF, some programs send
        # CR CR LF, and others count the CR as a part of the line.
        octets = envelope.content.replace(b"\r\n", b"\n")
        program = Program(self._command.arguments(envelope), octets, _environment())
        with program:
            try:
                program.start()
                program.run(seconds)
                self._end(program, envelope, f"it took more than {seconds:g} seconds")
            except BaseException as error:
                self._end(program, envelope, "it was interrupted")
                if program.started or not isinstance(error, OSError):
                    raise
                action = Action.DEFER if error.errno in _PASSING else Action.STOP_ROUTE
                reason = f"{self.host} could not be started: {error.strerror}"
                self.result = Result(Status.UNSENT, Scope.ROUTE, action, reason)

    def _end(self, program: Program, envelope: Envelope, why: str) -> None:
        """Note the result of the call. Kill the program, because of `why`, if it still runs."""
        program.end()
        if program.code is not None and program.code >= 0 and not program.lost:
            # The program ended by itself, perhaps in the moment of `why`.
            self.result = self._judge(program.code, program, envelope)
            return
        if program.lost:
            why = "its exit code was taken by another part of this process"
        elif program.code is not None and not program.killed:
            why = f"it was ended by signal {-program.code}"
        if not program.started:
            self.result = unsent(f"{self.host}: {why}")
        elif program.complete:
            self.result = in_doubt(self._reason(f"{why}, and had the whole message", program))
        else:
            reason = self._reason(f"{why}, and had not read the whole message", program)
            self.result = deferred(reason)

    def _judge(self, code: int, program: Program, envelope: Envelope) -> Result:
        reason = self._reason(f"exit {code}", program)
        if code == 0:
            if not program.complete:
                return deferred(f"{reason}, without reading the message", Action.STOP_ROUTE)
            return Result(Status.ACCEPTED, reason=f"taken by {self.host}")
        if code in _TRY_AGAIN:
            return Result(Status.DEFERRED, Scope.MESSAGE, Action.DEFER, reason)
        if code in _FAILED:
            # The exit code does not say which of several recipients it is about.
            alone = len(envelope.recipients) == 1
            scope = Scope.RECIPIENT if alone and code == _NO_USER else Scope.MESSAGE
            return Result(Status.FAILED, scope, Action.FAIL, reason)
        return deferred(reason, Action.STOP_ROUTE)

    def _reason(self, what: str, program: Program) -> str:
        said = one_line(program.said)
        return f"{self.host}: {what}" + (f": {said}" if said else "")


def _environment() -> dict[str, str]:
    """The program's environment: its user and the time zone, and no secrets."""
    ours = {n: os.environ[n] for n in ("HOME", "LOGNAME", "USER", "TZ") if n in os.environ}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **ours}
