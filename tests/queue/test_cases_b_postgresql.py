"""B10, B11 and S13: PostgreSQL behind a pooler, and connections that cannot be made."""

from __future__ import annotations

import logging
import socket
import threading
import traceback

import pytest
import transaction
from commits import note
from pooler import pgbouncer
from secrecy import has
from workers import commit_many, wait_for

sa = pytest.importorskip("sqlalchemy")
orm = pytest.importorskip("sqlalchemy.orm")
psycopg = pytest.importorskip("psycopg")

from queues import postgresql_database  # noqa: E402

from txmail import Mailer, mailer_from_settings, transport_from_url  # noqa: E402
from txmail.cli import main  # noqa: E402
from txmail.exceptions import ConfigurationError, QueueUnavailable, TxmailError  # noqa: E402
from txmail.integrations.session_queue import session_queue  # noqa: E402
from txmail.queue.database import listener as listening  # noqa: E402
from txmail.queue.database import upgrade  # noqa: E402
from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.database.named_engine import engine_of_settings, engine_of_url  # noqa: E402
from txmail.queue.queue import Queue  # noqa: E402
from txmail.secret import Secret, Unshown  # noqa: E402
from txmail.worker import run_once  # noqa: E402

# -- B10: a pooler


@pytest.fixture(scope="module")
def pooled(postgresql_url):
    """The URL of a database with the tables of a queue, behind a real PgBouncer."""
    with pgbouncer(postgresql_database(postgresql_url, "pooled")) as url:
        queue = Queue(url)
        upgrade.init(queue.database)
        queue.close()
        yield url


@pytest.mark.parametrize("engine", [False, True], ids=["own", "application"])
def test_b10_behind_pgbouncer_every_commit_succeeds(pooled, engine):
    """The kind: transactions of one connection meet different servers."""
    if engine:
        make = engine_of_url(Secret(pooled), "queue_engine_url")
        queue = Queue(Database.of(make=make))
    else:
        queue = Queue(pooled)
    assert commit_many(queue, "{} {}".format, threads=5, each=8) == []
    assert queue.flush(20)
    run_once(queue, transport_from_url("memory:"), limit=200)
    assert set(queue.counts()) <= {"sent", "cancelled"}
    queue.close()


def test_b10_listening_is_given_up_with_one_line(pooled, caplog, monkeypatch):
    monkeypatch.setattr(listening, "AGAIN", 0.01)
    queue = Queue(pooled)
    caplog.set_level(logging.INFO, "txmail.queue")
    for _ in range(3):
        listener = threading.Event().set
        queue.subscribe(listener)
        queue.host.notifier._listening._thread.join(20)
        assert not queue.host.notifier._listening._thread.is_alive()
        queue.unsubscribe(listener)
    said = [r for r in caplog.records if "LISTEN" in r.getMessage()]
    assert len(said) == 1
    assert "PgBouncer" in said[0].getMessage()
    with queue.database.engine.connect() as connection:
        assert not connection.execute(sa.text("SELECT pg_listening_channels()")).all()
    queue.close()


def test_b10_a_server_without_a_pooler_is_listened_to(postgresql_url):
    queue = Queue(postgresql_database(postgresql_url, "direct"))
    upgrade.init(queue.database)
    other, heard = Queue(queue._url), threading.Event()
    queue.subscribe(heard.set)
    wait_for(heard.is_set, "it does not listen")
    heard.clear()
    other.host.notifier._announce()
    assert heard.wait(10)
    queue.unsubscribe(heard.set)
    queue.close()
    other.close()


@pytest.mark.parametrize("option", ["", "?prepare_threshold=3"])
def test_b10_the_doctor_says_what_stands_before_the_database(pooled, capsys, option):
    main(["doctor", "--url", "memory:", "--queue-url", pooled + option, "--workers", "0"])
    said = capsys.readouterr().out
    assert "note a connection pooler, such as PgBouncer" in said
    assert ("prepare_threshold is set" in said) is bool(option)


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("", "prepare_threshold", None),
        ("prepare_threshold=7", "prepare_threshold", 7),
        ("prepare_threshold=0", "prepare_threshold", 0),
        ("prepare_threshold=none", "prepare_threshold", None),
    ],
)
def test_b10_options_of_the_url_have_their_types(postgresql_url, option, name, value):
    query = "&" if "?" in postgresql_url else "?"
    url = postgresql_url + (query + option if option else "")
    queue = Queue(url)
    driver = queue.database.engine.raw_connection().driver_connection
    assert getattr(driver, name) == value
    queue.close()
    for make in (
        engine_of_url(Secret(url), "queue_engine_url"),
        engine_of_settings(Unshown({"sqlalchemy.url": url}), "sqlalchemy."),
    ):
        engine = make()
        assert getattr(engine.raw_connection().driver_connection, name) == value
        engine.dispose()


@pytest.fixture
def connected(monkeypatch):
    """What psycopg is told to connect with; it then fails."""
    told = []

    def connect(**options):
        told.append(options)
        raise psycopg.OperationalError("connection failed: it is a test")

    monkeypatch.setattr(psycopg, "connect", connect)
    return told


def test_b10_numbers_are_numbers_and_the_budget_bounds_the_time(connected):
    url = "postgresql://ann@db.example/x?connect_timeout=7&keepalives_idle=5&sslmode=require"
    queue = Queue(url)
    for seconds in (3.0, 30.0):
        with pytest.raises(QueueUnavailable), queue.database.read(timeout=seconds):
            pass
    assert [options["connect_timeout"] for options in connected] == [3, 7]
    assert connected[0]["keepalives_idle"] == 5
    assert connected[0]["sslmode"] == "require"
    queue.close()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("prepare_treshold=5", ["prepare_treshold", "did you mean prepare_threshold?"]),
        ("prepare_threshold=often", ["prepare_threshold", "a whole number or none"]),
        ("prepare_threshold=-1", ["prepare_threshold", "a whole number or none"]),
        ("prepare_threshold=1&prepare_threshold=2", ["prepare_threshold", "twice"]),
        ("connect_timeout=1.5", ["connect_timeout", "a whole number"]),
        ("keepalives_idle=x", ["keepalives_idle", "a whole number"]),
        ("autocommit=yes", ["autocommit"]),
        ("row_factory=x", ["row_factory"]),
        ("ssl_mode=require", ["ssl_mode", "did you mean sslmode?"]),
        ("client_encoding=latin1", ["client_encoding", "UTF8"]),
        ("host=a&host=b&port=1&port=2&port=3", ["hosts and ports"]),
    ],
)
def test_b11_an_option_that_cannot_be_is_named(query, words):
    """The kind: an error says what is wrong in the words of the user, before anything is done."""
    with pytest.raises(ConfigurationError) as caught:
        mailer_from_settings(
            {
                "mail.url": "memory:",
                "mail.queue_url": f"postgresql://ann:hunter2secret@db.example/x?{query}",
            }
        )
    said = str(caught.value)
    assert "queue_url" in said
    assert all(word in said for word in words), said
    assert leaked(caught.value, "hunter2secret") == []


# -- B11, S13: connections that cannot be made

PASSWORD = "hunter2-s3cret"


def leaked(error, secret):
    """Where a secret is in any frame's variables, ours or not, of an error and all behind it."""
    found, left, seen = [], [error], set()
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        left += [one.__cause__, one.__context__]
        shown = [str(one), repr(one), repr(vars(one))]
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if "/tests/" in frame.f_code.co_filename or "pytest" in frame.f_code.co_filename:
                continue
            for name, value in frame.f_locals.items():
                if has(repr(value), secret):
                    found.append(f"{name} in {frame.f_code.co_qualname}")
        found += [text for text in shown if has(text, secret)]
    return found


@pytest.fixture
def closing():
    """The port of a server that ends every connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


CANNOT = {
    "unknown host": (f"postgresql://ann:{PASSWORD}@no-such-host.invalid/x", "no-such-host.invalid"),
    "unknown host twice": (
        f"postgresql://ann:{PASSWORD}@/x?host=one.invalid&host=two.invalid&connect_timeout=2",
        ".invalid",
    ),
    "refused": (f"postgresql://ann:{PASSWORD}@127.0.0.1:1/x", "127.0.0.1"),
    "closes": (f"postgresql://ann:{PASSWORD}@127.0.0.1:{{port}}/x", "127.0.0.1"),
    "no socket": (f"postgresql://ann:{PASSWORD}@/x?host=/no/such/folder", "/no/such/folder"),
    "bad value": (f"postgresql://ann:{PASSWORD}@127.0.0.1:1/x?sslmode=bogus", "sslmode"),
    "password among the options": (
        f"postgresql://ann@127.0.0.1:1/x?password={PASSWORD}&sslmode=bogus",
        "sslmode",
    ),
}
WAYS = {
    "counts": lambda queue: queue.counts(),
    "write": lambda queue: queue.host._beat(),
    "commit": lambda queue: _commit(queue),
    "resolve": lambda queue: queue.resolve(),
    "init": lambda queue: upgrade.init(queue.database),
}


def _commit(queue):
    tm = transaction.TransactionManager()
    mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=tm)
    mailer.enqueue(note("ann"))
    try:
        tm.commit()
    finally:
        tm.abort()


@pytest.mark.representative(every=10)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("own", [True, False], ids=["own", "application"])
@pytest.mark.parametrize("what", CANNOT)
def test_b11_s13_a_connection_that_cannot_be_made(closing, what, own, way):
    """The kind: it says where and why, and shows no password, also not in what it suppresses."""
    url, words = CANNOT[what]
    url = url.format(port=closing)
    if own:
        queue = Queue(url)
    else:
        queue = Queue(Database.of(make=engine_of_url(Secret(url), "queue_engine_url")))
    try:
        with pytest.raises(TxmailError) as caught:
            way(queue)
    finally:
        queue.host.background._tasks.clear()
        queue.close()
    assert words in str(caught.value)
    assert leaked(caught.value, PASSWORD) == []


@pytest.mark.parametrize("option", ["", "?sslmode=bogus"])
def test_s13_a_session_that_cannot_connect_shows_no_password(option):
    zope_sqlalchemy = pytest.importorskip("zope.sqlalchemy")
    tm = transaction.TransactionManager()
    engine = sa.create_engine(f"postgresql+psycopg://ann:{PASSWORD}@127.0.0.1:1/x{option}")
    session = orm.sessionmaker(engine)()
    zope_sqlalchemy.register(session, transaction_manager=tm)
    queue = session_queue(session)
    mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=tm)
    mailer.enqueue(note("ann"))
    with pytest.raises(QueueUnavailable) as caught:
        tm.commit()
    tm.abort()
    assert leaked(caught.value, PASSWORD) == []
    queue.close()
    engine.dispose()


@pytest.mark.parametrize("write", [True, False])
def test_s13_a_statement_that_fails_shows_nothing_of_what_was_written(postgresql_url, write):
    queue = Queue(postgresql_url)
    begin = queue.database.write if write else queue.database.read
    with pytest.raises(QueueUnavailable) as caught, begin(prepared=False) as connection:
        connection.execute(sa.text("SELECT CAST(:x AS int)"), {"x": PASSWORD})
    assert leaked(caught.value, PASSWORD) == []
    queue.close()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, MemoryError, TimeoutError])
def test_s13_what_a_signal_raises_while_connecting_shows_no_password(monkeypatch, raised):
    def connect(**options):
        conninfo = str(options)
        try:
            raise ValueError(conninfo)
        except ValueError as error:
            raise raised from error

    monkeypatch.setattr(psycopg, "connect", connect)
    queue = Queue(f"postgresql://ann:{PASSWORD}@db.example/x")
    with pytest.raises(raised) as caught:
        queue.counts()
    assert leaked(caught.value, PASSWORD) == []
    queue.close()
