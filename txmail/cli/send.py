"""``txmail send``: sends one message now, from a shell or a script."""

from __future__ import annotations

import argparse
import contextlib
import email
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..envelope import Envelope
from ..exceptions import ConfigurationError, DeliveryError, FieldError
from ..mailer import Mailer
from ..message import Attachment, Message, to_envelope
from ..message.mime.gate import MAX_CONTENT
from ..message.stdlib.source import with_source
from ..outcome import Outcome, Status
from ..transports.local.folder import ENVELOPE_TO, RETURN_PATH
from . import settings
from .lines import complain, quiet_logging, say_outcome
from .sysexits import SysExit, code_of

_DESCRIPTION = """\
Send one message now and say what became of each recipient. If the server refuses
one recipient before txmail has sent anything, no recipient gets the message.

Give the message as options, or as an .eml FILE (- is standard input). With a
FILE, --to and --from replace the addresses of the envelope and leave its headers
alone. txmail removes Bcc from the headers in any case.
"""

_EPILOG = """\
examples:
  txmail send --url smtp://localhost --from app@example.com --to ann@example.com \\
      --subject 'Report' --body 'See the attachment.' --attach report.pdf
  df -h | txmail send -c app.ini --to ops@example.com --subject 'Disks' --body-file -
  txmail send --to ann@example.com saved.eml

Do not put a password on the command line, where every user of the machine can
read it: put the URL into TXMAIL_URL or into the file of -c.

exit codes, as in sysexits.h:
  0   the server accepted every recipient, or the queue of the settings has the
      rest
  64  wrong arguments
  65  the message, or an address, cannot be sent as it is
  66  a file cannot be read
  67  the server refused a recipient
  69  the server refused the message or the client; or it accepted some recipients
      and not others: see the output
  71  the system refused something
  74  in doubt: the connection ended when the server may have accepted the message
  75  try again later; the server accepted nothing
  78  the URL or a setting is wrong
  130 interrupted; a message under way may have been sent
"""


class _Unreadable(Exception):
    """A file cannot be read; the text says which file and why."""


def add_parser(subparsers: Any) -> None:
    """Add ``send`` to the parser of ``txmail``."""
    parser = subparsers.add_parser(
        "send",
        help="send one message now",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="an .eml file; - reads standard input"
    )
    for name, text in (
        ("to", "a recipient"),
        ("cc", "one in Cc"),
        ("bcc", "one that no other sees"),
    ):
        parser.add_argument(
            f"--{name}",
            metavar="ADDRESS",
            action="append",
            default=[],
            help=f"{text}; may be repeated",
        )
    parser.add_argument("--from", dest="sender", metavar="ADDRESS", help="the sender")
    parser.add_argument("--subject", metavar="TEXT", help="the subject")
    body = parser.add_mutually_exclusive_group()
    body.add_argument("--body", metavar="TEXT", help="the text")
    body.add_argument(
        "--body-file", metavar="FILE", help="a file with the text, in UTF-8; - reads standard input"
    )
    parser.add_argument("--html", metavar="FILE", help="a file with the text as HTML, in UTF-8")
    parser.add_argument(
        "--attach",
        metavar="FILE",
        action="append",
        default=[],
        help="a file to attach; may be repeated",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="do not list accepted recipients"
    )
    settings.add_arguments(parser)
    parser.error = lambda problem: _usage(parser, problem)
    parser.set_defaults(run=run, parser=parser)


def _usage(parser: argparse.ArgumentParser, problem: str) -> NoReturn:
    """End with exit code 64; argparse itself ends with 2."""
    parser.print_usage(sys.stderr)
    parser.exit(SysExit.USAGE, f"{parser.prog}: error: {problem}\n")


def run(arguments: argparse.Namespace) -> int:
    """Send the message; returns a `SysExit`."""
    _check_usage(arguments)
    try:
        with quiet_logging():
            return _run(arguments)
    except ConfigurationError as error:
        complain("send", settings.said(error, arguments))
        return SysExit.CONFIG
    except FieldError as error:
        complain("send", error)
        return SysExit.DATAERR
    except _Unreadable as error:
        complain("send", error)
        return SysExit.NOINPUT
    except (OSError, MemoryError) as error:
        complain("send", getattr(error, "strerror", None) or type(error).__name__)
        return SysExit.OSERR


def _check_usage(arguments: argparse.Namespace) -> None:
    own = [
        option
        for option in ("subject", "body", "body_file", "html", "attach", "cc", "bcc")
        if getattr(arguments, option)
    ]
    if arguments.file is not None and own:
        name = own[0].replace("_", "-")
        arguments.parser.error(f"--{name} does not go with a FILE: remove one of the two")
    if arguments.file is not None:
        return
    if arguments.body is None and arguments.body_file is None and arguments.html is None:
        arguments.parser.error("no message: give a FILE, --body, --body-file or --html")
    if not (arguments.to or arguments.cc or arguments.bcc):
        arguments.parser.error("no recipient: give --to, --cc or --bcc")


def _run(arguments: argparse.Namespace) -> int:
    mailer = Mailer.from_settings(*settings.read(arguments))
    try:
        envelope = _envelope(arguments, mailer.default_sender)
        try:
            outcomes = mailer.send_immediately(envelope)
        except DeliveryError as error:
            outcomes = error.outcomes
    finally:
        mailer.close()
    _tell(outcomes, arguments.quiet)
    return code_of(outcomes)


def _tell(outcomes: Sequence[Outcome], quiet: bool) -> None:
    """Write a line for each outcome. If nobody reads it, the exit code stays the same."""
    try:
        for outcome in outcomes:
            if outcome.status is not Status.ACCEPTED:
                say_outcome(outcome, sys.stderr)
            elif not quiet:
                say_outcome(outcome, sys.stdout)
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _envelope(arguments: argparse.Namespace, default_sender: str | None) -> Envelope:
    if arguments.file is None:
        return to_envelope(_made(arguments), default_sender=default_sender)
    octets = _octets(arguments.file)
    message = email.message_from_bytes(octets)
    for name in (RETURN_PATH, ENVELOPE_TO):
        del message[name]  # of an earlier delivery; the latter names blind copies
    envelope = to_envelope(
        message,
        sender=arguments.sender,
        recipients=arguments.to or None,
        default_sender=arguments.sender or default_sender,
    )
    return with_source(envelope, message, octets, without=(RETURN_PATH, ENVELOPE_TO))


def _made(arguments: argparse.Namespace) -> Message:
    body = arguments.body
    if arguments.body_file is not None:
        body = _text(arguments.body_file)
    return Message(
        arguments.subject,
        arguments.to,
        body,
        _text(arguments.html) if arguments.html is not None else None,
        sender=arguments.sender,
        cc=arguments.cc,
        bcc=arguments.bcc,
        attachments=[Attachment(os.path.basename(p), data=_octets(p)) for p in arguments.attach],
    )


def _text(path: str) -> str:
    try:
        return _octets(path).decode("utf-8")
    except UnicodeDecodeError:
        raise _Unreadable(f"{path}: it is not UTF-8 text") from None


def _octets(path: str) -> bytes:
    """The octets of a file or of standard input: at most one more than can be sent."""
    try:
        if path == "-":
            return sys.stdin.buffer.read(MAX_CONTENT + 1)
        with open(path, "rb") as file:
            return file.read(MAX_CONTENT + 1)
    except OSError as error:
        raise _Unreadable(f"{path}: {error.strerror}") from None
