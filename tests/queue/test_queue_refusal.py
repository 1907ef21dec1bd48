"""A queue that cannot take mail says so before anything is acknowledged, and gets over it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

import pytest
import sqlalchemy as sa
import transaction
from databases import Failure, Recorder
from forking import in_child
from letters import letter, statuses
from queues import (
    IN_POSTGRESQL,
    IN_SQLITE,
    OWN_POSTGRESQL,
    OWN_SQLITE,
    QUEUES,
    kinds,
)
from transaction.interfaces import TransientError

import txmail.queue.own_batch
from txmail import Mailer, transport_from_url
from txmail.exceptions import QueueFull, QueueUnavailable, SchemaError, TransientQueueUnavailable
from txmail.queue import schema
from txmail.queue.queue import Queue

ONE, TWO, THREE = "one@example.com", "two@example.com", "three@example.com"

#: how mail gets to the queue
WAYS = ["enqueue", "send"]


def refused(app, mailer, tm, server, error, way="enqueue", data=True, body="Hello."):
    """A transaction with mail fails with `error`, and nothing is left of it anywhere."""
    before = len(server.messages)
    tm.begin()
    if data:
        app.database.write("order")
    message = letter("one", ONE, TWO)
    message.body = body
    getattr(mailer, way)(message)
    with pytest.raises(error) as caught:
        tm.commit()
    assert type(caught.value) is error
    tm.abort()
    assert len(server.messages) == before
    assert app.database.values() == []
    assert statuses(caught.value.outcomes) == ["unsent", "unsent"]
    assert [o.recipient for o in caught.value.outcomes] == [ONE, TWO]
    assert not any(o.queued for o in caught.value.outcomes)
    assert mailer.last_outcomes == caught.value.outcomes
    return caught.value


def taken(app, mailer, tm, way="enqueue"):
    """A transaction with mail commits, and the mail is where it should be."""
    with tm:
        app.database.write("order")
        getattr(mailer, way)(letter("three", THREE))
    assert app.database.values() == ["order"]
    assert app.states()[THREE] == ("sent" if way == "send" else "ready")


def put_right(app):
    """What the background had to do is done, with nobody's help."""
    assert app.queue.flush(20)
    assert not app.queue.host.open


# -- full


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("way", WAYS)
@kinds(*QUEUES)
def test_a_queue_that_is_full_refuses_and_takes_mail_again_when_it_is_not(
    make_queue, tm, server, kind, way
):
    app = make_queue(kind, limit=2)
    mailer = app.mailer()
    with tm:
        mailer.enqueue(letter("x", "x@example.com"))
    error = refused(app, mailer, tm, server, QueueFull, way)
    assert "2" in str(error)
    assert app.ready() == ["x@example.com"]
    # There is room for one, and then for none.
    with tm:
        mailer.enqueue(letter("y", "y@example.com"))
    refused(app, mailer, tm, server, QueueFull, way)
    with app.engine.begin() as connection:
        for state in ("sending", "sent"):
            connection.execute(schema.delivery.update().values(state=state))
    taken(app, mailer, tm, way)
    put_right(app)


def test_what_waits_for_a_person_takes_nobody_the_room(make_queue, tm, server):
    app = make_queue(OWN_SQLITE, limit=1)
    mailer = app.mailer()
    with tm:
        mailer.enqueue(letter("x", "x@example.com"))
    with app.engine.begin() as connection:
        for state in ("sending", "failed"):
            connection.execute(schema.delivery.update().values(state=state))
    taken(app, mailer, tm)


def test_deferred_mail_takes_room(make_queue, tm, server):
    app = make_queue(OWN_SQLITE, limit=2)
    server.on(".", "452 4.3.1 full")
    mailer = app.mailer()
    with tm:
        mailer.send(letter("x", "x@example.com"))
    assert app.states() == {"x@example.com": "deferred"}
    refused(app, mailer, tm, server, QueueFull)


@pytest.mark.parametrize("way", WAYS)
def test_a_database_file_that_may_not_grow(make_queue, tm, server, way):
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer()
    engine = app.queue.database.engine
    more = [8]

    @sa.event.listens_for(engine, "checkout")
    def limit(connection, *_):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + more[0]}")

    refused(app, mailer, tm, server, QueueFull, way, body="x" * 200_000)
    more[0] = 1_000_000
    taken(app, mailer, tm, way)
    assert set(app.states()) == {THREE}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fresh", [True, False])
def test_a_disk_that_is_full(small_disk, make_queue, tm, server, way, fresh):
    app = make_queue(OWN_SQLITE)
    queue = Queue(f"sqlite:///{small_disk}/mail.db")
    mailer = app.mailer(queue=queue)
    if not fresh:
        with tm:
            mailer.enqueue(letter("before", "x@example.com"))
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    refused(app, mailer, tm, server, QueueFull, way, body="x" * 300_000)
    filler.unlink()
    with tm:
        getattr(mailer, way)(letter("three", THREE))
    assert queue.flush(20)
    expected = {"sent" if way == "send" else "ready": 1}
    if not fresh:
        expected["ready"] = expected.get("ready", 0) + 1
    assert queue.counts() == expected
    mailer.close()


# -- locked, missing, not there


@contextlib.contextmanager
def locked(path):
    """Somebody else is writing to the file and does not stop."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_locked_by_others_for_too_long(make_queue, tm, server, way):
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer(commit_timeout=0.3)
    with locked(app.engine.url.database):
        error = refused(app, mailer, tm, server, QueueUnavailable, way)
        assert "locked" in str(error)
    put_right(app)
    assert app.is_empty()
    taken(app, mailer, tm, way)


def test_a_session_whose_database_is_locked(make_queue, tm, server):
    app = make_queue(IN_SQLITE)
    mailer = app.mailer()

    @sa.event.listens_for(app.engine, "connect")
    def impatient(connection, _):
        connection.execute("PRAGMA busy_timeout = 100")

    with locked(app.engine.url.database):
        error = refused(app, mailer, tm, server, QueueUnavailable, data=False)
        assert "locked" in str(error)
    taken(app, mailer, tm)


@pytest.mark.parametrize("transient", [True, False])
def test_an_error_is_transient_only_if_that_was_asked_for(make_queue, tm, server, transient):
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer(commit_timeout=0.2, transient=transient)
    with locked(app.engine.url.database):
        kind = TransientQueueUnavailable if transient else QueueUnavailable
        error = refused(app, mailer, tm, server, kind)
    assert isinstance(error, TransientError) is transient
    assert isinstance(error, QueueUnavailable)
    assert error.temporary


def test_a_full_queue_is_never_transient(make_queue, tm, server):
    app = make_queue(OWN_SQLITE, limit=1)
    error = refused(app, app.mailer(transient=True), tm, server, QueueFull)
    assert not isinstance(error, TransientError)


def test_what_is_transient_is_tried_again(make_queue, tm, server):
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer(commit_timeout=0.2, transient=True)
    tries = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(app.engine.url.database))
        for attempt in tm.attempts(3):
            with attempt:
                tries.append(1)
                app.database.write("order")
                mailer.enqueue(letter("one", ONE))
                if len(tries) == 2:
                    stack.close()
    assert len(tries) == 2
    assert app.ready() == [ONE]
    assert app.database.values() == ["order"]


@pytest.mark.parametrize("way", WAYS)
@kinds(IN_SQLITE, IN_POSTGRESQL)
def test_tables_that_are_missing(make_queue, tm, server, kind, way):
    app = make_queue(kind)
    mailer = app.mailer()
    with app.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE txmail_version RENAME TO elsewhere")
    try:
        error = refused(app, mailer, tm, server, SchemaError, way)
        assert "txmail db init" in str(error)
    finally:
        with app.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO txmail_version")
    taken(app, mailer, tm, way)


@pytest.mark.parametrize("way", WAYS)
def test_tables_of_another_version(make_queue, tm, server, way):
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer()
    app.queue.close()
    with app.engine.begin() as connection:
        connection.execute(schema.version.update().values(version_num="9999"))
    error = refused(app, mailer, tm, server, SchemaError, way)
    assert "9999" in str(error)
    with app.engine.begin() as connection:
        connection.execute(schema.version.update().values(version_num=schema.VERSION))
    taken(app, mailer, tm, way)


@pytest.mark.parametrize("way", WAYS)
def test_a_postgresql_that_was_stopped(make_queue, tm, server, way):
    app = make_queue(OWN_POSTGRESQL, door=True)
    mailer = app.mailer()
    with tm:
        mailer.enqueue(letter("before", "x@example.com"))
    app.door.shut()
    refused(app, mailer, tm, server, QueueUnavailable, way)
    app.door.open()
    taken(app, mailer, tm, way)
    put_right(app)
    assert set(app.states()) == {"x@example.com", THREE}
    assert set(app.batches()) == {"published"}


def test_a_postgresql_that_stops_within_the_commit(make_queue, tm, server):
    app = make_queue(OWN_POSTGRESQL, door=True)
    mailer = app.mailer()
    tm.begin().join(Recorder("!", do={"vote": app.door.shut}))
    mailer.enqueue(letter("one", ONE))
    mailer.send(letter("two", TWO))
    tm.commit()
    # It has committed: the living process goes on trying.
    assert {row.state for row in app.deliveries().values()} == {"staged"}
    assert app.queue.host.open
    app.door.open()
    assert app.states() == {ONE: "ready", TWO: "sent"}
    put_right(app)


def do_at_begin(tm, act):
    """Do `act` when the commit of a transaction begins in which there is nobody but us."""
    (manager,) = tm.get()._resources
    begin = manager.tpc_begin

    def tpc_begin(transaction):
        act()
        begin(transaction)

    manager.tpc_begin = tpc_begin


@pytest.mark.parametrize("way", ["enqueue", "two"])
def test_a_postgresql_that_stops_when_nobody_else_takes_part(make_queue, tm, server, way):
    """Then the queue has to hear of the end before anything is sent, or the transaction fails."""
    app = make_queue(OWN_POSTGRESQL, door=True)
    mailer = app.mailer()
    tm.begin()
    for name in (ONE, TWO):
        (mailer.enqueue if way == "enqueue" else mailer.send)(letter(name, name))
    do_at_begin(tm, app.door.shut)
    with pytest.raises(QueueUnavailable) as caught:
        tm.commit()
    tm.abort()
    assert server.messages == []
    assert statuses(caught.value.outcomes) == ["unsent"] * 2
    app.door.open()
    assert app.is_empty()
    put_right(app)


@pytest.mark.parametrize("way", ["enqueue", "two"])
def test_a_commit_whose_answer_is_lost(make_queue, tm, server, way):
    """Nobody knows what the queue has: the transaction fails, and its mail is not sent."""
    app = make_queue(OWN_POSTGRESQL, door=True)
    mailer = app.mailer()
    tm.begin()
    for name in (ONE, TWO):
        (mailer.enqueue if way == "enqueue" else mailer.send)(letter(name, name))
    do_at_begin(tm, lambda: setattr(app.door, "swallow", b"COMMIT"))
    try:
        tm.commit()
    except QueueUnavailable:
        tm.abort()
        assert app.is_empty() or set(app.states().values()) <= {"cancelled"}
        assert server.messages == []
    else:
        assert app.states() == dict.fromkeys((ONE, TWO), "ready" if way == "enqueue" else "sent")
    put_right(app)


def test_the_rows_whose_commit_nobody_saw_are_not_written_twice(make_queue, tm, server):
    app = make_queue(OWN_POSTGRESQL, door=True)
    mailer = app.mailer()
    with tm:
        mailer.enqueue(letter("before", "x@example.com"))
    assert app.queue.flush(10)
    tm.begin()
    app.database.write("order")
    mailer.enqueue(letter("one", ONE))
    app.door.swallow = b"COMMIT"
    with pytest.raises(QueueUnavailable):
        tm.commit()
    assert app.door.swallow == b""
    # The second try of the same transaction
    tm.commit()
    assert app.ready() == [ONE, "x@example.com"]
    assert app.batches() == ["published"] * 2


# -- after the vote


@pytest.mark.parametrize("way", WAYS)
@kinds(OWN_SQLITE, IN_SQLITE)
def test_a_publish_that_fails_is_tried_again_and_the_commit_does_not_raise(
    make_queue, tm, server, kind, way, monkeypatch
):
    app = make_queue(kind)
    mailer = app.mailer()
    monkeypatch.setattr("txmail.queue.own_batch.FINISH_TIMEOUT", 0.1)
    monkeypatch.setattr("txmail.queue.session.FINISH_TIMEOUT", 0.1)
    other = sqlite3.connect(app.engine.url.database, isolation_level=None, check_same_thread=False)
    if kind == IN_SQLITE:

        @sa.event.listens_for(app.engine, "connect")
        def impatient(connection, _):
            connection.execute("PRAGMA busy_timeout = 100")

    def lock():
        other.execute("BEGIN IMMEDIATE")

    # Before our vote, and after the session's, which has committed there.
    tm.begin().join(Recorder("~t", do={"vote": lock}))
    app.database.write("order")
    options = {} if way == "send" else {"idempotency_key": "key"}
    getattr(mailer, way)(letter("one", ONE), **options)
    tm.commit()
    assert app.database.values() == ["order"]
    assert {row.state for row in app.deliveries().values()} == {"staged"}
    assert app.queue.host.open or (kind, way) == (IN_SQLITE, "enqueue")
    other.execute("ROLLBACK")
    other.close()
    assert app.states() == {ONE: "sent" if way == "send" else "ready"}
    assert app.batches() == ["published"]
    put_right(app)


def test_what_is_published_late_is_told_to_workers(make_queue, tm, monkeypatch):
    app = make_queue(OWN_POSTGRESQL, door=True)
    mailer = app.mailer()
    tm.begin().join(Recorder("!", do={"vote": app.door.shut}))
    mailer.enqueue(letter("one", ONE))
    woken = threading.Event()
    app.queue.host.notifier.listeners.append(woken.set)
    tm.commit()
    assert not woken.is_set()
    app.door.open()
    assert app.queue.flush(20)
    assert woken.is_set()


def test_an_abort_never_waits_for_the_queue(make_queue, tm, server):
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer()
    other = sqlite3.connect(app.engine.url.database, isolation_level=None, check_same_thread=False)
    tm.begin().join(Recorder("!", do={"vote": lambda: other.execute("BEGIN IMMEDIATE")}))
    tm.get().join(Recorder("!!", fails="vote"))
    mailer.enqueue(letter("one", ONE))
    ended = threading.Event()

    def abort():
        with contextlib.suppress(Failure):
            tm.commit()
        tm.abort()
        ended.set()

    thread = threading.Thread(target=abort)
    thread.start()
    # The file stays locked until it has ended.
    assert ended.wait(10)
    thread.join(10)
    assert app.deliveries()[ONE].state == "staged"
    other.execute("ROLLBACK")
    other.close()
    assert app.is_empty()
    put_right(app)


# -- now


def test_a_message_sent_immediately_is_refused_as_well(make_queue, server):
    app = make_queue(OWN_SQLITE, limit=1)
    mailer = app.mailer()
    with pytest.raises(QueueFull) as caught:
        mailer.send_immediately(letter("one", ONE, TWO))
    assert statuses(caught.value.outcomes) == ["unsent"] * 2
    assert mailer.last_outcomes == caught.value.outcomes
    assert mailer.send_immediately(letter("one", ONE, TWO), fail_silently=True)[0].reply is None
    assert server.messages == []
    assert app.is_empty()
    assert len(mailer.send_immediately(letter("one", ONE))) == 1
    put_right(app)


def test_a_process_is_known_although_its_first_mail_was_refused(make_queue, tm, server):
    """Or others would take it for dead, and its transaction for aborted."""
    app = make_queue(OWN_SQLITE, limit=1)
    mailer = app.mailer()
    refused(app, mailer, tm, server, QueueFull)
    seen = []

    def look():
        joined = sa.select(schema.batch.c.id).join_from(
            schema.batch, schema.process, schema.process.c.id == schema.batch.c.process
        )
        seen.append(len(app.read(joined)))
        seen.append(app.queue.resolve())

    tm.begin().join(Recorder("!", do={"vote": look}))
    mailer.enqueue(letter("one", ONE))
    tm.commit()
    assert seen == [1, []]
    assert app.ready() == [ONE]


@pytest.mark.parametrize("way", ["deferred", "two queues"])
def test_mail_of_a_committed_transaction_survives_its_process(make_queue, tm, server, way):
    """The queue cannot be told of the commit, and then the process dies."""
    app = make_queue(OWN_SQLITE)
    other = make_queue(OWN_SQLITE)
    path = app.engine.url.database
    server.on(".", "452 4.3.1 full")

    def child():
        txmail.queue.own_batch.FINISH_TIMEOUT = 0.1
        manager = transaction.TransactionManager()
        mailer = app.mailer().bind(transaction_manager=manager)
        manager.begin()
        if way == "deferred":
            mailer.send(letter("one", ONE))
        else:
            mailer.enqueue(letter("one", ONE))
            other.mailer().bind(transaction_manager=manager).enqueue(letter("two", TWO))
        blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        ours = manager.get()._resources[0]
        finish = ours.tpc_finish

        def tpc_finish(trans):
            blocker.execute("BEGIN IMMEDIATE")
            finish(trans)

        ours.tpc_finish = tpc_finish
        manager.commit()
        return "committed"

    assert in_child(child) == "committed"
    app.queue.resolve()
    other.queue.resolve()
    found = app.states()[ONE]
    if way == "deferred":
        assert found in ("deferred", "in_doubt", "ready")
    else:
        # Nobody can tell, and so a person has to.
        assert found == "ready" or app.batches() == ["unknown"]
        assert other.ready() == [TWO]


def test_refusing_a_mailer_without_a_queue():
    mailer = Mailer(transport_from_url("memory:"))
    with pytest.raises(Exception, match="no queue"):
        mailer.enqueue(letter("one", ONE))
