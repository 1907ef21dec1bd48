"""Q4: the COMMIT of a publication whose answer does not arrive."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime, timedelta

import pytest
import transaction
from commits import note
from databases import Recorder
from queues import OWN_POSTGRESQL, OWN_SQLITE, kinds
from workers import wait_for

sa = pytest.importorskip("sqlalchemy")

from txmail import transport_from_url  # noqa: E402
from txmail.exceptions import (  # noqa: E402
    DeliveryUnavailable,
    PartialDelivery,
    QueueInDoubt,
    QueueUnavailable,
)
from txmail.queue import schema  # noqa: E402
from txmail.queue.queue import Queue  # noqa: E402
from txmail.worker import run_once  # noqa: E402

ONE, TWO = "one@example.net", "two@example.net"
#: As it is on the wire: READ COMMITTED has the word, too.
COMMIT = b"COMMIT\0"
#: What an application does in a transaction in which there is nobody but us.
WAYS = {
    "one queued": lambda mailer: mailer.enqueue(note("one")),
    "two queued": lambda mailer: [mailer.enqueue(note("one")), mailer.enqueue(note("two"))],
    "keyed": lambda mailer: mailer.enqueue(note("one"), idempotency_key="k"),
    "large": lambda mailer: mailer.enqueue(
        note("one", recipients=[f"r{n}@example.net" for n in range(1200)])
    ),
    "sent while the server is down": lambda mailer: mailer.send(note("one")),
}


def at_the_vote(tm, act):
    """Do `act` when the only manager of the transaction votes."""
    (manager,) = tm.get()._resources
    vote = manager.tpc_vote

    def tpc_vote(transaction):
        act()
        vote(transaction)

    manager.tpc_vote = tpc_vote


def lose(app, how, *, then=lambda: None):
    """The next COMMIT meets its fate."""
    app.door.happened = then
    setattr(app.door, how, COMMIT)


def sent_by_a_worker(app):
    """What a worker of another process would send now."""
    sink = transport_from_url("memory:")
    with run_elsewhere(app) as queue:
        run_once(queue, sink)
    return sorted(r for envelope in sink.envelopes for r in envelope.recipients)


def run_elsewhere(app):
    url = app.engine.url.render_as_string(hide_password=False)
    return contextlib.closing(Queue(url))


def quiet(app):
    """Nobody else commits in the background."""
    app.queue.host.background._round = lambda: None
    return app


@pytest.fixture
def app(make_queue):
    return quiet(make_queue(OWN_POSTGRESQL, door=True))


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_q4_a_publication_whose_answer_is_lost_has_committed(app, tm, server, way):
    """The kind: an error in place of an answer says nothing about what has taken place."""
    if way is WAYS["sent while the server is down"]:
        server.stop()
    mailer = app.mailer()
    tm.begin()
    way(mailer)
    at_the_vote(tm, lambda: lose(app, "swallow"))
    tm.commit()
    assert app.door.swallow == b""
    assert all(o.queued for o in mailer.last_outcomes)
    assert set(app.states().values()) == {"ready"}
    assert set(app.batches()) == {"published"}
    assert not app.read(sa.select(schema.attempt))


def test_q4_the_decision_to_send_two_whose_answer_is_lost(app, tm, server):
    mailer = app.mailer()
    tm.begin()
    mailer.send(note("one"))
    mailer.send(note("two"))
    at_the_vote(tm, lambda: lose(app, "swallow"))
    tm.commit()
    assert app.states() == {ONE: "sent", TWO: "sent"}
    assert len(server.messages) == 2


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_q4_a_publication_that_did_not_arrive_has_not(app, tm, server, way):
    if way is WAYS["sent while the server is down"]:
        server.stop()
    mailer = app.mailer()
    tm.begin()
    way(mailer)
    at_the_vote(tm, lambda: lose(app, "refuse"))
    with pytest.raises(QueueUnavailable) as caught:
        tm.commit()
    assert app.door.refuse == b""
    assert not isinstance(caught.value, QueueInDoubt)
    assert {str(o.status) for o in caught.value.outcomes} == {"unsent"}
    assert not any(o.queued for o in caught.value.outcomes)
    tm.abort()
    assert app.is_empty()


def test_q4_a_commit_that_is_still_on_its_way_is_waited_for(app, tm):
    """Who has the lock of the batch knows that the other transaction is over."""
    mailer = app.mailer()
    tm.begin()
    mailer.enqueue(note("one"))
    at_the_vote(tm, lambda: lose(app, "delay"))
    waits = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

    def release():
        with app.engine.connect() as connection:
            wait_for(lambda: (connection.rollback(), connection.scalar(waits))[1], "nobody waits")
        app.door.released.set()

    other = threading.Thread(target=release)
    other.start()
    tm.commit()
    other.join()
    assert app.states() == {ONE: "ready"}


@pytest.mark.sweep
def test_q4_an_answer_that_never_comes_is_not_waited_for_until_the_end(app, tm):
    mailer = app.mailer(commit_timeout=6.0)
    tm.begin()
    mailer.enqueue(note("one"))
    at_the_vote(tm, lambda: lose(app, "silence"))
    tm.commit()
    assert app.states() == {ONE: "ready"}


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("committed", [True, False])
def test_q4_what_stays_unknown_says_so(app, tm, committed):
    """Nobody can be asked within the budget: error and outcomes say so, and it is taken back."""
    mailer = app.mailer(commit_timeout=1.5, transient=True)
    tm.begin()
    mailer.enqueue(note("one"))
    how = "swallow" if committed else "refuse"
    at_the_vote(tm, lambda: lose(app, how, then=app.door.stop))
    with pytest.raises(QueueInDoubt) as caught:
        tm.commit()
    error = caught.value
    assert isinstance(error, PartialDelivery)
    assert isinstance(error, QueueUnavailable)
    assert not error.temporary
    assert not tm._retryable(type(error), error), "a second try may be a second copy"
    assert [o.recipient for o in error.in_doubt] == [ONE]
    assert "may have" in str(error)
    tm.abort()
    assert [str(o.status) for o in mailer.last_outcomes] == ["in_doubt"]
    app.door.open()
    assert app.is_empty()


def test_q4_of_what_stays_unknown_the_row_says_so_if_a_worker_was_faster(app, tm):
    mailer = app.mailer(commit_timeout=1.5)
    tm.begin()
    mailer.enqueue(note("one"))
    mailer.enqueue(note("two"), not_before=_later())
    sent = []

    def shut_and_send():
        app.door.stop()
        threading.Thread(target=send).start()

    def send():
        wait_for(lambda: app.batches() == ["published"], "it is not published")
        sent.extend(sent_by_a_worker(app))

    at_the_vote(tm, lambda: lose(app, "swallow", then=shut_and_send))
    with pytest.raises(QueueInDoubt):
        tm.commit()
    tm.abort()
    wait_for(lambda: sent, "no worker sends")
    app.door.open()
    assert sent == [ONE]
    assert app.states() == {ONE: "sent"}, "what nobody had begun is taken back"
    (found,) = app.read(sa.select(schema.batch.c.state, schema.batch.c.reason))
    assert found.state == "published"
    assert "its transaction failed" in found.reason
    assert ["its transaction failed" in row.reply for row in app.attempts(ONE)] == [True]


def test_q4_a_key_that_has_won_is_not_taken_back(app, tm, make_queue):
    """Another transaction's mail was cancelled for ours: one of the two has to go out."""
    mailer = app.mailer(commit_timeout=1.5)
    tm.begin()
    mailer.enqueue(note("one"), idempotency_key="k")

    def shut_and_lose():
        app.door.stop()
        threading.Thread(target=rival).start()

    def rival():
        wait_for(lambda: app.batches() == ["published"], "it is not published")
        with run_elsewhere(app) as queue:
            app.mailer(queue=queue).bind(transaction_manager=other).enqueue(
                note("two"), idempotency_key="k"
            )
            other.commit()
        done.set()

    other, done = transaction.TransactionManager(), threading.Event()
    at_the_vote(tm, lambda: lose(app, "swallow", then=shut_and_lose))
    with pytest.raises(QueueInDoubt):
        tm.commit()
    tm.abort()
    assert done.wait(20)
    app.door.open()
    assert app.states() == {ONE: "ready", TWO: "cancelled"}


def _later():
    return datetime.now(UTC) + timedelta(days=1)


@pytest.mark.parametrize("how", ["swallow", "refuse"])
@pytest.mark.parametrize("way", ["enqueue", "keyed", "send", "deferred"])
def test_q4_with_others_it_is_published_once(app, tm, server, how, way, caplog):
    """They have committed: commit() succeeds, and the repeated publication repeats nothing."""
    mailer = app.mailer()
    if way == "deferred":
        server.on("RCPT", "450 4.2.0 later", times=None)
    tm.begin().join(Recorder("!", do={"finish": lambda: lose(app, how)}))
    app.database.write("order")
    if way == "enqueue":
        mailer.enqueue(note("one"))
    elif way == "keyed":
        mailer.enqueue(note("one"), idempotency_key="k")
    else:
        mailer.send(note("one"))
    tm.commit()
    wanted = {"send": "sent", "deferred": "deferred"}.get(way, "ready")
    assert app.states() == {ONE: wanted}
    assert getattr(app.door, how) == b""
    assert len(app.attempts(ONE)) == (way == "deferred")
    assert app.batches() == ["published"]
    assert not [r for r in caplog.records if "had decided about" in r.getMessage()]


@pytest.mark.parametrize("how", ["swallow", "refuse"])
def test_q4_send_immediately(app, server, how):
    server.stop()
    mailer = app.mailer()
    mailer.send_immediately(note("zero"))  # the connection is there
    lose_second(app, how)
    if how == "refuse":
        with pytest.raises(DeliveryUnavailable) as caught:
            mailer.send_immediately(note("one"))
        assert not isinstance(caught.value, QueueInDoubt)
        assert ONE not in app.states()
    else:
        assert mailer.send_immediately(note("one"))[0].queued
        assert app.states()[ONE] == "ready"


def lose_second(app, how):
    """The COMMIT that publishes: the first one stages."""
    queue = app.queue
    begin = queue.begin

    def begin_and_lose(*arguments):
        batch = begin(*arguments)
        decide = batch.decide

        def decide_and_lose(*arguments):
            lose(app, how)
            decide(*arguments)

        batch.decide = decide_and_lose
        return batch

    queue.begin = begin_and_lose


@kinds(OWN_SQLITE, OWN_POSTGRESQL)
@pytest.mark.parametrize("committed", [True, False])
def test_q4_a_driver_that_reports_an_error_at_commit(make_queue, tm, kind, committed):
    """Also a file can be written although its COMMIT says that it failed."""
    app = quiet(make_queue(kind))
    mailer = app.mailer()
    tm.begin()
    mailer.enqueue(note("one"))
    engine = app.queue.database.engine

    def arm():
        @sa.event.listens_for(engine, "commit", once=True)
        def fail(connection):
            if committed:
                connection.connection.dbapi_connection.commit()
            raise sa.exc.OperationalError("COMMIT", None, RuntimeError("disk I/O error"))

    at_the_vote(tm, arm)
    if committed:
        tm.commit()
        assert app.states() == {ONE: "ready"}
    else:
        with pytest.raises(QueueUnavailable) as caught:
            tm.commit()
        assert not isinstance(caught.value, QueueInDoubt)
        tm.abort()
        assert app.is_empty()
