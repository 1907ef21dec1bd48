"""``txmail doctor``: what it finds, and when somebody has to be woken."""

from __future__ import annotations

import functools
import time

import pytest

sa = pytest.importorskip("sqlalchemy")

from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.process_identity import Identity, process_id  # noqa: E402
from txmail.queue.schema import batch, delivery, metadata, process, version  # noqa: E402
from txmail.queue.sql import route_state  # noqa: E402
from txmail.queue.sql.publish import Store  # noqa: E402

PASSWORD = "hunter2"


@pytest.fixture
def doctor(command):
    """Run ``txmail doctor``; what it returned and said."""
    return functools.partial(command, "doctor")


@pytest.fixture
def health(doctor, database):
    """Run ``txmail doctor --health``; its exit code, and what is bad."""

    def run(*arguments):
        code, out, error = doctor("--health", "--queue-url", database.url, *arguments)
        assert error == ""
        bad = [line.removeprefix("BAD  ") for line in out.splitlines() if line.startswith("BAD")]
        assert code == bool(bad)
        return bad

    return run


@pytest.fixture
def database(url):
    """A queue's database with its tables, and nothing in them."""
    found = Database.from_url(url)
    with found.write(prepared=False) as connection:
        metadata.create_all(connection)
    found.url = url
    yield found
    found.close()


def now():
    return int(time.time() * 1000)


def beat(database, *, age=0, **changes):
    """Write the row of a worker whose last heartbeat was `age` seconds ago; by default our own."""
    store = Store(database)
    with database.write() as connection:
        store.beat(connection, now() - age * 1000, "worker")
        if changes:
            connection.execute(
                process.update().where(process.c.id == process_id()).values(**changes)
            )


def put(database, state, *, age=0, due=True):
    """A delivery in `state`, due since `age` seconds."""
    columns = ("id", "message", "recipient", "state", "priority", "due", "attempts", "begun")
    row = (None, 1, "a@x", state, 1, now() - age * 1000 if due else None, 0, 0, 0, 1)
    with database.write() as connection:
        (number,) = database.reserve(connection, delivery, 1)
        row = (number, *row[1:])
        database.insert(connection, delivery, (*columns, "duplicate", "changed"), [row])


def test_a_queue_that_is_empty_and_worked_on_is_well(health, database):
    beat(database)
    assert health() == []


def test_mail_that_has_been_due_for_long_wakes_somebody(health, database):
    beat(database)
    put(database, "ready", age=200)
    assert health() == []
    assert health("--max-age", "3600") == []
    (bad,) = health("--max-age", "100")
    assert bad.startswith("mail has been due for 20")


def test_mail_that_nobody_has_made_ready_wakes_somebody_too(health, database):
    beat(database)
    put(database, "deferred", age=400)
    (bad,) = health()
    assert bad.startswith("mail has been due for 40")


def test_mail_for_later_wakes_nobody(health, database):
    beat(database)
    put(database, "ready", age=-86400)
    put(database, "deferred", age=-86400)
    put(database, "in_doubt", due=False)
    assert health() == []


def test_a_queue_without_a_worker_wakes_somebody_but_where_cron_has_it(health):
    assert health() == ["0 of 1 workers run: start txmail worker"]
    assert health("--workers", "0") == []


def test_a_worker_that_was_killed_does_not_count(health, database):
    other = Identity.mine()
    if not (other.boot and other.pid_namespace):
        pytest.skip("this system does not tell which processes live")
    beat(database, id="0" * 32, pid=2**22 + 1)
    assert health() == ["0 of 1 workers run: start txmail worker"]


def test_a_worker_of_another_host_counts_by_its_heartbeat(health, database):
    beat(database, host="other.example.com", boot="x")
    assert health() == []
    assert health("--workers", "2") == ["1 of 2 workers run: start txmail worker"]
    beat(database, age=120)
    assert health() == ["0 of 1 workers run: start txmail worker"]


def test_a_process_that_only_writes_mail_is_no_worker(health, database):
    with database.write() as connection:
        Store(database).beat(connection, now())
    assert health() == ["0 of 1 workers run: start txmail worker"]


def test_an_application_with_a_worker_is_one_until_that_ends(health, database):
    store = Store(database)
    with database.write() as connection:
        store.beat(connection, now())
        store.beat(connection, now(), "worker")
        store.beat(connection, now())
    assert health() == []
    with database.write() as connection:
        store.retire(connection)
    assert health() == ["0 of 1 workers run: start txmail worker"]


@pytest.mark.parametrize(
    ("state", "failures", "bad"),
    [
        ("closed", 0, []),
        ("open", 1, []),
        ("open", 6, ["route default has failed 6 times: 421 no\\x1b"]),
        ("stopped", 1, ["route default needs a person: 421 no\\x1b"]),
    ],
)
def test_a_route_that_needs_a_person_wakes_one(health, database, state, failures, bad):
    beat(database)
    with database.write() as connection:
        route_state.write(
            connection,
            "default",
            now(),
            state=state,
            until=None,
            failures=failures,
            reason="421 no\x1b",
        )
    assert health() == bad


def test_missing_tables_of_a_file_are_made_on_first_use_and_not_by_the_doctor(doctor, tmp_path):
    code, out, _ = doctor("--health", "--queue-url", f"sqlite:///{tmp_path}/mail.db")
    assert code == 0
    assert "makes them on first use" in out
    assert list(tmp_path.iterdir()) == []


def test_tables_of_another_version_are_bad(health, database):
    with database.write() as connection:
        connection.execute(version.update().values(version_num="0000"))
    (bad,) = health()
    assert "txmail db upgrade" in bad


def test_a_database_that_cannot_be_reached_is_bad(doctor):
    url = f"postgresql://app:{PASSWORD}@127.0.0.1:1/mail"
    code, out, error = doctor("--health", "--queue-url", url)
    assert code == 1
    assert "127.0.0.1:1" in out
    assert PASSWORD not in out + error


def test_without_health_all_is_looked_at(doctor, database, server):
    beat(database)
    put(database, "failed", due=False)
    code, out, _ = doctor("--connect", "--queue-url", database.url, "--url", server.url)
    assert code == 0
    assert f"ok   {server.url} answers" in out.splitlines()
    assert "1 failed" in out
    assert "note failed mail and mail in doubt waits for a person" in out.splitlines()
    assert ("SQLite " in out) == database.is_in_process
    assert "EHLO" in server.commands[0]
    assert not server.messages


def test_the_mail_server_is_left_alone_unless_asked_for(doctor, database, server):
    beat(database)
    assert doctor("--queue-url", database.url, "--url", server.url)[0] == 0
    assert server.connections == []


def test_a_mail_server_that_refuses_us_is_bad(doctor, server):
    server.on("connect", "554 5.7.1 not you", times=None)
    code, out, _ = doctor("--connect", "--url", server.url)
    assert code == 1
    assert "554 5.7.1 not you" in out


def test_transactions_that_nobody_knows_the_end_of_are_bad(doctor, database):
    beat(database)
    with database.write() as connection:
        rows = [(1, "unknown", 1, 1, "{}"), (2, "published", 1, 1, "{}")]
        database.insert(connection, batch, ("id", "state", "created", "changed", "witnesses"), rows)
    code, out, _ = doctor("--queue-url", database.url, "--url", "memory:")
    assert code == 1
    assert "BAD  1 transaction(s)" in out


def test_what_is_missing_is_advice_or_said(doctor, tmp_path):
    ini = tmp_path / "app.ini"
    ini.write_text("[app:main]\nmail.url = memory:\n")
    code, out, _ = doctor("-c", str(ini))
    assert code == 0
    assert "note there is no queue" in out
    assert "note default_sender is not set" in out
    ini.write_text("[app:main]\nmail.url = memory:\nmail.queue_url = session:\n")
    code, out, _ = doctor("-c", str(ini))
    assert code == 0
    assert "--queue-url" in out


@pytest.mark.parametrize("arguments", [[], ["--health"]])
def test_without_settings_it_does_not_guess(doctor, arguments):
    code, out, error = doctor(*arguments)
    assert (code, out) == (2, "")
    assert "url" in error


def test_a_setting_that_is_wrong_is_named_and_not_shown(doctor, tmp_path):
    ini = tmp_path / "app.ini"
    ini.write_text(f"[app:main]\nmail.url = memory:\nmail.tls = {PASSWORD}\n")
    code, out, error = doctor("-c", str(ini))
    assert (code, out) == (2, "")
    assert "mail.tls" in error
    assert PASSWORD not in error
