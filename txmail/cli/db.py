"""``txmail db``: makes and upgrades the tables of a queue, and counts what is in them."""

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
Make, upgrade and inspect the tables of a queue. txmail makes the tables of an
SQLite file at its first use; in PostgreSQL, run "txmail db init". After an
update of txmail, "txmail db status" says whether "txmail db upgrade" is needed.
Other processes may use the queue during an upgrade: a process that is too old
for the new tables stops by itself, with one line in its log.
"""

_EPILOG = """\
examples:
  txmail db init --queue-url postgresql://app@db.example.com/mail
  txmail db status -c app.ini

Do not put a password on the command line, where every user of the machine can
read it: put the URL into TXMAIL_QUEUE_URL or into the file of -c.

exit codes:
  0  success
  1  the database cannot be reached, or its tables are missing or of another
     version
  2  wrong arguments or settings, or something that the command needs is missing
"""


def add_parser(subparsers: Any) -> None:
    """Add ``db`` to the parser of ``txmail``."""
    parser = subparsers.add_parser(
        "db",
        help="make, upgrade and inspect the tables of the queue",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="init|upgrade|status", required=True)
    for name, action, text in (
        ("init", _init, "make the tables if there are none"),
        ("upgrade", _upgrade, "bring older tables up to the version of this txmail"),
        ("status", _status, "show the version of the tables, and count deliveries by state"),
    ):
        one = actions.add_parser(name, help=text, description=f"{ascii_upper(text[0])}{text[1:]}.")
        settings.add_queue_arguments(one)
        one.set_defaults(run=run, action=action, parser=one)


def run(arguments: argparse.Namespace) -> Exit:
    """Run the action. Raises `CannotRun`."""
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
    _say(database, "made the tables" if made else "the tables exist already")
    return Exit.OK


def _upgrade(database: Database) -> Exit:
    from ..queue.database.upgrade import upgrade

    done = upgrade(database)
    _say(database, "upgraded the tables" if done else "the tables are up to date already")
    return Exit.OK


def _status(database: Database) -> Exit:
    from ..queue.inspect import read_tables
    from ..queue.schema import VERSION

    found = database.table_version(look=True)
    if found is None and database.creates:
        database.check_place()
        _say(database, "there are no tables yet; txmail makes them on first use")
        return Exit.OK
    database.check(found)
    assert found is not None
    ours = found.number == VERSION
    known = "is the one this txmail needs" if ours else f"this txmail ({VERSION}) can use"
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
