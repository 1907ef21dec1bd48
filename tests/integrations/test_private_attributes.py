"""What we read of other packages, where they have no public name for it, is as we take it to be.

Each package has one file that reads it. A test here fails when a new version has changed it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
import transaction
import ZODB
import zope.sqlalchemy
from databases import Base, Failure, Item, Recorder
from persistent.mapping import PersistentMapping
from sqlalchemy.orm import Session
from ZODB.blob import Blob
from ZODB.DB import TransactionalUndo
from zope.sqlalchemy.datamanager import (
    STATUS_ACTIVE,
    STATUS_CHANGED,
    STATUS_READONLY,
    SessionDataManager,
)

import txmail
from txmail.common import session_managers, transaction_internals
from txmail.integrations import zope_sqlalchemy_internals as internals

# -- transaction


def test_the_managers_of_a_transaction_are_those_that_have_joined(tm):
    txn = tm.begin()
    managers = [Recorder("a"), Recorder("b")]
    for manager in managers:
        txn.join(manager)
    assert list(transaction_internals.resources(txn)) == managers


def test_a_manager_has_voted_from_the_end_of_its_vote_on(tm):
    txn, seen = tm.begin(), []

    def look():
        seen.append([transaction_internals.has_voted(txn, manager) for manager in (first, second)])

    first = Recorder("a")
    second = Recorder("b", do={"begin": look, "vote": look, "finish": look})
    txn.join(first)
    txn.join(second)
    tm.commit()
    assert seen == [[False, False], [True, False], [True, True]]
    assert not transaction_internals.has_voted(txn, first)  # nothing is kept of it


def test_a_thread_is_in_a_two_phase_commit_from_its_begin_to_its_end(tm):
    txn, seen = tm.begin(), []

    def look():
        seen.append(transaction_internals.in_two_phase_commit())

    txn.addBeforeCommitHook(look)
    txn.join(Recorder("a", do={"begin": look, "commit": look, "vote": look, "finish": look}))
    txn.addAfterCommitHook(lambda status: look())
    tm.commit()
    assert seen == [False, True, True, True, True, False]


def test_an_abort_tells_whether_it_is_that_of_a_begin(tm):
    levels = []
    for end in (tm.begin, tm.abort):
        tm.get().addBeforeAbortHook(lambda: levels.append(transaction_internals.begin_level()))
        end()
    assert levels[0] > 0
    assert levels[1] == 0


def test_a_transaction_goes_from_one_status_to_the_next(tm):
    status = transaction_internals.Status
    txn, seen = tm.begin(), []
    seen.append(txn.status)
    txn.join(Recorder("a", do={"vote": lambda: seen.append(txn.status)}))
    tm.commit()
    assert [*seen, txn.status] == [status.ACTIVE, status.COMMITTING, status.COMMITTED]
    txn = tm.begin()
    txn.join(Recorder("a", fails="vote"))
    with pytest.raises(Failure):
        tm.commit()
    assert txn.status is status.COMMITFAILED


# -- zope.sqlalchemy


@pytest.fixture
def engine():
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def test_a_session_has_work_unless_it_has_only_read(tm, engine):
    reading, writing = Session(engine), Session(engine)
    for session in (reading, writing):
        zope.sqlalchemy.register(session, transaction_manager=tm)
    txn, seen = tm.begin(), []
    reader = Recorder("~~", do={"vote": lambda: seen.extend(session_managers.with_work(txn))})
    txn.join(reader)
    reading.scalars(sa.select(Item)).all()
    writing.add(Item(name="order"))
    writing.flush()
    assert len(session_managers.with_work(txn)) == 3
    tm.commit()
    assert [type(manager) for manager in seen] == [Recorder, SessionDataManager]


def test_a_one_phase_session_has_committed_early_from_its_vote_on(tm, engine):
    session = Session(engine)
    zope.sqlalchemy.register(session, transaction_manager=tm)
    txn, seen = tm.begin(), []

    def look():
        seen.append(session_managers.committed_early(txn))

    txn.join(Recorder("~~", do={"begin": look, "commit": look, "vote": look, "finish": look}))
    session.add(Item(name="order"))
    session.flush()
    look()
    tm.commit()
    assert seen == [False, False, False, True, True]


def test_a_session_that_only_reads_never_commits_early(tm, engine):
    session = Session(engine)
    zope.sqlalchemy.register(session, transaction_manager=tm)
    txn, seen = tm.begin(), []
    look = {"vote": lambda: seen.append(session_managers.committed_early(txn))}
    txn.join(Recorder("~~", do=look))
    session.scalars(sa.select(Item)).all()
    tm.commit()
    assert seen == [False]


@pytest.mark.parametrize("status", [STATUS_ACTIVE, STATUS_CHANGED, STATUS_READONLY])
def test_a_session_is_of_one_transaction_and_perhaps_read_only(tm, engine, status):
    session = Session(engine)
    assert not internals.is_registered(session)
    zope.sqlalchemy.register(session, status, transaction_manager=tm)
    session.connection()
    assert internals.is_registered(session)
    assert internals.is_read_only(session) == (status == STATUS_READONLY)
    assert internals.takes_part(session, tm.get())
    assert not internals.takes_part(session, transaction.TransactionManager().get())
    tm.abort()
    assert not internals.is_registered(session)


# -- ZODB: that these are there; `test_witness_zodb.py` tests what follows from them


def test_what_the_witness_reads_of_a_connection_is_there(tm):
    database = ZODB.DB(None)
    connection = database.open(tm)
    assert connection._db is database
    assert connection._normal_storage.lastTransaction() == database.lastTransaction()
    assert connection._savepoint_storage is None
    thing = PersistentMapping()
    connection.add(thing)
    assert list(connection._added) == [thing._p_oid]
    connection.root()["thing"] = thing
    assert connection.root() in connection._registered_objects
    seen = []
    tm.get().join(Recorder("~", do={"vote": lambda: seen.append(bool(connection._modified))}))
    tm.get().join(Recorder("~~", do={"vote": lambda: seen.append(bool(connection._creating))}))
    tm.commit()
    assert seen == [True, True]
    assert Blob()._p_blob_uncommitted is None
    assert TransactionalUndo(database, [b"id"])._tids == [b"id"]
    database.close()


# -- and nobody else reads them

#: by file, what only it may have
READERS = {
    "common/transaction_internals.py": r"transaction\._\w+|\._resources\b|_commitResources",
    "common/session_managers.py": r"~sqlalchemy:\"|\"no work\"",
    "integrations/zope_sqlalchemy_internals.py": r"_SESSION_STATE|STATUS_READONLY",
    "integrations/zodb.py": r"\b_normal_storage\b|\b_registered_objects\b|\b_savepoint_storage\b",
}


@pytest.mark.parametrize("reader", READERS)
def test_one_file_reads_what_has_no_public_name(reader):
    package = Path(txmail.__file__).parent
    found = [
        path.relative_to(package).as_posix()
        for path in sorted(package.rglob("*.py"))
        if re.search(READERS[reader], path.read_text())
    ]
    assert found == [reader]
