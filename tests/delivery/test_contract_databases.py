"""Mail and databases leave a transaction together: both, or neither."""

from __future__ import annotations

import contextlib
import threading

import pytest
import sqlalchemy as sa
import transaction
import ZODB
import ZODB.FileStorage
import zope.sqlalchemy
from databases import (
    ONE_PHASE_KINDS,
    POSTGRESQL,
    SQLITE,
    TWO_PHASE,
    ZODB_KIND,
    Item,
)
from letters import letter, statuses, subjects
from transaction.interfaces import TransientError
from ZODB.POSException import ConflictError

from txmail import mailer_from_settings
from txmail.exceptions import (
    DeliveryRefused,
    DeliveryUnavailable,
    PartialDelivery,
    TransactionClosed,
)
from txmail.testing import HANG, NO_REPLY, RESET, then


def test_a_commit_keeps_the_data_and_sends_the_mail(tm, mailer, server, database):
    with tm:
        database.write("order")
        mailer.send(letter("confirmation"))
    assert database.values() == ["order"]
    assert subjects(server) == ["confirmation"]


def test_an_abort_keeps_and_sends_nothing(tm, mailer, server, database):
    tm.begin()
    database.write("order")
    mailer.send(letter("confirmation"))
    tm.abort()
    assert database.values() == []
    assert server.connections == []


@pytest.mark.parametrize("order", ["mail first", "data first"])
def test_a_refused_recipient_in_message_5_of_10_rolls_everything_back(
    tm, mailer, server, database, order
):
    server.refuse("nobody@example.com")
    tm.begin()
    if order == "data first":
        database.write("order")
    for number in range(1, 11):
        mailer.send(letter(number, "nobody@example.com" if number == 5 else "ann@example.com"))
    if order == "mail first":
        database.write("order")
    with pytest.raises(DeliveryRefused, match="no such user") as caught:
        tm.commit()
    tm.abort()
    assert database.values() == []
    assert server.messages == []
    assert statuses(caught.value.outcomes) == ["unsent"] * 4 + ["failed"] + ["unsent"] * 5
    assert caught.value.databases_may_be_committed is False


@pytest.mark.parametrize("refused", ["first@example.com", "second@example.com"])
def test_one_refused_recipient_of_two_rolls_everything_back(tm, mailer, server, database, refused):
    server.refuse(refused)
    tm.begin()
    database.write("order")
    mailer.send(letter("one", "first@example.com", "second@example.com"))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    tm.abort()
    assert database.values() == []
    assert server.messages == []
    outcomes = {o.recipient: str(o.status) for o in caught.value.outcomes}
    assert outcomes.pop(refused) == "failed"
    assert list(outcomes.values()) == ["unsent"]


def test_an_sql_commit_that_fails_sends_nothing(tm, mailer, server, sql):
    tm.begin()
    sql.write("order")
    sql.break_commit()
    mailer.send(letter("one"))
    mailer.send(letter("two"))
    # After a failed PREPARE the session's own clean-up fails too, and that error comes out.
    with pytest.raises(sa.exc.DBAPIError):
        tm.commit()
    with contextlib.suppress(sa.exc.DBAPIError):
        tm.abort()
    assert sql.values() == []
    assert server.messages == []
    with tm:
        sql.write("another")
        mailer.send(letter("three"))
    assert sql.values() == ["another"]
    assert subjects(server) == ["three"]
    assert len(server.connections) == 1


def test_mail_of_three_databases_in_one_transaction(tm, mailer, server, make_database):
    databases = [make_database(kind) for kind in (ZODB_KIND, SQLITE, TWO_PHASE)]
    server.refuse("nobody@example.com")
    tm.begin()
    for database in databases:
        database.write("order")
    mailer.send(letter("one", "nobody@example.com"))
    with pytest.raises(DeliveryRefused):
        tm.commit()
    tm.abort()
    assert [database.values() for database in databases] == [[], [], []]
    server.clear()
    with tm:
        for database in databases:
            database.write("order")
        mailer.send(letter("two"))
    assert [database.values() for database in databases] == [["order"]] * 3
    assert subjects(server) == ["two"]


# -- what cannot be known before the vote


def test_a_refusal_at_the_final_dot_says_whether_databases_may_be_committed(
    tm, mailer, server, database, request
):
    kind = request.node.callspec.params["database"]
    server.on(".", "554 5.7.1 looks like spam")
    tm.begin()
    database.write("order")
    mailer.send(letter("one"))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    tm.abort()
    committed = kind in ONE_PHASE_KINDS
    assert caught.value.databases_may_be_committed is committed
    assert database.values() == (["order"] if committed else [])
    assert server.messages == []


@pytest.mark.parametrize("kind", ONE_PHASE_KINDS)
def test_a_database_that_was_only_read_is_not_called_committed(
    tm, mailer, server, make_database, kind
):
    database = make_database(kind)
    server.on(".", "554 5.7.1 looks like spam")
    tm.begin()
    database.session.scalars(sa.select(Item)).all()
    mailer.send(letter("one"))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    tm.abort()
    assert caught.value.databases_may_be_committed is False


def test_without_a_database_none_may_be_committed(tm, mailer, server):
    server.on(".", "554 5.7.1 looks like spam")
    tm.begin()
    mailer.send(letter("one"))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    assert caught.value.databases_may_be_committed is False
    tm.abort()


# -- retries


def test_plone_api_283_conflict_retry_sends_one_copy(tm, mailer, server, make_database):
    database = make_database(ZODB_KIND)
    conflicts, tries = 4, 0
    for attempt in tm.attempts(10):
        with attempt:
            tries += 1
            database.write("order")
            mailer.send(letter("confirmation"))
            if tries <= conflicts:
                database.change_elsewhere(f"other {tries}")
    assert tries == conflicts + 1
    assert "order" in database.values()
    assert subjects(server) == ["confirmation"]
    assert len(server.connections) == 1


def test_a_conflict_reaches_the_caller_as_itself(tm, mailer, server, make_database):
    database = make_database(ZODB_KIND)
    tm.begin()
    database.write("order")
    mailer.send(letter("confirmation"))
    database.change_elsewhere("other")
    with pytest.raises(ConflictError):
        tm.commit()
    tm.abort()
    assert server.messages == []


def test_zope_sqlalchemy_93_a_serialization_failure_is_retried_and_mailed_once(
    tm, mailer, server, make_database
):
    database = make_database(POSTGRESQL, isolation_level="SERIALIZABLE")
    with tm:
        database.write("stock")
    tries = 0
    for attempt in tm.attempts(4):
        with attempt:
            tries += 1
            session = database.session
            session.scalars(sa.select(Item)).all()
            session.add(Item(name=f"order {tries}"))
            session.flush()
            mailer.send(letter(f"order {tries}"))
            if tries == 1:
                sell_elsewhere(database.engine)
    assert tries == 2
    assert database.values() == ["elsewhere", "order 2", "stock"]
    assert subjects(server) == ["order 2"]


def test_zope_sqlalchemy_93_a_failed_prepare_sends_nothing(tm, mailer, server, make_database):
    """What the session raises then need not be the serialization failure; it is not ours."""
    database = make_database(TWO_PHASE, isolation_level="SERIALIZABLE")
    tm.begin()
    database.session.scalars(sa.select(Item)).all()
    database.write("order")
    mailer.send(letter("order"))
    sell_elsewhere(database.engine)
    with pytest.raises(sa.exc.DBAPIError):
        tm.commit()
    with contextlib.suppress(sa.exc.DBAPIError):
        tm.abort()
    assert database.values() == ["elsewhere"]
    assert server.messages == []


def sell_elsewhere(engine):
    """Do the same from another connection: read all, insert one. Only one of the two may pass."""
    with engine.begin() as connection:
        connection.execute(sa.select(Item)).all()
        connection.execute(sa.insert(Item).values(name="elsewhere"))


@pytest.mark.parametrize(
    ("verb", "reply"),
    [
        ("connect", "421 4.3.2 not now"),
        ("MAIL", "451 4.3.0 try again"),
        ("RCPT", "450 4.2.1 greylisted"),
        (".", "452 4.3.1 disk full"),
    ],
)
def test_temporary_errors_are_retried_if_the_mailer_is_told_to(
    tm, make_mailer, server, make_database, verb, reply
):
    mailer = make_mailer(transient=True)
    database = make_database(ZODB_KIND)
    server.on(verb, reply)
    committed = []
    for attempt in tm.attempts(5):
        with attempt:
            database.write("order")
            mailer.send(letter("confirmation"))
            tm.get().addAfterCommitHook(committed.append)
    # Only at the final dot has the commit got as far as the managers when it fails.
    assert committed == ([False, True] if verb == "." else [True])
    assert database.values() == ["order"]
    assert subjects(server) == ["confirmation"]


@pytest.mark.parametrize(
    ("verb", "reply"),
    [
        ("RCPT", "550 5.1.1 no such user"),
        (".", "554 5.7.1 spam"),
        (".", then(NO_REPLY, RESET)),
        (".", RESET),
    ],
)
def test_refusals_and_doubt_are_never_retried(tm, make_mailer, server, verb, reply):
    mailer = make_mailer(transient=True)
    server.on(verb, reply)
    tries = 0
    with pytest.raises((DeliveryRefused, PartialDelivery)) as caught:  # noqa: PT012
        for attempt in tm.attempts(5):
            with attempt:
                tries += 1
                mailer.send(letter("confirmation"))
    assert tries == 1
    assert not isinstance(caught.value, TransientError)
    assert len(server.messages) <= 1


def test_an_unanswered_final_dot_is_partial_delivery_and_not_mailed_again(tm, make_mailer, server):
    mailer = make_mailer(transient=True, commit_timeout=0.3)
    server.on(".", then(NO_REPLY, HANG))
    tries = 0
    with pytest.raises(PartialDelivery) as caught:  # noqa: PT012
        for attempt in tm.attempts(5):
            with attempt:
                tries += 1
                mailer.send(letter("confirmation"))
    assert tries == 1
    assert statuses(caught.value.outcomes) == ["in_doubt"]
    assert caught.value.in_doubt == caught.value.outcomes
    assert subjects(server) == ["confirmation"]


def test_without_transient_a_temporary_error_is_not_retried(tm, mailer, server):
    server.on("MAIL", "451 4.3.0 try again")
    tries = 0
    with pytest.raises(DeliveryUnavailable) as caught:  # noqa: PT012
        for attempt in tm.attempts(5):
            with attempt:
                tries += 1
                mailer.send(letter("confirmation"))
    assert tries == 1
    assert not isinstance(caught.value, TransientError)


# -- rule 12: what zope.sqlalchemy does not see


def test_a_core_insert_commits_with_its_mail_when_the_session_is_marked(tm, mailer, server, sql):
    with tm:
        session = sql.session
        session.execute(sa.insert(Item.__table__).values(name="order"))
        zope.sqlalchemy.mark_changed(session, transaction_manager=tm)
        mailer.send(letter("confirmation"))
    assert sql.values() == ["order"]
    assert subjects(server) == ["confirmation"]


def test_mail_takes_part_in_savepoints_of_postgresql(tm, mailer, server, make_database):
    database = make_database(TWO_PHASE)
    with tm:
        database.write("kept")
        mailer.send(letter("kept"))
        savepoint = tm.savepoint()
        database.write("gone")
        mailer.send(letter("gone"))
        savepoint.rollback()
    assert database.values() == ["kept"]
    assert subjects(server) == ["kept"]


# -- mail that is sent while the databases commit


def send_when_flushed(database, mailer, subject, *recipients):
    """Have every flush of `database` send a mail."""
    sa.event.listen(
        database.session, "after_flush", lambda *_: mailer.send(letter(subject, *recipients))
    )


def test_mail_of_a_flush_within_tpc_begin_is_sent(tm, mailer, server, sql):
    send_when_flushed(sql, mailer, "flushed")
    with tm:
        mailer.send(letter("first"))
        sql.session.add(Item(name="order"))
    assert sql.values() == ["order"]
    assert subjects(server) == ["first", "flushed"]
    assert len(server.connections) == 1


def test_a_refused_recipient_of_mail_of_a_flush_rolls_everything_back(tm, mailer, server, sql):
    server.refuse("nobody@example.com")
    send_when_flushed(sql, mailer, "flushed", "nobody@example.com")
    tm.begin()
    mailer.send(letter("first"))
    sql.session.add(Item(name="order"))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    tm.abort()
    assert caught.value.databases_may_be_committed is False
    assert sql.values() == []
    assert server.messages == []


def test_mail_of_a_flush_is_refused_aloud_where_it_could_not_join_any_more(tm, mailer, server, sql):
    send_when_flushed(sql, mailer, "flushed")
    tm.begin()
    sql.session.add(Item(name="order"))
    with pytest.raises(TransactionClosed):
        tm.commit()
    tm.abort()
    assert sql.values() == []
    assert server.messages == []


# -- threads


def test_eight_threads_share_one_connection_under_the_commit_lock_of_a_filestorage(
    server, tmp_path
):
    db = ZODB.DB(ZODB.FileStorage.FileStorage(str(tmp_path / "Data.fs")), pool_size=20)
    mailer = mailer_from_settings({"mail.url": server.url + "?pool=1"})
    setup = db.open(transaction_manager=(setup_tm := transaction.TransactionManager()))
    for number in range(8):
        setup.root()[f"thread {number}"] = setup.root().__class__()
    setup_tm.commit()
    setup.close()
    start = threading.Barrier(8)
    failures = []

    def work(number):
        manager = transaction.TransactionManager()
        bound = mailer.bind(transaction_manager=manager)
        connection = db.open(transaction_manager=manager)
        try:
            start.wait(10)
            for turn in range(5):
                with manager:
                    connection.root()[f"thread {number}"][turn] = True
                    bound.send(letter(f"{number} {turn}"))
        except Exception as error:
            failures.append(error)
        finally:
            manager.abort()
            connection.close()

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert sorted(subjects(server)) == sorted(f"{n} {t}" for n in range(8) for t in range(5))
    assert len(server.connections) == 1
    mailer.close()
    db.close()
