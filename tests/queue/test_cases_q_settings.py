"""Q5: what an administrator may have set for a database or a role of PostgreSQL."""

from __future__ import annotations

import itertools

import pytest
import transaction
from commits import note
from workers import commit_many

sa = pytest.importorskip("sqlalchemy")

from txmail import Mailer, transport_from_url  # noqa: E402
from txmail.cli import main  # noqa: E402
from txmail.envelope import Envelope  # noqa: E402
from txmail.exceptions import QueueUnavailable, SchemaError  # noqa: E402
from txmail.queue.database import upgrade  # noqa: E402
from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.database.named_engine import engine_of_url  # noqa: E402
from txmail.queue.queue import Queue  # noqa: E402
from txmail.secret import Secret  # noqa: E402
from txmail.worker import run_once  # noqa: E402

#: What mail gets through unharmed.
HARMLESS = {
    "default_transaction_isolation": ["serializable", "repeatable read", "read uncommitted"],
    "default_transaction_deferrable": ["on"],
    "lock_timeout": ["1ms"],
    "statement_timeout": ["200ms"],
    "idle_in_transaction_session_timeout": ["200ms"],
    "idle_session_timeout": ["200ms"],
    "transaction_timeout": ["200ms"],
    "search_path": ["other", "other, public"],
    "timezone": ["Pacific/Apia", "Asia/Kathmandu"],
    "DateStyle": ["German, DMY"],
    "standard_conforming_strings": ["off"],
    "client_encoding": ["LATIN1", "SQL_ASCII", "EUC_JP"],
    "synchronous_commit": ["off", "local", "remote_apply"],
    "extra_float_digits": ["-15", "0"],
    "bytea_output": ["escape"],
}
ALL = [(name, value) for name, values in HARMLESS.items() for value in values]
_numbers = itertools.count()


@pytest.fixture
def place(postgresql_url):
    """A new database with an owner of its own; its URL, and a function that sets things there."""
    number = next(_numbers)
    role, database = f"owner{number}", f"settings{number}"
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        run = connection.exec_driver_sql
        run(f"CREATE ROLE {role} LOGIN")
        run(f"CREATE DATABASE {database} OWNER {role}")
        made = sa.make_url(postgresql_url).set(username=role, database=database)
        inside = sa.create_engine(made, poolclass=sa.NullPool)
        with inside.begin() as other:
            other.exec_driver_sql("CREATE SCHEMA other")

        def change(where, name, value):
            target = f"ROLE {role}" if where == "role" else f"DATABASE {database}"
            value = value if name == "search_path" else f"'{value}'"
            run(f"ALTER {target} SET {name} = {value}")

        yield made.render_as_string(hide_password=False), change
        run(f"DROP DATABASE {database} WITH (FORCE)")
        run(f"DROP ROLE {role}")
    engine.dispose()


def queue_at(url, kind="own"):
    if kind == "own":
        return Queue(url)
    return Queue(Database.of(make=engine_of_url(Secret(url), "queue_engine_url")))


def works(url, kind, *, slowly=False):
    """Mail goes through from the making of the tables to the worker."""
    queue = queue_at(url, kind)
    try:
        upgrade.init(queue.database)
        if slowly:
            with queue.database.write() as connection:
                connection.exec_driver_sql("SELECT pg_sleep(0.25)")
        tm = transaction.TransactionManager()
        mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=tm)
        mailer.enqueue(Envelope("a@example.com", ["\u65e5\u672c@example.net"], note("x").content))
        tm.commit()

        def drain():
            run_once(queue, transport_from_url("memory:"))

        assert commit_many(queue, "\\{1}'".format, threads=4, each=6, meanwhile=drain) == []
        run_once(queue, transport_from_url("memory:"), limit=500)
        assert queue.counts() == {"sent": 7, "cancelled": 18}
    finally:
        queue.close()


@pytest.mark.representative(every=16)
@pytest.mark.parametrize(("where", "kind"), [("database", "own"), ("role", "application")])
@pytest.mark.parametrize(("name", "value"), ALL)
def test_q5_a_default_of_the_administrator_harms_no_mail(place, kind, where, name, value):
    """The kind: our transactions say themselves whatever they depend on."""
    url, change = place
    change(where, name, value)
    works(url, kind, slowly=name.endswith("timeout"))


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("kind", ["own", "application"])
def test_q5_all_of_them_together(place, kind):
    url, change = place
    for name, values in HARMLESS.items():
        change("database", name, values[0])
    works(url, kind, slowly=True)


@pytest.mark.parametrize("kind", ["own", "application"])
@pytest.mark.parametrize(
    ("value", "wanted"), [("off", "on"), ("remote_apply", "remote_apply"), ("local", "local")]
)
def test_q5_what_is_acknowledged_is_on_the_disk(place, kind, value, wanted):
    url, change = place
    change("role", "synchronous_commit", value)
    queue = queue_at(url, kind)
    asked = "SELECT current_setting('synchronous_commit')"
    for durable, found in ((True, wanted), (False, "off")):
        with queue.database.write(durable=durable, prepared=False) as connection:
            assert connection.exec_driver_sql(asked).scalar_one() == found
    queue.close()


@pytest.mark.parametrize("kind", ["own", "application"])
def test_q5_each_transaction_has_its_isolation(place, kind):
    url, change = place
    change("role", "default_transaction_isolation", "serializable")
    queue = queue_at(url, kind)
    asked = "SELECT current_setting('transaction_isolation')"
    for begin, found in (
        (queue.database.write, "read committed"),
        (queue.database.read, "repeatable read"),
    ):
        with begin(prepared=False) as connection:
            assert connection.exec_driver_sql(asked).scalar_one() == found
    queue.close()


@pytest.mark.parametrize("kind", ["own", "application"])
@pytest.mark.parametrize("where", ["database", "role"])
def test_q5_a_database_that_takes_no_writes_says_so(place, where, kind, capsys):
    """What cannot work is refused, with the name of what has to be changed."""
    url, change = place
    queue = queue_at(url)
    upgrade.init(queue.database)
    queue.close()
    change(where, "default_transaction_read_only", "on")
    queue = queue_at(url, kind)
    tm = transaction.TransactionManager()
    mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=tm)
    mailer.enqueue(note("one"))
    with pytest.raises(QueueUnavailable) as caught:
        tm.commit()
    tm.abort()
    assert "default_transaction_read_only" in str(caught.value)
    queue.host.background._tasks.clear()
    queue.close()
    assert main(["doctor", "--url", "memory:", "--queue-url", url, "--workers", "0"]) == 1
    said = capsys.readouterr().out
    assert "BAD" in said
    assert "default_transaction_read_only" in said


@pytest.mark.parametrize("path", ["nowhere", "nowhere, neither"])
def test_q5_a_search_path_that_names_no_schema_says_so(place, path):
    url, change = place
    change("role", "search_path", path)
    queue = queue_at(url)
    with pytest.raises(SchemaError, match="search_path"):
        upgrade.init(queue.database)
    queue.close()


def test_q5_a_search_path_without_the_tables_says_so(place):
    url, change = place
    queue = queue_at(url)
    upgrade.init(queue.database)
    queue.close()
    change("role", "search_path", "other")
    queue = queue_at(url)
    with pytest.raises(SchemaError, match="search_path"):
        queue.counts()
    queue.close()


def test_q5_a_schema_can_be_named_in_the_url(place):
    url, _ = place
    works(url + ("&" if "?" in url else "?") + "options=-csearch_path%3Dother", "own")


def test_q5_a_right_that_is_missing_is_named(place, postgresql_url):
    url, _ = place
    queue = queue_at(url)
    upgrade.init(queue.database)
    queue.close()
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS stranger")
        connection.exec_driver_sql("CREATE ROLE stranger LOGIN")
    stranger = sa.make_url(url).set(username="stranger").render_as_string(hide_password=False)
    queue = queue_at(stranger)
    with pytest.raises(QueueUnavailable, match="GRANT"):
        queue.counts()
    queue.close()
