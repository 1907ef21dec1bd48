"""The tables of a queue: made twice the same, brought up to date, found by their indexes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from thin import one_in

import txmail
from txmail.exceptions import QueueUnavailable, SchemaError

sa = pytest.importorskip("sqlalchemy")
pytest.importorskip("alembic")

from alembic.autogenerate import compare_metadata  # noqa: E402
from alembic.migration import MigrationContext  # noqa: E402

from txmail.queue import schema  # noqa: E402
from txmail.queue.database import upgrade, version  # noqa: E402
from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.sql import claim, leases, parked, schedule  # noqa: E402
from txmail.queue.sql.round_robin import RoundRobin  # noqa: E402

ROOT = Path(txmail.__file__).parents[1]
#: The version after ours.
NEXT = f"{int(schema.VERSION) + 1:04}"


@pytest.fixture
def database(opened, url):
    return opened(url)


def drop_tables(database):
    with database.write(prepared=False) as connection:
        schema.metadata.drop_all(connection)
    database.close()


def described(database):
    """All that the database says about the tables, in its own words.

    SQLite repeats what it was told, and puts other spaces around a column that was added.
    """
    if database.is_in_process:
        queries = ["SELECT name, sql FROM sqlite_master WHERE name LIKE '%txmail%'"]
    else:
        queries = [
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename LIKE 'txmail%%'",
            "SELECT table_name, column_name, ordinal_position, data_type, is_nullable,"
            " column_default, character_maximum_length FROM information_schema.columns"
            " WHERE table_name LIKE 'txmail%%'",
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid::regclass::text LIKE 'txmail%%'",
            "SELECT sequencename, data_type, max_value FROM pg_sequences"
            " WHERE sequencename LIKE 'txmail%%'",
        ]
    with database.read(prepared=False) as connection:
        return sorted(
            re.sub(r" (?=[,)])", "", " ".join(" ".join(map(str, row)).split()))
            for query in queries
            for row in connection.exec_driver_sql(query)
        )


def set_version(database, *numbers):
    with database.write(prepared=False) as connection:
        connection.execute(schema.version.delete())
        for number in numbers:
            connection.execute(schema.version.insert(), {"version_num": number})


# -- made


def test_migrations_and_metadata_make_the_same_tables(database):
    assert upgrade.init(database)
    migrated = described(database)
    drop_tables(database)
    with database.write(prepared=False) as connection:
        schema.metadata.create_all(connection)
    assert described(database) == migrated
    assert len(migrated) > len(schema.metadata.tables) * 2


def test_alembic_finds_no_difference_between_migrations_and_metadata(database):
    upgrade.init(database)
    with database.read() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, parents: (
                    # Others may have left tables of an application there, a witness's too.
                    kind != "table" or name in schema.metadata.tables
                ),
            },
        )
        assert compare_metadata(context, schema.metadata) == []


def test_the_tables_say_which_version_they_are_however_they_are_made(database):
    assert database.table_version() is None
    upgrade.init(database)
    assert database.table_version().number == schema.VERSION
    drop_tables(database)
    with database.write(prepared=False) as connection:
        schema.metadata.create_all(connection)
    assert database.table_version().number == schema.VERSION
    database.prepare()


def test_init_and_upgrade_find_nothing_to_do_the_second_time(database):
    assert upgrade.init(database)
    assert not upgrade.init(database)
    assert not upgrade.upgrade(database)


def test_two_who_make_the_tables_at_once_both_succeed(opened, url):
    together = threading.Barrier(4)

    def init(_):
        database = opened(url)
        together.wait(10)
        return upgrade.init(database)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(init, range(4))) == [False, False, False, True]


def test_processes_that_use_a_new_file_at_once_all_succeed(tmp_path):
    program = (
        "import sys; from txmail.queue.database.database import Database; sys.stdin.read();"
        "database = Database.from_url(sys.argv[1]); database.prepare();"
        "print(database.table_version().number); database.close()"
    )
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path}/new/mail.db"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(4 // one_in(2))
    ]
    for process in running:
        process.stdin.close()
    for process in running:
        with process:
            assert process.stdout.read() == f"{schema.VERSION}\n"
            assert process.wait(30) == 0


# -- used


def test_sqlite_gets_its_tables_on_first_use(tmp_path, opened):
    database = opened(f"sqlite:///{tmp_path}/mail.db")
    assert database.table_version() is None
    assert list(tmp_path.iterdir()) == []
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(schema.delivery)) == 0


def test_postgresql_says_who_makes_its_tables(postgresql_url, opened):
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    schema.metadata.drop_all(engine)
    database = opened(postgresql_url)
    with pytest.raises(SchemaError, match="txmail db init"), database.write():
        pass
    upgrade.init(database)
    with database.write():
        pass
    schema.metadata.drop_all(engine)


@pytest.mark.representative(every=3)
@pytest.mark.parametrize(
    ("found", "said"),
    [
        (["0000"], "version 0000.*txmail db upgrade"),
        ([NEXT], f"version {NEXT}.*none after {schema.VERSION}"),
        (["of-a-fork"], f"version of-a-fork.*none after {schema.VERSION}"),
        ([], "txmail_version.*one row"),
        ([schema.VERSION, NEXT], "txmail_version.*one row"),
    ],
)
def test_tables_of_another_version_are_not_used(opened, url, found, said):
    database = opened(url)
    upgrade.init(database)
    set_version(database, *found)
    another = opened(url)
    with pytest.raises(SchemaError, match=said), another.write():
        pass
    with pytest.raises(SchemaError):
        upgrade.init(another)
    set_version(database, schema.VERSION)
    with another.write():
        pass


def test_the_version_is_looked_at_once(database):
    upgrade.init(database)
    database.prepare()
    set_version(database, NEXT)
    database.prepare()


def test_a_missing_table_has_the_version_looked_at_again(database):
    upgrade.init(database)
    database.prepare()
    drop_tables_elsewhere = sa.text("DROP TABLE txmail_version")
    with database.write() as connection:
        connection.execute(drop_tables_elsewhere)
        connection.exec_driver_sql("DROP TABLE txmail_audit")
    with pytest.raises(SchemaError), database.write() as connection:
        connection.execute(sa.select(schema.audit))
    if not database.is_in_process:
        with pytest.raises(SchemaError, match="txmail db init"):
            database.prepare()


# -- brought up to date

COMING = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{schema.VERSION}"


def upgrade():
    op.create_table("txmail_coming", sa.Column("x", sa.Text))
    op.add_column("txmail_control", sa.Column("reason", sa.Text))
"""


@pytest.fixture
def coming(monkeypatch, tmp_path):
    """From now on there is a next version; the file of its migration."""
    folder = tmp_path / "migrations 100%"
    shutil.copytree(upgrade._SCRIPTS, folder)
    script = folder / "versions" / "v9999_coming.py"
    script.write_text(COMING)

    def release():
        monkeypatch.setattr(upgrade, "_SCRIPTS", folder)
        monkeypatch.setattr(version, "VERSION", NEXT)
        return script

    return release


@pytest.fixture
def first(opened, url):
    """A database with the tables of our version, and a row."""
    database = opened(url)
    upgrade.init(database)
    with database.write() as connection:
        connection.execute(
            schema.control.insert(), {"name": "a", "value": "x", "actor": "a", "changed": 1}
        )
    yield opened(url)
    with database.write(prepared=False) as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS txmail_coming")


def test_older_tables_are_upgraded_with_what_is_in_them(first, coming):
    coming()
    with pytest.raises(SchemaError, match="txmail db upgrade"):
        first.prepare()
    assert upgrade.upgrade(first)
    assert first.table_version().number == NEXT
    with first.read() as connection:
        found = connection.exec_driver_sql("SELECT name, reason FROM txmail_control").all()
    assert found == [("a", None)]
    assert not upgrade.upgrade(first)


def test_each_version_since_the_first_can_be_upgraded_to_ours(monkeypatch, opened, url, tmp_path):
    folder = tmp_path / "migrations"
    shutil.copytree(upgrade._SCRIPTS, folder)
    scripts = sorted((folder / "versions").glob("v*.py"))
    for script in scripts[1:]:
        script.unlink()
    old = opened(url)
    with monkeypatch.context() as then:
        then.setattr(upgrade, "_SCRIPTS", folder)
        then.setattr(version, "VERSION", "0001")
        upgrade.init(old)
        with old.write() as connection:
            connection.execute(
                schema.control.insert(), {"name": "a", "value": "x", "actor": "a", "changed": 1}
            )
    new = opened(url)
    with pytest.raises(SchemaError, match=r"0001.*txmail db upgrade"):
        new.prepare()
    assert upgrade.upgrade(new)
    with new.read() as connection:
        assert connection.execute(sa.select(schema.control.c.value)).scalar_one() == "x"
    upgraded = described(new)
    drop_tables(new)
    upgrade.init(new)
    assert described(new) == upgraded
    assert len(scripts) == int(schema.VERSION)


def test_an_upgrade_that_fails_changes_nothing(first, coming):
    coming().write_text(COMING + "    op.execute('INSERT INTO txmail_nowhere VALUES (1)')\n")
    before = described(first)
    with pytest.raises(SchemaError):
        upgrade.upgrade(first)
    assert first.table_version().number == schema.VERSION
    assert described(first) == before


def test_two_upgrades_at_once_are_one(first, coming, opened, url):
    coming()
    together = threading.Barrier(3)

    def run(_):
        database = opened(url)
        together.wait(10)
        return upgrade.upgrade(database)

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(run, range(3))) == [False, False, True]
    assert first.table_version().number == NEXT


def test_an_upgrade_waits_for_another_process_and_says_so_if_it_takes_too_long(first, opened, url):
    other = opened(url)
    with other.write() as connection:
        other.lock_schema(connection)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(upgrade.upgrade, first, timeout=0.2)
            with pytest.raises(QueueUnavailable):
                done.result(30)


def test_there_is_nothing_to_upgrade_without_tables(database):
    with pytest.raises(SchemaError, match="txmail db init"):
        upgrade.upgrade(database)


def test_a_version_without_a_way_to_ours_is_an_error_that_says_so(first):
    set_version(first, "0000")
    with pytest.raises(SchemaError, match="0000"):
        upgrade.upgrade(first)


# -- found

D = schema.delivery.c
B = schema.batch.c
QUERIES = {
    "ix_txmail_delivery_ready": sa.select(D.id)
    .where(schema.IS_READY, D.priority == 1, D.due <= 10)
    .order_by(D.due, D.id)
    .limit(64),
    "ix_txmail_delivery_parked": sa.select(D.id)
    .where(schema.IS_PARKED, D.route == "default", D.priority == 1)
    .order_by(D.due, D.id)
    .limit(64),
    "ix_txmail_delivery_later": sa.select(D.id)
    .where(schema.IS_LATER, D.due <= 10)
    .order_by(D.due, D.id)
    .limit(64),
    "ix_txmail_delivery_lease": sa.select(D.id).where(schema.IS_LEASED, D.lease < 10).limit(64),
    "ix_txmail_delivery_attention": sa.select(D.id)
    .where(schema.NEEDS_ATTENTION, D.state == "failed", D.id > 10)
    .order_by(D.id)
    .limit(64),
    "ix_txmail_delivery_message": sa.select(D.id).where(D.message == 10),
    "ix_txmail_message_batch": sa.select(schema.message.c.id).where(schema.message.c.batch == 10),
    "ix_txmail_batch_open": sa.select(B.id).where(schema.IS_OPEN, B.state == "staged"),
}
DELIVERY = (
    *("id", "message", "recipient", "state", "priority"),
    *("due", "attempts", "begun", "duplicate", "changed"),
)
BATCH = ("id", "state", "created", "changed", "witnesses")


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory):
    """Databases with much that is finished and little that is not."""
    url = request.getfixturevalue("postgresql_url")
    schema.metadata.drop_all(sa.create_engine(url, poolclass=sa.NullPool))
    databases = {
        "SQLite": Database.from_url(f"sqlite:///{tmp_path_factory.mktemp('finished')}/mail.db"),
        "PostgreSQL": Database.from_url(url),
    }
    open_states = ["ready", "deferred", "in_doubt", "sending", "failed", "held", "staged"]
    states = [each for state in open_states for each in [state, *["sent"] * 70]]
    for database in databases.values():
        upgrade.init(database)
        with database.write() as connection:
            deliveries = (
                (n, n, "ann@example.com", state, 1, n % 50, 1, 0, 0, 1)
                for n, state in enumerate(states * 400, 1)
            )
            database.insert(connection, schema.delivery, DELIVERY, deliveries)
            batches = ((n, "published" if n % 500 else "staged", 1, 1, "{}") for n in range(20_000))
            database.insert(connection, schema.batch, BATCH, batches)
            messages = ((n, n, "plain", "<m>", "", 1, 1, b"x") for n in range(20_000))
            columns = ("id", "batch", "kind", "message_id", "sender", "created", "size", "content")
            database.insert(connection, schema.message, columns, messages)
        if not database.is_in_process:
            with database.write() as connection:
                connection.exec_driver_sql("ANALYZE")
    yield databases
    for database in databases.values():
        database.close()
    schema.metadata.drop_all(sa.create_engine(url, poolclass=sa.NullPool))


@pytest.mark.sweep
@pytest.mark.parametrize("index", QUERIES)
@pytest.mark.parametrize("kind", ["SQLite", "PostgreSQL"])
def test_what_is_finished_costs_nothing(finished, kind, index):
    database = finished[kind]
    with database.read() as connection:
        compiled = QUERIES[index].compile(
            dialect=connection.dialect, compile_kwargs={"render_postcompile": True}
        )
        values = compiled.params
        parameters = (
            tuple(values[name] for name in compiled.positiontup)
            if database.is_in_process
            else values
        )
        explain = "EXPLAIN QUERY PLAN" if database.is_in_process else "EXPLAIN"
        plan = connection.exec_driver_sql(f"{explain} {compiled}", parameters).all()
    text = str(plan)
    assert index in text, text
    assert "SCAN" not in text, text
    assert "Seq Scan" not in text, text


class Undone(Exception):
    pass


def test_nothing_that_a_worker_asks_reads_what_is_finished(finished):
    """Each statement as it is run, with its parameters: SQLite plans by these."""
    database = finished["SQLite"]
    engine, asked, plans = database.engine, [], {}

    def note(connection, cursor, statement, parameters, context, many):
        asked.append((statement, parameters[0] if many else parameters))

    with contextlib.suppress(Undone), database.write() as connection:
        connection.exec_driver_sql("UPDATE txmail_delivery SET priority = 2 WHERE id % 100 = 1")
        sa.event.listen(engine, "before_cursor_execute", note)
        _ask_as_a_worker(connection)
        sa.event.remove(engine, "before_cursor_execute", note)
        for statement, parameters in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans[statement] = [row.detail for row in plan]
        raise Undone
    assert len(plans) > 10
    for statement, plan in plans.items():
        for line in plan:
            assert "USE TEMP B-TREE" not in line, (statement, plan)
            # What others are sending is not much, and may be looked through.
            if "SCAN txmail_delivery" in line:
                assert "ix_txmail_delivery_lease" in line, (statement, plan)
    assert "ix_txmail_delivery_bulk" in str(plans.values())


def _ask_as_a_worker(connection):
    schedule.wake(connection, 10)
    leases.end_leases(connection, 10, 10)
    leases.renew(connection, [1, 2], 10)
    claim.unclaim(connection, [1, 2], 10)
    parked.unpark(connection, {"default"}, 10)
    parked.is_parked(connection, "default")
    schedule.oldest_due(connection)
    sum(1 for _ in RoundRobin().others(connection, 4, 0))
    for options in ({"round_robin": RoundRobin()}, {"route": "default"}):
        claim.take(connection, token=1, now_ms=10, lease_ms=20, limit=64, **options)


@pytest.mark.parametrize("kind", ["SQLite", "PostgreSQL"])
def test_a_claim_sorts_nothing(finished, kind):
    query = QUERIES["ix_txmail_delivery_ready"]
    with finished[kind].read() as connection:
        text = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
        explain = "EXPLAIN QUERY PLAN" if kind == "SQLite" else "EXPLAIN"
        plan = str(connection.exec_driver_sql(f"{explain} {text}").all())
    assert "ix_txmail_delivery_ready" in plan
    assert "TEMP B-TREE" not in plan
    assert "Sort" not in plan
