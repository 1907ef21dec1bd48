"""Of all messages with one key, the first that is committed is sent, and no other."""

from __future__ import annotations

import multiprocessing
import random
import threading

import pytest
import sqlalchemy as sa
import transaction
import zope.sqlalchemy
from databases import Failure, Recorder
from forking import in_child
from letters import letter
from queues import IN_POSTGRESQL, IN_SQLITE, IN_TWO_PHASE, OWN_POSTGRESQL, OWN_SQLITE, QUEUES, kinds
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from txmail.queue import schema

ONE, TWO, THREE = "one@example.com", "two@example.com", "three@example.com"

#: how many pairs of transactions two parties commit at the same time
ROUNDS = 8


class Party:
    """Somebody with a transaction of his own, in the same application."""

    def __init__(self, app, mailer, manager=None):
        self.manager = manager or transaction.TransactionManager()
        self.mailer = mailer.bind(transaction_manager=self.manager)
        if app.in_session:
            self.session = Session(app.engine, twophase=app.kind == IN_TWO_PHASE)
            zope.sqlalchemy.register(self.session, transaction_manager=self.manager)
            self.mailer = self.mailer.bind(session=self.session)
        self.manager.begin()

    def enqueue(self, name, *keys):
        for number, key in enumerate(keys):
            address = name if len(keys) == 1 else f"{number}.{name}"
            self.mailer.enqueue(letter(name, address), idempotency_key=key)


def is_duplicate(app, recipient, winner):
    row = app.deliveries()[recipient]
    assert row.state == "cancelled"
    assert row.reply == f"duplicate of message {app.deliveries()[winner].message}"
    return True


@pytest.fixture(params=QUEUES)
def app(request, make_queue):
    return make_queue(request.param)


@pytest.fixture
def parties(app):
    mailer = app.mailer()
    return [Party(app, mailer), Party(app, mailer)]


def test_of_two_that_commit_the_first_is_sent(app, parties):
    first, second = parties
    second.enqueue(TWO, "key")
    first.enqueue(ONE, "key")
    first.manager.commit()
    second.manager.commit()
    assert app.states() == {ONE: "ready", TWO: "cancelled"}
    assert is_duplicate(app, TWO, ONE)
    assert app.batches() == ["published"] * 2
    rows = app.read(sa.select(schema.idempotency.c.key, schema.idempotency.c.message))
    assert [tuple(row) for row in rows] == [("key", app.deliveries()[ONE].message)]


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("how", ["abort", "begin", "commit", "vote"])
def test_one_that_does_not_commit_keeps_nobody_from_it(app, parties, how):
    first, second = parties
    first.enqueue(ONE, "key")
    second.enqueue(TWO, "key")
    if how == "abort":
        first.manager.abort()
    else:
        first.manager.get().join(Recorder("!", fails=how))
        with pytest.raises(Failure):
            first.manager.commit()
        first.manager.abort()
    second.manager.commit()
    assert app.states() == {TWO: "ready"}


@pytest.mark.representative(every=4)
@kinds(OWN_SQLITE, OWN_POSTGRESQL, IN_POSTGRESQL, IN_TWO_PHASE)
@pytest.mark.parametrize("ends", ["commit", "abort"])
def test_one_in_the_middle_of_its_commit_blocks_nobody(make_queue, kind, ends):
    """It holds the key in rows that are staged, and another one commits meanwhile."""
    app = make_queue(kind)
    mailer = app.mailer()
    first, second = Party(app, mailer), Party(app, mailer)
    first.enqueue(ONE, "key")
    second.enqueue(TWO, "key")

    def meanwhile():
        second.manager.commit()
        if ends == "abort":
            raise Failure("too late")

    first.manager.get().join(Recorder("!", do={"vote": meanwhile}))
    if ends == "abort":
        with pytest.raises(Failure):
            first.manager.commit()
        first.manager.abort()
        assert app.states() == {TWO: "ready"}
    else:
        first.manager.commit()
        assert app.states() == {ONE: "cancelled", TWO: "ready"}
        assert is_duplicate(app, ONE, TWO)


def test_one_key_twice_in_one_transaction_is_one_mail(app, parties):
    party, other = parties
    party.mailer.enqueue(letter("one", ONE), idempotency_key="key")
    party.mailer.enqueue(letter("two", TWO, THREE), idempotency_key="key")
    party.mailer.enqueue(letter("other", "other@example.com"), idempotency_key="another")
    party.mailer.enqueue(letter("none", "none@example.com"))
    party.manager.commit()
    assert app.states() == {
        ONE: "ready",
        TWO: "cancelled",
        THREE: "cancelled",
        "other@example.com": "ready",
        "none@example.com": "ready",
    }
    assert is_duplicate(app, TWO, ONE)
    other.manager.abort()


def test_a_key_that_is_taken_does_not_hold_the_rest_of_its_transaction_back(app, parties, server):
    first, second = parties
    first.enqueue(ONE, "key")
    first.manager.commit()
    second.mailer.enqueue(letter("two", TWO), idempotency_key="key")
    second.mailer.enqueue(letter("three", THREE), idempotency_key="new")
    second.mailer.send(letter("now", "now@example.com"))
    second.manager.commit()
    assert app.states() == {
        ONE: "ready",
        TWO: "cancelled",
        THREE: "ready",
        "now@example.com": "sent",
    }
    assert len(server.messages) == 1


def test_keys_are_told_apart_exactly(app, parties):
    keys = ["key", "KEY", "key ", "kéy", "ke\u0301y", "%", "_", "x" * 255]
    party, other = parties
    party.enqueue("x@example.com", *keys)
    party.manager.commit()
    assert sorted(app.states().values()) == ["ready"] * len(keys)
    other.manager.abort()


# -- many at once


def commit_many(manager, mailer, who, start, finished=None):
    """`ROUNDS` transactions with the keys that everybody uses, in an order of one's own."""
    chance = random.Random(who)
    for round_ in range(ROUNDS):
        keys = [f"{round_} {n}" for n in range(6)]
        if who % 2:
            keys.reverse()
        if who > 1:
            chance.shuffle(keys)
        start.wait(60)
        manager.begin()
        for key in keys:
            address = f"{key.replace(' ', '.')}.{who}@example.com"
            mailer.enqueue(letter(key, address), idempotency_key=key)
        manager.commit()


def check_all_won_once(app, parties):
    assert app.queue.flush(30)
    states = app.states()
    assert len(states) == ROUNDS * 6 * parties
    for round_ in range(ROUNDS):
        for n in range(6):
            ends = [states[f"{round_}.{n}.{who}@example.com"] for who in range(parties)]
            assert sorted(ends) == ["cancelled"] * (parties - 1) + ["ready"]
    assert set(app.batches()) == {"published"}


@pytest.mark.representative(every=5)
def test_threads_with_the_same_keys_in_other_orders(app, caplog):
    parties = 3
    manager = transaction.ThreadTransactionManager()
    mailer = app.mailer(transaction_manager=manager)
    if app.in_session:
        sessions = scoped_session(sessionmaker(app.engine, twophase=app.kind == IN_TWO_PHASE))
        zope.sqlalchemy.register(sessions, transaction_manager=manager)
        mailer = mailer.bind(session=sessions)
    start = threading.Barrier(parties)
    failures = []

    def work(who):
        try:
            commit_many(manager, mailer, who, start)
        except BaseException as error:
            failures.append(error)
            start.abort()

    threads = [threading.Thread(target=work, args=(who,)) for who in range(parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert failures == []
    check_all_won_once(app, parties)
    # Not even one that was tried again.
    assert [r.getMessage() for r in caplog.records if "tried again" in r.getMessage()] == []


@pytest.mark.representative(every=4)
@kinds(OWN_SQLITE, OWN_POSTGRESQL, IN_SQLITE, IN_POSTGRESQL)
def test_processes_with_the_same_keys_in_other_orders(make_queue, kind):
    app = make_queue(kind)
    mailer = app.mailer()
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)

    def work(who):
        party = Party(app, mailer)
        party.manager.abort()
        commit_many(party.manager, party.mailer, who, start)
        return app.queue.flush(30)

    said = []
    thread = threading.Thread(target=lambda: said.append(in_child(lambda: work(0), 100)))
    thread.start()
    said.append(in_child(lambda: work(1), 100))
    thread.join(100)
    assert said == ["True", "True"]
    check_all_won_once(app, 2)
