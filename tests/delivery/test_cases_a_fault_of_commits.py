"""Whose fault a refusal is, asked by commits: a memory for each transport in the process."""

from __future__ import annotations

import pytest
from commits import note
from queues import OWN_SQLITE, kinds

from txmail import Mailer, transport_from_url
from txmail.exceptions import DeliveryRefused, DeliveryUnavailable
from txmail.outcome import Action

QUOTA = "554 5.7.1 quota exceeded"
PLAIN = "550 we are not amused"


@pytest.fixture
def mailer(tm, server):
    transport = transport_from_url(server.url)
    yield Mailer(transport, transaction_manager=tm)
    transport.close()


def send(tm, mailer, *names):
    """The error of one transaction with a message of each name, None if there is none."""
    tm.begin()
    for name in names:
        mailer.send(note(name))
    try:
        tm.commit()
    except (DeliveryRefused, DeliveryUnavailable) as error:
        tm.abort()
        return error
    return None


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("said", [QUOTA, "503 5.5.1 AUTH first", "550 5.7.708 not from this IP"])
def test_a1_a2_words_about_us_are_no_refusal_of_a_message(tm, mailer, server, verb, said):
    server.on(verb, said, times=None)
    error = send(tm, mailer, "n")
    assert type(error) is DeliveryUnavailable
    (outcome,) = error.outcomes
    assert str(outcome.reply) == said
    stops = said.startswith("503")
    assert outcome.action is (Action.STOP_ROUTE if stops else Action.DEFER_ROUTE)


@pytest.mark.parametrize("verb", ["RCPT", "."])
def test_a1_the_third_commit_that_is_refused_alike_is_the_servers_fault(tm, mailer, server, verb):
    server.on(verb, PLAIN, times=None)
    found = [type(send(tm, mailer, f"n{n}")) for n in range(5)]
    assert found == [DeliveryRefused] * 2 + [DeliveryUnavailable] * 3
    server.clear()
    assert send(tm, mailer, "good") is None
    server.on(verb, "550 5.7.1 something else", times=None)
    assert type(send(tm, mailer, "bad")) is DeliveryRefused


def test_a1_messages_that_are_accepted_between_leave_each_refusal_its_own(tm, mailer, server):
    server.on("RCPT", PLAIN, matching="<bad", times=None)
    for number in range(4):
        assert type(send(tm, mailer, f"bad{number}")) is DeliveryRefused
        assert send(tm, mailer, f"good{number}") is None


def test_a1_dead_addresses_are_refused_however_many_they_are(tm, mailer, server):
    server.on("RCPT", "550 5.1.1 no such user", times=None)
    for number in range(6):
        assert type(send(tm, mailer, f"dead{number}")) is DeliveryRefused


def test_a1_the_same_message_again_is_one(tm, mailer, server):
    server.on("RCPT", PLAIN, times=None)
    for _ in range(5):
        assert type(send(tm, mailer, "n")) is DeliveryRefused


def test_a1_the_recipients_of_one_transaction_are_one_message(tm, mailer, server):
    server.on("RCPT", PLAIN, times=None)
    assert type(send(tm, mailer, *[f"n{n}" for n in range(5)])) is DeliveryRefused


@kinds(OWN_SQLITE)
def test_a1_the_queue_goes_on_with_what_a_commit_was_refused_for_the_servers_sake(
    kind, make_queue, server, tm
):
    """Also with the two before the third, of which nobody knew then."""
    app = make_queue(kind)
    server.on(".", PLAIN, after=3, times=None)
    transport = transport_from_url(server.url)
    mailer = Mailer(transport, transaction_manager=tm, queue=app.queue)
    with tm:
        for number in range(10):
            mailer.send(note(f"n{number}"))
    transport.close()
    assert app.queue.counts() == {"sent": 3, "ready": 7}
    assert len(mailer.last_outcomes) == 10
