"""Settings of PostgreSQL that an administrator may have made for a server, database or role.

Each of our transactions sets what it needs: its isolation, its time-outs, and that a commit is on
the disk before it is acknowledged. Where that is not enough, `REASONS` says what an administrator
has to change.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from .backend import Advice

#: Versions from which there are these settings.
_IDLE_SESSION_TIMEOUT, _TRANSACTION_TIMEOUT = 14, 17

#: What to do, by SQLSTATE.
REASONS = {
    "25006": "it takes no writes: it is a standby, or default_transaction_read_only is on for it "
    "or for this user. Name the server that takes writes, or turn the setting off",
    "3F000": "no schema of the search_path is there: set search_path for this user or database, "
    "or with ?options=-csearch_path%3D... in the URL",
    "42501": "this user lacks a right: GRANT it all rights on the tables and sequences whose names "
    "begin with txmail_",
    "22P05": "the encoding of the database lacks a character: make it with ENCODING 'UTF8'",
    "26000": "a connection pooler gives transactions different servers: remove prepare_threshold",
    "42P05": "a connection pooler gives transactions different servers: remove prepare_threshold",
}

#: as SQLAlchemy tells it
Version = tuple[int | str, ...] | None


def has_idle_timeout(version: Version) -> bool:
    """True if a server of this `version` may end connections that do nothing."""
    return _major(version) >= _IDLE_SESSION_TIMEOUT


def _major(version: Version) -> int:
    return int(version[0]) if version else 0


def beginning(seconds: float, *, write: bool, durable: bool, version: Version) -> Sequence[str]:
    """What a transaction begins with: its mode, and then statements.

    It ends within `seconds`. With `durable`, its commit is on the disk before it is acknowledged.
    """
    limit = min(max(int(seconds * 1000), 1), 2**31 - 1)
    # A write looks at each row as it is, and repeats nothing; a read sees one moment.
    # In small letters: whoever looks for COMMIT on the wire must not find it here.
    found = ["isolation level " + ("read committed" if write else "repeatable read read only")]
    # The last is for rows that are locked by somebody of whom nothing is heard any more.
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        found.append(f"SET LOCAL {name} = {limit}")
    if _major(version) >= _TRANSACTION_TIMEOUT:
        found.append("SET LOCAL transaction_timeout = 0")
    if not durable:
        found.append("SET LOCAL synchronous_commit = off")
    elif write:
        # Not where more is wanted than we need: remote_apply.
        found.append(
            "SELECT set_config('synchronous_commit', 'on', true)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
    return found


def is_pooled(connection: sa.Connection) -> bool:
    """True if a pooler, such as PgBouncer, stands between: it tells another process id."""
    known = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    return bool(known != connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())


def advice(connection: sa.Connection, *, pooled: bool, prepares: bool) -> list[Advice]:
    """What an administrator should know or change."""
    found: list[Advice] = []
    row = connection.exec_driver_sql(
        "SELECT current_setting('default_transaction_read_only') = 'on' OR pg_is_in_recovery(),"
        " current_setting('server_encoding'), current_setting('fsync')"
    ).one()
    if row[0]:
        found.append(Advice(f"the database refuses our mail: {REASONS['25006']}", bad=True))
    if row[1] != "UTF8":
        found.append(
            Advice(f"the encoding of the database is {row[1]}: mail with other characters fails")
        )
    if row[2] != "on":
        found.append(Advice("fsync is off: the server loses mail when its machine stops"))
    if pooled:
        found.append(
            Advice(
                "a connection pooler, such as PgBouncer, stands before PostgreSQL: workers are not "
                "told of mail, and look for it every second"
            )
        )
        if prepares:
            found.append(
                Advice(
                    "prepare_threshold is set: a pooler in transaction mode fails with it, unless "
                    "it keeps prepared statements itself",
                )
            )
    return found
