"""What an SQL database can say of a transaction after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa
import transaction
import zope.sqlalchemy
from databases import (
    POSTGRESQL,
    SQL_KINDS,
    SQLITE,
    TWO_PHASE,
    Failure,
    Item,
    Recorder,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from zope.interface.verify import verifyObject
from zope.sqlalchemy.datamanager import STATUS_READONLY

from txmail.exceptions import ConfigurationError, QueueUnavailable
from txmail.integrations import sqlalchemy as module
from txmail.integrations.sqlalchemy import SqlWitness, witness_metadata
from txmail.interfaces import IWitness

BATCH = 5_577_006_791_947_779_410
TABLE = witness_metadata.tables["txmail_witness"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "LOCK_TIMEOUT_MS", 100)


@pytest.fixture
def make(make_database, request):
    """Make databases that have the table."""

    def make(kind, **options):
        if kind == SQLITE:
            options.setdefault("connect_args", {"timeout": 0.1})
        database = make_database(kind, **options)
        witness_metadata.drop_all(database.engine)
        witness_metadata.create_all(database.engine)
        return database

    return make


@pytest.fixture(params=SQL_KINDS)
def sql(request, make):
    return make(request.param)


@pytest.fixture
def witness(sql):
    return SqlWitness(sql.session)


def note(witness, tm, batch=BATCH):
    noted = witness.note(tm.get(), tm, batch)
    # It is remembered in a database.
    return json.loads(json.dumps(noted))


def ask(witness, noted, batch=BATCH):
    verdict = witness.ask(batch, noted)
    assert verdict.reason.isprintable()
    return verdict.answer.value


def reason(witness, batch=BATCH):
    verdict = witness.ask(batch, {})
    assert verdict.answer == "unknown"
    return verdict.reason


def rows(database):
    with database.engine.connect() as connection:
        return dict(connection.execute(sa.select(TABLE.c.batch, TABLE.c.state)).all())


def test_it_is_a_witness(witness, tm):
    assert verifyObject(IWitness, witness)
    assert witness.name == "sql"
    witness.begin(tm.get(), BATCH)
    assert tm.get()._resources == []


@pytest.mark.parametrize("how", [lambda s: s, lambda s: lambda: s])
def test_a_transaction_that_committed_is_known(sql, tm, how):
    witness = SqlWitness(how(sql.session), name="orders")
    sql.write("a")
    noted = note(witness, tm)
    tm.commit()
    assert sql.values() == ["a"]
    assert ask(witness, noted) == "yes"
    assert ask(witness, noted) == "yes"
    # Another process has no session that it could look at.
    assert ask(SqlWitness(sql.session), noted) == "yes"
    assert rows(sql) == {BATCH: "committed"}


def test_a_scoped_session_is_asked_for_the_one_of_the_thread(sql, tm):
    sessions = scoped_session(sessionmaker(sql.engine))
    zope.sqlalchemy.register(sessions, transaction_manager=tm)
    witness = SqlWitness(sessions)
    sessions.add(Item(name="a"))
    noted = note(witness, tm)
    tm.commit()
    assert sql.values() == ["a"]
    assert ask(witness, noted) == "yes"
    sessions.remove()


def test_a_transaction_that_was_aborted_is_known(sql, witness, tm):
    sql.write("a")
    noted = note(witness, tm)
    tm.abort()
    assert ask(witness, noted) == "no"
    assert ask(witness, noted) == "no"
    assert rows(sql) == {BATCH: "aborted"}


def test_a_transaction_that_fails_when_the_database_commits_is_known(sql, witness, tm):
    noted = note(witness, tm)
    sql.break_commit()
    with pytest.raises(sa.exc.SQLAlchemyError):
        tm.commit()
    assert ask(witness, noted) == "no"


def test_a_database_that_commits_in_its_vote_has_committed_when_another_fails(sql, witness, tm):
    sql.write("a")
    noted = note(witness, tm)
    tm.get().join(Recorder("~~~", fails="vote"))
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    assert ask(witness, noted) == ("yes" if sql.values() else "no")
    assert bool(sql.values()) == (not sql.session.twophase)


def test_a_transaction_without_other_changes_is_known(sql, witness, tm):
    noted = note(witness, tm)
    tm.commit()
    assert ask(witness, noted) == "yes"


def test_a_batch_may_be_noted_again(sql, witness, tm):
    note(witness, tm)
    sql.write("a")
    noted = note(witness, tm)
    tm.get().join(Recorder("~~~", do={"commit": lambda: note(witness, tm)}))
    tm.commit()
    assert ask(witness, noted) == "yes"
    assert rows(sql) == {BATCH: "committed"}


@pytest.mark.parametrize("kind", [POSTGRESQL, TWO_PHASE])
def test_a_row_that_went_with_a_savepoint_is_written_again(make, tm, kind):
    sql = make(kind)
    witness = SqlWitness(sql.session)
    sql.write("a")
    savepoint = tm.savepoint()
    note(witness, tm)
    savepoint.rollback()
    noted = note(witness, tm)
    tm.commit()
    assert ask(witness, noted) == "yes"


def undecided(database):
    return "database is locked" if database.engine.dialect.name == "sqlite" else "still undecided"


def test_while_it_is_undecided_nobody_knows(sql, witness, tm):
    asked = []
    noted = note(witness, tm)
    sql.write("a")
    tm.get().join(Recorder("~~~", do={"commit": lambda: asked.append(reason(witness))}))
    tm.commit()
    assert undecided(sql) in asked[0]
    # The question has changed nothing.
    assert sql.values() == ["a"]
    assert ask(witness, noted) == "yes"


def test_while_it_is_prepared_nobody_knows(make, tm):
    sql = make(TWO_PHASE)
    witness = SqlWitness(sql.session)
    asked = []
    noted = note(witness, tm)
    tm.get().join(Recorder("~~~", do={"vote": lambda: asked.append(reason(witness))}))
    tm.commit()
    assert "pg_prepared_xacts" in asked[0]
    assert ask(witness, noted) == "yes"


def test_who_was_taken_for_dead_cannot_commit(sql, witness, tm):
    assert ask(witness, {}) == "no"
    sql.write("a")
    with pytest.raises(QueueUnavailable, match="taken for dead"):
        note(witness, tm)
    tm.abort()
    assert sql.values() == []
    assert ask(witness, {}) == "no"


def test_the_commit_of_who_was_taken_for_dead_raises(sql, witness, tm):
    assert ask(witness, {}) == "no"
    sql.write("a")
    tm.get().addBeforeCommitHook(lambda: note(witness, tm))
    with pytest.raises(QueueUnavailable):
        tm.commit()
    tm.abort()
    assert sql.values() == []


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_nor_can_one_who_does_not_see_it(make, tm, isolation):
    sql = make(POSTGRESQL, isolation_level=isolation)
    witness = SqlWitness(sql.session)
    sql.session.scalars(sa.select(TABLE.c.batch)).all()
    assert ask(witness, {}) == "no"
    assert sql.session.scalars(sa.select(TABLE.c.batch)).all() == []
    sql.write("a")
    with pytest.raises((QueueUnavailable, sa.exc.OperationalError)):
        note(witness, tm)
    tm.abort()
    assert sql.values() == []


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "AUTOCOMMIT"])
def test_an_engine_may_have_another_isolation(make, tm, isolation):
    sql = make(POSTGRESQL)
    witness = SqlWitness(
        sql.session, engine=sql.engine.execution_options(isolation_level=isolation)
    )
    answers: list[str] = []
    asked = threading.Thread(target=lambda: answers.append(ask(witness, {})))
    noted = note(SqlWitness(sql.session), tm)
    module.LOCK_TIMEOUT_MS = 30_000
    asked.start()
    wait_for_a_lock(sql)
    tm.commit()
    asked.join()
    # It has waited, and seen what was committed meanwhile.
    assert answers == ["yes"]
    assert ask(witness, noted) == "yes"


def wait_for_a_lock(database):
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with database.engine.connect() as connection:
        for _ in range(100_000):
            if connection.scalar(waiting):
                return
    raise AssertionError("nobody waits")


def test_two_who_ask_at_once_hear_the_same(sql, witness):
    start = threading.Barrier(2)
    answers = []

    def question():
        start.wait()
        answers.append(witness.ask(BATCH, {}).answer)

    threads = [threading.Thread(target=question) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {"no", "unknown"}
    assert ask(witness, {}) == "no"


def test_without_the_table_it_says_how_to_make_it(sql, witness, tm):
    witness_metadata.drop_all(sql.engine)
    assert "witness_metadata.create_all(engine)" in reason(witness)
    with pytest.raises(ConfigurationError, match="the table txmail_witness is missing"):
        note(witness, tm)


def test_a_session_that_may_not_write_is_no_witness(sql, tm):
    session = sessionmaker(sql.engine)()
    zope.sqlalchemy.register(session, STATUS_READONLY, transaction_manager=tm)
    witness = SqlWitness(session)
    with pytest.raises(ConfigurationError, match="read-only"):
        note(witness, tm)
    tm.abort()
    assert rows(sql) == {}


def test_a_session_of_another_transaction_is_no_witness(sql, tm):
    other = transaction.TransactionManager()
    session = sessionmaker(sql.engine)()
    zope.sqlalchemy.register(session, transaction_manager=other)
    with pytest.raises(ConfigurationError, match="another transaction manager"):
        note(SqlWitness(session), tm)
    other.commit()
    tm.commit()
    assert rows(sql) == {}


def test_a_session_that_nobody_has_registered_is_joined(sql, tm):
    session = sessionmaker(sql.engine, twophase=sql.session.twophase)()
    item = Item(name="a")
    session.add(item)
    noted = note(SqlWitness(session, keep_session=True), tm)
    tm.commit()
    assert item in session
    assert sql.values() == ["a"]
    assert ask(SqlWitness(session), noted) == "yes"
    session.close()


def test_a_session_that_has_no_part_in_the_transaction_can_be_left_out(sql, tm):
    witness = SqlWitness(sql.session, always=False)
    assert note(witness, tm) is None
    assert not sql.session.in_transaction()
    sql.write("a")
    noted = note(witness, tm)
    tm.commit()
    assert ask(witness, noted) == "yes"


def test_who_has_not_joined_before_the_commit_takes_no_part(sql, witness, tm):
    noted = []
    tm.get().join(Recorder("~~~", do={"commit": lambda: noted.append(note(witness, tm))}))
    tm.commit()
    assert noted == [None]
    assert rows(sql) == {}


def test_who_had_nothing_to_write_takes_no_part(sql, witness, tm):
    noted = []
    sql.session.scalars(sa.select(Item)).all()
    assert tm.get()._resources
    tm.get().join(Recorder("~~~", do={"commit": lambda: noted.append(note(witness, tm))}))
    tm.commit()
    assert noted == [None]
    assert rows(sql) == {}


def test_old_rows_can_be_forgotten(sql, witness, tm, monkeypatch):
    for second, batch in enumerate((1, 2, 3)):
        monkeypatch.setattr(module.time, "time", lambda second=second: float(second))
        note(witness, tm, batch)
        tm.commit()
    assert ask(witness, {}, 4) == "no"
    assert witness.forget(1000) == 1
    assert rows(sql) == {2: "committed", 3: "committed", 4: "aborted"}
    assert witness.forget(10**6) == 3


def test_a_session_of_several_databases_needs_to_know_which(make, tmp_path, tm):
    sql = make(POSTGRESQL)
    other = sa.create_engine(f"sqlite:///{tmp_path}/other.sqlite", poolclass=sa.NullPool)
    session = sessionmaker(binds={Item: other})()
    Item.metadata.create_all(other)
    zope.sqlalchemy.register(session, transaction_manager=tm)
    witness = SqlWitness(session, engine=sql.engine)
    session.add(Item(name="a"))
    noted = note(witness, tm)
    tm.commit()
    assert rows(sql) == {BATCH: "committed"}
    assert ask(witness, noted) == "yes"
    assert reason(SqlWitness(session)) != ""


def test_a_database_that_cannot_be_reached_knows_nothing():
    engine = sa.create_engine("postgresql+psycopg://user:geheim@127.0.0.1:1/database")
    said = reason(SqlWitness(Session(engine)))
    assert "OperationalError" in said
    assert "geheim" not in said


def test_a_session_that_is_not_to_be_had_knows_nothing(sql, witness, tm):
    def outside_of_requests():
        raise LookupError("no request")

    witness = SqlWitness(outside_of_requests)
    assert "no request" in reason(witness)


def test_a_database_with_one_connection_for_all_is_not_asked(tm):
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    witness_metadata.create_all(engine)
    session = Session(engine)
    witness = SqlWitness(session)
    note(witness, tm)
    assert "single connection" in reason(witness)
    tm.abort()
    engine.dispose()


def test_a_row_that_makes_no_sense_is_no_answer(sql, witness):
    with sql.engine.begin() as connection:
        connection.execute(sa.insert(TABLE).values(batch=BATCH, state="perhaps", created=1))
    assert "neither" in reason(witness)


KILLED = """
import os, signal, sys
import sqlalchemy as sa, transaction, zope.sqlalchemy
from sqlalchemy.orm import sessionmaker
from databases import Item, Recorder
from txmail.integrations.sqlalchemy import SqlWitness
url, batch, twophase, phase = sys.argv[1:]
tm = transaction.TransactionManager()
session = sessionmaker(sa.create_engine(url), twophase=bool(twophase))()
zope.sqlalchemy.register(session, transaction_manager=tm)
session.add(Item(name="a"))
SqlWitness(session).note(tm.get(), tm, int(batch))
tm.get().join(Recorder("~~~", do={phase: lambda: os.kill(os.getpid(), signal.SIGKILL)}))
tm.commit()
"""


def kill_in(phase, database, batch=BATCH):
    """Have a process killed after `database` has done its `phase`."""
    url = database.engine.url.render_as_string(hide_password=False)
    twophase = "1" if database.session.twophase else ""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, url, str(batch), twophase, phase],
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.representative(every=12)
@pytest.mark.parametrize("phase", ["begin", "commit", "vote", "finish"])
def test_what_a_process_that_was_killed_has_committed_is_known(sql, witness, phase):
    module.LOCK_TIMEOUT_MS = 30_000  # until the server has noticed
    kill_in(phase, sql)
    if sql.session.twophase and phase == "vote":
        module.LOCK_TIMEOUT_MS = 100
        assert "pg_prepared_xacts" in reason(witness)
    else:
        assert ask(witness, {}) == ("yes" if sql.values() else "no")
        assert sql.values() == (["a"] if phase in ("vote", "finish") else [])


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(("how", "answer"), [("COMMIT", "yes"), ("ROLLBACK", "no")])
def test_what_becomes_of_a_prepared_transaction_is_obeyed(make, how, answer):
    sql = make(TWO_PHASE)
    kill_in("vote", sql)
    with sql.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        gid = connection.scalar(sa.text("SELECT gid FROM pg_prepared_xacts"))
        connection.exec_driver_sql(f"{how} PREPARED '{gid}'")
    assert ask(SqlWitness(sql.session), {}) == answer
    assert sql.values() == (["a"] if answer == "yes" else [])
