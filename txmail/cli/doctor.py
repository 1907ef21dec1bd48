"""``txmail doctor``: checks the settings, the mail server and the queue."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from ..common.ascii_text import whole_number
from ..common.shown import printable
from ..config.settings import Settings, read_settings
from ..exceptions import ConfigurationError, QueueUnavailable, SchemaError, TransportError
from ..interfaces import ITransport
from . import settings
from .exits import CannotRun, Exit, require

_DESCRIPTION = """\
Check the settings, the queue and, with --connect, the mail server, and say what
is wrong. With --health check only the queue, for monitoring: the exit code says
whether a person has to act now.
"""

_EPILOG = """\
examples:
  txmail doctor -c app.ini --connect
  txmail doctor --health --max-age 600 --queue-url postgresql://app@db/mail
  txmail doctor --health --workers 0 -c app.ini     # where cron runs --once

--health fails if mail has been due for longer than --max-age, if fewer workers
run than --workers says, if a route needs a person or mail waits for a paused
route, or if the queue cannot be reached.

exit codes:
  0  nothing is wrong; lines that begin with "note" give advice
  1  something is wrong; the lines that begin with BAD say what
  2  wrong arguments or settings, or something that the command needs is missing
"""


class _Mark(StrEnum):
    OK = "ok"
    ADVICE = "note"
    BAD = "BAD"


#: How bad something is, and what it is.
_Finding = tuple[_Mark, str]


def add_parser(subparsers: Any) -> None:
    """Add ``doctor`` to the parser of ``txmail``."""
    parser = subparsers.add_parser(
        "doctor",
        help="check the settings, the mail server and the queue",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--connect", action="store_true", help="also connect to the mail server")
    parser.add_argument(
        "--health", action="store_true", help="check only whether the queue works, for monitoring"
    )
    parser.add_argument(
        "--max-age",
        type=_number,
        default=300,
        metavar="S",
        help="for how many seconds mail may be due (default: 300)",
    )
    parser.add_argument(
        "--workers",
        type=_number,
        default=1,
        metavar="N",
        help="how many workers have to run (default: 1)",
    )
    settings.add_worker_arguments(parser)
    parser.set_defaults(run=run, parser=parser)


def _number(text: str) -> int:
    number = whole_number(text)
    if number is None:
        raise argparse.ArgumentTypeError("a number is needed")
    return number


def run(arguments: argparse.Namespace) -> Exit:
    """Check, and write a line for each finding. Raises `CannotRun`."""
    worst = Exit.OK
    for mark, text in _health(arguments) if arguments.health else _findings(arguments):
        sys.stdout.write(f"{mark:<5}{printable(text)}\n")
        if mark is _Mark.BAD:
            worst = Exit.FAILED
    return worst


def _health(arguments: argparse.Namespace) -> Iterator[_Finding]:
    require("queue", "sqlalchemy", "alembic")
    try:
        found = read_settings(*settings.read_queue(arguments))
        settings.require_database(found.queue)
    except ConfigurationError as error:
        raise CannotRun(printable(settings.said(error, arguments))) from None
    yield from _of_queue(found.queue, arguments.max_age, arguments.workers)


def _findings(arguments: argparse.Namespace) -> Iterator[_Finding]:
    try:
        found = read_settings(*settings.read_any(arguments))
        named = found.queue is not None and settings.names_database(found.queue)
    except ConfigurationError as error:
        raise CannotRun(printable(settings.said(error, arguments))) from None
    yield _Mark.OK, "the settings can be read"
    if found.default_sender is None:
        yield _Mark.ADVICE, "default_sender is not set: each message has to name its sender"
    yield from _of_transports(found, connect=arguments.connect)
    if found.queue is None:
        yield _Mark.ADVICE, "there is no queue: a mail server that is down aborts transactions"
        return
    if not named:
        yield _Mark.ADVICE, settings.UNNAMED_DATABASE
        return
    require("queue", "sqlalchemy", "alembic")
    yield from _of_database(found.queue)
    yield from _of_queue(found.queue, arguments.max_age, arguments.workers)


def _of_transports(found: Settings, *, connect: bool) -> Iterator[_Finding]:
    yield from _of_transport(found.transport, "mail", connect=connect)
    for route in found.routes:
        if route.transport is not found.transport:
            what = f"mail of the route {route.name}"
            yield from _of_transport(route.transport, what, connect=connect)


def _of_transport(transport: ITransport, what: str, *, connect: bool) -> Iterator[_Finding]:
    name = getattr(transport, "name", type(transport).__name__)
    if not connect:
        yield _Mark.OK, f"{what} goes to {name}; not checked (use --connect)"
        return
    try:
        session = transport.open()
        session.close()
        yield _Mark.OK, f"{name} answers"
    except TransportError as error:
        said = "" if error.reply is None else f" ({error.reply})"
        yield _Mark.BAD, f"{name}: {error}{said}"
    finally:
        transport.close()


def _of_database(queue: Any) -> Iterator[_Finding]:
    with contextlib.suppress(QueueUnavailable):  # `_of_queue` reports it
        for advice in queue.database.advice():
            mark = _Mark.BAD if advice.bad else _Mark.OK if advice.fine else _Mark.ADVICE
            yield mark, advice.text


def _of_queue(queue: Any, max_age: float, workers: int) -> Iterator[_Finding]:
    from ..queue.inspect import read_health

    database = queue.database
    try:
        # A check makes no file and no tables.
        found = database.table_version(look=True)
        if found is None and database.creates:
            database.check_place()
            yield (
                _Mark.OK,
                f"{database.name}: there are no tables yet; txmail makes them on first use",
            )
            return
        database.check(found)
        health = read_health(database, look=True)
    except (ConfigurationError, QueueUnavailable, SchemaError) as error:
        yield _Mark.BAD, str(error)
        return
    finally:
        queue.close()
    waiting = ", ".join(
        f"{number} {state}" for state, number in health.deliveries.items() if number
    )
    yield _Mark.OK, f"{health.queue}: version {found.number}; {waiting or 'nothing waits'}"
    yield _Mark.OK, f"live workers: {health.workers}"
    for problem in health.problems(max_age, workers):
        yield _Mark.BAD, problem
    for route in health.routes:
        if route.rate is not None:
            most = f"{route.rate * 60:.3g} messages a minute"
            yield (
                _Mark.ADVICE,
                f"route {route.name}: its server asked for a lower rate; now at most {most}",
            )
    if health.deliveries["failed"] or health.deliveries["in_doubt"]:
        yield _Mark.ADVICE, "failed mail and mail in doubt waits for a person"
    if health.undecided:
        yield (
            _Mark.BAD,
            f"{health.undecided} transaction(s): it is not known whether they committed",
        )
