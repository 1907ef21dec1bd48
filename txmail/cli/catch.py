"""``txmail catch``: a mail server on this machine that shows and keeps what it gets."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from ..common.ascii_text import whole_number
from ..common.shown import printable
from ..transports.local.console import shown
from ..transports.local.folder import Folder, new_name, reason_of
from .exits import CannotRun, Exit
from .lines import complain

if TYPE_CHECKING:
    from ..testing import Received, ScriptedServer

#: A port that needs no privilege; other such servers use it too.
PORT = 2525
_MOST = 65535

_DESCRIPTION = """\
Run a mail server on a port of this machine. It accepts every message, shows it
and sends nothing on. While you develop, set in your application:

  mail.url = smtp://127.0.0.1:2525
"""

_EPILOG = """\
examples:
  txmail catch
  txmail catch --port 0 --count 1         # a free port; ends after one message
  txmail catch --keep mails --quiet &     # files mails/*.eml

The server listens on 127.0.0.1 only, asks for no password, and keeps all
messages in memory: use it for development only. Ctrl-C ends it.

exit codes:
  0  ended by Ctrl-C, or after --count messages
  1  a message could not be written to the folder of --keep
  2  wrong arguments, or the port or the folder cannot be used
"""


def add_parser(subparsers: Any) -> None:
    """Add ``catch`` to the parser of ``txmail``."""
    parser = subparsers.add_parser(
        "catch",
        help="run a mail server for development that shows each message",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=PORT,
        metavar="PORT",
        help=f"the port (default: {PORT}); 0 takes a free port",
    )
    parser.add_argument("--keep", metavar="DIR", help="write each message to DIR as an .eml file")
    parser.add_argument("--count", type=_count, metavar="N", help="end after N messages")
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="show one line for each message instead of its text",
    )
    parser.set_defaults(run=run)


def _port(text: str) -> int:
    number = whole_number(text)
    if number is None or number > _MOST:
        raise argparse.ArgumentTypeError(f"a number from 0 to {_MOST} is needed")
    return number


def _count(text: str) -> int:
    number = whole_number(text)
    if not number:
        raise argparse.ArgumentTypeError("a number above 0 is needed")
    return number


def run(arguments: argparse.Namespace) -> Exit:
    """Show messages until Ctrl-C, or until --count messages came. Raises `CannotRun`."""
    from ..testing import ScriptedServer

    folder = _folder(arguments.keep)
    try:
        server = ScriptedServer(port=arguments.port).start()
    except OSError as error:
        problem = os.strerror(error.errno) if error.errno else error
        raise CannotRun(f"port {arguments.port}: {problem}") from error
    try:
        _say(f"listening on {server.url}\n")
        return _catch(server, arguments, folder)
    except KeyboardInterrupt:
        _say(f"\n{_counted(len(server.messages))} caught\n")
        return Exit.OK
    finally:
        server.stop()


def _folder(path: str | None) -> Folder | None:
    if path is None:
        return None
    folder = Folder(os.path.abspath(path))
    try:
        folder.make()
    except OSError as error:
        raise CannotRun(f"{path}: {reason_of(error)}") from error
    return folder


def _catch(server: ScriptedServer, arguments: argparse.Namespace, folder: Folder | None) -> Exit:
    done, failed = 0, False
    while arguments.count is None or done < arguments.count:
        received = _next(server, done)
        done += 1
        name = ""
        if folder is not None:
            try:
                name = new_name()
                folder.keep(name, received.sender, received.recipients, received.content)
            except OSError as error:
                complain("catch", f"{arguments.keep}: {error.strerror or error}")
                failed = True
        _say(_line(received) if arguments.quiet else _whole(received))
        if name and not arguments.quiet:
            _say(f"kept as {os.path.join(arguments.keep, name)}\n")
    return Exit.FAILED if failed else Exit.OK


def _next(server: ScriptedServer, done: int) -> Received:
    """Wait for the message after the first `done`."""
    server.wait_for(lambda: len(server.messages) > done, threading.TIMEOUT_MAX)
    return server.messages[done]


def _line(received: Received) -> str:
    to = ", ".join(received.recipients)
    return f"<{printable(received.sender)}> to {printable(to)}, {len(received.content)} octets\n"


def _whole(received: Received) -> str:
    return shown(received.sender, received.recipients, received.content)


def _counted(number: int) -> str:
    return f"{number} message{'s' * (number != 1)}"


def _say(text: str) -> None:
    """Write `text` and flush it: somebody may be reading along."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
