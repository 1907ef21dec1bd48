"""The backend for PostgreSQL: a server that may be far away, and hang.

Connections are in psycopg's autocommit mode, and we begin each transaction: BEGIN and its time-outs
travel together. Errors have psycopg's names and their SQLSTATE, and not the words of the server,
which may repeat a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from ...common.per_process import PerProcess
from ...common.shown import one_line
from ...exceptions import (
    ConfigurationError,
    QueueFull,
    QueueUnavailable,
    SchemaError,
    TransientQueueUnavailable,
    TxmailError,
)
from ...secret import Censor
from . import postgresql_settings as settings
from .backend import AUTOCOMMIT, LOOK, VERSION_ROWS, Advice, CannotListen
from .constructs import IsAmong
from .inserts import chunks, insert_any, insert_statement, parameters
from .pool import KeptConnections, connect
from .postgresql_connect import connector, patience, printable
from .questions import Questions
from .socket_watchdog import Watch

#: What the URL of a queue may begin with.
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")

_RESERVE = sa.text(
    "SELECT nextval(pg_get_serial_sequence(:table, 'id')) FROM generate_series(1, :count)"
)
_NOTIFY = sa.text("SELECT pg_notify(:channel, '')")

#: Rows from which COPY is faster than a pipeline of INSERTs.
_MANY = 5
#: Held while tables are made or changed: "txmail" in ASCII, read as a number.
_SCHEMA_LOCK = 0x74786D61696C
#: Held from counting the room until the transaction ends.
_ROOM_LOCK = _SCHEMA_LOCK + 1
#: Seconds that the server gets to end a transaction by itself.
_GRACE = 1.0
#: SQLSTATEs: disk_full, out_of_memory.
_FULL = {"53100", "53200"}
#: The beginnings of texts that libpq and psycopg make themselves.
_ABOUT_CONNECTING = (
    "connection ",
    "consuming input failed",
    "sending query",
    "failed to resolve host",
    "could not translate host name",
    "could not match ",
)
#: The class of SQLSTATEs for conflicts between transactions: another try may succeed.
_CONFLICT = "40"
#: SQLSTATEs: undefined_table, undefined_column, invalid_schema_name.
_MISSING = {"42P01", "42703", "3F000"}


@compiles(IsAmong, "postgresql")
def _any(element: IsAmong, compiler: Any, **options: Any) -> str:
    """Make an array of what the query finds.

    The query may run once for each row when it stands behind IN, above all while the statistics say
    that there are hardly any rows. If it locks rows and skips locked ones, a second run would skip
    what the first has locked, and find more than its limit.
    """
    column, some = element.clauses
    text: str = compiler.process(column == sa.any_(sa.func.array(some)), **options)
    return text


def _driver_errors() -> tuple[type[BaseException], ...]:
    try:
        import psycopg
    except ImportError:  # also if there is no libpq
        return ()
    return (psycopg.Error,)


class PostgresqlQuestions(Questions):
    """See `Questions`."""

    def connect(self, engine: sa.Engine) -> sa.Connection:
        # At other levels it would not see what is committed while it waits.
        return engine.connect().execution_options(isolation_level="READ COMMITTED")

    def bound_waiting(self, connection: sa.Connection, timeout_ms: int) -> None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {timeout_ms}")

    def is_missing(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", "") == "42P01"  # undefined_table

    def undecided(self, error: BaseException) -> str:
        if getattr(error, "sqlstate", "") == "55P03":  # lock_not_available
            return (
                "still undecided: the transaction is neither committed nor rolled back "
                "(if it is a two-phase one, pg_prepared_xacts has it)"
            )
        return ""


class Postgresql:
    """PostgreSQL: the server at `url`, or the `engine` of the application."""

    one_writer = False
    is_in_process = False
    is_file = False
    is_shared = False
    clock_is_local = False
    notifies = True
    creates = False
    tables_place = " in its search_path"

    def __init__(
        self,
        url: sa.URL | None = None,
        *,
        field: str = "",
        engine: sa.Engine | None = None,
    ) -> None:
        self.errors = _driver_errors()
        self._engine = engine
        self._censor = Censor()
        self._watches = PerProcess(Watch)
        if engine is not None:
            self.name = printable(engine.url)
            return
        assert url is not None
        self.name = printable(url)
        for secret in (url.password, url.query.get("password"), url.query.get("sslpassword")):
            if isinstance(secret, str) and secret:
                self._censor.hide(secret)
        self._connect = connector(url, field, self.translated)

    def exists(self) -> bool:
        return True

    # -- connections

    def engine(self) -> sa.Engine:
        if self._engine is not None:
            return self._engine
        return sa.create_engine(
            "postgresql+psycopg://",
            # A transaction that has voted must not wait for others here.
            pool=KeptConnections(self._connect),
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            use_native_hstore=False,  # asks the server at each connection
        )

    def looking(self) -> sa.Engine | None:
        return None  # reading changes nothing

    def begin_looking(self, connection: sa.Connection, seconds: float) -> None:
        raise AssertionError("there is no engine for that")

    def connect(self, engine: sa.Engine, seconds: float) -> sa.Connection:
        with patience(seconds):
            return connect(engine, seconds)

    def check_place(self) -> None:
        """Nothing: none is made."""

    # -- transactions

    def begin(
        self, connection: sa.Connection, seconds: float, *, write: bool, durable: bool
    ) -> None:
        version = connection.dialect.server_version_info
        first, *others = settings.beginning(seconds, write=write, durable=durable, version=version)
        driver: Any = connection.connection.dbapi_connection
        if self._engine is not None:
            if getattr(driver, "autocommit", None) is True:
                raise ConfigurationError(AUTOCOMMIT, field="engine")
            statements = (f"SET TRANSACTION {first}", *others)
            if _is_psycopg(connection):
                driver.execute("; ".join(statements), prepare=False)
                return
            for statement in statements:
                connection.exec_driver_sql(statement)
            return
        driver.execute("; ".join((f"BEGIN {first}", *others)), prepare=False)

    def watch(self, key: object, connection: sa.Connection, seconds: float) -> None:
        driver: Any = connection.connection.dbapi_connection
        if hasattr(driver, "pgconn"):  # an application's may be another
            self._watches.get().begin(key, lambda: int(driver.pgconn.socket), seconds + _GRACE)

    def unwatch(self, key: object) -> None:
        watch = self._watches.known()
        if watch is not None:
            watch.end(key)

    def drop(self, driver: Any) -> None:
        # No ROLLBACK: the driver may be in the middle of waiting for something else.
        with suppress(Exception):
            driver.close()

    def is_open(self, driver: Any) -> bool:
        status = getattr(getattr(driver, "info", None), "transaction_status", 0)
        return bool(status != 0)  # 0 is IDLE; an application's driver may be another

    def differs(self, connection: sa.Connection) -> bool:
        return False  # dropping a database ends its connections

    def check_same(self, connection: sa.Connection) -> None:
        """Nothing: a connection leads to one store."""

    def changed(self, connection: sa.Connection) -> Callable[[], object]:
        raise AssertionError("it never is")

    def store(self) -> object:
        return None

    def permit_new(self) -> None:
        """Nothing: none is made."""

    def is_lost(self, connection: sa.Connection) -> bool:
        if connection.invalidated:  # as SQLAlchemy has found
            return True
        return bool(getattr(connection.connection.dbapi_connection, "closed", False))

    def committed(self, engine: sa.Engine) -> None:
        """Nothing: the server looks after its log."""

    def keep_room(self, connection: sa.Connection) -> None:
        """Nothing: the server's disk is not ours to keep room on."""

    def give_room(self, driver: Any, error: BaseException) -> None:
        """Nothing."""

    def failed(self, engine: sa.Engine, error: BaseException) -> None:
        """Nothing: what the server did not commit is not there."""

    def checkpoint(self, engine: sa.Engine, seconds: float) -> bool:
        return True

    # -- what is asked of it

    def clock(self, connection: sa.Connection) -> float:
        found = connection.exec_driver_sql(
            # Whole numbers: how exact others are is a setting, extra_float_digits.
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        )
        return int(found.scalar_one()) / 1e6

    def tables(self, connection: sa.Connection) -> bool:
        found = connection.exec_driver_sql("SELECT to_regclass('txmail_version') IS NOT NULL")
        return bool(found.scalar_one())

    look_interval = LOOK

    def version_rows(self, connection: sa.Connection) -> Sequence[tuple[Any, ...]]:
        return [tuple(row) for row in connection.exec_driver_sql(VERSION_ROWS)]

    def lock_schema(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")

    def lock_room(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ROOM_LOCK})")

    def reserve(self, connection: sa.Connection, table: sa.Table, count: int) -> Sequence[int]:
        found = connection.execute(_RESERVE, {"table": table.fullname, "count": count})
        return sorted(found.scalars())

    def insert(
        self,
        connection: sa.Connection,
        table: sa.Table,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
    ) -> None:
        for some in chunks(rows):
            if not _is_psycopg(connection):
                insert_any(connection, table, columns, some)
            elif len(some) >= _MANY:
                _copy(connection, table, columns, some)
            else:
                statement = insert_statement(connection, table, columns, "%s")
                connection.exec_driver_sql(statement, parameters(some))

    def notify(self, connection: sa.Connection, channel: str) -> None:
        connection.execute(_NOTIFY, {"channel": channel})

    def listen(
        self, connection: sa.Connection, channel: str, wait: Callable[[int | None], object]
    ) -> Iterator[bool]:
        if not _is_psycopg(connection):
            raise CannotListen("only the driver psycopg can listen for mail")
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        driver: Any = connection.connection.dbapi_connection
        if settings.is_pooled(connection):
            raise CannotListen("a connection pooler, such as PgBouncer, does not pass on LISTEN")
        if settings.has_idle_timeout(connection.dialect.server_version_info):
            driver.execute("SET idle_session_timeout = 0")
        driver.execute(f"LISTEN {channel}")
        yield True  # nobody has heard of mail that came before
        while True:
            wait(driver.fileno())
            yield bool(list(driver.notifies(timeout=0, stop_after=1)))

    def advice(self, read: Callable[[], AbstractContextManager[sa.Connection]]) -> Sequence[Advice]:
        with read() as connection:
            pooled = _is_psycopg(connection) and settings.is_pooled(connection)
            driver: Any = connection.connection.dbapi_connection
            prepares = getattr(driver, "prepare_threshold", None) is not None
            return settings.advice(connection, pooled=pooled, prepares=prepares)

    def translated(self, error: BaseException) -> TxmailError:
        state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        kind = type(error).__name__
        if not state:
            said = self._censor.clean(str(error).encode("utf-8", "replace")).decode("utf-8")
            reason = one_line(said) if _is_about_connecting(error) else kind
            return QueueUnavailable(f"{self.name}: {reason}")
        what = f"{self.name}: {kind} (SQLSTATE {state})"
        if state in settings.REASONS:
            what = f"{what}: {settings.REASONS[state]}"
        if state in _FULL:
            return QueueFull(f"{self.name}: the disk or the queue is full: {kind} ({state})")
        if state.startswith(_CONFLICT):
            return TransientQueueUnavailable(what)
        if state in _MISSING:
            return SchemaError(what)
        if state == "XX001" or state == "XX002":
            return QueueUnavailable(f"{what}: the database is corrupt")
        return QueueUnavailable(what)


def _is_psycopg(connection: sa.Connection) -> bool:
    """Whether its driver is psycopg, and not the variant for event loops."""
    return connection.dialect.driver == "psycopg" and not connection.dialect.is_async


def _copy(
    connection: sa.Connection, table: sa.Table, columns: Sequence[str], rows: list[Sequence[Any]]
) -> None:
    if not connection.in_transaction():
        connection.begin()
    quote = connection.dialect.identifier_preparer
    names = ", ".join(quote.quote(name) for name in columns)
    driver: Any = connection.connection.dbapi_connection
    with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY {quote.format_table(table)} ({names}) FROM STDIN") as copy,
    ):
        for row in rows:
            copy.write_row(row)


def _is_about_connecting(error: BaseException) -> bool:
    """Whether its text comes from libpq, and not from a statement with mail in it."""
    return str(error).startswith(_ABOUT_CONNECTING)
