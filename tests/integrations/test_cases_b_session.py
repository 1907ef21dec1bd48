"""A queue behind sessions, engines and drivers of every kind."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import random

import pytest
import sqlalchemy as sa
import transaction
import zope.sqlalchemy
from databases import Base, Item
from letters import letter, subjects
from queues import postgresql_database
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql import Delete, Update

from txmail import Mailer, transport_from_url
from txmail.exceptions import ConfigurationError, QueueUnavailable
from txmail.integrations.session_queue import session_queue
from txmail.integrations.sqlalchemy import SqlWitness, witness_metadata
from txmail.queue import schema
from txmail.worker import run_once


def recipients(engine):
    with engine.connect() as connection:
        rows = connection.execute(sa.select(schema.delivery.c.recipient, schema.delivery.c.state))
        return sorted(tuple(row) for row in rows)


# -- B16: which engine a session writes with


@pytest.fixture
def engines(tmp_path):
    """A leader and a follower, neither of which copies anything."""
    made = {}
    for name in ("leader", "follower"):
        engine = made[name] = sa.create_engine(
            f"sqlite:///{tmp_path}/{name}.sqlite", poolclass=sa.NullPool
        )
        for metadata in (schema.metadata, witness_metadata, Base.metadata):
            metadata.create_all(engine)
    yield made
    for engine in made.values():
        engine.dispose()


def routing(engines, tm, **options):
    """A session as SQLAlchemy's documentation has it, under "Custom Vertical Partitioning"."""

    class RoutingSession(Session):
        def get_bind(self, mapper=None, clause=None, **_):
            if self._flushing or isinstance(clause, (Update, Delete)):
                return engines["leader"]
            return engines[random.choice(["follower"])]

    session = sessionmaker(class_=RoutingSession, **options)()
    zope.sqlalchemy.register(session, transaction_manager=tm)
    return session


def enqueue(mailer, session):
    mailer.enqueue(letter("one", "a@example.com"))


def enqueue_with_a_key(mailer, session):
    mailer.enqueue(letter("one", "a@example.com"), idempotency_key="key")


def enqueue_after_reading(mailer, session):
    session.execute(sa.select(Item)).all()
    mailer.enqueue(letter("one", "a@example.com"))


def enqueue_beside_data(mailer, session):
    session.add(Item(name="order"))
    mailer.enqueue(letter("one", "a@example.com"))


def enqueue_two(mailer, session):
    mailer.enqueue(letter("one", "a@example.com"))
    mailer.transaction_manager.get().addBeforeCommitHook(
        lambda: mailer.enqueue(letter("two", "b@example.com"))
    )


def send(mailer, session):
    mailer.send(letter("one", "a@example.com"))


@pytest.mark.parametrize(
    "work",
    [
        enqueue,
        enqueue_with_a_key,
        enqueue_after_reading,
        enqueue_beside_data,
        enqueue_two,
        send,
    ],
)
def test_b16_mail_is_written_where_the_session_writes(engines, tm, server, work):
    """Kind: a write that does not say so, to a session that chooses by what it is told."""
    session = routing(engines, tm)
    queue = session_queue(session)
    mailer = Mailer(transport_from_url(server.url), queue=queue, transaction_manager=tm)
    with tm:
        work(mailer, session)
    assert queue.flush(20)
    found = recipients(engines["leader"])
    assert [recipient for recipient, _ in found][:1] == ["a@example.com"]
    assert {state for _, state in found} == {"sent" if work is send else "ready"}
    assert recipients(engines["follower"]) == []
    mailer.close()


def test_b16_a_witness_writes_where_the_session_writes(engines, tm):
    """Kind: the same, for the row that says that a transaction has committed."""
    session = routing(engines, tm)
    witness = SqlWitness(session)
    with tm:
        witness.note(tm.get(), tm, 7)
    assert str(witness.ask(7, {}).answer) == "yes"
    for name, count in (("leader", 1), ("follower", 0)):
        with engines[name].connect() as connection:
            assert connection.scalar(sa.text("SELECT count(*) FROM txmail_witness")) == count


def test_b16_a_session_without_an_engine_for_our_tables_says_what_to_add(engines, tm, server):
    """Kind: an error of a library that names none of its user's settings."""
    session = Session(binds={Item: engines["leader"]})
    zope.sqlalchemy.register(session, transaction_manager=tm)
    with pytest.raises(ConfigurationError, match=r"session: .*binds=.*schema\.delivery"):
        session_queue(session)
    mailer = Mailer(
        transport_from_url(server.url), queue=session_queue(), transaction_manager=tm
    ).bind(session=session)
    with pytest.raises(ConfigurationError, match="session"):
        mailer.enqueue(letter("one"))
    with tm, pytest.raises(ConfigurationError, match="txmail_witness"):
        SqlWitness(session).note(tm.get(), tm, 7)


def test_b16_a_session_with_binds_for_our_tables_works(engines, tm, server):
    """Kind: the way out that the error names has to be one."""
    session = Session(binds={Item: engines["follower"], schema.delivery: engines["leader"]})
    zope.sqlalchemy.register(session, transaction_manager=tm)
    mailer = Mailer(
        transport_from_url(server.url), queue=session_queue(session), transaction_manager=tm
    )
    with tm:
        session.add(Item(name="order"))
        mailer.enqueue(letter("one", "a@example.com"))
    assert recipients(engines["leader"]) == [("a@example.com", "ready")]
    mailer.close()


# -- B16: SQLite in memory, where there is one connection


class Memory:
    """An application with a database in memory."""

    def __init__(self, server, tm, **arguments):
        self.engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool, connect_args=arguments)
        for metadata in (schema.metadata, Base.metadata):
            metadata.create_all(self.engine)
        self.session = sessionmaker(self.engine)()
        zope.sqlalchemy.register(self.session, transaction_manager=tm)
        self.queue = session_queue(self.session)
        self.transport = transport_from_url(server.url)
        self.mailer = Mailer(self.transport, queue=self.queue, transaction_manager=tm)

    def items(self):
        with Session(self.engine) as session:
            return list(session.scalars(sa.select(Item.name)))


@pytest.fixture(params=[{"check_same_thread": False}, {}])
def memory(request, server, tm):
    made = Memory(server, tm, **request.param)
    yield made
    tm.abort()
    made.mailer.close()
    made.engine.dispose()


def test_b16_in_memory_mail_commits_and_rolls_back_with_the_data(memory, tm):
    """Kind: what tests of applications use."""
    memory.session.add(Item(name="no"))
    memory.mailer.enqueue(letter("no"))
    tm.abort()
    assert (memory.queue.counts(), memory.items()) == ({}, [])
    with tm:
        memory.session.add(Item(name="yes"))
        memory.mailer.enqueue(letter("yes"))
        for recipient in ("a@example.com", "b@example.com"):
            memory.mailer.enqueue(letter("key", recipient), idempotency_key="key")
    assert memory.queue.counts() == {"cancelled": 1, "ready": 2}
    assert memory.items() == ["yes"]


def test_b16_in_memory_a_look_at_the_queue_ends_no_transaction(memory, tm, monkeypatch):
    """Kind: a connection that is given back in the middle of another's transaction."""
    monkeypatch.setattr("txmail.queue.database.shared_sqlite._PATIENCE", 0.05)
    memory.session.add(Item(name="order"))
    memory.session.flush()
    assert memory.queue.counts() == {}
    assert memory.queue.database.table_version() is not None
    open_ = "the application has a transaction open"
    with pytest.raises(QueueUnavailable, match=open_), memory.queue.database.write():
        pass
    tm.commit()
    assert memory.items() == ["order"]
    assert memory.queue.resolve() == []


def test_b16_in_memory_an_error_of_ours_does_not_close_the_database(memory, tm):
    """Kind: the same connection, thrown away because of a failure."""
    with pytest.raises(LookupError), memory.queue.database.write():
        raise LookupError("something")
    with pytest.raises(QueueUnavailable), memory.queue.database.write() as connection:
        connection.execute(sa.text("nonsense"))
    with tm:
        memory.mailer.enqueue(letter("one"))
    assert memory.queue.counts() == {"ready": 1}


def test_b16_in_memory_direct_mail_and_a_worker_work(server, tm):
    """Kind: the same, for threads that take turns."""
    memory = Memory(server, tm, check_same_thread=False)
    with tm:
        memory.mailer.send(letter("direct", "a@example.com"))
        memory.mailer.enqueue(letter("queued", "b@example.com"))
    assert memory.queue.counts() == {"ready": 1, "sent": 1}
    assert run_once(memory.queue, memory.transport) == 1
    assert subjects(server) == ["direct", "queued"]
    assert memory.queue.counts() == {"sent": 2}
    memory.mailer.close()
    memory.engine.dispose()


def test_b16_in_memory_other_pools_say_which_one_is_needed(server, tm):
    """Kind: SQLAlchemy's default gives each thread an empty database of its own."""
    engine = sa.create_engine("sqlite://", poolclass=sa.SingletonThreadPool)
    with pytest.raises(ConfigurationError, match="poolclass=StaticPool"):
        session_queue(Session(engine))


# -- B17: the driver


_numbers = itertools.count()


def _rows(count):
    return [letter(f"subject {n}", f"r{n}@example.com", "x@example.com") for n in range(count)]


def _work(session, mailer, tm, commit):
    zope.sqlalchemy.register(session, transaction_manager=tm)
    bound = mailer.bind(session=session, transaction_manager=tm)
    tm.begin()
    for message in _rows(7):
        bound.enqueue(message)
    bound.enqueue(letter("key", "k@example.com"), idempotency_key="key")
    if commit:
        tm.commit()
    else:
        tm.abort()


def _fits(found):
    return len(found) == 15 and {state for _, state in found} == {"ready"}


def _needs(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def _url(request, driver):
    server_url = request.getfixturevalue("postgresql_url")
    name = f"with_{driver}_{next(_numbers)}"
    url = sa.make_url(postgresql_database(server_url, name)).set(drivername=f"postgresql+{driver}")
    if driver == "pg8000":  # which has another word for a socket
        path = f"{url.query['host']}/.s.PGSQL.{url.port or 5432}"
        return url.set(query={}), {"unix_sock": path}
    return url, {}


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("psycopg", {}),
        ("psycopg2", {}),
        pytest.param("pg8000", {}, marks=pytest.mark.sweep),
        pytest.param("psycopg2", {"paramstyle": "format"}, marks=pytest.mark.sweep),
    ],
    ids=lambda value: str(value),
)
def test_b17_any_driver_of_postgresql_writes_mail(request, server, tm, driver, options):
    """Kind: a statement in the words of one driver, given to another."""
    _needs(driver)
    url, arguments = _url(request, driver)
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=arguments, **options)
    schema.metadata.create_all(engine)
    queue = session_queue()
    mailer = Mailer(transport_from_url(server.url), queue=queue)
    _work(sessionmaker(engine)(), mailer, tm, commit=False)
    assert recipients(engine) == []
    _work(sessionmaker(engine)(), mailer, tm, commit=True)
    assert queue.flush(20)
    assert _fits(recipients(engine))
    assert run_once(queue, transport_from_url(server.url)) == 15
    assert {state for _, state in recipients(engine)} == {"sent"}
    mailer.close()
    engine.dispose()


async def _asynchronously(engine, mailer, commit):
    from sqlalchemy.ext.asyncio import AsyncSession  # it needs greenlet

    async with AsyncSession(engine) as session:
        tm = transaction.TransactionManager(explicit=True)
        await session.run_sync(_work, mailer, tm, commit)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async", "aiosqlite"])
def test_b17_a_driver_for_event_loops_writes_mail(request, tmp_path, server, driver):
    """Kind: the same; our own connections need another driver, and it is said how to name it."""
    _needs(driver.removesuffix("_async"), "greenlet")
    from sqlalchemy.ext.asyncio import create_async_engine

    if driver == "aiosqlite":
        url = sa.make_url(f"sqlite+aiosqlite:///{tmp_path}/app.sqlite")
        own = sa.create_engine(url.set(drivername="sqlite"), poolclass=sa.NullPool)
    else:
        url, _ = _url(request, driver)
        own = sa.create_engine(url.set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
    schema.metadata.create_all(own)
    queue = session_queue(engine=own)
    mailer = Mailer(transport_from_url(server.url), queue=queue)
    without = Mailer(transport_from_url(server.url), queue=session_queue())

    async def work():
        engine = create_async_engine(url, poolclass=sa.NullPool)
        await _asynchronously(engine, mailer, commit=False)
        assert recipients(own) == []
        await _asynchronously(engine, mailer, commit=True)
        with pytest.raises(ConfigurationError, match=r"mail\.queue_engine_url"):
            await _asynchronously(engine, without, commit=True)
        await engine.dispose()

    asyncio.run(work())
    assert queue.flush(20)
    assert _fits(recipients(own))
    mailer.close()
    own.dispose()


@pytest.mark.parametrize("style", ["qmark", "named"])
def test_b17_any_placeholders_of_sqlite_write_mail(tmp_path, server, tm, style):
    """Kind: the same driver, told to write its placeholders in another way."""
    engine = sa.create_engine(
        f"sqlite:///{tmp_path}/app.sqlite", paramstyle=style, poolclass=sa.NullPool
    )
    schema.metadata.create_all(engine)
    mailer = Mailer(transport_from_url(server.url), queue=session_queue())
    _work(sessionmaker(engine)(), mailer, tm, commit=True)
    assert mailer.queue is not None
    assert _fits(recipients(engine))
    mailer.close()
    engine.dispose()
