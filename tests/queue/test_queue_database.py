"""The database of a queue: what a block of `write` promises, with SQLite and with PostgreSQL."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forking import in_child

import txmail
from txmail.exceptions import ConfigurationError, QueueFull, QueueUnavailable, SchemaError

sa = pytest.importorskip("sqlalchemy")

from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.database.sqlite import wal_reset_is_fixed  # noqa: E402
from txmail.queue.schema import control, delivery, message, metadata  # noqa: E402
from txmail.queue.states import State  # noqa: E402
from txmail.secret import Secret  # noqa: E402

ROOT = Path(txmail.__file__).parents[1]
SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
MESSAGE = ("id", "batch", "kind", "message_id", "sender", "created", "size", "content")
CONTROL = ("name", "value", "actor", "changed")
SECRET = "hunter2-in-the-text"


@pytest.fixture
def drop_tables(request):
    """The URL of PostgreSQL; a queue's tables are gone before and after."""
    url = request.getfixturevalue("postgresql_url")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    metadata.drop_all(engine)
    yield url
    metadata.drop_all(engine)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "mail.db"


@pytest.fixture
def sqlite(opened, file):
    return opened(f"sqlite:///{file}")


@pytest.fixture
def postgresql(opened, drop_tables):
    with opened(drop_tables).write(prepared=False) as connection:
        metadata.create_all(connection)
    return opened(drop_tables)


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def database(request):
    return request.getfixturevalue(request.param.lower())


@pytest.fixture
def url(database, file, request):
    """The URL of `database`."""
    return (
        f"sqlite:///{file}" if database.is_in_process else request.getfixturevalue("postgresql_url")
    )


def put(connection, *names, value="x"):
    connection.execute(
        control.insert(),
        [{"name": name, "value": value, "actor": "a", "changed": 1} for name in names],
    )


def write(database, *steps, **options):
    """Do `steps`, which get the connection, in one block."""
    with database.write(**options) as connection:
        for step in steps:
            step(connection)


def putting(*names, value="x"):
    return lambda connection: put(connection, *names, value=value)


def raising(error):
    def step(connection):
        raise error

    return step


def names(database):
    with database.read() as connection:
        return sorted(connection.scalars(sa.select(control.c.name)))


def rows(ids, content=b"text"):
    return [(number, 1, "plain", "<m@x>", "", 1, len(content), content) for number in ids]


# -- transactions


def test_what_is_written_in_a_block_is_there_after_it(database):
    with database.write() as connection:
        put(connection, "a")
    assert names(database) == ["a"]


def test_a_block_that_raises_leaves_nothing_and_its_error_passes(database):
    with pytest.raises(ZeroDivisionError):
        write(database, putting("a"), raising(ZeroDivisionError()))
    assert names(database) == []


def test_an_interrupted_block_leaves_nothing(database):
    with pytest.raises(KeyboardInterrupt):
        write(database, putting("a"), raising(KeyboardInterrupt()))
    assert names(database) == []


def test_after_an_error_of_the_database_nothing_is_there_and_the_next_block_works(database):
    with pytest.raises(QueueUnavailable):
        write(database, putting("a"), putting("a"))
    with database.write() as connection:
        put(connection, "b")
    assert names(database) == ["b"]


def test_a_reader_sees_one_moment(database):
    with database.read() as reader:
        count = sa.select(sa.func.count()).select_from(control)
        assert reader.scalar(count) == 0
        with database.write() as connection:
            put(connection, "a")
        assert reader.scalar(count) == 0
    assert names(database) == ["a"]


def test_threads_write_beside_each_other(database):
    def write(number):
        for step in range(5):
            with database.write() as connection:
                put(connection, f"{number}-{step}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(names(database)) == 40


def test_a_closed_database_can_be_used_again(database):
    with database.write() as connection:
        put(connection, "a")
    database.close()
    database.close()
    assert names(database) == ["a"]


def test_closing_lets_what_is_under_way_end(database):
    with database.write() as connection:
        database.close()
        put(connection, "a")
    assert names(database) == ["a"]


def test_a_child_has_connections_of_its_own(database):
    with database.write() as connection:
        put(connection, "a")

    def work():
        with database.write() as connection:
            put(connection, "child")
        database.close()
        return names(database)

    assert in_child(work) == "['a', 'child']"
    with database.write() as connection:
        put(connection, "parent")
    assert names(database) == ["a", "child", "parent"]


def test_a_child_that_ends_leaves_the_transaction_of_its_parent_alone(database):
    with database.write() as connection:
        put(connection, "a")
        assert in_child(lambda: (names(database), database.close(), gc.collect())[0]) == "[]"
        put(connection, "b")
    assert names(database) == ["a", "b"]


# -- time


def blocked(database):
    """Wait for a lock that is held; what is raised."""
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with Database.write(database) as connection:
            if not database.is_in_process:
                connection.exec_driver_sql("LOCK TABLE txmail_control")
            entered.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert entered.wait(10)
        started = time.monotonic()
        with pytest.raises(QueueUnavailable) as caught, database.write(timeout=0.2) as connection:
            put(connection, "a")
        assert time.monotonic() - started < 5
    finally:
        leave.set()
        holder.join()
    return caught.value


def test_a_writer_waits_for_others_no_longer_than_it_may(database):
    problem = blocked(database)
    assert database.name in str(problem)
    with database.write(timeout=5) as connection:
        put(connection, "b")
    assert names(database) == ["b"]


def test_a_writer_waits_for_other_processes_no_longer_than_it_may(sqlite, file):
    sqlite.prepare()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(QueueUnavailable, match=r"locked by others.*SQLITE_BUSY"):
        write(sqlite, timeout=0.2)
    assert 0.15 < time.monotonic() - started < 5
    other.close()
    with sqlite.write():
        pass


def test_postgresql_bounds_a_statement(postgresql):
    sleep = sa.text("SELECT pg_sleep(30)")
    with pytest.raises(QueueUnavailable, match="57014"):
        write(postgresql, lambda connection: connection.execute(sleep), timeout=0.2)


def test_the_clock_is_the_stores(database):
    with database.read() as connection:
        now = database.now_ms(connection)
    assert abs(now - time.time() * 1000) < 60_000


def test_another_clock_can_be_given(opened, file):
    database = opened(f"sqlite:///{file}", clock=lambda: 12.5)
    with database.read() as connection:
        assert database.now_ms(connection) == 12_500


# -- ids and rows


def test_reserved_ids_rise_and_are_nobody_elses(database):
    with database.write() as connection:
        first = list(database.reserve(connection, message, 3))
        second = list(database.reserve(connection, message, 2))
        assert sorted(set(first + second)) == first + second
        database.insert(connection, message, MESSAGE, rows(first))
    with database.write() as connection:
        third = list(database.reserve(connection, message, 2))
    assert min(third) > max(second)


def test_no_id_is_reserved_if_none_is_needed(database):
    with database.write() as connection:
        assert list(database.reserve(connection, message, 0)) == []


def test_the_id_of_a_row_that_is_gone_is_not_given_again(database):
    with database.write() as connection:
        ids = database.reserve(connection, message, 2)
        database.insert(connection, message, MESSAGE, rows(ids))
    with database.write() as connection:
        connection.execute(message.delete())
    with database.write() as connection:
        assert min(database.reserve(connection, message, 1)) > max(ids)


def test_rows_that_get_their_ids_by_themselves_do_not_get_reserved_ones(database):
    with database.write() as connection:
        ids = database.reserve(connection, message, 5)
        inserted = connection.execute(
            message.insert(), dict(zip(MESSAGE[1:], rows([0])[0][1:], strict=True))
        )
        assert inserted.inserted_primary_key[0] > max(ids)
        database.insert(connection, message, MESSAGE, rows(ids))


def test_threads_reserve_different_ids(database):
    def reserve(_):
        with database.write() as connection:
            ids = database.reserve(connection, message, 20)
            database.insert(connection, message, MESSAGE, rows(ids))
            return list(ids)

    with ThreadPoolExecutor(4) as pool:
        found = [number for ids in pool.map(reserve, range(8)) for number in ids]
    assert len(set(found)) == 160


@pytest.mark.parametrize("count", [0, 1, 2, 5, 100, 5001])
def test_any_number_of_rows_is_inserted(database, count):
    with database.write() as connection:
        ids = database.reserve(connection, message, count)
        database.insert(connection, message, MESSAGE, iter(rows(ids)))
        found = connection.scalar(sa.select(sa.func.count()).select_from(message))
    assert found == count


@pytest.mark.parametrize("count", [1, 2, 50])
def test_values_come_back_as_they_were(database, count):
    awkward = "tab\t newline\n backslash \\N \\. quote' \" 100% 🐝"
    octets = bytes(range(256)) + b"\\x00"
    with database.write() as connection:
        ids = database.reserve(connection, message, count)
        database.insert(
            connection,
            message,
            (*MESSAGE, "idempotency_key"),
            [(number, 1, "plain", awkward, "", 2**62, 0, octets, None) for number in ids],
        )
        ids = database.reserve(connection, delivery, count)
        columns = ("id", "message", "recipient", "state", "priority", "attempts", "begun")
        database.insert(
            connection,
            delivery,
            (*columns, "duplicate", "changed"),
            [(number, 1, "ann@example.com", State.READY, 1, 0, 0, 0, 1) for number in ids],
        )
    with database.read() as connection:
        for row in connection.execute(sa.select(message)):
            assert (row.message_id, row.content, row.created) == (awkward, octets, 2**62)
            assert row.idempotency_key is None
        assert set(connection.scalars(sa.select(delivery.c.state))) == {"ready"}


# -- errors


def everything(error):
    """What a log could show of it."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))


@pytest.mark.parametrize("count", [1, 50])
def test_errors_do_not_show_what_was_to_be_written(database, count):
    def twice(connection):
        ids = list(database.reserve(connection, message, count))
        database.insert(connection, message, MESSAGE, rows([*ids, ids[0]], SECRET.encode()))

    with pytest.raises(QueueUnavailable) as caught:
        write(database, twice)
    text = everything(caught.value)
    assert SECRET not in text
    assert SECRET.encode().hex() not in text
    assert "SQLITE_CONSTRAINT" in text or "23505" in text


def test_errors_of_statements_do_not_show_their_parameters(database):
    with database.write() as connection:
        put(connection, SECRET)
    with pytest.raises(QueueUnavailable) as caught, database.write() as connection:
        put(connection, SECRET, value=SECRET)
    assert SECRET not in everything(caught.value)


def test_text_that_the_database_cannot_hold_is_an_error_that_does_not_show_it(postgresql):
    with pytest.raises(QueueUnavailable) as caught, postgresql.write() as connection:
        put(connection, f"{SECRET}\0")
    assert SECRET not in everything(caught.value)


def test_a_missing_table_is_an_error_of_the_schema(database):
    with pytest.raises(SchemaError), database.write() as connection:
        connection.exec_driver_sql("SELECT * FROM txmail_of_a_later_version")


def test_a_missing_column_is_an_error_of_the_schema(database):
    with pytest.raises(SchemaError), database.write() as connection:
        connection.exec_driver_sql("SELECT of_a_later_version FROM txmail_message")


def test_wrong_uses_of_sqlalchemy_pass(database):
    with pytest.raises(sa.exc.ArgumentError), database.write() as connection:
        connection.execute(sa.select(message).where("nonsense"))


# -- an engine of the application


@pytest.fixture
def engine(database, url):
    database.prepare()
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def test_ids_are_reserved_and_rows_inserted_in_a_transaction_of_the_application(database, engine):
    theirs = Database.of(engine)
    with engine.connect() as connection:
        transaction = connection.begin()
        theirs.prepare(connection)
        ids = theirs.reserve(connection, message, 7)
        theirs.insert(connection, message, MESSAGE, rows(ids))
        ids = theirs.reserve(connection, delivery, 1)
        assert list(theirs.reserve(connection, delivery, 1)) != list(ids)
        transaction.rollback()
    with engine.begin() as connection:
        ids = theirs.reserve(connection, message, 7)
        theirs.insert(connection, message, MESSAGE, rows(ids))
    with database.read() as connection:
        assert sorted(connection.scalars(sa.select(message.c.id))) == list(ids)


def test_rows_alone_open_a_transaction_of_the_application(database, engine):
    theirs = Database.of(engine)
    with engine.connect() as connection:
        theirs.insert(connection, message, MESSAGE, rows(range(1, 11)))
        assert connection.in_transaction()
        connection.commit()
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(message)) == 10


def test_our_own_transactions_work_on_the_applications_engine(database, engine):
    theirs = Database.of(engine)
    with theirs.write() as connection:
        put(connection, "a")
    with pytest.raises(QueueUnavailable):
        write(theirs, putting("b"), putting("b"))
    with pytest.raises(ZeroDivisionError):
        write(theirs, putting("c"), raising(ZeroDivisionError()))
    theirs.close()
    assert names(theirs) == names(database) == ["a"]


def test_errors_in_a_session_of_the_application_are_ours(database, engine):
    theirs = Database.of(engine)
    with engine.connect() as connection:
        put(connection, SECRET)
        with pytest.raises(QueueUnavailable) as caught, theirs.errors():
            put(connection, SECRET)
        assert SECRET not in everything(caught.value)


def test_the_applications_tables_are_not_made_for_it(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db")
    with pytest.raises(SchemaError, match="txmail db init"):
        Database.of(engine).prepare()
    engine.dispose()


def test_an_engine_can_be_adopted_later(database, engine):
    theirs = Database.of()
    assert "application" in theirs.name
    with pytest.raises(ConfigurationError, match="engine"), theirs.read():
        pass
    theirs.adopt(engine)
    theirs.adopt(sa.create_engine("sqlite://", poolclass=sa.NullPool))
    assert theirs.is_in_process == database.is_in_process
    assert names(theirs) == []


def test_nothing_is_set_on_the_applications_connections(sqlite, file):
    sqlite.prepare()
    engine = sa.create_engine(f"sqlite:///{file}", poolclass=sa.QueuePool)
    pragmas = ("synchronous", "busy_timeout", "foreign_keys", "wal_autocheckpoint", "mmap_size")

    def state():
        with engine.connect() as connection:
            return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]

    before = state()
    with Database.of(engine).write(durable=False, timeout=1) as connection:
        put(connection, "a")
    assert state() == before
    engine.dispose()


def test_an_engine_that_shares_its_connection_is_refused():
    with pytest.raises(ConfigurationError, match="one connection"):
        Database.of(sa.create_engine("sqlite://"))


def test_an_engine_that_commits_by_itself_is_refused(database, url):
    database.prepare()
    if database.is_in_process:
        if sys.version_info < (3, 12):
            pytest.skip("Python 3.12 has this mode of SQLite")
        engine = sa.create_engine(url, connect_args={"autocommit": True})
    else:
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with pytest.raises(ConfigurationError, match="transactions"):
        write(Database.of(engine), putting("a"))
    engine.dispose()
    assert names(database) == []


# -- URLs


def test_the_name_has_no_password(opened):
    database = opened(f"postgresql://user:{SECRET}@db.example.com:5433/mail?password={SECRET}")
    assert database.name == "postgresql://db.example.com:5433/mail"
    assert SECRET not in repr(database) + repr(vars(database))


def test_a_url_may_be_a_secret(opened, file, monkeypatch):
    monkeypatch.setenv("QUEUE", f"sqlite:///{file}")
    database = opened(Secret(source="env:QUEUE"))
    assert database.name == f"sqlite:///{file}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mail.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file:mail.db?mode=memory&uri=true",
        f"sqlite:////tmp/mail.db?key={SECRET}",
        "sqlite+aiosqlite:////tmp/mail.db",
        f"mysql://user:{SECRET}@localhost/mail",
        f"postgresql+asyncpg://user:{SECRET}@localhost/mail",
        f"postgresql://user:{SECRET}@localhost:port/mail",
        f"://{SECRET}",
        None,
        5,
    ],
)
def test_a_url_that_is_not_supported_is_refused_and_not_shown(url):
    with pytest.raises(ConfigurationError, match="queue_url") as caught:
        Database.from_url(url)
    assert SECRET not in everything(caught.value)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    ("missing", "url", "extra"),
    [
        ("sqlalchemy", "sqlite:////tmp/x", "txmail[queue]"),
        ("psycopg", "postgresql://localhost/x", "txmail[postgresql]"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(missing, url, extra):
    program = f"""
import sys
sys.modules[{missing!r}] = None
from txmail.exceptions import ConfigurationError
try:
    from txmail.queue.database.database import Database
    Database.from_url({url!r})
except ConfigurationError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"pip install '{extra}'" in done.stdout


def test_a_relative_path_is_resolved_once(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database = opened("sqlite:///some%20folder/mail.db")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    database.prepare()
    assert (tmp_path / "some folder" / "mail.db").is_file()
    assert database.name == f"sqlite:///{tmp_path}/some folder/mail.db"


# -- PostgreSQL


def test_a_postgresql_that_is_not_there_is_unavailable(opened):
    database = opened(f"postgresql://user:{SECRET}@127.0.0.1:1/mail")
    with pytest.raises(QueueUnavailable, match="refused") as caught:
        database.prepare()
    assert SECRET not in everything(caught.value)


def test_a_postgresql_that_does_not_answer_is_unavailable_in_time(opened):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = opened(f"postgresql://user:{SECRET}@127.0.0.1:{port}/mail")
        started = time.monotonic()
        with pytest.raises(QueueUnavailable) as caught:
            database.prepare(timeout=1)
    assert time.monotonic() - started < 10
    assert SECRET not in everything(caught.value)


def test_a_wrong_password_is_not_shown(postgresql, drop_tables, opened):
    # The server trusts its socket; libpq refuses what no server has been asked about.
    database = opened(drop_tables.replace("/postgres?", f"/{SECRET}?", 1))
    with pytest.raises(QueueUnavailable):
        database.prepare()


def end_connections(url):
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND application_name = 'txmail'"
        )


def test_connections_that_the_server_has_ended_are_replaced_unnoticed(postgresql, drop_tables):
    def write(name):
        with postgresql.write() as connection:
            put(connection, name)
            together.wait(10)

    together = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, "abc"))
    end_connections(drop_tables)
    with postgresql.write() as connection:
        put(connection, "d")
    assert names(postgresql) == ["a", "b", "c", "d"]


def test_a_connection_that_ends_within_a_block_is_an_error(postgresql, drop_tables):
    with pytest.raises(QueueUnavailable):
        write(postgresql, putting("a"), lambda connection: end_connections(drop_tables))
    assert names(postgresql) == []


def test_a_server_that_hangs_does_not_hold_us(postgresql):
    with postgresql.read() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(QueueUnavailable), postgresql.write(timeout=0.5):
            pass
        assert time.monotonic() - started < 10
    finally:
        os.kill(pid, signal.SIGCONT)
    assert names(postgresql) == []


def test_postgresql_does_not_wait_for_its_disk_where_it_need_not(postgresql):
    def setting(**options):
        with postgresql.write(**options) as connection:
            return connection.exec_driver_sql("SHOW synchronous_commit").scalar()

    assert [setting(durable=False), setting()] == ["off", "on"]


def test_listeners_of_postgresql_are_woken_when_the_transaction_commits(postgresql, drop_tables):
    import psycopg

    url = drop_tables.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute("LISTEN txmail")
        with postgresql.write() as connection:
            postgresql.notify(connection, "txmail")
            assert list(listener.notifies(timeout=0)) == []
        assert [n.channel for n in listener.notifies(timeout=10, stop_after=1)] == ["txmail"]


def test_nobody_is_notified_by_sqlite_and_postgresql_needs_no_checkpoint(sqlite, postgresql):
    with sqlite.write() as connection:
        sqlite.notify(connection, "txmail")
    assert postgresql.checkpoint()


# -- SQLite: its log and its disk


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 49, 9), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
        ((4, 0, 0), True),
    ],
)
def test_it_is_known_which_sqlite_can_corrupt_its_log(version, fixed):
    assert wal_reset_is_fixed(version) is fixed


def test_whether_this_sqlite_can_is_told(sqlite):
    (advice,) = sqlite.advice()
    assert advice.fine is wal_reset_is_fixed(sqlite3.sqlite_version_info)


def test_connections_to_sqlite_are_set_up(sqlite):
    wanted = {"journal_mode": "wal", "foreign_keys": 1, "mmap_size": 0, "synchronous": 2}
    if not wal_reset_is_fixed():
        wanted["wal_autocheckpoint"] = 0
    with sqlite.write() as connection:
        for name, value in wanted.items():
            assert connection.exec_driver_sql(f"PRAGMA {name}").scalar() == value, name


def test_a_commit_waits_for_the_disk_unless_it_need_not(sqlite):
    def setting(**options):
        with sqlite.write(**options) as connection:
            return connection.exec_driver_sql("PRAGMA synchronous").scalar()

    assert [setting(), setting(durable=False), setting()] == [2, 1, 2]


def fill(connection, database, octets):
    ids = database.reserve(connection, message, octets // 100_000 + 1)
    database.insert(connection, message, MESSAGE, rows(ids, b"x" * 100_000))


def frames(database, file):
    """How much there is in the log that is not in the file yet, and how much there is in it."""
    other = sqlite3.connect(file)
    _, logged, moved = other.execute("PRAGMA wal_checkpoint(NOOP)").fetchone()
    other.close()
    return logged, moved


def test_a_checkpoint_moves_the_log_into_the_file(sqlite, file):
    with sqlite.write() as connection:
        fill(connection, sqlite, 1_000_000)
    before = file.stat().st_size
    assert sqlite.checkpoint()
    assert file.stat().st_size > before + 900_000


def test_a_checkpoint_does_not_wait_for_a_writer(sqlite, file):
    sqlite.prepare()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert not sqlite.checkpoint()
    assert time.monotonic() - started < 2
    other.close()
    assert sqlite.checkpoint()


def test_a_checkpoint_does_not_wait_for_our_own_writers(sqlite):
    with sqlite.write(), ThreadPoolExecutor(1) as pool:
        assert not pool.submit(sqlite.checkpoint).result(10)


def test_a_checkpoint_leaves_what_a_reader_still_needs(sqlite):
    with sqlite.write() as connection:
        put(connection, "a")
    with sqlite.read() as reader:
        assert reader.scalar(sa.select(sa.func.count()).select_from(control)) == 1
        with sqlite.write() as connection:
            put(connection, "b")
        assert not sqlite.checkpoint()
        assert reader.scalar(sa.select(sa.func.count()).select_from(control)) == 1
    assert sqlite.checkpoint()


def test_the_log_does_not_grow_without_end(sqlite, file):
    for _ in range(12):
        with sqlite.write() as connection:
            fill(connection, sqlite, 2_000_000)
    assert Path(f"{file}-wal").stat().st_size < 10_000_000


def test_a_full_database_takes_nothing_and_says_so(sqlite):
    with sqlite.write() as connection:
        put(connection, "a")

    def limit(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 10}")

    with pytest.raises(QueueFull, match="SQLITE_FULL"):
        write(sqlite, limit, lambda connection: fill(connection, sqlite, 1_000_000))
    with sqlite.write() as connection:
        put(connection, "b")
        assert connection.scalar(sa.select(sa.func.count()).select_from(message)) == 0
    assert names(sqlite) == ["a", "b"]


def test_a_full_disk_takes_nothing_and_says_so(opened, small_disk):
    database = opened(f"sqlite:///{small_disk}/mail.db")
    with database.write() as connection:
        put(connection, "a")
    with pytest.raises(QueueFull), database.write() as connection:
        fill(connection, database, 3_000_000)
    with database.write() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(message)) == 0
    assert names(database) == ["a"]
    database.close()


def test_a_disk_without_room_for_the_file_is_full(opened, small_disk):
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4096)
    database = opened(f"sqlite:///{small_disk}/mail.db")
    with pytest.raises(QueueFull):
        database.prepare()


PROGRAM = """
import os
import sys
from txmail.exceptions import QueueUnavailable
from txmail.queue.database.database import Database
from txmail.queue.schema import control

def put(name):
    with database.write() as connection:
        connection.execute(
            control.insert(), {"name": name, "value": "x", "actor": "a", "changed": 1})

database = Database.from_url(sys.argv[1])
try:
    database.prepare()
except QueueUnavailable as error:
    print("-", error)
reader = database.read()
if sys.argv[2]:
    reader.__enter__().exec_driver_sql("SELECT 1 FROM txmail_control").all()
for name in ("a", "b", "c"):
    try:
        put(name)
    except QueueUnavailable as error:
        print(name, error, flush=True)
    if name == sys.argv[2]:
        os.kill(os.getpid(), 9)
with database.read() as connection:
    found = connection.exec_driver_sql("SELECT name FROM txmail_control").scalars().all()
print("there:", *sorted(found))
database.close()
"""


def traced(file, *inject, last=""):
    """Run `PROGRAM` under strace; what it said, and its calls that wait for the disk.

    It is killed when it has written `last`, or failed to, while it is reading elsewhere.
    """
    log = file.with_suffix(".log")
    program = [os.path.realpath(sys.executable), "-B", "-c", PROGRAM, f"sqlite:///{file}", last]
    strace = ["strace", "-f", "-qq", "-o", log, "-e", "trace=fsync,fdatasync", *inject, "--"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([*strace, *program], capture_output=True, text=True, env=environment)
    if "PTRACE" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == (-signal.SIGKILL if last else 0), done.stderr
    return done.stdout.splitlines(), re.findall("(fsync|fdatasync)\\(", log.read_text())


def failing(call, number):
    """For `traced`: have a call fail the `number` th time. strace counts each call for itself."""
    return ("-e", f"inject={call}:error=EIO:when={number}")


@pytest.mark.sweep
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_commit_that_does_not_reach_the_disk_is_never_taken_for_one(tmp_path):
    said, calls = traced(tmp_path / "counted.db")
    assert said == ["there: a b c"]
    failed = set()

    def run(index):
        call, number = calls[index], calls[:index].count(calls[index]) + 1
        return traced(tmp_path / f"{index}.db", *failing(call, number))[0]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, range(len(calls))))
    for *problems, there in results:
        kept = there.split()[1:]
        assert [problem[0] for problem in problems if problem[0] in "abc"] == [
            name for name in "abc" if name not in kept
        ]
        failed.update(problem[0] for problem in problems)
    assert failed == set("-abc")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_commit_that_failed_is_not_found_in_the_log_after_a_crash(tmp_path, opened):
    said, calls = traced(tmp_path / "counted.db", last="c")
    assert said == []
    fail = failing(calls[-1], calls.count(calls[-1]))
    said, _ = traced(tmp_path / "mail.db", *fail, last="c")
    assert [problem[0] for problem in said] == ["c"]
    assert Path(f"{tmp_path}/mail.db-wal").stat().st_size > 0
    assert names(opened(f"sqlite:///{tmp_path}/mail.db")) == ["a", "b"]


def test_a_corrupt_file_is_called_that(opened, file):
    file.write_bytes(b"This is no database at all." * 1000)
    with pytest.raises(QueueUnavailable, match="corrupt"):
        opened(f"sqlite:///{file}").prepare()


# -- SQLite: its file


def modes(folder):
    return {entry.name: entry.stat().st_mode & 0o7777 for entry in folder.iterdir()}


def test_the_files_and_their_folders_are_for_us_alone_whatever_the_umask(opened, tmp_path, umask):
    umask(0)
    database = opened(f"sqlite:///{tmp_path}/one/two/mail.db")
    with database.write() as connection:
        put(connection, "a")
    assert modes(tmp_path) == {"one": 0o700}
    assert modes(tmp_path / "one") == {"two": 0o700}
    found = modes(tmp_path / "one" / "two")
    assert found == {"mail.db": 0o600, "mail.db-wal": 0o600, "mail.db-shm": 0o600}


def test_a_umask_that_keeps_us_out_does_not(opened, tmp_path, umask):
    umask(0o777)
    opened(f"sqlite:///{tmp_path}/one/mail.db").prepare()
    umask(0o022)
    assert modes(tmp_path / "one")["mail.db"] == 0o600


def test_a_file_that_others_may_read_is_made_ours_alone(opened, file):
    database = opened(f"sqlite:///{file}")
    with database.write() as connection:
        put(connection, "a")
        file.chmod(0o644)
        Path(f"{file}-wal").chmod(0o666)
        with opened(f"sqlite:///{file}").read():
            assert set(modes(file.parent).values()) == {0o600}


def test_the_mode_of_a_folder_that_is_there_is_left(opened, tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    opened(f"sqlite:///{folder}/mail.db").prepare()
    assert modes(tmp_path) == {"shared": 0o755}


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_symbolic_link_in_place_of_a_file_is_refused(opened, file, tmp_path, suffix):
    target = tmp_path / "target"
    target.write_bytes(b"")
    Path(f"{file}{suffix}").symlink_to(target)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        opened(f"sqlite:///{file}").prepare()
    assert target.read_bytes() == b""


def test_what_is_no_file_is_refused(opened, file):
    file.mkdir()
    with pytest.raises(ConfigurationError, match="not a regular file"):
        opened(f"sqlite:///{file}").prepare()


def test_a_folder_that_anybody_may_write_to_is_refused(opened, tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    for url in (f"sqlite:///{folder}/mail.db", f"sqlite:///{folder}/below/mail.db"):
        with pytest.raises(ConfigurationError, match="anybody may write"):
            opened(url).prepare()
    folder.chmod(0o1777)
    opened(f"sqlite:///{folder}/mail.db").prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
def test_a_file_that_somebody_else_has_put_there_is_refused(opened, tmp_path, suffix):
    folder = tmp_path / "sticky"
    folder.mkdir()
    folder.chmod(0o1777)
    planted = folder / f"mail.db{suffix}"
    planted.write_bytes(b"")
    os.chown(planted, 12345, 12345)
    with pytest.raises(ConfigurationError, match="another user"):
        opened(f"sqlite:///{folder}/mail.db").prepare()


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(opened, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"file/mail\.db"):
        opened(f"sqlite:///{tmp_path}/file/mail.db").prepare()
