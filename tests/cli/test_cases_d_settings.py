"""A queue in the application's database works from the settings alone."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import sqlalchemy as sa
import transaction
import zope.sqlalchemy
from letters import letter, subjects
from queues import postgresql_database
from sqlalchemy.orm import sessionmaker
from workers import wait_for

from txmail import DummyMailer, Message, mailer_from_settings, start_worker
from txmail.cli import main
from txmail.debug import DebugMailer
from txmail.exceptions import ConfigurationError

PASSWORD = "hunter2"


class Site:
    """An application's folder: its ini file, and its database at `url`."""

    def __init__(self, folder, url, server):
        self.url = url
        self._ini = folder / "app.ini"
        self.settings = {"mail.url": server.url, "mail.queue_url": "session:"}

    def file(self, **settings):
        found = {**self.settings, **settings}
        lines = [f"{name} = {str(value).replace('%', '%%')}" for name, value in found.items()]
        self._ini.write_text("\n".join(["[app:main]", "use = egg:app", *lines]) + "\n")
        return str(self._ini)

    def enqueue(self, subject, **settings):
        """What a request does, and then the process ends."""
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        manager = transaction.TransactionManager()
        session = sessionmaker(engine)()
        zope.sqlalchemy.register(session, transaction_manager=manager)
        mailer = mailer_from_settings({**self.settings, **settings})
        with manager:
            mailer.bind(session=session, transaction_manager=manager).enqueue(letter(subject))
        mailer.close()
        engine.dispose()


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def site(request, tmp_path, server):
    if request.param == "SQLite":
        return Site(tmp_path, f"sqlite:///{tmp_path}/app.sqlite", server)
    name = f"site{abs(hash(request.node.name)) % 10**9}"
    url = postgresql_database(request.getfixturevalue("postgresql_url"), name)
    return Site(tmp_path, url, server)


@pytest.fixture
def site_file(tmp_path, server):
    return Site(tmp_path, f"sqlite:///{tmp_path}/app.sqlite", server)


@pytest.mark.parametrize(
    "named_by",
    ["sqlalchemy.url", pytest.param("mail.queue_engine_url", marks=pytest.mark.sweep)],
)
def test_d4_every_command_works_from_the_file_alone(site, named_by, server, capsys):
    """Kind: what a file says already has to be said once more, or waits for a request."""
    other = {"sqlalchemy.url": f"sqlite:////nowhere/{PASSWORD}"} if "mail" in named_by else {}
    file = site.file(**other, **{named_by: site.url, "sqlalchemy.pool_pre_ping": "true"})
    assert main(["db", "status", "-c", file]) == 1
    assert main(["db", "init", "-c", file]) == 0
    site.enqueue("one")
    assert main(["db", "status", "-c", file]) == 0
    assert capsys.readouterr().out.splitlines()[-2].split() == ["ready", "1"]
    assert main(["doctor", "--health", "--workers", "0", "-c", file]) == 0
    assert main(["worker", "--once", "-q", "-c", file]) == 0
    assert subjects(server) == ["one"]
    assert main(["db", "upgrade", "-c", file]) == 0
    capsys.readouterr()
    assert main(["doctor", "--workers", "0", "-c", file]) == 0
    out, error = capsys.readouterr()
    assert "live workers" in out
    assert PASSWORD not in out + error


def test_d4_mail_from_before_a_restart_does_not_wait_for_a_request(site, server):
    """Kind: the same, within the application."""
    assert main(["db", "init", "-c", site.file(**{"sqlalchemy.url": site.url})]) == 0
    site.enqueue("before")
    mailer = mailer_from_settings({**site.settings, "sqlalchemy.url": site.url})
    worker = start_worker(mailer)
    try:
        wait_for(lambda: subjects(server) == ["before"], "the mail")
        site.enqueue("after")
        wait_for(lambda: subjects(server) == ["before", "after"], "the next")
    finally:
        worker.stop()
        mailer.close()


@pytest.mark.parametrize(
    ("driver", "module"), [("asyncpg", "asyncpg"), ("psycopg_async", "psycopg"), ("", "psycopg")]
)
def test_d4_the_driver_of_the_application_need_not_be_one_for_threads(
    request, tmp_path, server, driver, module
):
    """Kind: a setting that is right for the application, and that a command cannot use as it is."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    server_url = request.getfixturevalue("postgresql_url")
    url = sa.make_url(postgresql_database(server_url, f"driver_{driver}"))
    url = url.set(drivername=f"postgresql+{driver}" if driver else "postgresql")
    site = Site(tmp_path, url, server)
    file = site.file(**{"sqlalchemy.url": url.render_as_string(hide_password=False)})
    assert main(["db", "init", "-c", file]) == 0


def test_d4_sqlite_with_a_driver_for_event_loops(site_file):
    """Kind: the same."""
    file = site_file.file(
        **{"sqlalchemy.url": site_file.url.replace("sqlite", "sqlite+aiosqlite", 1)}
    )
    if importlib.util.find_spec("aiosqlite") is None:
        pytest.skip("aiosqlite is not installed")
    assert main(["db", "init", "-c", file]) == 0
    assert main(["db", "status", "-c", file]) == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "--queue-url"),
        ({"sqlalchemy.url": ""}, "mail.queue_engine_url"),
        ({"sqlalchemy.url": f"mysql://u:{PASSWORD}@localhost/x"}, "sqlalchemy.url"),
        ({"sqlalchemy.url": f"nonsense {PASSWORD}"}, "sqlalchemy.url"),
        ({"sqlalchemy.url": "sqlite:///x", "sqlalchemy.pool_size": PASSWORD}, "sqlalchemy.url"),
        ({"sqlalchemy.url": f"postgresql+{PASSWORD}://x"}, "sqlalchemy.url"),
        ({"mail.queue_engine_url": f"nonsense {PASSWORD}"}, "mail.queue_engine_url"),
        ({"mail.queue_engine_url": f"oracle://u:{PASSWORD}@x"}, "mail.queue_engine_url"),
        ({"sqlalchemy.url": "sqlite://"}, "engine"),
        (
            {"mail.queue_url": f"sqlite:////{PASSWORD}.db", "mail.queue_engine_url": "sqlite:///x"},
            "mail.queue_engine_url",
        ),
    ],
)
def test_d4_what_names_no_database_is_told_by_its_name(site_file, settings, named, capsys):
    """Kind: an error that does not say what to change."""
    file = site_file.file(**settings)
    for command in (["db", "status"], ["worker", "--once"], ["doctor", "--health"]):
        assert main([*command, "-c", file]) == 2
        out, error = capsys.readouterr()
        assert named in error
        assert PASSWORD not in out + error
        assert len(error.splitlines()) == 1


def test_d4_the_engine_of_the_first_session_is_used_where_there_was_one(site_file, tm):
    """Kind: a setting that overrides what is known."""
    assert main(["db", "init", "-c", site_file.file(**{"sqlalchemy.url": site_file.url})]) == 0
    engine = sa.create_engine(site_file.url)
    session = sessionmaker(engine)()
    zope.sqlalchemy.register(session, transaction_manager=tm)
    mailer = mailer_from_settings(
        {**site_file.settings, "sqlalchemy.url": f"sqlite:////nowhere/{PASSWORD}.db"}
    )
    with tm:
        mailer.bind(session=session, transaction_manager=tm).enqueue(letter("one"))
    assert mailer.queue.counts() == {"ready": 1}
    mailer.close()
    engine.dispose()


def test_d4_statements_with_mail_in_them_stay_out_of_the_log(site_file, caplog, capsys):
    """Kind: an option of the application that shows what is not the application's."""
    file = site_file.file(**{"sqlalchemy.url": site_file.url, "sqlalchemy.echo": "true"})
    assert main(["db", "init", "-c", file]) == 0
    site_file.enqueue("a subject nobody may see")
    with caplog.at_level(logging.INFO, "sqlalchemy"):
        assert main(["worker", "--once", "-q", "-c", file]) == 0
    out, error = capsys.readouterr()
    assert "INSERT" not in out + error
    assert "nobody may see" not in caplog.text + out + error


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: DummyMailer(),
        lambda folder: DummyMailer(transactional=False),
        lambda folder: DummyMailer().bind(default_sender="a@example.com"),
        lambda folder: DummyMailer.from_settings({"mail.queue_url": "session:"}),
        lambda folder: DebugMailer(folder),
    ],
)
def test_d4_a_worker_for_a_dummy_has_nothing_to_do(make, tmp_path):
    """Kind: what an application calls at its start fails in its tests."""
    mailer = make(tmp_path)
    worker = start_worker(mailer, lease=10.0)
    assert worker.running
    worker.stop()
    worker.stop()
    assert not worker.running


def test_d4_a_worker_for_a_mailer_without_a_queue_is_refused(make_mailer):
    """Kind: a worker that would do nothing for ever."""
    with pytest.raises(ConfigurationError) as caught:
        start_worker(make_mailer())
    assert caught.value.field == "queue"


def test_d4_a_dummy_keeps_what_is_enqueued(tm):
    """Kind: the same; the outbox is a test's to look at."""
    mailer = DummyMailer(transaction_manager=tm)
    worker = start_worker(mailer)
    with tm:
        mailer.enqueue(Message("x", ["ann@example.com"], "x", sender="a@example.com"))
    worker.stop()
    assert len(mailer.queue) == 1
