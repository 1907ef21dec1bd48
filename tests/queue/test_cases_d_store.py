"""First steps with a queue: commands that only look, the application's file, folders of others."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import transaction

from txmail.cli import main

sa = pytest.importorskip("sqlalchemy")
pytest.importorskip("alembic")

from alembic.autogenerate import compare_metadata  # noqa: E402
from alembic.migration import MigrationContext  # noqa: E402

from txmail import Mailer, Message, transport_from_url  # noqa: E402
from txmail.exceptions import ConfigurationError, QueueFull  # noqa: E402
from txmail.integrations.alembic import include_object  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.queue import Queue  # noqa: E402


def prepared(file):
    database = Database.from_url(f"sqlite:///{file}")
    database.prepare()
    return database


def applications_own(file, mode="delete"):
    """A file with a table of the application, readable by its group."""
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.execute("CREATE TABLE orders (id INTEGER)")
    connection.commit()
    connection.close()
    file.chmod(0o664)


def state(folder):
    """All that can be seen of what is in a folder, but for what SQLite keeps in memory."""
    return {
        each.name: (
            each.stat().st_mode,
            each.stat().st_mtime_ns,
            hashlib.sha256(each.read_bytes()).hexdigest(),
        )
        for each in folder.iterdir()
        if not each.name.endswith("-shm")
    }


def journal_mode(file):
    with sqlite3.connect(file) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    connection.close()
    return mode


LOOKS = (["db", "status"], ["doctor", "--health", "--workers", "0"])


def closed_queue(file):
    prepared(file).close()


def open_queue(file):
    return prepared(file)


def killed_queue(file):
    """What a process leaves that was killed: its log."""
    database = prepared(file)
    os.rename(file, file.with_suffix(".x"))
    os.rename(f"{file}-wal", file.with_suffix(".x-wal"))
    database.close()
    os.rename(file.with_suffix(".x"), file)
    os.rename(file.with_suffix(".x-wal"), f"{file}-wal")
    if os.path.exists(f"{file}-shm"):
        os.unlink(f"{file}-shm")


def wal_of_the_application(file):
    applications_own(file, "wal")


KINDS = (closed_queue, open_queue, killed_queue, applications_own, wal_of_the_application)


@pytest.mark.parametrize("look", LOOKS, ids=["status", "doctor"])
@pytest.mark.parametrize("kind", KINDS)
def test_d2_who_only_looks_changes_nothing(file, kind, look, capsys):
    """Kind: a command that reports must leave what it reports on as it was."""
    database = kind(file)
    before = state(file.parent)
    assert main([*look, "--queue-url", f"sqlite:///{file}"]) == 0, capsys.readouterr()
    assert state(file.parent) == before
    if database is not None:
        database.close()


@pytest.mark.parametrize("mode", ["delete", "wal", "truncate", "persist"])
@pytest.mark.parametrize("permissions", [0o664, 0o644, 0o600])
def test_d2_a_file_with_tables_of_others_stays_as_it_is(file, mode, permissions):
    """Kind: a queue that is a guest."""
    applications_own(file, mode)
    file.chmod(permissions)
    before = journal_mode(file)
    queue = Queue(f"sqlite:///{file}")
    manager = transaction.TransactionManager()
    mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=manager)
    with manager:
        mailer.enqueue(Message("x", ["a@example.com"], "x", sender="a@example.com"))
    assert queue.counts() == {"ready": 1}
    mailer.close()
    assert file.stat().st_mode & 0o777 == permissions
    assert journal_mode(file) == before


@pytest.mark.parametrize("look", [["db", "status"], ["doctor", "--health"]])
@pytest.mark.parametrize("where", ["mail.db", "new/mail.db", "a/b/mail.db", "empty", "others"])
def test_d13_a_queue_that_is_not_there_yet_is_made_on_first_use(tmp_path, look, where, capsys):
    """Kind: nothing is wrong with what has not begun."""
    if where == "empty":
        (tmp_path / where).touch()
    if where == "others":
        applications_own(tmp_path / where)
    before = sorted(tmp_path.iterdir())
    assert main([*look, "--queue-url", f"sqlite:///{tmp_path}/{where}"]) == 0
    assert "makes them on first use" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("look", [["db", "status"], ["doctor", "--health"]])
def test_d13_a_place_where_it_could_not_be_made_is_bad(tmp_path, look, capsys):
    """Kind: what would be refused on first use is not well."""
    tmp_path.chmod(0o777)
    assert main([*look, "--queue-url", f"sqlite:///{tmp_path}/new/mail.db"]) != 0
    said = "".join(capsys.readouterr())
    assert "anybody may write" in said


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_d12_a_file_is_made_without_mknod(file, monkeypatch, umask):
    """Kind: not every system lets everybody make nodes."""

    def refused(*args, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refused, raising=False)
    before = os.umask(umask)
    try:
        prepared(file).close()
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600


def test_d12_threads_that_make_it_at_once_keep_their_locks(file):
    """Kind: closing a descriptor ends the locks that SQLite has in other threads."""
    together = threading.Barrier(4)
    database = Database.from_url(f"sqlite:///{file}")

    def write(number):
        together.wait(20)
        with database.write() as connection:
            connection.execute(
                schema.control.insert(),
                {"name": str(number), "value": "x", "actor": "a", "changed": 1},
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(schema.control)) == 4
    database.close()


@pytest.mark.parametrize(("mode", "taken"), [(0o777, False), (0o1777, True), (0o2775, True)])
@pytest.mark.parametrize("below", ["mail.db", "new/mail.db"])
def test_d11_a_folder_of_everybody_is_refused_with_the_way_out(tmp_path, mode, taken, below):
    """Kind: a refusal says what to do; what it says works."""
    tmp_path.chmod(mode)
    database = Database.from_url(f"sqlite:///{tmp_path}/{below}")
    if taken:
        database.prepare()
    else:
        with pytest.raises(ConfigurationError, match=r"chmod o-w.*chmod \+t.*emptyDir") as caught:
            database.prepare()
        assert caught.value.field == "queue_url"
        tmp_path.chmod(mode | 0o1000)
        database.prepare()
    database.close()


def difference(engine, metadata, **options):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        return [
            change[1].name
            for change in compare_metadata(context, metadata)
            if change[0] in ("remove_table", "add_table")
        ]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_d10_autogenerate_leaves_our_tables_alone(tmp_path, kind, request):
    """Kind: tables that the application's metadata does not know are not in its way."""
    from txmail.integrations.sqlalchemy import witness_metadata

    url = f"sqlite:///{tmp_path}/app.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    schema.metadata.drop_all(engine)
    schema.metadata.create_all(engine)
    witness_metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE txmailing (id INTEGER)")
    try:
        mine = sa.MetaData()
        sa.Table("orders", mine, sa.Column("id", sa.Integer))
        assert "txmail_message" in difference(engine, mine)
        found = difference(engine, mine, include_object=include_object)
        assert "orders" in found
        assert "txmailing" in found
        assert not [name for name in found if name.startswith("txmail_")]
        # Where they are the application's to make, they are compared.
        both = sa.MetaData()
        for table in schema.metadata.tables.values():
            table.to_metadata(both)
        sa.Table("txmail_new", both, sa.Column("id", sa.Integer))
        found = difference(engine, both, include_object=include_object)
        assert "txmail_new" in found
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE txmailing")
        witness_metadata.drop_all(engine)
        schema.metadata.drop_all(engine)
        engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("recipients", [1, 2])
def test_q11_a_limit_holds_for_several_threads(tmp_path, kind, recipients, request):
    """Kind: what others have staged may all commit; it takes room from the first moment."""
    url = f"sqlite:///{tmp_path}/mail.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgresql_url")
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        schema.metadata.drop_all(engine)
        schema.metadata.create_all(engine)
    queue = Queue(url, limit=10)
    queue.database.prepare()
    threads = 12
    together = threading.Barrier(threads)

    class Waits:
        """Takes part, so that all have staged before anybody publishes."""

        transaction_manager = None

        def sortKey(self):
            return "~t"

        def __getattr__(self, name):
            if name not in ("abort", "tpc_begin", "commit", "tpc_finish", "tpc_abort", "tpc_vote"):
                raise AttributeError(name)
            return lambda *args: None

    def put(number):
        manager = transaction.TransactionManager(explicit=True)
        mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=manager)
        manager.begin()
        manager.get().join(Waits())
        to = [f"{number}.{n}@example.com" for n in range(recipients)]
        mailer.enqueue(Message("x", to, "x", sender="a@example.com"))
        together.wait(30)
        try:
            manager.commit()
        except QueueFull:
            manager.abort()
            return 0
        return recipients

    with ThreadPoolExecutor(threads) as pool:
        taken = sum(pool.map(put, range(threads)))
    assert taken == 10
    assert queue.flush(20)
    assert queue.counts() == {"ready": 10}
    queue.close()
    if kind == "postgresql":
        schema.metadata.drop_all(engine)
