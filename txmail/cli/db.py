"""``txmail db``: makes the tables of a queue, brings them up to date, says what is in them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..common.ascii_text import ascii_upper
from ..common.shown import printable
from ..config.settings import read_settings
from ..exceptions import ConfigurationError, QueueUnavailable, SchemaError
from . import settings
from .exits import CannotRun, Exit, require
from .lines import complain

if TYPE_CHECKING:
    from ..queue.database.database import Database

_DESCRIPTION = """\
The tables of a queue. An SQLite file gets them when it is used for the first
time; in PostgreSQL they are made by "txmail db init". After an update of txmail
"status" says whether "upgrade" is needed: stop what uses the queue before it.
"""

_EPILOG = """\
examples:
  txmail db init --queue-url postgresql://app@db.example.com/mail
  txmail db status -c app.ini

A password does not belong on a command line, where every user of the machine
can read it: put the URL into TXMAIL_QUEUE_URL or a file.

exit codes:
  0  all is well
  1  the database cannot be reached, or its tables are missing or of another
     version
  2  wrong arguments or settings, or something that it needs is not there
"""


def add_parser(subparsers: Any) -> None:
    """Add ``db`` to the parser of ``txmail``."""
    parser = subparsers.add_parser(
        "db",
        help="the tables of the queue",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(
        title="what to do", metavar="init|upgrade|status", required=True
    )
    for name, action, text in (
        ("init", _init, "make the tables, if there are none"),
        ("upgrade", _upgrade, "bring the tables up to this version of txmail"),
        ("status", _status, "their version, and how many deliveries are in which state"),
    ):
        one = actions.add_parser(name, help=text, description=f"{ascii_upper(text[0])}{text[1:]}.")
        settings.add_queue_arguments(one)
        one.set_defaults(run=run, action=action, parser=one)


def run(arguments: argparse.Namespace) -> Exit:
    """Do it. Raises `CannotRun`."""
    require("queue", "sqlalchemy", "alembic")
    action: Callable[[Database], Exit] = arguments.action
    try:
        database = _database(arguments)
        try:
            return action(database)
        finally:
            database.close()
    except ConfigurationError as error:
        raise CannotRun(printable(settings.said(error, arguments))) from None
    except (QueueUnavailable, SchemaError) as error:
        complain("db", error)
        return Exit.FAILED


def _database(arguments: argparse.Namespace) -> Database:
    found: Any = read_settings(*settings.read_queue(arguments)).queue
    settings.require_database(found)
    database: Database = found.database
    return database


def _init(database: Database) -> Exit:
    from ..queue.database.upgrade import init

    made = init(database)
    _say(database, "the tables are made" if made else "the tables are there already")
    return Exit.OK


def _upgrade(database: Database) -> Exit:
    from ..queue.database.upgrade import upgrade

    done = upgrade(database)
    _say(database, "the tables are upgraded" if done else "the tables are up to date already")
    return Exit.OK


def _status(database: Database) -> Exit:
    from ..queue.inspect import read_tables
    from ..queue.schema import VERSION

    found = database.table_version(look=True)
    if found is None and database.creates:
        database.check_place()
        _say(database, "there are no tables yet; they are made on first use")
        return Exit.OK
    database.check(found)
    assert found is not None
    ours = found.number == VERSION
    known = "is the one this txmail needs" if ours else f"this txmail, with {VERSION}, can use"
    _say(database, f"version {found.number}, which {known}")
    counts = read_tables(database)
    for title, numbers in (
        ("deliveries", counts.deliveries),
        ("open batches", counts.open_batches),
    ):
        sys.stdout.write(f"{title}:\n" if numbers else f"{title}: none\n")
        for state, number in numbers:
            sys.stdout.write(f"  {printable(state):<12}{number:>12}\n")
    return Exit.OK


def _say(database: Database, text: str) -> None:
    sys.stdout.write(f"{printable(database.name)}: {text}\n")
