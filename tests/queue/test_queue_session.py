"""A queue in the application's own database: there is one commit, and nobody can be torn."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
import transaction
import zope.sqlalchemy
from databases import Failure, Item, Recorder
from letters import letter
from queues import BETWEEN, FAILURES, FIRST, IN_POSTGRESQL, IN_SQLITE, IN_TWO_PHASE, LAST, kinds
from sqlalchemy.orm import Session

from txmail.exceptions import ConfigurationError
from txmail.integrations.session_queue import session_queue

ONE, TWO, THREE = "one@example.com", "two@example.com", "three@example.com"


@pytest.mark.representative(every=4)
@pytest.mark.parametrize(("key", "phase"), FAILURES)
@pytest.mark.parametrize("with_key", [None, "key"])
@pytest.mark.parametrize("kind", [IN_SQLITE, IN_POSTGRESQL, IN_TWO_PHASE])
def test_in_the_session_mail_shares_the_fate_of_the_data_whoever_fails(
    make_queue, tm, kind, phase, key, with_key
):
    app = make_queue(kind)
    mailer = app.mailer()
    tm.begin().join(Recorder(key, fails=phase))
    app.database.write("order")
    mailer.enqueue(letter("one", ONE), idempotency_key=with_key)
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    app.queue.flush(20)
    app.queue.resolve()
    there = bool(app.database.values())
    assert app.ready() == ([ONE] if there else [])
    assert app.is_empty() is not there
    # Whoever has finished before has committed; one-phase sessions have with their vote.
    committed = key != FIRST and phase == "finish"
    if app.one_phase:
        committed = phase == "finish" or (key, phase) in ((BETWEEN, "vote"), (LAST, "vote"))
    assert there is committed


@kinds(IN_SQLITE, IN_POSTGRESQL, IN_TWO_PHASE)
def test_a_session_of_another_transaction_manager_is_refused(make_queue, tm, kind):
    app = make_queue(kind)
    other = transaction.TransactionManager()
    bound = app.mailer().bind(transaction_manager=other)
    tm.begin()
    app.database.write("order")
    other.begin()
    bound.enqueue(letter("one", ONE))
    with pytest.raises(ConfigurationError) as caught:
        other.commit()
    assert caught.value.field == "session"
    other.abort()
    tm.commit()
    assert app.database.values() == ["order"]
    assert app.is_empty()


@kinds(IN_SQLITE, IN_POSTGRESQL, IN_TWO_PHASE)
def test_a_session_that_has_only_read_commits_the_mail(make_queue, tm, kind):
    app = make_queue(kind)
    tm.begin()
    assert app.database.session.execute(sa.text("SELECT name FROM item")).all() == []
    app.mailer().enqueue(letter("one", ONE))
    tm.commit()
    assert app.ready() == [ONE]


@kinds(IN_SQLITE, IN_POSTGRESQL)
def test_a_session_that_may_only_read_is_refused(make_queue, tm, kind):

    app = make_queue(kind)
    session = Session(app.engine)
    zope.sqlalchemy.register(session, initial_state="readonly", transaction_manager=tm)
    tm.begin()
    session.execute(sa.text("SELECT name FROM item"))
    app.mailer().bind(session=session).enqueue(letter("one", ONE))
    with pytest.raises(ConfigurationError) as caught:
        tm.commit()
    assert caught.value.field == "session"
    tm.abort()
    assert app.is_empty()


@pytest.mark.parametrize("keep", [True, False])
@kinds(IN_SQLITE, IN_POSTGRESQL)
def test_a_session_can_be_kept(make_queue, tm, kind, keep):

    app = make_queue(kind, keep_session=keep)
    with tm:
        app.database.write("order")
    session = app.database.session
    thing = Item(name="other")
    with tm:
        # Our rows are the first it takes part with.
        app.mailer().enqueue(letter("one", ONE))
        tm.get().addBeforeCommitHook(lambda: session.add(thing))
    assert app.ready() == [ONE]
    assert (thing in session) is keep or app.database.values() == ["order", "other"]


def test_without_a_session_it_says_so_at_once(make_queue, tm):

    app = make_queue(IN_SQLITE)
    queue = session_queue(engine=app.engine)
    unbound = app.mailer(queue=queue)
    tm.begin()
    with pytest.raises(ConfigurationError) as caught:
        unbound.enqueue(letter("one", ONE))
    assert caught.value.field == "session"
    unbound.bind(session=app.database.session).enqueue(letter("two", TWO))
    with pytest.raises(ConfigurationError):
        unbound.enqueue(letter("one", ONE))
    tm.commit()
    assert app.ready() == [TWO]


@kinds(IN_SQLITE, IN_POSTGRESQL)
def test_mailers_bound_to_two_sessions_do_not_get_into_each_others_way(make_queue, tm, kind):

    app = make_queue(kind)
    base = app.mailer()
    managers = [transaction.TransactionManager() for _ in range(2)]
    sessions = [Session(app.engine) for _ in range(2)]
    bound = []
    for manager, session in zip(managers, sessions, strict=True):
        zope.sqlalchemy.register(session, transaction_manager=manager)
        bound.append(base.bind(session=session, transaction_manager=manager))
        manager.begin()
    bound[0].enqueue(letter("one", ONE))
    bound[1].enqueue(letter("two", TWO))
    managers[1].abort()
    managers[0].commit()
    with tm:
        base.enqueue(letter("three", THREE))
    assert app.ready() == [ONE, THREE]


@kinds(IN_SQLITE, IN_POSTGRESQL)
def test_a_pool_with_one_connection_is_enough(make_queue, tm, kind):

    app = make_queue(kind)
    engine = sa.create_engine(
        app.engine.url, poolclass=sa.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.5
    )
    session = Session(engine)
    zope.sqlalchemy.register(session, transaction_manager=tm)
    queue = session_queue(session)
    mailer = app.mailer(queue=queue)
    with tm:
        session.execute(sa.text("INSERT INTO item (name) VALUES ('order')"))
        mailer.enqueue(letter("one", ONE), idempotency_key="key")
        mailer.send(letter("two", TWO))
    assert queue.flush(20)
    assert app.states() == {ONE: "ready", TWO: "sent"}
    engine.dispose()


def test_a_conflict_of_the_session_can_be_tried_again(make_queue, tm):
    app = make_queue(IN_POSTGRESQL)
    mailer = app.mailer()
    session = app.database.session
    tries = 0
    for attempt in tm.attempts(3):
        with attempt:
            tries += 1
            app.database.write("order")
            mailer.enqueue(letter("one", ONE))
            if tries == 1:
                # What PostgreSQL says of a transaction that cannot have been beside another one.
                session.execute(
                    sa.text(
                        "CREATE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS"
                        " $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$"
                    )
                )
                session.execute(
                    sa.text(
                        "CREATE TRIGGER refuse BEFORE INSERT ON txmail_message"
                        " FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse()"
                    )
                )
    assert tries == 2
    assert app.ready() == [ONE]
