"""Savepoints in all orders: what arrives is what a list would hold."""

from __future__ import annotations

import itertools

import pytest
import transaction
from databases import Recorder
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from letters import letter, subjects
from thin import one_in
from transaction.interfaces import InvalidSavepointRollbackError

from txmail import Envelope, Mailer
from txmail.transports.memory import MemoryTransport


class Savepoints(RuleBasedStateMachine):
    """Mail and savepoints of one thread; the model is a list and its lengths."""

    def __init__(self):
        super().__init__()
        self.tm = transaction.TransactionManager()
        self.transport = MemoryTransport()
        self.mailer = Mailer(self.transport, transaction_manager=self.tm)
        self.numbers = itertools.count()
        self.sent = []
        self.began()

    def began(self):
        self.buffer = []
        #: savepoints that are valid, with the length of the buffer at the time
        self.savepoints = []
        self.invalid = []

    def ended(self):
        self.invalid += [savepoint for savepoint, _ in self.savepoints]
        for savepoint in self.invalid:
            with pytest.raises(InvalidSavepointRollbackError):
                savepoint.rollback()
        self.began()
        assert [envelope.sender for envelope in self.transport.envelopes] == self.sent

    @rule()
    def send(self):
        sender = f"n{next(self.numbers)}@example.com"
        self.mailer.send(Envelope(sender, ("ann@example.com",), CONTENT))
        self.buffer.append(sender)

    @rule()
    def take_a_savepoint(self):
        self.savepoints.append((self.tm.savepoint(), len(self.buffer)))

    @rule()
    def another_manager_joins(self):
        self.tm.get().join(Recorder("a"))

    @precondition(lambda self: self.savepoints)
    @rule(data=st.data(), twice=st.booleans())
    def roll_back(self, data, twice):
        position = data.draw(st.integers(0, len(self.savepoints) - 1))
        savepoint, length = self.savepoints[position]
        savepoint.rollback()
        if twice:
            savepoint.rollback()
        del self.buffer[length:]
        self.invalid += [later for later, _ in self.savepoints[position + 1 :]]
        del self.savepoints[position + 1 :]

    @precondition(lambda self: self.invalid)
    @rule(data=st.data())
    def roll_back_to_an_invalid_one(self, data):
        with pytest.raises(InvalidSavepointRollbackError):
            data.draw(st.sampled_from(self.invalid)).rollback()

    @rule()
    def commit(self):
        self.tm.commit()
        self.sent += self.buffer
        self.ended()

    @rule()
    def abort(self):
        self.tm.abort()
        self.ended()

    def teardown(self):
        self.commit()


CONTENT = (
    b"From: ann@example.com\r\nTo: ann@example.com\r\nSubject: s\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <one@example.com>\r\n\r\nHello.\r\n"
)

TestSavepoints = Savepoints.TestCase
TestSavepoints.settings = settings(
    max_examples=150 // one_in(4),
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_rolling_back_takes_back_the_mail_since(tm, mailer, server):
    with tm:
        mailer.send(letter("one"))
        first = tm.savepoint()
        mailer.send(letter("two"))
        second = tm.savepoint()
        mailer.send(letter("three"))
        second.rollback()
        mailer.send(letter("four"))
        second.rollback()
        mailer.send(letter("five"))
        first.rollback()
        mailer.send(letter("six"))
    assert subjects(server) == ["one", "six"]


def test_a_savepoint_older_than_the_first_mail_takes_us_out_and_mail_joins_again(
    tm, mailer, server
):
    with tm as txn:
        old = tm.savepoint()
        mailer.send(letter("one"))
        assert len(txn._resources) == 1
        old.rollback()
        assert txn._resources == []
        mailer.send(letter("two"))
        old.rollback()
        mailer.send(letter("three"))
    assert subjects(server) == ["three"]


def test_a_transaction_whose_mail_was_all_rolled_back_does_not_connect(tm, mailer, server):
    with tm:
        old = tm.savepoint()
        mailer.send(letter("one"))
        old.rollback()
    with tm:
        mailer.send(letter("one"))
        young = tm.savepoint()
        mailer.send(letter("two"))
        young.rollback()
        tm.abort()
    assert server.connections == []


def test_mail_does_not_keep_others_from_savepoints(tm, mailer, server):
    tm.begin().join(Recorder("a"))
    mailer.send(letter("one"))
    savepoint = tm.savepoint()
    mailer.send(letter("two"))
    savepoint.rollback()
    assert savepoint.valid
    tm.commit()
    assert subjects(server) == ["one"]


def test_a_refused_recipient_that_was_rolled_back_refuses_nothing(tm, mailer, server):
    server.refuse("nobody@example.com")
    with tm:
        mailer.send(letter("one"))
        savepoint = tm.savepoint()
        mailer.send(letter("two", "nobody@example.com"))
        savepoint.rollback()
    assert subjects(server) == ["one"]
    assert not [line for line in server.commands if "nobody" in line]
