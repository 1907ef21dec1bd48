"""``txmail``: the parser and `main`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from . import catch, db, demo, doctor, send, worker
from .exits import CannotRun, Exit

#: In the order in which the help has them.
_COMMANDS = (demo, send, catch, worker, db, doctor)

_EXITS = """\
exit codes:
  0  success
  1  the command ran and something failed; demo: a promise was broken
  2  wrong arguments, or something that the command needs is missing
txmail send has the exit codes of sysexits.h: see txmail send --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process; return the exit code.

    Raises SystemExit for ``--help``, ``--version`` and wrong arguments, as argparse does.
    """
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:  # the subcommand reports it: it may have its own exit code for that
        blamed: argparse.ArgumentParser = getattr(arguments, "parser", parser)
        blamed.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.run is None:
        parser.print_help(sys.stderr)
        return Exit.USAGE
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except CannotRun as error:
        sys.stderr.write(f"txmail {arguments.command}: {error}\n")
        return Exit.USAGE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, such as head, is gone. The interpreter must not write to the
        # pipe again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    return int(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="txmail",
        description="Mail that leaves if, and only if, the transaction commits.",
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"txmail {_version()}")
    parser.set_defaults(run=None)
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser


def _version() -> str:
    try:
        return version("txmail")
    except PackageNotFoundError:
        return "(from a source tree, not installed)"
