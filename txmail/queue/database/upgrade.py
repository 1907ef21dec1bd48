"""Making the tables, and upgrading older ones to this version: ``txmail db``.

All of it happens in one transaction: after a failure the tables are as before. Of two processes
that upgrade at once, the second waits, and then finds nothing to do.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ...common.per_process import PerProcess
from ...exceptions import ConfigurationError, SchemaError
from .. import schema
from .database import Database
from .version import is_older

try:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
except ModuleNotFoundError:
    raise ConfigurationError(
        "the queue needs Alembic for this: pip install 'txmail[queue]'", field="queue_url"
    ) from None

#: Seconds that each statement may take: some changes copy a large table.
TIMEOUT = 3600.0

#: The first revision that has a column for the oldest version that may go on.
_FIRST_WITH_MINIMUM = "0003"
_SCRIPTS = Path(__file__).parents[1] / "migrations"
#: Alembic keeps the state of a run in its modules: one run at a time.
_alembic = PerProcess(threading.Lock)


def init(database: Database, *, timeout: float = TIMEOUT) -> bool:
    """Make the tables, unless there are some; True if there were none.

    Raises `SchemaError` if there are some of another version, and what `Database.write` raises.
    """
    database.permit_new()
    with _alembic.get(), database.write(timeout, prepared=False) as connection:
        database.lock_schema(connection)
        found = database.version_in(connection)
        if found is None:
            _run(database, connection)
        else:
            database.check(found)
    return found is None


def upgrade(database: Database, *, timeout: float = TIMEOUT) -> bool:
    """Bring older tables up to this version; True if they were older.

    Processes that are older than the new tables permit stop by themselves. Raises `SchemaError` if
    there are no tables, or newer ones, and what `Database.write` raises.
    """
    with _alembic.get(), database.write(timeout, prepared=False) as connection:
        database.lock_schema(connection)
        found = database.version_in(connection)
        older = found is not None and is_older(found.number)
        if older:
            _run(database, connection)
            found = database.version_in(connection)
        database.check(found)
    return older


def _run(database: Database, connection: sa.Connection) -> None:
    configuration = Config()
    configuration.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    configuration.attributes["connection"] = connection
    try:
        command.upgrade(configuration, "head")
        newest: Any = ScriptDirectory.from_config(configuration).get_revision("head")
    except CommandError as error:
        raise SchemaError(f"{database.name}: {error}") from error
    if newest.revision >= _FIRST_WITH_MINIMUM:
        minimum = getattr(newest.module, "min_version", None)
        connection.execute(schema.version.update().values(min_version=minimum))
